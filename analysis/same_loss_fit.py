"""The curves behind `analysis.same_loss`: errors on runs left out, how runs vary, differences and their intervals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis import bootstrap, curves
from analysis.table import run_ids

GRID_POINTS = 40
"""Losses at which curves are compared."""

EDGE = 0.05
"""Share of a group's checkpoints at each end of its losses that count as its edge, where no comparison is made."""

MINIMUM_POINTS = 3
"""Checkpoints of each of two groups that must lie in their common range of losses."""


@dataclass(frozen=True)
class Points:
    """The checkpoints of one task and metric: loss, value turned so that higher is better, sampling error, codes."""

    x: np.ndarray
    y: np.ndarray
    stderr: np.ndarray
    run: np.ndarray
    group: np.ndarray
    names: list[str]

    @property
    def runs_of_group(self) -> np.ndarray:
        """How many runs each group has."""
        return np.array([len(np.unique(self.run[self.group == g])) for g in range(len(self.names))])


@dataclass(frozen=True)
class Largest:
    """The largest difference at equal loss between the curves of two groups, in the metric's units."""

    value: float
    low: float
    high: float
    """95 % interval, simultaneous over all pairs and losses."""
    at_loss: float
    between: tuple[str, str]
    """The two groups, the better one first."""


def points_of(rows: pd.DataFrame, by: str, loss: str) -> Points:
    """The checkpoints of one task and metric, sizes from the smallest up."""
    if by == "size":
        order = rows.groupby("size")["parameters"].min().sort_values(kind="stable").index.astype(str).tolist()
        group = pd.Categorical(rows["size"].astype(str), order).codes
    else:
        order = sorted(rows[by].astype(str).unique())
        group = pd.Categorical(rows[by].astype(str), order).codes
    # A run with checkpoints in two groups counts as a run in each.
    _, run = np.unique(run_ids(rows).to_numpy(dtype=str), return_inverse=True)
    _, run = np.unique(run * len(order) + group, return_inverse=True)
    names = ["decay" if it == "True" else "before" for it in order] if by == "decay" else order
    sign = np.where(rows["higher_is_better"], 1.0, -1.0)
    x, y = rows[loss].to_numpy(dtype=float), rows["value"].to_numpy(dtype=float) * sign
    return Points(x, y, rows["stderr"].to_numpy(dtype=float), run, group.astype(int), names)


def errors_of(
    points: Points, design: np.ndarray, replicates: int, seed: int
) -> tuple[tuple[float, float, float, float, float], np.ndarray]:
    """Errors on runs left out of one curve and of a curve a group, their difference with interval; and the smoothing
    of each group's curve: its own by cross-validation where it has three runs, else that of the one curve."""
    num_runs = int(points.run.max()) + 1
    together = curves.leave_runs_out(design, points.y, points.run)
    scored = curves.inside_others(points.x, points.run)
    one = curves.best(together, points.y, scored if scored.any() else np.ones_like(scored))
    penalties = np.full(len(points.names), curves.PENALTIES[one])
    each = np.full(len(points.y), np.nan)
    for g, num in enumerate(points.runs_of_group):
        if num < 2:
            continue
        of_group = points.group == g
        _, run = np.unique(points.run[of_group], return_inverse=True)
        x, y = points.x[of_group], points.y[of_group]
        predictions = curves.leave_runs_out(design[of_group], y, run)
        inside = curves.inside_others(x, run)
        if not inside.any():
            continue
        chosen = curves.best(predictions, y, inside)
        if num >= 3:
            penalties[g] = curves.PENALTIES[chosen]
        each[of_group] = np.where(inside, predictions[chosen], np.nan)
    common = np.isfinite(each) & scored
    if not common.any():
        return (float("nan"),) * 5, penalties
    squares = np.stack(
        [np.where(common, np.square(p - points.y), 0) for p in (together[one], np.nan_to_num(each))], axis=1
    )
    by_run = curves.sums_by_run(np.column_stack([squares, common]), points.run, num_runs)
    error_one, error_each = np.sqrt(by_run[:, :2].sum(axis=0) / common.sum())
    drawn = bootstrap.multiplicities(num_runs, replicates, seed) @ by_run
    with np.errstate(divide="ignore", invalid="ignore"):
        roots = np.sqrt(drawn[:, :2] / drawn[:, 2:])
    low, high = bootstrap.percentile_interval(roots[:, 0] - roots[:, 1])
    if np.count_nonzero(by_run[:, 2]) < bootstrap.MINIMUM_RUNS:
        low = high = float("nan")
    return (float(error_one), float(error_each), float(error_one - error_each), low, high), penalties


