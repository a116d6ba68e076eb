"""What the local executor notes of the starts of its steps (`launchers.records`), and which ended step it starts again.

starts = Starts()
starts.ended(step, pid, 137, "killed by SIGKILL")
starts.refusal(step, 137, "killed by SIGKILL") -> None          # it may be started again
"""

from __future__ import annotations

import contextlib
import socket

from launchers.plan import Step
from launchers.records import MOST_FRUITLESS, History, Record, crash_loop
from tokenizer.cli import EXIT_AGAIN, EXIT_USER_ERROR

STOPPED = "the launcher was stopped"
"""Reason of an end that says nothing against the step."""


class Starts:
    """The records of a plan's steps, which lie in the directory of their logs."""

    def __init__(self) -> None:
        self._host = socket.gethostname()
        self._unnoted: set[str] = set()

    def ask(self, step: Step) -> None:
        """A person asks for the step: what was given up or cancelled is tried afresh."""
        last = self._history(step).last
        if last is not None and last.event == "started" and last.nodes == (self._host,) and last.job.isdigit():
            # Whoever asks holds the directory's lock: the process is gone, and its launcher was before it.
            self._note(step, "ended", job=last.job, reason="the launcher was killed", interrupted=True)
        history = self._history(step)
        if history.gave_up is not None or history.cancelled or history.fruitless(step.progress()) >= MOST_FRUITLESS:
            self._note(step, "resumed")

    def started(self, step: Step, pid: int, progress: int) -> None:
        """The step was started when it was at `progress`."""
        self._note(step, "started", job=str(pid), nodes=(self._host,), progress=progress)

    def ended(self, step: Step, pid: int, code: int, reason: str = "", *, interrupted: bool = False) -> None:
        """The process of the step has ended; `interrupted` where that is no fault of the step."""
        done = step.done()
        self._note(
            step,
            "ended",
            job=str(pid),
            code=0 if done else code,
            reason="" if done else reason,
            interrupted=interrupted and not done,
            progress=step.progress(),
        )

    def refusal(self, step: Step, code: int, message: str) -> str | None:
        """Why the step is not started again after it ended with `code` and `message`; None if it is: after it was
        stopped, and a training after all but a user's mistake, while it gets on or has not been tried often."""
        is_retried = code == EXIT_AGAIN or (step.phase == "train" and code not in (0, EXIT_USER_ERROR))
        if not is_retried or step.name in self._unnoted:
            return message
        return crash_loop(self._history(step).fruitless(step.progress()), message)

    def gave_up(self, step: Step, code: int, reason: str) -> None:
        """The step is not tried again until a person asks."""
        self._note(step, "gave up", code=code, reason=reason, progress=step.progress())

    def _history(self, step: Step) -> History:
        with contextlib.suppress(OSError):
            return self._record(step).history()
        return History(())

    def _note(self, step: Step, event: str, **fields: object) -> None:
        try:
            self._record(step).add(event, **fields)
        except OSError:
            # A full disk is the steps' to report; but what cannot be counted is not repeated.
            self._unnoted.add(step.name)

    def _record(self, step: Step) -> Record:
        return Record.of(step.log.parent, step.name)
