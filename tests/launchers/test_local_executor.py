"""The local executor: order, limits, failures, and that nothing is left behind however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from executor_plans import FAMILY, WRITE, family_step, item_step, python, write_step

from launchers.directory import launcher_pid, locked
from launchers.local import LocalExecutor, Observer
from launchers.plan import GridDirectory, Plan, Step
from launchers.records import MOST_FRUITLESS
from tokenizer.cli import UserError

PATIENCE = 20.0


def times(path: Path) -> tuple[float, float]:
    started, ended, _ = path.read_text().split()
    return float(started), float(ended)


def run(*steps: Step, jobs: int = 2, **more) -> LocalExecutor:
    executor = LocalExecutor(Plan(steps), jobs=jobs, grace=1.0, **more)
    executor.run()
    return executor


def wait_for(condition, what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


class Most(Observer):
    """Notes how many processes run at once, and in which order they start."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.order: list[tuple[str, ...]] = []

    def started(self, process) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        self.order.append(tuple(step.name for step in process.steps))

    def ended(self, process, failures) -> None:
        self.now -= 1


def test_a_step_starts_after_what_it_needs(tmp_path):
    outcome = run(
        write_step(tmp_path, "a", phase="tokenizer"),
        write_step(tmp_path, "b", phase="encode", needs=["a"]),
        write_step(tmp_path, "c", needs=["b"]),
        write_step(tmp_path, "d", needs=["b"]),
        jobs=4,
    ).outcome
    assert outcome.exit_code == 0
    assert {step.name for step in outcome.done} == {"a", "b", "c", "d"}
    assert times(tmp_path / "a")[1] <= times(tmp_path / "b")[0]
    assert times(tmp_path / "b")[1] <= min(times(tmp_path / name)[0] for name in "cd")


@pytest.mark.parametrize("jobs", [1, 3])
def test_no_more_processes_than_jobs_and_the_longest_first(tmp_path, jobs):
    most = Most()
    length = {f"s{i}": float(i) for i in range(6)}
    run(
        *(write_step(tmp_path, name) for name in length),
        jobs=jobs,
        observers=[most],
        seconds=lambda step: length[step.name],
    )
    assert most.most == jobs
    assert most.order[:jobs] == [("s5",), ("s4",), ("s3",)][:jobs]
    if jobs == 1:
        assert most.order == [(f"s{i}",) for i in reversed(range(6))]


def test_training_is_preferred_to_evaluation(tmp_path):
    most = Most()
    run(
        write_step(tmp_path, "train 1"),
        item_step(tmp_path, "evaluate 1"),
        write_step(tmp_path, "train 2"),
        jobs=1,
        observers=[most],
        seconds=lambda step: 100.0 if step.items else 1.0,
    )
    assert most.order == [("train 1",), ("train 2",), ("evaluate 1",)]


def test_what_is_done_is_not_done_again(tmp_path):
    most = Most()
    (tmp_path / "a").write_text("from before")
    run(write_step(tmp_path, "a"), write_step(tmp_path, "b", needs=["a"]), observers=[most])
    assert most.order == [("b",)]
    assert (tmp_path / "a").read_text() == "from before"


def test_a_summary_from_before_is_made_again_of_more(tmp_path):
    """Runs were added to a grid whose report was there: no result was newer than the report when the launch began, and
    so it never got the new ones."""
    most = Most()
    for name in ("a", "summary"):
        (tmp_path / name).write_text("from before")
    added = write_step(tmp_path, "b", phase="evaluate")
    summary = write_step(tmp_path, "summary", phase="report", needs=["a", "b"], needs_ended=True)
    steps = (write_step(tmp_path, "a", phase="evaluate"), added, summary)
    run(*steps, observers=[most])
    assert most.order == [("b",), ("summary",)]
    assert [step.name for step in Plan(steps).done()] == ["a", "b", "summary"]
    run(*steps, observers=[most])
    assert most.order == [("b",), ("summary",)]


