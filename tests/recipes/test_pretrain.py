"""Training through the command line: the same numbers on every layout, after any interruption, as committed."""

from __future__ import annotations

import csv
import os
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from commands import REPOSITORY, loss_rows, pretrain, pretrain_command

TRACE = Path(__file__).parent / "traces" / "smoke.csv"


@pytest.mark.parametrize("layout", ["tensor_parallel", "pipeline_parallel"])
def test_layouts_give_the_losses_of_one_process(layout_runs, layout):
    expected, actual = loss_rows(layout_runs["single"]), loss_rows(layout_runs[layout])
    assert len(expected) == len(actual) == 20
    for one, other in zip(expected, actual, strict=True):
        for column in ("train_loss", "grad_norm", "learning_rate"):
            assert float(other[column]) == pytest.approx(float(one[column]), rel=1e-5)
        for column in ("heldout_loss", "heldout_loss_en", "heldout_loss_zh"):
            assert bool(one[column]) == bool(other[column])
            assert float(other[column] or 0) == pytest.approx(float(one[column] or 0), rel=1e-5)


def test_smoke_grid_leaves_the_committed_trace(layout_runs):
    """Losses change only when the data, the tokenizer, the model or the optimizer do: then commit a new trace
    (python tests/recipes/write_trace.py) and say in the commit why it had to change."""
    with open(TRACE, encoding="utf-8", newline="") as file:
        committed = list(csv.DictReader(file))
    rows = loss_rows(layout_runs["single"])
    assert len(rows) == len(committed) == 20
    for row, then in zip(rows, committed, strict=True):
        for column in ("train_loss", "heldout_loss", "learning_rate"):
            assert float(row[column] or 0) == pytest.approx(float(then[column] or 0), rel=1e-4)


def test_training_reduces_the_loss_in_both_languages(layout_runs):
    rows = [row for row in loss_rows(layout_runs["single"]) if row["heldout_loss"]]
    assert [row["step"] for row in rows] == ["10", "20"]
    for column in ("heldout_loss", "heldout_loss_en", "heldout_loss_zh"):
        assert float(rows[1][column]) < float(rows[0][column])


def test_total_is_the_mixture_of_the_languages(layout_runs):
    row = loss_rows(layout_runs["single"])[-1]
    mixture = 0.8 * float(row["heldout_loss_en"]) + 0.2 * float(row["heldout_loss_zh"])
    assert float(row["heldout_loss"]) == pytest.approx(mixture, abs=1e-6)


def test_two_runs_are_equal_to_the_last_digit(smoke_data, tmp_path):
    for name in ("one", "other"):
        pretrain("small-40960", tmp_path / name, smoke_data)
    assert loss_rows(tmp_path / "one" / "small-40960") == loss_rows(tmp_path / "other" / "small-40960")


def test_resumes_on_another_layout(layout_runs, smoke_data, tmp_path):
    """A checkpoint of two tensor-parallel ranks goes on with one process: the files do not depend on the layout."""
    target = tmp_path / "large-40960"
    subprocess.run(["cp", "-r", layout_runs["tensor_parallel"], target], check=True)
    subprocess.run(["rm", "-r", target / "checkpoints" / "step_20"], check=True)
    pretrain("large-40960", tmp_path, smoke_data)
    for one, other in zip(loss_rows(layout_runs["single"]), loss_rows(target), strict=True):
        assert float(other["train_loss"]) == pytest.approx(float(one["train_loss"]), rel=1e-5)


def test_run_directory_says_where_its_numbers_come_from(layout_runs, smoke_data):
    content = yaml.safe_load((layout_runs["single"] / "run.yaml").read_text())
    assert content["settings"]["hidden_size"] == 64
    assert content["data"]["directory"] == str(smoke_data)
    assert len(content["data"]["fingerprint"]) == 64
    assert content["versions"]["megatron-core"] == "0.16.1"
    assert list((layout_runs["single"] / "tb").glob("events*"))
    assert "held-out" in (layout_runs["single"] / "train.log").read_text()


def test_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(layout_runs, smoke_data, tmp_path):
    target = tmp_path / "large-40960"
    subprocess.run(["cp", "-r", layout_runs["single"], target], check=True)
    part = next((target / "checkpoints" / "step_20" / "weights").glob("*.distcp"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    done = pretrain("large-40960", tmp_path, smoke_data)
    assert "does not match its checksum" in done.stdout
    assert "resuming from step 10" in done.stdout
    assert (target / "checkpoints" / "step_20.damaged").is_dir()
    assert loss_rows(target) == loss_rows(layout_runs["single"])


@pytest.mark.parametrize(
    ("run", "settings", "message"),
    [
        ("large-40960", ["learning_rate=fast"], "learning_rate is 'fast'; it must be a number"),
        ("large-40960", ["colour=red"], "there is no setting 'colour'"),
        ("large-40960", ["learning_rate"], "write key=value"),
        ("large-40960", ["tensor_parallel=3"], "do not divide over tensor_parallel=3"),
        ("large-40960", ["tensor_parallel=2"], "1 processes do not divide into tensor_parallel=2"),
        ("large-40960", ["vocab_size=2048"], "encoded with 1024 pieces"),
        ("large-40960", ["languages.fr=1"], "no train documents in language 'fr'"),
        ("large-40960", ["sequence_length=50000", "tokens=1.6M"], "less than one sequence"),
        ("huge", [], "has no run 'huge'; it has small-20480"),
    ],
)
def test_mistakes_are_one_line(smoke_data, tmp_path, run, settings, message):
    done = pretrain(run, tmp_path, smoke_data, *settings, fails=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("checkpoints"))


def test_other_settings_do_not_continue_a_run(layout_runs, smoke_data):
    done = pretrain("large-40960", layout_runs["single"].parent, smoke_data, "learning_rate=0.5", fails=True)
    assert done.returncode == 2
    assert "was trained with learning_rate=0.004, now it is 0.5" in done.stderr


def test_missing_data_name_the_command_that_makes_them(tmp_path):
    done = pretrain("small-20480", tmp_path, tmp_path / "nowhere", fails=True)
    assert done.returncode == 2
    assert "python -m tokenizer.encode" in done.stderr


def test_two_processes_do_not_train_one_run(smoke_data, tmp_path):
    command = pretrain_command("small-40960", tmp_path, smoke_data, "tokens=20M")
    first = subprocess.Popen(command, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(lambda: _rows(tmp_path / "small-40960") >= 1)
        second = pretrain("small-40960", tmp_path, smoke_data, "tokens=20M", fails=True)
        assert "another process trains" in second.stderr
    finally:
        first.kill()
        first.wait()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def _rows(run: Path) -> int:
    path = run / "loss.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def _wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)
