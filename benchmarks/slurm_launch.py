"""How long a launch of a grid on Slurm takes: the command itself, and a rerun that finds everything in the queue.

Needs Slurm's programs, not a cluster: it starts one of its own, of eight nodes on this machine, where nothing is
trained (the jobs wait for nodes that are taken).

    python benchmarks/slurm_launch.py --grid paper
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from recipes.grid import load_grid
from tokenizer import cli

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "launchers" / "slurm")]

from played_study import PlayedStudy  # noqa: E402
from slurm_cluster import Slurm  # noqa: E402

EVALUATION = "evaluation:\n  tasks: [hellaswag]\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", default="paper", help="a grid file, or the name of a shipped grid (default: paper)")
    parser.add_argument("--cluster", default="dgx-h100", help="a cluster file, or the name of one (default: dgx-h100)")
    parser.add_argument("--launches", type=int, default=3, help="how often it is measured (default: 3)")
    arguments = parser.parse_args(argv)
    grid = load_grid(arguments.grid)
    text = grid.path.read_text(encoding="utf-8").replace("evaluation:\n", EVALUATION)
    with Slurm() as slurm, tempfile.TemporaryDirectory() as directory:
        for number in range(arguments.launches):
            slurm.clear()
            slurm.submit("--partition=high", "--nodes=8", "--exclusive", "--wrap", "sleep 3600")
            study = PlayedStudy(slurm, Path(directory) / str(number), text, top={"like": arguments.cluster}, room=True)
            for what in ("launch", "rerun"):
                started = time.perf_counter()
                study.launch("--days", "365")
                seconds = time.perf_counter() - started
                print(
                    f"{what} of {grid.name}: {len(grid.runs)} runs, {len(study.checkpoints())} checkpoints, "
                    f"{len(study.jobs())} jobs in the queue: {seconds:.2f} s"
                )
    return 0


if __name__ == "__main__":
    cli.run(main)
