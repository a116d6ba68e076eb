"""How far the training of a run is, read from the end of its loss.csv and its newest checkpoint.

read_progress(run, folder).tokens_per_second
"""

from __future__ import annotations

import csv
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launchers.plan import GridDirectory, read_json
from recipes.grid import Run

_LAST_ROWS = 100
"""Steps whose median rate is told."""

_TAIL_BYTES = 32 * 1024
"""What is read of loss.csv; a row is 60 to 200 bytes."""


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
    mfu: float | None = None
    """Median share of the devices' peak rate over the last steps; None where that rate is not known."""


def names_in(directory: Path) -> frozenset[str]:
    """Names of what is in a directory; none where there is no such directory."""
    try:
        return frozenset(path.name for path in directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()


def written_steps(run: Run, folder: GridDirectory) -> tuple[int, ...]:
    """The run's checkpoint steps whose checkpoints are whole, ascending."""
    there = names_in(folder.checkpoint(run.name, 0).parent)
    steps = run.settings.checkpoint_steps
    return tuple(step for step in steps if f"step_{step}" in there and folder.has_checkpoint(run.name, step))


def read_progress(run: Run, folder: GridDirectory, written: Sequence[int] | None = None) -> Progress:
    """The end of the run's loss.csv, and the held-out loss of its last checkpoint.

    Args:
        written: What `written_steps` found, where that is known.
    """
    rows = _last_rows(folder.path / run.name / "loss.csv")
    written = written_steps(run, folder) if written is None else written
    heldout = None
    if written:
        manifest = read_json(folder.checkpoint(run.name, written[-1]) / "manifest.json")
        heldout = manifest.get("losses", {}).get("heldout")
    if not rows:
        return Progress(heldout_loss=heldout)
    return Progress(
        step=int(_number(rows[-1].get("step")) or 0),
        tokens=int(_number(rows[-1].get("tokens")) or 0),
        loss=_number(rows[-1].get("train_loss")),
        heldout_loss=heldout,
        tokens_per_second=_median(rows, "tokens_per_second"),
        mfu=_median(rows, "mfu"),
    )


def _median(rows: Sequence[dict[str, str]], column: str) -> float | None:
    values = [value for row in rows if (value := _number(row.get(column)))]
    return statistics.median_high(values) if values else None


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
    lines = tail[: tail.rfind(b"\n") + 1].decode(errors="replace").splitlines()[-_LAST_ROWS:]
    names = next(csv.reader([header.decode(errors="replace")]), [])
    return [dict(zip(names, row, strict=False)) for row in csv.reader(lines) if len(row) == len(names)]


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
