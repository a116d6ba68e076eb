"""Three comparisons around a threshold: do accuracy, CorrectChoiceProb and Brier score of a task rise at the same
loss; does the log-likelihood of the right answer move while accuracy is still at chance (Wei et al. 2022, section 5);
from which loss on does an augmented prompt, such as a chain of thought, beat the plain one (Wei et al., section 4).

    python -m analysis.comparisons results.csv --augmented gsm8k_direct gsm8k
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy import stats

from analysis import bootstrap, mapping
from analysis.augmented import Augmented, augmented_prompting
from analysis.chance import holm
from analysis.names import in_order, task_title
from analysis.table import FRACTIONS, primary_metrics, run_ids
from analysis.threshold import EMERGENT, NOT_REACHED, Threshold, thresholds
from tokenizer import cli

ABILITY_METRICS = (*FRACTIONS, "correct_choice_prob", "brier")
"""Metrics whose thresholds are compared: those with a chance level that is no ability (Du et al. 2024, App. C)."""

LOGLIKELIHOOD = "loglikelihood_"
"""How the names of the log-likelihoods of the right answer begin; those of wrong ones end in `_wrong`."""

__all__ = ["Augmented", "EtaDifference", "Movement", "augmented_prompting", "earlier_movement", "same_eta"]

MINIMUM_POINTS = 6
"""Checkpoints, of `bootstrap.MINIMUM_RUNS` runs, from which a slope is estimated."""


@dataclass(frozen=True)
class EtaDifference:
    """η under one metric minus η under another, same task; nats per token, NaN where one of them is not emergent."""

    task: str
    metric: str
    other: str
    eta: float
    eta_other: float
    difference: float
    low: float
    high: float
    """95 % interval of the difference."""
    correlation: float
    """Of the two η over common draws of runs; 0 where the metrics were not measured on the same runs."""
    p_value: float
    """Two-sided, of no difference."""
    p_adjusted: float
    """Corrected over all pairs of the table by Holm's method."""
    reason: str


@dataclass(frozen=True)
class Movement:
    """How the log-likelihood moves over the losses at which accuracy is at chance."""

    task: str
    metric: str
    """The accuracy (or exact match) whose plateau is looked at."""
    quantity: str
    """The log-likelihood's name; with `right minus wrong` appended, its lead over that of the wrong options."""
    loss_low: float
    loss_high: float
    """The plateau: checkpoints with losses from the upper end of η's interval on, or all where it is not reached."""
    num_checkpoints: int
    num_runs: int
    slope: float
    slope_low: float
    slope_high: float
    """Nats per token (or character) for each nat of loss, with a 95 % interval, robust to clusters of runs."""
    accuracy_slope: float
    accuracy_slope_low: float
    accuracy_slope_high: float
    """The same for the accuracy over the same checkpoints."""
    moves: bool
    """Whether the quantity rises as the loss falls: the interval of the slope is below 0."""
    reason: str


def same_eta(
    table: pd.DataFrame,
    results: Sequence[Threshold] | None = None,
    *,
    metrics: Sequence[str] = ABILITY_METRICS,
    loss: str = "loss",
    replicates: int = bootstrap.REPLICATES,
    seed: int = 0,
) -> list[EtaDifference]:
    """Differences of η for every pair of `metrics` that a task has; `results` are `thresholds(table)` if at hand, whose
    draws of runs then count rather than `replicates` and `seed`."""
    chosen = table[table["metric"].isin(metrics)]
    if results is None:
        results = thresholds(chosen, loss=loss, replicates=replicates, seed=seed) if len(chosen) else []
    found = {(r.task, r.metric): r for r in results if r.metric in metrics}
    differences = []
    for task in in_order(chosen["task"]) if len(chosen) else []:
        runs = {
            str(metric): frozenset(run_ids(rows)) for metric, rows in chosen[chosen["task"] == task].groupby("metric")
        }
        for a, b in combinations(sorted(runs, key=metrics.index), 2):
            differences.append(_difference(found[task, a], found[task, b], runs[a] == runs[b]))
    adjusted = holm([d.p_value for d in differences])
    return [replace(d, p_adjusted=p) for d, p in zip(differences, adjusted, strict=True)]


