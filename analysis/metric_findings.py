"""The section of the report on whether a threshold is made by its metric or its prompt: η under two metrics, movement
of log-likelihoods before the threshold, chain of thought against the direct answer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis import page
from analysis.augmented import Augmented
from analysis.comparisons import EtaDifference, Movement
from analysis.figures import loss_words
from analysis.findings import reasons
from analysis.names import metric_title, task_title
from analysis.statements import Statements


def section(found: Statements, figure: str = "") -> str:
    """Whether metrics of a task agree, a likelihood moves earlier, and from where on an augmented prompt is better."""
    parts = [figure]
    told = [result for result in found.same_eta if math.isfinite(result.difference)]
    if told:
        parts += [_same_eta(told), page.caption(_SAME_ETA)]
    else:
        parts.append(page.caption("η under two metrics: no task has a threshold under two of them."))
    moved = [result for result in found.movements if math.isfinite(result.slope)]
    if moved:
        parts += ["<h3>Before the threshold</h3>", _movements(moved), page.caption(_MOVEMENTS)]
    else:
        parts.append(page.caption(f"Movement before the threshold: {reasons(found.movements, 'no log-likelihoods')}"))
    if found.augmented:
        parts += ["<h3>Chain of thought against the direct answer</h3>", _augmented(found.augmented)]
    else:
        parts.append(page.caption("Chain of thought against the direct answer: no task was asked both ways."))
    return page.section("Is the threshold the metric's?", *parts)


_SAME_ETA = (
    "Difference of η between two metrics of one task, in nats per token, with 95 % intervals; p is two-sided, "
    "corrected for the number of pairs (Holm). A threshold made by the metric alone would move or vanish."
)
_MOVEMENTS = (
    "Over the checkpoints at which accuracy is at chance: change for each nat of loss, with 95 % intervals robust to "
    "runs. Below 0: it improves as loss falls, as Wei et al. 2022, section 5, saw; the log-likelihood of the right "
    "answer alone is no ability, as that of wrong ones rises too: see its lead over them."
)


def _same_eta(results: Sequence[EtaDifference]) -> str:
    rows = [
        [
            page.text(task_title(r.task)),
            page.text(f"{metric_title(r.metric)} − {metric_title(r.other)}"),
            page.number(f"{r.eta:.3f}"),
            page.number(f"{r.eta_other:.3f}"),
            page.interval(r.difference, r.low, r.high, "+.3f"),
            page.number(f"{r.p_adjusted:.2g}"),
        ]
        for r in results
    ]
    return page.table(["task", "metrics", "η", "η of the other", "difference", "p"], rows)


def _movements(results: Sequence[Movement]) -> str:
    rows = [
        [
            page.text(task_title(r.task)),
            page.text(metric_title(r.quantity)),
            page.number(f"{r.loss_high:.2f} to {r.loss_low:.2f}"),
            page.number(r.num_checkpoints),
            page.interval(r.slope, r.slope_low, r.slope_high, "+.3f"),
            page.interval(r.accuracy_slope, r.accuracy_slope_low, r.accuracy_slope_high, "+.3f"),
            page.text("yes" if r.moves else "no"),
        ]
        for r in results
    ]
    header = ["task", "quantity", "losses", "checkpoints", "its slope", "slope of the accuracy", "moves"]
    return page.table(header, rows)


def _augmented(results: Sequence[Augmented]) -> str:
    rows = []
    for r in results:
        loss = page.text(r.reason)
        if math.isfinite(r.loss):
            loss = page.with_interval(*loss_words(r.loss, r.low, r.high))
        low, high = ((d, d - 1.96 * e, d + 1.96 * e) for d, e in _ends(r))
        rows.append(
            [
                page.text(task_title(r.augmented)),
                page.text(metric_title(r.metric)),
                loss,
                page.interval(*high, "+.3f"),
                page.interval(*low, "+.3f"),
            ]
        )
    header = ["task", "metric", "better up to a loss of", "difference at the highest losses", "at the lowest"]
    return page.table(header, rows)


def _ends(r: Augmented) -> tuple[tuple[float, float], tuple[float, float]]:
    return (r.difference_lowest, r.error_lowest), (r.difference_highest, r.error_highest)


def sentences(found: Statements) -> list[str]:
    """One sentence for each comparison that could be made."""
    told_of = []
    told = [result for result in found.same_eta if math.isfinite(result.difference)]
    if told:
        apart = [result for result in told if result.p_adjusted < 0.05]
        widest = max(told, key=lambda r: abs(r.difference))
        told_of.append(
            f"Thresholds do not hang on the metric: of {len(told)} pairs of metrics of one task "
            if not apart
            else f"Some thresholds depend on the metric: of {len(told)} pairs of metrics of one task "
        )
        told_of[-1] += (
            f"{len(apart) or 'none'} differ{'s' if len(apart) == 1 else ''} in η (5 % for all together); the widest "
            f"difference is {page.decimal(widest.difference, '+.3f')} [{page.decimal(widest.low, '+.3f')}, "
            f"{page.decimal(widest.high, '+.3f')}] on {task_title(widest.task)}."
        )
    moved = [result for result in found.movements if math.isfinite(result.slope)]
    if moved:
        tasks = list(dict.fromkeys(task_title(result.task) for result in moved if result.moves))
        total = len({result.task for result in moved})
        told_of.append(
            f"While accuracy is at chance, a log-likelihood already improves on {len(tasks)} of {total} tasks"
            + (f": {', '.join(tasks)}." if tasks else ".")
        )
    for r in found.augmented:
        if math.isfinite(r.loss):
            loss, low, high = loss_words(r.loss, r.low, r.high)
            told_of.append(
                f"On {task_title(r.augmented)} the chain of thought beats the direct answer up to a loss of {loss} "
                f"[{low}, {high}]."
            )
    return told_of
