"""Candidate shapes of a rise: with a threshold, and smooth ones; and the data that they are held against.

Losses are in nats per token; "widths" are those of the range of losses of the task's checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

POWERS = (0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 2.5, 3.0)
"""Exponents p of the rise a·(η − L)^p, for the smooth and the emergent account alike."""

SATURATIONS = (
    *((1.0, s) for s in (0.1, 0.13, 0.17, 0.22, 0.3, 0.45)),
    *((1.5, s) for s in (0.12, 0.16, 0.22, 0.3, 0.42)),
    *((2.0, s) for s in (0.14, 0.2, 0.28, 0.4)),
)
"""Exponents p and lengths s, in widths of the range, of the rise a·(1 − exp(−((η − L)/s)^p)): one that levels off
again, for p > 1 after it has begun slowly."""

NUM_COARSE = 24
"""Values of η tried over the range of losses, before the likely part of it is looked at closely."""

BEYOND = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Values of η tried above the highest loss, in widths of the range: the smooth account."""

DECAY_LENGTHS = (0.125, 0.18, 0.25, 0.35, 0.5, 0.7, 1.0)
"""Lengths s of the exponential rise exp(−(L − L_min)/s), in widths of the range: smooth as well."""

MIDDLES = (0.0, 0.07, 0.14, 0.21, 0.28, 0.36, 0.45, 0.55, 0.65)
"""Middles m of the logistic rise 1/(1 + exp((L − m)/s)) and of the rounded one ln(1 + exp((m − L)/s)), in widths of
the range above the lowest loss."""

LENGTHS = (0.1, 0.125, 0.16, 0.2, 0.26, 0.35)
"""Lengths s of the two, in widths of the range: smooth, as they are never at chance."""

WITH_ETA, EXPONENTIAL, LOGISTIC, ROUNDED = range(4)
"""Families of shapes."""

MINIMUM_POINTS = 3
"""Checkpoints that must lie on each side of an η for it to be called a threshold, from two runs at least."""

CONTENDERS = 60.0
"""Deviance above the best of its account up to which a candidate is looked at closely and takes part in the draws. In a
draw of runs a lead of Δ varies by about 2·sqrt(Δ), so that one of 60 is turned round by four standard deviations."""


@dataclass(frozen=True)
class Data:
    """One task under one metric, the checkpoints of each run side by side."""

    loss: np.ndarray
    """Nats per token, shape (checkpoints,)."""
    excess: np.ndarray
    """Value minus chance, in the metric's units, positive where better."""
    variance: np.ndarray
    """Sampling variance of each value, times φ."""
    starts: np.ndarray
    """Index of each run's first checkpoint, shape (runs,)."""
    level_sd: float
    """How far knowing nothing may lie from chance on these very rows (one standard deviation)."""

    @property
    def num_runs(self) -> int:
        """Runs with this task."""
        return len(self.starts)

    def per_run(self, values: np.ndarray) -> np.ndarray:
        """Sums over the checkpoints of each run: (checkpoints, ...) to (runs, ...)."""
        return np.add.reduceat(values, self.starts, axis=0)

    def scaled(self, factor: float) -> Data:
        """The same with all variances multiplied."""
        return replace(self, variance=self.variance * factor)


@dataclass(frozen=True)
class Shapes:
    """Candidate shapes of the rise, and which account each belongs to; all of shape (candidates,) but `rise`."""

    eta: np.ndarray
    """η of each; NaN for the exponential, logistic and rounded ones, which have none."""
    power: np.ndarray
    """Exponent of each; NaN for the same."""
    length: np.ndarray
    """Length over which it levels off, in widths of the range; infinite for powers; s of those without an η."""
    middle: np.ndarray
    """m of the logistic and rounded ones, in widths of the range above the lowest loss; NaN for all others."""
    family: np.ndarray
    """`WITH_ETA`, `EXPONENTIAL`, `LOGISTIC` or `ROUNDED`."""
    rise: np.ndarray
    """x at each checkpoint, 1 at the lowest loss: shape (checkpoints, candidates)."""
    emergent: np.ndarray

    @property
    def smooth(self) -> np.ndarray:
        """Marks the smooth ones."""
        return ~self.emergent

    def among(self, keep: np.ndarray) -> Shapes:
        """Those marked, or those at some indices."""
        return Shapes(*(getattr(self, name)[..., keep] for name in Shapes.__dataclass_fields__))


def both_sides(data: Data, eta: np.ndarray) -> np.ndarray:
    """Whether each η has `MINIMUM_POINTS` checkpoints from two runs on either side, shape (etas,)."""
    above = data.loss[:, None] >= eta[None, :]
    enough = np.ones(len(eta), dtype=bool)
    for side in (above, ~above):
        runs = (data.per_run(side.astype(int)) > 0).sum(axis=0)
        enough &= (side.sum(axis=0) >= MINIMUM_POINTS) & (runs >= 2)
    return enough


def coarse_etas(data: Data) -> np.ndarray:
    """Values of η over the range of losses, ends left out."""
    return np.linspace(data.loss.min(), data.loss.max(), NUM_COARSE + 2)[1:-1]


KINDS = np.array([*((power, np.inf) for power in POWERS), *SATURATIONS])
"""Exponent and length of each kind of rise with an η; infinite lengths are the powers, which do not level off."""