def test_a_failing_step_leaves_the_others_alone(tmp_path):
    failing = Step(
        "broken",
        "train",
        python("import sys; print('reading'); sys.exit('ValueError: 3 heads')"),
        tmp_path / "logs" / "broken.log",
        done=lambda: False,
    )
    outcome = run(
        failing,
        write_step(tmp_path, "needs it", needs=["broken"]),
        write_step(tmp_path, "other"),
        write_step(tmp_path, "summary", phase="report", needs=["needs it", "other"], needs_ended=True),
    ).outcome
    assert outcome.exit_code == 1
    assert [(failure.step.name, failure.message) for failure in outcome.failed] == [("broken", "ValueError: 3 heads")]
    assert [step.name for step in outcome.blocked] == ["needs it"]
    assert {step.name for step in outcome.done} == {"other", "summary"}
    log = failing.log.read_text()
    assert log.startswith("# ") and sys.executable in log.splitlines()[0] and "reading" in log


def test_the_summary_is_not_made_of_nothing(tmp_path):
    broken = Step("broken", "train", python("raise SystemExit(1)"), tmp_path / "log", done=lambda: False)
    outcome = run(broken, write_step(tmp_path, "summary", phase="report", needs=["broken"], needs_ended=True)).outcome
    assert [step.name for step in outcome.blocked] == ["summary"]


def test_a_mistake_of_the_user_keeps_its_exit_code_and_its_words(tmp_path):
    said = "import sys; print('error: corpus/a.jsonl:3: no text; add it', file=sys.stderr); sys.exit(2)"
    step = Step("encode", "encode", python(said), tmp_path / "log", done=lambda: False)
    outcome = run(step).outcome
    assert outcome.exit_code == 2
    assert outcome.failed[0].message == "corpus/a.jsonl:3: no text; add it"


def test_a_step_that_ends_well_without_its_output_has_failed(tmp_path):
    step = Step("empty", "train", python("pass"), tmp_path / "log", lambda: False, output="runs/a/step_3")
    outcome = run(step).outcome
    assert outcome.exit_code == 1
    assert "runs/a/step_3 is missing" in outcome.failed[0].message


def test_a_killed_step_says_so(tmp_path):
    step = Step("killed", "train", python("import os; os.kill(os.getpid(), 9)"), tmp_path / "log", done=lambda: False)
    assert "SIGKILL" in run(step).outcome.failed[0].message


def test_a_command_that_is_not_there(tmp_path):
    step = Step("nowhere", "train", ("no-such-program-here",), tmp_path / "log", done=lambda: False)
    assert "cannot start no-such-program-here" in run(step).outcome.failed[0].message


def test_arguments_reach_the_step_as_they_are(tmp_path):
    odd = "a b'; \"$(touch hacked) *"
    path = tmp_path / odd
    outcome = run(Step("odd", "train", python(WRITE, 0, path), tmp_path / "log", path.is_file)).outcome
    assert outcome.exit_code == 0
    assert path.is_file() and not (tmp_path / "hacked").exists()


def test_items_share_processes_and_all_jobs_are_busy_to_the_end(tmp_path):
    most = Most()
    steps = [item_step(tmp_path, f"e{i}") for i in range(12)]
    outcome = run(*steps, jobs=2, observers=[most], seconds=lambda step: 60.0).outcome
    assert outcome.exit_code == 0 and len(outcome.done) == 12
    assert most.most == 2
    assert len(most.order) < 12
    # Guided: large batches first, the last ones small, so that both jobs end together.
    assert len(most.order[0]) >= 3
    assert len(most.order[-1]) == 1


def test_items_of_no_length_to_speak_of_take_one_process_a_job(tmp_path):
    most = Most()
    run(*(item_step(tmp_path, f"e{i}") for i in range(6)), jobs=2, observers=[most])
    assert [len(names) for names in most.order] == [3, 3]


