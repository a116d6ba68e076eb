"""A step of a plan in a scheduler's queue, as `--status` is told of it."""

from __future__ import annotations

from dataclasses import dataclass

_RUNNING = frozenset({"RUNNING", "COMPLETING", "CONFIGURING", "RESIZING", "SIGNALING", "STAGE_OUT"})
_REQUEUED = frozenset({"REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"})
_SUSPENDED = frozenset({"SUSPENDED", "STOPPED"})


@dataclass(frozen=True)
class QueuedJob:
    """The job of one step."""

    job: str
    """Slurm's number, with the index of an array's member: ``812``, ``812_5``."""
    state: str
    """Slurm's long name: PENDING, RUNNING, COMPLETING, ..."""
    reason: str = ""
    """Why it waits, as Slurm says: Priority, Resources, ..."""
    nodes: str = ""
    """Where it runs, as Slurm writes lists of nodes."""

    @property
    def is_running(self) -> bool:
        """Whether it has nodes."""
        return self.state in _RUNNING

    @property
    def is_waiting(self) -> bool:
        """Whether it has none yet, or none any more, and Slurm will give it some."""
        return self.state == "PENDING" or self.state in _REQUEUED or self.state in _SUSPENDED

    @property
    def is_requeued(self) -> bool:
        """Whether Slurm says itself that it has run before."""
        return self.state in _REQUEUED

    @property
    def why(self) -> str:
        """Why it waits, in Slurm's words; empty if Slurm does not say."""
        said = "" if self.reason == "None" else self.reason
        if self.state in _SUSPENDED:
            return "suspended" + (f" ({said})" if said else "")
        return said
