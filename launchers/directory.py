"""One grid's directory: who may work in it, and from what it was made.

Two locks guard it. The launcher's own says that a launcher is at work; the steps' is inherited by every process
of every step and is free only when the last of them has ended, so that a launcher that takes over from a killed
one never meets a process that still writes.

    with locked(folder) as lock: ...
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from launchers.plan import GridDirectory, Inputs, read_json
from recipes.grid import Grid, Run, load_grid
from tokenizer import files
from tokenizer.cli import UserError
from tokenizer.documents import find_inputs

LAUNCHER_LOCK = "launcher.lock"
"""File in the logs' directory that a running launcher holds; it contains its process id."""

STEPS_LOCK = "steps.lock"
"""File in the logs' directory that the processes of the steps hold."""

SOURCES = "sources.json"
"""File in the logs' directory that says from which corpus, or as which world, the data were made."""

LAYOUT = frozenset({"tensor_parallel", "pipeline_parallel", "distributed_optimizer", "micro_batch_size"})
"""Settings that a run which has begun may change: they say where it is computed, not what."""

TAKE_OVER_SECONDS = 30.0
"""How long a launcher waits for the processes of a killed one to end."""


@contextlib.contextmanager
def locked(folder: GridDirectory, patience: float = 1.0) -> Iterator[int]:
    """Hold the directory; yields the descriptor that the processes of the steps must inherit. Another launcher is given
    `patience` seconds to end: `launcher_pid` looks at the lock for a moment, the keeper holds it for some seconds.

    Raises UserError when another launcher, or a process that one left, is at work in it.
    """
    folder.logs.mkdir(parents=True, exist_ok=True)
    with _open(folder.logs / LAUNCHER_LOCK) as own, _open(folder.logs / STEPS_LOCK) as steps:
        if not _take(own, seconds=patience):
            pid = own.read().strip() or "unknown"
            raise UserError(
                f"another launcher (process {pid}) is at work in {folder.path}; "
                f"watch it with --status, or stop it with: kill {pid}"
            )
        own.seek(0)
        own.truncate()
        own.write(f"{os.getpid()}\n")
        own.flush()
        if not _take(steps, TAKE_OVER_SECONDS):
            raise UserError(
                f"processes of an earlier launcher still work in {folder.path}; "
                f"find them with `fuser {folder.logs / STEPS_LOCK}`, end them and run this again"
            )
        yield steps.fileno()


def launcher_pid(folder: GridDirectory) -> int | None:
    """Process id of the launcher that is at work in the directory, if there is one."""
    path = folder.logs / LAUNCHER_LOCK
    if not path.is_file():
        return None
    with open(path, encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = file.read().strip()
            return int(text) if text.isdigit() else None
    return None


def _open(path: Path) -> TextIO:
    return open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="ascii")


def _take(file: TextIO, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)


def write_grid(grid: Grid, folder: GridDirectory) -> None:
    """Keep a copy of the grid file, so that a change of the file does not reach runs that wait."""
    text = grid.path.read_text(encoding="utf-8")
    files.write_text(folder.grid_file, text)
    if load_grid(folder.grid_file).name != grid.name:
        files.write_text(folder.grid_file, f"name: {grid.name}\n{text}")


def check_unchanged(grid: Grid, folder: GridDirectory) -> None:
    """Raise UserError where the grid contradicts what the directory was made with.

    Runs may be added or left out, and the settings of runs that have not begun may change.
    """
    if not folder.grid_file.is_file():
        return
    before = load_grid(folder.grid_file)
    if folder.tokenizer_is_done():
        _check_equal("tokenizer", before.tokenizer, grid.tokenizer, grid, folder, begun=folder.tokenizer)
    known = {run.name: run for run in before.runs}
    for run in grid.runs:
        path = folder.path / run.name
        if run.name in known and path.is_dir() and any(path.iterdir()):
            _check_equal(f"run {run.name}", known[run.name].settings, run.settings, grid, folder, begun=path)
    results = [folder.result(run.name, step) for run in before.runs for step in run.settings.checkpoint_steps]
    if begun := next((path for path in results if path.is_file()), None):
        _check_equal("evaluation", before.evaluation, grid.evaluation, grid, folder, begun=begun)


