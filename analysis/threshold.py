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
from dataclasses import dataclass, field, fields

import numpy as np
import pandas as pd

from analysis import bootstrap, mapping, problems
from analysis import threshold_draws as draws
from analysis.names import in_order, task_title
from analysis.noise import fit_data
from analysis.table import run_ids
from analysis.threshold_fit import Fit, fit
from analysis.threshold_shapes import Data
from tokenizer import cli

EMERGENT, SMOOTH, NOT_REACHED, UNDECIDED = "emergent", "smooth", "not reached", "undecided"

RISE_EVIDENCE = 3.0
"""Difference in BIC that a rise over chance has to show."""

EVIDENCE = 4.0
"""Difference in BIC by which a plateau before the rise has to lead the smooth account. *Ours*, chosen on
simulations so that smooth tasks are seldom called emergent (docs/methods.md has the shares)."""

SMOOTH_EVIDENCE = 2.0
"""Difference in BIC by which the smooth account must lead ("positive" in Kass and Raftery 1995)."""

MINIMUM_SUPPORT = 0.5
"""Share of draws of runs that must prefer the emergent account for the verdict *emergent*."""

FAR_FROM_CHANCE = 6.0
"""Difference in BIC by which a constant must lead chance only to be called one that is not chance."""

PLATEAU_FROM_CHANCE = 3.0
"""Standard deviations of the guessing level by which a plateau may lie from chance and still be called chance. *Ours*:
by the luck of the rows it lies farther in 0.3 % of cases; of 1,305 simulated thresholds none lay farther than 0.7."""

SHAPE_PARAMETERS = 3
"""Parameters of the smooth and the emergent account in the BIC: height, η or length, exponent or middle."""


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
    """95 % interval of η: profile likelihood, its cutoff calibrated by the cluster bootstrap."""
    eta_profile_low: float
    eta_profile_high: float
    """95 % interval by profile likelihood with the cutoff of chi-square."""
    eta_bootstrap_low: float
    eta_bootstrap_high: float
    """95 % interval by percentiles over draws of runs; draws that prefer smooth count as the highest loss."""
    eta_below: float
    """With the verdict *not reached*: a threshold, if there is one, lies below this loss."""
    support: float
    """Share of bootstrap replicates (draws of runs) in which the emergent account fits best."""
    heldout_lead: float
    """Log-likelihood of the emergent account over the smooth one on runs left out of the fit (leave-one-run-out), total
    over all runs, in nats; positive favours emergent."""
    heldout_error: float
    """Its standard error over runs."""
    bic_chance: float
    bic_smooth: float
    bic_emergent: float
    power: float
    """Exponent of the best fit of the account that the verdict names; NaN where its shape is no power."""
    level: float
    """Fitted guessing level of the account that the verdict names, as a value of the metric."""
    height: float
    """Fitted rise over the guessing level at the lowest loss, in the metric's units; 0 for *not reached*."""
    overdispersion: float
    """φ, variance of the residuals over that of the rows, at least 1."""
    run_sd: float
    """τ, standard deviation between runs once risen, in the metric's units (at the lowest loss where proportional)."""
    run_effect_grows: bool
    """Whether a run's effect grows with the rise rather than being constant once risen."""
    num_runs: int
    num_checkpoints: int
    loss_low: float
    loss_high: float
    reason: str
    """In words, why the verdict."""
    eta_draws: np.ndarray | None = field(repr=False, compare=False)
    """With the verdict *emergent*: η of each draw of runs, for the comparison with another metric's."""


def thresholds(
    table: pd.DataFrame, *, loss: str = "loss", replicates: int = bootstrap.REPLICATES, seed: int = 0
) -> list[Threshold]:
    """The verdict for each task and metric of a results table, against the column `loss`."""
    results = []
    for task in in_order(table["task"]):
        for _, rows in table[table["task"] == task].groupby("metric"):
            drawn = bootstrap.multiplicities(run_ids(rows).nunique(), replicates, seed)
            results.append(with_fit(rows, drawn, loss=loss)[0])
    return results


def as_table(results: Sequence[Threshold]) -> pd.DataFrame:
    """One row per task and metric."""
    columns = [item.name for item in fields(Threshold) if item.name != "eta_draws"]
    return pd.DataFrame([{name: getattr(result, name) for name in columns} for result in results])


