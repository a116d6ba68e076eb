"""Carries a plan out on this machine: as many steps side by side as there are cores or GPUs for them.

All state is in what the steps write, so a plan that was interrupted at any moment is simply carried out again. A
training that dies is started again while it gets on (`launchers.starts`). Every step runs below `launchers.supervise`,
which leaves no process behind when this one dies, and holds the lock of the grid's directory: no second launcher starts
while a process of the first is alive.

    LocalExecutor(plan, jobs=2).run() -> Outcome
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from launchers.devices import VISIBLE
from launchers.interruption import signals_held, signals_interrupt
from launchers.logs import last_error
from launchers.plan import PHASES, REPOSITORY, Plan, Step
from launchers.starts import STOPPED, Starts
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

_ON_GPUS = ("train", "evaluate")
"""Phases whose processes are given the GPUs, where there are any."""


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
    slots: int = 1
    """How many of the executor's jobs it counts for."""
    gpus: tuple[str, ...] = ()
    """GPUs that it has for itself."""

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

    def restarted(self, process: Process, message: str) -> None:
        """An ended process will be started again, although it ended with `message`."""

    def tick(self, executor: LocalExecutor) -> None:
        """Some time has passed."""


class LocalExecutor:
    """Runs the steps of a plan in `jobs` processes at a time.

    Args:
        plan: The steps.
        jobs: How many processes run side by side; those of one step count each, but never for more than there are.
        seconds: Estimate of what is left of a step, to start the longest first and to share out batches.
        observers: What is told of starts and ends.
        inherit: File descriptors that the steps' processes keep open (the lock of the directory).
        environment: Added to the steps' environment.
        grace: Seconds between asking the processes to end and killing them.
        gpus: Names for CUDA_VISIBLE_DEVICES (`launchers.devices`). With any, each process of a training or an
            evaluation has one for itself, other steps have none, and no more processes run than there are GPUs.
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
        gpus: Sequence[str] = (),
    ) -> None:
        self.plan = plan
        self.jobs = min(jobs, len(gpus)) if gpus else jobs
        self.gpus = tuple(gpus)
        self.processes: list[Process] = []
        self.outcome = Outcome()
        self._seconds = seconds
        self._observers = observers
        self._inherit = tuple(inherit)
        self._environment = {**os.environ, **environment}
        self._grace = grace
        self._waiting: list[Step] = []
        self._fruitless: dict[tuple[str, ...], int] = {}
        self._starts = Starts()
        self._again: set[str] = set()

    @property
    def waiting(self) -> tuple[Step, ...]:
        """Steps that may still be started."""
        return tuple(self._waiting)

    def run(self) -> Outcome:
        """Carry the plan out; KeyboardInterrupt (Ctrl-C, SIGTERM, SIGHUP) after all processes were ended."""
        self.outcome = Outcome(done=self.plan.done())
        done = {step.name for step in self.outcome.done}
        self._waiting = [step for step in self.plan if step.name not in done]
        with signals_interrupt():
            for step in self._waiting:
                self._starts.ask(step)
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

    @property
    def _free(self) -> int:
        return self.jobs - sum(process.slots for process in self.processes)

    def _slots(self, step: Step) -> int:
        return min(step.processes, self.jobs)

    def _start(self) -> None:
        while (free := self._free) > 0 and (startable := self._startable()):
            longest = math.inf
            if (wanted := self._slots(startable[0])) > free:
                # Nothing takes its turn, but what will have ended by then may go ahead.
                longest = self._seconds_until_free(wanted)
                startable = [it for it in startable if self._slots(it) <= free and self._seconds(it) <= longest]
                if not startable:
                    return
            first = startable[0]
            batch = self._batch(first, startable, longest) if first.items else (first,)
            self._waiting = [step for step in self._waiting if step not in batch]
            self._spawn(batch)

    def _seconds_until_free(self, slots: int) -> float:
        """Estimate of the time until so many slots are free."""
        free = self._free
        ends = [(sum(map(self._seconds, process.pending)), process.slots) for process in self.processes]
        for seconds, freed in sorted(ends):
            free += freed
            if free >= slots:
                return seconds
        return 0.0

    def _startable(self) -> list[Step]:
        """Waiting steps that can start now, the preferred first: by phase, those started before, the longest."""
        done = {step.name for step in self.outcome.done}
        ended = done | {failure.step.name for failure in self.outcome.failed}
        ended |= {step.name for step in self.outcome.blocked}

        def can_start(step: Step) -> bool:
            if all(need in done for need in step.needs) or (step.ready is not None and step.ready()):
                return True
            return step.needs_ended and all(need in ended for need in step.needs)

        startable = [step for step in self._waiting if can_start(step)]
        return sorted(
            startable, key=lambda it: (PHASES.index(it.phase), it.name not in self._again, -self._seconds(it))
        )

    def _batch(self, first: Step, startable: Sequence[Step], longest: float) -> tuple[Step, ...]:
        """`first` and others of the same command, as much as keeps all jobs busy to the end: half of an even
        share of what is waiting, so that later, smaller batches level out what the estimates got wrong; no more than
        `longest` seconds."""
        waiting = sum(self._seconds(step) for step in self._waiting if step.command == first.command)
        share = min(longest, max(waiting / self.jobs / 2, min(BATCH_SECONDS, waiting / self._free)))
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
        slots, gpus, environment = self._slots(first), (), self._environment
        if self.gpus:
            taken = {name for process in self.processes for name in process.gpus}
            free = [name for name in self.gpus if name not in taken]
            gpus = tuple(free[:slots]) if first.phase in _ON_GPUS else ()
            environment = {**environment, VISIBLE: ",".join(gpus)}
        progress = [step.progress() for step in steps]
        first.log.parent.mkdir(parents=True, exist_ok=True)
        with open(first.log, "ab") as log:
            log.write(f"# {datetime.now():%Y-%m-%d %H:%M:%S} {shlex.join(command)}\n".encode())
            log.flush()
            start = log.tell()
            supervised = [
                *(sys.executable, "-I", "-S", str(REPOSITORY / "launchers" / "supervise.py")),
                *(str(os.getpid()), *command),
            ]
            with signals_held():
                popen = subprocess.Popen(
                    supervised,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=REPOSITORY,
                    env=environment,
                    pass_fds=self._inherit,
                    process_group=0,
                )
                process = Process(steps, popen, first.log, start, time.time(), slots, gpus)
                self.processes.append(process)
                for step, at in zip(steps, progress, strict=True):
                    self._starts.started(step, popen.pid, at)
        for observer in self._observers:
            observer.started(process)

    # Ending.

    def _collect(self) -> None:
        for process in list(self.processes):
            # The process is not reaped before its group is killed, or the group's number could be another's.
            if os.waitid(os.P_PID, process.popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            _signal_group(process, signal.SIGKILL)
            code = _exit_code(process.popen.wait())
            self.processes.remove(process)
            failures, restarted_after = self._settle(process, code)
            self.outcome.failed += failures
            for observer in self._observers:
                observer.ended(process, failures)
                if restarted_after:
                    observer.restarted(process, restarted_after)

    def _settle(self, process: Process, code: int) -> tuple[list[Failure], str]:
        """File each step of an ended process under done, failed or, if its turn had not come or comes again, waiting;
        the failures, and else why one is started again."""
        pending = process.pending
        self.outcome.done += [step for step in process.steps if step not in pending]
        said = last_error(process.log, process.log_start, code)

        def reason(step: Step) -> str:
            return said if code else f"ended without an error, but {step.output} is missing or out of date"

        # Items are worked off in order: the first without a result is the one that ended the process.
        at_fault = pending if code == 0 or not process.steps[0].items else pending[:1]
        for step in process.steps:
            turn_came = step in at_fault or step not in pending
            why = reason(step) if turn_came else "its turn had not come"
            self._starts.ended(step, process.popen.pid, code, why, interrupted=not turn_came)
        if process.steps[0].items:
            refused = {step: reason(step) for step in self._refused_items(process, pending, at_fault, code)}
        else:
            refused = {step: why for step in pending if (why := self._starts.refusal(step, code, reason(step)))}
        for step, why in refused.items():
            self._starts.gave_up(step, code, why)
        again = [step for step in pending if step not in refused]
        self._again |= {step.name for step in again}
        self._waiting = [*(step for step in self._waiting if step not in refused), *again]
        failures = [Failure(step, reason(step), process.log, code) for step in refused]
        return failures, said if again and not failures else ""

    def _refused_items(
        self, process: Process, pending: Sequence[Step], at_fault: Sequence[Step], code: int
    ) -> Sequence[Step]:
        """Which steps that share a command are given up: the one at fault, or all when none gets anywhere."""
        if not pending:
            return ()
        command = process.steps[0].command
        fruitless = self._fruitless.get(command, 0) + 1 if len(pending) == len(process.steps) else 0
        self._fruitless[command] = fruitless
        if fruitless >= _LAST_TRIES:
            return [*pending, *(step for step in self._waiting if step.command == command)]
        return () if code == EXIT_AGAIN else at_fault

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
            with signals_held():
                for process in self.processes:
                    if process.popen.poll() is None:
                        process.popen.send_signal(KILL_ALL)
                        with contextlib.suppress(subprocess.TimeoutExpired):
                            process.popen.wait(timeout=5)
                    if process.popen.poll() is None:
                        _signal_group(process, signal.SIGKILL)
                        process.popen.wait()
                    for step in process.steps:
                        code = _exit_code(process.popen.returncode)
                        self._starts.ended(step, process.popen.pid, code, STOPPED, interrupted=True)
                self.processes.clear()


def _exit_code(code: int) -> int:
    """As shells say it, also where the supervising process itself was killed."""
    return code if code >= 0 else 128 - code


def _signal_group(process: Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.popen.pid, number)
