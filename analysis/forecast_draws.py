"""The numbers behind a forecast: losses at the end of runs that were not fitted, and the scores that go with a loss.

Every array has a first row for the fit itself, without noise, then one for each draw of runs. The same row of all of
them belongs to the same draw, so that loss, threshold and curve of one draw are set against one another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis import scaling_fit
from analysis.chance import guessing_level
from analysis.columns import GUESS_RATE, RANGES
from analysis.scaling_law import Estimate, ScalingLaw, over_draws
from analysis.table import FRACTIONS
from analysis.threshold import EMERGENT, NOT_REACHED, SMOOTH, Threshold
from analysis.threshold_fit import Fit, Normal, coefficients, deviance
from analysis.threshold_shapes import CONTENDERS, Data, Shapes, rise_at

CLEAR = 0.01
"""Probability of a score called clear of chance where nothing is known, at one checkpoint, one-sided."""


def run_noise(law: ScalingLaw, num_runs: int, generator: np.random.Generator) -> np.ndarray:
    """How far log losses of new runs lie off the law, (1 + draws, runs): Student's t with the residuals' standard
    deviation and degrees of freedom, the five parameters taken off."""
    freedom = law.num_points - law.theta.shape[1]
    sd = law.error * math.sqrt(law.num_points / freedom)
    noise = sd * generator.standard_t(freedom, (len(law.theta), num_runs))
    noise[0] = 0.0
    return noise


def final_losses(law: ScalingLaw, parameters: np.ndarray, tokens: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Losses of runs of these sizes at the end of these tokens, nats per token, (1 + draws, runs)."""
    return np.exp(scaling_fit.predict(law.theta, np.log(parameters), np.log(tokens)) + noise)


def eta_draws(found: Threshold) -> np.ndarray:
    """η, and one value for each draw of runs, (1 + draws,): as spread as its calibrated interval, in the order of the
    η fitted to the draws, so that what a draw does to the law stays beside what it does to η."""
    z = stats.norm.ppf((stats.rankdata(found.eta_draws) - 0.5) / len(found.eta_draws))
    side = np.where(z < 0, found.eta - found.eta_low, found.eta_high - found.eta)
    return np.concatenate([[found.eta], found.eta + side * z / stats.norm.ppf(0.975)])


