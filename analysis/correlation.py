"""Correlation of performance with pre-training loss, task by task, with intervals from a bootstrap over runs.

python -m analysis.correlation results.csv
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources

import numpy as np
import pandas as pd

from analysis import bootstrap, mapping, problems
from analysis.names import in_order, task_title
from analysis.table import run_ids
from tokenizer import cli


@dataclass(frozen=True)
class Correlation:
    """Correlation of loss with performance on one task under one metric; -1 is the paper's expectation.

    Performance is the metric, with its sign turned where lower is better. NaN where it cannot be computed,
    with the cause in `reason`.
    """

    task: str
    metric: str
    num_runs: int
    num_checkpoints: int
    spearman: float
    spearman_low: float
    spearman_high: float
    pearson: float
    pearson_low: float
    pearson_high: float
    reason: str


@dataclass(frozen=True)
class Reference:
    """What Du et al. 2024 published for one task; `threshold` is NaN where they saw none."""

    spearman: float
    pearson: float
    threshold: float


def correlations(
    table: pd.DataFrame, *, loss: str = "loss", replicates: int = bootstrap.REPLICATES, seed: int = 0
) -> list[Correlation]:
    """Spearman's and Pearson's correlation with the column `loss`, for each task and metric of a results table.

    Intervals are 95 % percentile intervals over `replicates` draws of whole runs.
    """
    return [
        _correlation(task, metric, rows, loss, replicates, seed)
        for task in in_order(table["task"])
        for metric, rows in table[table["task"] == task].groupby("metric")
    ]


def as_table(results: Sequence[Correlation]) -> pd.DataFrame:
    """One row per task and metric, with the published values beside ours (NaN where there are none)."""
    published = reference()
    table = pd.DataFrame([asdict(result) for result in results])
    for name in ("spearman", "pearson"):
        table[f"{name}_du2024"] = [
            getattr(published[result.task], name) if result.task in published else np.nan for result in results
        ]
    return table


def reference() -> dict[str, Reference]:
    """Task -> the numbers of Du et al. 2024 (arXiv 2403.15796v3, Table 2 and section 3.1)."""
    text = (resources.files("analysis") / "reference" / "du2024.csv").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {
        row["task"]: Reference(float(row["spearman"]), float(row["pearson"]), float(row["threshold"] or "nan"))
        for row in csv.DictReader(lines)
    }


def drawn_correlations(
    x: np.ndarray, y: np.ndarray, run: np.ndarray, draws: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Spearman's and Pearson's correlation for each row of `draws` (b, runs), how often each run counts.

    x, y (n,), run (n,) codes from 0. Equal to the correlations of the sample written out with its
    repetitions, but all sums over checkpoints are first taken within runs, so that products of matrices remain.
    """
    num_runs = draws.shape[1]
    member = np.eye(num_runs)[run]
    x, y = x - x.mean(), y - y.mean()
    moments = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)
    count, sx, sy, sxx, syy, sxy = (draws @ (member.T @ moments)).T
    pearson = _ratio(sxy - sx * sy / count, sxx - sx**2 / count, syy - sy**2 / count, sxx, syy)
    below_x, below_y = _counts_below(x, member), _counts_below(y, member)
    spearman = np.empty(len(draws))
    rows = max(1, _ELEMENTS // len(x))
    for begin in range(0, len(draws), rows):
        part = slice(begin, begin + rows)
        weights, middle = draws[part], count[part, None] / 2
        ranks_x, ranks_y, each = weights @ below_x - middle, weights @ below_y - middle, weights[:, run]
        weighted_x = each * ranks_x
        products = [
            np.einsum("bn,bn->b", weighted, ranks)
            for weighted, ranks in ((weighted_x, ranks_y), (weighted_x, ranks_x), (each * ranks_y, ranks_y))
        ]
        spearman[part] = _ratio(*products, *[count[part] ** 3] * 2)
    return spearman, pearson


_ELEMENTS = 200_000
"""Draws times checkpoints held in memory at once."""


def _counts_below(values: np.ndarray, member: np.ndarray) -> np.ndarray:
    """For each run and checkpoint how many of the run's values are smaller, equal ones as a half: (runs, n)."""
    order = np.argsort(values, kind="stable")
    cumulative = np.concatenate([np.zeros((1, member.shape[1])), np.cumsum(member[order], axis=0)])
    first = np.searchsorted(values[order], values, side="left")
    last = np.searchsorted(values[order], values, side="right")
    return ((cumulative[first] + cumulative[last]) / 2).T


def _ratio(sxy: np.ndarray, sxx: np.ndarray, syy: np.ndarray, scale_x: np.ndarray, scale_y: np.ndarray) -> np.ndarray:
    """sxy / sqrt(sxx syy), NaN where one of them is nothing but rounding of its scale."""
    constant = (sxx <= 1e-12 * scale_x) | (syy <= 1e-12 * scale_y)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(constant, np.nan, np.clip(sxy / np.sqrt(sxx * syy), -1, 1))


def _correlation(task: str, metric: str, rows: pd.DataFrame, loss: str, replicates: int, seed: int) -> Correlation:
    run, run_index = np.unique(run_ids(rows).to_numpy(dtype=str), return_inverse=True)
    x = rows[loss].to_numpy(dtype=float)
    y = rows["value"].to_numpy(dtype=float) * np.where(rows["higher_is_better"], 1, -1)
    reason = problems.incomparable(rows)
    if len(run) < bootstrap.MINIMUM_RUNS:
        reason = f"{len(run)} run{'s' * (len(run) != 1)} with this task; at least {bootstrap.MINIMUM_RUNS} are needed"
    elif not np.isfinite(x).all():
        reason = f"{loss} is empty at {int((~np.isfinite(x)).sum())} of {len(x)} checkpoints"
    elif np.ptp(x) == 0:
        reason = f"the loss is {x[0]:g} at every checkpoint"
    elif np.ptp(y) == 0:
        reason = f"performance is {abs(y[0]):g} at every checkpoint"
    if reason:
        return Correlation(task, metric, len(run), len(x), *[float("nan")] * 6, reason)
    draws = bootstrap.multiplicities(len(run), replicates, seed).astype(float)
    spearman, pearson = drawn_correlations(x, y, run_index, np.concatenate([np.ones((1, len(run))), draws]))
    return Correlation(
        task,
        metric,
        len(run),
        len(x),
        float(spearman[0]),
        *bootstrap.percentile_interval(spearman[1:]),
        float(pearson[0]),
        *bootstrap.percentile_interval(pearson[1:]),
        "",
    )


def main(argv: Sequence[str] | None = None) -> int | None:
    """Print the correlations of a results table."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.correlation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mapping.add_options(parser)
    mapping.add_replicates(parser)
    mapping.add_out(parser)
    arguments = parser.parse_args(argv)
    mapping.check_replicates(arguments.replicates)
    results = correlations(mapping.load_as_asked(arguments), replicates=arguments.replicates)
    for result in results:
        name = f"{task_title(result.task)} {result.metric}"
        if result.reason:
            print(f"{name:32} not computed: {result.reason}")
        else:
            print(
                f"{name:32} Spearman {result.spearman:+.3f} [{result.spearman_low:+.3f}, {result.spearman_high:+.3f}]"
                f"  Pearson {result.pearson:+.3f} [{result.pearson_low:+.3f}, {result.pearson_high:+.3f}]"
            )
    mapping.write_results(as_table(results), arguments.out)
    return None


if __name__ == "__main__":
    cli.run(main)
