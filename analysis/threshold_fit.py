"""The likelihoods behind a threshold: shapes of a rise, noise, run effects, fits for thousands of draws at once.

The model of one task under one metric, at checkpoint i of run r (docs/methods.md, section Threshold):

    excess over chance = δ + a·x(L_i) + u_r·z_i + noise_i,   a >= 0, u_r ~ N(0, τ²), noise_i ~ N(0, φ·variance_i)

x is a shape of `Shapes`, 1 at the lowest loss; z is 1 once risen, or x itself. Given x, z and τ the rest is least
squares in δ and a, whose normal equations are sums over runs: a draw of runs is a row of multiplicities, and
thousands of draws times hundreds of shapes are a few matrix products. `analysis.threshold` turns fits into verdicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.threshold_shapes import (
    CONTENDERS,
    DECAY_LENGTHS,
    EXPONENTIAL,
    LENGTHS,
    LOGISTIC,
    ROUNDED,
    Data,
    Shapes,
    closer,
    coarse_etas,
    joined,
    shapes,
    with_eta,
    without_eta,
)

REFINEMENTS = ((1.07, 1.15, 60.0), (1.07, 1.15, 30.0), (1.03, 1.06, 30.0), (1.03, 1.06, 16.0))
"""Factors by which exponent and length are varied, up and down, around the best kind of rise at each η within so much
deviance of the best, one after the other: between the kinds above, the profile would be too high."""

SMOOTH_STEPS = (0.08, 0.04, 0.02, 0.01)
"""Distances at which the smooth account is looked at closely, in widths of the range."""

NUM_FINE = 32
"""Values of η over the likely part."""

RUN_EFFECTS = (0.0, 0.15, 0.3, 0.6, 1.2, 2.4, 4.8)
"""Standard deviations τ between runs that are tried, in typical standard errors of a checkpoint."""

ZOOMS = 4
"""Passes at most that narrow the range of η."""

ACCEPTED_ERROR = 4.0
"""Deviance by which neighbouring η may differ at the end of the narrowing."""

LIKELY = 16.0
"""Deviance above the least up to which an η is worth the closer look: four standard errors."""

PER_ETA = 8
"""Candidates at each η that take part in the draws of runs; the others hardly differ from them."""

COLUMNS_AT_ONCE = 64
"""Candidates whose sums are taken at once, for the same reason as `DRAWS_AT_ONCE`."""

DRAWS_AT_ONCE = 250
"""Draws of runs per matrix product, so that the products stay in the processor's cache."""


@dataclass(frozen=True)
class RunSums:
    """Sums over the checkpoints of each run, weighted by 1/variance: each (runs, candidates).

    w, x, y, xx, xy, yy are those of 1, x, excess and their products; of the run effect's z: zz, z (with 1), zx, zy.
    """

    w: np.ndarray
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray
    risen: np.ndarray
    """Σ w over the risen checkpoints (x > 0)."""
    risen_y: np.ndarray


def run_sums(data: Data, rise: np.ndarray) -> RunSums:
    """The sums of every candidate shape `rise` (checkpoints, candidates)."""
    weight, y = (1 / data.variance)[:, None], data.excess[:, None]
    parts = []
    for start in range(0, rise.shape[1], COLUMNS_AT_ONCE):
        x = rise[:, start : start + COLUMNS_AT_ONCE]
        weighted, risen = weight * x, (x > 0) * weight
        parts.append([data.per_run(v) for v in (weighted, weighted * x, weighted * y, risen, risen * y)])
    x, xx, xy, risen, risen_y = (np.concatenate(of_all, axis=1) for of_all in zip(*parts, strict=True))
    w, wy, wyy = (data.per_run(v) for v in (weight, weight * y, weight * y * y))
    return RunSums(w, x, wy, xx, xy, wyy, risen, risen_y)


@dataclass(frozen=True)
class Normal:
    """The normal equations of generalised least squares, by run: each (runs, candidates); `logdet` is that of the
    run effect, log(1 + τ² z'Wz)."""

    w: np.ndarray
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray
    logdet: np.ndarray

    def drawn(self, draws: np.ndarray) -> Normal:
        """Summed over draws of runs (draws, runs): each (draws, candidates)."""
        return Normal(*(draws @ getattr(self, name) for name in ("w", "x", "y", "xx", "xy", "yy", "logdet")))

    def total(self) -> Normal:
        """Summed over all runs: each (1, candidates)."""
        names = ("w", "x", "y", "xx", "xy", "yy", "logdet")
        return Normal(*(getattr(self, name).sum(axis=0, keepdims=True) for name in names))


