"""The report's interactive view: a results table, packed into the page, that the reader cuts by task, metric, axis and
size, sorts, and downloads. plotly.js travels with the page, and a policy in it forbids the browser to load anything.

Rows are packed as in a small database: columns of a checkpoint are stored once for all its tasks, texts as indices into
their distinct values, numbers as the bytes of float64. That is 20 bytes a row before base64, 13 MB for 500,000 rows.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
from plotly.offline import get_plotlyjs

from analysis import page
from analysis.critical_scale import CriticalScale
from analysis.figures import axis, size_styles, sizes_in_order
from analysis.names import in_order, language_title, metric_title, task_title
from analysis.table import FRACTIONS, primary_metrics
from analysis.threshold import EMERGENT, NOT_REACHED, Threshold

LARGEST = 1_000_000
"""Rows above which the page carries only some checkpoints of each run: 26 MB of text."""

SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "pentagon", "hexagon")
"""plotly's names of `analysis.figures.style.MARKERS`."""

GLYPHS = ("●", "■", "▲", "◆", "▼", "✚", "✖", "⬟", "⬢")
"""The same as characters, for the size buttons."""

ROW_COLUMNS = ("task", "language", "kind", "metric", "value", "stderr", "rows", "chance", "higher_is_better")
"""Columns of a row; all others that the view carries belong to its checkpoint."""

CHECKPOINT_COLUMNS = (
    *("grid", "run", "size", "seed", "step", "final", "decay", "tokens", "parameters", "parameters_non_embedding"),
    *("flops_6nd", "flops_exact", "precision", "tokenizer_sha256", "data_fingerprint"),
)
"""Columns of a checkpoint, where the table has them; its losses and perplexities are added."""


def view(
    table: pd.DataFrame,
    thresholds: Sequence[Threshold] = (),
    critical: Sequence[CriticalScale] = (),
    *,
    loss: str = "loss",
    largest: int = LARGEST,
) -> str:
    """The section: controls, plot, table, data and programs, as HTML.

    Args:
        table: a results table.
        thresholds: verdicts to draw and to write on the axis `loss`.
        critical: the same on other axes.
        loss: column that the verdicts belong to, and the first axis.
        largest: rows above which checkpoints are left out (final ones stay).
    """
    shown, every = thin(table, largest)
    packed = json.dumps(pack(shown, thresholds, critical, loss=loss), ensure_ascii=False, allow_nan=False)
    # Or a task called <!--<script> would end what the browser takes for data.
    data = packed.replace("<", "\\u003c")
    program = (resources.files("analysis") / "interactive.js").read_text(encoding="utf-8")
    remark = (
        "The download has all rows of this report, with the columns that the view uses; results.csv beside this page "
        "has all columns."
    )
    if every > 1:
        remark = (
            f"The table has {len(table):,} rows, too many for a page: this view, and its download, hold the final "
            f"checkpoints and one in {every} of the others ({len(shown):,} rows). results.csv beside this page has all."
        )
    parts = [
        _CONTROLS,
        f'<p class="caption">{escape(remark)}</p>',
        # Scripts of the page itself, nothing from elsewhere: see page.document.
        f"<script>{get_plotlyjs()}</script>",
        f'<script type="application/json" id="view-data">{data}</script>',
        f"<script>{program}</script>",
    ]
    return page.section("Look for yourself", *parts)