@dataclass(frozen=True)
class Curve:
    """Performance against loss of one task, (1 + draws,): the candidate that fits each draw best."""

    data: Data
    shapes: Shapes
    slope: np.ndarray
    """Rise over the guessing level at the lowest loss of the fit, in the metric's units."""
    level: np.ndarray
    """Guessing level less chance."""
    run_sd: np.ndarray
    """τ, of the whole table's fit."""
    proportional: np.ndarray
    overdispersion: float
    widening: float
    """By which the draws are spread about the fit: few runs vary too little when they are drawn from one another."""

    def excess(self, loss: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Excess over chance of a new run at its losses (1 + draws, checkpoints); what makes the run better or worse
        than others is drawn once for all its checkpoints."""
        rise = rise_at(self.data, self.shapes, loss)
        fit = self.level[0] + self.slope[0] * rise_at(self.data, self.shapes.among(np.zeros(len(loss), int)), loss)
        run = self.run_sd * generator.standard_normal(len(self.slope))
        run[0] = 0.0
        part = np.where(self.proportional[:, None], rise, rise > 0)
        drawn = self.level[:, None] + self.slope[:, None] * rise
        return fit + self.widening * (drawn - fit) + run[:, None] * part


def curve(fit: Fit, verdict: str, drawn_runs: np.ndarray) -> Curve:
    """The likeliest shape of the account that `verdict` names, for the fit and for each draw (draws, runs): of both
    where it is undecided between them, chance alone where it is *not reached*."""
    fit = fit.within(CONTENDERS)
    among = {EMERGENT: fit.shapes.emergent, SMOOTH: fit.shapes.smooth}.get(verdict, np.ones(len(fit.deviance), bool))
    among = np.flatnonzero(among)
    drawn = np.concatenate([np.ones((1, drawn_runs.shape[1])), drawn_runs])
    normal = fit.normal.drawn(drawn)
    best = among[deviance(normal, fit.data.level_sd)[:, among].argmin(axis=1)]
    every = np.arange(len(drawn))
    chosen = Normal(*(getattr(normal, name)[every, best] for name in Normal.__dataclass_fields__))
    slope, level = coefficients(chosen, fit.data.level_sd)
    if verdict == NOT_REACHED:
        weight, excess, _ = (drawn @ fit.flat_by_run).T
        slope, level = np.zeros(len(drawn)), excess / (weight + 1 / fit.data.level_sd**2)
    risen = fit.data.per_run((fit.shapes.rise[:, best[0]] > 0).astype(int)) > 0
    return Curve(
        fit.data,
        fit.shapes.among(best),
        slope,
        level,
        fit.run_sd[best],
        fit.proportional[best],
        fit.overdispersion,
        few_runs(int(risen.sum())),
    )


def few_runs(num_runs: int) -> float:
    """The usual correction of cluster-robust intervals, as for a threshold's (`threshold_draws.calibrated_cutoff`):
    √(R/(R − 1))·t(R − 1)/z with R >= 2 runs that have risen, on which the curve hangs."""
    spare = max(num_runs, 2) - 1
    return math.sqrt((spare + 1) / spare) * stats.t.ppf(0.975, spare) / stats.norm.ppf(0.975)


def scores(it: Curve, loss: np.ndarray, asked: pd.DataFrame, generator: np.random.Generator) -> np.ndarray:
    """Scores that a new run would be measured with at its losses, (1 + draws, checkpoints) like `loss`.

    They vary by draw of runs, by run, and by the sampling of rows, φ times as much as rows alone.

    Args:
        asked: rows of a results table, one a checkpoint: metric, chance, number of rows. No score of them is read.
    """
    metric = str(asked["metric"].iloc[0])
    sign = 1.0 if asked["higher_is_better"].iloc[0] else -1.0
    value = asked["chance"].to_numpy(dtype=float) + sign * it.excess(loss, generator)
    value = np.clip(value, *RANGES.get(metric, (-np.inf, np.inf)))
    if metric in FRACTIONS:
        # As in the fit: at 0 and 1 the rows would have no noise.
        count = asked["rows"].to_numpy(dtype=float)
        floor = np.maximum(GUESS_RATE, 1 / count)
        share = np.clip(value, floor, 1 - floor)
        sd = np.sqrt(it.overdispersion * share * (1 - share) / count)
    else:
        sd = np.full(value.shape, row_sd(it.data))
    sd[0] = 0.0
    return np.clip(value + sd * generator.standard_normal(value.shape), *RANGES.get(metric, (-np.inf, np.inf)))


def row_sd(data: Data) -> float:
    """Typical standard error of a checkpoint, where it is not that of a share."""
    return float(np.sqrt(np.median(data.variance)))


def is_clear(value: np.ndarray, asked: pd.DataFrame, sd: float) -> np.ndarray:
    """Whether values (..., checkpoints) are clear of chance, at `CLEAR`: by an exact binomial test, or z with `sd`."""
    chance = asked["chance"].to_numpy(dtype=float)
    if asked["metric"].iloc[0] in FRACTIONS:
        count = asked["rows"].to_numpy(dtype=float)
        guess = np.array([guessing_level(level) for level in chance])
        return np.round(value * count) > stats.binom.ppf(1 - CLEAR, count, guess)
    sign = 1.0 if asked["higher_is_better"].iloc[0] else -1.0
    return sign * (value - chance) > stats.norm.ppf(1 - CLEAR) * sd


def stays_from(passed: np.ndarray) -> np.ndarray:
    """The first checkpoint from which on all have `passed` (..., checkpoints); their number if the last has not."""
    trailing = np.logical_and.accumulate(passed[..., ::-1], axis=-1).sum(axis=-1)
    return passed.shape[-1] - trailing


def median(values: np.ndarray) -> Estimate:
    """The median of (1 + draws,) values over the draws, with their interval: for what is bent, such as a score at an
    uncertain loss, where the fit's own number need not lie amid the draws."""
    drawn = np.sort(values[1:])
    return over_draws(np.concatenate([[drawn[len(drawn) // 2]], drawn]))
