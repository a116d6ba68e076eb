"""What befalls a run: signals, full disks, losses that must not be trained on. It ends in one line, and goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from commands import REPOSITORY, loss_rows

from recipes import checkpoint
from recipes.guard import Stopped, StopSignals

CASES = Path(__file__).parent / "training_cases.py"
RUN = "small-20480"
FLAT = ("learning_rate=1e-9", "heldout_sequences=4")
"""With this rate a loss is that of its batch alone."""
TOO_SMALL = 60_000
"""Bytes below those of a weights file and above those of any log."""


def _train(data: Path, *cases: dict) -> list[tuple[int, str]]:
    given = [
        {
            "arguments": [
                "--grid",
                "smoke",
                "--run",
                RUN,
                "--out",
                str(case["out"]),
                "--data",
                str(data),
                *case["settings"],
            ],
            "signal": case.get("signal"),
            "rows": case.get("rows", 3),
            "file_bytes": case.get("file_bytes"),
        }
        for case in cases
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(CASES)]
    done = subprocess.run(
        command, input=json.dumps(given), capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [(ending["exit_code"], ending["message"]) for ending in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def endings(once, smoke_data) -> Path:
    """Directory with a run for each ending, and endings.json with exit codes and messages."""

    def make(directory: Path) -> None:
        signals = {name: f"SIG{name.partition('-')[0].upper()}" for name in ("term", "usr1", "int", "term-background")}
        cases = {"plain": {"settings": []}, "flat": {"settings": FLAT}}
        for name, number in signals.items():
            settings = ["async_save=true"] if name.endswith("background") else []
            cases[name] = {"settings": settings, "signal": number}
            cases[f"{name} again"] = {"settings": settings}
        cases["nan"] = {"settings": ["learning_rate=1e30", "clip_grad=1e30"]}
        for name, settings in {"full": [], "full-background": ["async_save=true"]}.items():
            cases[name] = {"settings": ["save_every_minutes=1e-6", *settings], "signal": "SIGTERM", "rows": 6}
            cases[f"{name} disk"] = {"settings": settings, "file_bytes": TOO_SMALL}
            cases[f"{name} again"] = {"settings": settings}
        given = [{**case, "out": directory / name.partition(" ")[0]} for name, case in cases.items()]
        (directory / "endings.json").write_text(json.dumps(dict(zip(cases, _train(smoke_data, *given), strict=True))))

    return once("endings", make)


def _ending(endings: Path, name: str) -> list:
    return json.loads((endings / "endings.json").read_text())[name]


@pytest.mark.parametrize(("name", "exit_code"), [("term", 75), ("usr1", 75), ("int", 130), ("term-background", 75)])
def test_signal_saves_and_the_next_start_goes_on(endings, name, exit_code):
    assert _ending(endings, name)[0] == exit_code
    log = (endings / name / RUN / "train.log").read_text()
    (step,) = re.findall(r"stopped after step (\d+), which is saved", log)
    assert f"resuming from step {step}" in log
    assert int(step) < 10
    assert _ending(endings, f"{name} again")[0] == 0
    assert loss_rows(endings / name / RUN) == loss_rows(endings / "plain" / RUN)
    assert not list((endings / name / RUN).rglob(".*saving")) and not (endings / name / RUN / "resume").exists()


@pytest.mark.parametrize("name", ["full", "full-background"])
def test_full_disk_leaves_the_states_before_whole(endings, name):
    code, message = _ending(endings, f"{name} disk")
    assert code == 2 and "\n" not in message
    assert "cannot save step 10" in message and "could not be written to its end" in message and "make room" in message
    assert _ending(endings, f"{name} again")[0] == 0
    log = (endings / name / RUN / "train.log").read_text()
    first, second = re.findall(r"resuming from step (\d+)", log)
    assert first == second, "the state before the full disk is the one after it"
    assert "damaged" not in log
    assert loss_rows(endings / name / RUN) == loss_rows(endings / "plain" / RUN)


def test_loss_that_is_not_finite_stops_before_it_does_harm(endings):
    code, message = _ending(endings, "nan")
    assert code == 2 and "\n" not in message
    step = int(re.search(r"stopped at step (\d+): the (loss|gradient norm) is (nan|inf)", message)[1])
    first = (step - 1) * 16
    assert f"samples {first} to {first + 15} of the mixture (" in message
    assert f"skip_steps=[{step}]" in message
    counts = re.findall(r"(\d+) of (?:en|zh)/(?:web|books)", message)
    assert sum(map(int, counts)) == 16
    assert not checkpoint.is_started(endings / "nan" / RUN)
    assert len(loss_rows(endings / "nan" / RUN)) == step - 1


def test_jump_of_the_loss_stops_the_run_and_can_be_passed_over(endings, smoke_data, tmp_path):
    losses = [float(row["train_loss"]) for row in loss_rows(endings / "flat" / RUN)]
    jumps = {step: losses[step - 1] - sum(losses[: step - 1]) / (step - 1) for step in range(6, 11)}
    worst = max(jumps, key=jumps.get)
    limit = sorted(jumps.values())[-2:]
    assert limit[1] > 0
    jump = f"max_loss_jump={max(sum(limit) / 2, 1e-9)}"
    saving = "save_every_minutes=1e-6"
    stops, goes_on, not_twice = _train(
        smoke_data,
        {"out": tmp_path, "settings": [*FLAT, saving, jump]},
        {"out": tmp_path, "settings": [*FLAT, saving, jump, f"skip_steps=[{worst}]"]},
        {"out": endings / "flat", "settings": [*FLAT, "skip_steps=[3]"]},
    )
    assert stops[0] == 2 and f"stopped at step {worst}: the loss is" in stops[1] and "nats above the mean" in stops[1]
    assert goes_on == (0, "")
    rows = loss_rows(tmp_path / RUN)
    assert [int(row["step"]) for row in rows if not row["train_loss"]] == [worst]
    for row, before in zip(rows, loss_rows(endings / "flat" / RUN), strict=True):
        assert row["learning_rate"] == before["learning_rate"]
        if int(row["step"]) < worst:
            assert row == before
    last = [line.split(",") for line in (tmp_path / RUN / "sources.csv").read_text().splitlines()[-4:]]
    assert {line[0] for line in last} == {"10"}
    assert sum(int(line[3]) for line in last) == 9 * 16 * 128
    # The flat run is complete: what it was trained on cannot be skipped any more.
    assert not_twice[0] == 2 and "skip_steps names step 3" in not_twice[1]


def test_run_of_an_older_version_goes_on(endings, smoke_data, tmp_path):
    """A run.yaml lacks the settings that came later; a changed one is still refused."""
    shutil.copytree(endings / "plain" / RUN, tmp_path / RUN)
    path = tmp_path / RUN / "run.yaml"
    content = yaml.safe_load(path.read_text())
    for key in ("fp8_recipe", "source_weights", "skip_steps", "recompute"):
        del content["settings"][key]
    path.write_text(yaml.safe_dump(content))
    damaged = tmp_path / "damaged"
    shutil.copytree(tmp_path / RUN, damaged / RUN)
    (damaged / RUN / "run.yaml").write_text("settings: [")
    same, other, unreadable = _train(
        smoke_data,
        {"out": tmp_path, "settings": []},
        {"out": tmp_path, "settings": ["source_weights.en.web=1", "source_weights.en.books=3"]},
        {"out": damaged, "settings": []},
    )
    assert same == (0, "")
    assert other[0] == 2 and "was trained with source_weights={}" in other[1]
    assert unreadable[0] == 2 and "run.yaml is damaged" in unreadable[1]


def test_a_signal_passes_through_a_library_that_catches_all_that_goes_wrong():
    """OmegaConf makes its own error of any Exception; of a stop that was a TypeError, and exit code 1."""
    with StopSignals(), pytest.raises(Stopped, match="stopped by SIGTERM before its first step") as stopped:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception as error:
            raise type(error)(str(error)) from None
    assert stopped.value.exit_code == 75
