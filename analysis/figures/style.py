"""How figures look: one colour and one marker a size, axes, intervals, files.

Sizes are told apart by colour (viridis, whose order of lightness survives grey and colour blindness) and by marker.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import stats

from analysis.chance import wilson_interval
from analysis.table import FRACTIONS
from tokenizer.files import atomic_path

if "IPython" in sys.modules and (_shell := sys.modules["IPython"].get_ipython()):
    # A notebook shows a figure that a cell returns; its own backend would do so, which Agg has taken the place of.
    from IPython.core.pylabtools import select_figure_formats

    select_figure_formats(_shell, {"png"})

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h")

THRESHOLD = "#d55e00"
"""Vermilion of Okabe and Ito's palette: far from viridis for every kind of colour vision."""

CHANCE_LINE = {"color": "#555555", "linestyle": (0, (4, 3)), "linewidth": 0.9}

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


@dataclass(frozen=True)
class Axis:
    """A column that performance is drawn against."""

    column: str
    label: str
    """With its unit."""
    short: str
    """Without it, for a menu."""
    log: bool
    falling: bool
    """Whether small values lie on the right, so that better is always there."""


def axis(column: str) -> Axis:
    """How the column `column` of a results table is drawn; an unknown one as a loss if it is named so, else plainly."""
    known = {
        "loss": Axis("loss", "pre-training loss (nats per token)", "loss", False, True),
        "flops_6nd": Axis("flops_6nd", "training compute, 6ND (FLOPs)", "training FLOPs (6ND)", True, False),
        "flops_exact": Axis(
            "flops_exact", "training compute, counted (FLOPs)", "training FLOPs (counted)", True, False
        ),
        "parameters": Axis("parameters", "parameters", "parameters", True, False),
        "tokens": Axis("tokens", "training tokens", "tokens", True, False),
        "loss_train": Axis("loss_train", "training loss (nats per token)", "loss, training", False, True),
    }
    if column in known:
        return known[column]
    name = column.removeprefix("loss_").replace("_", " ")
    if column.startswith("loss_") or column.endswith("_loss"):
        return Axis(column, f"loss, {name} (nats per token)", f"loss, {name}", False, True)
    return Axis(column, column.replace("_", " "), column.replace("_", " "), False, "perplexity" in column)


def sizes_in_order(table: pd.DataFrame) -> list[str]:
    """The size names of a table, from few parameters to many."""
    return table.groupby("size")["parameters"].min().sort_values(kind="stable").index.astype(str).tolist()


def size_styles(sizes: Sequence[str]) -> dict[str, tuple[tuple[float, ...], str]]:
    """Size -> (RGBA, marker): dark to bright from the largest to the smallest, short of viridis' pale end."""
    positions = np.linspace(0.80, 0.02, len(sizes)) if len(sizes) > 1 else [0.35]
    colours = matplotlib.colormaps["viridis"]
    return {
        size: (colours(float(position)), MARKERS[index % len(MARKERS)])
        for index, (size, position) in enumerate(zip(sizes, positions, strict=True))
    }


def intervals(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of each value over benchmark rows, shape (rows,) twice: Wilson's for shares, ±1.96 standard errors
    otherwise; the value itself where no standard error is known."""
    value = rows["value"].to_numpy(dtype=float)
    if rows["metric"].iloc[0] in FRACTIONS:
        low, high = wilson_interval(value, rows["rows"].to_numpy(dtype=float))
        # Not past the value by rounding, at 0 and 1.
        return np.minimum(low, value), np.maximum(high, value)
    half = stats.norm.ppf(0.975) * np.nan_to_num(rows["stderr"].to_numpy(dtype=float))
    return value - half, value + half


def short_count(value: float) -> str:
    """1500000 as 1.5M, in powers of a thousand to T."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def loss_words(value: float, low: float, high: float) -> tuple[str, str, str]:
    """A loss and the ends of its interval with as many digits as the interval's width carries, 2 to 4."""
    width = abs(high - low)
    digits = 2 if not width < 0.02 else 3 if width >= 0.002 else 4
    return f"{value:.{digits}f}", f"{low:.{digits}f}", f"{high:.{digits}f}"


def legend(
    figure: Figure, styles: Mapping[str, tuple[tuple[float, ...], str]], *, ends: bool, on_the_way: bool, extra: bool
) -> None:
    """Sizes, filled and hollow markers, chance and interval above the panels; `extra`: a threshold is drawn."""
    handles = [
        Line2D([], [], linestyle="none", marker=marker, color=colour, markersize=5.5, label=size)
        for size, (colour, marker) in styles.items()
    ]
    grey = "#666666"
    if on_the_way and ends:
        handles.append(Line2D([], [], linestyle="none", marker="o", color=grey, label="end of a run"))
        handles.append(
            Line2D([], [], linestyle="none", marker="o", color=grey, markerfacecolor="white", label="on the way")
        )
    handles.append(Line2D([], [], **CHANCE_LINE, label="chance"))
    handles.append(Line2D([], [], color="#999999", linewidth=0.8, label="95 % interval (rows)"))
    if extra:
        handles.append(Line2D([], [], color=THRESHOLD, linewidth=1.2, label="threshold η, 95 %"))
    columns = min(len(handles), max(3, int(figure.get_figwidth() / 1.2)))
    if len(handles) > columns:
        columns = -(-len(handles) // 2)
    figure.legend(
        handles=handles,
        loc="upper center",
        ncols=columns,
        fontsize=8.5,
        handletextpad=0.4,
        columnspacing=1.4,
        bbox_to_anchor=(0.5, 1.0),
    )


def legend_lines(figure_width: float, num_sizes: int) -> int:
    """Lines that `legend` needs at most, to leave room for."""
    return -(-(num_sizes + 5) // max(3, int(figure_width / 1.2)))


def save(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Write `stem`.png (200 dpi) and `stem`.svg, each whole or not at all, and close the figure."""
    # No with_suffix: a name like fig1.5B would lose its end.
    paths = (stem.parent / f"{stem.name}.png", stem.parent / f"{stem.name}.svg")
    for path in paths:
        # No date in the SVG: the same table gives the same file.
        metadata = {"Date": None} if path.suffix == ".svg" else None
        # The style again: SVG takes its element ids from it when it is written.
        with plt.rc_context(STYLE), atomic_path(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=200, facecolor="white", metadata=metadata)
    plt.close(figure)
    return paths
