"""The forecast in the report: what the small runs said of the large ones, and what these did."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis import page
from analysis.figures import loss_words, short_count
from analysis.forecast_result import Forecast, TaskForecast
from analysis.forecast_text import share_words
from analysis.names import metric_title, task_title
from analysis.scaling_law import Estimate
from analysis.summary import count_of
from analysis.threshold import EMERGENT, NOT_REACHED

TITLE = "Forecast of the large runs"

MOST_ROWS = 30
"""Tasks times runs that are shown without being asked for."""


def section(result: Forecast, figure: str = "") -> str:
    """Two tables, losses and scores at the end of each run held out, and a folded one of where on its way it rose."""
    if result.reason:
        words = f"Not computed from the runs below {share_words(result.below)}: {result.reason}."
        return page.section(TITLE, page.caption(words))
    cut, held = f"{_flops(result.cut)} FLOPs, 6ND", count_of(len(result.losses), "larger run")
    left_out = f"; {result.num_unfinished} unfinished left out" if result.num_unfinished else ""
    lead = (
        f"<p>Scaling law, thresholds and curves fitted to the {result.num_fitted} runs below "
        f"{share_words(result.below)} ({cut}{left_out}), beside what {held} did, held out with all checkpoints.</p>"
    )
    note = (
        "In square brackets 95 % intervals. Of a forecast: for what one new run will be measured to do, over draws of "
        "runs (common to law, thresholds and curves), differences between runs, and rows; of a measured score: over "
        "rows. By accident one forecast in twenty lies outside. P(below η): share of the draws in which the run ends "
        "below the threshold of the runs below the cut. A forecast continues the law and the curves beyond what they "
        "were fitted to: a task that begins to rise only there cannot be foreseen. Where the losses lie inside and the "
        "scores outside, performance depends on more than the loss, or its curve bends where no run had been."
    )
    scores = _scores(result.scores)
    if len(result.scores) > MOST_ROWS:
        scores = page.details(f"Each of {len(result.scores)} scores", scores)
    return page.section(TITLE, lead, _losses(result), figure, scores, page.caption(note), _on_the_way(result.scores))


def sentence(result: Forecast) -> str | None:
    """How many losses and scores lay in their intervals, and what became of thresholds; None without a forecast."""
    if result.reason:
        return None
    known = [it for it in result.scores if np.isfinite(it.score.value)]
    held = count_of(len(result.losses), "larger run")
    words = (
        f"Forecast from the {result.num_fitted} runs below {share_words(result.below)}: of {held} the loss at the end "
        f"lies in its 95 % interval in {_of(result.losses)}, their scores in {_of(known)}."
    )
    by_task = {it.task: [other for other in result.scores if other.task == it.task] for it in result.scores}
    emergent = [task for task, of_task in by_task.items() if of_task[0].verdict == EMERGENT]
    if emergent:
        crossed = [it for task in emergent for it in by_task[task]]
        did, expected = sum(it.ends_below for it in crossed), sum(it.below for it in crossed)
        words += (
            f" The thresholds found below it ({_names(emergent)}) were crossed in {did} of {len(crossed)} cases, "
            f"{expected:.1f} being expected."
        )
    hidden = [task for task, of_task in by_task.items() if of_task[0].verdict == NOT_REACHED]
    if hidden:
        risen = [task for task in hidden if any(it.risen for it in by_task[task])]
        words += (
            f" Of the {len(hidden)} tasks not reached below it, {len(risen) or 'none'} rose clear of chance in a "
            f"larger run{': ' + _names(risen) if risen else ''}."
        )
    return words


def _of(results: Sequence) -> str:
    return f"{sum(it.inside for it in results)} of {len(results)}"


def _flops(number: float) -> str:
    return f"{number:.1e}".replace("e+", "e")


def _names(tasks: Sequence[str]) -> str:
    return ", ".join(task_title(task) for task in tasks)


def _losses(result: Forecast) -> str:
    rows = [
        [
            page.text(it.run),
            page.number(short_count(it.parameters)),
            page.number(short_count(it.tokens)),
            page.number(_flops(it.flops)),
            page.interval(it.forecast.value, it.forecast.low, it.forecast.high, ".3f"),
            page.number(f"{it.measured:.3f}"),
            _mark(it.inside),
        ]
        for it in result.losses
    ]
    header = ["run held out", "parameters", "tokens", "FLOPs (6ND)", "loss at the end, forecast", "measured", ""]
    return page.table(header, rows)


def _scores(results: Sequence[TaskForecast]) -> str:
    rows = []
    for it in results:
        emergent = it.verdict == EMERGENT
        eta = page.with_interval(*loss_words(it.eta.value, it.eta.low, it.eta.high)) if emergent else page.nothing()
        did = "did" if it.ends_below else "did not"
        known = np.isfinite(it.score.value)
        rows.append(
            [
                page.text(task_title(it.task)),
                page.text(metric_title(it.metric)),
                page.verdict(it.verdict) if emergent else page.text(f"no threshold: {it.verdict}"),
                eta,
                page.text(it.run),
                page.text(f"{it.below:.2f}, {did}" if emergent else page.ABSENT),
                page.interval(it.score.value, it.score.low, it.score.high, ".3f") if known else page.nothing(),
                page.interval(it.measured.value, it.measured.low, it.measured.high, ".3f"),
                _mark(it.inside) if known else page.text(it.reason),
            ]
        )
    header = [
        *("task", "metric", "below the cut", "η", "run held out", "P(below η)"),
        *("score at the end, forecast", "measured", ""),
    ]
    return page.table(header, rows)


def _on_the_way(results: Sequence[TaskForecast]) -> str:
    """Where each run crossed η, and where its scores became clear of chance; tasks without either left out."""
    rows = [
        [
            page.text(task_title(it.task)),
            page.text(it.run),
            _tokens(it.eta_tokens),
            page.number(_between(it.eta_between)),
            _tokens(it.clear_from),
            page.number(_between(it.clear_between)),
            page.text("") if it.clear_inside is None else _mark(it.clear_inside),
        ]
        for it in results
        if np.isfinite(it.eta.value) or it.risen or np.isfinite(it.clear_from.low)
    ]
    if not rows:
        return ""
    note = (
        "In tokens. To reach η: of a run of that size that ends there. A run that goes on crosses later, its learning "
        "rate being high still, so that this is no interval for what stands beside it, but about the earliest. Clear "
        "of chance: from which checkpoint on all scores are (1 %, one-sided, each), forecast at the losses that the "
        "run had on its way."
    )
    header = [
        *("task", "run held out", "to reach η", "loss fell below η", "clear of chance from, forecast"),
        *("became clear", ""),
    ]
    return page.details("Where on the way each run rose", page.table(header, rows) + page.caption(note))


def _mark(inside: bool) -> page.Cell:
    return page.text("inside" if inside else "outside")


def _tokens(it: Estimate) -> page.Cell:
    if np.isnan(it.value):
        return page.nothing()
    if np.isinf(it.low):
        return page.number("never")
    return page.with_interval(*("never" if np.isinf(at) else short_count(at) for at in (it.value, it.low, it.high)))


def _between(between: tuple[float, float]) -> str:
    after, by = between
    if np.isnan(by):
        return page.ABSENT
    if np.isinf(by):
        return "never"
    return f"{short_count(after)} to {short_count(by)}" if after else f"before {short_count(by)}"