def with_run_effect(sums: RunSums, sd: np.ndarray | float, proportional: np.ndarray | bool) -> Normal:
    """Run effects of standard deviation `sd` worked in by Woodbury's identity.

    `proportional` says whether a run's effect grows with the rise (z = x) or is there once risen (z = 1 where
    x > 0); both arguments one for all or (candidates,).
    """
    if np.ndim(proportional) == 0:
        z, zz, zx, zy = (
            (sums.x, sums.xx, sums.xx, sums.xy) if proportional else (sums.risen, sums.risen, sums.x, sums.risen_y)
        )
    else:
        z = np.where(proportional, sums.x, sums.risen)
        zz = np.where(proportional, sums.xx, sums.risen)
        zx = np.where(proportional, sums.xx, sums.x)
        zy = np.where(proportional, sums.xy, sums.risen_y)
    variance = np.square(sd)
    share = variance * zz
    gain = variance / (1 + share)
    gain_z, gain_zx = gain * z, gain * zx
    return Normal(
        w=sums.w - gain_z * z,
        x=sums.x - gain_z * zx,
        y=sums.y - gain_z * zy,
        xx=sums.xx - gain_zx * zx,
        xy=sums.xy - gain_zx * zy,
        yy=sums.yy - gain * zy * zy,
        logdet=np.log1p(share),
    )


def deviance(normal: Normal, level_sd: float) -> np.ndarray:
    """−2 log likelihood at the best δ and a >= 0, up to a constant: penalised misfit (δ²/level_sd² included) plus
    the log determinant of the run effects. Shape as `normal`'s."""
    w = normal.w + 1 / level_sd**2
    ratio = normal.x / w
    covariance = normal.xy - ratio * normal.y
    np.maximum(covariance, 0.0, out=covariance)
    spread = normal.xx - ratio * normal.x
    # A shape that is constant over the drawn checkpoints explains nothing that the level does not.
    covariance[spread <= 1e-9 * normal.xx] = 0.0
    np.maximum(spread, 1e-300, out=spread)
    covariance *= covariance
    covariance /= spread
    return normal.yy - normal.y * normal.y / w - covariance + normal.logdet


def coefficients(normal: Normal, level_sd: float) -> tuple[np.ndarray, np.ndarray]:
    """The best a >= 0 and δ, shaped as `normal`'s."""
    w = normal.w + 1 / level_sd**2
    covariance = normal.xy - normal.x * normal.y / w
    spread = normal.xx - normal.x * normal.x / w
    usable = spread > 1e-9 * normal.xx
    slope = np.where(usable, np.maximum(covariance, 0.0) / np.where(usable, spread, 1.0), 0.0)
    return slope, (normal.y - slope * normal.x) / w


