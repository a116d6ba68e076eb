"""Who works on the steps of a plan, and what became of their starts: from the launcher's notes, the records, and the
queue.

    Steps(folder, queue).given_up("train 6B-3T")
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from launchers import records
from launchers.directory import launcher_pid
from launchers.plan import GridDirectory, read_json
from launchers.progress import names_in
from launchers.queued import QueuedJob
from launchers.records import History, Record

NOTES = "launcher.json"
"""File in the logs' directory that says what the launcher is doing; a help for `--status`, needed by no step."""


@dataclass(frozen=True)
class Problem:
    """A step beside the trainings that was given up."""

    step: str
    run: str | None
    phase: str
    message: str
    """The last error."""
    log: str | None
    """Where that stands."""


class Steps:
    """Who works on a step, and what became of its starts."""

    def __init__(self, folder: GridDirectory, queue: Mapping[str, QueuedJob]) -> None:
        self.queue = queue
        self.pid = launcher_pid(folder)
        notes = read_json(folder.logs / NOTES)
        self._logs = folder.logs
        self._running = notes.get("running", {}) if self.pid is not None else {}
        done_at = notes.get("done_at") if self.pid is not None else None
        self.left_seconds = None if done_at is None else max(0.0, done_at - time.time())
        """Until all is done, by the last estimate of the launcher that is at work."""
        self._failed = notes.get("failed", {})
        self._recorded = names_in(folder.logs / records.DIRECTORY)

    def history(self, step: str) -> History:
        """What became of the step's starts."""
        record = Record.of(self._logs, step)
        return record.history() if record.path.name in self._recorded else History(())

    def job(self, step: str) -> QueuedJob | None:
        """Its job, if that runs or will."""
        job = self.queue.get(step)
        return job if job is not None and (job.is_running or job.is_waiting) else None

    def is_running(self, step: str) -> bool:
        """Whether somebody works on it."""
        job = self.job(step)
        return step in self._running or (job is not None and job.is_running)

    def given_up(self, step: str, history: History | None = None) -> str | None:
        """Why the step was given up, if it was and nobody tries again."""
        history = self.history(step) if history is None else history
        last = history.last
        if last is not None:
            tries_again = last.event in ("submitted", "started") and self.job(step) is not None
            succeeded = last.event == "ended" and last.code == 0 and not last.reason
            if tries_again or succeeded:
                return None
        if step in self._running:
            return None
        if (reason := history.gave_up) is not None:
            return reason or "no reason was noted"
        if step in self._failed and (last is None or last.event in ("ended", "gave up")):
            return self._failed[step].get("message", "")
        return None

    def log(self, step: str, *names: str) -> str | None:
        """Where the step's last words stand: what the launcher noted, or the first log of those names that there is."""
        noted = self._failed.get(step, {}).get("log")
        return noted or next((str(self._logs / name) for name in names if (self._logs / name).is_file()), None)

    def problems(self, phases: Mapping[str, str]) -> list[Problem]:
        """The steps that were given up, of `phases` by their names."""
        found = [(step, phase, self.given_up(step)) for step, phase in phases.items()]
        return [
            # On Slurm one job, with one log, carries out all of the preparation.
            Problem(step, None, phase, reason, self.log(step, f"{phase}.log", "prepare.log"))
            for step, phase, reason in found
            if reason is not None
        ]


def last_end(history: History) -> str | None:
    """How the last start ended."""
    ended = next((event for event in reversed(history.events) if event.event == "ended"), None)
    if ended is None:
        return None
    return ended.reason or (f"exit code {ended.code}" if ended.code is not None else None)