def _too_little(rows: pd.DataFrame, loss: np.ndarray, num_runs: int) -> str:
    """Why nothing can be said; empty if something can."""
    if reason := problems.incomparable(rows):
        return reason
    if rows["chance"].isna().any():
        return "what knowing nothing scores under this metric is not known"
    if num_runs < bootstrap.MINIMUM_RUNS:
        return (
            f"{num_runs} run{'s' * (num_runs != 1)} with this task; at least {bootstrap.MINIMUM_RUNS} runs are needed"
        )
    if np.ptp(loss) < 1e-9:
        return f"the loss is {loss[0]:g} at every checkpoint"
    if len(loss) < 6:
        return f"{len(loss)} checkpoints; at least 6 are needed"
    return ""


def with_fit(rows: pd.DataFrame, drawn_runs: np.ndarray, *, loss: str = "loss") -> tuple[Threshold, Fit | None]:
    """The verdict on the rows of one task and metric, and the fit behind it; None where too little is there for one.

    Args:
        drawn_runs: how often each run is drawn, (draws, runs), the runs in the order of their names.
    """
    losses = rows[loss].to_numpy(dtype=float)
    num_runs = run_ids(rows).nunique()
    found = {item.name: float("nan") for item in fields(Threshold)} | {
        "eta_draws": None,
        "task": str(rows["task"].iloc[0]),
        "metric": str(rows["metric"].iloc[0]),
        "verdict": UNDECIDED,
        "num_runs": num_runs,
        "num_checkpoints": len(losses),
        "loss_low": float(losses.min()),
        "loss_high": float(losses.max()),
        "run_effect_grows": False,
    }
    if reason := _too_little(rows, losses, num_runs):
        return Threshold(**found | {"reason": reason}), None
    fitted = fit(fit_data(rows, loss))
    drawn = draws.replicates(fitted, drawn_runs)
    found |= _accounts(fitted, drawn)
    verdict, reason = _verdict(**{name: found[name] for name in _VERDICT_FROM})
    constant, bic_constant = _constant(fitted.data)
    sign = 1.0 if rows["higher_is_better"].iloc[0] else -1.0
    chance = float(rows["chance"].median())
    if min(found["bic_smooth"], found["bic_emergent"]) > bic_constant:
        if bic_constant < found["bic_chance"] - FAR_FROM_CHANCE:
            verdict = UNDECIDED
            reason = f"performance stays at {chance + sign * constant:.3f} at every loss, while chance is {chance:.3f}"
        elif verdict != NOT_REACHED:
            verdict, reason = NOT_REACHED, "performance does not change with loss"
    if verdict == EMERGENT and (off := _plateau_off_chance(fitted, chance, sign)):
        verdict, reason = UNDECIDED, off
    if verdict == EMERGENT:
        found |= _intervals(fitted, drawn) | {"eta_draws": drawn.eta}
    if verdict == NOT_REACHED:
        weight = 1 / fitted.data.variance
        level = float((weight * fitted.data.excess).sum() / (weight.sum() + 1 / fitted.data.level_sd**2))
        found |= {"eta_below": float(losses.min()), "height": 0.0, "level": chance + sign * level}
    elif verdict in (EMERGENT, SMOOTH):
        best = fitted.best(fitted.shapes.emergent if verdict == EMERGENT else fitted.shapes.smooth)
        slope, level = fitted.coefficients(best)
        found |= {
            "power": float(fitted.shapes.power[best]),
            "height": slope,
            "level": chance + sign * level,
            "run_sd": float(fitted.run_sd[best]),
            "run_effect_grows": bool(fitted.proportional[best]),
        }
    if not np.isfinite(found["bic_emergent"]):
        found["bic_emergent"] = float("nan")
    return Threshold(**found | {"verdict": verdict, "reason": reason}), fitted


def _accounts(fitted: Fit, drawn: draws.Replicates) -> dict[str, float]:
    """What the verdict is made of, by the names of `Threshold`'s fields."""
    cost = SHAPE_PARAMETERS * math.log(len(fitted.data.loss))
    emergent, smooth = fitted.best(fitted.shapes.emergent), fitted.best(fitted.shapes.smooth)
    leads = draws.heldout_leads(fitted)
    return {
        "support": float(np.mean((drawn.rise > cost) & (drawn.lead > 0))),
        "heldout_lead": float(leads.sum()),
        "heldout_error": float(leads.std(ddof=1) * math.sqrt(len(leads))),
        "bic_chance": fitted.flat,
        "bic_smooth": float(fitted.deviance[smooth]) + cost,
        "bic_emergent": float("inf") if emergent is None else float(fitted.deviance[emergent]) + cost,
        "overdispersion": fitted.overdispersion,
    }