def variation_of(points: Points, design: np.ndarray, penalties: np.ndarray) -> tuple[float, float, int]:
    """Standard deviations between runs of a group and within runs, and the degrees of freedom of the first (0: no
    group has two runs).

    Moments of the residuals M y from the groups' curves, M = I - H: with B the means over each run and Z its indicator,
    E|B M y|^2 = s_run^2 |B M Z|^2 + s^2 |B M|^2 and the same for what is left within runs; two equations, two unknowns.
    """
    left, right = np.zeros((2, 2)), np.zeros(2)
    for g in range(len(points.names)):
        of_group = points.group == g
        _, run = np.unique(points.run[of_group], return_inverse=True)
        indicator = np.eye(int(run.max()) + 1)[run]
        means = (indicator / indicator.sum(axis=0)).T
        x = design[of_group]
        residual = np.eye(len(x)) - curves.fit_operator(x, penalties[g], x)
        between = means @ residual
        within = residual - indicator @ between
        y = points.y[of_group]
        for row, operator in enumerate((between, within)):
            left[row] += np.square(operator @ indicator).sum(), np.square(operator).sum()
            right[row] += np.square(operator @ y).sum()
    sampling = float(np.nanmean(np.square(points.stderr))) if np.isfinite(points.stderr).any() else 0.0
    freedom = int((points.runs_of_group - 1).sum())
    if freedom < 1:
        return 0.0, float(np.sqrt(max(right[1] / left[1, 1], sampling))), 0
    run_variance, variance = np.linalg.lstsq(left, right, rcond=None)[0]
    if run_variance < 0:
        run_variance, variance = 0.0, right.sum() / left[:, 1].sum()
    return float(np.sqrt(run_variance)), float(np.sqrt(max(variance, sampling))), freedom


def largest_difference(
    points: Points,
    basis: curves.Basis,
    design: np.ndarray,
    penalties: np.ndarray,
    variation: tuple[float, float, int],
    replicates: int,
    seed: int,
) -> tuple[Largest, Largest, float] | None:
    """The largest difference; the largest where both groups have two runs (0 where none has), for there only can a
    difference of groups be told from one of runs; and the least margin within which the groups are equivalent at 5 %.
    None without a common range of losses."""
    freedom = variation[2]
    losses = np.linspace(points.x.min(), points.x.max(), GRID_POINTS)
    at_grid = basis(losses)
    generator = np.random.default_rng(seed)
    values, errors = [], []
    for g in range(len(points.names)):
        of_group = points.group == g
        operator = curves.fit_operator(design[of_group], penalties[g], at_grid)
        values.append(operator @ points.y[of_group])
        errors.append(_draw_errors(points, design, penalties[g], operator, g, variation[:2], replicates, generator))
    replicated = _losses_of_two_runs(points, losses)
    differences, drawn, places, of_two_runs = [], [], [], []
    for g, h, inside in _overlaps(points, losses):
        differences.append((values[g] - values[h])[inside])
        drawn.append((errors[g] - errors[h])[:, inside])
        places += [(g, h, at) for at in losses[inside]]
        of_two_runs.append((replicated[g] & replicated[h])[inside])
    if not places:
        return None
    difference, deviation = np.concatenate(differences), np.concatenate(drawn, axis=1)
    spread = np.maximum(deviation.std(axis=0), 1e-12)
    most = (np.abs(deviation) / spread).max(axis=1)
    if freedom:
        # Student's, because what runs vary by is estimated from few of them.
        most = most / np.sqrt(generator.chisquare(freedom, replicates) / freedom)
    half = np.quantile(most, 0.95) * spread
    one_sided = stats.t.ppf(0.95, freedom) if freedom else stats.norm.ppf(0.95)
    bound = float((np.abs(difference) + one_sided * spread).max())

    def largest(among: np.ndarray) -> Largest:
        if not among.any():
            return Largest(0.0, 0.0, 0.0, float("nan"), ("", ""))
        absolute = np.where(among, np.abs(difference), -np.inf)
        index = int(absolute.argmax())
        g, h, at = places[index]
        better, worse = (g, h) if difference[index] > 0 else (h, g)
        return Largest(
            value=float(absolute[index]),
            low=max(0.0, float((absolute - half).max())),
            high=float((absolute + half).max()),
            at_loss=float(at),
            between=(points.names[better], points.names[worse]),
        )

    return largest(np.ones_like(difference, dtype=bool)), largest(np.concatenate(of_two_runs)), bound


