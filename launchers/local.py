"""Carries a plan out on this machine: as many steps side by side as there are jobs, one thread each.

All state is in what the steps write, so a plan that was interrupted at any moment is simply carried out again.
Every step runs below `launchers.supervise`, which leaves no process behind when this one dies, and holds the
lock of the grid's directory, so that no second launcher starts while a process of the first is alive.

    LocalExecutor(plan, jobs=2).run() -> Outcome
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from launchers.plan import PHASES, REPOSITORY, Plan, Step
from launchers.supervise import KILL_ALL
from tokenizer.cli import EXIT_AGAIN, EXIT_USER_ERROR

STEP_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}
"""What each step finds in its environment beside the launcher's own: the cores are shared by processes."""

BATCH_SECONDS = 60.0
"""Work that is worth a process of its own where steps may share one; starting one takes some ten seconds."""

POLL_SECONDS = 0.1
"""Time between two looks at the processes."""

_LAST_TRIES = 2
"""Processes of one command that may end without finishing any item before its other items are given up."""


@dataclass
class Process:
    """A running process and the steps that it carries out."""

    steps: tuple[Step, ...]
    popen: subprocess.Popen
    log: Path
    log_start: int
    """Size of the log when the process started."""
    started: float
    """Seconds since the epoch."""

    @property
    def pending(self) -> tuple[Step, ...]:
        """Its steps that are not done."""
        return tuple(step for step in self.steps if not step.done())


@dataclass(frozen=True)
class Failure:
    """A step that ended without its output."""

    step: Step
    message: str
    """The last error that it printed."""
    log: Path
    exit_code: int

    @property
    def is_user_error(self) -> bool:
        """Whether the step said that the user can mend it."""
        return self.exit_code == EXIT_USER_ERROR


@dataclass
class Outcome:
    """How the steps of a plan ended."""

    done: list[Step] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    blocked: list[Step] = field(default_factory=list)
    """Steps that were not started, because one that they need failed."""

    @property
    def exit_code(self) -> int:
        """0 if all is done, 2 if nothing but the user's mistakes is in the way, else 1."""
        if not self.failed:
            return 0
        return EXIT_USER_ERROR if all(failure.is_user_error for failure in self.failed) else 1


class Observer:
    """What a display or a notebook of the launch is told; each method may be overridden."""

    def started(self, process: Process) -> None:
        """A process was started."""

    def ended(self, process: Process, failures: Sequence[Failure]) -> None:
        """A process has ended; `failures` are those of its steps that failed."""

    def tick(self, executor: LocalExecutor) -> None:
        """Some time has passed."""


