"""Sections of the report that answer the paper's questions with a number and its interval: do sizes agree at equal
loss, which axis explains most, what does a threshold take. Each says why where a table cannot carry it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis import page
from analysis.axes import ALL_TASKS, AxisResult, axis_title
from analysis.comparisons import Movement
from analysis.critical_scale import CriticalScale
from analysis.figures import loss_words, short_count
from analysis.names import metric_title, task_title
from analysis.same_loss import DIFFERENT, EQUIVALENT, SameLoss
from analysis.scaling_law import Estimate, ScalingLaw
from analysis.threshold import EMERGENT, NOT_REACHED, Threshold


def same_loss(results: Sequence[SameLoss], in_decay: Sequence[SameLoss] = ()) -> str:
    """Whether models of different sizes score alike at equal loss, and checkpoints in the decay phase and before."""
    title = "Same loss, same performance?"
    told = [result for result in results if math.isfinite(result.largest)]
    if not told:
        parts = [page.caption(f"Not computed: {reasons(results)}")]
    else:
        note = (
            f"Equivalent: the largest difference at equal loss between the curves of two sizes is below "
            f"{told[0].margin:g} with 95 % certainty. Different: above it at a loss where both sizes have two runs; "
            "elsewhere a size cannot be told from a run. The interval is simultaneous over all pairs and losses. "
            "Errors: root mean squared, of runs that the curves had not seen; a gain above 0 means that knowing the "
            "size helps beyond knowing the loss."
        )
        parts = [_same_loss(results, "sizes are", "size"), page.caption(note)]
    if any(math.isfinite(result.largest) for result in in_decay):
        words = "Checkpoints of the decay phase of the learning rate against the others, at equal loss"
        parts.append(page.details(words, _same_loss(in_decay, "they are", "phase")))
    elif in_decay:
        parts.append(page.caption(f"Decay phase against the rest, not computed: {reasons(in_decay)}"))
    return page.section(title, *parts)


def _same_loss(results: Sequence[SameLoss], verdict: str, group: str) -> str:
    rows = []
    for result in results:
        known = math.isfinite(result.largest)
        gain = page.nothing()
        if math.isfinite(result.gain):
            gain = page.interval(result.gain, result.gain_low, result.gain_high, "+.4f")
        rows.append(
            [
                page.text(task_title(result.task)),
                page.text(metric_title(result.metric)),
                page.verdict(result.verdict),
                page.interval(result.largest, result.largest_low, result.largest_high, ".3f")
                if known
                else page.nothing(),
                page.text(
                    f"{result.between[0]} over {result.between[1]}, at {result.at_loss:.2f}" if known else page.ABSENT
                ),
                page.number(page.decimal(result.error_one, ".4f")),
                page.number(page.decimal(result.error_each, ".4f")),
                gain,
                page.text("" if known else f"not computed: {result.reason}"),
            ]
        )
    header = [
        *("task", "metric", verdict, "largest difference", "between (better first)", "at loss"),
        *(f"error: one curve / a {group}", "gain", ""),
    ]
    return page.table(header, rows)


def same_loss_sentence(results: Sequence[SameLoss]) -> str:
    """On how many tasks sizes agree at equal loss."""
    told = [result for result in results if math.isfinite(result.largest)]
    if not told:
        return f"Whether sizes agree at equal loss cannot be said: {reasons(results)}"
    equal = [r for r in told if r.verdict == EQUIVALENT]
    unequal = [r for r in told if r.verdict == DIFFERENT]
    sentence = (
        f"At equal loss, models of different sizes score alike (within {told[0].margin:g}, with 95 % certainty) on "
        f"{len(equal)} of {len(told)} tasks"
    )
    sentence += f": {_names(equal)}." if equal else "."
    if unequal:
        worst = max(unequal, key=lambda r: r.largest)
        sentence += (
            f" They differ by more on {_names(unequal)}; most on {task_title(worst.task)}, by {worst.largest:.3f} "
            f"[{worst.largest_low:.3f}, {worst.largest_high:.3f}] at loss {worst.at_loss:.2f}."
        )
    rest = len(told) - len(equal) - len(unequal)
    return sentence + (f" Open with these runs and rows: {rest}." if rest else "")


def axes(results: Sequence[AxisResult], critical: Sequence[CriticalScale], figure: str = "") -> str:
    """What each axis leaves unexplained: one line a task, one column an axis. `figure`: performance against compute."""
    title = "Loss against compute, parameters and tokens"
    told = [result for result in results if not result.reason]
    if not told:
        return page.section(title, figure, page.caption(f"Not computed: {reasons(results)}"))
    names = list(dict.fromkeys(result.axis for result in results))
    by_task: dict[tuple[str, str], dict[str, AxisResult]] = {}
    for result in results:
        by_task.setdefault((result.task, result.metric), {})[result.axis] = result
    rows = []
    for (task, metric), found in by_task.items():
        first = next(iter(found.values()))
        cells = [
            page.text("mean over tasks" if task == ALL_TASKS else task_title(task)),
            page.text(metric_title(metric) if metric else page.ABSENT),
        ]
        cells += [_unexplained(found[name]) for name in names]
        best = next((r for r in found.values() if r.least), None)
        cells.append(page.number(f"{axis_title(best.axis)}, {100 * best.support:.0f} %" if best else page.ABSENT))
        rows.append([*cells, page.text(f"not computed: {first.reason}" if first.reason else "")])
    header = ["task", "metric", *(axis_title(name) for name in names), "least, in draws", ""]
    note = (
        "Per cent of the variance of scores that one smooth curve over the axis leaves unexplained, on runs that it "
        "had not seen; 95 % intervals over draws of runs; above 100: worse than the mean of all scores. Last: the axis "
        "that leaves the least, and in which share of the draws. The claim of Du et al. 2024, App. E, as a number."
    )
    return page.section(title, figure, page.table(header, rows), page.caption(note), _critical(critical))


def _critical(results: Sequence[CriticalScale]) -> str:
    """Critical scales in the sense of Wei et al.: one line a task, one column an axis."""
    axes = list(dict.fromkeys(result.axis for result in results))
    by_task: dict[str, dict[str, CriticalScale]] = {}
    for result in results:
        by_task.setdefault(result.task, {})[result.axis] = result
    rows = [
        [page.text(task_title(task)), *(_critical_cell(found[axis]) for axis in axes)]
        for task, found in by_task.items()
    ]
    note = (
        "The same three accounts against the logarithm of scale (Wei et al. 2022): where a task is at chance up to a "
        "scale and rises from there, that critical scale with its 95 % interval."
    )
    return page.details(
        "Critical scales", page.table(["task", *(axis_title(axis) for axis in axes)], rows) + page.caption(note)
    )


def _critical_cell(result: CriticalScale) -> page.Cell:
    style = "e" if result.axis.startswith("flops") else ""
    if result.verdict == EMERGENT:
        return page.with_interval(*(_count(v, style) for v in (result.scale, result.low, result.high)))
    if result.verdict == NOT_REACHED and math.isfinite(result.above):
        return page.number(f"if any, > {_count(result.above, style)}")
    return page.text(result.verdict)


def axes_sentence(results: Sequence[AxisResult]) -> str:
    """Which axis explains most over all tasks, and by how much less the others do."""
    mean = {result.axis: result for result in results if result.task == ALL_TASKS}
    told = {axis: result for axis, result in mean.items() if not result.reason}
    if not told:
        return f"Which axis explains performance best cannot be said: {reasons(list(mean.values()) or results)}"
    best = min(told.values(), key=lambda r: r.unexplained)
    others = [r for r in told.values() if r.axis != best.axis]
    listed = "; ".join(f"{axis_title(r.axis)} {_percent(r)}" for r in others)
    return (
        f"Of all axes {axis_title(best.axis)} leaves the least of the scores' variance open, {_percent(best)} in "
        f"the mean over tasks (the least in {100 * best.support:.0f} % of the draws of runs); {listed}."
    )


def scaling(law: ScalingLaw, thresholds: Sequence[Threshold], figure: str = "") -> str:
    """The scaling law and, for each threshold, what it takes to cross it."""
    title = "What a loss takes"
    if law.reason:
        return page.section(title, page.caption(f"No scaling law was fitted: {law.reason}."))
    constants = [("E", law.irreducible), ("A", law.a), ("α", law.alpha), ("B", law.b), ("β", law.beta)]
    parts = [
        figure,
        f"<p>L(N, D) = E + A / N<sup>α</sup> + B / D<sup>β</sup>, fitted to {law.num_points} checkpoints of "
        f"{law.num_runs} runs; it misses their losses by {100 * law.error:.1f} % (root mean square).</p>",
        page.table([name for name, _ in constants], [[_estimate(estimate, "g") for _, estimate in constants]]),
    ]
    emergent = [result for result in thresholds if result.verdict == EMERGENT]
    tokens, size = law.token_range[1], law.size_range[1]
    rows = []
    for result in emergent:
        draws = law.eta_draws(result.eta, result.eta_low, result.eta_high)
        best = law.flops_for(draws)
        rows.append(
            [
                page.text(task_title(result.task)),
                page.with_interval(*loss_words(result.eta, result.eta_low, result.eta_high)),
                _estimate(law.size_for(draws, tokens)),
                _estimate(law.tokens_for(draws, size)),
                *(_estimate(estimate) for estimate in (best.parameters, best.tokens)),
                _estimate(best.flops, "e"),
            ]
        )
    if rows:
        header = [
            *("task", "η", f"size at {short_count(tokens)} tokens", f"tokens at {short_count(size)} parameters"),
            *("size at least compute", "its tokens", "its FLOPs (6ND)"),
        ]
        parts.append(page.table(header, rows))
    else:
        parts.append(page.caption("No task has a threshold here that could be turned into a size."))
    parts.append(
        page.caption(
            f"N: {law.parameters.replace('_', ' ')}. Fitted in log space with a Huber loss (Hoffmann et al. 2022, App. "
            "D.3) to the ends of runs where there are enough of them; 95 % intervals over draws of runs, and over the "
            "interval of η. Size at given tokens: Du et al. 2024, Eq. 5. Beyond the sizes and tokens of this grid all "
            "of it is extrapolation. python -m analysis.scaling answers for a loss and a cluster of your own."
        )
    )
    return page.section(title, *parts)


def scaling_sentence(law: ScalingLaw, thresholds: Sequence[Threshold]) -> str | None:
    """The cheapest way to the first and to the last threshold; None without law or threshold."""
    emergent = sorted((r for r in thresholds if r.verdict == EMERGENT), key=lambda r: -r.eta)
    if law.reason or not emergent:
        return None
    parts = []
    for result in dict.fromkeys((emergent[0], emergent[-1])):
        best = law.flops_for(law.eta_draws(result.eta, result.eta_low, result.eta_high))
        flops, size = best.flops, best.parameters
        parts.append(
            f"{task_title(result.task)} (η = {result.eta:.2f}) at {_count(flops.value, 'e')} FLOPs "
            f"[{_count(flops.low, 'e')}, {_count(flops.high, 'e')}] with {_count(size.value)} parameters"
        )
    return f"By the fitted scaling law, the least compute that crosses a threshold: {'; '.join(parts)}."


def _unexplained(result: AxisResult) -> page.Cell:
    if result.reason:
        return page.nothing()
    cell = page.interval(100 * result.unexplained, 100 * result.low, 100 * result.high, ".1f")
    return page.Cell(f"<strong>{cell.html}</strong>", numeric=True) if result.least else cell


def _percent(result: AxisResult) -> str:
    interval = f" [{100 * result.low:.1f}, {100 * result.high:.1f}]" if math.isfinite(result.low) else ""
    return f"{100 * result.unexplained:.1f} %{interval}"


def _estimate(estimate: Estimate, style: str = "") -> page.Cell:
    return page.with_interval(*(_count(v, style) for v in (estimate.value, estimate.low, estimate.high)))


def _count(value: float, style: str = "") -> str:
    """A size or token count in short, `e`: a power of ten, `g`: three digits."""
    if math.isnan(value):
        return page.ABSENT
    if math.isinf(value):
        return "never"
    if style == "e":
        return f"{value:.1e}".replace("e+", "e")
    return f"{value:.3g}" if style == "g" else short_count(value)


def _names(results: Sequence[SameLoss]) -> str:
    return ", ".join(task_title(result.task) for result in results)


def reasons(results: Sequence[SameLoss] | Sequence[AxisResult] | Sequence[Movement], without: str = "") -> str:
    """The causes, each once with the tasks that share it; `without` where there are no results at all."""
    if not results:
        return f"{without}."
    causes: dict[str, list[str]] = {}
    for result in results:
        tasks = causes.setdefault(result.reason, [])
        name = task_title(result.task) if result.task else ""
        if name and name not in tasks:
            tasks.append(name)
    return "; ".join(f"{', '.join(tasks)}: {cause}" if tasks else cause for cause, tasks in causes.items()) + "."