def _check_equal(what: str, before: Any, after: Any, grid: Grid, folder: GridDirectory, begun: Path) -> None:
    for item in dataclasses.fields(before):
        old, new = getattr(before, item.name), getattr(after, item.name)
        if old != new and item.name not in LAYOUT:
            raise UserError(
                f"{grid.path}: {what}: {item.name} is {_plain(new)}, but {begun} was made with {_plain(old)}; "
                f"set it back (the grid as launched is {folder.grid_file}), or give another --out"
            )


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) or "empty" if isinstance(value, tuple) else str(value)


def choose_inputs(
    grid: Grid, folder: GridDirectory, corpus: Path | str | None = None, benchmarks: Path | str | None = None
) -> Inputs:
    """The user's documents and benchmarks, as given here or to the last launch in the directory; where there are none,
    the grid's own world, if it has one."""
    before = read_sources(folder)
    corpus, benchmarks = corpus or before.get("corpus"), benchmarks or before.get("benchmarks")
    if grid.microworld is not None and not corpus and not benchmarks:
        return Inputs(folder.world / "corpus", folder.world / "benchmarks", grid.microworld)
    return Inputs(*(Path(path).resolve() if path else None for path in (corpus, benchmarks)))


def documents_bytes(inputs: Inputs) -> int | None:
    """Size of the documents, of a world that of its text; None where none are given."""
    if inputs.world is not None:
        return round(inputs.world.megabytes * 1e6)
    return sum(item.bytes for item in find_inputs(inputs.corpus)) if inputs.corpus else None


def check_sources(inputs: Inputs, folder: GridDirectory) -> dict[str, Any]:
    """What the data are made from: the user's documents by names and sizes of their files, or a world by its settings;
    UserError where the data that are there were made from something else."""
    if inputs.world is not None:
        sources = {"microworld": inputs.world.identity(), "bytes": documents_bytes(inputs)}
    else:
        sources = {**_corpus(inputs.corpus), "benchmarks": str(inputs.benchmarks)}
    _check_same_sources(sources, folder)
    return sources


def _corpus(corpus: Path) -> dict[str, Any]:
    inputs = [
        (str(path.relative_to(corpus) if corpus.is_dir() else path.name), path.stat().st_size)
        for item in find_inputs(corpus)
        for path in item.files()
    ]
    size = sum(bytes_ for _, bytes_ in inputs)
    if size == 0:
        raise UserError(f"{corpus}: its {len(inputs)} document files are all empty; --corpus needs documents")
    return {
        "corpus": str(corpus),
        "bytes": size,
        "names_and_sizes_sha256": hashlib.sha256(repr(sorted(inputs)).encode()).hexdigest(),
    }


def _check_same_sources(sources: dict[str, Any], folder: GridDirectory) -> None:
    before = read_sources(folder)
    same = all(before.get(key) == sources.get(key) for key in ("names_and_sizes_sha256", "microworld"))
    if before and not same and folder.tokenizer_is_done():
        raise UserError(
            f"{folder.path} was made from {_described(before)}, which is not {_described(sources)} "
            "(documents are known by the names and sizes of their files); go on with the former, or give another --out"
        )


def _described(sources: dict[str, Any]) -> str:
    if world := sources.get("microworld"):
        return f"the microworld {', '.join(f'{key} {value}' for key, value in world.items())}"
    return f"{sources.get('corpus')} with {sources.get('bytes'):,} bytes of documents"


def write_sources(sources: dict[str, Any], folder: GridDirectory) -> None:
    """Keep what `check_sources` returned."""
    files.write_json(folder.logs / SOURCES, sources)


def read_sources(folder: GridDirectory) -> dict[str, Any]:
    """What the last launch was made from: `corpus` and `benchmarks` are paths, a world has neither; empty before the
    first."""
    return read_json(folder.logs / SOURCES)


def is_finished(run: Run, folder: GridDirectory) -> bool:
    """Whether the run's last checkpoint is there."""
    return folder.has_checkpoint(run.name, run.settings.checkpoint_steps[-1])


def num_checkpoints(run: Run, folder: GridDirectory) -> int:
    """How many of the run's checkpoints are whole."""
    return sum(folder.has_checkpoint(run.name, step) for step in run.settings.checkpoint_steps)


def num_results(runs: Sequence[Run], folder: GridDirectory) -> int:
    """How many of the runs' checkpoints are evaluated."""
    return sum(folder.result(run.name, step).is_file() for run in runs for step in run.settings.checkpoint_steps)