@dataclass(frozen=True)
class Fit:
    """All candidates fitted to one task; arrays (candidates,) unless said."""

    data: Data
    """With variances multiplied by φ."""
    shapes: Shapes
    deviance: np.ndarray
    """At each candidate's own best run effect."""
    run_sd: np.ndarray
    """Best τ of each candidate, in the metric's units (at the lowest loss where proportional)."""
    proportional: np.ndarray
    normal: Normal
    """By run, at the best run effects."""
    flat: float
    """Deviance of chance only: δ alone, no run effects."""
    overdispersion: float
    """φ."""

    @property
    def flat_by_run(self) -> np.ndarray:
        """Σ w, Σ w·excess and Σ w·excess² of each run, shape (runs, 3): all that chance only needs."""
        weight, excess = 1 / self.data.variance, self.data.excess
        return self.data.per_run(np.stack([weight, weight * excess, weight * excess**2], axis=1))

    def best(self, among: np.ndarray) -> int | None:
        """Index of the likeliest candidate of those marked; None if none is."""
        return int(np.flatnonzero(among)[self.deviance[among].argmin()]) if among.any() else None

    def within(self, margin: float) -> Fit:
        """The same with only those candidates whose deviance is within `margin` of the best of their account, and at
        each η at most the `PER_ETA` best."""
        keep = np.zeros(len(self.deviance), dtype=bool)
        for account in (self.shapes.emergent, self.shapes.smooth):
            if account.any():
                keep |= account & (self.deviance <= self.deviance[account].min() + margin)
        order = np.lexsort((self.deviance, np.where(self.shapes.emergent, self.shapes.eta, np.inf)))
        new = np.diff(self.shapes.eta[order], prepend=np.nan) != 0
        rank = np.arange(len(order)) - np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
        keep[order[(rank >= PER_ETA) & self.shapes.emergent[order]]] = False
        normal = self.normal
        return replace(
            self,
            shapes=self.shapes.among(keep),
            deviance=self.deviance[keep],
            run_sd=self.run_sd[keep],
            proportional=self.proportional[keep],
            normal=Normal(*(getattr(normal, name)[:, keep] for name in Normal.__dataclass_fields__)),
        )

    def coefficients(self, candidate: int) -> tuple[float, float]:
        """a and δ of one candidate, in the metric's units."""
        slope, level = coefficients(self.normal.total(), self.data.level_sd)
        return float(slope[0, candidate]), float(level[0, candidate])

    def profile_candidates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The values of η within the range, ascending; index and deviance of the best candidate at each."""
        among = np.flatnonzero(self.shapes.emergent)
        among = among[np.lexsort((self.deviance[among], self.shapes.eta[among]))]
        eta, first = np.unique(self.shapes.eta[among], return_index=True)
        return eta, among[first], self.deviance[among[first]]

    def profile(self) -> tuple[np.ndarray, np.ndarray]:
        """The values of η within the range, ascending, and the least deviance at each."""
        eta, _, least = self.profile_candidates()
        return eta, least

    def and_also(self, other: Fit) -> Fit:
        """The candidates of both, fitted to the same data."""
        arrays = ("deviance", "run_sd", "proportional")
        terms = Normal.__dataclass_fields__
        return replace(
            self,
            shapes=joined(self.shapes, other.shapes),
            normal=Normal(*(np.concatenate([getattr(self.normal, n), getattr(other.normal, n)], 1) for n in terms)),
            **{name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in arrays},
        )


def typical_error(data: Data) -> float:
    """Median standard error of a checkpoint."""
    return float(np.sqrt(np.median(data.variance)))


def best_run_effects(
    data: Data, sums: RunSums, tries: Sequence[float] = RUN_EFFECTS, kinds: Sequence[bool] = (False, True)
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each candidate the least deviance over τ and both kinds of run effect, with its τ, its kind (whether
    proportional) and its misfit (the deviance without the log determinant). `tries`: τ in typical standard errors."""
    typical = typical_error(data)
    least = np.full(sums.x.shape[1], np.inf)
    sd, proportional, misfit = np.zeros_like(least), np.zeros(len(least), dtype=bool), np.zeros_like(least)
    for kind in kinds:
        for tried in (value for value in tries if value > 0 or not kind):
            normal = with_run_effect(sums, tried * typical, kind).total()
            found = deviance(normal, data.level_sd)[0]
            better = found < least
            least[better], sd[better], proportional[better] = found[better], tried * typical, kind
            misfit[better] = (found - normal.logdet[0])[better]
    return least, sd, proportional, misfit


def flat_deviance(data: Data) -> float:
    """Deviance of chance only."""
    weight = 1 / data.variance
    total = weight.sum() + 1 / data.level_sd**2
    return float((weight * data.excess**2).sum() - (weight * data.excess).sum() ** 2 / total)


def fit(data: Data) -> Fit:
    """Fit all accounts: first passes find φ and the likely range of η, further ones look closely at what is left."""
    etas = coarse_etas(data)
    for _ in range(ZOOMS):
        candidates = shapes(data, etas)
        least, _, _, misfit = best_run_effects(data, run_sums(data, candidates.rise), RUN_EFFECTS[::2], (False,))
        overdispersion = max(1.0, min(float(misfit[least.argmin()]), flat_deviance(data)) / max(1, len(data.loss) - 3))
        least = least / overdispersion
        error = grid_error(candidates, least)
        etas = closer_etas(etas, candidates, least, LIKELY + error)
        if error < ACCEPTED_ERROR:
            break
    data = data.scaled(overdispersion)
    fitted = _fit_shapes(data, closer(data, etas, candidates, least), overdispersion)
    tried = int(np.abs(fitted.run_sd[fitted.deviance.argmin()] / typical_error(data) - RUN_EFFECTS).argmin())
    near = RUN_EFFECTS[max(tried - 1, 0) : tried + 2]
    # Where chance alone does about as well, no η is going to be told.
    risen = fitted.flat - fitted.deviance.min() > 3 * np.log(len(data.loss))
    for up, stretch, margin in REFINEMENTS if risen else ():
        if (more := varied(data, fitted, (up, stretch), margin)) is not None:
            fitted = fitted.and_also(_fit_shapes(data, more, overdispersion, near))
    for step in SMOOTH_STEPS if risen else ():
        if (more := varied_smooth(data, fitted, step)) is not None:
            fitted = fitted.and_also(_fit_shapes(data, more, overdispersion, near))
    return fitted