def _difference(first: Threshold, second: Threshold, same_runs: bool) -> EtaDifference:
    unknown = EtaDifference(
        first.task, first.metric, second.metric, first.eta, second.eta, *[float("nan")] * 6, reason=""
    )
    missing = [r for r in (first, second) if r.verdict != EMERGENT]
    if missing:
        return replace(unknown, reason="; ".join(f"{r.metric} is {r.verdict}" for r in missing))
    etas, other_etas = first.eta_draws, second.eta_draws
    correlation = 0.0
    if same_runs and np.std(etas) > 0 and np.std(other_etas) > 0:
        correlation = float(np.corrcoef(etas, other_etas)[0, 1])
    difference = first.eta - second.eta
    low, high = difference_interval(
        (first.eta, first.eta_low, first.eta_high), (second.eta, second.eta_low, second.eta_high), correlation
    )
    half = difference - low if difference > 0 else high - difference
    z = abs(difference) / max(half, 1e-12) * stats.norm.ppf(0.975)
    return replace(
        unknown,
        difference=difference,
        low=low,
        high=high,
        correlation=correlation,
        p_value=float(2 * stats.norm.sf(z)),
        reason="the interval holds 0" if low <= 0 <= high else "the interval leaves 0 out",
    )


def difference_interval(
    first: tuple[float, float, float], second: tuple[float, float, float], correlation: float
) -> tuple[float, float]:
    """Interval of a difference from those of its terms, (estimate, low, high) each, by "recovering the variance" from
    their one-sided widths (MOVER; Zou and Donner 2008, eq. 8 with a correlation)."""
    (a, a_low, a_high), (b, b_low, b_high) = first, second
    below, above = _joined(a - a_low, b_high - b, correlation), _joined(a_high - a, b - b_low, correlation)
    return a - b - below, a - b + above


def _joined(one: float, other: float, correlation: float) -> float:
    return math.sqrt(max(one * one + other * other - 2 * correlation * one * other, 0.0))


def earlier_movement(
    table: pd.DataFrame,
    results: Sequence[Threshold] | None = None,
    *,
    loss: str = "loss",
    replicates: int = bootstrap.REPLICATES,
    seed: int = 0,
) -> list[Movement]:
    """For each task with a log-likelihood of the right answer, how it moves while accuracy is at chance."""
    primary = primary_metrics(table)
    of_accuracy = table[[primary[task] == metric for task, metric in zip(table["task"], table["metric"], strict=True)]]
    if results is None:
        results = thresholds(of_accuracy, loss=loss, replicates=replicates, seed=seed)
    found = {(r.task, r.metric): r for r in results}
    movements = []
    for task in in_order(table["task"]):
        rows = table[table["task"] == task]
        names = sorted(m for m in rows["metric"].unique() if m.startswith(LOGLIKELIHOOD) and not m.endswith("_wrong"))
        accuracy = _by_checkpoint(of_accuracy[of_accuracy["task"] == task], loss)
        for name in names if primary[task] in FRACTIONS else []:
            right = _by_checkpoint(rows[rows["metric"] == name], loss)
            wrong = _by_checkpoint(rows[rows["metric"] == f"{name}_wrong"], loss)
            movements.append(_movement(found[task, primary[task]], name, right, accuracy))
            if len(wrong):
                both = right.join(wrong["value"], rsuffix="_wrong", how="inner")
                margin = both.assign(value=both["value"] - both["value_wrong"])
                movements.append(_movement(found[task, primary[task]], f"{name}, right minus wrong", margin, accuracy))
    return movements


def _by_checkpoint(rows: pd.DataFrame, loss: str) -> pd.DataFrame:
    """Columns run, loss and value, indexed by checkpoint."""
    part = pd.DataFrame({"run": run_ids(rows), "loss": rows[loss], "value": rows["value"], "step": rows["step"]})
    return part.set_index(["run", "step"], drop=False)[["run", "loss", "value"]]


