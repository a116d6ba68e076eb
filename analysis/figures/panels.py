"""Performance against loss, or against another axis: one panel a task and metric, chance, intervals, thresholds.

Loss falls from left to right, as in the figures of Du et al. 2024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from analysis.figures.style import (
    CHANCE_LINE,
    STYLE,
    THRESHOLD,
    Axis,
    axis,
    intervals,
    legend,
    legend_lines,
    loss_words,
    short_count,
    size_styles,
    sizes_in_order,
)
from analysis.names import in_order, language_title, metric_title, task_title
from analysis.table import FRACTIONS, primary_metrics, run_ids
from analysis.threshold import EMERGENT, NOT_REACHED, Threshold

COLUMNS = 4
"""Panels in a row."""

LEAST_SPAN = 0.16
"""Height of a panel in units of the metric at least, so that noise about chance does not look like a trend."""

CROWDED = 400
"""Markers in a panel above which they are drawn smaller, and as pixels in the vector file too."""


def performance(
    table: pd.DataFrame,
    thresholds: Sequence[Threshold] = (),
    *,
    x: str = "loss",
    panels: Sequence[tuple[str, str]] | None = None,
    columns: int = COLUMNS,
    lines: bool = False,
    mark_ends: bool = True,
) -> Figure:
    """One panel for each (task, metric) of `panels`: a marker a checkpoint with 95 % intervals over benchmark rows,
    chance dashed, η with its interval shaded (on the axis of `Threshold.loss_low`, so only where `x` is the loss).

    Args:
        table: a results table, of which `panels` picks the rows (default: each task under its first metric).
        x: column to draw against.
        lines: join the checkpoints of a run.
        mark_ends: final checkpoints filled, others hollow; else all are filled.
    """
    if panels is None:
        metrics = primary_metrics(table)
        panels = [(task, metrics[task]) for task in in_order(table["task"])]
    verdicts = {(result.task, result.metric): result for result in thresholds} if x == "loss" else {}
    across = axis(x)
    styles = size_styles(sizes_in_order(table))
    columns = max(1, min(columns, len(panels)))
    num_lines = -(-len(panels) // columns)
    width = 2.9 * columns + 0.3
    top = 0.14 + 0.2 * legend_lines(width, len(styles))
    height = 2.15 * num_lines + 0.3 + top
    by_panel = dict(list(table.groupby(["task", "metric"], sort=False)))
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(num_lines, columns, figsize=(width, height), squeeze=False)
        for position, (axes, (task, metric)) in enumerate(zip(grid.flat, panels, strict=False)):
            axes.set_xlim(*_limits(table[x], across))
            _axis_ticks(axes, across)
            if (task, metric) in by_panel:
                rows = by_panel[task, metric].dropna(subset=[x])
                _panel(axes, rows, styles, across, verdicts.get((task, metric)), lines, mark_ends)
            else:
                _empty_panel(axes, task, metric)
            if position + columns < len(panels):
                axes.tick_params(labelbottom=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        _place(figure, columns, num_lines, width, height, top)
        arrow = "  →  better" if across.falling else ""
        figure.supxlabel(across.label + arrow, fontsize=9.5, y=0.07 / height)
        drawn = any(verdict.verdict == EMERGENT for verdict in verdicts.values())
        final = table["final"]
        legend(figure, styles, ends=mark_ends and bool(final.any()), on_the_way=bool((~final).any()), extra=drawn)
    return figure


def _place(figure: Figure, columns: int, num_lines: int, width: float, height: float, top: float) -> None:
    """Margins and gaps in inches; tight_layout would draw all markers once more to find the same."""
    left, right, between, bottom, above, below = 0.62, 0.48, 0.98, 0.52, 0.40, 0.56
    panel_width = (width - left - right - between * (columns - 1)) / columns
    panel_height = (height - top - above - bottom - below * (num_lines - 1)) / num_lines
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        bottom=bottom / height,
        top=1 - (top + above) / height,
        wspace=between / panel_width,
        hspace=below / panel_height,
    )


def _limits(values: pd.Series, across: Axis) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    if across.log:
        low, high = np.log10(values.min()), np.log10(values.max())
        room = 0.05 * ((high - low) or 1.0)
        return 10 ** (low - room), 10 ** (high + room)
    spread = values.max() - values.min() or 0.1
    low, high = values.min() - 0.05 * spread, values.max() + 0.05 * spread
    return (high, low) if across.falling else (low, high)


def _axis_ticks(axes: Axes, across: Axis) -> None:
    if not across.log:
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        return
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    if high / low < 100:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    if not across.column.startswith("flops"):
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _panel(
    axes: Axes,
    rows: pd.DataFrame,
    styles: Mapping[str, tuple[tuple[float, ...], str]],
    across: Axis,
    verdict: Threshold | None,
    lines: bool,
    mark_ends: bool,
) -> None:
    first = rows.iloc[0]
    chance = float(rows["chance"].median())
    low, high = intervals(rows)
    crowded = len(rows) > CROWDED
    look = {"markersize": 2.6 if crowded else 4.2, "markeredgewidth": 0.6 if crowded else 0.9, "rasterized": crowded}
    if lines:
        for _, run in rows.groupby(run_ids(rows)):
            run = run.sort_values("tokens")
            axes.plot(run[across.column], run["value"], color=styles[run["size"].iloc[0]][0], linewidth=0.7, alpha=0.6)
    size, final = rows["size"].to_numpy(), rows["final"].to_numpy()
    x, y = rows[across.column].to_numpy(), rows["value"].to_numpy()
    # Large sizes first: the few points of small ones would vanish behind them.
    for name, (colour, marker) in reversed(styles.items()):
        for ended in (False, True):
            chosen = (size == name) & (final == ended)
            if not chosen.any():
                continue
            _bars(axes, x[chosen], low[chosen], high[chosen], color=(*colour[:3], 0.4), rasterized=crowded)
            face = "white" if mark_ends and not ended else colour
            layer = 4 if ended else 3
            axes.plot(x[chosen], y[chosen], marker, color=colour, markerfacecolor=face, zorder=layer, **look)
    _set_height(axes, rows["value"], chance, str(first["metric"]))
    if chance == chance:
        axes.axhline(chance, zorder=1, **CHANCE_LINE)
        # Beside the panel, where no marker can cover it.
        axes.annotate(
            f"chance\n{chance:.2g}",
            (1, chance),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            fontsize=6.8,
            color="#444444",
            va="center",
            linespacing=0.95,
        )
    details = [language_title(str(first["language"]))]
    prompting = str(first.get("prompting") or "")
    if prompting and prompting != "nan":
        details.append(prompting.replace("chain of thought", "CoT"))
    details.append(f"{int(rows['rows'].median()):,} rows")
    _title(axes, str(first["task"]), " · ".join(details))
    better = "" if first["higher_is_better"] else " (lower is better)"
    axes.set_ylabel(metric_title(str(first["metric"])) + better, fontsize=8, color="#444444")
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if verdict is not None:
        _draw_verdict(axes, verdict, at_top=bool(first["higher_is_better"]))


def _bars(axes: Axes, x: np.ndarray, low: np.ndarray, high: np.ndarray, **look: object) -> None:
    # One broken line: vlines makes an object of each, which takes seconds for thousands.
    gaps = np.full(len(x), np.nan)
    across, along = np.column_stack([x, x, gaps]).ravel(), np.column_stack([low, high, gaps]).ravel()
    axes.plot(across, along, linewidth=0.6, zorder=2, solid_capstyle="butt", **look)


def _title(axes: Axes, task: str, details: str) -> None:
    axes.set_title(task_title(task), pad=14)
    axes.annotate(
        details,
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 3.5),
        textcoords="offset points",
        fontsize=7,
        color="#555555",
        va="bottom",
    )


def _empty_panel(axes: Axes, task: str, metric: str) -> None:
    """A panel of the paper that the table has no rows for: kept, so that the layout stays."""
    _title(axes, task, metric_title(metric))
    axes.set_yticks([])
    axes.grid(False)
    axes.set_facecolor("#f7f7f7")
    axes.text(0.5, 0.5, "not in this table", transform=axes.transAxes, ha="center", va="center", color="#777777")


def _draw_verdict(axes: Axes, verdict: Threshold, at_top: bool) -> None:
    text = verdict.verdict
    if verdict.verdict == EMERGENT:
        axes.axvspan(verdict.eta_low, verdict.eta_high, color=THRESHOLD, alpha=0.16, linewidth=0, zorder=0)
        axes.axvline(verdict.eta, color=THRESHOLD, linewidth=1.2, zorder=1)
        eta, low, high = loss_words(verdict.eta, verdict.eta_low, verdict.eta_high)
        text = f"η = {eta} [{low}, {high}]"
    elif verdict.verdict == NOT_REACHED:
        text = f"not reached: η, if any, < {verdict.eta_below:.2f}"
    colour = "#a04000" if verdict.verdict == EMERGENT else "#444444"
    axes.annotate(text, (0.02, 0.975 if at_top else 0.03), xycoords="axes fraction").set(
        fontsize=7.2,
        color=colour,
        va="top" if at_top else "bottom",
        bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1},
        zorder=6,
    )


def _set_height(axes: Axes, values: pd.Series, chance: float, metric: str) -> None:
    """Limits from the values and chance, not from their error bars, which may be cut."""
    low, high = np.nanmin([values.min(), chance]), np.nanmax([values.max(), chance])
    missing = max(0.0, LEAST_SPAN - (high - low)) if metric in FRACTIONS else 0.0
    # More room above: verdicts are written there.
    low, high = low - 0.4 * missing, high + 0.6 * missing
    room = 0.08 * (high - low) or 0.05
    low, high = low - room, high + 2.6 * room
    if metric in FRACTIONS:
        low = max(low, -0.022 if min(values.min(), chance) < 0.01 else 0.0)
        high = min(high, 1.02)
    axes.set_ylim(low, high)