def shapes(data: Data, etas: np.ndarray) -> Shapes:
    """The candidates with a threshold at each of `etas` (within the range of losses), and all smooth ones."""
    low, high = float(data.loss.min()), float(data.loss.max())
    beyond = with_eta(data, *_every(high + (high - low) * np.array(BEYOND), KINDS[: len(POWERS)]))
    middles, lengths = (grid.ravel() for grid in np.meshgrid(MIDDLES, LENGTHS, indexing="ij"))
    without = [
        without_eta(data, EXPONENTIAL, np.full(len(DECAY_LENGTHS), np.nan), np.array(DECAY_LENGTHS)),
        *(without_eta(data, family, middles, lengths) for family in (LOGISTIC, ROUNDED)),
    ]
    return joined(with_eta(data, *_every(etas[both_sides(data, etas)], KINDS)), beyond, *without)


def closer(data: Data, etas: np.ndarray, coarse: Shapes, deviances: np.ndarray) -> Shapes:
    """`shapes(data, etas)` without the smooth candidates and the kinds of rise that are far behind the best of their
    account among `coarse`, whose deviances are given."""
    smooth = coarse.among(coarse.smooth & (deviances <= deviances[coarse.smooth].min() + CONTENDERS))
    if not coarse.emergent.any():
        return smooth
    by_kind = deviances[coarse.emergent].reshape(len(KINDS), -1).min(axis=1)
    kinds = KINDS[by_kind <= by_kind.min() + CONTENDERS]
    return joined(with_eta(data, *_every(etas[both_sides(data, etas)], kinds)), smooth)


def _every(etas: np.ndarray, kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """η, exponent and length of each kind at each η, kind by kind."""
    powers, lengths = np.repeat(kinds, len(etas), axis=0).T
    return np.tile(etas, len(kinds)), powers, lengths


def with_eta(data: Data, eta: np.ndarray, power: np.ndarray, length: np.ndarray) -> Shapes:
    """The rises with η, exponent and length as given, each (candidates,); emergent where η is within the range."""
    low, width = float(data.loss.min()), float(np.ptp(data.loss))
    etas, index = np.unique(eta, return_inverse=True)
    with np.errstate(divide="ignore"):
        logs = np.log(np.maximum(0.0, etas - data.loss[:, None]))
    # (L/s)^p as exp(p·ln(L/s)): one logarithm per η, and exp is several times cheaper than a general power.
    levels = np.isfinite(length)
    scale = np.where(levels, width * np.where(levels, length, 1.0), eta - low)
    rise = logs[:, index]
    rise -= np.log(scale)
    rise *= power
    np.exp(rise, out=rise)
    if levels.any():
        top = -np.expm1(-(((eta - low) / scale) ** power))
        rise[:, levels] = -np.expm1(-rise[:, levels]) / top[levels]
    none, family = np.full(len(eta), np.nan), np.full(len(eta), WITH_ETA)
    return Shapes(eta, power, length, none, family, rise, eta < data.loss.max())


def rise_at(data: Data, candidates: Shapes, loss: np.ndarray) -> np.ndarray:
    """x of each candidate at other losses, (candidates, points) like `loss`: its curve, scaled on the losses of `data`
    and continued beyond the lowest of them."""
    low, width = float(data.loss.min()), float(np.ptp(data.loss))
    eta, power, length, middle = (getattr(candidates, name)[:, None] for name in ("eta", "power", "length", "middle"))
    position = (loss - low) / width
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        scale = width * length
        above = np.maximum(0.0, eta - loss)
        levels = np.expm1(-((above / scale) ** power)) / np.expm1(-(((eta - low) / scale) ** power))
        odds, least_odds = np.exp((middle - position) / length), np.exp(middle / length)
        logistic = 1 / (1 + 1 / odds) * (1 + least_odds) / least_odds
        rounded = np.log1p(odds) / np.log1p(least_odds)
        powers = (above / (eta - low)) ** power
    family = candidates.family[:, None]
    kinds = [(family == WITH_ETA) & np.isfinite(length), family == WITH_ETA, family == EXPONENTIAL, family == LOGISTIC]
    return np.select(kinds, [levels, powers, np.exp(-position / length), logistic], rounded)


def joined(*parts: Shapes) -> Shapes:
    """All candidates of some shapes."""
    names = Shapes.__dataclass_fields__
    return Shapes(*(np.concatenate([getattr(part, name) for part in parts], axis=-1) for name in names))


def without_eta(data: Data, family: int, middle: np.ndarray, length: np.ndarray) -> Shapes:
    """The rises of one family with middle and length as given, each (candidates,): smooth, for they are never at
    chance."""
    position = (data.loss[:, None] - data.loss.min()) / np.ptp(data.loss)
    if family == EXPONENTIAL:
        rise = np.exp(-position / length)
    else:
        odds, least_odds = np.exp((middle - position) / length), np.exp(middle / length)
        logistic = odds / (1 + odds) * (1 + least_odds) / least_odds
        rise = logistic if family == LOGISTIC else np.log1p(odds) / np.log1p(least_odds)
    none = np.full(len(length), np.nan)
    return Shapes(none, none, length, middle, np.full(len(length), family), rise, none > 0)
