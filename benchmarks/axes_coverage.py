"""How often the intervals of what each axis leaves unexplained hold its mean over simulated grids of one design, in
which performance follows the loss. The table of docs/methods.md is this program's output.

    python benchmarks/axes_coverage.py --simulations 300 --first-seed 200000
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from same_loss_coverage import GRIDS, REPLICATES, TRUTHS, asked_seeds, percent, simulate

from analysis import axes
from tokenizer import cli

HEADING = "| grid | task | axis | leaves unexplained | covered | more than the loss | covered | loss leaves less |"


def rows(grid: str, task: str, found: Sequence[Sequence[axes.AxisResult]]) -> list[str]:
    """A line an axis; the truth is the mean over the simulations."""
    lines = []
    for results in zip(*found, strict=True):
        share = np.mean([it.unexplained for it in results])
        held = sum(it.low <= share <= it.high for it in results)
        cells = [grid, task, axes.axis_title(results[0].axis), f"{100 * share:.1f} %", percent(held, len(results))]
        if results[0].axis == "loss":
            cells += ["–"] * 3
        else:
            more = np.mean([it.more_than_loss for it in results])
            held = sum(it.more_low <= more <= it.more_high for it in results)
            less = sum(it.more_low > 0 for it in results)
            cells += [f"{100 * more:+.1f}", percent(held, len(results)), percent(less, len(results))]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(argv: Sequence[str] | None = None) -> int | None:
    """Print the table; *loss leaves less*: how often the interval of the difference to the loss lies above 0."""
    seeds = asked_seeds("axes_coverage", __doc__, argv, simulations=500)
    print(f"{HEADING}\n|{'---|' * (HEADING.count('|') - 1)}", flush=True)
    with cli.progress_bar() as bar:
        steps = bar.add_task("simulating", total=len(GRIDS) * len(TRUTHS) * len(seeds))
        for grid, (budgets, checkpoints) in GRIDS.items():
            for task, truth in TRUTHS.items():
                found = []
                for seed in seeds:
                    table = simulate(seed, budgets, checkpoints, 0.0, truth)
                    found.append(axes.compare(table, replicates=REPLICATES, seed=seed))
                    bar.advance(steps)
                print(*rows(grid, task, found), sep="\n", flush=True)
    return None


if __name__ == "__main__":
    cli.run(main)
