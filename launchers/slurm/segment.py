"""The program inside every Slurm job: starts a step's command, and decides what becomes of the job when that ends.

The step's command is all that follows the `--` (usually `srun ...`). Exit codes of the command:

    0    done, if the step's output is there
    75   stopped after saving, because the time limit is near: the job goes back into the queue
    else the job goes back into the queue, unless the last starts brought no progress
    2    a mistake that no restart mends: at the second time the step is given up, with the reason (the first may mean
         that a process of a preempted job has not quite ended)

A preempted job, or one whose node died, is put back into the queue by Slurm itself. The job scripts that the launcher
writes call it so:

    python -m launchers.slurm.segment --slurm runs/paper/slurm --step "train 6B-3T" --done FILE -- srun ...
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launchers.logs import first_lost_nodes, last_error
from launchers.records import MOST_FRUITLESS, Record, crash_loop
from launchers.slurm import commands, nodes
from recipes.checkpoint import newest_saved_step
from tokenizer import cli
from tokenizer.cli import EXIT_USER_ERROR, UserError

REQUEUE_SECONDS = 120.0
"""How long a job that was put back into the queue waits for Slurm to end it."""

KEEPER, KEEPER_FILE = "keeper.sbatch", "keeper.json"
"""Script of the job that submits what is missing, and what the other jobs know of it."""

LOOKS_MISSED = 3
"""Looks of the keeper after which a job that runs sees whether there still is one."""


@dataclass(frozen=True)
class Keeper:
    """What the other jobs know of the keeper (`KEEPER_FILE`)."""

    name: str
    """Of its jobs."""
    seconds: int
    """Between two of them."""

    @classmethod
    def read(cls, directory: Path) -> Keeper | None:
        """The one of a study; None where another version of the launcher wrote the study."""
        try:
            value = json.loads((directory / KEEPER_FILE).read_text(encoding="utf-8"))
            return cls(str(value["name"]), int(value["seconds"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True)
class Segment:
    """One start of one step in one Slurm job."""

    step: str
    slurm: Path
    """Directory of the study's job scripts; the logs' directory lies beside it."""
    log: Path
    """Where the job's output goes."""
    done: Callable[[], bool]
    """Whether the step is done."""
    run_directory: Path | None
    """For a training: its run directory, which says how far it is."""
    script: Path | None
    """Job script to submit again where this job's nodes are not to be used."""
    keeper: Keeper | None
    tries: int
    """Starts in a row without progress after which the step is given up."""

    @property
    def logs(self) -> Path:
        """Directory of the grid's logs."""
        return self.slurm.parent / "logs"

    @property
    def record(self) -> Record:
        """The step's record."""
        return Record.of(self.logs, self.step)

    def progress(self) -> int:
        """How far the step is: the newest saved step of a training."""
        return newest_saved_step(self.run_directory) if self.run_directory else 0

    def look_after_keeper(self) -> None:
        """`ensure_keeper`; what Slurm has against it is no reason to end the job."""
        if self.keeper is None:
            return
        try:
            ensure_keeper(self.slurm, self.keeper.name)
        except UserError as error:
            print(f"# the keeper cannot be submitted: {error}", flush=True)

    def run(self, command: Sequence[str]) -> int:
        """Start the command unless that is of no use, and settle the job; its exit code."""
        if self.done():
            print(f"{self.step} is done")
            return 0
        here = commands.hostnames(os.environ.get("SLURM_JOB_NODELIST", ""))
        self._note_lost_nodes()
        if self._is_moved_away(here):
            return 0
        progress = self.progress()
        if self._is_given_up(progress, last_error(self.log, 0, code=1)):
            return 1
        self.record.add("started", job=job_name(), nodes=tuple(here), progress=progress)
        print(f"# {time.strftime('%Y-%m-%d %H:%M:%S')} {self.step}: start {job_name()} on {','.join(here)}", flush=True)
        start = self.log.stat().st_size if self.log.is_file() else 0
        child = Child(command)
        while (code := child.wait(self.keeper.seconds * LOOKS_MISSED if self.keeper else None)) is None:
            self.look_after_keeper()
        if self.done() or self.progress() > progress:
            nodes.note_success(self.logs, here, job_name())
        if self.done():
            self.record.add("ended", job=job_name(), code=code, progress=self.progress())
            return 0
        return self._settle(code, start, child)

    def _settle(self, code: int, start: int, child: Child) -> int:
        """Decide on a step that ended before it was done."""
        reason = last_error(self.log, start, code)
        if code == 0:
            reason = "it ended without an error, but its output is missing"
        progress, mistakes = self.progress(), self.record.history().mistakes
        self.record.add(
            "ended", job=job_name(), code=code, reason=reason, interrupted=child.terminated, progress=progress
        )
        if child.terminated:
            # Cancelled, preempted or out of time: what comes next is Slurm's to say.
            return code or 1
        if code == EXIT_USER_ERROR and mistakes:
            self.record.add("gave up", job=job_name(), code=code, reason=reason)
            return code
        if lost := first_lost_nodes(self.log, start):
            nodes.note_failure(self.logs, commands.hostnames(lost), job_name(), reason)
        if self._is_given_up(progress, reason):
            return code or 1
        print(f"# {time.strftime('%Y-%m-%d %H:%M:%S')} {self.step}: back into the queue ({reason})", flush=True)
        commands.requeue(requeue_name())
        # Slurm ends this job in a moment; to return would be to end it before that.
        time.sleep(REQUEUE_SECONDS)
        return code or 1

    def _is_given_up(self, progress: int, reason: str) -> bool:
        """Whether the last starts brought nothing; it is noted then."""
        words = crash_loop(self.record.history().fruitless(progress), reason, self.tries)
        if words is None:
            return False
        self.record.add("gave up", job=job_name(), reason=words)
        print(f"error: {self.step} is given up: {words}", flush=True)
        return True

    def _note_lost_nodes(self) -> None:
        """Where the last start has no end, its job died with a node: note which of its nodes are down."""
        last = self.record.history().last
        if last is not None and last.event == "started" and last.job != job_name():
            nodes.note_failure(self.logs, commands.down(last.nodes), last.job, "down after the job had died")

    def _is_moved_away(self, here: Sequence[str]) -> bool:
        """Whether the job was submitted again elsewhere, because of nodes that have failed before."""
        bad = nodes.excludable(self.logs, commands.PATIENCE_SECONDS)
        if self.script is None or not set(bad) & set(here):
            return False
        try:
            without = f"--exclude={','.join(bad)}"
            job = commands.submit(self.script, without, "--dependency=singleton", patience=commands.PATIENCE_SECONDS)
        except UserError:
            # There are too few others.
            return False
        print(f"# {self.step} goes to other nodes than {','.join(bad)}, which failed before: job {job}", flush=True)
        self.record.add("submitted", job=job, reason=f"without {','.join(bad)}, which failed before")
        return True


