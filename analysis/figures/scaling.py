"""The scaling law beside the losses it was fitted to."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from analysis.figures.style import STYLE, short_count, size_styles, sizes_in_order
from analysis.scaling_law import ScalingLaw


def scaling(law: ScalingLaw, table: pd.DataFrame, *, loss: str = "loss") -> Figure:
    """Loss against tokens, a colour a size: checkpoints (ends of runs filled), and L(N, D) as lines.

    Only of the last three quarters of the log tokens is the height taken, so that the first steps do not flatten all.
    """
    points = table.drop_duplicates(["grid", "run", "step"])
    styles = size_styles(sizes_in_order(table))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 4.0))
        first, last = points["tokens"].min(), points["tokens"].max()
        tokens = np.geomspace(first, last, 120)
        for size, (colour, marker) in styles.items():
            own = points[points["size"] == size]
            for final in (False, True):
                chosen = own[own["final"] == final]
                face = colour if final else "white"
                look = {"color": colour, "markerfacecolor": face, "markersize": 5 if final else 2.8}
                axes.plot(chosen["tokens"], chosen[loss], marker, zorder=3 + final, markeredgewidth=0.7, **look)
            parameters = float(own[law.parameters].median())
            reached = tokens[tokens <= own["tokens"].max()]
            curve = [law.loss(parameters, count).value for count in reached]
            axes.plot(reached, curve, color=colour, linewidth=1.3, zorder=2)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("training tokens")
        axes.set_ylabel("pre-training loss (nats per token)")
        late = points.loc[points["tokens"] >= first * (last / first) ** 0.25, loss]
        room = 0.05 * (late.max() - late.min() or 0.1)
        axes.set_ylim(late.min() - room, late.max() + room)
        handles = [
            Line2D([], [], color=colour, marker=marker, markersize=5, linewidth=1.3, label=size)
            for size, (colour, marker) in styles.items()
        ]
        axes.legend(handles=handles, fontsize=8.5, loc="upper right", ncols=2 if len(handles) > 4 else 1)
        figure.tight_layout()
    return figure