FAILS_AT_BAD = """
import sys, pathlib
for path in sys.argv[2:]:
    if pathlib.Path(path).name == "bad":
        sys.exit("RuntimeError: " + path)
    pathlib.Path(path).write_text("x")
"""


def test_one_bad_item_fails_alone(tmp_path):
    names = ["e1", "bad", "e2", "e3"]
    outcome = run(*(item_step(tmp_path, name, FAILS_AT_BAD) for name in names), jobs=1).outcome
    assert [failure.step.name for failure in outcome.failed] == ["bad"]
    assert {step.name for step in outcome.done} == {"e1", "e2", "e3"}


def test_a_command_that_finishes_no_item_is_given_up(tmp_path):
    most = Most()
    broken = "import sys; sys.exit('ImportError: no benchmarks')"
    steps = [item_step(tmp_path, f"e{i}", broken) for i in range(20)]
    outcome = run(*steps, jobs=1, observers=[most]).outcome
    assert len(outcome.failed) == 20
    assert len(most.order) == 2


def test_an_item_starts_when_its_input_is_there_although_its_run_goes_on(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    code = f"import pathlib, time; pathlib.Path({str(checkpoint)!r}).touch(); time.sleep(600)"
    training = Step("train", "train", python(code), tmp_path / "train.log", done=lambda: False)
    evaluation = Step(
        "evaluate",
        "evaluate",
        python(WRITE, 0),
        tmp_path / "evaluate.log",
        (tmp_path / "result").is_file,
        needs=("train",),
        ready=checkpoint.is_file,
        items=(str(tmp_path / "result"),),
    )

    class StopWhenEvaluated(Observer):
        def ended(self, process, failures) -> None:
            if process.steps[0].name == "evaluate":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(training, evaluation, observers=[StopWhenEvaluated()])
    assert (tmp_path / "result").is_file()


def test_processes_that_a_step_leaves_behind_are_ended_with_it(tmp_path):
    pids = tmp_path / "pids"
    code = FAMILY.replace("time.sleep(600)\n", "")
    assert run(Step("family", "train", python(code, pids), tmp_path / "log", pids.is_file)).outcome.exit_code == 0
    assert not any(alive(int(pid)) for pid in pids.read_text().split())


@pytest.fixture
def launcher(tmp_path):
    """A launcher in a process of its own with two steps that never end, and the process ids of all they started."""
    script = Path(__file__).with_name("executor_plans.py")
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run under nohup have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    files = [tmp_path / "one.pids", tmp_path / "two.pids"]
    written = [*files, tmp_path / "first"]
    wait_for(lambda: all(file.is_file() for file in written) or process.poll() is not None, "the steps did not start")
    pids = [int(pid) for file in files for pid in file.read_text().split()]
    assert len(pids) == 8 and all(alive(pid) for pid in pids)
    yield process, pids
    process.kill()
    process.communicate()
    for pid in pids:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def test_kill_9_of_the_launcher_leaves_nothing(launcher, tmp_path):
    process, pids = launcher
    process.kill()
    process.wait()
    wait_for(lambda: not any(alive(pid) for pid in pids), "processes are left after kill -9")
    # And the next launcher may have the directory.
    with locked(GridDirectory(tmp_path)):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_ends_every_process(launcher, tmp_path, number):
    process, pids = launcher
    process.send_signal(number)
    assert process.wait(timeout=PATIENCE) != 0
    assert "KeyboardInterrupt" in process.stderr.read()
    assert not any(alive(pid) for pid in pids)
    assert (tmp_path / "first").is_file()


def test_a_hang_up_that_nohup_ignores_is_ignored(tmp_path):
    """A launch under nohup goes on when its terminal is closed."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:

        class HangUp(Observer):
            def started(self, process) -> None:
                os.kill(os.getpid(), signal.SIGHUP)

        assert run(write_step(tmp_path, "a"), observers=[HangUp()]).outcome.exit_code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_killed_supervisor_takes_its_step_along(tmp_path):
    pids: list[int] = []

    class KillSupervisor(Observer):
        def tick(self, executor) -> None:
            if (tmp_path / "f.pids").is_file() and executor.processes:
                pids.extend(map(int, (tmp_path / "f.pids").read_text().split()))
                (tmp_path / "f.pids").unlink()
                os.kill(executor.processes[0].popen.pid, signal.SIGKILL)

    outcome = run(family_step(tmp_path, "f"), observers=[KillSupervisor()]).outcome
    assert "SIGKILL" in outcome.failed[0].message
    # A session of its own is out of reach of the process group: only a living supervisor ends it.
    for elsewhere in pids[2::4]:
        os.kill(elsewhere, signal.SIGKILL)
    assert len(pids) == 4 * MOST_FRUITLESS
    wait_for(lambda: not any(alive(pid) for pid in pids), "processes are left")


def test_steps_that_ignore_the_request_to_end_are_killed(tmp_path):
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    log = tmp_path / "log"
    step = Step("deaf", "train", python(code), log, done=lambda: False)
    running = []

    class StopWhenDeaf(Observer):
        def tick(self, executor) -> None:
            if "deaf\n" in log.read_text().partition("\n")[2]:
                running.extend(process.popen.pid for process in executor.processes)
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(step, observers=[StopWhenDeaf()])
    assert running and not any(alive(pid) for pid in running)


def test_a_second_launcher_is_refused_with_the_first_ones_process_id(launcher, tmp_path):
    process, _ = launcher
    with pytest.raises(UserError, match=f"process {process.pid}"), locked(GridDirectory(tmp_path)):
        pass
    assert launcher_pid(GridDirectory(tmp_path)) == process.pid
    process.kill()
    process.wait()
    assert launcher_pid(GridDirectory(tmp_path)) is None


def test_a_launcher_waits_for_the_processes_of_a_killed_one(tmp_path):
    """A step that outlives its launcher for a moment must not meet a second writer of its files."""
    folder = GridDirectory(tmp_path)
    with locked(folder) as lock:
        step = subprocess.Popen(python(WRITE, 1.0, tmp_path / "late"), pass_fds=[lock])
    with locked(folder):
        assert (tmp_path / "late").is_file()
        assert step.wait() == 0


def test_plans_name_what_is_wrong_with_them(tmp_path):
    with pytest.raises(ValueError, match="two steps are called a"):
        Plan((write_step(tmp_path, "a"), write_step(tmp_path, "a")))
    with pytest.raises(ValueError, match="b needs a, which does not stand before it"):
        Plan((write_step(tmp_path, "b", needs=["a"]), write_step(tmp_path, "a")))
    with pytest.raises(ValueError, match="none of the phases"):
        Plan((write_step(tmp_path, "a", phase="dance"),))


def test_family_step_is_ended_when_the_executor_fails(tmp_path):
    class Broken(Observer):
        def tick(self, executor) -> None:
            if (tmp_path / "f.pids").is_file():
                raise RuntimeError("a bug in a display")

    with pytest.raises(RuntimeError):
        run(family_step(tmp_path, "f"), observers=[Broken()])
    assert not any(alive(int(pid)) for pid in (tmp_path / "f.pids").read_text().split())


def test_a_step_that_was_stopped_after_saving_is_started_again(tmp_path):
    stopped, done = tmp_path / "stopped", tmp_path / "done"
    code = (
        f"import pathlib, sys; stopped = pathlib.Path({str(stopped)!r}); "
        f"pathlib.Path({str(done)!r}).touch() if stopped.exists() else (stopped.touch(), sys.exit(75))"
    )
    assert run(Step("train", "train", python(code), tmp_path / "log", done.is_file)).outcome.exit_code == 0
