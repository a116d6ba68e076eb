"""What can be known to go wrong is found before anything is started.

check_before_start(grid, runs, folder, inputs, jobs)
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emergence_eval.definitions import ALL, TaskDefinition, load
from launchers.directory import check_sources, check_unchanged, is_finished, num_checkpoints
from launchers.disk import kept_bytes, meanwhile_bytes
from launchers.estimate import MEMORY_PER_PARAMETER
from launchers.plan import GridDirectory, Inputs
from recipes import layout
from recipes.checkpoint import MANIFEST, RESUME
from recipes.grid import Grid, Run
from recipes.index_cache import BYTES_PER_SEQUENCE
from tokenizer.cli import UserError

SPARE_DISK_BYTES = 200 * 2**20
"""Free space asked for beside checkpoints and data: logs, results, the report."""

DATA_BYTES_PER_FILE_BYTE = 4
"""Encoded documents against a compressed corpus: about 4 bytes of text a byte, 2 bytes an id, 2 or more bytes of
text an id."""


def tasks_of(grid: Grid, inputs: Inputs) -> list[TaskDefinition]:
    """The tasks that the grid's checkpoints are evaluated on, without the optional ones that have no files in
    `inputs.benchmarks`; UserError for a name that is none, or that a world has no files for."""
    try:
        # A world has files for all of the paper's tasks once it is made.
        tasks = load(grid.evaluation.tasks or (ALL,), None if inputs.world else inputs.benchmarks)
    except UserError as error:
        raise UserError(f"{grid.path}: evaluation: {error}") from None
    if inputs.world is not None:
        made = {task.reader.name for task in load((ALL,))}
        if foreign := [task.name for task in tasks if task.reader.name not in made]:
            raise UserError(
                f"{grid.path}: evaluation: a microworld has no files for {', '.join(foreign)}; leave it out, or give "
                "--corpus and --benchmarks"
            )
    return tasks


def check_before_start(
    grid: Grid,
    runs: Sequence[Run],
    folder: GridDirectory,
    inputs: Inputs,
    jobs: int,
) -> dict[str, Any]:
    """Raise UserError for what would stop the launch later; the description of the documents otherwise.

    Args:
        runs: The runs that are to be trained.
        jobs: Runs side by side.
    """
    sources = check_inputs(grid, folder, inputs)
    check_machine(runs, folder, sources["bytes"], jobs)
    return sources


def check_inputs(grid: Grid, folder: GridDirectory, inputs: Inputs) -> dict[str, Any]:
    """Raise UserError for documents, benchmarks or an output directory that do not do; the description of the documents
    otherwise."""
    _check_there(inputs)
    tasks = tasks_of(grid, inputs)
    if inputs.world is None:
        for task in tasks:
            task.task_hash(inputs.benchmarks)
    _check_writable(folder.path)
    check_unchanged(grid, folder)
    return check_sources(inputs, folder)


def _check_there(inputs: Inputs) -> None:
    if inputs.corpus is None:
        raise UserError("--corpus is missing; give a directory of documents (JSON lines, Parquet or text files)")
    if inputs.benchmarks is None:
        raise UserError(
            "--benchmarks is missing; give the directory that holds the benchmarks' files (hellaswag/, ...)"
        )
    if inputs.world is None and not inputs.benchmarks.is_dir():
        raise UserError(
            f"{inputs.benchmarks}: no such directory; --benchmarks takes the directory with the benchmarks' files"
        )


def check_machine(runs: Sequence[Run], folder: GridDirectory, corpus_bytes: int, jobs: int) -> None:
    """Raise UserError if cores or GPUs, memory or disk are too few for what is still to be trained."""
    left = [run for run in runs if not is_finished(run, folder)]
    _check_processes(left, jobs)
    _check_memory(left, jobs)
    check_disk(runs, folder, corpus_bytes, jobs)


def needed_disk_bytes(runs: Sequence[Run], folder: GridDirectory, corpus_bytes: int, at_once: int | None = None) -> int:
    """Free space that `runs` need at the fullest moment: checkpoints, states to resume from, the index of the data, and
    the data if they are not there.

    Args:
        corpus_bytes: Size of the documents on disk.
        at_once: How many runs train side by side; None for all.
    """
    left = {run.name: len(run.settings.checkpoint_steps) - num_checkpoints(run, folder) for run in runs}
    kept = sum(kept_bytes(run, left[run.name]) for run in runs)
    meanwhile = [meanwhile_bytes(run, left[run.name], _num_resume_states(run, folder)) for run in runs]
    sequences = sum(run.settings.num_steps * run.settings.global_batch_size for run in runs)
    index = 0 if folder.index_is_done(runs) else BYTES_PER_SEQUENCE * sequences
    data = 0 if folder.data_are_done() else DATA_BYTES_PER_FILE_BYTE * corpus_bytes
    return kept + sum(sorted(meanwhile, reverse=True)[:at_once]) + index + data


def _num_resume_states(run: Run, folder: GridDirectory) -> int:
    return len(list((folder.path / run.name / RESUME).glob(f"step_*/{MANIFEST}")))


def existing_parent(path: Path) -> Path:
    """`path`, or the nearest directory above it that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _check_writable(path: Path) -> None:
    parent = existing_parent(path)
    if not parent.is_dir():
        raise UserError(f"{parent} is a file; give --out a directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{parent} is not writable; give another --out")


def _check_processes(runs: Sequence[Run], jobs: int) -> None:
    for run in runs:
        if (need := layout.model_parallel_size(run.settings)) > jobs:
            raise UserError(
                f"{run.name} trains in {need} processes, and {jobs} are to run side by side; raise --jobs, lower the "
                "run's tensor_parallel, pipeline_parallel or context_parallel, or pick other runs with --runs"
            )


def _check_memory(runs: Sequence[Run], jobs: int) -> None:
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    largest = sorted(runs, key=lambda run: run.settings.parameters, reverse=True)[:jobs]
    need = sum(run.settings.parameters * MEMORY_PER_PARAMETER for run in largest)
    if need > have:
        raise UserError(
            f"{', '.join(run.name for run in largest)} side by side need {need / 2**30:,.0f} GiB of memory without "
            f"activations, this machine has {have / 2**30:,.0f}; lower --jobs, or pick smaller runs with --runs"
        )


def check_disk(runs: Sequence[Run], folder: GridDirectory, corpus_bytes: int, at_once: int | None = None) -> None:
    """Raise UserError if the file system has less free than `needed_disk_bytes`."""
    need = needed_disk_bytes(runs, folder, corpus_bytes, at_once) + SPARE_DISK_BYTES
    parent = existing_parent(folder.path)
    free = shutil.disk_usage(parent).free
    if need > free:
        raise UserError(
            f"{parent} has {free / 2**30:,.1f} GiB free and {need / 2**30:,.1f} GiB are to be written; "
            "free some, or give an --out on another disk"
        )
