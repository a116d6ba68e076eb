"""At which pre-training loss does a task rise from chance? Three accounts of each task are compared.

*Chance only*: performance is the guessing level at every loss. *Smooth*: it falls with loss over the whole
range that was seen. *Emergent* (Du et al. 2024, Eq. 3): chance for L >= η, falling in L below η. The verdict is
*emergent* (with η and an interval), *smooth*, *not reached* (with a bound on η) or *undecided*; docs/methods.md
has the formulae and what simulations say about them.

    python -m analysis.threshold results.csv
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import optimize

from analysis import bootstrap
from analysis.chance import GUESS_RATE
from analysis.names import in_order, task_title
from analysis.table import FRACTIONS, load, run_ids
from tokenizer import cli

EMERGENT, SMOOTH, NOT_REACHED, UNDECIDED = "emergent", "smooth", "not reached", "undecided"

POWERS = (0.5, 1.0, 2.0, 3.0)
"""Exponents p of the rise a·(η − L)^p, for the smooth and the emergent account alike."""

NUM_CANDIDATES = 121
"""Values of η tried over the range of losses."""

BEYOND = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Values of η tried above the highest loss, in widths of the range: the smooth account."""

DECAY_LENGTHS = (0.125, 0.18, 0.25, 0.35, 0.5, 0.7, 1.0)
"""Lengths s of the exponential rise a·exp(−(L − L_min)/s), in widths of the range: smooth as well."""

MINIMUM_POINTS = 3
"""Checkpoints that must lie on each side of an η for it to be called a threshold, from two runs at least."""

EVIDENCE = 6.0
"""Difference in BIC that a rise, or a plateau before it, has to show ("strong" in Kass and Raftery 1995)."""

SMOOTH_EVIDENCE = 2.0
"""Difference in BIC by which the smooth account must lead the emergent one ("positive" there)."""

MINIMUM_SUPPORT = 0.8
"""Share of bootstrap replicates that must prefer the emergent account for the verdict *emergent*."""

DELTA_CHI2 = 3.841458820694124
"""95 % quantile of chi-square with one degree of freedom: the profile interval of η."""


@dataclass(frozen=True)
class Threshold:
    """The verdict on one task under one metric. Losses in nats per token; NaN where not estimated."""

    task: str
    metric: str
    verdict: str
    eta: float
    """The threshold, only with the verdict *emergent*."""
    eta_low: float
    eta_high: float
    """95 % interval of η: the hull of profile and bootstrap intervals, within the losses seen."""
    eta_below: float
    """With the verdict *not reached*: a threshold, if there is one, lies below this loss."""
    support: float
    """Share of bootstrap replicates (draws of runs) in which the emergent account fits best."""
    bic_chance: float
    bic_smooth: float
    bic_emergent: float
    power: float
    """Exponent of the best emergent fit."""
    level: float
    """Fitted guessing level of the account that the verdict names, as a value of the metric."""
    height: float
    """Fitted rise over the guessing level at the lowest loss, in the metric's units; 0 for *not reached*."""
    overdispersion: float
    """Residual variance over binomial variance, at least 1."""
    num_runs: int
    num_checkpoints: int
    loss_low: float
    loss_high: float
    reason: str
    """In words, why the verdict."""


@dataclass(frozen=True)
class _Family:
    """Candidate shapes of the rise, and which account each belongs to."""

    eta: np.ndarray
    """η of each candidate; infinite for the exponential ones, which have none."""
    power: np.ndarray
    """Exponent of each candidate; NaN for the exponential ones."""
    rise: np.ndarray
    """Height of the rise at each checkpoint, 1 at the lowest loss: shape (checkpoints, candidates)."""
    step: float
    """Distance between neighbouring values of η within the range of losses."""
    emergent: np.ndarray
    smooth: np.ndarray


def thresholds(
    table: pd.DataFrame, *, loss: str = "loss", replicates: int = bootstrap.REPLICATES, seed: int = 0
) -> list[Threshold]:
    """The verdict for each task and metric of a results table, against the column `loss`."""
    return [
        _threshold(task, str(metric), rows, loss, replicates, seed)
        for task in in_order(table["task"])
        for metric, rows in table[table["task"] == task].groupby("metric")
    ]


