"""How often the interval of the largest difference between sizes covers the truth, on simulated grids of three sizes of
which the largest scores 0 or 5 points more at every loss. The table of docs/methods.md is this program's output.

    python benchmarks/same_loss_coverage.py --simulations 1000 --first-seed 200000
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

# The simulated grids are those of the tests, which are no package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "analysis"))
import simulated_grids

from analysis import same_loss
from tokenizer import cli

RUN_SD = 0.01
"""Standard deviation between runs, as a share of rows."""

ROWS = 2000
"""Rows behind each score."""

REPLICATES = 400
"""Draws of runs behind each interval."""

GRIDS = {"9 runs x 6": (3, 6), "15 runs x 12": (5, 12), "30 runs x 12": (10, 12)}
"""Runs and checkpoints of each -> token budgets a size, checkpoints a run."""

TRUTHS = {"smooth": simulated_grids.smooth(6.5, 0.1), "emergent": simulated_grids.emergent(4.0, 0.25)}

DIFFERENCES = (0.0, 0.05)
"""By which share of rows the largest size is better."""

HEADING = "| grid | task | difference | covered | called different | median of the largest found | of its upper end |"


def simulate(
    seed: int, budgets: int, checkpoints: int, difference: float, truth: Callable[[np.ndarray], np.ndarray]
) -> pd.DataFrame:
    """A table in which runs differ by `RUN_SD` where there is an ability, and the largest size by `difference`."""
    generator = np.random.default_rng(seed)
    results = simulated_grids.table({"mmlu": truth}, simulated_grids.runs(budgets, checkpoints), rows=ROWS, seed=seed)
    excess = truth(results["loss"].to_numpy())
    _, run = np.unique(results["run"], return_inverse=True)
    effect = generator.normal(0, RUN_SD, run.max() + 1)[run] * (excess > 0)
    share = np.clip(0.25 + excess + effect + difference * (results["size"] == "30M"), 0, 1)
    value = generator.binomial(ROWS, share) / ROWS
    return results.assign(value=value, stderr=np.sqrt(value * (1 - value) / ROWS))


def percent(hits: int, trials: int) -> str:
    """A share in per cent with its binomial standard error: ``95.0 ± 1.5 %``."""
    share = hits / trials
    return f"{100 * share:.1f} ± {100 * np.sqrt(share * (1 - share) / trials):.1f} %"


def row(grid: str, task: str, difference: float, results: Sequence[same_loss.SameLoss]) -> str:
    """A line of the table."""
    covered = sum(it.largest_low <= difference <= it.largest_high for it in results)
    different = Counter(it.verdict for it in results)[same_loss.DIFFERENT]
    largest, high = (np.median([getattr(it, name) for it in results]) for name in ("largest", "largest_high"))
    shares = f"{percent(covered, len(results))} | {percent(different, len(results))}"
    return f"| {grid} | {task} | {difference:.2f} | {shares} | {largest:.3f} | {high:.3f} |"


def asked_seeds(name: str, description: str, argv: Sequence[str] | None, simulations: int) -> range:
    """The seeds that a command line asks for; `simulations` of them by default."""
    parser = argparse.ArgumentParser(
        prog=f"python benchmarks/{name}.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--simulations", type=int, default=simulations, help="per line (default: %(default)s)")
    parser.add_argument("--first-seed", type=int, default=0, help="other numbers, other noise (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.simulations < 1:
        raise cli.UserError("--simulations is at least 1")
    return range(arguments.first_seed, arguments.first_seed + arguments.simulations)


def main(argv: Sequence[str] | None = None) -> int | None:
    """Print the table."""
    seeds = asked_seeds("same_loss_coverage", __doc__, argv, simulations=200)
    print(f"{HEADING}\n|{'---|' * (HEADING.count('|') - 1)}", flush=True)
    with cli.progress_bar() as bar:
        steps = bar.add_task("simulating", total=len(GRIDS) * len(TRUTHS) * len(DIFFERENCES) * len(seeds))
        for grid, (budgets, checkpoints) in GRIDS.items():
            for task, truth in TRUTHS.items():
                for difference in DIFFERENCES:
                    results = []
                    for seed in seeds:
                        table = simulate(seed, budgets, checkpoints, difference, truth)
                        results += same_loss.compare(table, replicates=REPLICATES)
                        bar.advance(steps)
                    print(row(grid, task, difference, results), flush=True)
    return None


if __name__ == "__main__":
    cli.run(main)
