"""What the small runs of a grid foretell of its large ones, and what these did.

Each run of at least half of the largest training compute is held out whole; scaling law and thresholds are fitted to
the others. Of each run held out they say the loss at its end, whether it lies below each task's threshold, the score
there, and from where on it is clear of chance. *Ours*; docs/methods.md says what is drawn, and how often it covers.

    python -m analysis.forecast results.csv
    python -m analysis.forecast runs/micro --below 0.25 --out forecast.csv
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

from analysis import bootstrap, forecast_draws, forecast_text, mapping, scaling_law, threshold
from analysis.chance import interval
from analysis.forecast_result import FinalLoss, Forecast, TaskForecast
from analysis.names import in_order
from analysis.scaling_law import Estimate, over_draws
from analysis.table import primary_metrics, run_ids
from analysis.threshold import EMERGENT
from tokenizer import cli
from tokenizer.cli import UserError

BELOW = 0.5
"""Share of the largest training compute from which on a run is held out."""

COMPUTE = "flops_6nd"

NOT_KNOWN = Estimate(*[float("nan")] * 3, 0.0)


def forecast(
    table: pd.DataFrame,
    *,
    below: float = BELOW,
    loss: str = "loss",
    replicates: int = bootstrap.REPLICATES,
    seed: int = 0,
) -> Forecast:
    """Fit the finished runs whose training compute is below the share `below` of the largest, and forecast the others.

    Law, thresholds and curves share the draws of runs. Of a run that is held out only its size, its tokens and how many
    rows were asked are used, and for `TaskForecast.clear_from` its losses; its scores are not.
    """
    runs = run_ids(table)
    finished = runs.isin(runs[table["final"]])
    compute = table[finished].groupby(runs[finished])[COMPUTE].max()
    cut = below * float(compute.max()) if compute.notna().all() and len(compute) else float("nan")
    is_held = runs.isin(compute.index[compute >= cut])
    fitted, held = table[finished & ~is_held], table[finished & is_held]
    counts = (below, cut, run_ids(fitted).nunique(), runs[~finished].nunique())
    if not cut > 0:
        return Forecast(*counts, [], [], "no run is finished" if compute.empty else "the training compute is not known")
    if fitted.empty:
        return Forecast(*counts, [], [], "there is none that is finished")
    drawn = bootstrap.multiplicities(counts[2], replicates, seed)
    law = scaling_law.fit(fitted, loss=loss, points="final", drawn_runs=drawn)
    if law.reason:
        return Forecast(*counts, [], [], law.reason)
    ends = held[held["final"]].drop_duplicates(["grid", "run"]).sort_values([COMPUTE, "run"])
    noise = forecast_draws.run_noise(law, len(ends), np.random.default_rng([seed, 2]))
    known = _Known(law, ends, noise, drawn, sorted(run_ids(fitted).unique()), loss, seed)
    losses = [_final_loss(known, position) for position in range(len(ends))]
    scores: list[TaskForecast] = []
    for task, metric in ((task, primary_metrics(table)[task]) for task in in_order(table["task"])):
        rows, others = (part[(part["task"] == task) & (part["metric"] == metric)] for part in (fitted, held))
        if len(rows) and len(others):
            scores += _of_task(known, rows, others)
    return Forecast(*counts, losses, scores, "")


@dataclass(frozen=True)
class _Known:
    """What the forecasts of all tasks share."""

    law: scaling_law.ScalingLaw
    ends: pd.DataFrame
    """The last checkpoint of each run that is held out."""
    noise: np.ndarray
    """How far each of them lies off the law in log loss, (1 + draws, runs)."""
    drawn: np.ndarray
    """(draws, runs below the cut), by the order of `names`."""
    names: list[str]
    loss: str
    seed: int

    def final_losses(self, position: int) -> np.ndarray:
        """Losses at the end of one of them, (1 + draws,)."""
        at = self.ends.iloc[[position]]
        n, d = (at[column].to_numpy(dtype=float) for column in (self.law.parameters, "tokens"))
        return forecast_draws.final_losses(self.law, n, d, self.noise[:, [position]])[:, 0]


def _final_loss(known: _Known, position: int) -> FinalLoss:
    end = known.ends.iloc[position]
    return FinalLoss(
        str(end["grid"]),
        str(end["run"]),
        str(end["size"]),
        float(end[known.law.parameters]),
        float(end["tokens"]),
        float(end[COMPUTE]),
        over_draws(known.final_losses(position)),
        float(end[known.loss]),
    )


def _of_task(known: _Known, rows: pd.DataFrame, held: pd.DataFrame) -> list[TaskForecast]:
    """One task at each run that is held out and was asked it at its end."""
    columns = np.isin(known.names, run_ids(rows))
    found, fit = threshold.with_fit(rows, known.drawn[:, columns], loss=known.loss)
    curve = None if fit is None else forecast_draws.curve(fit, found.verdict, known.drawn[:, columns])
    results = []
    for position, name in enumerate(run_ids(known.ends)):
        path = held[run_ids(held) == name].sort_values("tokens")
        if path["final"].any():
            results.append(_of_run(known, found, curve, path, position))
    return results


def _of_run(
    known: _Known,
    found: threshold.Threshold,
    curve: forecast_draws.Curve | None,
    path: pd.DataFrame,
    position: int,
) -> TaskForecast:
    """`path`: all checkpoints of the run under this task, the last one its end."""
    end = path.iloc[-1]
    losses, tokens = path[known.loss].to_numpy(dtype=float), path["tokens"].to_numpy(dtype=float)
    low, high = interval(end)
    sd = float("nan") if curve is None else forecast_draws.row_sd(curve.data)
    clear = forecast_draws.is_clear(path["value"].to_numpy(dtype=float), path, sd)
    score = clear_from = NOT_KNOWN
    if curve is not None:
        # By name, so that a task's forecast does not hang on which others are in the table.
        generator = np.random.default_rng([known.seed, 3, zlib.crc32(f"{found.task} {end['run']}".encode())])
        at_end = known.final_losses(position)[:, None]
        score = forecast_draws.median(forecast_draws.scores(curve, at_end, path.iloc[[-1]], generator)[:, 0])
        on_the_way = np.broadcast_to(losses, (len(at_end), len(losses)))
        drawn = forecast_draws.scores(curve, on_the_way, path, generator)
        first = forecast_draws.stays_from(forecast_draws.is_clear(drawn, path, sd))
        clear_from = forecast_draws.median(np.append(tokens, np.inf)[first])
    eta, below, eta_tokens = _against_eta(known, found, position)
    return TaskForecast(
        task=found.task,
        metric=found.metric,
        grid=str(end["grid"]),
        run=str(end["run"]),
        verdict=found.verdict,
        eta=eta,
        below=below,
        ends_below=bool(losses[-1] < found.eta) if found.verdict == EMERGENT else None,
        eta_tokens=eta_tokens,
        eta_between=_between(tokens, losses < found.eta) if found.verdict == EMERGENT else (float("nan"),) * 2,
        chance=float(end["chance"]),
        score=score,
        measured=Estimate(float(end["value"]), low, high),
        clear_from=clear_from,
        clear_between=_between(tokens, clear),
        risen=bool(clear[-1]),
        reason=found.reason,
    )


def _against_eta(known: _Known, found: threshold.Threshold, position: int) -> tuple[Estimate, float, Estimate]:
    """η, the share of draws in which the run ends below it, and the tokens at which a run of its size would."""
    if found.verdict != EMERGENT:
        return NOT_KNOWN, float("nan"), NOT_KNOWN
    eta = forecast_draws.eta_draws(found)
    below = float(np.mean((known.final_losses(position) < eta)[1:]))
    size = float(known.ends.iloc[position][known.law.parameters])
    # A run that lies above the law by its noise needs the tokens of a lower loss.
    tokens = known.law.tokens_for(eta * np.exp(-known.noise[:, position]), size)
    return Estimate(found.eta, found.eta_low, found.eta_high), below, tokens


def _between(tokens: np.ndarray, passed: np.ndarray) -> tuple[float, float]:
    """The tokens of the last checkpoint that has not passed, 0 without one, and of the first from which on all have."""
    first = int(forecast_draws.stays_from(passed))
    return float(np.insert(tokens, 0, 0.0)[first]), float(np.append(tokens, np.inf)[first])


def as_table(result: Forecast) -> pd.DataFrame:
    """One row per task and run held out: what was forecast and what was measured, the run's loss beside it."""
    runs = {(it.grid, it.run): it for it in result.losses}
    rows = []
    for it in result.scores:
        run = runs[it.grid, it.run]
        row = {
            "grid": run.grid,
            "run": run.run,
            "size": run.size,
            "parameters": run.parameters,
            "tokens": run.tokens,
            COMPUTE: run.flops,
        }
        row |= {"cut": result.cut, "runs_fitted": result.num_fitted}
        row |= _flat("loss", run.forecast) | {"loss_measured": run.measured, "loss_inside": run.inside}
        for item in fields(TaskForecast):
            value = getattr(it, item.name)
            if isinstance(value, Estimate):
                row |= _flat(item.name, value)
            elif isinstance(value, tuple):
                row |= {f"{item.name}_after": value[0], f"{item.name}_by": value[1]}
            else:
                row[item.name] = value
        rows.append(row | {"score_inside": it.inside, "clear_inside": it.clear_inside})
    return pd.DataFrame(rows)


def _flat(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def main(argv: Sequence[str] | None = None) -> int | None:
    """Print what was forecast for each run held out, and what it did."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.forecast", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    mapping.add_options(parser)
    parser.add_argument(
        "--below",
        type=float,
        default=BELOW,
        help="share of the largest training compute from which on a run is held out (%(default)s)",
    )
    mapping.add_replicates(parser)
    mapping.add_out(parser)
    arguments = parser.parse_args(argv)
    if not 0 < arguments.below <= 1:
        raise UserError(f"--below {arguments.below:g}: give a share of the largest compute above 0, at most 1, as 0.5")
    mapping.check_replicates(arguments.replicates)
    table = mapping.load_as_asked(arguments)
    result = forecast(table, below=arguments.below, replicates=arguments.replicates)
    for line in forecast_text.lines(result):
        print(line)
    if not result.reason:
        mapping.write_results(as_table(result), arguments.out)
    return None


if __name__ == "__main__":
    cli.run(main)