def as_table(results: Sequence[Threshold]) -> pd.DataFrame:
    """One row per task and metric."""
    return pd.DataFrame([asdict(result) for result in results])


def noise_variance(rows: pd.DataFrame, loss: np.ndarray) -> np.ndarray:
    """Sampling variance of each value, shape (checkpoints,).

    Binomial for shares of rows, at the isotonic fit over `loss` rather than at the observed share (which would
    give the unluckiest checkpoints the most weight); the squared standard error for other metrics.
    """
    value = rows["value"].to_numpy(dtype=float)
    count = rows["rows"].to_numpy(dtype=float)
    if rows["metric"].iloc[0] in FRACTIONS:
        order = np.argsort(loss, kind="stable")
        fitted = np.empty_like(value)
        fitted[order] = optimize.isotonic_regression(value[order], weights=count[order], increasing=False).x
        floor = np.maximum(GUESS_RATE, 1 / count)
        share = np.clip(fitted, floor, 1 - floor)
        return share * (1 - share) / count
    error = rows["stderr"].to_numpy(dtype=float)
    positive = error[np.isfinite(error) & (error > 0)]
    typical = np.median(positive) if len(positive) else max(float(np.std(value)), 1e-9)
    return np.square(np.where(np.isfinite(error) & (error > 0), error, typical))


def _level_spread(chance: float, rows: float, metric: str, variance: np.ndarray) -> float:
    """How far knowing nothing may lie from chance on these very rows, which all checkpoints share (1 sd)."""
    if metric not in FRACTIONS:
        return float(np.sqrt(np.median(variance)))
    return float(np.sqrt(chance * (1 - chance) / rows)) if 0 < chance < 1 else GUESS_RATE


def _family(loss: np.ndarray, run_index: np.ndarray) -> _Family:
    low, high = float(loss.min()), float(loss.max())
    width = high - low
    inside = np.linspace(low, high, NUM_CANDIDATES)[1:-1]
    etas = np.concatenate([inside, high + width * np.array(BEYOND)])
    testable = np.array([_both_sides(loss, run_index, eta) for eta in etas])
    eta, power = (grid.ravel() for grid in np.meshgrid(etas, np.array(POWERS), indexing="ij"))
    rise = np.maximum(0.0, (eta[None, :] - loss[:, None])) ** power[None, :]
    rise /= (eta - low) ** power
    decay = np.exp(-(loss[:, None] - low) / (width * np.array(DECAY_LENGTHS)))
    none = np.full(len(DECAY_LENGTHS), np.nan)
    return _Family(
        np.concatenate([eta, np.full(len(none), np.inf)]),
        np.concatenate([power, none]),
        np.concatenate([rise, decay], axis=1),
        inside[1] - inside[0],
        np.concatenate([np.repeat(testable, len(POWERS)), none > 0]),
        np.concatenate([np.repeat(etas >= high, len(POWERS)), np.isnan(none)]),
    )


def _both_sides(loss: np.ndarray, run_index: np.ndarray, eta: float) -> bool:
    above = loss >= eta
    return all(side.sum() >= MINIMUM_POINTS and len(np.unique(run_index[side])) >= 2 for side in (above, ~above))


