"""Plan every run of a grid on 8 to 2048 GPUs: days of each, what has no plan and why, and how long planning takes.

python benchmarks/plan_grid.py --grid paper --cluster dgx-a100
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from recipes.cluster import load_cluster
from recipes.grid import load_grid
from recipes.planner import plan_run
from recipes.refusals import NoPlanError
from tokenizer import cli

GPUS = tuple(2**power for power in range(3, 12))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", default="paper", help="a grid file, or the name of a shipped grid (default: paper)")
    parser.add_argument("--cluster", default="dgx-a100", help="a cluster file, or the name of one (default: dgx-a100)")
    arguments = parser.parse_args(argv)
    grid, cluster = load_grid(arguments.grid), load_cluster(arguments.cluster)
    shown = Table(title=f"{grid.name} on {cluster.name}: days by number of GPUs", title_justify="left")
    for heading in ("run", *map(str, GPUS)):
        shown.add_column(heading, justify="left" if heading == "run" else "right")
    seconds, refused = [], []
    with cli.progress_bar() as bar:
        task = bar.add_task("planning", total=len(grid.runs) * len(GPUS))
        for run in grid.runs:
            days = []
            for gpus in GPUS:
                started = time.process_time()
                try:
                    days.append(f"{plan_run(run, cluster, gpus).days:.3g}")
                except NoPlanError as error:
                    days.append("-")
                    refused.append(str(error))
                seconds.append(time.process_time() - started)
                bar.advance(task)
            shown.add_row(run.name, *days)
    Console(width=120).print(shown)
    print(*refused, sep="\n", end="\n" if refused else "")
    print(
        f"{len(seconds) - len(refused)} of {len(seconds)} plans; processor time of a plan: "
        f"median {statistics.median(seconds):.2f} s, longest {max(seconds):.2f} s"
    )
    return 0


if __name__ == "__main__":
    cli.run(main)
