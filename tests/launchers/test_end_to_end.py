"""The first command, whole: documents in, report out; and the same after it was killed at any moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from commands import loss_rows
from made_text import write_corpus

from launchers.directory import launcher_pid
from launchers.plan import GridDirectory
from recipes.grid import load_grid

pytestmark = pytest.mark.slow

PATIENCE = 600.0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, repository) -> list[str]:
    """The arguments that name a grid of two small runs, a corpus and two benchmarks in the official formats."""
    root = tmp_path_factory.mktemp("inputs")
    write_corpus(root / "corpus", documents=3000)
    hellaswag = [
        {
            "ind": i,
            "activity_label": "Pole vault",
            "ctx_a": "A woman runs fast.",
            "ctx_b": "she",
            "ctx": "A woman runs fast. she",
            "label": i % 4,
            "endings": ["jumps.", "sits down.", "eats a cake.", "sleeps."],
        }
        for i in range(6)
    ]
    pronouns = {"span1_text": "伤口", "span1_index": 3, "span2_text": "它们", "span2_index": 10}
    cluewsc = [
        {"target": pronouns, "idx": i, "label": ["true", "false"][i % 2], "text": "裂开的伤口涂满尘土，它们很疼。"}
        for i in range(4)
    ]
    for name, rows in {
        "hellaswag/hellaswag_val.jsonl": hellaswag,
        "cluewsc2020/train.json": cluewsc,
        "cluewsc2020/dev.json": cluewsc[:2],
    }.items():
        path = root / "benchmarks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    text = (repository / "recipes" / "grids" / "smoke.yaml").read_text()
    text = text.replace("limit: 8", "tasks: [hellaswag, cluewsc]\n  limit: 4").replace(
        "size: [small, large]", "size: small"
    )
    (root / "grid.yaml").write_text(text)
    return ["--grid", f"{root}/grid.yaml", "--corpus", f"{root}/corpus", "--benchmarks", f"{root}/benchmarks"]


def start(inputs: list[str], out: Path, environment: dict[str, str], repository: Path) -> subprocess.Popen:
    command = ["bash", str(repository / "launchers" / "slurm_grid.sh"), *inputs, "--out", str(out), "--no-open"]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


@pytest.fixture(scope="module")
def whole(inputs, environment, repository, tmp_path_factory) -> tuple[GridDirectory, str]:
    """A launch that nothing disturbed, and what it printed."""
    out = tmp_path_factory.mktemp("whole") / "with spaces and 'quotes'"
    process = start(inputs, out, environment, repository)
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, printed
    return GridDirectory(out), printed


def test_one_command_makes_the_report(whole, inputs):
    folder, printed = whole
    assert folder.report_page.is_file()
    assert f"report: {folder.report_page}" in printed
    for run in load_grid(inputs[1]).runs:
        for step in run.settings.checkpoint_steps:
            assert folder.has_checkpoint(run.name, step)
            assert set(json.loads(folder.result(run.name, step).read_text())["tasks"]) == {"hellaswag", "cluewsc"}
    logs = {path.name for path in folder.logs.iterdir()}
    assert {"tokenizer.log", "encode.log", "train-small-20480.log", "report.log"} <= logs
    assert launcher_pid(folder) is None


def test_a_second_launch_finds_nothing_to_do(whole, inputs, environment, repository):
    folder, _ = whole
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("step_*.json")}
    process = start(inputs, folder.path, environment, repository)
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and "started" not in printed
    assert before == {path: path.stat().st_mtime_ns for path in folder.path.rglob("step_*.json")}


def test_killed_again_and_again_it_ends_with_the_same_losses(whole, inputs, environment, repository, tmp_path):
    """kill -9 of the process group, each time at another stage of the work."""
    folder = GridDirectory(tmp_path / "killed")
    runs = load_grid(inputs[1]).runs
    first = runs[0].settings.checkpoint_steps[0]
    stages = [
        lambda: (folder.logs / "encode.log").is_file(),
        lambda: (folder.path / runs[1].name / "loss.csv").is_file(),
        lambda: any(folder.has_checkpoint(run.name, first) for run in runs),
        lambda: any((folder.logs).glob("evaluate-*.log")),
    ]
    for stage in stages:
        process = start(inputs, folder.path, environment, repository)
        deadline = time.monotonic() + PATIENCE
        while not stage() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    process = start(inputs, folder.path, environment, repository)
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, printed
    assert folder.report_page.is_file()
    undisturbed, _ = whole
    for run in runs:
        assert loss_rows(folder.path / run.name) == loss_rows(undisturbed.path / run.name)
        for step in run.settings.checkpoint_steps:
            scores, expected = (
                {
                    name: task["metrics"]
                    for name, task in json.loads(place.result(run.name, step).read_text())["tasks"].items()
                }
                for place in (folder, undisturbed)
            )
            assert scores == expected
