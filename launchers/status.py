"""What `--status` shows of a study, as a table and as JSON; works during a launch and after it.

bash launchers/slurm_grid.sh --grid recipes/grids/smoke.yaml --status
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from launchers.local import Failure, LocalExecutor, Observer, Process
from launchers.plan import GridDirectory
from launchers.queued import QueuedJob
from launchers.states import RunStatus, StudyState, read_study
from launchers.tried import NOTES
from recipes.grid import Grid
from recipes.settings import format_count
from tokenizer import files

_COLOURS = {
    "running": "cyan",
    "finished": "green",
    "failed": "red",
    "stopped": "yellow",
    "cancelled": "yellow",
    "requeued": "yellow",
}

_COLUMNS = (
    *("run", "state", "step", "tokens", "loss", "held-out", "tokens/s", "MFU", "restarts", "ETA"),
    *("checkpoints", "evaluated"),
)

_LEFT_OUT = ("checkpoints", "held-out", "tokens", "restarts", "MFU", "tokens/s", "evaluated")
"""Columns that a narrow terminal goes without, the first first; --json has them all."""

_FOLDED = ("finished", "waiting", "queued", "cancelled", "requeued", "stopped")
"""States whose runs share a line where there is no room for all, in that order."""

NOTE_SECONDS = 15.0
"""Time between two estimates that `Notes` writes down."""

_MOST_NAMES = 3
"""Runs that are named in a line for many."""

_MOST_PROBLEMS = 10
"""Evaluations that were given up that have a line each."""


class Notes(Observer):
    """Writes down what the launcher is doing, for `--status` in another terminal."""

    def __init__(self, folder: GridDirectory, jobs: int, left: Callable[[], float]) -> None:
        """`left` estimates the seconds until all steps are done."""
        self._path = folder.logs / NOTES
        self._left = left
        self._noted = 0.0
        self._value: dict[str, Any] = {
            "pid": os.getpid(),
            "started": time.time(),
            "jobs": jobs,
            "running": {},
            "failed": {},
        }
        self._write()

    def started(self, process: Process) -> None:
        """Note the steps of the process as running."""
        for step in process.steps:
            self._value["running"][step.name] = {"pid": process.popen.pid, "since": process.started}
        self._write()

    def ended(self, process: Process, failures: Sequence[Failure]) -> None:
        """Note which of its steps failed."""
        for step in process.steps:
            self._value["running"].pop(step.name, None)
        for failure in failures:
            self._value["failed"][failure.step.name] = {
                "run": failure.step.run,
                "phase": failure.step.phase,
                "message": failure.message,
                "log": str(failure.log),
            }
        self._write()

    def tick(self, executor: LocalExecutor) -> None:
        """Note from time to time when all will be done."""
        if time.monotonic() - self._noted > NOTE_SECONDS:
            self._write()

    def _write(self) -> None:
        self._noted = time.monotonic()
        self._value["done_at"] = time.time() + self._left()
        # A full disk is the steps' to report; no run ends for want of a note.
        with contextlib.suppress(OSError):
            files.write_json(self._path, self._value)


@dataclass(frozen=True)
class StatusPage:
    """What `--status` prints: a table of the runs, as wide as there is room for, and below it a line for each that does
    not simply go on."""

    study: StudyState
    height: int | None = None
    """Lines that there are; runs with nothing to tell share one where all do not fit. None for no limit."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = list(_lines(self.study))
        width = options.max_width
        room = None
        if self.height is not None:
            wrapped = sum(len(line.wrap(console, width)) for line in (Text(_title(self.study)), *lines))
            # Headings and the table's borders, and a line that the terminal keeps for its cursor.
            room = max(1, self.height - wrapped - 5)
        yield _runs_table(self.study, room, width)
        yield from lines


def status_table(
    grid: Grid, folder: GridDirectory, queue: Mapping[str, QueuedJob] | None = None, height: int | None = None
) -> StatusPage:
    """What `--status` prints of the study as it is now.

    Args:
        queue: The study's jobs by their steps; nothing where there is no scheduler.
        height: Lines that there are; None for no limit.
    """
    return StatusPage(read_study(grid, folder, queue), height)


def status_value(grid: Grid, folder: GridDirectory, queue: Mapping[str, QueuedJob] | None = None) -> dict[str, Any]:
    """What `--status --json` prints."""
    study = read_study(grid, folder, queue)
    return {
        "grid": study.grid,
        "path": str(study.path),
        "done": study.is_done,
        "eta_seconds": study.eta_seconds,
        "left_seconds": study.left_seconds,
        "launcher_pid": study.launcher_pid,
        "on_slurm": study.on_slurm,
        "world_done": study.world_done,
        "tokenizer_done": study.tokenizer_done,
        "data_done": study.data_done,
        "report": str(study.report) if study.report else None,
        "results_since_report": study.results_since_report,
        "evaluations": dataclasses.asdict(study.evaluations),
        "failed": study.failed,
        "runs": [dataclasses.asdict(line) for line in study.runs],
        "jobs": {step: dataclasses.asdict(job) for step, job in study.jobs.items()},
    }


