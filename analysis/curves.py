"""Smooth curves through checkpoints, and how well they predict a run that they have not seen.

A curve is a penalised cubic B-spline (P-spline, Eilers and Marx 1996): least squares with equally spaced knots and a
penalty on second differences of the coefficients, which makes a straight line of what no data hold. Its smoothness is
chosen by leaving runs out. Everything is linear in the values, so that sums over runs are all that is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import BSpline, PchipInterpolator

NUM_BASIS = 16
"""Coefficients of a curve."""

PENALTIES = tuple(10.0**power for power in (-4, -3, -2, -1, 0, 1, 3))
"""Smoothing parameters tried, relative to the number of points per coefficient; the last is nearly a line."""

_RIDGE = 1e-9

_WARP_NODES = 9


@dataclass(frozen=True)
class Basis:
    """B-splines over an axis, whose knots stand closer where there are more checkpoints.

    The axis is warped first, half way between equal spacing and equal numbers of points: losses of early checkpoints
    lie far apart, and equal spacing would follow single points there.
    """

    nodes: tuple[float, ...]
    """Values of the axis, rising."""
    warped: tuple[float, ...]
    """Where they lie between 0 and 1."""

    @classmethod
    def over(cls, x: np.ndarray) -> Basis:
        """Over the range of `x` (n,), which must not be constant."""
        x = np.asarray(x, dtype=float)
        nodes, index = np.unique(np.quantile(x, np.linspace(0, 1, _WARP_NODES)), return_index=True)
        share = np.linspace(0, 1, _WARP_NODES)[index]
        share[-1] = 1.0
        return cls(tuple(nodes), tuple((nodes - nodes[0]) / (nodes[-1] - nodes[0]) / 2 + share / 2))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Values of the basis functions at `x` (n,): shape (n, NUM_BASIS)."""
        inner = np.linspace(0, 1, NUM_BASIS - 2)
        step = inner[1]
        knots = np.concatenate([inner[0] - step * np.arange(3, 0, -1), inner, inner[-1] + step * np.arange(1, 4)])
        warp = PchipInterpolator(self.nodes, self.warped)
        scaled = warp(np.clip(np.asarray(x, dtype=float), self.nodes[0], self.nodes[-1]))
        return BSpline.design_matrix(np.clip(scaled, 0, 1), knots, 3).toarray()


def penalty_matrix() -> np.ndarray:
    """D'D of second differences, with a trace of a ridge so that few points still have one solution."""
    differences = np.diff(np.eye(NUM_BASIS), n=2, axis=0)
    return differences.T @ differences + _RIDGE * np.eye(NUM_BASIS)


def sums_by_run(values: np.ndarray, run: np.ndarray, num_runs: int) -> np.ndarray:
    """Sums of `values` (n, ...) over the checkpoints of each run: shape (num_runs, ...)."""
    order = np.argsort(run, kind="stable")
    counts = np.bincount(run, minlength=num_runs)
    present = np.flatnonzero(counts)
    starts = (np.cumsum(counts) - counts)[present]
    sums = np.zeros((num_runs, *values.shape[1:]))
    sums[present] = np.add.reduceat(values[order], starts, axis=0)
    return sums


def leave_runs_out(design: np.ndarray, y: np.ndarray, run: np.ndarray) -> np.ndarray:
    """Predictions of each run from the others, for every smoothing parameter.

    `design` (n, NUM_BASIS), `y` (n,), `run` (n,) codes from 0; returns (len(PENALTIES), n). Needs two runs.
    """
    num_runs = int(run.max()) + 1
    gram = sums_by_run(design[:, :, None] * design[:, None, :], run, num_runs)
    right = sums_by_run(design * y[:, None], run, num_runs)
    others_gram = gram.sum(axis=0) - gram
    others_right = right.sum(axis=0) - right
    points = len(y) - np.bincount(run, minlength=num_runs)
    scale = np.asarray(PENALTIES)[:, None] * points / NUM_BASIS
    left = others_gram + scale[:, :, None, None] * penalty_matrix()
    coefficients = np.linalg.solve(left, np.broadcast_to(others_right[..., None], (*scale.shape, NUM_BASIS, 1)))[..., 0]
    return np.einsum("nk,pnk->pn", design, coefficients[:, run])


def fit_operator(design: np.ndarray, penalty: float, grid: np.ndarray) -> np.ndarray:
    """The matrix (len(grid), n) that turns values at the design's points into the curve at `grid` (m, NUM_BASIS)."""
    left = design.T @ design + penalty * len(design) / NUM_BASIS * penalty_matrix()
    return grid @ np.linalg.solve(left, design.T)


def best(predictions: np.ndarray, y: np.ndarray, scored: np.ndarray) -> int:
    """Position of the smoothing parameter with the least squared error over the points that are `scored` (n,)."""
    return int(np.argmin((np.square(predictions - y) * scored).sum(axis=1)))


def inside_others(x: np.ndarray, run: np.ndarray) -> np.ndarray:
    """Which points (n,) lie within the range of the other runs: predicting the rest would be extrapolation."""
    num_runs = int(run.max()) + 1
    low, high = np.full(num_runs, np.inf), np.full(num_runs, -np.inf)
    np.minimum.at(low, run, x)
    np.maximum.at(high, run, x)
    others = ~np.eye(num_runs, dtype=bool)
    others_low = np.where(others, low, np.inf).min(axis=1)
    others_high = np.where(others, high, -np.inf).max(axis=1)
    return (x >= others_low[run]) & (x <= others_high[run])
