"""Everything that is inferred from a results table, in one go: what the report says and draws."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import pandas as pd
from threadpoolctl import threadpool_limits

from analysis import (
    augmented,
    axes,
    bootstrap,
    chance,
    comparisons,
    correlation,
    critical_scale,
    first_above,
    forecast,
    same_loss,
    scaling_law,
    table,
    threshold,
)
from analysis.names import in_order
from tokenizer import cli

LARGE = 20_000
"""Rows from which on more than one process pays."""

DIRECT = "_direct"
"""End of the name of a task that asks for the answer at once, beside the one with a chain of thought."""


@dataclass(frozen=True)
class Statements:
    """The results of each analysis. Thresholds, correlations, comparisons: of every metric; others: of the first."""

    primary: dict[str, str]
    """Task -> its first metric."""
    thresholds: list[threshold.Threshold]
    correlations: list[correlation.Correlation]
    best: dict[str, chance.AboveChance]
    """Task -> its score at the lowest loss."""
    same_loss: list[same_loss.SameLoss]
    same_in_decay: list[same_loss.SameLoss]
    """Checkpoints of the decay phase against the others; empty where the table marks none."""
    axes: list[axes.AxisResult]
    critical: list[critical_scale.CriticalScale]
    law: scaling_law.ScalingLaw
    forecast: forecast.Forecast
    first_above: list[first_above.FirstAbove]
    same_eta: list[comparisons.EtaDifference]
    movements: list[comparisons.Movement]
    augmented: list[augmented.Augmented]
    """Each task that was also asked without its augmented prompt (its name with `DIRECT`)."""

    @property
    def shown(self) -> list[threshold.Threshold]:
        """The thresholds under each task's first metric."""
        return [result for result in self.thresholds if self.primary[result.task] == result.metric]

    @property
    def shown_correlations(self) -> list[correlation.Correlation]:
        """The correlations under each task's first metric."""
        return [result for result in self.correlations if self.primary[result.task] == result.metric]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Name -> numbers, for the files beside the page."""
        compared = {"same_eta": self.same_eta, "movements": self.movements, "augmented": self.augmented}
        return (
            {
                "thresholds": threshold.as_table(self.thresholds),
                "correlation": correlation.as_table(self.correlations),
                "same_loss": same_loss.as_table([*self.same_loss, *self.same_in_decay]),
                "axes": axes.as_table(self.axes),
                "critical_scale": critical_scale.as_table(self.critical),
                "scaling_law": _constants(self.law),
                "first_above": first_above.as_table(self.first_above),
            }
            | {
                name: pd.DataFrame([asdict(result) for result in results])
                for name, results in compared.items()
                if results
            }
            | ({"forecast": forecast.as_table(self.forecast)} if self.forecast.scores else {})
        )


def infer(
    results: pd.DataFrame,
    *,
    margin: float = same_loss.MARGIN,
    replicates: int = bootstrap.REPLICATES,
    seed: int = 0,
) -> Statements:
    """All analyses of a results table, with a progress bar; those of a large table on all cores.

    Args:
        margin: difference at equal loss that counts as none, in units of the metric.
        replicates: bootstrap draws of runs behind every interval.
    """
    primary = table.primary_metrics(results)
    asked = _Asked(results, primary, margin, {"replicates": replicates, "seed": seed})
    rows = dict(list(results.groupby("task")))
    with _runner(len(results)) as run:
        # Before the bar, beside whose thread no process may be forked.
        fits = run(partial(threshold.thresholds, **asked.drawn), [rows[task] for task in in_order(primary)])
        with cli.progress_bar() as bar:
            line = bar.add_task("thresholds", total=len(primary) + len(_STEPS))
            thresholds: list[threshold.Threshold] = []
            for found in fits:
                thresholds += found
                bar.advance(line)
            done: dict[str, Any] = {}
            for name, value in zip(_STEPS, run(partial(_step, asked, thresholds), _STEPS), strict=True):
                bar.update(line, description=name.replace("_", " "), advance=1)
                done[name] = value
    return Statements(primary, thresholds, **done)


@contextmanager
def _runner(num_rows: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """`map`, by a process a core for a table of `LARGE` rows or more.

    Each process has one thread for linear algebra: the matrices are small, and the threads of two processes on two
    cores took half of the time from one another.
    """
    processes = len(os.sched_getaffinity(0))
    with threadpool_limits(limits=1):
        if num_rows < LARGE or processes == 1:
            yield map
            return
        with ProcessPoolExecutor(processes, get_context("fork"), initializer=_single_thread) as pool:
            yield pool.map


def _single_thread() -> None:
    threadpool_limits(limits=1)


@dataclass(frozen=True)
class _Asked:
    """What every step works on."""

    results: pd.DataFrame
    primary: dict[str, str]
    margin: float
    drawn: dict[str, int]

    @property
    def first(self) -> pd.DataFrame:
        """The rows under each task's first metric."""
        return self.results[self.results["metric"] == self.results["task"].map(self.primary)]


_STEPS: dict[str, Callable[[_Asked, list[threshold.Threshold]], Any]] = {
    # The longest first, so that no core waits for them at the end.
    "same_eta": lambda it, thresholds: comparisons.same_eta(it.results, thresholds, **it.drawn),
    "critical": lambda it, _: [
        result
        for axis in critical_scale.AXES
        for result in critical_scale.critical(it.first, axis, metrics=it.primary, **it.drawn)
    ],
    "correlations": lambda it, _: correlation.correlations(it.results, **it.drawn),
    "best": lambda it, _: {result.task: result for result in chance.at_lowest_loss(it.results)},
    "same_loss": lambda it, _: same_loss.compare(it.first, margin=it.margin, **it.drawn),
    "same_in_decay": lambda it, _: _decay(it.first, it.margin, it.drawn),
    "axes": lambda it, _: axes.evaluate(it.first, **it.drawn),
    "forecast": lambda it, _: forecast.forecast(it.results, **it.drawn),
    "law": lambda it, _: scaling_law.fit(it.results, **it.drawn),
    "first_above": lambda it, _: first_above.first_above(it.results, **it.drawn),
    "movements": lambda it, thresholds: comparisons.earlier_movement(it.results, thresholds, **it.drawn),
    "augmented": lambda it, _: [
        augmented.augmented_prompting(it.results, plain, plain.removesuffix(DIRECT), **it.drawn)
        for plain in it.primary
        if plain.endswith(DIRECT) and plain.removesuffix(DIRECT) in it.primary
    ],
}
"""The fields of `Statements` beside the thresholds, and what makes them."""


def _step(asked: _Asked, thresholds: list[threshold.Threshold], name: str) -> Any:
    return _STEPS[name](asked, thresholds)


def _decay(first: pd.DataFrame, margin: float, drawn: dict[str, int]) -> list[same_loss.SameLoss]:
    if "decay" not in first or first["decay"].nunique() < 2:
        return []
    return same_loss.compare(first, margin=margin, by="decay", **drawn)


def _constants(law: scaling_law.ScalingLaw) -> pd.DataFrame:
    constants = {"E": law.irreducible, "A": law.a, "alpha": law.alpha, "B": law.b, "beta": law.beta}
    return pd.DataFrame(
        [
            {
                "constant": name,
                "value": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "reason": law.reason,
            }
            for name, estimate in constants.items()
        ]
    )