class Child:
    """The step's command, with the signals that Slurm sends to the batch script."""

    def __init__(self, command: Sequence[str]) -> None:
        self.terminated = False
        """Whether SIGTERM came: Slurm wants the job to end, and has told the command itself."""
        signal.signal(signal.SIGTERM, self._terminate)
        try:
            # A group of its own, so that it hears of each signal once.
            self._process = subprocess.Popen(command, process_group=0)
        except OSError as error:
            raise UserError(f"cannot start {command[0]}: {error.strerror}") from None
        signal.signal(signal.SIGUSR1, lambda number, frame: self._process.send_signal(signal.SIGUSR1))

    def wait(self, seconds: float | None) -> int | None:
        """The exit code, 128 + the signal's number if one ended it; None if it still runs after `seconds`."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        return code if code >= 0 else 128 - code

    def _terminate(self, number: int, frame: object) -> None:
        self.terminated = True


def job_name() -> str:
    """This start: the job and the number of its restart."""
    return f"{requeue_name()}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"


def requeue_name() -> str:
    """This job, or this member of an array, as Slurm's commands want it."""
    array, index = (os.environ.get(f"SLURM_ARRAY_{name}") for name in ("JOB_ID", "TASK_ID"))
    return f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID", str(os.getpid()))


def ensure_keeper(directory: Path, name: str) -> None:
    """Submit the keeper unless it is in the queue, and let it go if Slurm holds it: whatever happened to it, the other
    jobs bring it back."""
    live = [job for job in commands.jobs([name], patience=commands.PATIENCE_SECONDS) if job.is_live]
    if not live:
        commands.submit(directory / KEEPER, patience=commands.PATIENCE_SECONDS)
    for job in live:
        if job.is_held_by_failure:
            commands.release(job.job)


def _planned(directory: Path, step: str) -> Callable[[], bool]:
    # Here, for the jobs that are many start much faster without a grid and its plan.
    from launchers.plan import GridDirectory
    from launchers.slurm.study import Study

    return Study.read(GridDirectory(directory.parent)).plan.by_name[step].done


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one segment."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="python -m launchers.slurm.segment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--slurm", type=Path, required=True, metavar="DIR", help="the study's slurm directory")
    parser.add_argument("--step", required=True, help="name of the step, as 'train 6B-3T'")
    parser.add_argument("--log", type=Path, required=True, metavar="FILE", help="where the job's output goes")
    parser.add_argument(
        "--done",
        type=Path,
        metavar="FILE",
        help="is there when the step is done (default: what the launcher's plan says)",
    )
    parser.add_argument("--run-directory", type=Path, metavar="DIR", help="of a training: where its states are saved")
    parser.add_argument("--script", type=Path, metavar="FILE", help="the job script, to move to other nodes with")
    parser.add_argument(
        "--tries", type=int, default=MOST_FRUITLESS, help="starts without progress at most (default: %(default)s)"
    )
    if "--" not in arguments:
        parser.parse_args(arguments)
        raise UserError("the step's command is missing; it stands after a --")
    at = arguments.index("--")
    given = parser.parse_args(arguments[:at])
    keeper = Keeper.read(given.slurm)
    done = given.done.exists if given.done else _planned(given.slurm, given.step)
    segment = Segment(given.step, given.slurm, given.log, done, given.run_directory, given.script, keeper, given.tries)
    segment.look_after_keeper()
    return segment.run(arguments[at + 1 :])


if __name__ == "__main__":
    cli.run(main)
