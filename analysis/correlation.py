"""Correlation of performance with pre-training loss, task by task, with intervals from a bootstrap over runs.

python -m analysis.correlation results.csv
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import bootstrap
from analysis.names import in_order, task_title
from analysis.table import load, run_ids
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


def weighted_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mid-ranks of `values` (n,) when point i occurs weights[b, i] times: shape (b, n).

    Equal to scipy.stats.rankdata of the sample written out with its repetitions.
    """
    order = np.argsort(values, kind="stable")
    _, first, group = np.unique(values, return_index=True, return_inverse=True)
    first = np.searchsorted(values[order], values[first])
    totals = np.add.reduceat(weights[:, order], first, axis=1)
    below = np.cumsum(totals, axis=1) - totals
    return (below + (totals + 1) / 2)[:, group]


def weighted_pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's r for each row of `weights` (b, n); x and y are (n,) or (b, n). NaN where one is constant."""
    total = weights.sum(axis=1, keepdims=True)
    dx = x - (weights * x).sum(axis=1, keepdims=True) / total
    dy = y - (weights * y).sum(axis=1, keepdims=True) / total
    sxx = (weights * dx * dx).sum(axis=1)
    syy = (weights * dy * dy).sum(axis=1)
    sxy = (weights * dx * dy).sum(axis=1)
    # Relative, because the mean of equal numbers differs from them by rounding.
    scale_x = (weights * np.square(x)).sum(axis=1)
    scale_y = (weights * np.square(y)).sum(axis=1)
    constant = (sxx <= 1e-24 * scale_x) | (syy <= 1e-24 * scale_y)
    with np.errstate(divide="ignore", invalid="ignore"):
        r = sxy / np.sqrt(sxx * syy)
    return np.where(constant, np.nan, np.clip(r, -1, 1))


def _correlation(task: str, metric: str, rows: pd.DataFrame, loss: str, replicates: int, seed: int) -> Correlation:
    run, run_index = np.unique(run_ids(rows).to_numpy(dtype=str), return_inverse=True)
    x = rows[loss].to_numpy(dtype=float)
    y = rows["value"].to_numpy(dtype=float) * np.where(rows["higher_is_better"], 1, -1)
    reason = ""
    if len(run) < bootstrap.MINIMUM_RUNS:
        reason = f"{len(run)} run{'s' * (len(run) != 1)} with this task; at least {bootstrap.MINIMUM_RUNS} are needed"
    elif np.ptp(x) == 0:
        reason = f"the loss is {x[0]:g} at every checkpoint"
    elif np.ptp(y) == 0:
        reason = f"performance is {abs(y[0]):g} at every checkpoint"
    if reason:
        return Correlation(task, metric, len(run), len(x), *[float("nan")] * 6, reason)
    ones = np.ones((1, len(x)))
    weights = bootstrap.multiplicities(len(run), replicates, seed)[:, run_index].astype(float)
    pearson = float(weighted_pearson(x, y, ones)[0])
    spearman = float(weighted_pearson(weighted_ranks(x, ones), weighted_ranks(y, ones), ones)[0])
    drawn_pearson = weighted_pearson(x, y, weights)
    drawn_spearman = weighted_pearson(weighted_ranks(x, weights), weighted_ranks(y, weights), weights)
    return Correlation(
        task,
        metric,
        len(run),
        len(x),
        spearman,
        *bootstrap.percentile_interval(drawn_spearman),
        pearson,
        *bootstrap.percentile_interval(drawn_pearson),
        "",
    )


def main(argv: Sequence[str] | None = None) -> int | None:
    """Print the correlations of a results table."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.correlation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, help="a grid directory, or a .csv or .parquet results table")
    parser.add_argument("--replicates", type=int, default=bootstrap.REPLICATES, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    for result in correlations(load(arguments.path), replicates=arguments.replicates):
        name = f"{task_title(result.task)} {result.metric}"
        if result.reason:
            print(f"{name:32} not computed: {result.reason}")
        else:
            print(
                f"{name:32} Spearman {result.spearman:+.3f} [{result.spearman_low:+.3f}, {result.spearman_high:+.3f}]"
                f"  Pearson {result.pearson:+.3f} [{result.pearson_low:+.3f}, {result.pearson_high:+.3f}]"
            )
    return None


if __name__ == "__main__":
    cli.run(main)
