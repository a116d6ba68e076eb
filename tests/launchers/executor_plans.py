"""Plans of tiny real commands, for the tests of the executor; also a launcher that a test can kill.

python tests/launchers/executor_plans.py DIRECTORY
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from launchers.directory import locked
from launchers.local import LocalExecutor
from launchers.plan import GridDirectory, Plan, Step

WRITE = """
import sys, time, os, pathlib
started = time.time()
time.sleep(float(sys.argv[1]))
for path in sys.argv[2:]:
    pathlib.Path(path).write_text(f"{started} {time.time()} {os.getpid()}")
"""
"""Sleeps, then writes its start, its end and its process id into each file named."""

FAMILY = """
import os, subprocess, sys, time
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
child = subprocess.Popen(sleep)
elsewhere = subprocess.Popen(sleep, start_new_session=True)
orphan = subprocess.check_output(["sh", "-c", "sleep 600 >/dev/null & echo $!"], text=True).strip()
with open(sys.argv[1] + ".new", "w") as file:
    file.write(f"{os.getpid()} {child.pid} {elsewhere.pid} {orphan}")
os.replace(sys.argv[1] + ".new", sys.argv[1])
time.sleep(600)
"""
"""Starts a child, one in a session of its own and an orphan, writes their process ids and waits."""


def python(code: str, *arguments: object) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *map(str, arguments))


def write_step(
    folder: Path, name: str, seconds: float = 0.05, phase: str = "train", needs: Sequence[str] = (), **more: object
) -> Step:
    """A step that writes the file `name`."""
    path = folder / name
    return Step(
        name=name,
        phase=phase,
        command=python(WRITE, seconds, path),
        log=folder / "logs" / f"{name}.log",
        done=path.is_file,
        output=str(path),
        needs=tuple(needs),
        **more,
    )


def item_step(folder: Path, name: str, code: str = WRITE, needs: Sequence[str] = ()) -> Step:
    """A step that may share its process with others."""
    path = folder / name
    return Step(
        name=name,
        phase="evaluate",
        command=python(code, 0.05),
        log=folder / "logs" / f"{name}.log",
        done=path.is_file,
        output=str(path),
        needs=tuple(needs),
        items=(str(path),),
    )


def family_step(folder: Path, name: str) -> Step:
    """A step that never ends, with relatives."""
    pids = folder / f"{name}.pids"
    return Step(
        name=name,
        phase="train",
        command=python(FAMILY, pids),
        log=folder / "logs" / f"{name}.log",
        done=lambda: False,
    )


def main(directory: Path) -> None:
    folder = GridDirectory(directory)
    steps = [write_step(directory, "first"), family_step(directory, "one"), family_step(directory, "two")]
    with locked(folder) as lock:
        LocalExecutor(Plan(tuple(steps)), jobs=3, inherit=(lock,), grace=1.0).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