def _runs_table(study: StudyState, room: int | None, width: int) -> Table:
    hidden = _hidden(study.runs, room)
    rows = [_cells(run) for run in study.runs if run.state not in hidden]
    counts = Counter(run.state for run in study.runs)
    rows += [{"run": f"{counts[state]} runs", "state": state} for state in hidden]
    columns = {heading: [row.get(heading, "") for row in rows] for heading in _COLUMNS}
    for heading in _LEFT_OUT:
        # Two blanks and a line beside each column.
        if sum(max(map(len, [name, *cells])) + 3 for name, cells in columns.items()) < width:
            break
        del columns[heading]
    table = Table(title=_title(study), title_justify="left")
    for heading in columns:
        left = heading in ("run", "state")
        table.add_column(heading, justify="left" if left else "right", no_wrap=left)
    for cells in zip(*columns.values(), strict=True):
        texts = [Text(cell) for cell in cells]
        texts[1].stylize(_COLOURS.get(cells[1], ""))
        table.add_row(*texts)
    return table


def _title(study: StudyState) -> str:
    return f"{study.grid} in {study.path}"


def _hidden(runs: Sequence[RunStatus], room: int | None) -> list[str]:
    """States whose runs share a line, so that the table has no more than `room` of them if that can be."""
    counts, hidden = Counter(run.state for run in runs), []
    for state in _FOLDED:
        shown = sum(count for other, count in counts.items() if other not in hidden) + len(hidden)
        if room is None or shown <= room:
            break
        if counts[state] > 1:
            hidden.append(state)
    return hidden


def _cells(run: RunStatus) -> dict[str, str]:
    """The run's line by the headings."""
    return {
        "run": run.run,
        "state": run.state,
        "step": f"{run.step:,} of {run.steps:,}",
        "tokens": f"{format_count(run.tokens)} of {format_count(run.tokens_planned)}",
        "loss": "" if run.loss is None else f"{run.loss:.4f}",
        "held-out": "" if run.heldout_loss is None else f"{run.heldout_loss:.4f}",
        "tokens/s": "" if run.tokens_per_second is None else f"{run.tokens_per_second:,.0f}",
        "MFU": "" if run.mfu is None else f"{run.mfu:.1%}",
        "restarts": f"{run.restarts}" if run.restarts else "",
        "ETA": "" if run.eta_seconds is None else format_duration(run.eta_seconds),
        "checkpoints": f"{run.checkpoints} of {run.checkpoints_planned}",
        "evaluated": f"{run.checkpoints_evaluated} of {run.checkpoints_planned}",
    }


def _lines(study: StudyState) -> Iterator[Text]:
    """What stands below the table."""
    for run in study.runs:
        if run.state == "failed":
            yield _line(run.run, run.state, run.reason, run.log)
    alike: dict[tuple[str, str], list[RunStatus]] = {}
    for run in study.runs:
        if run.state not in ("failed", "running", "finished"):
            alike.setdefault((run.state, run.reason or ""), []).append(run)
    for (state, reason), runs in alike.items():
        yield _line(_names([run.run for run in runs]), state, reason, runs[0].log if len(runs) == 1 else None)
    problems = (*study.shared, *study.evaluations.given_up)
    for problem in problems[:_MOST_PROBLEMS]:
        yield _line(problem.step, "failed", problem.message, problem.log)
    if (more := len(problems) - _MOST_PROBLEMS) > 0:
        yield Text(f"and {more} more evaluations failed; --json has them all", style="red")
    yield Text(_evaluations(study))
    yield Text(" · ".join(_facts(study)))


def _line(what: str, state: str, reason: str | None, log: str | None) -> Text:
    line = Text.assemble(what, " ", (state, _COLOURS.get(state, "")))
    if reason:
        line.append(f": {reason}")
    if log:
        line.append(f"; log: {log}")
    return line


def _names(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _evaluations(study: StudyState) -> str:
    it = study.evaluations
    parts = [f"{it.evaluated} of {it.planned} done"]
    parts += [f"{count} {name}" for count, name in ((it.running, "running"), (it.queued, "queued")) if count]
    parts += [f"{count} {name}" for count, name in ((it.waiting, "waiting"), (len(it.given_up), "failed")) if count]
    return f"evaluations: {', '.join(parts)}"


def _facts(study: StudyState) -> Iterator[str]:
    if study.world_done is not None:
        yield f"world {'done' if study.world_done else 'not yet'}"
    yield f"tokenizer {'done' if study.tokenizer_done else 'not yet'}"
    yield f"data {'done' if study.data_done else 'not yet'}"
    newer = study.results_since_report
    behind = f" ({newer} result{'s are' if newer > 1 else ' is'} newer)" if newer else ""
    yield f"report {study.report}{behind}" if study.report else "report not yet"
    if study.launcher_pid:
        yield f"launcher at work (process {study.launcher_pid})"
    elif not study.on_slurm:
        yield "no launcher at work"
    if study.on_slurm:
        running = sum(job.is_running for job in study.jobs.values())
        yield f"Slurm: {running} jobs run, {sum(job.is_waiting for job in study.jobs.values())} wait"
    if study.left_seconds is not None:
        yield f"all done in about {format_duration(study.left_seconds)}"
    elif study.eta_seconds:
        yield f"all trained in about {format_duration(study.eta_seconds)} at these rates"


def format_duration(seconds: float) -> str:
    """A time span in its two largest units: ``format_duration(3700) == "1 h 2 min"``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds // 3600:.0f} h {seconds % 3600 / 60:.0f} min"
    days = seconds / 86400
    return f"{days:.0f} days" if days < 730 else f"{days / 365.25:,.0f} years"
