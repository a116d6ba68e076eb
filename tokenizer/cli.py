"""What every command of the project shares: errors for users, exit codes, progress bars.

A user's mistake is raised as `UserError` wherever it is found and printed by `run` as one line with exit
code 2; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

EXIT_USER_ERROR = 2
"""Exit code of a command that was asked for something it cannot do."""

EXIT_UNAVAILABLE = 69
"""Exit code of a command that something it needs was taken from, such as a process of the same run on another machine
(EX_UNAVAILABLE): nobody's mistake, the same command may well go on."""

EXIT_AGAIN = 75
"""Exit code of a command that was stopped after it had saved its state (EX_TEMPFAIL): the same command goes on."""

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C (128 + SIGINT), as shells report it."""


class UserError(Exception):
    """A mistake that the user can mend: one line that names the cause and the remedy."""


class StartAgain(Exception):
    """What ended a command is nobody's mistake: one line, and the exit code by which a scheduler knows that the same
    command goes on."""

    def __init__(self, message: str, exit_code: int = EXIT_UNAVAILABLE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run(main: Callable[[], int | None]) -> None:
    """Run a command's `main` and leave the process with its exit code.

    `UserError` becomes one line on stderr and exit code 2, `StartAgain` the same with an exit code of its own, Ctrl-C
    exit code 130; a closed output pipe (`... | head`) ends the command quietly.
    """
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_USER_ERROR
    except StartAgain as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        code = 0
    sys.exit(code or 0)


def progress_bar(*columns: str, disable: bool = False) -> Progress:
    """A progress bar with count, elapsed time and ETA on stderr; `columns` are rich markup templates of
    task fields that are appended, e.g. ``"{task.fields[rate]}"``. Off a terminal nothing is drawn."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        *(TextColumn(column) for column in columns),
        console=console,
        disable=disable or not console.is_terminal,
    )
