"""The figures of Du et al. 2024 (arXiv 2403.15796v3) in layout and content, from whatever table is given.

`PAPER` says of each figure which runs, checkpoints, tasks and metrics it shows; `draw` picks them from a table and
draws them, with what the paper does not draw: intervals over benchmark rows, and thresholds with theirs (*ours*).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.panels import performance
from analysis.figures.style import axis
from analysis.names import TASK_TITLES, in_order
from analysis.table import primary_metrics, run_ids
from analysis.threshold import Threshold
from tokenizer.cli import UserError

LARGE_RUNS = 3
"""Runs that figures 1, 6 and 8 show, those with the most training compute: in the paper 1.5B, 6B and 32B."""

MAIN_TASKS = (
    *("triviaqa", "hellaswag", "race", "winogrande", "nlpcc_kbqa", "clozet", "c3", "cluewsc"),
    *("mmlu", "ceval", "gsm8k", "gsm8k_zh"),
)
"""The twelve panels of figures 1, 2, 5 and 6, row by row."""

BIG_BENCH = ("word_unscramble", "modified_arithmetic", "ipa_transliterate")
"""The three panels of figure 8."""


@dataclass(frozen=True)
class Recipe:
    """What one figure of the paper shows."""

    number: int
    caption: str
    runs: str
    """`large` (`LARGE_RUNS`), `small` (all others) or `all`."""
    checkpoints: str
    """`all`, `final`, or `intermediate` (all but the last of each run, and the last hollowed out no more)."""
    tasks: tuple[str, ...] = MAIN_TASKS
    """Panels in order; empty: every task of the table."""
    metrics: tuple[str, ...] = ()
    """Panels of one task, side by side; empty: the first metric of each task."""
    x: str = "loss"
    columns: int = 4
    lines: bool = False
    """Join the checkpoints of a run."""


PAPER = {
    recipe.number: recipe
    for recipe in (
        Recipe(1, "Performance against loss, all checkpoints of the large runs", "large", "all"),
        Recipe(2, "Performance against loss, the final checkpoint of each small run", "small", "final"),
        Recipe(
            3,
            "Performance against loss, another project's models (the paper: LLaMA 7B to 65B)",
            *("all", "all", ()),
            columns=3,
            lines=True,
        ),
        Recipe(
            4,
            "MMLU and C-Eval under accuracy, CorrectChoiceProb and Brier score",
            *("large", "all", ("mmlu", "ceval"), ("acc", "correct_choice_prob", "brier")),
            columns=3,
        ),
        Recipe(5, "Performance against loss, intermediate checkpoints of the small runs", "small", "intermediate"),
        Recipe(6, "Performance against training compute, the large runs", "large", "all", x="flops_6nd"),
        Recipe(
            7,
            "Performance against loss, a grid trained on another corpus (the paper: Pythia)",
            *("all", "all", ()),
            columns=4,
            lines=True,
        ),
        Recipe(
            8,
            "Performance against loss on three BIG-bench tasks, the large runs",
            *("large", "all", BIG_BENCH),
            columns=3,
        ),
    )
}


def large_runs(table: pd.DataFrame, count: int = LARGE_RUNS) -> list[str]:
    """The `count` runs (`grid/run`) with the most training compute, most first; by tokens x parameters where the table
    has no FLOPs."""
    compute = table["flops_6nd"].fillna(6.0 * table["parameters"] * table["tokens"])
    return compute.groupby(run_ids(table)).max().sort_values(ascending=False, kind="stable").index[:count].tolist()


def select(table: pd.DataFrame, recipe: Recipe, large: Sequence[str] | None = None) -> pd.DataFrame:
    """The rows of a results table that a figure shows.

    Args:
        large: the large runs, as `grid/run` or `run`; default `large_runs`.

    Raises:
        UserError: if nothing is left, saying of what.
    """
    names = run_ids(table)
    big = names.isin(large) | table["run"].isin(large) if large is not None else names.isin(large_runs(table))
    if large is not None and not big.any():
        raise UserError(
            f"--large {' '.join(large)}: no such run; the table has {', '.join(sorted(table['run'].unique()))}"
        )
    rows = table
    if recipe.runs != "all":
        rows = rows[big if recipe.runs == "large" else ~big]
        if rows.empty:
            count = names.nunique()
            raise UserError(
                f"figure {recipe.number} shows the {recipe.runs} runs, and the table has none: its {count} are all "
                "taken for large (those with the most training compute); name the large ones with --large"
            )
    if recipe.checkpoints != "all":
        rows = rows[rows["final"] == (recipe.checkpoints == "final")]
        if rows.empty:
            raise UserError(f"figure {recipe.number} shows {recipe.checkpoints} checkpoints, and the table has none")
    if recipe.tasks:
        rows = rows[rows["task"].isin(recipe.tasks)]
        if rows.empty:
            raise UserError(
                f"figure {recipe.number} shows {', '.join(TASK_TITLES.get(task, task) for task in recipe.tasks)}; the "
                f"table has {', '.join(in_order(table['task']))}"
            )
    if recipe.metrics:
        rows = rows[rows["metric"].isin(recipe.metrics)]
        if rows.empty:
            raise UserError(f"figure {recipe.number} needs one of the metrics {', '.join(recipe.metrics)}")
    if rows[recipe.x].isna().all():
        raise UserError(
            f"figure {recipe.number} is drawn against {axis(recipe.x).label}, and column {recipe.x} is empty; fill it, "
            "or parameters_non_embedding, from which it is computed"
        )
    return rows


def draw(
    table: pd.DataFrame, number: int, thresholds: Sequence[Threshold] = (), *, large: Sequence[str] | None = None
) -> Figure:
    """Figure `number` (1 to 8) of the paper from a results table. A panel whose task is not in the table stays empty.

    Args:
        thresholds: verdicts to draw in, of the whole table or of the runs shown.
        large: the large runs, as `grid/run` or `run`; default `large_runs`.

    Raises:
        UserError: for a number that is none, and for a table that has nothing to show there.
    """
    if number not in PAPER:
        raise UserError(f"--figure {number}: the paper has figures 1 to {max(PAPER)}")
    recipe = PAPER[number]
    rows = select(table, recipe, large)
    first = primary_metrics(rows)
    tasks = recipe.tasks or tuple(in_order(rows["task"]))
    panels = [(task, metric) for task in tasks for metric in recipe.metrics or (first.get(task, ""),)]
    shown = pd.MultiIndex.from_frame(rows[["task", "metric"]]).isin(panels)
    return performance(
        rows[shown],
        thresholds,
        x=recipe.x,
        panels=panels,
        columns=recipe.columns,
        lines=recipe.lines,
        mark_ends=recipe.checkpoints == "all",
    )
