"""Against which axis do all checkpoints fall on one curve? Loss, training FLOPs, parameters, tokens, perplexity.

For each task and axis: the share of the variance of scores that one curve over that axis leaves unexplained on runs it
has not seen, with intervals, and by how much it leaves more than the loss does: the claim of Du et al. 2024, App. E, as
a number.

    python -m analysis.axes results.csv
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from analysis import bootstrap, curves, homogeneity, mapping, problems
from analysis.names import in_order, metric_title, task_title
from analysis.table import primary_metrics, run_ids
from tokenizer import cli

AXES = {
    "loss": "pre-training loss",
    "flops_6nd": "training FLOPs",
    "parameters": "parameters",
    "tokens": "training tokens",
    "perplexity": "perplexity",
}
"""Axes that are compared where the table has them, with their titles; any column that begins with perplexity counts."""

ALL_TASKS = ""
"""The task of a result about the mean over tasks."""

MINIMUM_SCORED = 6
"""Checkpoints that must be predicted for a share to mean anything."""


@dataclass(frozen=True)
class AxisResult:
    """One task under one metric against one axis. Shares of variance (1 is as good as the mean of all scores, more is
    worse than it); NaN where not computed, with the cause in `reason`."""

    task: str
    """`ALL_TASKS` for the mean over tasks."""
    metric: str
    axis: str
    unexplained: float
    """Squared error of predictions of left-out runs over the squared deviation from the mean score: 1 - R^2."""
    low: float
    high: float
    """95 % interval over draws of runs."""
    more_than_loss: float
    """`unexplained` minus that of the loss axis: positive if loss explains more. 0 for the loss itself."""
    more_low: float
    more_high: float
    """95 % interval of it, over the same draws."""
    support: float
    """Share of draws in which this axis leaves the least."""
    least: bool
    """Whether it leaves the least."""
    num_runs: int
    num_scored: int
    """Checkpoints predicted: those within the range of the other runs on each continuous axis."""
    num_checkpoints: int
    reason: str


@dataclass(frozen=True)
class _Shares:
    """Of one task and metric: squared errors and what there was to explain, summed over each run's checkpoints."""

    errors: np.ndarray
    """(axes, runs of the table)."""
    moments: np.ndarray
    """Number, sum and sum of squares of the scores, (3, runs of the table)."""
    num_checkpoints: int

    def unexplained(self, draws: np.ndarray) -> np.ndarray:
        """1 - R^2 for draws (replicates, runs) on each axis: shape (replicates, axes); NaN without variance."""
        count, total, squares = draws @ self.moments.T[:, 0], draws @ self.moments.T[:, 1], draws @ self.moments.T[:, 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = squares - total**2 / count
            shares = (draws @ self.errors.T) / spread[:, None]
        return np.where((spread > 1e-15)[:, None], shares, np.nan)


def axes_of(table: pd.DataFrame) -> list[str]:
    """The axes that the table has, loss first; a column that is empty somewhere is none."""
    perplexities = sorted(str(c) for c in table.columns if str(c).startswith("perplexity"))
    wanted = ["loss", "flops_6nd", "parameters", "tokens", *perplexities]
    return [a for a in wanted if a in table and table[a].notna().all() and (a == "loss" or (table[a] > 0).all())]


def axis_title(axis: str) -> str:
    """`flops_6nd` as training FLOPs; a perplexity under its own name."""
    return AXES.get(axis, axis.replace("_", " "))


def compare(
    table: pd.DataFrame, *, loss: str = "loss", replicates: int = bootstrap.REPLICATES, seed: int = 0
) -> list[AxisResult]:
    """For each task and metric a result an axis, against the column `loss` as the loss axis."""
    return [result for result in evaluate(table, loss=loss, replicates=replicates, seed=seed) if result.task]


def overall(
    table: pd.DataFrame, *, loss: str = "loss", replicates: int = bootstrap.REPLICATES, seed: int = 0
) -> list[AxisResult]:
    """The mean over the tasks, each under its first metric, that have something to explain: a result an axis."""
    metrics = primary_metrics(table)
    rows = table[table["metric"] == table["task"].map(metrics)]
    return [result for result in evaluate(rows, loss=loss, replicates=replicates, seed=seed) if not result.task]


def evaluate(
    table: pd.DataFrame, *, loss: str = "loss", replicates: int = bootstrap.REPLICATES, seed: int = 0
) -> list[AxisResult]:
    """`compare` and `overall` in one go; the latter's results come last."""
    axes = axes_of(table.assign(loss=table[loss]))
    names, codes = np.unique(run_ids(table).to_numpy(dtype=str), return_inverse=True)
    draws = bootstrap.multiplicities(len(names), replicates, seed).astype(float)
    results: list[AxisResult] = []
    metrics, together = primary_metrics(table), []
    for task in in_order(table["task"]):
        of_task = np.flatnonzero((table["task"] == task).to_numpy())
        for metric, rows in table.iloc[of_task].groupby("metric"):
            run = codes[of_task[(table["metric"].iloc[of_task] == metric).to_numpy()]]
            shares = _shares(rows, run, len(names), axes, loss)
            if isinstance(shares, str):
                results += _nothing(task, str(metric), axes, len(np.unique(run)), len(rows), shares)
                continue
            results += _results(task, str(metric), axes, [shares], draws)
            if metrics[task] == metric:
                together.append(shares)
    if together:
        results += _results(ALL_TASKS, "", axes, together, draws)
    else:
        reason = "no task has scores that an axis could explain"
        results += _nothing(ALL_TASKS, "", axes, len(names), len(table), reason)
    return results


def as_table(results: Sequence[AxisResult]) -> pd.DataFrame:
    """One row per task, metric and axis."""
    return pd.DataFrame([asdict(result) for result in results])


def _shares(rows: pd.DataFrame, run: np.ndarray, num_runs: int, axes: Sequence[str], loss: str) -> _Shares | str:
    """The sums of one task and metric, or why there are none."""
    value = rows["value"].to_numpy(dtype=float)
    if len(np.unique(run)) < bootstrap.MINIMUM_RUNS:
        return f"{len(np.unique(run))} of the {bootstrap.MINIMUM_RUNS} runs that are needed at least"
    if reason := problems.incomparable(rows):
        return reason
    if np.ptp(value) == 0:
        return f"performance is {value[0]:g} at every checkpoint"
    if reason := homogeneity.homogeneous(rows):
        return reason
    positions = {axis: _position(rows, axis, loss) for axis in axes}
    if "loss" not in positions:
        return "the loss is empty at some checkpoints"
    if np.ptp(positions["loss"]) == 0:
        return f"the loss is {positions['loss'][0]:g} at every checkpoint"
    _, code = np.unique(run, return_inverse=True)
    scored = np.ones(len(value), dtype=bool)
    for axis, x in positions.items():
        # Sizes are few steps, and the largest is outside the others by nature.
        if axis != "parameters":
            scored &= curves.inside_others(x, code)
    if scored.sum() < MINIMUM_SCORED:
        return (
            f"{scored.sum()} checkpoints lie within the range of the other runs on every axis; {MINIMUM_SCORED} are "
            "needed at least to tell how well other runs predict them"
        )
    errors = np.stack([_errors(x, value, code, scored) for x in positions.values()])
    by_run = np.stack([np.bincount(run, row, num_runs) for row in errors])
    kept = np.where(scored, value - value[scored].mean(), 0.0)
    moments = np.stack([np.bincount(run, row, num_runs) for row in (scored.astype(float), kept, kept**2)])
    return _Shares(by_run, moments, len(value))


def _position(rows: pd.DataFrame, axis: str, loss: str) -> np.ndarray:
    """Where the checkpoints lie on an axis: the loss as it is, everything else by its logarithm."""
    if axis == "loss":
        return rows[loss].to_numpy(dtype=float)
    return np.log10(rows[axis].to_numpy(dtype=float))


def _errors(x: np.ndarray, value: np.ndarray, code: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """Squared errors (n,) of predictions by the other runs, 0 where not scored; a constant axis predicts their mean."""
    if np.ptp(x) == 0:
        totals, counts = np.bincount(code, value), np.bincount(code)
        predicted = ((totals.sum() - totals) / (counts.sum() - counts))[code]
    else:
        predictions = curves.leave_runs_out(curves.Basis.over(x)(x), value, code)
        predicted = predictions[curves.best(predictions, value, scored)]
    return np.where(scored, np.square(predicted - value), 0.0)


def _results(
    task: str, metric: str, axes: Sequence[str], together: Sequence[_Shares], draws: np.ndarray
) -> list[AxisResult]:
    ones = np.ones((1, draws.shape[1]))
    value = np.mean([shares.unexplained(ones)[0] for shares in together], axis=0)
    drawn = np.mean([shares.unexplained(draws) for shares in together], axis=0)
    more = drawn - drawn[:, [axes.index("loss")]]
    known = np.isfinite(drawn).all(axis=1)
    first = np.bincount(drawn[known].argmin(axis=1), minlength=len(axes)) / max(1, known.sum())
    scored = sum(int(shares.moments[0].sum()) for shares in together)
    runs = int((sum(shares.moments[0] for shares in together) > 0).sum())
    checkpoints = sum(shares.num_checkpoints for shares in together)
    return [
        AxisResult(
            task,
            metric,
            axis,
            float(value[i]),
            *bootstrap.percentile_interval(drawn[:, i]),
            float(value[i] - value[axes.index("loss")]),
            *bootstrap.percentile_interval(more[:, i]),
            float(first[i]),
            bool(value.argmin() == i),
            runs,
            scored,
            checkpoints,
            "",
        )
        for i, axis in enumerate(axes)
    ]


def _nothing(
    task: str, metric: str, axes: Sequence[str], num_runs: int, num_checkpoints: int, reason: str
) -> list[AxisResult]:
    empty = [float("nan")] * 7
    return [AxisResult(task, metric, axis, *empty, False, num_runs, 0, num_checkpoints, reason) for axis in axes]


def sentence(results: Sequence[AxisResult]) -> str:
    """The axes of one task and metric (or of the mean over tasks) in plain words."""
    first = results[0]
    name = f"{task_title(first.task)} ({metric_title(first.metric)})" if first.task else "mean over tasks"
    if first.reason:
        return f"{name}: not computed: {first.reason}"
    parts = []
    for result in sorted(results, key=lambda r: r.unexplained):
        part = f"{axis_title(result.axis)} {100 * result.unexplained:.1f} %"
        if np.isfinite(result.low):
            part += f" [{100 * result.low:.1f}, {100 * result.high:.1f}]"
        if result.axis != "loss" and np.isfinite(result.more_low):
            part += (
                f" (loss {_signed(-result.more_than_loss)} [{_signed(-result.more_high)}, {_signed(-result.more_low)}])"
            )
        parts.append(part)
    best = next(result for result in results if result.least)
    return (
        f"{name}: unexplained by {'; '.join(parts)}; {axis_title(best.axis)} leaves the least in "
        f"{100 * best.support:.0f} % of the draws"
    )


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}"


def main(argv: Sequence[str] | None = None) -> int | None:
    """Print what each axis leaves unexplained."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.axes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    mapping.add_options(parser)
    mapping.add_replicates(parser)
    mapping.add_out(parser)
    arguments = parser.parse_args(argv)
    mapping.check_replicates(arguments.replicates)
    results = evaluate(mapping.load_as_asked(arguments), replicates=arguments.replicates)
    groups: dict[tuple[str, str], list[AxisResult]] = {}
    for result in results:
        groups.setdefault((result.task, result.metric), []).append(result)
    for of_task in groups.values():
        print(sentence(of_task))
    print(
        "In percent of the variance of scores; [95 % intervals over draws of runs]; in brackets what the loss leaves "
        "more or less."
    )
    mapping.write_results(as_table(results), arguments.out)
    return None


if __name__ == "__main__":
    cli.run(main)
