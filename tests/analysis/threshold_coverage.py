"""How often the verdicts and intervals are right, on simulated grids whose truth is known. The table of
docs/methods.md is this program's output.

    python tests/analysis/threshold_coverage.py --simulations 200
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np
import simulated_grids
from simulated_grids import emergent, flat, runs, smooth

from analysis.correlation import correlations
from analysis.threshold import EMERGENT, NOT_REACHED, SMOOTH, UNDECIDED, thresholds

GRIDS = ((2, 4, 300), (4, 6, 1000), (10, 8, 2000))
"""Token budgets (x 3 sizes = runs), checkpoints a run, rows a task."""

ETA = 4.0


def shared_rows(chance, rows, seed):
    """A level off chance by what the sample of rows explains, the same for all checkpoints."""
    offset = np.random.default_rng(seed + 10_000).normal(0, np.sqrt(chance * (1 - chance) / rows))
    return lambda loss: np.full_like(loss, offset)


CASES = {
    "chance, 4 options": ("mmlu", lambda rows, seed: flat, 0.0),
    "chance, 4 options, same rows": ("mmlu", lambda rows, seed: shared_rows(0.25, rows, seed), 0.0),
    "chance, open answer": ("gsm8k", lambda rows, seed: flat, 0.0),
    "0.5 % lucky, open answer": ("gsm8k", lambda rows, seed: lambda loss: np.full_like(loss, 0.005), 0.0),
    "smooth, linear": ("hellaswag", lambda rows, seed: smooth(), 0.01),
    "smooth, linear, slow": ("hellaswag", lambda rows, seed: smooth(7.0, 0.03), 0.01),
    "smooth, exponential": ("hellaswag", lambda rows, seed: lambda loss: 0.4 * np.exp(3 - loss), 0.01),
    "emergent, linear": ("mmlu", lambda rows, seed: emergent(ETA), 0.01),
    "emergent, quadratic": ("mmlu", lambda rows, seed: emergent(ETA, 0.25, 2), 0.01),
    "emergent, linear, open": ("gsm8k", lambda rows, seed: emergent(ETA, 0.15), 0.01),
}
"""Name: task, truth by rows and seed, standard deviation between runs once risen."""


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=200, help="a case (default: %(default)s)")
    arguments = parser.parse_args()
    print("| truth | runs | rows | not reached | undecided | smooth | emergent | η covered | bias | width |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, (task, truth, run_sd) in CASES.items():
        for budgets, checkpoints, rows in GRIDS:
            shape = runs(budgets, checkpoints)
            found = [
                thresholds(
                    simulated_grids.table({task: truth(rows, seed)}, shape, rows, seed, run_sd),
                    replicates=300,
                    seed=seed,
                )[0]
                for seed in range(arguments.simulations)
            ]
            count = Counter(result.verdict for result in found)
            shares = " | ".join(
                f"{count[verdict] / len(found):.0%}" for verdict in (NOT_REACHED, UNDECIDED, SMOOTH, EMERGENT)
            )
            rising = [r for r in found if r.verdict == EMERGENT] if name.startswith("emergent") else []
            estimates = "– | – | –"
            if len(rising) >= 10:
                covered = np.mean([r.eta_low <= ETA <= r.eta_high for r in rising])
                bias = np.mean([r.eta for r in rising]) - ETA
                width = np.mean([r.eta_high - r.eta_low for r in rising])
                estimates = f"{covered:.0%} | {bias:+.2f} | {width:.2f}"
            print(f"| {name} | {3 * budgets} | {rows} | {shares} | {estimates} |", flush=True)
    print()
    print("| runs | checkpoints a run | Spearman's 95 % interval misses 0 though nothing depends on loss |")
    print("|---|---|---|")
    for budgets, checkpoints, rows in ((1, 4, 300), *GRIDS):
        shape = runs(budgets, checkpoints)
        missed = []
        for seed in range(arguments.simulations):
            result = correlations(simulated_grids.table({"mmlu": flat}, shape, rows, seed), replicates=300, seed=seed)[
                0
            ]
            missed.append(result.spearman_low > 0 or result.spearman_high < 0)
        print(f"| {3 * budgets} | {checkpoints} | {np.mean(missed):.0%} |", flush=True)


if __name__ == "__main__":
    main()
