"""How far each run of a grid is, read from what the steps have written; works during a launch and after it.

bash launchers/slurm_grid.sh --grid recipes/grids/smoke.yaml --status
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from launchers.directory import launcher_pid, num_checkpoints, num_results
from launchers.local import Failure, LocalExecutor, Observer, Process
from launchers.plan import GridDirectory, read_json
from recipes.grid import Grid, Run
from recipes.settings import format_count
from tokenizer import files

NOTES = "launcher.json"
"""File in the logs' directory that says what the launcher is doing; a help for `--status`, needed by no step."""

_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True)
class Progress:
    """How far the training of a run is."""

    step: int = 0
    tokens: int = 0
    loss: float | None = None
    """Training loss of the last step, nats per token."""
    heldout_loss: float | None = None
    """Held-out loss of the last checkpoint, nats per token."""
    tokens_per_second: float | None = None
    """Median of the last steps' rates."""


@dataclass(frozen=True)
class RunStatus:
    """One line of `--status`."""

    run: str
    state: str
    """waiting, running, stopped (begun, and nobody works on it), finished (trained to its end) or failed."""
    step: int
    steps: int
    tokens: int
    tokens_planned: int
    loss: float | None
    heldout_loss: float | None
    tokens_per_second: float | None
    eta_seconds: float | None
    """Time to the end of a running run at its present rate."""
    checkpoints: int
    checkpoints_planned: int
    checkpoints_evaluated: int
    error: str | None = None
    """Last error of a failed run or evaluation."""
    log: str | None = None
    """Where that error stands."""


