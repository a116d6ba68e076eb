"""From which loss on does a task stay above chance? An estimate without a model of the curve.

Checkpoints are grouped by loss; from the lowest losses upwards each group is tested against chance, and the first
that does not pass ends the sequence. Testing in an order fixed beforehand and stopping keeps the probability of any
wrong claim on a task at the level of one test, without a correction (fixed-sequence testing: Westfall and Krishen
2001); over the tasks of a table it is divided by their number (Bonferroni). *Ours*; docs/methods.md has the details.

    python -m analysis.first_above results.csv
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis import bootstrap, mapping
from analysis.names import in_order, task_title
from analysis.noise import fit_data
from analysis.table import run_ids
from analysis.threshold_shapes import Data
from tokenizer import cli

SIGNIFICANCE = 0.05
"""Probability of any wrong claim "above chance" on the tasks of a table together, under one metric, one-sided."""

GROUPS = 12
"""Groups of checkpoints by loss, at most."""

MINIMUM_POINTS = 3
"""Checkpoints in a group, at least, from two runs."""


@dataclass(frozen=True)
class FirstAbove:
    """One task under one metric. Losses in nats per token; NaN where there is none."""

    task: str
    metric: str
    loss: float
    """Performance is above chance at every group of checkpoints up to this loss, the highest one of the last group
    that passed. As the tests err in `alpha` of tables at most, a threshold lies at or above it with that confidence."""
    next_loss: float
    """The lowest loss of the first group that did not pass; NaN if all passed."""
    low: float
    high: float
    """95 % interval of `loss` over draws of runs; draws in which no group passes count as the lowest loss."""
    support: float
    """Share of the draws of runs in which the group of the lowest losses passes."""
    groups_above: int
    groups: int
    alpha: float
    """Level of each test, one-sided."""
    p_value: float
    """Of the group of the lowest losses, not corrected."""
    reason: str
    """In words, what ended the sequence."""


@dataclass(frozen=True)
class Groups:
    """Checkpoints grouped by loss, lowest first."""

    index: np.ndarray
    """Group of each checkpoint, in the order of the data."""
    low: np.ndarray
    high: np.ndarray
    """Lowest and highest loss of each group."""


def grouped(data: Data, most: int = GROUPS) -> Groups:
    """Groups of about equal size, each of `MINIMUM_POINTS` checkpoints of two runs at least; what is left over at the
    highest losses joins the last group. Checkpoints of equal loss share a group."""
    order = np.argsort(data.loss, kind="stable")
    run = np.repeat(np.arange(data.num_runs), np.diff([*data.starts, len(data.loss)]))
    size = max(MINIMUM_POINTS, math.ceil(len(order) / most))
    index = np.zeros(len(order), dtype=int)
    start, group = 0, 0
    for position, checkpoint in enumerate(order):
        index[checkpoint] = group
        last = position == len(order) - 1
        if position + 1 - start >= size and not last and data.loss[order[position + 1]] > data.loss[checkpoint]:
            left = len(order) - position - 1
            if len(np.unique(run[order[start : position + 1]])) >= 2 and left >= MINIMUM_POINTS:
                start, group = position + 1, group + 1
    if group and len(np.unique(run[order[start:]])) < 2:
        index[index == group] = group - 1
        group -= 1
    low = np.array([data.loss[index == g].min() for g in range(group + 1)])
    high = np.array([data.loss[index == g].max() for g in range(group + 1)])
    return Groups(index, low, high)


@dataclass(frozen=True)
class Means:
    """Mean excess of groups of checkpoints for draws of runs."""

    mean: np.ndarray
    """(draws, groups); NaN for a group without a checkpoint in the draw."""
    error: np.ndarray
    """Its standard error, (draws, groups)."""
    freedom: np.ndarray
    """Degrees of freedom of the error, (draws,); infinite where runs differ no more than the rows explain."""


def group_means(data: Data, index: np.ndarray, count: int, draws: np.ndarray) -> Means:
    """Means of the groups 0 to `count` - 1, `index` being the group of each checkpoint (-1 for none).

    They are weighted by 1/variance. The square of the error is φ/Σw plus `level_sd` squared: all checkpoints answer the
    same rows, so that their mean is off chance by what one checkpoint's sample of rows explains. φ >= 1 is what runs
    differ by: the cluster-robust variance of a group's mean over 1/Σw, times R/(R − 1) for its R runs, averaged over
    the groups by their R − 1, which are the degrees of freedom where φ exceeds 1.
    """
    weight = 1 / data.variance
    member = index[:, None] == np.arange(count)[None, :]
    w = data.per_run(weight[:, None] * member)
    wy = data.per_run((weight * data.excess)[:, None] * member)
    total, sums = draws @ w, draws @ wy
    present = total > 0
    safe = np.where(present, total, 1.0)
    mean = sums / safe
    # Σ_r n_r (wy_r − mean·w_r)²: the weighted residual sums of each run, drawn n_r times.
    squares = draws @ wy**2 - 2 * mean * (draws @ (w * wy)) + mean**2 * (draws @ w**2)
    spare = np.maximum(draws @ (w > 0) - 1, 0)
    ratio = np.maximum(squares, 0.0) / safe * (spare + 1)
    freedom = spare.sum(axis=1)
    pooled = np.where(spare > 0, ratio, 0.0).sum(axis=1) / np.maximum(freedom, 1)
    error = np.sqrt(np.maximum(pooled, 1.0)[:, None] / safe + data.level_sd**2)
    freedom = np.where(pooled > 1, np.maximum(freedom, 1), np.inf)
    return Means(np.where(present, mean, np.nan), error, freedom)


def p_values(data: Data, groups: Groups, draws: np.ndarray) -> np.ndarray:
    """One-sided p-value of each group against chance for each draw of runs, shape (draws, groups), by Student's t on
    `group_means`; NaN for a group without a checkpoint in the draw."""
    found = group_means(data, groups.index, len(groups.low), draws)
    return stats.t.sf(found.mean / found.error, found.freedom[:, None])


def passed(p: np.ndarray, alpha: float) -> np.ndarray:
    """How many groups pass before the first that does not, shape (draws,), from p-values (draws, groups); groups that a
    draw has not (NaN) are passed over, but do not end the count."""
    so_far = np.cumprod(np.isnan(p) | (p <= alpha), axis=1)
    return (so_far * np.isfinite(p) * np.arange(1, p.shape[1] + 1)).max(axis=1)


def stays_above(task: str, metric: str, data: Data, alpha: float, replicates: int, seed: int) -> FirstAbove:
    """The sequence of tests on one task; see the module's docstring."""
    groups = grouped(data)
    p = p_values(data, groups, np.ones((1, data.num_runs)))
    count = int(passed(p, alpha)[0])
    lowest = float(data.loss.min())
    drawn = bootstrap.multiplicities(data.num_runs, replicates, seed).astype(float)
    reached = passed(p_values(data, groups, drawn), alpha)
    edges = np.concatenate([[lowest], groups.high])
    low, high = bootstrap.percentile_interval(edges[reached])
    if count == 0:
        reason = f"not above chance at the lowest losses (p = {p[0, 0]:.2g}, {alpha:.2g} needed)"
    elif count == len(groups.low):
        reason = "above chance at every loss seen"
    else:
        reason = (
            f"above chance up to a loss of {groups.high[count - 1]:.2f}, not at {groups.low[count]:.2f} to "
            f"{groups.high[count]:.2f} (p = {p[0, count]:.2g}, {alpha:.2g} needed)"
        )
    return FirstAbove(
        task=task,
        metric=metric,
        loss=float(groups.high[count - 1]) if count else float("nan"),
        next_loss=float(groups.low[count]) if count < len(groups.low) else float("nan"),
        low=low if count else float("nan"),
        high=high if count else float("nan"),
        support=float(np.mean(reached > 0)),
        groups_above=count,
        groups=len(groups.low),
        alpha=alpha,
        p_value=float(p[0, 0]),
        reason=reason,
    )


