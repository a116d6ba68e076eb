"""From which loss on does an augmented prompt, such as a chain of thought, beat the plain one? (Wei et al. 2022,
section 4: augmented prompting is an emergent ability if it overtakes plain prompting only from a certain scale on.)

    python -m analysis.comparisons results.csv --augmented gsm8k_direct gsm8k
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis import bootstrap
from analysis.first_above import SIGNIFICANCE, FirstAbove, group_means, grouped, stays_above
from analysis.names import in_order
from analysis.noise import noise_variance
from analysis.table import primary_metrics, run_ids
from analysis.threshold_shapes import Data
from tokenizer.cli import UserError

MINIMUM_POINTS = 6
"""Checkpoints with both prompts that are needed."""


@dataclass(frozen=True)
class Augmented:
    """An augmented prompt against a plain one, over the checkpoints that have both."""

    plain: str
    augmented: str
    metric: str
    loss: float
    """The augmented prompt is better at every group of checkpoints up to this loss; NaN if at none."""
    low: float
    high: float
    """95 % interval of `loss` over draws of runs."""
    support: float
    """Share of the draws in which it is better at the lowest losses."""
    difference_lowest: float
    difference_highest: float
    """Mean augmented minus plain over the group of the lowest and of the highest losses, better being positive."""
    error_lowest: float
    error_highest: float
    """Their standard errors, robust to clusters of runs."""
    num_checkpoints: int
    num_runs: int
    reason: str


def augmented_prompting(
    table: pd.DataFrame,
    plain_task: str,
    augmented_task: str,
    *,
    metric: str | None = None,
    loss: str = "loss",
    replicates: int = bootstrap.REPLICATES,
    seed: int = 0,
) -> Augmented:
    """From which loss on the augmented prompt beats the plain one: two tasks of the table on the same rows, compared at
    every checkpoint that has both, by the sequence of tests of `analysis.first_above` (5 %, one-sided).

    The difference's variance is the sum of both (the rows are the same, so that it is less in truth: *ours*, and
    cautious). `metric` is by default the plain task's primary one. Raises UserError if a task or the metric is missing.
    """
    for task in (plain_task, augmented_task):
        if task not in set(table["task"]):
            raise UserError(f"no task {task} in the table; it has {', '.join(in_order(table['task']))}")
    metric = metric or primary_metrics(table)[plain_task]
    sides = [table[(table["task"] == task) & (table["metric"] == metric)] for task in (plain_task, augmented_task)]
    for task, side in zip((plain_task, augmented_task), sides, strict=True):
        if side.empty:
            raise UserError(f"{task} has no metric {metric}; choose one that both tasks have")
    data = _paired(*sides, loss)
    runs = 0 if data is None else data.num_runs
    points = 0 if data is None else len(data.loss)
    unknown = Augmented(plain_task, augmented_task, metric, *[float("nan")] * 8, points, runs, "")
    if data is None or runs < bootstrap.MINIMUM_RUNS or points < MINIMUM_POINTS:
        need = f"{MINIMUM_POINTS} of {bootstrap.MINIMUM_RUNS} runs are needed"
        return replace(unknown, reason=f"{points} checkpoints of {runs} runs have both prompts; {need}")
    found = stays_above(augmented_task, metric, data, SIGNIFICANCE, replicates, seed)
    groups = grouped(data)
    lowest, error_lowest = _mean_difference(data, groups.index == 0)
    highest, error_highest = _mean_difference(data, groups.index == groups.index.max())
    return replace(
        unknown,
        loss=found.loss,
        low=found.low,
        high=found.high,
        support=found.support,
        difference_lowest=lowest,
        difference_highest=highest,
        error_lowest=error_lowest,
        error_highest=error_highest,
        reason=_who_wins(found),
    )


def _paired(plain: pd.DataFrame, augmented: pd.DataFrame, loss: str) -> Data | None:
    """Augmented minus plain at each checkpoint that has both, positive where better; None if none has."""
    sides = []
    for rows in (plain, augmented):
        losses = rows[loss].to_numpy(dtype=float)
        part = pd.DataFrame({"loss": losses, "value": rows["value"].to_numpy(dtype=float)})
        part["variance"] = noise_variance(rows, losses)
        sides.append(part.set_index([run_ids(rows).to_numpy(dtype=str), rows["step"].to_numpy()]))
    both = sides[0].join(sides[1], rsuffix="_augmented", how="inner").sort_index()
    if both.empty:
        return None
    sign = 1.0 if plain["higher_is_better"].iloc[0] else -1.0
    variance = (both["variance"] + both["variance_augmented"]).to_numpy()
    run = both.index.get_level_values(0).to_numpy()
    starts = np.flatnonzero(np.concatenate([[True], run[1:] != run[:-1]]))
    difference = sign * (both["value_augmented"] - both["value"]).to_numpy()
    return Data(both["loss"].to_numpy(), difference, variance, starts, float(np.sqrt(np.median(variance))))


def _mean_difference(data: Data, member: np.ndarray) -> tuple[float, float]:
    """Mean over some checkpoints and its standard error, from how runs differ on these alone."""
    found = group_means(data, np.where(member, 0, -1), 1, np.ones((1, data.num_runs)))
    return found.mean.item(), found.error.item()


def _who_wins(found: FirstAbove) -> str:
    if found.groups_above == 0:
        return f"the augmented prompt is not better at the lowest losses (p = {found.p_value:.2g})"
    if found.groups_above == found.groups:
        return "the augmented prompt is better at every loss seen"
    return f"the augmented prompt is better up to a loss of {found.loss:.2f}, not shown above"
