"""The project's Python environments: made once, kept whole, shared by the main job and the tests.

There are two, for NeMo wants older releases of some packages than everything else: the extras [default] and [nemo]
of pyproject.toml.

Runs before anything is installed, so it imports the standard library only. The stamp, a file with the checksum
of pyproject.toml, is written last: a set-up that was interrupted is started again from nothing.

    python3.11 launchers/environment.py ROOT VENV default|nemo        (as launchers/environment.sh calls it)
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

STAMP = ".emergence-stamp"
"""In a whole environment: the SHA-256 of the pyproject.toml that it was made from."""

UNFINISHED = ".emergence-unfinished"
"""In an environment that a set-up is working on, or was when it was interrupted."""

LOCK = ".emergence-lock"
"""Held by the one set-up that may work on the environment."""


@dataclass(frozen=True)
class Kind:
    """One of the environments."""

    extra: str
    """Of pyproject.toml, beside [dev]."""
    variable: str
    """The environment variable that names another place for it."""
    needed_mib: int
    """Free space that a set-up asks for: the packages and what pip unpacks beside them."""
    cost: str
    """What making it took where it was measured."""


KINDS = {
    "default": Kind("default", "EMERGENCE_VENV", 3500, "about 3 minutes and 2.2 GB"),
    "nemo": Kind("nemo", "EMERGENCE_NEMO_VENV", 4500, "about 5 minutes and 3 GB"),
}

PIP_STEPS = ("Collecting ", "Downloading ", "Building ", "Preparing ", "Installing ")
"""Beginnings of the lines in which pip says what it is doing."""

NOTICE_SECONDS = 30
"""Off a terminal, the time between two lines of progress."""


def fail(message: str) -> NoReturn:
    """Leave with one line and exit code 2, as `tokenizer.cli` does for a user's mistake."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def set_up(root: Path, venv: Path, kind: Kind = KINDS["default"]) -> None:
    """Make `venv` whole for the checkout `root`, unless it is. Two set-ups of one `venv` wait for each other."""
    checksum = hashlib.sha256((root / "pyproject.toml").read_bytes()).hexdigest()
    if venv.exists() and any(venv.iterdir()) and not any((venv / name).exists() for name in ("pyvenv.cfg", LOCK)):
        fail(f"{venv} holds something else than a Python environment; move it or set {kind.variable}")
    try:
        venv.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(venv / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        fail(f"cannot write {venv} ({error.strerror}); set {kind.variable} to a directory that you may write")
    with open(descriptor, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another set-up of {venv} is under way; waiting for it", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_whole(venv, checksum):
            _make(root, venv, kind, checksum, lock.fileno())


def is_whole(venv: Path, checksum: str) -> bool:
    """Whether `venv` was made from the pyproject.toml with this checksum, to its end."""
    stamp = venv / STAMP
    return stamp.is_file() and stamp.read_text().strip() == checksum


def _make(root: Path, venv: Path, kind: Kind, checksum: str, lock: int) -> None:
    started = time.monotonic()
    if (venv / UNFINISHED).exists():
        _empty(venv)
    _check_machine(venv, kind)
    log = venv / "setup.log"
    said = (
        f"Bringing {venv} up to date with pyproject.toml."
        if (venv / STAMP).exists()
        else f"Setting up {venv} with the packages of pyproject.toml, once: {kind.cost}\n"
        "(more where pip finds the CUDA build of torch)."
    )
    print(f"{said} Log: {log}", file=sys.stderr, flush=True)
    (venv / UNFINISHED).touch()
    (venv / STAMP).unlink(missing_ok=True)
    if not (venv / "bin" / "python").exists():
        _run([sys.executable, "-m", "venv", str(venv)], log, lock)
    python = str(venv / "bin" / "python")
    _run([python, "-m", "pip", "install", "--editable", f"{root}[{kind.extra},dev]"], log, lock)
    temporary = venv / f"{STAMP}.new"
    temporary.write_text(f"{checksum}\n")
    temporary.replace(venv / STAMP)
    (venv / UNFINISHED).unlink()
    print(f"Set up in {time.monotonic() - started:.0f} s.", file=sys.stderr)


def _empty(venv: Path) -> None:
    for entry in venv.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name not in (LOCK, UNFINISHED):
            entry.unlink()


def _check_machine(venv: Path, kind: Kind) -> None:
    try:
        import ensurepip  # noqa: F401
        import venv as _venv  # noqa: F401
    except ImportError:
        fail("this Python 3.11 has no venv module; install it: apt-get install python3.11-venv")
    free = shutil.disk_usage(venv).free // 2**20
    if free < kind.needed_mib and not (venv / STAMP).exists():
        fail(
            f"{free} MiB are free for {venv}, {kind.needed_mib} are needed; "
            f"free some, or set {kind.variable} to a directory on another disk"
        )


def _run(command: list[str], log: Path, lock: int) -> None:
    """Run a command with its output in `log` and one line of progress; leave with its error if it fails."""
    terminal = sys.stderr.isatty()
    started = noticed = time.monotonic()
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    with open(log, "a") as output:
        # The lock is inherited: a pip that outlives this process keeps others out until it has ended.
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, pass_fds=[lock], env=environment
        )
    try:
        while process.poll() is None:
            time.sleep(0.2)
            elapsed = time.monotonic() - started
            said = f"  {elapsed:3.0f} s  {last_step(log.read_text(errors='replace'))[:90]:<90}"
            if terminal:
                print(f"\r{said}", end="", file=sys.stderr, flush=True)
            elif time.monotonic() - noticed > NOTICE_SECONDS:
                noticed = time.monotonic()
                print(said.rstrip(), file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        process.wait()
        print("\ninterrupted; run the same command again to set up from the start", file=sys.stderr)
        sys.exit(130)
    if terminal:
        print(f"\r{'':100}\r", end="", file=sys.stderr)
    if process.returncode:
        text = log.read_text(errors="replace")
        if "No space left on device" in text:
            fail(f"the disk became full while installing into {log.parent}; free some and run this again")
        said = [line for line in text.splitlines() if line.startswith(("ERROR", "Error"))] or text.splitlines()
        fail(f"{' '.join(command[1:4])} failed: {said[-1] if said else 'no output'}; all it said is in {log}")


def last_step(log: str) -> str:
    """What pip is doing, from its output: between two steps it warns of much that tells nobody how far it is."""
    lines = (line.strip() for line in reversed(log.splitlines()))
    return next((line for line in lines if line.startswith(PIP_STEPS)), "")


def main(argv: Sequence[str] | None = None) -> int:
    """Set up the environment VENV of a kind for the checkout ROOT."""
    root, venv, kind = (sys.argv[1:] if argv is None else argv)[:3]
    set_up(Path(root).resolve(), Path(venv).absolute(), KINDS[kind])
    return 0


if __name__ == "__main__":
    sys.exit(main())
