"""The two figures of a report: performance against pre-training loss, one panel a task, and the loss curves.

Loss falls from left to right, as in the figures of Du et al. 2024. Sizes are told apart by colour (viridis,
which keeps its order in grey and for colour-blind readers) and by marker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from analysis.chance import wilson_interval
from analysis.names import in_order, language_title, metric_title, task_title
from analysis.table import FRACTIONS, primary_metrics
from analysis.threshold import EMERGENT, NOT_REACHED, Threshold
from tokenizer.files import atomic_path

COLUMNS = 4
"""Panels in a row."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h")

LEAST_SPAN = 0.16
"""Height of a panel in units of the metric at least, so that noise about chance does not look like a trend."""

LOSS_LABEL = "pre-training loss (nats per token)  →  better"

STYLE = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "emergence",
    "figure.dpi": 100,
}


def sizes_in_order(table: pd.DataFrame) -> list[str]:
    """The size names of a table, from few parameters to many."""
    return table.groupby("size")["parameters"].min().sort_values().index.astype(str).tolist()


def size_styles(sizes: Sequence[str]) -> dict[str, tuple[tuple[float, ...], str]]:
    """Size -> (RGBA, marker): dark to bright from the largest to the smallest, short of viridis' pale end."""
    positions = np.linspace(0.80, 0.02, len(sizes)) if len(sizes) > 1 else [0.35]
    colours = matplotlib.colormaps["viridis"]
    return {
        size: (colours(float(position)), MARKERS[index % len(MARKERS)])
        for index, (size, position) in enumerate(zip(sizes, positions, strict=True))
    }


def performance_against_loss(
    table: pd.DataFrame, thresholds: Sequence[Threshold] = (), *, loss: str = "loss"
) -> Figure:
    """One panel a task: a marker a checkpoint (final ones filled) with 95 % intervals, chance dashed, η shaded."""
    metrics = primary_metrics(table)
    verdicts = {(result.task, result.metric): result for result in thresholds}
    tasks = in_order(table["task"])
    sizes = sizes_in_order(table)
    styles = size_styles(sizes)
    columns = min(COLUMNS, len(tasks))
    lines = -(-len(tasks) // columns)
    spread = table[loss].max() - table[loss].min() or 0.1
    limits = (table[loss].max() + 0.05 * spread, table[loss].min() - 0.05 * spread)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(lines, columns, figsize=(2.9 * columns + 0.3, 2.15 * lines + 0.75), squeeze=False)
        for axes, task in zip(grid.flat, tasks, strict=False):
            rows = table[(table["task"] == task) & (table["metric"] == metrics[task])]
            _task_panel(axes, rows, styles, loss, limits, verdicts.get((task, metrics[task])))
        for axes in grid.flat[len(tasks) :]:
            axes.set_visible(False)
        for position in range(len(tasks)):
            if position + columns < len(tasks):
                grid.flat[position].tick_params(labelbottom=False)
        figure.tight_layout(rect=(0.012, 0.28 / figure.get_figheight(), 1, 1 - 0.33 / figure.get_figheight()))
        figure.supxlabel(LOSS_LABEL, fontsize=9.5, y=0.06 / figure.get_figheight())
        _legend(figure, styles, bool((~table["final"]).any()))
    return figure


def _task_panel(
    axes: Axes,
    rows: pd.DataFrame,
    styles: Mapping[str, tuple[tuple[float, ...], str]],
    loss: str,
    limits: tuple[float, float],
    verdict: Threshold | None,
) -> None:
    first = rows.iloc[0]
    chance = float(rows["chance"].median())
    low, high = intervals(rows)
    for size, (colour, marker) in styles.items():
        for final in (False, True):
            chosen = (rows["size"] == size) & (rows["final"] == final)
            if not chosen.any():
                continue
            x, y = rows.loc[chosen, loss], rows.loc[chosen, "value"]
            reach = [y - low[chosen], high[chosen] - y]
            axes.errorbar(x, y, yerr=reach, fmt="none", ecolor=(*colour[:3], 0.4), elinewidth=0.6, zorder=2)
            face = colour if final else "white"
            axes.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=4.2, markeredgewidth=0.9, zorder=3)
    axes.axhline(chance, color="#555555", linestyle=(0, (4, 3)), linewidth=0.9, zorder=1)
    axes.set_xlim(*limits)
    _set_height(axes, rows["value"], chance, str(first["metric"]))
    # Beside the panel, where no marker can cover it.
    axes.annotate(
        f"chance\n{chance:.2g}",
        (1, chance),
        xycoords=("axes fraction", "data"),
        xytext=(3, 0),
        textcoords="offset points",
        fontsize=6.8,
        color="#444444",
        ha="left",
        va="center",
        linespacing=0.95,
    )
    details = [language_title(str(first["language"]))]
    prompting = str(first.get("prompting") or "")
    if prompting and prompting != "nan":
        details.append(prompting.replace("chain of thought", "CoT"))
    details.append(f"{int(rows['rows'].median()):,} rows")
    axes.set_title(task_title(str(first["task"])), pad=14)
    axes.annotate(
        " · ".join(details),
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 3.5),
        textcoords="offset points",
        fontsize=7,
        color="#555555",
        va="bottom",
    )
    axes.set_ylabel(metric_title(str(first["metric"])), fontsize=8, color="#444444")
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    if verdict is not None:
        _draw_verdict(axes, verdict)


