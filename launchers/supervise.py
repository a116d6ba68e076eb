"""One step's process with all that it starts: none of them outlives this process or the launcher.

The executor starts each step through this small program, which becomes the parent of every process that the
step leaves behind (Linux's child subreaper), is told by the kernel when the launcher dies however that
happens, and then kills them all. It imports the standard library only and starts in some 20 ms.

    python -I -S launchers/supervise.py PARENT_PID COMMAND [ARGUMENT ...]
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

KILL_ALL = signal.SIGUSR1
"""Signal that ends everything below this process at once; the kernel sends it when the launcher dies."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")


def _children() -> list[int]:
    """Process ids of the direct children of this process."""
    own = str(os.getpid())
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The fields after the name, which stands in brackets and may hold anything: state, parent.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[1] == own:
                found.append(int(entry.name))
    return found


def kill_descendants() -> None:
    """Kill the children, then the orphans that they leave to this process, until there are none."""
    while True:
        for child in _children():
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _run(command: Sequence[str]) -> int:
    """Run `command` to its end; the exit code, or 128 + the signal that ended it."""
    own = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != own:
                os._exit(1)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, KILL_ALL):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            os.execvp(command[0], list(command))
        except OSError as error:
            print(f"error: cannot start {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        finally:
            os._exit(127)
    while True:
        # Orphans of the step arrive here as well.
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, then end whatever it left behind."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    launcher = int(arguments[0])

    def end(number: int, frame: object) -> None:
        kill_descendants()
        os._exit(128 + signal.SIGKILL)

    # The launcher ends a step by a signal to the whole process group: it is the step's to answer.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: None)
    signal.signal(KILL_ALL, end)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_PDEATHSIG, KILL_ALL)
    if os.getppid() != launcher:
        return 1
    code = _run(arguments[1:])
    kill_descendants()
    return code


if __name__ == "__main__":
    sys.exit(main())
