"""`--status` and `--watch`: the states of runs from files, records and a queue, in a grid directory made by hand."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_runs import write_run
from rich.console import Console

from launchers import watch as watching
from launchers.directory import choose_inputs, locked
from launchers.estimate import Estimator, total_seconds
from launchers.local import Process
from launchers.plan import GridDirectory, build_plan
from launchers.queued import QueuedJob
from launchers.records import Record
from launchers.states import read_status, read_study
from launchers.status import format_duration, status_table, status_value
from launchers.tried import NOTES
from launchers.watch import watch
from recipes.grid import Grid, Run


@pytest.fixture
def names(smoke) -> tuple[str, str, str, str]:
    """The runs: finished and evaluated; with a checkpoint; begun; not begun."""
    return tuple(run.name for run in smoke.runs)


def record(folder, step: str) -> Record:
    return Record.of(folder.logs, step)


def line(smoke, folder, run: str, queue=None):
    return next(it for it in read_status(smoke, folder, queue) if it.run == run)


def shown(smoke, folder, queue=None, width: int = 160, height: int | None = None) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(status_table(smoke, folder, queue, height))
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("job", "state", "reason"),
    [
        (QueuedJob("7", "PENDING", "Resources"), "queued", "Resources"),
        (QueuedJob("7", "PENDING", "None"), "queued", None),
        (QueuedJob("7", "RUNNING", "None", "node[1-2]"), "running", None),
        (QueuedJob("7", "COMPLETING", "None", "node1"), "running", None),
        (QueuedJob("7", "REQUEUED", "None"), "requeued", None),
        (QueuedJob("7", "REQUEUE_HOLD", "launch failed requeued held"), "requeued", "launch failed requeued held"),
        (QueuedJob("7", "SUSPENDED", "Licenses"), "queued", "suspended (Licenses)"),
        (QueuedJob("7", "TIMEOUT", "TimeLimit"), "waiting", "nobody works on this study"),
    ],
)
def test_states_of_a_run_in_the_queue(smoke, folder, names, job, state, reason):
    found = line(smoke, folder, names[3], {f"train {names[3]}": job})
    assert (found.state, found.reason) == (state, reason)
    assert found.job == (None if state == "waiting" else "7")
    assert found.nodes == (job.nodes or None)


def test_a_run_that_has_run_before_is_requeued_with_how_its_last_start_ended(smoke, folder, names):
    kept = record(folder, f"train {names[1]}")
    kept.add("submitted", job="7")
    kept.add("started", job="7.0", nodes=("node1",))
    kept.add("ended", job="7.0", code=75, interrupted=True, reason="preempted")
    kept.add("started", job="7.1", nodes=("node2",), progress=10)
    kept.add("ended", job="7.1", code=1, reason="node2 went down")
    pending = {f"train {names[1]}": QueuedJob("7", "PENDING", "BeginTime")}
    found = line(smoke, folder, names[1], pending)
    assert (found.state, found.reason, found.restarts) == ("requeued", "BeginTime; node2 went down", 1)
    # Nobody has it: it is stopped for that reason.
    found = line(smoke, folder, names[1])
    assert (found.state, found.reason, found.restarts) == ("stopped", "node2 went down", 1)
    # A finished run is finished whatever its job does.
    assert line(smoke, folder, names[0], {f"train {names[0]}": QueuedJob("1", "COMPLETING")}).state == "finished"


def test_a_run_that_was_given_up_until_somebody_tries_again(smoke, folder, names):
    step = f"train {names[1]}"
    (folder.logs / f"train-{names[1]}.log").write_text("[rank0]: ValueError: [0]\n")
    kept = record(folder, step)
    kept.add("started", job="7.0")
    kept.add("ended", job="7.0", code=1)
    kept.add("gave up", reason="no progress in 3 starts; last: [rank0]: ValueError: [0]")
    for queue in ({}, {step: QueuedJob("7", "COMPLETING")}):
        found = line(smoke, folder, names[1], queue)
        assert (found.state, found.reason, found.error) == ("failed", found.error, found.reason)
        assert found.log == str(folder.logs / f"train-{names[1]}.log")
    text = shown(smoke, folder, width=250)
    assert f"{names[1]} failed: no progress in 3 starts; last: [rank0]: ValueError: [0]; log: {found.log}" in text
    value = status_value(smoke, folder)
    assert value["failed"] == {
        step: {"run": names[1], "phase": "train", "message": found.reason, "log": found.log},
    }
    kept.add("resumed")
    assert line(smoke, folder, names[1]).state == "stopped"
    kept.add("gave up", reason="again")
    kept.add("submitted", job="9")
    assert line(smoke, folder, names[1]).state == "failed"
    assert line(smoke, folder, names[1], {step: QueuedJob("9", "PENDING", "Priority")}).state == "requeued"


def test_a_cancelled_run(smoke, folder, names):
    kept = record(folder, f"train {names[2]}")
    kept.add("started", job="7.0")
    kept.add("cancelled", reason="in Slurm, not by the launcher")
    found = line(smoke, folder, names[2])
    assert (found.state, found.reason) == ("cancelled", "in Slurm, not by the launcher")
    assert line(smoke, folder, names[2], {f"train {names[2]}": QueuedJob("7", "COMPLETING")}).state == "cancelled"
    assert f"{names[2]} cancelled" in shown(smoke, folder)
    kept.add("resumed")
    kept.add("submitted", job="8")
    assert line(smoke, folder, names[2], {f"train {names[2]}": QueuedJob("8", "RUNNING")}).state == "running"


def write_rows(path: Path, rows: list[str]) -> None:
    path.write_text("step,tokens,train_loss,learning_rate,grad_norm,tokens_per_second,mfu,heldout_loss\n")
    with open(path, "a") as file:
        file.writelines(f"{row}\n" for row in rows)


def test_rate_and_mfu_are_the_medians_of_the_last_steps(smoke, folder, names):
    # Of a long file: an earlier, slower machine no longer counts; a step that was passed over has neither.
    rows = [f"{step},{step * 2048},5.0,1e-3,0.5,10.0,0.01," for step in range(1, 5000)]
    rows += [f"{step},{step * 2048},4.0,1e-3,0.5,{1000 + step % 5}.0,0.4{step % 5},4.5" for step in range(5000, 5200)]
    rows += ["5200,10649600,,1e-3,,,,"]
    write_rows(folder.path / names[1] / "loss.csv", rows)
    found = line(smoke, folder, names[1])
    assert (found.step, found.tokens, found.loss) == (5200, 5200 * 2048, None)
    assert (found.tokens_per_second, found.mfu) == (1002.0, 0.42)
    assert "42.0%" in shown(smoke, folder)
    assert line(smoke, folder, names[2]).mfu is None


def test_a_run_says_what_it_waits_for(smoke, folder, names):
    assert line(smoke, folder, names[3]).reason == "nobody works on this study"
    with locked(folder):
        assert line(smoke, folder, names[3]).reason == "for its turn"
        (folder.data / "manifest.json").unlink()
        assert line(smoke, folder, names[3]).reason == "for the data"
    queue = {"encode the documents": QueuedJob("3", "RUNNING")}
    assert line(smoke, folder, names[3], queue).reason == "for the data"
    record(folder, "encode the documents").add("gave up", reason="the corpus has no Chinese")
    (folder.logs / "prepare.log").write_text("...")
    assert line(smoke, folder, names[3]).reason == "encode the documents failed"
    text = shown(smoke, folder)
    assert f"{names[3]} waiting: encode the documents failed" in text
    assert f"encode the documents failed: the corpus has no Chinese; log: {folder.logs / 'prepare.log'}" in text


def test_the_grid_has_an_eta_when_all_that_is_left_runs(smoke, folder, names):
    queue = {f"train {names[1]}": QueuedJob("7", "RUNNING")}
    assert line(smoke, folder, names[1], queue).eta_seconds == pytest.approx(7 * 2048 / 1007)
    assert read_study(smoke, folder, queue).eta_seconds is None
    queue |= {f"train {name}": QueuedJob("8", "RUNNING") for name in names[2:]}
    # The last run has written nothing yet: nobody knows its rate.
    assert read_study(smoke, folder, queue).eta_seconds is None
    write_rows(_made(folder.path / names[3]) / "loss.csv", ["1,2048,6.0,1e-3,0.5,16.0,,"])
    assert status_value(smoke, folder, queue)["eta_seconds"] == pytest.approx(19 * 2048 / 16)
    assert "all trained in about 41 min at these rates" in shown(smoke, folder, queue, width=400)


def test_a_launcher_at_work_says_when_all_steps_are_done(smoke, folder):
    (folder.logs / NOTES).write_text(json.dumps({"done_at": time.time() + 5400.5}))
    assert read_study(smoke, folder).left_seconds is None
    with locked(folder):
        assert status_value(smoke, folder)["left_seconds"] == pytest.approx(5400, abs=5)
        assert "all done in about 1 h 30 min" in shown(smoke, folder, width=400)


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def test_evaluations_in_work_waiting_and_given_up(smoke, folder, names):
    for name in names[:2]:
        for step in (5, 10):
            folder.result(name, step).unlink(missing_ok=True)
    first = f"evaluate {names[0]} step"
    assert status_value(smoke, folder)["evaluations"] == {
        "planned": 8,
        "evaluated": 0,
        "running": 0,
        "queued": 0,
        "waiting": 3,
        "given_up": (),
    }
    record(folder, f"{first} 5").add("gave up", reason="out of memory")
    queue = {f"{first} 10": QueuedJob("9_2", "RUNNING"), f"evaluate {names[1]} step 10": QueuedJob("9_3", "PENDING")}
    found = read_study(smoke, folder, queue).evaluations
    assert (found.running, found.queued, found.waiting) == (1, 1, 0)
    assert [(it.step, it.run, it.message) for it in found.given_up] == [(f"{first} 5", names[0], "out of memory")]
    # The training did not fail.
    assert line(smoke, folder, names[0]).state == "finished"
    assert line(smoke, folder, names[0]).error == "out of memory"
    text = shown(smoke, folder, queue)
    assert f"{first} 5 failed: out of memory" in text
    assert "evaluations: 0 of 8 done, 1 running, 1 queued, 1 failed" in text
    assert "Slurm: 1 jobs run, 1 wait" in text


def test_how_old_the_report_is(smoke, folder, names):
    assert "report not yet" in shown(smoke, folder)
    folder.report.mkdir()
    folder.report_page.write_text("<html>")
    assert status_value(smoke, folder)["results_since_report"] == 0
    later = folder.report_page.stat().st_mtime + 10
    os.utime(folder.result(names[0], 5), (later, later))
    record(folder, "write the report").add("gave up", reason="no space left")
    value = status_value(smoke, folder)
    assert (value["results_since_report"], value["report"]) == (1, str(folder.report_page))
    assert value["failed"]["write the report"]["message"] == "no space left"
    assert "(1 result is newer)" in shown(smoke, folder, width=400)


def test_the_study_is_done_when_the_report_has_every_result(smoke, folder):
    for run in smoke.runs:
        for step in run.settings.checkpoint_steps:
            (_made(folder.checkpoint(run.name, step)) / "manifest.json").write_text("{}")
            _made(folder.result(run.name, step).parent)
            folder.result(run.name, step).write_text("{}")
    assert not read_study(smoke, folder).is_done
    folder.report.mkdir()
    folder.report_page.write_text("<html>")
    value = status_value(smoke, folder)
    assert value["done"] and value["eta_seconds"] == 0


def test_json_is_plain_and_complete(smoke, folder, names):
    queue = {f"train {names[1]}": QueuedJob("7", "RUNNING", "None", "node1")}
    value = json.loads(json.dumps(status_value(smoke, folder, queue), allow_nan=False))
    assert value["jobs"] == {f"train {names[1]}": {"job": "7", "state": "RUNNING", "reason": "None", "nodes": "node1"}}
    assert value["on_slurm"]
    assert {"run", "state", "step", "steps", "loss", "mfu", "restarts", "reason", "job"} <= value["runs"][0].keys()


def test_the_table_fits_narrow_and_low_terminals(smoke, folder, names):
    for width in (80, 100, 120, 160):
        text = shown(smoke, folder, width=width)
        assert max(len(row.rstrip()) for row in text.splitlines()) <= width
        assert text.count("│ small-20480 ") == 1, "a run takes one line"
        assert "…" not in text
    for state in ("PENDING", "RUNNING"):
        queue = {f"train {name}": QueuedJob("7", state, "Priority") for name in names[1:]}
        text = shown(smoke, folder, queue, height=12)
        # Runs that have begun wait in the queue again only if a record says that they were started.
        assert ("3 runs" in text) == (state == "PENDING")


@pytest.fixture
def many(smoke) -> Grid:
    """31 runs with four checkpoints each."""
    settings = dataclasses.replace(smoke.runs[-1].settings, num_checkpoints=4)
    return dataclasses.replace(smoke, runs=tuple(Run(f"large-1.5B-{number}", settings) for number in range(31)))


def test_a_large_grid_fits_an_ordinary_terminal(many, tmp_path):
    folder = GridDirectory(tmp_path / "a path that is long enough to take" / "two lines of a terminal of 80 columns")
    for run in many.runs[:8]:
        write_run(folder, run, steps=20, checkpoints=(5, 10, 15, 20), results=(5,))
    for run in many.runs[8:10]:
        write_run(folder, run, steps=7, checkpoints=(5,))
    queue = {f"train {run.name}": QueuedJob("7", "RUNNING") for run in many.runs[8:10]}
    rows = shown(many, folder, queue, width=80, height=24).splitlines()
    assert len(rows) < 24 and max(map(len, rows)) <= 80
    text = "\n".join(rows)
    assert "8 runs" in text and "21 runs" in text and text.count("7 of 20") == 2
    assert "evaluations: 8 of 124 done" in text


def test_the_view_of_a_launch_fits_an_ordinary_terminal(many, tmp_path, monkeypatch):
    """All steps from the first on are in its bar and its ETA, however many processes there are."""
    monkeypatch.setattr(watching, "REDRAW_SECONDS", 0.0)
    folder = GridDirectory(tmp_path / "out")
    plan = build_plan(many, folder, choose_inputs(many, folder))
    write_run(folder, many.runs[0], steps=20, checkpoints=(5, 10, 15, 20), results=(5,))
    estimator = Estimator(many.runs, folder, {64: 1e9}, 12, 8, 1_000_000, jobs=2)
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True, color_system=None)
    display = watching.Display(plan, estimator, 2, console)
    training = [Process((plan.by_name[f"train {run.name}"],), None, folder.logs, 0, 0.0) for run in many.runs[1:]]
    with display.drawing():
        display.tick(SimpleNamespace(processes=training))
    printed = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue()).replace("\r", "")
    text = printed[printed.rindex("all steps") :].rstrip()
    assert len(text.splitlines()) < 24 and max(map(len, text.splitlines())) <= 80
    left = format_duration(total_seconds(plan, estimator.left, 2))
    assert "all steps" in text and f"about {left} left" in text and "…" not in text
    assert "1 of 31 runs trained, 1 of 124 checkpoints evaluated" in text
    assert "and 11 more" in text


class Looks:
    """What a watcher reads and when it is over: `count` looks, then all is finished."""

    def __init__(self, smoke, folder, count: int, between=lambda look: None) -> None:
        self.smoke, self.folder, self.count, self.between, self.done = smoke, folder, count, between, 0

    def read(self):
        self.done += 1
        self.between(self.done)
        return status_table(self.smoke, self.folder)

    def finished(self) -> bool:
        return self.done + 1 >= self.count


def test_watching_off_a_terminal_prints_what_has_changed(smoke, folder, names):
    def between(look: int) -> None:
        if look == 3:
            (folder.logs / NOTES).write_text(json.dumps({"failed": {f"train {names[2]}": {"message": "loss is nan"}}}))

    looks = Looks(smoke, folder, 5, between)
    console = Console(file=io.StringIO(), width=160)
    assert watch(looks.read, console, 0.01, looks.finished) == 0
    text = console.file.getvalue()
    assert looks.done == 5
    assert text.count("smoke in ") == 2 and text.count("failed: loss is nan") == 1
    assert text.endswith("\n") and "\x1b" not in text


def test_watching_on_a_terminal_redraws_and_leaves_the_end(smoke, folder, names):
    console = Console(file=io.StringIO(), width=160, height=50, force_terminal=True, color_system=None)
    looks = Looks(smoke, folder, 3)
    assert watch(looks.read, console, 0.01, looks.finished) == 0
    text = console.file.getvalue()
    assert looks.done == 3 and text.count("smoke in ") >= 3
    assert "\x1b[1A" in text, "drawn in place"
    assert "13 of 20" in text.rsplit("smoke in ", 1)[1]


@pytest.mark.parametrize("terminal", [True, False])
def test_control_c_ends_the_watching_alone(smoke, folder, terminal):
    def between(look: int) -> None:
        if look == 2:
            raise KeyboardInterrupt

    before = sorted(path for path in folder.path.rglob("*"))
    console = Console(file=io.StringIO(), width=160, height=50, force_terminal=terminal)
    assert watch(Looks(smoke, folder, 9, between).read, console, 0.01) == 0
    assert "What was launched goes on" in console.file.getvalue()
    assert sorted(path for path in folder.path.rglob("*")) == before


def test_a_preparation_that_failed_and_then_succeeded_is_no_failure(smoke, folder):
    (folder.data / "manifest.json").unlink()
    kept = record(folder, "encode the documents")
    kept.add("gave up", code=2, reason="the corpus has no Chinese")
    assert "encode the documents" in status_value(smoke, folder)["failed"]
    kept.add("started", job="9.0")
    assert status_value(smoke, folder, {"encode the documents": QueuedJob("9", "RUNNING")})["failed"] == {}
    kept.add("ended", job="9.0", code=0)
    assert status_value(smoke, folder)["failed"] == {}
