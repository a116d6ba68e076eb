"""Killed at any moment and run again, encoding ends with the same bytes; a changed corpus is encoded anew."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from documents_for_tests import rows, text, write_jsonl

from tokenizer import documents, encode


def files(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_kill_9_and_rerun(encoded, tokenizer_dir, tmp_path):
    """Several shards, two workers, the whole process group killed at random moments until a run gets through."""
    for part in range(8):
        lines = [{"text": text("en", part * 1000 + number, 400), "lang": "en"} for number in range(150)]
        write_jsonl(tmp_path / "corpus" / f"{part}.jsonl", lines)
    expected = files(encoded(tmp_path / "corpus"))
    out = tmp_path / "interrupted"
    command = [sys.executable, "-m", "tokenizer.encode", "--corpus", str(tmp_path / "corpus"), "--out", str(out)]
    command += ["--tokenizer", str(tokenizer_dir), "--workers", "2"]
    chance = random.Random(0)
    killed = 0
    for _ in range(3):
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True)
        shards = out / ".work" / "shards"
        goal = len(list(shards.glob("*/0*"))) + chance.randrange(1, 3)
        while process.poll() is None and len(list(shards.glob("*/0*"))) < goal:
            time.sleep(0.01)
        time.sleep(chance.random() * 0.05)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.communicate()
    assert killed
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "kept" in done.stdout or "already encoded" in done.stdout
    assert files(out) == expected


def test_workers_leave_with_a_killed_parent(tokenizer_dir, tmp_path):
    lines = [{"text": text("en", number, 4000), "lang": "en"} for number in range(100)]
    write_jsonl(tmp_path / "corpus" / "x.jsonl", lines)
    command = [sys.executable, "-m", "tokenizer.encode", "--corpus", str(tmp_path / "corpus")]
    command += ["--out", str(tmp_path / "d"), "--tokenizer", str(tokenizer_dir), "--workers", "2"]
    process = subprocess.Popen(command, start_new_session=True)
    while not list((tmp_path / "d").glob(".work/shards/*/0*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    for _ in range(1000):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.02)
    else:
        pytest.fail("workers outlived their parent by 20 s")


def test_finished_data_are_left_alone(corpus, encoded, capsys):
    data = encoded(corpus)
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    encoded(corpus, out=data)
    assert "already encoded" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before


def test_missing_data_are_made_again(corpus, encoded):
    data = encoded(corpus)
    expected = files(data)
    next(data.glob("en/*/train.bin")).unlink()
    encoded(corpus, out=data)
    assert files(data) == expected


def test_finished_shards_are_kept_and_one_changed_file_is_encoded_anew(encoded, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(documents, "SMALLEST_BLOCK", 4096)
    monkeypatch.setattr(documents, "_READ_SIZE", 1000)
    for name in "ab":
        write_jsonl(tmp_path / "corpus" / f"{name}.jsonl", rows(100))
    out = tmp_path / "out"

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(encode, "merge", stop)
        with pytest.raises(KeyboardInterrupt):
            encoded(tmp_path / "corpus", out=out)
    shards = len(list((out / ".work").glob("shards/*/0*")))
    assert shards > 10
    write_jsonl(tmp_path / "corpus" / "b.jsonl", rows(101))
    encoded(tmp_path / "corpus", out=out)
    assert f"{shards // 2} of them kept" in capsys.readouterr().out
    assert files(out) == files(encoded(tmp_path / "corpus"))


def test_a_smaller_corpus_leaves_no_old_data_sets(corpus, encoded, tmp_path):
    data = encoded(corpus)
    lines = [row for row in rows(400) if row["lang"] == "en"]
    write_jsonl(tmp_path / "smaller" / "all.jsonl", lines)
    encoded(tmp_path / "smaller", out=data)
    assert files(data) == files(encoded(tmp_path / "smaller"))


def test_killed_between_manifest_and_tidying_up(corpus, encoded, monkeypatch):
    """The work directory is removed last; a run that finds all data in place removes what is left of it."""
    expected = encoded(corpus)
    with monkeypatch.context() as patch:
        patch.setattr(encode.shutil, "rmtree", lambda *_, **__: None)
        data = encoded(corpus)
    assert (data / ".work").exists()
    encoded(corpus, out=data)
    assert not (data / ".work").exists()
    assert files(data) == files(expected)


def test_two_encoders_do_not_share_a_directory(corpus, encoded, fails, tokenizer_dir):
    data = encoded(corpus)
    arguments = ["--corpus", corpus, "--tokenizer", tokenizer_dir, "--out", data, "--workers", "1"]
    with encode._locked(data):
        assert "another tokenizer.encode is writing here" in fails(encode, *arguments)
    assert json.loads((data / "manifest.json").read_text())["documents"] == 400
