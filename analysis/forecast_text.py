"""A forecast and what became of it, in sentences."""

from __future__ import annotations

import numpy as np

from analysis.forecast_result import Forecast, TaskForecast
from analysis.names import task_title
from analysis.scaling_law import Estimate
from analysis.scaling_text import count, quantity
from analysis.threshold import EMERGENT


def share_words(below: float) -> str:
    """`half of the largest compute`, or another share of it."""
    return f"{'half' if below == 0.5 else f'{below:g}'} of the largest compute"


def lines(result: Forecast) -> list[str]:
    """The forecast and what became of it, or why there is none: for the terminal."""
    share = share_words(result.below)
    if result.reason:
        return [f"no forecast from the runs below {share}: {result.reason}"]
    unfinished = f"; {result.num_unfinished} not finished, left out" if result.num_unfinished else ""
    told = [
        f"fitted to the {result.num_fitted} runs below {share} ({result.cut:.1e} FLOPs, 6ND), "
        f"{len(result.losses)} of {result.num_fitted + len(result.losses)} held out{unfinished}"
    ]
    for run in result.losses:
        words = f"{run.forecast.value:.3f} [{run.forecast.low:.3f}, {run.forecast.high:.3f}]"
        told.append(f"{run.run}: loss at its end forecast {words}, measured {run.measured:.3f}: {_where(run.inside)}")
    for task in dict.fromkeys(it.task for it in result.scores):
        of_task = [it for it in result.scores if it.task == task]
        told.append(f"{task_title(task)} ({of_task[0].metric}): {_threshold_words(of_task[0], share)}")
        told += [f"    {it.run}: {words}" for it in of_task for words in _run_words(it)]
    return told


def _where(inside: bool) -> str:
    return "inside" if inside else "outside"


def _threshold_words(it: TaskForecast, share: str) -> str:
    if it.verdict == EMERGENT:
        return f"threshold at a loss of {it.eta.value:.3f} [{it.eta.low:.3f}, {it.eta.high:.3f}]"
    return f"no threshold below {share}: {it.verdict}; {it.reason}"


def _run_words(it: TaskForecast) -> list[str]:
    measured = f"{it.measured.value:.3f} [{it.measured.low:.3f}, {it.measured.high:.3f}]"
    if not np.isfinite(it.score.value):
        return [f"no forecast; score at its end {measured}{', clear of chance' if it.risen else ''}"]
    score = f"{it.score.value:.3f} [{it.score.low:.3f}, {it.score.high:.3f}]"
    words = [f"score at its end forecast {score}, measured {measured}: {_where(it.inside)}"]
    if it.verdict == EMERGENT:
        did = "did" if it.ends_below else "did not"
        words.append(
            f"ends below the threshold with probability {it.below:.2f} (it {did}); one that ends at it takes "
            f"{quantity(it.eta_tokens, 'tokens')}; on its way below it {_between_words(it.eta_between)}"
        )
    if it.risen or np.isfinite(it.clear_from.low):
        words.append(
            f"clear of chance forecast {_clear_words(it.clear_from)}, measured {_between_words(it.clear_between)}: "
            f"{_where(it.clear_inside)}"
        )
    return words


def _between_words(between: tuple[float, float]) -> str:
    """The two checkpoints between which something came to stay."""
    after, by = between
    if np.isinf(by):
        return "never"
    return f"{f'from between {count(after)} and' if after else 'from before'} {count(by)} tokens on"


def _clear_words(it: Estimate) -> str:
    value, low, high = ("never" if np.isinf(at) else count(at) for at in (it.value, it.low, it.high))
    if value == "never":
        return "never" if low == "never" else f"never, at the earliest from {low} tokens on"
    return f"from {value} [{low}, {high}] tokens on"