class LocalExecutor:
    """Runs the steps of a plan in `jobs` processes at a time.

    Args:
        plan: The steps.
        jobs: How many processes run side by side.
        seconds: Estimate of what is left of a step, to start the longest first and to share out batches.
        observers: What is told of starts and ends.
        inherit: File descriptors that the steps' processes keep open (the lock of the directory).
        environment: Added to the steps' environment.
        grace: Seconds between asking the processes to end and killing them.
    """

    def __init__(
        self,
        plan: Plan,
        jobs: int,
        seconds: Callable[[Step], float] = lambda step: 1.0,
        observers: Sequence[Observer] = (),
        inherit: Sequence[int] = (),
        environment: Mapping[str, str] = STEP_ENVIRONMENT,
        grace: float = 10.0,
    ) -> None:
        self.plan = plan
        self.jobs = jobs
        self.processes: list[Process] = []
        self.outcome = Outcome()
        self._seconds = seconds
        self._observers = observers
        self._inherit = tuple(inherit)
        self._environment = {**os.environ, **environment}
        self._grace = grace
        self._waiting: list[Step] = []
        self._fruitless: dict[tuple[str, ...], int] = {}

    @property
    def waiting(self) -> tuple[Step, ...]:
        """Steps that may still be started."""
        return tuple(self._waiting)

    def run(self) -> Outcome:
        """Carry the plan out; KeyboardInterrupt (Ctrl-C, SIGTERM, SIGHUP) after all processes were ended."""
        self.outcome = Outcome(done=[step for step in self.plan if step.done()])
        done = {step.name for step in self.outcome.done}
        self._waiting = [step for step in self.plan if step.name not in done]
        with _signals_interrupt():
            try:
                while self._waiting or self.processes:
                    self._collect()
                    self._block()
                    self._start()
                    for observer in self._observers:
                        observer.tick(self)
                    if self.processes:
                        time.sleep(POLL_SECONDS)
            finally:
                self._stop()
        return self.outcome

    # Starting.

    def _start(self) -> None:
        while len(self.processes) < self.jobs and (startable := self._startable()):
            first = startable[0]
            batch = self._batch(first, startable) if first.items else (first,)
            self._waiting = [step for step in self._waiting if step not in batch]
            self._spawn(batch)

    def _startable(self) -> list[Step]:
        """Waiting steps that can start now, the preferred first: by phase, then the longest."""
        done = {step.name for step in self.outcome.done}
        ended = done | {failure.step.name for failure in self.outcome.failed}
        ended |= {step.name for step in self.outcome.blocked}

        def can_start(step: Step) -> bool:
            if all(need in done for need in step.needs) or (step.ready is not None and step.ready()):
                return True
            return step.needs_ended and all(need in ended for need in step.needs)

        startable = [step for step in self._waiting if can_start(step)]
        return sorted(startable, key=lambda step: (PHASES.index(step.phase), -self._seconds(step)))

    def _batch(self, first: Step, startable: Sequence[Step]) -> tuple[Step, ...]:
        """`first` and others of the same command, as much as keeps all jobs busy to the end: half of an even
        share of what is waiting, so that later, smaller batches level out what the estimates got wrong."""
        waiting = sum(self._seconds(step) for step in self._waiting if step.command == first.command)
        free = self.jobs - len(self.processes)
        share = max(waiting / self.jobs / 2, min(BATCH_SECONDS, waiting / free))
        batch, seconds = [first], self._seconds(first)
        for step in startable:
            if step is not first and step.items and step.command == first.command:
                seconds += self._seconds(step)
                if seconds > share:
                    break
                batch.append(step)
        return tuple(batch)

    def _spawn(self, steps: tuple[Step, ...]) -> None:
        first = steps[0]
        command = [*first.command, *(item for step in steps for item in step.items)]
        first.log.parent.mkdir(parents=True, exist_ok=True)
        with open(first.log, "ab") as log:
            log.write(f"# {datetime.now():%Y-%m-%d %H:%M:%S} {shlex.join(command)}\n".encode())
            log.flush()
            start = log.tell()
            supervised = [
                *(sys.executable, "-I", "-S", str(REPOSITORY / "launchers" / "supervise.py")),
                *(str(os.getpid()), *command),
            ]
            with _signals_held():
                popen = subprocess.Popen(
                    supervised,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=REPOSITORY,
                    env=self._environment,
                    pass_fds=self._inherit,
                    process_group=0,
                )
                process = Process(steps, popen, first.log, start, time.time())
                self.processes.append(process)
        for observer in self._observers:
            observer.started(process)

    # Ending.

    def _collect(self) -> None:
        for process in list(self.processes):
            # The process is not reaped before its group is killed, or the group's number could be another's.
            if os.waitid(os.P_PID, process.popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            _signal_group(process, signal.SIGKILL)
            code = process.popen.wait()
            # Negative if the supervising process itself was killed.
            code = code if code >= 0 else 128 - code
            self.processes.remove(process)
            failures = self._settle(process, code)
            self.outcome.failed += failures
            for observer in self._observers:
                observer.ended(process, failures)

    def _settle(self, process: Process, code: int) -> list[Failure]:
        """File each step of an ended process under done, failed or, if its turn had not come, waiting."""
        pending = process.pending
        command = process.steps[0].command
        self.outcome.done += [step for step in process.steps if step not in pending]
        if not pending:
            return []
        fruitless = self._fruitless.get(command, 0) + 1 if len(pending) == len(process.steps) else 0
        self._fruitless[command] = fruitless
        # Items are worked off in order: the first without a result is the one that failed.
        failed = list(pending) if code == 0 else [pending[0]]
        if code == EXIT_AGAIN and fruitless < _LAST_TRIES:
            # Stopped from outside after it saved: the same command goes on.
            failed = []
        again = [step for step in pending if step not in failed]
        if fruitless >= _LAST_TRIES:
            again += [step for step in self._waiting if step.command == command and step.items]
            failed += again
            self._waiting = [step for step in self._waiting if step not in again]
            again = []
        self._waiting += again
        message = _last_error(process.log, process.log_start, code)
        return [
            Failure(
                step,
                message if code else f"ended without an error, but {step.output} is missing or out of date",
                process.log,
                code,
            )
            for step in failed
        ]

    def _block(self) -> None:
        """Give up the steps whose needs cannot be met any more."""
        while True:
            gone = {failure.step.name for failure in self.outcome.failed}
            gone |= {step.name for step in self.outcome.blocked}
            blocked = [step for step in self._waiting if self._is_blocked(step, gone)]
            if not blocked:
                return
            self.outcome.blocked += blocked
            self._waiting = [step for step in self._waiting if step not in blocked]

    def _is_blocked(self, step: Step, gone: set[str]) -> bool:
        if step.needs_ended:
            return bool(step.needs) and all(need in gone for need in step.needs)
        return any(need in gone for need in step.needs) and not (step.ready is not None and step.ready())

    def _stop(self) -> None:
        """End all processes: ask, wait, kill. A second interruption kills at once."""
        try:
            for process in self.processes:
                _signal_group(process, signal.SIGTERM)
            deadline = time.monotonic() + self._grace
            while time.monotonic() < deadline and any(item.popen.poll() is None for item in self.processes):
                time.sleep(POLL_SECONDS)
        finally:
            with _signals_held():
                for process in self.processes:
                    if process.popen.poll() is None:
                        process.popen.send_signal(KILL_ALL)
                        with contextlib.suppress(subprocess.TimeoutExpired):
                            process.popen.wait(timeout=5)
                    if process.popen.poll() is None:
                        _signal_group(process, signal.SIGKILL)
                        process.popen.wait()
                self.processes.clear()


def _signal_group(process: Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.popen.pid, number)


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP do what Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    # What nohup has set to be ignored stays so.
    heeded = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Keep interruptions back, so that no process is started without being noted."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_ERROR_LINE = re.compile(r"(error: |[\w.]*(Error|Exception|Interrupt|Exit)\b(: |$))")


def _last_error(log: Path, start: int, code: int) -> str:
    """The line of the log that says best why the process ended."""
    with open(log, "rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - 64 * 1024))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR_LINE.match(line)]
    said = (errors or lines or ["it printed nothing"])[-1].removeprefix("error: ")
    if code > 128 and not errors:
        number = code - 128
        name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
        hint = " (out of memory?)" if number == signal.SIGKILL else ""
        return f"killed by {name}{hint}; its last line: {said}"
    return said
