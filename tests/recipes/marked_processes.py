"""Commands whose processes can be found again, whatever group or session they are in, and what a mistake prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import psutil
from commands import REPOSITORY

MARK = "MARKED_BY_TEST"
"""Environment variable by which the processes of a command are found, whatever group or session they are in."""


def module(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", name, *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "COLUMNS": "200", **more}


def processes_of(mark: str) -> list[psutil.Process]:
    """Every process that descends from the command that was given `mark`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def assert_one_line(done: subprocess.CompletedProcess, said: str, code: int = 2) -> None:
    assert done.returncode == code, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert re.match(r"error: \S", lines[0])
    assert re.search(said, lines[0]), lines[0]
