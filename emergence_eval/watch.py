"""The checkpoints of a training run as they appear.

A checkpoint gets its name and its manifest in one step (`recipes.saving`), so that one that is listed is whole. The
run has ended when its last checkpoint is there: the manifest says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from emergence_eval.sharding import Processes
from recipes.checkpoint import CHECKPOINTS, list_steps, read_manifest, step_directory
from tokenizer.cli import UserError

POLL_SECONDS = 10.0


def new_checkpoints(
    run: Path, processes: Processes, waiting: Callable[[str], None], sleep: Callable[[float], None] = time.sleep
) -> Iterator[list[Path]]:
    """Directories that have appeared since the last time, ascending by step, until the run's last one is among them.

    The first process looks for all of them, which ask for the next at the same time. Raises UserError if `run` can
    be no run's directory: nothing is there, nor the directory above.
    """
    if not run.is_dir() and not run.resolve().parent.is_dir():
        raise UserError(f"--watch {run}: there is no {run.resolve().parent}; give a run's directory, such as OUT/RUN")
    if (run / "manifest.json").is_file() or run.name == CHECKPOINTS:
        raise UserError(f"--watch {run} is no run's directory; give the one above {CHECKPOINTS}/")
    seen: set[int] = set()
    ended = False
    while not ended:
        steps = processes.of_first([step for step in list_steps(run) if step not in seen] if processes.first else None)
        if not steps:
            last = f"the one after step {max(seen)}" if seen else "its first checkpoint"
            waiting(f"{run.resolve().name}: waiting for {last}")
            sleep(POLL_SECONDS)
            continue
        seen |= set(steps)
        directories = [step_directory(run, step) for step in steps]
        ended = any(read_manifest(directory).final for directory in directories)
        yield directories
