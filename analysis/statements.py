"""Everything that is inferred from a results table, in one go: what the report says and draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from analysis import (
    augmented,
    axes,
    bootstrap,
    chance,
    comparisons,
    correlation,
    critical_scale,
    first_above,
    same_loss,
    scaling,
    table,
    threshold,
)
from tokenizer import cli

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
    law: scaling.ScalingLaw
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
        return {
            "thresholds": threshold.as_table(self.thresholds),
            "correlation": correlation.as_table(self.correlations),
            "same_loss": same_loss.as_table([*self.same_loss, *self.same_in_decay]),
            "axes": axes.as_table(self.axes),
            "critical_scale": critical_scale.as_table(self.critical),
            "scaling_law": _constants(self.law),
            "first_above": first_above.as_table(self.first_above),
        } | {
            name: pd.DataFrame([asdict(result) for result in results]) for name, results in compared.items() if results
        }


def infer(
    results: pd.DataFrame,
    *,
    margin: float = same_loss.MARGIN,
    replicates: int = bootstrap.REPLICATES,
    seed: int = 0,
) -> Statements:
    """All analyses of a results table, with a progress bar.

    Args:
        margin: difference at equal loss that counts as none, in units of the metric.
        replicates: bootstrap draws of runs behind every interval.
    """
    primary = table.primary_metrics(results)
    first = results[results["metric"] == results["task"].map(primary)]
    drawn = {"replicates": replicates, "seed": seed}
    steps: dict[str, Callable[[], Any]] = {
        "thresholds": lambda: threshold.thresholds(results, **drawn),
        "correlations": lambda: correlation.correlations(results, **drawn),
        "best": lambda: {result.task: result for result in chance.at_lowest_loss(results)},
        "same_loss": lambda: same_loss.compare(first, margin=margin, **drawn),
        "same_in_decay": lambda: _decay(first, margin, drawn),
        "axes": lambda: axes.evaluate(first, **drawn),
        "critical": lambda: [
            result
            for axis in critical_scale.AXES
            for result in critical_scale.critical(first, axis, metrics=primary, **drawn)
        ],
        "law": lambda: scaling.fit(results, **drawn),
        "first_above": lambda: first_above.first_above(results, **drawn),
        "same_eta": lambda: comparisons.same_eta(results, done["thresholds"], **drawn),
        "movements": lambda: comparisons.earlier_movement(results, done["thresholds"], **drawn),
        "augmented": lambda: [
            augmented.augmented_prompting(results, plain, plain.removesuffix(DIRECT), **drawn)
            for plain in primary
            if plain.endswith(DIRECT) and plain.removesuffix(DIRECT) in primary
        ],
    }
    done: dict[str, Any] = {}
    with cli.progress_bar() as bar:
        task = bar.add_task("analysis", total=len(steps))
        for name, step in steps.items():
            bar.update(task, description=name.replace("_", " "))
            done[name] = step()
            bar.advance(task)
    return Statements(primary, **done)


def _decay(first: pd.DataFrame, margin: float, drawn: dict[str, int]) -> list[same_loss.SameLoss]:
    if "decay" not in first or first["decay"].nunique() < 2:
        return []
    return same_loss.compare(first, margin=margin, by="decay", **drawn)


def _constants(law: scaling.ScalingLaw) -> pd.DataFrame:
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