def _draw_verdict(axes: Axes, verdict: Threshold) -> None:
    text = verdict.verdict
    if verdict.verdict == EMERGENT:
        axes.axvspan(verdict.eta_low, verdict.eta_high, color="#d55e00", alpha=0.14, linewidth=0, zorder=0)
        axes.axvline(verdict.eta, color="#d55e00", linewidth=1.1, zorder=1)
        text = f"η = {verdict.eta:.2f} [{verdict.eta_low:.2f}, {verdict.eta_high:.2f}]"
    elif verdict.verdict == NOT_REACHED:
        text = f"not reached: η, if any, < {verdict.eta_below:.2f}"
    colour = "#a04000" if verdict.verdict == EMERGENT else "#444444"
    axes.annotate(text, (0.02, 0.975), xycoords="axes fraction").set(
        fontsize=7.2, color=colour, va="top", bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1}
    )


def intervals(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of each value, shape (rows,) twice: Wilson's for shares, ±1.96 standard errors otherwise."""
    value = rows["value"].to_numpy(dtype=float)
    if rows["metric"].iloc[0] in FRACTIONS:
        pairs = [wilson_interval(v, n) for v, n in zip(value, rows["rows"], strict=True)]
        low, high = (np.array(side) for side in zip(*pairs, strict=True))
        return np.minimum(low, value), np.maximum(high, value)
    half = 1.96 * np.nan_to_num(rows["stderr"].to_numpy(dtype=float))
    return value - half, value + half


def _set_height(axes: Axes, values: pd.Series, chance: float, metric: str) -> None:
    """Limits from the values and chance, not from their error bars, which may be cut."""
    low, high = min(values.min(), chance), max(values.max(), chance)
    missing = max(0.0, LEAST_SPAN - (high - low)) if metric in FRACTIONS else 0.0
    # More room above: verdicts are written there.
    low, high = low - 0.4 * missing, high + 0.6 * missing
    room = 0.08 * (high - low) or 0.05
    low, high = low - room, high + 2.6 * room
    if metric in FRACTIONS:
        low = max(low, -0.022 if min(values.min(), chance) < 0.01 else 0.0)
        high = min(high, 1.02)
    axes.set_ylim(low, high)


def _legend(figure: Figure, styles: Mapping[str, tuple[tuple[float, ...], str]], intermediate: bool) -> None:
    handles = [
        Line2D([], [], linestyle="none", marker=marker, color=colour, markersize=5.5, label=size)
        for size, (colour, marker) in styles.items()
    ]
    if intermediate:
        grey = "#666666"
        handles.append(Line2D([], [], linestyle="none", marker="o", color=grey, label="end of a run"))
        handles.append(
            Line2D([], [], linestyle="none", marker="o", color=grey, markerfacecolor="white", label="on the way")
        )
    handles.append(Line2D([], [], color="#555555", linestyle=(0, (4, 3)), linewidth=0.9, label="chance"))
    handles.append(Line2D([], [], color="#999999", linewidth=0.8, label="95 % interval (rows)"))
    figure.legend(
        handles=handles,
        loc="upper center",
        ncols=min(len(handles), max(3, int(figure.get_figwidth() / 1.25))),
        fontsize=8.5,
        handletextpad=0.4,
        columnspacing=1.5,
        bbox_to_anchor=(0.5, 1.0),
    )


def loss_curves(curves: Mapping[str, pd.DataFrame], sizes: Mapping[str, str], order: Sequence[str]) -> Figure:
    """Training loss (line) and held-out loss (markers) of each run against tokens, and held-out loss by language.

    `curves` maps a run to its loss.csv, `sizes` a run to its size, `order` lists the sizes from small to large.
    """
    styles = size_styles(list(order))
    languages = sorted(
        {
            column.removeprefix("heldout_loss_")
            for curve in curves.values()
            for column in curve.columns
            if column.startswith("heldout_loss_") and curve[column].notna().any()
        }
    )
    panels = 1 + len(languages)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            1, panels, figsize=(3.4 * panels + 0.5, 3.6), squeeze=False, sharex=True, sharey=True
        )
        for run, curve in curves.items():
            colour, marker = styles[sizes[run]]
            smoothed = curve.dropna(subset=["train_loss"])
            window = max(1, len(smoothed) // 50)
            shown = smoothed["train_loss"].rolling(window, min_periods=1, center=True).mean()
            grid[0, 0].plot(smoothed["tokens"], shown, color=colour, linewidth=0.9, alpha=0.75)
            for axes, column in zip(
                grid[0], ["heldout_loss", *(f"heldout_loss_{lang}" for lang in languages)], strict=True
            ):
                if column not in curve:
                    continue
                points = curve.dropna(subset=[column])
                line = ":" if column != "heldout_loss" else "none"
                axes.plot(
                    points["tokens"],
                    points[column],
                    color=colour,
                    marker=marker,
                    markersize=4.2,
                    markeredgecolor="white",
                    markeredgewidth=0.5,
                    linestyle=line,
                    linewidth=0.8,
                )
        titles = ["all languages", *(language_title(lang) for lang in languages)]
        for axes, title in zip(grid[0], titles, strict=True):
            axes.set_title(title)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel("tokens")
        grid[0, 0].set_ylabel("loss (nats per token)")
        _trim_first_steps(grid[0, 0], curves, [f"heldout_loss_{lang}" for lang in languages])
        figure.tight_layout(rect=(0, 0, 1, 0.92))
        handles = [
            Line2D([], [], marker=styles[size][1], color=styles[size][0], markersize=5.5, linewidth=1, label=size)
            for size in order
            if size in {sizes[run] for run in curves}
        ]
        handles.append(Line2D([], [], color="#666666", linewidth=1, label="training (running mean)"))
        handles.append(Line2D([], [], color="#666666", marker="o", linestyle="none", label="held out"))
        figure.legend(handles=handles, loc="upper center", ncols=min(8, len(handles)), fontsize=8.5)
    return figure


def _trim_first_steps(axes: Axes, curves: Mapping[str, pd.DataFrame], heldout: Sequence[str]) -> None:
    """Leave out the warm-up, where the loss falls from ln(vocabulary) and would flatten all that follows."""
    columns = ["heldout_loss", *heldout]
    points = pd.concat([curve.reindex(columns=["tokens", *columns]) for curve in curves.values()])
    points = points.dropna(subset=columns, how="all")
    if points.empty:
        return
    first, last = 0.5 * points["tokens"].min(), max(curve["tokens"].max() for curve in curves.values())
    training = [curve.loc[curve["tokens"] >= first, "train_loss"] for curve in curves.values()]
    high = max(points[columns].max().max(), np.nanquantile(pd.concat(training), 0.98))
    low = min(points[columns].min().min(), np.nanmin(pd.concat(training)))
    room = 0.04 * (high - low or 0.1)
    axes.set_ylim(low - room, high + room)
    axes.set_xlim(first, last * 1.15)
    if last / first < 100:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))


def short_count(value: float) -> str:
    """1500000 as 1.5M, in powers of a thousand to T."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def save(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Write `stem`.png (200 dpi) and `stem`.svg, each whole or not at all, and close the figure."""
    paths = (stem.with_suffix(".png"), stem.with_suffix(".svg"))
    for path in paths:
        # No date in the SVG: the same table gives the same file.
        metadata = {"Date": None} if path.suffix == ".svg" else None
        # The style again: SVG takes its element ids from it when it is written.
        with plt.rc_context(STYLE), atomic_path(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=200, facecolor="white", metadata=metadata)
    plt.close(figure)
    return paths