def _misfit(
    weights: np.ndarray, rise: np.ndarray, excess: np.ndarray, per_run: np.ndarray, draws: np.ndarray, spread: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Penalised weighted least squares of excess = δ + a·x, a >= 0, for each draw of runs and each candidate.

    `weights` (n,), `rise` (n, candidates), `excess` (n,), `per_run` (runs, n) sums over a run's checkpoints,
    `draws` (replicates, runs). Returns the misfit Σ w (excess − δ − a x)² + δ²/spread² of shape (replicates,
    candidates), that of chance only (replicates,), and a and δ (replicates, candidates).
    """
    sums = per_run * weights
    penalty = 1 / spread**2
    sw = (draws @ sums.sum(axis=1))[:, None] + penalty
    sy = (draws @ (sums @ excess))[:, None]
    syy = (draws @ (sums @ excess**2))[:, None]
    sx = draws @ (sums @ rise)
    sxx = draws @ (sums @ rise**2)
    sxy = draws @ (sums @ (rise * excess[:, None]))
    determinant = sw * sxx - sx**2
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(determinant > 1e-9 * sw * sxx, (sw * sxy - sx * sy) / determinant, 0.0)
    slope = np.maximum(slope, 0.0)
    level = (sy - slope * sx) / sw
    misfit = syy - 2 * slope * sxy - 2 * level * sy + slope**2 * sxx + 2 * slope * level * sx + level**2 * sw
    return misfit, (syy - sy**2 / sw)[:, 0], slope, level


def _threshold(task: str, metric: str, rows: pd.DataFrame, column: str, replicates: int, seed: int) -> Threshold:
    loss = rows[column].to_numpy(dtype=float)
    run, run_index = np.unique(run_ids(rows).to_numpy(dtype=str), return_inverse=True)
    unknown = {field.name: float("nan") for field in fields(Threshold)} | {
        "task": task,
        "metric": metric,
        "verdict": UNDECIDED,
        "num_runs": len(run),
        "num_checkpoints": len(loss),
        "loss_low": float(loss.min()),
        "loss_high": float(loss.max()),
    }
    if len(run) < bootstrap.MINIMUM_RUNS:
        need = f"at least {bootstrap.MINIMUM_RUNS} runs are needed"
        return Threshold(**unknown | {"reason": f"{len(run)} run{'s' * (len(run) != 1)} with this task; {need}"})
    if np.ptp(loss) < 1e-9:
        return Threshold(**unknown | {"reason": f"the loss is {loss[0]:g} at every checkpoint"})
    if len(loss) < 6:
        return Threshold(**unknown | {"reason": f"{len(loss)} checkpoints; at least 6 are needed"})

    sign = 1.0 if rows["higher_is_better"].iloc[0] else -1.0
    chance = rows["chance"].to_numpy(dtype=float)
    excess = sign * (rows["value"].to_numpy(dtype=float) - chance)
    variance = noise_variance(rows, loss)
    spread = _level_spread(float(np.median(chance)), float(np.median(rows["rows"])), metric, variance)
    family = _family(loss, run_index)
    per_run = (run_index[None, :] == np.arange(len(run))[:, None]).astype(float)
    everything = np.ones((1, len(run)))

    misfit, flat, _, _ = _misfit(1 / variance, family.rise, excess, per_run, everything, spread)
    freedom = max(1, len(loss) - 3)
    overdispersion = max(1.0, float(min(misfit.min(), flat[0])) / freedom)
    weights = 1 / (variance * overdispersion)
    misfit, flat, slope, level = _misfit(weights, family.rise, excess, per_run, everything, spread)
    misfit, slope, level = misfit[0], slope[0], level[0]
    cost = 3 * math.log(len(loss))
    best_smooth = _argmin(misfit, family.smooth)
    best_emergent = _argmin(misfit, family.emergent)
    bic_chance = float(flat[0])
    bic_smooth = float(misfit[best_smooth]) + cost
    bic_emergent = float(misfit[best_emergent]) + cost if best_emergent is not None else float("inf")
    constant = float((weights * excess).sum() / weights.sum())
    bic_constant = float((weights * (excess - constant) ** 2).sum()) + math.log(len(loss))
    typical = float(np.median(chance))

    draws = bootstrap.multiplicities(len(run), replicates, seed).astype(float)
    drawn, drawn_flat, _, _ = _misfit(weights, family.rise, excess, per_run, draws, spread)
    drawn_best = drawn.argmin(axis=1)
    rising = drawn_flat - drawn.min(axis=1) > cost
    support = float(np.mean(rising & family.emergent[drawn_best]))

    found = unknown | {
        "support": support,
        "bic_chance": bic_chance,
        "bic_smooth": bic_smooth,
        "bic_emergent": bic_emergent if np.isfinite(bic_emergent) else float("nan"),
        "overdispersion": overdispersion,
    }
    verdict, reason = _verdict(bic_chance, bic_smooth, bic_emergent, support)
    if min(bic_smooth, bic_emergent) > bic_constant < bic_chance - EVIDENCE:
        verdict = UNDECIDED
        reason = f"performance stays at {typical + sign * constant:.3f} at every loss, while chance is {typical:.3f}"
    elif verdict != NOT_REACHED and min(bic_smooth, bic_emergent) > bic_constant:
        verdict, reason = NOT_REACHED, "performance does not change with loss"
    if verdict == EMERGENT:
        inside = family.eta <= loss.max()
        profile = family.eta[inside & (misfit - misfit[inside].min() <= DELTA_CHI2)]
        resampled = np.minimum(family.eta[drawn_best][rising], loss.max())
        low, high = bootstrap.percentile_interval(resampled)
        found |= {
            "eta": float(family.eta[best_emergent]),
            "eta_low": float(max(loss.min(), np.nanmin([profile.min(), low]) - family.step)),
            "eta_high": float(min(loss.max(), np.nanmax([profile.max(), high]) + family.step)),
        }
    if verdict == NOT_REACHED:
        level_only = float((weights * excess).sum() / (weights.sum() + 1 / spread**2))
        found |= {"eta_below": float(loss.min()), "height": 0.0, "level": typical + sign * level_only}
    elif verdict in (EMERGENT, SMOOTH):
        best = best_emergent if verdict == EMERGENT else best_smooth
        found |= {
            "power": float(family.power[best]),
            "height": float(slope[best]),
            "level": typical + sign * float(level[best]),
        }
    return Threshold(**found | {"verdict": verdict, "reason": reason})


def _argmin(misfit: np.ndarray, among: np.ndarray) -> int | None:
    return int(np.flatnonzero(among)[misfit[among].argmin()]) if among.any() else None


def _verdict(bic_chance: float, bic_smooth: float, bic_emergent: float, support: float) -> tuple[str, str]:
    rise = bic_chance - min(bic_smooth, bic_emergent)
    if rise < 0:
        return NOT_REACHED, f"chance alone explains the scores (BIC better by {-rise:.1f})"
    if rise < EVIDENCE:
        return UNDECIDED, f"a hint of a rise over chance (BIC {rise:.1f} better, {EVIDENCE:g} needed)"
    if not np.isfinite(bic_emergent):
        return UNDECIDED, "performance rises, but too few checkpoints for a plateau and a rise to be told apart"
    lead = bic_smooth - bic_emergent
    if lead <= -SMOOTH_EVIDENCE:
        return (
            SMOOTH,
            f"performance rises over the whole range of losses (BIC better than with a plateau by {-lead:.1f})",
        )
    if lead < EVIDENCE:
        return (
            UNDECIDED,
            f"performance rises; whether a plateau comes first is open (BIC lead {lead:.1f}, {EVIDENCE:g} needed)",
        )
    if support < MINIMUM_SUPPORT:
        return UNDECIDED, f"a plateau before the rise in only {support:.0%} of the draws of runs"
    return EMERGENT, f"chance, then a rise (BIC better than smooth by {lead:.1f}; {support:.0%} of the draws of runs)"


def sentence(result: Threshold) -> str:
    """The verdict in words, with its numbers."""
    name = task_title(result.task)
    if result.verdict == EMERGENT:
        return (
            f"{name}: emergent at a loss of {result.eta:.2f} (95 % interval {result.eta_low:.2f} to "
            f"{result.eta_high:.2f} nats per token)"
        )
    if result.verdict == NOT_REACHED:
        return f"{name}: not reached; a threshold, if there is one, lies below a loss of {result.eta_below:.2f}"
    return f"{name}: {result.verdict}; {result.reason}"


def main(argv: Sequence[str] | None = None) -> int | None:
    """Print the verdicts of a results table."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.threshold",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, help="a grid directory, or a .csv or .parquet results table")
    parser.add_argument("--replicates", type=int, default=bootstrap.REPLICATES, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    for result in thresholds(load(arguments.path), replicates=arguments.replicates):
        print(sentence(result))
    return None


if __name__ == "__main__":
    cli.run(main)