def _draw_errors(
    points: Points,
    design: np.ndarray,
    penalty: float,
    operator: np.ndarray,
    group: int,
    deviations: tuple[float, float],
    replicates: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """Errors of a group's curve (replicates, grid), drawn over its runs.

    Wild cluster bootstrap: the residuals of a run, from the curve without it, are multiplied by one standard normal
    number a draw. As few runs may agree by luck, the errors are widened where they are smaller than those that runs
    shifting by the pooled `deviations` and checkpoints scattering independently would make, which also stand in for a
    single run.
    """
    of_group = points.group == group
    _, run = np.unique(points.run[of_group], return_inverse=True)
    num_runs, y, x = int(run.max()) + 1, points.y[of_group], design[of_group]
    run_sd, noise_sd = deviations
    by_run = curves.sums_by_run(operator.T, run, num_runs)
    modelled = run_sd**2 * np.square(by_run).sum(axis=0) + noise_sd**2 * np.square(operator).sum(axis=1)
    if num_runs < 2:
        shifts = run_sd * generator.standard_normal((replicates, 1)) @ by_run
        left, singular, _ = np.linalg.svd(operator, full_matrices=False)
        return shifts + noise_sd * generator.standard_normal((replicates, len(singular))) @ (left * singular).T
    without = curves.leave_runs_out(x, y, run)[curves.PENALTIES.index(penalty)]
    inside = curves.inside_others(points.x[of_group], run)
    fitted = curves.fit_operator(x, penalty, x) @ y
    residual = np.where(inside, y - without, (y - fitted) * np.sqrt(num_runs / (num_runs - 1)))
    of_runs = curves.sums_by_run(operator.T * residual[:, None], run, num_runs)
    drawn = generator.standard_normal((replicates, num_runs)) @ of_runs
    spread = np.square(of_runs).sum(axis=0)
    return drawn * np.sqrt(np.maximum(1.0, modelled / np.maximum(spread, 1e-30)))


def _losses_of_two_runs(points: Points, losses: np.ndarray) -> np.ndarray:
    """Where at least two runs of a group were seen: shape (groups, len(losses)), boolean."""
    seen = np.zeros((len(points.names), len(losses)), dtype=int)
    for run in np.unique(points.run):
        of_run = points.run == run
        x = points.x[of_run]
        seen[points.group[of_run][0]] += (losses >= x.min()) & (losses <= x.max())
    return seen >= 2


def _overlaps(points: Points, losses: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Pairs of groups and the losses at which both were seen."""
    ranges = [np.quantile(points.x[points.group == g], (EDGE, 1 - EDGE)) for g in range(len(points.names))]
    for g in range(len(ranges)):
        for h in range(g + 1, len(ranges)):
            low, high = max(ranges[g][0], ranges[h][0]), min(ranges[g][1], ranges[h][1])
            common = (points.x >= low) & (points.x <= high)
            enough = all((common & (points.group == k)).sum() >= MINIMUM_POINTS for k in (g, h))
            inside = (losses >= low) & (losses <= high)
            if enough and inside.any():
                yield g, h, inside
