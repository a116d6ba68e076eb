"""Scores that were forecast for the runs held out, and what was measured: one panel a run, one line a task."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures.style import CHANCE_LINE, STYLE, THRESHOLD
from analysis.forecast_result import FinalLoss, Forecast, TaskForecast
from analysis.names import metric_title, task_title

FORECAST = "#1f4e79"

MOST_PANELS = 4
"""Runs that are drawn: those of the most compute."""


def forecast(result: Forecast) -> Figure:
    """Median and 95 % interval of each forecast score, the measured one with its interval over rows, and chance."""
    runs = result.losses[-MOST_PANELS:]
    tasks = list(dict.fromkeys((it.task, it.metric) for it in result.scores))
    height = 0.3 * len(tasks) + 1.25
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(1, len(runs), figsize=(2.2 + 3.0 * len(runs), height), sharey=True, squeeze=False)
        places = {task: len(tasks) - 1 - position for position, (task, _) in enumerate(tasks)}
        for axes, run in zip(grid[0], runs, strict=True):
            own = [it for it in result.scores if (it.grid, it.run) == (run.grid, run.run)]
            _panel(axes, run, own, places)
        metrics = {metric for _, metric in tasks}
        names = [task_title(task) + (f", {metric_title(m)}" if len(metrics) > 2 else "") for task, m in tasks]
        grid[0][0].set_yticks(list(places.values()), names)
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / height))
        handles = [
            Line2D([], [], color=FORECAST, marker="o", linewidth=2, label="forecast, 95 %"),
            Line2D([], [], color=THRESHOLD, marker="D", markersize=5, linewidth=1, label="measured, 95 % (rows)"),
            Line2D([], [], **CHANCE_LINE, label="chance"),
        ]
        figure.legend(handles=handles, loc="upper center", ncols=3, fontsize=8.5, bbox_to_anchor=(0.5, 1.0))
    return figure


def _panel(axes: Axes, run: FinalLoss, scores: list[TaskForecast], places: dict[str, int]) -> None:
    for it in scores:
        place = places[it.task]
        if np.isfinite(it.score.value):
            axes.hlines(place + 0.14, it.score.low, it.score.high, color=FORECAST, linewidth=2, alpha=0.6)
            axes.plot(it.score.value, place + 0.14, "o", color=FORECAST, markersize=4.5)
        axes.hlines(place - 0.14, it.measured.low, it.measured.high, color=THRESHOLD, linewidth=1)
        axes.plot(it.measured.value, place - 0.14, "D", color=THRESHOLD, markersize=4)
        axes.vlines(it.chance, place - 0.35, place + 0.35, **CHANCE_LINE)
    axes.set_title(run.run)
    axes.set_xlabel("performance at the end")
    axes.set_ylim(-0.6, len(places) - 0.4)
