"""Training and held-out loss of each run against tokens, in total and by language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.figures.style import STYLE, short_count, size_styles
from analysis.names import language_title


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