def _movement(result: Threshold, quantity: str, values: pd.DataFrame, accuracy: pd.DataFrame) -> Movement:
    unknown = Movement(result.task, result.metric, quantity, *[float("nan")] * 2, 0, 0, *[float("nan")] * 6, False, "")
    if result.verdict not in (EMERGENT, NOT_REACHED):
        return replace(unknown, reason=f"{result.metric} is {result.verdict}: no plateau to look at")
    if result.verdict == EMERGENT:
        values, accuracy = values[values["loss"] >= result.eta_high], accuracy[accuracy["loss"] >= result.eta_high]
    accuracy = accuracy[accuracy.index.isin(values.index)]
    runs = values["run"].nunique()
    if len(values) < MINIMUM_POINTS or runs < bootstrap.MINIMUM_RUNS or np.ptp(values["loss"]) < 1e-9:
        reason = f"{len(values)} checkpoints of {runs} runs surely at chance; {MINIMUM_POINTS} of 3 are needed"
        return replace(unknown, num_checkpoints=len(values), num_runs=runs, reason=reason)
    slope, low, high = clustered_slope(values)
    enough = len(accuracy) >= MINIMUM_POINTS and accuracy["run"].nunique() >= bootstrap.MINIMUM_RUNS
    of_accuracy = clustered_slope(accuracy) if enough else (float("nan"),) * 3
    change = -slope * float(np.ptp(values["loss"]))
    verb = "rises" if high < 0 else "falls" if low > 0 else "does not clearly move"
    return Movement(
        *(result.task, result.metric, quantity, float(values["loss"].min()), float(values["loss"].max())),
        *(len(values), runs, slope, low, high, *of_accuracy, high < 0),
        reason=f"{verb} as the loss falls while {result.metric} is at chance ({change:+.3f} over the plateau)",
    )


def clustered_slope(values: pd.DataFrame) -> tuple[float, float, float]:
    """Least-squares slope of `value` on `loss` and its 95 % interval: Student's t with runs − 1 degrees of freedom on
    the larger one of the plain standard error and that robust to clusters of `run` (too small for few clusters)."""
    design = sm.add_constant(values["loss"].to_numpy(dtype=float))
    groups = np.unique(values["run"].to_numpy(dtype=str), return_inverse=True)[1]
    plain = sm.OLS(values["value"].to_numpy(dtype=float), design).fit()
    robust = plain.get_robustcov_results("cluster", groups=groups)
    half = stats.t.ppf(0.975, groups.max()) * float(max(plain.bse[1], robust.bse[1]))
    slope = float(plain.params[1])
    return slope, slope - half, slope + half


def main(argv: Sequence[str] | None = None) -> int | None:
    """Print the comparisons that a table can carry."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.comparisons",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mapping.add_options(parser)
    mapping.add_replicates(parser)
    parser.add_argument("--augmented", nargs=2, metavar=("PLAIN", "AUGMENTED"), help="two tasks of the same rows")
    arguments = parser.parse_args(argv)
    mapping.check_replicates(arguments.replicates)
    table = mapping.load_as_asked(arguments)
    if arguments.augmented:
        r = augmented_prompting(table, *arguments.augmented, replicates=arguments.replicates)
        print(f"{r.augmented} against {r.plain} [{r.metric}]: {r.reason}")
        return None
    results = thresholds(table, replicates=arguments.replicates)
    for d in same_eta(table, results, replicates=arguments.replicates):
        numbers = f"{d.difference:+.3f} ({d.low:+.3f} to {d.high:+.3f}), p = {d.p_value:.2g}; "
        known = "" if math.isnan(d.difference) else numbers
        print(f"{task_title(d.task)}: η by {d.metric} minus η by {d.other}: {known}{d.reason}")
    for m in earlier_movement(table, results, replicates=arguments.replicates):
        known = "" if math.isnan(m.slope) else f"slope {m.slope:.3f} ({m.slope_low:.3f} to {m.slope_high:.3f}); "
        print(f"{task_title(m.task)}, {m.quantity}: {known}{m.reason}")
    return None


if __name__ == "__main__":
    cli.run(main)
