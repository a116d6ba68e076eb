"""Is a checkpoint better than chance on a task? Wilson intervals and exact binomial tests.

Used for the checkpoint with the lowest loss, whose choice does not depend on its scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis.columns import GUESS_RATE
from analysis.names import in_order
from analysis.table import FRACTIONS, primary_metrics

SIGNIFICANCE = 0.05
"""Probability of calling any task above chance when none is (family-wise, Holm)."""


@dataclass(frozen=True)
class AboveChance:
    """One task at the checkpoint with the lowest loss; `low` and `high` are a 95 % interval of `value`."""

    task: str
    metric: str
    run: str
    size: str
    step: int
    loss: float
    rows: int
    chance: float
    value: float
    low: float
    high: float
    p_value: float
    """One-sided, against chance; corrected for the number of tasks by Holm's method."""
    higher_is_better: bool

    @property
    def above(self) -> bool:
        """Whether performance is better than chance, with all tasks of the table taken into account."""
        return self.p_value < SIGNIFICANCE


def guessing_level(chance: float) -> float:
    """The level to beat: chance, or `GUESS_RATE` on an open task (chance 0)."""
    return chance if chance > 0 else GUESS_RATE


def wilson_interval(
    value: float | np.ndarray, rows: float | np.ndarray, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval of a share `value` of `rows` answers, of one or of arrays; it stays within 0 and 1."""
    z = stats.norm.ppf(0.5 + level / 2)
    centre = (value + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * np.sqrt(value * (1 - value) / rows + z * z / (4 * rows * rows))
    return np.maximum(0.0, centre - half), np.minimum(1.0, centre + half)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction; NaN stays NaN and does not count."""
    values = np.asarray(p_values, dtype=float)
    corrected = np.full(len(values), np.nan)
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(values[known])]
    running = 0.0
    for position, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - position) * values[index]))
        corrected[index] = running
    return corrected.tolist()


def at_lowest_loss(table: pd.DataFrame, *, loss: str = "loss") -> list[AboveChance]:
    """Each task, under its first metric, at the checkpoint with the lowest `loss` that was evaluated on it."""
    metrics = primary_metrics(table)
    picked = []
    for task in in_order(table["task"]):
        rows = table[(table["task"] == task) & (table["metric"] == metrics[task])]
        picked.append(rows.loc[rows[loss].idxmin()])
    p_values = holm([_p_value(row) for row in picked])
    results = []
    for row, p_value in zip(picked, p_values, strict=True):
        low, high = interval(row)
        results.append(
            AboveChance(
                str(row["task"]),
                str(row["metric"]),
                str(row["run"]),
                str(row["size"]),
                int(row["step"]),
                float(row[loss]),
                int(row["rows"]),
                float(row["chance"]),
                float(row["value"]),
                low,
                high,
                p_value,
                bool(row["higher_is_better"]),
            )
        )
    return results


def interval(row: pd.Series) -> tuple[float, float]:
    """95 % interval of one value of a results table over its rows: Wilson's for shares, else ±1.96 standard errors."""
    if row["metric"] in FRACTIONS:
        low, high = wilson_interval(float(row["value"]), float(row["rows"]))
        return float(low), float(high)
    half = stats.norm.ppf(0.975) * float(row["stderr"])
    return float(row["value"]) - half, float(row["value"]) + half


def _p_value(row: pd.Series) -> float:
    if row["metric"] in FRACTIONS:
        correct = round(float(row["value"]) * float(row["rows"]))
        return float(stats.binom.sf(correct - 1, int(row["rows"]), guessing_level(float(row["chance"]))))
    sign = 1 if row["higher_is_better"] else -1
    if not float(row["stderr"]) > 0:
        return float("nan")
    return float(stats.norm.sf(sign * (float(row["value"]) - float(row["chance"])) / float(row["stderr"])))
