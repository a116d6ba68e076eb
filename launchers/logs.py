"""What the log of a step says about its end."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

_ERROR_LINE = re.compile(r"(error: |[\w.]*(Error|Exception|Interrupt|Exit)\b(: |$))")
_SRUN_LINE = re.compile(r"s(run|lurmstepd): ")
_LOST_TASK = re.compile(r"srun: error: (\S+): tasks? [\d,-]+: (.+)")
_TAIL_BYTES = 64 * 1024


def last_error(log: Path, start: int, code: int) -> str:
    """The line of the log, from byte `start` on, that says best why a process ended with `code`."""
    lines = [line for line in _tail(log, start) if not _SRUN_LINE.match(line)]
    errors = [line for line in lines if _ERROR_LINE.match(line)]
    said = (errors or lines or ["it printed nothing"])[-1].removeprefix("error: ")
    if code > 128 and not errors:
        number = code - 128
        name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
        hint = " (out of memory?)" if number == signal.SIGKILL else ""
        return f"killed by {name}{hint}; its last line: {said}"
    return said


def first_lost_nodes(log: Path, start: int) -> str:
    """The nodes, as Slurm writes them, of the first task that srun says was killed; empty if none was."""
    for line in _tail(log, start):
        if (match := _LOST_TASK.fullmatch(line)) and re.search(r"Killed|exit code (12[89]|1[3-9]\d)", match[2]):
            return match[1]
    return ""


def _tail(log: Path, start: int) -> list[str]:
    try:
        with open(log, "rb") as file:
            file.seek(max(start, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    # A progress bar writes many times on one line.
    return [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