def _plateau_off_chance(fitted: Fit, chance: float, sign: float) -> str:
    """Why the plateau before the rise is not chance; empty if it is as near as guessing on these rows may lie. Eq. 3
    asks for chance at L >= η: who scores 0.44 of 0.25 there knows something already."""
    _, level = fitted.coefficients(fitted.best(fitted.shapes.emergent))
    distance = abs(level) / fitted.data.level_sd
    if distance <= PLATEAU_FROM_CHANCE:
        return ""
    return (
        f"a plateau at {chance + sign * level:.3f} before the rise, which is not chance, {chance:.3f} "
        f"({distance:.0f} standard deviations from it)"
    )


def _constant(data: Data) -> tuple[float, float]:
    """The best constant over chance, free of the penalty, and its BIC."""
    weight = 1 / data.variance
    constant = float((weight * data.excess).sum() / weight.sum())
    return constant, float((weight * (data.excess - constant) ** 2).sum()) + math.log(len(data.loss))


def _intervals(fitted: Fit, drawn: draws.Replicates) -> dict[str, float]:
    eta, deviances = fitted.profile()
    low, high = draws.profile_interval(eta, deviances, draws.calibrated_cutoff(drawn.excess, fitted.data.num_runs))
    plain_low, plain_high = draws.profile_interval(eta, deviances, draws.DELTA_CHI2)
    lowest, highest = float(fitted.data.loss.min()), float(fitted.data.loss.max())
    resampled = np.where(drawn.lead > 0, drawn.eta, highest)
    drawn_low, drawn_high = bootstrap.percentile_interval(resampled)
    # A side on which no η is ruled out is open: it ends with the losses seen.
    low, high = lowest if low <= eta[0] else low, highest if high >= eta[-1] else high
    return {
        "eta": draws.vertex(eta, deviances),
        "eta_low": low,
        "eta_high": high,
        "eta_profile_low": plain_low,
        "eta_profile_high": plain_high,
        "eta_bootstrap_low": drawn_low,
        "eta_bootstrap_high": drawn_high,
    }


_VERDICT_FROM = ("bic_chance", "bic_smooth", "bic_emergent", "support", "heldout_lead", "heldout_error")


def _verdict(
    bic_chance: float,
    bic_smooth: float,
    bic_emergent: float,
    support: float,
    heldout_lead: float,
    heldout_error: float,
) -> tuple[str, str]:
    rise = bic_chance - min(bic_smooth, bic_emergent)
    if rise < 0:
        return NOT_REACHED, f"chance alone explains the scores (BIC better by {-rise:.1f})"
    if rise < RISE_EVIDENCE:
        return UNDECIDED, f"a hint of a rise over chance (BIC {rise:.1f} better, {RISE_EVIDENCE:g} needed)"
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
        return UNDECIDED, f"a plateau before the rise in only {100 * support:.0f} % of the draws of runs"
    if heldout_lead < -heldout_error:
        return UNDECIDED, (
            f"a plateau before the rise fits better (BIC lead {lead:.1f}), but predicts runs left out worse "
            f"({heldout_lead:.1f} ± {heldout_error:.1f} nats)"
        )
    return EMERGENT, (
        f"chance, then a rise (BIC better than smooth by {lead:.1f}; {100 * support:.0f} % of the draws of runs; "
        f"{heldout_lead:+.1f} ± {heldout_error:.1f} nats on runs left out)"
    )


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
    mapping.add_options(parser)
    mapping.add_replicates(parser)
    mapping.add_out(parser)
    arguments = parser.parse_args(argv)
    mapping.check_replicates(arguments.replicates)
    results = thresholds(mapping.load_as_asked(arguments), replicates=arguments.replicates)
    for result in results:
        print(f"{sentence(result)} [{result.metric}]")
    mapping.write_results(as_table(results), arguments.out)
    return None


if __name__ == "__main__":
    cli.run(main)