def nothing(task: str, metric: str, alpha: float, reason: str) -> FirstAbove:
    """The result where nothing can be tested."""
    return FirstAbove(task, metric, *[float("nan")] * 4, float("nan"), 0, 0, alpha, float("nan"), reason)


def too_little(rows: pd.DataFrame) -> str:
    """Why `stays_above` has nothing to work on; empty if it has."""
    runs = run_ids(rows).nunique()
    if rows["chance"].isna().any():
        return "what knowing nothing scores under this metric is not known"
    if runs < bootstrap.MINIMUM_RUNS:
        return f"{runs} run{'s' * (runs != 1)} with this task; at least {bootstrap.MINIMUM_RUNS} are needed"
    if len(rows) < 2 * MINIMUM_POINTS:
        return f"{len(rows)} checkpoints; at least {2 * MINIMUM_POINTS} are needed"
    return ""


def first_above(
    table: pd.DataFrame, *, loss: str = "loss", replicates: int = bootstrap.REPLICATES, seed: int = 0
) -> list[FirstAbove]:
    """For each task and metric of a results table the loss below which performance stays above chance.

    The level of each test is `SIGNIFICANCE` over the number of tasks.
    """
    tasks = in_order(table["task"])
    alpha = SIGNIFICANCE / len(tasks)
    results = []
    for task in tasks:
        for metric, rows in table[table["task"] == task].groupby("metric"):
            if reason := too_little(rows):
                results.append(nothing(task, str(metric), alpha, reason))
            else:
                results.append(stays_above(task, str(metric), fit_data(rows, loss), alpha, replicates, seed))
    return results


def as_table(results: Sequence[FirstAbove]) -> pd.DataFrame:
    """One row per task and metric."""
    return pd.DataFrame([asdict(result) for result in results])


def sentence(result: FirstAbove) -> str:
    """The result in words, with its numbers."""
    name = f"{task_title(result.task)}, {result.metric}"
    if math.isnan(result.loss):
        return f"{name}: {result.reason}"
    interval = f"95 % of draws of runs {result.low:.2f} to {result.high:.2f}"
    return f"{name}: {result.reason} ({interval}; {100 * result.support:.0f} % of them above at all)"


def main(argv: Sequence[str] | None = None) -> int | None:
    """Print the results for a table."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.first_above",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mapping.add_options(parser)
    mapping.add_replicates(parser)
    arguments = parser.parse_args(argv)
    mapping.check_replicates(arguments.replicates)
    for result in first_above(mapping.load_as_asked(arguments), replicates=arguments.replicates):
        print(sentence(result))
    return None


if __name__ == "__main__":
    cli.run(main)
