"""What the local executor does with a step that dies: started again while it gets on, given up when it does not."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from executor_plans import python, write_step

from launchers.directory import locked
from launchers.local import Failure, LocalExecutor, Observer
from launchers.plan import GridDirectory, Plan, Step
from launchers.records import MOST_FRUITLESS, History, Record

GETS_ON = """
import os, pathlib, sys
path = pathlib.Path(sys.argv[1])
steps = int(path.read_text()) + 1 if path.exists() else 1
path.write_text(str(steps))
if steps < int(sys.argv[2]):
    os.kill(os.getpid(), 9)
pathlib.Path(sys.argv[3]).touch()
"""
"""Adds one to a file and kills itself, until the file has reached a number."""

KILLED = "import os; os.kill(os.getpid(), 9)"


def step(folder: Path, code: str, *arguments: object, phase: str = "train", **more) -> Step:
    done = folder / "done"
    return Step("train it", phase, python(code, *arguments), folder / "logs" / "it.log", done.exists, **more)


def history(it: Step) -> History:
    return Record.of(it.log.parent, it.name).history()


def events(it: Step) -> list[str]:
    return [event.event for event in history(it).events]


def run(*steps: Step, jobs: int = 2, **more) -> list[Failure]:
    executor = LocalExecutor(Plan(steps), jobs=jobs, grace=1.0, **more)
    executor.run()
    return executor.outcome.failed


class Restarts(Observer):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def restarted(self, process, message) -> None:
        self.messages.append(message)


class Interrupt(Observer):
    """Ctrl-C as soon as a file is there."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def tick(self, executor) -> None:
        if self._path.exists():
            raise KeyboardInterrupt


def test_a_training_that_gets_on_is_started_again_however_often_it_is_killed(tmp_path):
    counter, restarts = tmp_path / "counter", Restarts()
    it = step(
        tmp_path,
        GETS_ON,
        *(counter, 6, tmp_path / "done"),
        progress=lambda: int(counter.read_text()) if counter.exists() else 0,
    )
    assert run(it, observers=[restarts]) == []
    assert len(restarts.messages) == 5 and all("SIGKILL" in message for message in restarts.messages)
    assert history(it).restarts == 5 and history(it).gave_up is None
    starts = [event for event in history(it).events if event.event == "started"]
    assert [event.progress for event in starts] == [0, 1, 2, 3, 4, 5]
    ends = [event for event in history(it).events if event.event == "ended"]
    assert [event.code for event in ends] == [137] * 5 + [0]
    assert [event.job for event in ends] == [event.job for event in starts]
    assert all(event.nodes for event in starts) and not any(event.interrupted for event in ends)


@pytest.mark.parametrize(
    ("code", "number"),
    [
        ("raise SystemExit('ValueError: 3 heads')", 1),
        (KILLED, 137),
        ("import sys; sys.exit(69)", 69),
        ("import sys; sys.exit(75)", 75),
    ],
)
def test_a_training_that_gets_nowhere_is_given_up_with_the_reason(tmp_path, code, number):
    it = step(tmp_path, code, progress=lambda: 40)
    (failure,) = run(it, write_step(tmp_path, "other"))
    assert failure.exit_code == number
    assert history(it).starts == MOST_FRUITLESS
    assert history(it).gave_up == f"no progress in 3 starts; the last ended with: {failure.message}"
    assert (tmp_path / "other").is_file()


def test_a_mistake_of_the_user_is_given_up_at_once(tmp_path):
    it = step(tmp_path, "import sys; print('error: no such run; name one', file=sys.stderr); sys.exit(2)")
    (failure,) = run(it)
    assert failure.is_user_error
    assert events(it) == ["started", "ended", "gave up"]
    assert history(it).gave_up == failure.message == "no such run; name one"


@pytest.mark.parametrize(("phase", "code"), [("train", "pass"), ("encode", KILLED), ("report", "raise SystemExit(1)")])
def test_what_a_second_start_would_not_mend_is_started_once(tmp_path, phase, code):
    it = step(tmp_path, code, phase=phase)
    (failure,) = run(it)
    assert events(it) == ["started", "ended", "gave up"]
    assert history(it).gave_up == failure.message


def test_a_launch_tries_afresh_what_an_earlier_one_gave_up(tmp_path):
    mended, done = tmp_path / "mended", tmp_path / "done"
    code = "import pathlib, sys; assert pathlib.Path(sys.argv[1]).exists(); pathlib.Path(sys.argv[2]).touch()"
    it = step(tmp_path, code, mended, done)
    for launches in (1, 2):
        assert run(it) and history(it).gave_up
        assert history(it).starts == launches * MOST_FRUITLESS
    mended.touch()
    assert run(it) == [] and history(it).gave_up is None
    assert events(it).count("resumed") == 2 and events(it)[-3:] == ["resumed", "started", "ended"]


def test_stopping_the_launcher_says_nothing_against_a_step(tmp_path):
    code = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
    it = step(tmp_path, code, tmp_path / "begun")
    for _ in range(MOST_FRUITLESS + 1):
        with pytest.raises(KeyboardInterrupt):
            run(it, observers=[Interrupt(tmp_path / "begun")])
        (tmp_path / "begun").unlink()
    last = history(it).last
    assert last.interrupted and last.reason == "the launcher was stopped" and last.code == 128 + signal.SIGTERM
    assert history(it).fruitless(0) == 0 and "resumed" not in events(it)


def test_a_killed_launcher_says_nothing_against_a_step(tmp_path):
    script = Path(__file__).with_name("executor_plans.py")
    for number in range(MOST_FRUITLESS):
        process = subprocess.Popen([sys.executable, str(script), str(tmp_path)])
        pids, deadline = tmp_path / "one.pids", time.monotonic() + 20
        while not pids.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
        process.wait()
        pids.unlink()
        assert Record.of(tmp_path / "logs", "one").history().starts == number + 1
    one = write_step(tmp_path, "one")
    # Once the last process of the killed launcher has ended.
    with locked(GridDirectory(tmp_path)):
        assert run(one) == []
    assert [event.interrupted for event in history(one).events if event.event == "ended"] == [True, True, True, False]
    assert "resumed" not in events(one)


def test_steps_that_share_a_process_are_noted_one_by_one(tmp_path):
    """The second fails: the first is done, the third's turn had not come and comes in a process of its own."""
    code = (
        "import pathlib, sys\nfor path in sys.argv[1:]:\n    assert 'bad' not in path\n    pathlib.Path(path).touch()"
    )
    items = [
        Step(name, "evaluate", python(code), tmp_path / "log", (tmp_path / name).exists, items=(str(tmp_path / name),))
        for name in ("e1", "bad", "e3")
    ]
    (failure,) = run(*items, jobs=1)
    assert failure.step.name == "bad"
    first, bad, third = items
    assert events(first) == ["started", "ended"] and history(first).last.code == 0
    assert events(bad) == ["started", "ended", "gave up"] and history(bad).gave_up == "AssertionError"
    assert events(third) == ["started", "ended", "started", "ended"]
    assert history(third).events[1].interrupted and not history(third).last.interrupted


def test_a_step_whose_starts_cannot_be_noted_is_not_started_again(tmp_path):
    """A disk that is full: restarts that nobody counts would never end."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "starts").write_text("in the way")
    lines = "print('started', flush=True); raise SystemExit(1)"
    it = step(tmp_path, lines)
    (failure,) = run(it, write_step(tmp_path, "other"))
    assert failure.exit_code == 1 and (tmp_path / "other").is_file()
    assert it.log.read_text().count("\nstarted") == 1