def read_progress(run: Run, folder: GridDirectory) -> Progress:
    """The end of the run's loss.csv, and the held-out loss of its last checkpoint."""
    rows = _last_rows(folder.path / run.name / "loss.csv")
    heldout = None
    for step in reversed(run.settings.checkpoint_steps):
        if folder.has_checkpoint(run.name, step):
            manifest = read_json(folder.checkpoint(run.name, step) / "manifest.json")
            heldout = manifest.get("losses", {}).get("heldout")
            break
    if not rows:
        return Progress(heldout_loss=heldout)
    rates = sorted(rate for row in rows if (rate := _number(row.get("tokens_per_second"))))
    return Progress(
        step=int(_number(rows[-1].get("step")) or 0),
        tokens=int(_number(rows[-1].get("tokens")) or 0),
        loss=_number(rows[-1].get("train_loss")),
        heldout_loss=heldout,
        tokens_per_second=rates[len(rates) // 2] if rates else None,
    )


def _last_rows(path: Path) -> list[dict[str, str]]:
    """The last whole lines of a CSV file with a header; none where there is no file."""
    try:
        with open(path, "rb") as file:
            header = file.readline()
            start = max(len(header), file.seek(0, os.SEEK_END) - _TAIL_BYTES)
            file.seek(start)
            tail = file.read()
    except OSError:
        return []
    if start > len(header):
        tail = tail.partition(b"\n")[2]
    # A line without its end is still being written.
    lines = tail[: tail.rfind(b"\n") + 1].decode(errors="replace").splitlines()
    names = next(csv.reader([header.decode(errors="replace")]), [])
    return [dict(zip(names, row, strict=False)) for row in csv.reader(lines) if len(row) == len(names)]


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


class Notes(Observer):
    """Writes down what the launcher is doing, for `--status` in another terminal."""

    def __init__(self, folder: GridDirectory, jobs: int) -> None:
        self._path = folder.logs / NOTES
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
        """Nothing to note."""

    def _write(self) -> None:
        # A full disk is the steps' to report; no run ends for want of a note.
        with contextlib.suppress(OSError):
            files.write_json(self._path, self._value)


def read_status(grid: Grid, folder: GridDirectory) -> list[RunStatus]:
    """The state of every run of the grid."""
    notes = read_json(folder.logs / NOTES)
    at_work = launcher_pid(folder) is not None
    running = notes.get("running", {}) if at_work else {}
    failed = notes.get("failed", {})
    return [_run_status(run, folder, running, failed) for run in grid.runs]


def _run_status(run: Run, folder: GridDirectory, running: dict, failed: dict) -> RunStatus:
    settings = run.settings
    progress = read_progress(run, folder)
    written = num_checkpoints(run, folder)
    failures = [entry for entry in failed.values() if entry.get("run") == run.name]
    evaluated = num_results([run], folder)
    if folder.has_checkpoint(run.name, settings.checkpoint_steps[-1]):
        state = "finished"
        if evaluated == len(settings.checkpoint_steps):
            failures = []
    elif f"train {run.name}" in running:
        state = "running"
    elif f"train {run.name}" in failed:
        state = "failed"
    elif progress.step or written:
        state = "stopped"
    else:
        state = "waiting"
    planned = settings.num_steps * settings.tokens_per_step
    rate = progress.tokens_per_second
    return RunStatus(
        run=run.name,
        state=state,
        step=settings.num_steps if state == "finished" else progress.step,
        steps=settings.num_steps,
        tokens=planned if state == "finished" else progress.tokens,
        tokens_planned=planned,
        loss=progress.loss,
        heldout_loss=progress.heldout_loss,
        tokens_per_second=rate,
        eta_seconds=(planned - progress.tokens) / rate if state == "running" and rate else None,
        checkpoints=written,
        checkpoints_planned=len(settings.checkpoint_steps),
        checkpoints_evaluated=evaluated,
        error=failures[-1]["message"] if failures else None,
        log=failures[-1]["log"] if failures else None,
    )


_COLOURS = {"running": "cyan", "finished": "green", "failed": "red", "stopped": "yellow"}


def status_table(grid: Grid, folder: GridDirectory) -> Table:
    """What `--status` prints."""
    pid = launcher_pid(folder)
    shared = [
        f"tokenizer {'done' if folder.tokenizer_is_done() else 'not yet'}",
        f"data {'done' if folder.data_are_done() else 'not yet'}",
        f"report {folder.report_page if folder.report_page.is_file() else 'not yet'}",
        f"launcher at work (process {pid})" if pid else "no launcher at work",
    ]
    table = Table(title=f"{grid.name} in {folder.path}", title_justify="left", caption=" · ".join(shared))
    table.caption_justify = "left"
    headings = ("run", "state", "step", "tokens", "loss", "held-out", "tokens/s", "ETA", "checkpoints", "evaluated")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("run", "state") else "right")
    for line in read_status(grid, folder):
        colour = _COLOURS.get(line.state)
        table.add_row(
            escape(line.run),
            f"[{colour}]{line.state}[/]" if colour else line.state,
            f"{line.step:,} of {line.steps:,}",
            f"{format_count(line.tokens)} of {format_count(line.tokens_planned)}",
            "" if line.loss is None else f"{line.loss:.4f}",
            "" if line.heldout_loss is None else f"{line.heldout_loss:.4f}",
            "" if line.tokens_per_second is None else f"{line.tokens_per_second:,.0f}",
            "" if line.eta_seconds is None else format_duration(line.eta_seconds),
            f"{line.checkpoints} of {line.checkpoints_planned}",
            f"{line.checkpoints_evaluated} of {line.checkpoints_planned}",
        )
    return table


def status_value(grid: Grid, folder: GridDirectory) -> dict[str, Any]:
    """What `--status --json` prints."""
    return {
        "grid": grid.name,
        "path": str(folder.path),
        "launcher_pid": launcher_pid(folder),
        "tokenizer_done": folder.tokenizer_is_done(),
        "data_done": folder.data_are_done(),
        "report": str(folder.report_page) if folder.report_page.is_file() else None,
        "failed": read_json(folder.logs / NOTES).get("failed", {}),
        "runs": [dataclasses.asdict(line) for line in read_status(grid, folder)],
    }


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