def thin(table: pd.DataFrame, largest: int) -> tuple[pd.DataFrame, int]:
    """At most about `largest` rows: final checkpoints and one in `every` of each run's others; and `every`."""
    if len(table) <= largest:
        return table, 1
    final = table["final"].to_numpy()
    every = -(-int((~final).sum()) // max(1, largest - int(final.sum())))
    order = table.groupby(["grid", "run"])["step"].rank(method="dense").astype(int)
    return table[final | (order % every == 0)], every


def pack(
    table: pd.DataFrame,
    thresholds: Sequence[Threshold] = (),
    critical: Sequence[CriticalScale] = (),
    *,
    loss: str = "loss",
) -> dict[str, Any]:
    """What the view needs, ready for JSON: checkpoints and series (a task under a metric) as packed columns."""
    sizes = sizes_in_order(table)
    styles = size_styles(sizes)
    owned = _checkpoint_columns(table)
    key = pd.util.hash_pandas_object(table[owned], index=False).to_numpy()
    _, first, checkpoint = np.unique(key, return_index=True, return_inverse=True)
    checkpoints = table.iloc[first]
    metrics = primary_metrics(table)
    by_series = table.groupby(["task", "metric"], sort=False).indices
    series = []
    for task in in_order(table["task"]):
        names = sorted((name for of, name in by_series if of == task), key=lambda name: (name != metrics[task], name))
        series += [_series(table.iloc[by_series[task, name]], checkpoint[by_series[task, name]]) for name in names]
    return {
        "checkpoints": {name: _column(checkpoints[name]) for name in owned},
        "series": series,
        "axes": [vars(axis(name)) for name in _axes(table, loss)],
        "sizes": [
            {"name": name, "colour": _hex(styles[name][0]), "symbol": SYMBOLS[i % 9], "glyph": GLYPHS[i % 9]}
            for i, name in enumerate(sizes)
        ],
        "loss": loss,
        "marks": [
            *(_mark(r, loss, "η", r.eta, r.eta_low, r.eta_high, f"η, if any, < {r.eta_below:.2f}") for r in thresholds),
            *(
                _mark(r, r.axis, "critical scale", r.scale, r.low, r.high, f"critical scale, if any, > {r.above:.2g}")
                for r in critical
            ),
        ],
    }


def _checkpoint_columns(table: pd.DataFrame) -> list[str]:
    losses = [name for name in table.columns if name == "loss" or name.startswith("loss_") or name.endswith("_loss")]
    losses += [name for name in table.columns if "perplexity" in name]
    numeric = [name for name in losses if pd.api.types.is_numeric_dtype(table[name]) and table[name].notna().any()]
    known = [name for name in CHECKPOINT_COLUMNS if name in table and not _is_empty(table[name])]
    return [*known, *numeric]


def _is_empty(column: pd.Series) -> bool:
    return bool((column.isna() | (column.astype(str) == "")).all())


def _axes(table: pd.DataFrame, loss: str) -> list[str]:
    """Columns that can be an axis: the loss of the report, compute, parameters, tokens, then other losses."""
    others = [name for name in _checkpoint_columns(table) if name != loss and ("loss" in name or "perplexity" in name)]
    wanted = [loss, "flops_6nd", "flops_exact", "parameters", "tokens", *others]
    return [name for name in wanted if name in table and table[name].notna().any()]


def _series(rows: pd.DataFrame, checkpoint: np.ndarray) -> dict[str, Any]:
    first = rows.iloc[0]
    task, metric, language = str(first["task"]), str(first["metric"]), str(first["language"])
    return {
        "task": task,
        "metric": metric,
        "language": language,
        "kind": str(first["kind"]),
        "taskTitle": task_title(task),
        "metricTitle": metric_title(metric),
        "languageTitle": language_title(language),
        "higherIsBetter": bool(first["higher_is_better"]),
        "share": metric in FRACTIONS,
        "checkpoint": _bytes(checkpoint.astype("<u4")),
        **{name: _column(rows[name]) for name in ("value", "stderr", "rows", "chance")},
    }


def _column(values: pd.Series) -> dict[str, Any]:
    """One column: a number repeated, float64 bytes, or indices into distinct texts."""
    if pd.api.types.is_bool_dtype(values):
        values = values.map({True: "True", False: "False"})
    if pd.api.types.is_numeric_dtype(values):
        numbers = values.to_numpy(dtype="<f8", na_value=np.nan)
        if len(numbers) and (numbers == numbers[0]).all():
            return {"all": float(numbers[0])}
        return {"numbers": _bytes(numbers)}
    index, distinct = pd.factorize(values.astype(str))
    return {"texts": [str(text) for text in distinct], "index": _bytes(index.astype("<u4"))}


def _bytes(numbers: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(numbers).tobytes()).decode("ascii")


def _hex(colour: tuple[float, ...]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour[:3])


def _mark(
    result: Threshold | CriticalScale, axis: str, name: str, at: float, low: float, high: float, bound: str
) -> dict[str, Any]:
    """A verdict on one axis, with the place to be marked where there is one."""
    drawn = {"at": at, "low": low, "high": high} if result.verdict == EMERGENT else {}
    words = f"{result.verdict}: {bound}" if result.verdict == NOT_REACHED else result.verdict
    return {
        "task": result.task,
        "metric": result.metric,
        "axis": axis,
        "name": name,
        "words": words,
        "reason": result.reason,
        **drawn,
    }


_CONTROLS = """<p class="caption" id="view-help">Choose what is drawn; hover over, or tap, a marker for its checkpoint;
drag to zoom, double-click to go back. Filled markers are the ends of runs. Orange: a threshold η, or a critical scale,
with its 95 % interval, where the verdict is emergent.</p>
<noscript><p>This view needs JavaScript; the figures above do not.</p></noscript>
<div id="view" aria-describedby="view-help">
<div class="controls">
<label>Task <select id="view-task"></select></label>
<label>Metric <select id="view-metric"></select></label>
<label>Against <select id="view-axis"></select></label>
<label class="tick"><input type="checkbox" id="view-final"> ends of runs only</label>
<label class="tick"><input type="checkbox" id="view-bars" checked> 95 % intervals</label>
</div>
<div class="sizes" id="view-sizes" role="group" aria-label="Model sizes"></div>
<div id="view-plot" role="img" aria-label="Performance of the chosen checkpoints"></div>
<p id="view-verdict" class="caption" aria-live="polite"></p>
<div class="controls below">
<button type="button" id="view-download">Download all rows (CSV)</button>
<button type="button" id="view-download-shown">Download the rows shown (CSV)</button>
<span id="view-count" class="caption"></span>
</div>
<div class="wide"><table id="view-table"><thead></thead><tbody></tbody></table></div>
<div class="controls pages">
<button type="button" id="view-back" aria-label="Previous rows">‹</button>
<span id="view-page"></span>
<button type="button" id="view-on" aria-label="Next rows">›</button>
</div>
</div>"""
