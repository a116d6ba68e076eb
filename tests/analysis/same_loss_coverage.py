"""How often the interval of the largest difference between sizes covers the truth, on simulated grids of three sizes of
which the largest scores 0 or 5 points more at every loss. Prints the table of docs/methods.md.

    python tests/analysis/same_loss_coverage.py --simulations 60
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np
import pandas as pd
import simulated_grids

from analysis import same_loss

RUN_SD = 0.01
ROWS = 2000
GRIDS = {"9 runs x 6": (3, 6), "15 runs x 12": (5, 12), "30 runs x 12": (10, 12)}
TRUTHS = {"smooth": simulated_grids.smooth(6.5, 0.1), "emergent": simulated_grids.emergent(4.0, 0.25)}


def simulate(seed: int, budgets: int, checkpoints: int, difference: float, truth) -> pd.DataFrame:
    """A table in which runs differ by `RUN_SD` where there is an ability, and the largest size by `difference`."""
    generator = np.random.default_rng(seed)
    results = simulated_grids.table({"mmlu": truth}, simulated_grids.runs(budgets, checkpoints), rows=ROWS, seed=seed)
    excess = truth(results["loss"].to_numpy())
    _, run = np.unique(results["run"], return_inverse=True)
    effect = generator.normal(0, RUN_SD, run.max() + 1)[run] * (excess > 0)
    share = np.clip(0.25 + excess + effect + difference * (results["size"] == "30M"), 0, 1)
    value = generator.binomial(ROWS, share) / ROWS
    return results.assign(value=value, stderr=np.sqrt(value * (1 - value) / ROWS))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=60, help="of each line (default: %(default)s)")
    arguments = parser.parse_args()
    print("| grid | task | difference | covered | called different | median of the largest found | of its upper end |")
    print("|---|---|---|---|---|---|---|")
    for grid, (budgets, checkpoints) in GRIDS.items():
        for name, truth in TRUTHS.items():
            for difference in (0.0, 0.05):
                results = [
                    same_loss.compare(simulate(seed, budgets, checkpoints, difference, truth), replicates=400)[0]
                    for seed in range(arguments.simulations)
                ]
                covered = np.mean([r.largest_low <= difference <= r.largest_high for r in results])
                verdicts = Counter(r.verdict for r in results)
                largest, high = (
                    np.median([getattr(r, field) for r in results]) for field in ("largest", "largest_high")
                )
                called = verdicts[same_loss.DIFFERENT] / len(results)
                print(
                    f"| {grid} | {name} | {difference:.2f} | {100 * covered:.0f} % | {100 * called:.0f} % | "
                    f"{largest:.3f} | {high:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
