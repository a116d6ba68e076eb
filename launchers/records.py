"""What became of every start of a step: one file a step, one line an event, appended by whoever starts the step.

Whether a step is done is never read here, only in what it writes (`launchers.plan`). Records answer what that cannot
tell: how often a step was started, whether it gets anywhere, why it was given up.

    record = Record.of(folder.logs, "train 6B-3T")
    record.add("started", job="812.1", nodes=("node3",), progress=4000)
    record.history().fruitless(progress=4000) -> 1
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizer.cli import EXIT_USER_ERROR

MOST_FRUITLESS = 3
"""Starts in a row without progress after which a step is given up."""

DIRECTORY = "starts"
"""Directory of the records, in that of the logs."""


@dataclass(frozen=True)
class Event:
    """One line of a record."""

    event: str
    """submitted, refused (by the scheduler), started, ended, gave up, cancelled or resumed (a person asked to try
    again)."""
    time: float
    """Seconds since the epoch."""
    job: str = ""
    """Which start: Slurm's job with the number of its restart, ``812.1``, or a process id."""
    nodes: tuple[str, ...] = ()
    """Machines of the start."""
    progress: int = 0
    """What the step had done when it was started, in its own units (steps of a training)."""
    code: int | None = None
    """Exit code of the step's command."""
    reason: str = ""
    """In words, for a person."""
    interrupted: bool = False
    """Whether it was stopped from outside, which says nothing against the step."""


@dataclass(frozen=True)
class History:
    """A record as read."""

    events: tuple[Event, ...]

    @property
    def starts(self) -> int:
        """How often the step was started."""
        return sum(event.event == "started" for event in self.events)

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        return max(0, self.starts - 1)

    @property
    def last(self) -> Event | None:
        """The newest event."""
        return self.events[-1] if self.events else None

    @property
    def gave_up(self) -> str | None:
        """Why the step was given up, if it was and nobody has asked to try again since."""
        return next((event.reason for event in reversed(list(self._tried())) if event.event == "gave up"), None)

    @property
    def cancelled(self) -> bool:
        """Whether a person cancelled the step and has not asked for it again."""
        return any(event.event == "cancelled" for event in self._tried())

    @property
    def unstarted(self) -> int:
        """How often the step was submitted since it last started."""
        names = [event.event for event in self._tried()]
        started = [place for place, name in enumerate(names) if name == "started"]
        return names[started[-1] if started else 0 :].count("submitted")

    @property
    def mistakes(self) -> int:
        """How many of the last starts ended one after the other with a user's mistake."""
        codes = [event.code for event in self._tried() if event.event == "ended"]
        return next((place for place, code in enumerate(reversed(codes)) if code != EXIT_USER_ERROR), len(codes))

    def fruitless(self, progress: int) -> int:
        """How many of the last starts brought nothing, the step being at `progress` now. Interrupted ones do not
        count, nor do those before a person asked to try again."""
        count, interrupted = 0, set()
        for event in reversed(list(self._tried())):
            if event.event == "ended" and event.interrupted:
                interrupted.add(event.job)
            if event.event == "started":
                if event.progress != progress:
                    break
                count += event.job not in interrupted
        return count

    def _tried(self) -> Iterator[Event]:
        """The events since a person last asked to try again."""
        asked = [place for place, event in enumerate(self.events) if event.event == "resumed"]
        return iter(self.events[asked[-1] + 1 if asked else 0 :])


def crash_loop(fruitless: int, last: str, tries: int = MOST_FRUITLESS) -> str | None:
    """Why a step is given up after `fruitless` starts without progress, the last of which ended with `last`; None
    while they are fewer than `tries`."""
    return f"no progress in {fruitless} starts; the last ended with: {last}" if fruitless >= tries else None


@dataclass(frozen=True)
class Record:
    """The file of one step."""

    path: Path

    @classmethod
    def of(cls, logs: Path, step: str) -> Record:
        """The record of the step of that name, in the logs' directory of a grid."""
        return cls(logs / DIRECTORY / f"{step.replace(' ', '-')}.jsonl")

    def add(self, event: str, **fields: object) -> None:
        """Append an event of now; `fields` are those of `Event`."""
        line = json.dumps(dataclasses.asdict(Event(event, time.time(), **fields)), ensure_ascii=False)  # type: ignore[arg-type]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab", buffering=0) as file:
            file.write(f"{line}\n".encode())
            os.fsync(file.fileno())

    def history(self) -> History:
        """All events; a line that is not whole is passed over."""
        events = []
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        for line in lines:
            try:
                value = json.loads(line)
                events.append(Event(**{**value, "nodes": tuple(value.get("nodes", ()))}))
            except (ValueError, TypeError, AttributeError):
                continue
        return History(tuple(events))
