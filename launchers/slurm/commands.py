"""Slurm's commands as functions: what is in the queue, submit, cancel, requeue. Arguments go as a list, never through
a shell.

    submit(Path("train-6B-3T.sbatch"), "--dependency=afterok:812") -> "813"
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launchers.queued import QueuedJob
from tokenizer.cli import UserError

PATIENCE_SECONDS = 300.0
"""How long a command of a job is tried again while Slurm's controller does not answer (it may be restarting)."""

ENDED = frozenset(
    {
        *("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"),
        *("BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY"),
    }
)
"""States of a job that will not run again."""

LAUNCH_FAILED = "launch failed requeued held"
"""Why Slurm holds a job that a node could not start."""

_COMMAND_SECONDS = 120.0


@dataclass(frozen=True)
class Job(QueuedJob):
    """One job, or one member of an array, with its name."""

    name: str = ""
    """As the job script has it."""

    @property
    def is_live(self) -> bool:
        """Whether it runs or may still run."""
        return self.state not in ENDED

    @property
    def is_held_by_failure(self) -> bool:
        """Whether Slurm holds it because a node could not start it; what a person holds is not."""
        return self.is_live and LAUNCH_FAILED in self.reason

    @property
    def index(self) -> int | None:
        """Its index in an array."""
        _, underscore, index = self.job.partition("_")
        return int(index) if underscore and index.isdigit() else None


def jobs(names: Iterable[str] = (), patience: float = 0.0) -> list[Job]:
    """This user's jobs, those that ended a short time ago included; of some `names`, or all.

    Raises UserError where Slurm does not answer for `patience` seconds.
    """
    wanted = ("--name", ",".join(names)) if names else ()
    text = call(
        "squeue", "--me", "--noheader", "--array", "--states=all", *wanted, "-o", "%i|%T|%r|%N|%j", patience=patience
    )
    found = []
    for line in text.splitlines():
        fields = line.split("|", 4)
        if len(fields) == 5:
            job, state, reason, where, name = fields
            found.append(Job(job, state, "" if reason == "None" else reason, where, name))
    return found


def submit(script: Path, *options: str, patience: float = 0.0) -> str:
    """Submit a script and return the job's number. UserError with Slurm's own words if it is refused."""
    return call("sbatch", "--parsable", *options, str(script), patience=patience).strip().partition(";")[0]


def refusal(script: Path) -> str | None:
    """What Slurm has against a script (partition, account, limits, ...), nothing being submitted; None if nothing."""
    try:
        call("sbatch", "--test-only", str(script))
    except UserError as error:
        return str(error)
    return None


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs; those that have ended meanwhile are no mistake."""
    if ids:
        call("scancel", "--quiet", *ids)


def release(job: str) -> None:
    """Let a held job start."""
    call("scontrol", "release", job)


def requeue(job: str) -> None:
    """Put a job, or one member of an array, back into the queue."""
    call("scontrol", "requeue", job, patience=PATIENCE_SECONDS)


def hostnames(names: str) -> list[str]:
    """The nodes of a list as Slurm writes it: ``node[1-2]`` to node1, node2."""
    return call("scontrol", "show", "hostnames", names, patience=PATIENCE_SECONDS).split() if names else []


def down(names: Sequence[str]) -> list[str]:
    """Those of the nodes `names` that cannot be used now."""
    if not names:
        return []
    states = call("sinfo", "--noheader", "--Node", "--nodes", ",".join(names), "-o", "%N %T", patience=PATIENCE_SECONDS)
    broken = ("down", "fail", "drain", "error", "unk")
    return sorted({line.split()[0] for line in states.splitlines() if line.split()[1].startswith(broken)})


def partitions() -> dict[str, dict[str, str]]:
    """Slurm's partitions and what it says of each."""
    found = {}
    for line in call("scontrol", "--oneliner", "show", "partition").splitlines():
        fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if name := fields.get("PartitionName"):
            found[name] = fields
    return found


def config() -> dict[str, str]:
    """Slurm's own settings."""
    lines = (line.split("=", 1) for line in call("scontrol", "show", "config").splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, value in lines}


def call(*command: str, patience: float = 0.0) -> str:
    """Run one of Slurm's commands and return what it prints; UserError with its last words if it fails.

    Args:
        patience: Seconds for which a controller that does not answer is asked again.
    """
    end = time.monotonic() + patience
    while True:
        message = _call(command)
        if not isinstance(message, UserError):
            return message
        if time.monotonic() > end or not _is_unreachable(str(message)):
            raise message
        time.sleep(2.0)


def _call(command: Sequence[str]) -> str | UserError:
    # sbatch takes options from the environment as well: not those of the job that it is called in.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SBATCH_")}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_COMMAND_SECONDS, env=environment, check=False
        )
    except FileNotFoundError:
        return UserError(
            f"there is no {command[0]} on this machine; start it where Slurm's commands are, or give --local"
        )
    except subprocess.TimeoutExpired:
        return UserError(f"{command[0]} did not answer in {_COMMAND_SECONDS:.0f} s: Unable to contact slurm controller")
    if done.returncode == 0:
        return done.stdout
    words = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    said = (
        "; ".join(word.removeprefix(f"{command[0]}: ").removeprefix("error: ") for word in words) or "no reason given"
    )
    return UserError(f"{command[0]}: {said}")


def _is_unreachable(message: str) -> bool:
    return any(word in message for word in ("Unable to contact", "Connection refused", "timed out", "Socket", "socket"))
