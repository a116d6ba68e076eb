"""The correlations of a table with loss beside those of Du et al. 2024, Table 2."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.correlation import Correlation, reference
from analysis.figures.style import STYLE, THRESHOLD
from analysis.names import metric_title, task_title

OURS = "#1f4e79"


def correlations_beside_the_paper(results: Sequence[Correlation]) -> Figure:
    """Spearman's and Pearson's coefficient of each task with its 95 % interval, and the published one.

    `results` should hold one metric a task; those without a coefficient keep an empty line with the cause.
    """
    published = reference()
    height = 0.27 * len(results) + 1.15
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(1, 2, figsize=(9.5, height), sharey=True)
        places = np.arange(len(results))[::-1]
        for axes, name, title in zip(grid, ("spearman", "pearson"), ("Spearman", "Pearson"), strict=True):
            for place, result in zip(places, results, strict=True):
                value = getattr(result, name)
                if value == value:
                    low, high = getattr(result, f"{name}_low"), getattr(result, f"{name}_high")
                    axes.hlines(place, low, high, color=OURS, linewidth=1.6, alpha=0.6)
                    axes.plot(value, place, "o", color=OURS, markersize=5)
                elif name == "spearman":
                    axes.text(-1.0, place, result.reason, fontsize=7, va="center", color="#666666")
                if result.task in published:
                    theirs = getattr(published[result.task], name)
                    axes.plot(theirs, place, "D", color=THRESHOLD, markerfacecolor="none", markersize=6)
            axes.set_title(title)
            axes.set_xlabel("correlation of performance with loss")
            axes.set_ylim(-0.7, len(results) - 0.3)
        right = max([-0.6, *(edge for axes in grid for edge in _right_edges(axes))])
        for axes in grid:
            axes.set_xlim(-1.02, right + 0.05)
            if right > 0:
                axes.axvline(0, color="#999999", linewidth=0.8, zorder=0)
        metrics = {result.metric for result in results}
        names = [task_title(r.task) + (f", {metric_title(r.metric)}" if len(metrics) > 2 else "") for r in results]
        grid[0].set_yticks(places, names)
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / height))
        handles = [
            plt.Line2D([], [], color=OURS, marker="o", linewidth=1.6, label="this table, 95 % interval over runs"),
            plt.Line2D(
                [], [], color=THRESHOLD, marker="D", markerfacecolor="none", linestyle="none", label="Du et al."
            ),
        ]
        figure.legend(handles=handles, loc="upper center", ncols=2, fontsize=8.5, bbox_to_anchor=(0.5, 1.0))
    return figure


def _right_edges(axes: Axes) -> list[float]:
    points = [float(value) for line in axes.lines for value in np.atleast_1d(line.get_xdata())]
    return points + [float(end[0]) for bar in axes.collections for path in bar.get_paths() for end in path.vertices]