def grid_error(candidates: Shapes, deviances: np.ndarray) -> float:
    """By how much the least deviance may be too high because η lies between those tried: the rise to the nearer
    neighbour of the best, same kind; 0 without a candidate."""
    among = np.flatnonzero(candidates.emergent)
    if not len(among):
        return 0.0
    best = among[deviances[among].argmin()]
    kind = (candidates.power[among] == candidates.power[best]) & (candidates.length[among] == candidates.length[best])
    same = among[kind]
    position = int(np.flatnonzero(same == best)[0])
    beside = [i for i in (position - 1, position + 1) if 0 <= i < len(same)]
    return float(min((deviances[same[i]] - deviances[best] for i in beside), default=0.0))


def _fit_shapes(data: Data, candidates: Shapes, overdispersion: float, tries: Sequence[float] = RUN_EFFECTS) -> Fit:
    sums = run_sums(data, candidates.rise)
    least, sd, proportional, _ = best_run_effects(data, sums, tries)
    normal = with_run_effect(sums, sd, proportional)
    normal = Normal(*(np.broadcast_to(getattr(normal, n), sums.x.shape) for n in Normal.__dataclass_fields__))
    return Fit(data, candidates, least, sd, proportional, normal, flat_deviance(data), overdispersion)


def varied(data: Data, fitted: Fit, factors: tuple[float, float], margin: float) -> Shapes | None:
    """Around the best kind at each η within `margin` of the least deviance, those with exponent and length a factor up
    and down; None if there is no η."""
    eta, best, deviances = fitted.profile_candidates()
    best = best[deviances <= deviances.min() + margin] if len(eta) else best
    if not len(best):
        return None
    up, stretch = factors
    candidates = fitted.shapes.among(best)
    grid = [(f, g) for f in (1 / up, 1, up) for g in (1 / stretch, 1, stretch) if (f, g) != (1, 1)]
    f, g = (np.repeat(column, len(best)) for column in np.array(grid).T)
    etas, powers, lengths = (np.tile(v, len(grid)) for v in (candidates.eta, candidates.power, candidates.length))
    useful = np.isfinite(lengths) | (g == 1)
    return with_eta(data, etas[useful], (powers * f)[useful], (lengths * g)[useful])


def varied_smooth(data: Data, fitted: Fit, step: float) -> Shapes | None:
    """Around the best smooth candidate of each family without an η, those with the middle up to a `step` of the range
    to either side and the length as much longer or shorter, in halves of that. As closely as the η of the emergent
    account: else a smooth curve between two of the candidates tried is called emergent where the scores are precise.
    None if all of them are far behind."""
    shapes, parts = fitted.shapes, []
    for family in (EXPONENTIAL, LOGISTIC, ROUNDED):
        among = np.flatnonzero(shapes.family == family)
        if not len(among):
            continue
        best = among[fitted.deviance[among].argmin()]
        shifts = np.linspace(-step, step, 5)
        if family == EXPONENTIAL:
            lengths = shapes.length[best] * np.exp(2 * shifts)
            middles = np.full(len(lengths), np.nan)
        else:
            shift, stretch = (grid.ravel() for grid in np.meshgrid(shifts, 2 * shifts))
            middles, lengths = shapes.middle[best] + shift, shapes.length[best] * np.exp(stretch)
        # Shorter than the shortest tried a curve is at chance for all that can be seen: no smooth one.
        shortest = min(DECAY_LENGTHS) if family == EXPONENTIAL else min(LENGTHS)
        parts.append(without_eta(data, family, middles, np.maximum(lengths, shortest)))
    return joined(*parts) if parts else None


def closer_etas(tried: np.ndarray, candidates: Shapes, deviances: np.ndarray, margin: float) -> np.ndarray:
    """`NUM_FINE` values of η over the part of the range within `margin` of the least deviance, and elsewhere every
    second of those `tried` that some draw of runs may prefer."""
    inside = candidates.emergent
    if not inside.any():
        return tried
    eta, deviances = candidates.eta[inside], deviances[inside]
    likely = eta[deviances < deviances.min() + margin]
    tried = np.unique(eta[deviances < deviances.min() + margin + CONTENDERS])
    # Neighbours among all, however unlikely: the profile must be seen to rise on both sides.
    every = np.unique(eta)
    low = every[max(np.searchsorted(every, likely.min()) - 1, 0)]
    high = every[min(np.searchsorted(every, likely.max()) + 1, len(every) - 1)]
    elsewhere = tried[(tried < low) | (tried > high)]
    return np.sort(np.concatenate([np.linspace(low, high, NUM_FINE), elsewhere[::2]]))
