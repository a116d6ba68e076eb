"""What draws of runs say about a threshold: η of each bootstrap replicate, the likelihood of runs left out, and the
interval of η whose width they calibrate.

Draws are rows of multiplicities put through the normal equations of `analysis.threshold_fit.Fit`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.threshold_fit import DRAWS_AT_ONCE, Fit, Normal, coefficients, deviance
from analysis.threshold_shapes import CONTENDERS

DELTA_CHI2 = 3.841458820694124
"""95 % quantile of chi-square with one degree of freedom: cutoff of the plain profile interval."""

NAMES = tuple(Normal.__dataclass_fields__)
"""Of the terms of the normal equations."""


@dataclass(frozen=True)
class Replicates:
    """One value per draw of runs, shape (draws,)."""

    eta: np.ndarray
    """η of the likeliest emergent candidate; NaN where the task has none."""
    lead: np.ndarray
    """Deviance of the likeliest smooth candidate minus that of the likeliest emergent one."""
    rise: np.ndarray
    """Deviance of chance only minus the least of all."""
    excess: np.ndarray
    """Deviance of the whole table's η minus that of the likeliest η, both within the emergent account."""


def replicates(fit: Fit, draws: np.ndarray) -> Replicates:
    """Fit every draw of runs, (draws, runs) multiplicities; the run effects' τ stay those of the whole."""
    fit = fit.within(CONTENDERS)
    parts = [_fit_draws(fit, draws[i : i + DRAWS_AT_ONCE].astype(float)) for i in range(0, len(draws), DRAWS_AT_ONCE)]
    return Replicates(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _fit_draws(fit: Fit, draws: np.ndarray) -> tuple[np.ndarray, ...]:
    level_sd, shapes = fit.data.level_sd, fit.shapes
    found = deviance(fit.normal.drawn(draws), level_sd)
    flat = draws @ fit.flat_by_run
    flat = flat[:, 2] - flat[:, 1] ** 2 / (flat[:, 0] + 1 / level_sd**2)
    if not shapes.emergent.any():
        none = np.full(len(draws), np.nan)
        return none, np.full(len(draws), -np.inf), flat - found.min(axis=1), none
    emergent = np.flatnonzero(shapes.emergent)
    among = found[:, emergent]
    best = among.argmin(axis=1)
    least = among[np.arange(len(draws)), best]
    smooth = found[:, shapes.smooth].min(axis=1)
    whole = found[:, shapes.eta == shapes.eta[fit.best(shapes.emergent)]].min(axis=1)
    return shapes.eta[emergent[best]], smooth - least, flat - np.minimum(least, smooth), whole - least


def heldout_leads(fit: Fit) -> np.ndarray:
    """Log-likelihood of each run under the emergent account minus that under the smooth one, both fitted without
    that run (leave-one-run-out): nats, shape (runs,); NaN where the task has no emergent candidate."""
    runs = fit.data.num_runs
    if not fit.shapes.emergent.any():
        return np.full(runs, np.nan)
    others = 1.0 - np.eye(runs)
    normal = fit.normal.drawn(others)
    found = deviance(normal, fit.data.level_sd)
    deviances = []
    for account in (fit.shapes.emergent, fit.shapes.smooth):
        among = np.flatnonzero(account)
        best = among[found[:, among].argmin(axis=1)]
        rows = np.arange(runs)
        trained = Normal(*(getattr(normal, name)[rows, best] for name in NAMES))
        slope, level = coefficients(trained, fit.data.level_sd)
        w, x, y, xx, xy, yy, logdet = (np.broadcast_to(getattr(fit.normal, n), found.shape)[rows, best] for n in NAMES)
        misfit = yy - 2 * slope * xy - 2 * level * y + slope**2 * xx + 2 * slope * level * x + level**2 * w
        deviances.append(misfit + logdet)
    emergent, smooth = deviances
    return (smooth - emergent) / 2


def calibrated_cutoff(excess: np.ndarray, num_runs: int) -> float:
    """Cutoff of the profile for a 95 % interval (*ours*).

    `excess` (draws,) is by how much the deviance of the whole table's η exceeds the least one in each draw of runs:
    under draws of runs what the deviance of the true η does over tables. Its 95 % quantile replaces that of
    chi-square; draws of few clusters vary too little, so it is widened by R/(R − 1)·(t(R − 1)/z)², the usual
    correction of cluster-robust standard errors, squared. At least `DELTA_CHI2`.
    """
    widening = num_runs / (num_runs - 1) * (stats.t.ppf(0.975, num_runs - 1) / stats.norm.ppf(0.975)) ** 2
    return max(DELTA_CHI2, float(np.quantile(excess, 0.95)) * widening)


def profile_interval(eta: np.ndarray, deviances: np.ndarray, cutoff: float) -> tuple[float, float]:
    """Where the profile `deviances` over the ascending `eta` lies within `cutoff` of its minimum, ends by linear
    interpolation; a side that never rises that far ends at the last η."""
    over = deviances - deviances.min() - cutoff
    inside = np.flatnonzero(over <= 0)
    first, last = inside[0], inside[-1]
    low, high = float(eta[first]), float(eta[last])
    if first > 0:
        low = float(np.interp(0.0, over[[first, first - 1]], eta[[first, first - 1]]))
    if last < len(eta) - 1:
        high = float(np.interp(0.0, over[[last, last + 1]], eta[[last, last + 1]]))
    return low, high


def vertex(eta: np.ndarray, deviances: np.ndarray) -> float:
    """The η of least deviance, refined by the parabola through the least value and its neighbours."""
    best = int(deviances.argmin())
    if not 0 < best < len(eta) - 1:
        return float(eta[best])
    left, right = eta[best] - eta[best - 1], eta[best + 1] - eta[best]
    fall, rise = deviances[best - 1] - deviances[best], deviances[best + 1] - deviances[best]
    denominator = 2 * (left * rise + right * fall)
    if denominator <= 0:
        return float(eta[best])
    shift = (right**2 * fall - left**2 * rise) / denominator
    return float(eta[best] + np.clip(shift, -left / 2, right / 2))
