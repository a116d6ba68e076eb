"""Figures from a results table: performance against loss or another axis, the paper's figures 1 to 8, loss curves.

python -m analysis.figures runs/paper --figure 1
"""

from __future__ import annotations

from analysis.figures.curves import loss_curves
from analysis.figures.forecast import forecast
from analysis.figures.panels import performance
from analysis.figures.paper import PAPER, draw
from analysis.figures.published import correlations_beside_the_paper
from analysis.figures.scaling import scaling
from analysis.figures.style import (
    Axis,
    axis,
    intervals,
    loss_words,
    save,
    short_count,
    size_styles,
    sizes_in_order,
)

__all__ = [
    "PAPER",
    "Axis",
    "axis",
    "correlations_beside_the_paper",
    "draw",
    "forecast",
    "intervals",
    "loss_curves",
    "loss_words",
    "performance",
    "save",
    "scaling",
    "short_count",
    "size_styles",
    "sizes_in_order",
]
