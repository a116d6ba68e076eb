"""How often the intervals of a forecast hold what the runs held out did, on simulated grids whose law and threshold are
known. The table of docs/methods.md is this program's output.

    python benchmarks/forecast_coverage.py --simulations 200 --first-seed 200000
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from same_loss_coverage import asked_seeds, percent, simulated_grids

from analysis import forecast
from tokenizer import cli

REPLICATES = 300
"""Draws of runs behind each interval."""

LOSS_SD = 0.005
"""Standard deviation between runs of the logarithm of the loss."""

RUN_SD = 0.01
"""Standard deviation between runs of the score, as a share of rows."""

ROWS = 500

GRIDS = {
    "12 runs x 6": ({"3M": 3_000_000, "10M": 10_000_000, "30M": 30_000_000}, 4, 6),
    "30 runs x 6": (
        {"2M": 2_000_000, "4M": 4_000_000, "8M": 8_000_000, "16M": 16_000_000, "32M": 32_000_000, "64M": 64_000_000},
        5,
        6,
    ),
}
"""Sizes, token budgets a size, checkpoints a run."""

TRUTHS = {
    "threshold, linear": (simulated_grids.emergent(4.0, 0.25), 4.0),
    "threshold, late": (simulated_grids.emergent(3.4, 0.5), 3.4),
    "threshold, levels off": (lambda loss: 0.6 * -np.expm1(-np.maximum(0.0, 4.0 - loss) / 0.5), 4.0),
    "smooth": (simulated_grids.smooth(7.0, 0.1), np.nan),
    "chance": (simulated_grids.flat, np.nan),
    "begins beyond the fit": (simulated_grids.emergent(2.95, 0.6), 2.95),
}
"""Excess over chance as a function of loss, and the threshold; the last one lies below nearly all losses of the fit."""

HEADING = (
    "| grid | task | runs forecast | loss covered | score covered | clear of chance covered | threshold found | "
    "tokens at η covered | median width: loss | score |"
)


def simulate(seed: int, grid: str, task: str) -> tuple[pd.DataFrame, pd.Series]:
    """A table, and of each run how far its log losses lie off the law."""
    sizes, budgets, checkpoints = GRIDS[grid]
    runs = simulated_grids.runs(budgets, checkpoints, sizes)
    names = runs["run"].unique()
    off = pd.Series(np.random.default_rng([seed, 1]).normal(0, LOSS_SD, len(names)), names)
    runs["loss"] *= np.exp(runs["run"].map(off))
    return simulated_grids.table({"mmlu": TRUTHS[task][0]}, runs, ROWS, seed, RUN_SD), off


def tokens_at(eta: float, parameters: float, off: float) -> float:
    """Tokens at whose end a simulated run has the loss `eta`; inf for none."""
    room = (eta * np.exp(-off) - 1.5 - (3e6 / parameters) ** 0.25 * 1.2) / 3.0
    return 1e6 * room ** (-1 / 0.4) if room > 0 else np.inf


@dataclass(frozen=True)
class Outcome:
    """One run held out."""

    loss: bool
    score: bool
    clear: bool
    tokens: bool | None
    """None without a threshold."""
    loss_width: float
    score_width: float


def outcomes(seed: int, grid: str, task: str) -> list[Outcome]:
    """What became of the forecasts of one simulated grid."""
    table, off = simulate(seed, grid, task)
    result = forecast.forecast(table, replicates=REPLICATES, seed=seed)
    found = []
    for end, it in zip(result.losses, result.scores, strict=True):
        tokens = None
        if np.isfinite(it.eta.value):
            tokens = it.eta_tokens.low <= tokens_at(TRUTHS[task][1], end.parameters, off[end.run]) <= it.eta_tokens.high
        width = end.forecast.high - end.forecast.low, it.score.high - it.score.low
        found.append(Outcome(end.inside, it.inside, it.clear_inside, tokens, *width))
    return found


def row(grid: str, task: str, found: Sequence[Outcome]) -> str:
    """A line of the table."""
    crossed = [it.tokens for it in found if it.tokens is not None]
    shares = [percent(sum(getattr(it, name) for it in found), len(found)) for name in ("loss", "score", "clear")]
    tokens = percent(sum(crossed), len(crossed)) if crossed else "–"
    widths = [f"{np.median([getattr(it, name) for it in found]):.3f}" for name in ("loss_width", "score_width")]
    cells = [grid, task, str(len(found)), *shares, f"{100 * len(crossed) / len(found):.0f} %", tokens, *widths]
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> int | None:
    """Print the table; each line counts all runs held out of its grids, which share a fit."""
    seeds = asked_seeds("forecast_coverage", __doc__, argv, simulations=100)
    print(f"{HEADING}\n|{'---|' * (HEADING.count('|') - 1)}", flush=True)
    with cli.progress_bar() as bar:
        steps = bar.add_task("simulating", total=len(GRIDS) * len(TRUTHS) * len(seeds))
        for grid in GRIDS:
            for task in TRUTHS:
                found = []
                for seed in seeds:
                    found += outcomes(seed, grid, task)
                    bar.advance(steps)
                print(row(grid, task, found), flush=True)
    return None


if __name__ == "__main__":
    cli.run(main)
