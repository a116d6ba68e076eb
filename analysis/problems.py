"""What is wrong with a results table: missing, duplicated, out of range, without a chance level, or such that no number
computed from it would mean anything. Each problem with its rows and what to do about it.

    python -m analysis.check results.csv
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis import columns
from analysis.names import in_order

FATAL, WARNING = "fatal", "warning"

ROWS_LISTED = 1000
"""Row numbers kept of one problem."""

MIXTURES = (
    ("tokenizer_sha256", "tokenizers", "losses per different tokens do not compare"),
    ("data_fingerprint", "training data sets", "losses on different texts do not compare"),
    ("precision", "training precisions", "losses may differ for that reason alone"),
)
"""Columns of which one table should hold one value. Of the first two more than one leaves no common axis of loss
(Du et al. 2024, section 7)."""

_MOST_TEXT = 40


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a table."""

    column: str
    """Where to look."""
    kind: str
    """missing, empty, type, range, duplicate, chance, contradiction, mixture, loss, design or signal."""
    statement: str
    """What is wrong, as a sentence without its full stop; rows are counted from 1 below the header."""
    remedy: str
    """What to do about it."""
    severity: str = FATAL
    """`FATAL`: the table is refused; `WARNING`: some results cannot be given, or mean less."""
    rows: tuple[int, ...] = ()
    """Data rows, from 1 below the header; the first `ROWS_LISTED` of them."""
    count: int = 0
    """Rows in all."""

    @property
    def fatal(self) -> bool:
        """Whether the table is refused for it."""
        return self.severity == FATAL

    def __str__(self) -> str:
        return f"{self.statement}; {self.remedy}"


def missing(table: pd.DataFrame) -> list[Problem]:
    """Required columns that are not there, and a table without rows. Nothing else can be looked at then."""
    absent = [column for column in columns.REQUIRED if column not in table.columns]
    if absent:
        plural = "s" * (len(absent) > 1)
        statement = f"missing column{plural} {', '.join(absent)}; a results table needs {', '.join(columns.REQUIRED)}"
        there = ", ".join(map(str, table.columns[:12])) or "none"
        remedy = f"name yours: --map {absent[0]}=YOUR_COLUMN (there are: {there})"
        return [Problem(absent[0], "missing", statement, remedy)]
    if table.empty:
        return [Problem("", "missing", "the table has no rows", "evaluate at least one checkpoint first")]
    return []


def of_rows(
    table: pd.DataFrame,
    bad: pd.Series | np.ndarray,
    column: str,
    kind: str,
    what: str,
    remedy: str,
    severity: str = FATAL,
) -> list[Problem]:
    """One problem that says in how many rows `column` is `what`, and where first; none if no row is `bad`."""
    index = np.flatnonzero(bad)
    if not len(index):
        return []
    row = table.iloc[int(index[0])]
    place = [f"{name} {row[name]}" if name in ("run", "step") else str(row[name]) for name in _PLACE if name in row]
    where = f"first in data row {index[0] + 1} ({' '.join(place)})"
    statement = f"column {column} is {what} in {len(index)} of {len(table)} rows, {where}"
    listed = tuple((index[:ROWS_LISTED] + 1).tolist())
    return [Problem(column, kind, statement, remedy, severity, listed, len(index))]


_PLACE = ("run", "step", "task", "metric")


def found_in(table: pd.DataFrame) -> list[Problem]:
    """The problems of a table whose cells have the right types and whose derived columns are filled, fatal first."""
    found = [*_empty(table), *_ranges(table), *_chance(table), *_duplicates(table), *_contradictions(table)]
    if not found:
        # What follows is about trends and only adds noise to a table that cannot be right.
        checkpoints = table.drop_duplicates(list(columns.CHECKPOINT))
        found += [*_mixtures(table), *_design(checkpoints), *_losses(table, checkpoints), *_signal(table)]
    return sorted(found, key=lambda problem: not problem.fatal)


def incomparable(table: pd.DataFrame) -> str:
    """Why the losses of these rows have no common axis (several tokenizers or corpora); "" if they have one."""
    for column, thing, consequence in MIXTURES[:2]:
        values = _known(table, column)
        if len(values) > 1:
            return f"{len(values)} {thing} in one table: {consequence}; take one with --only {column}={values[0][:12]}"
    return ""


def _known(table: pd.DataFrame, column: str) -> list[str]:
    if column not in table:
        return []
    return sorted(str(value) for value in table[column].dropna().unique() if str(value))


def _empty(table: pd.DataFrame) -> Iterator[Problem]:
    # An empty chance is `_chance`'s, an empty language is harmless.
    for column in (*columns.REQUIRED, "step", "parameters"):
        bad = table[column] == "" if column in columns.TEXT else table[column].isna()
        remedy = "fill it in or leave the row out"
        if column == "parameters":
            remedy = "fill it in, or write sizes as 300M or 6B"
        yield from of_rows(table, bad, column, "empty", "empty", remedy)


def _ranges(table: pd.DataFrame) -> Iterator[Problem]:
    for column, low, high, remedy in (
        ("loss", 0.0, columns.MAXIMUM_LOSS, "give nats per token (the logarithm of a perplexity)"),
        ("step", 0, np.inf, "count optimizer steps from 0"),
        ("tokens", 0, np.inf, "count consumed tokens"),
        ("parameters", 1, np.inf, "count parameters"),
        ("rows", 1, np.inf, "give the number of rows behind the value"),
        ("stderr", 0, np.inf, "give a standard error or leave it empty"),
    ):
        values = table[column].to_numpy(dtype=float)
        bad = ~np.isnan(values) & ~(np.isfinite(values) & (values >= low) & (values <= high))
        yield from of_rows(table, bad, column, "range", f"outside {low:g} to {high:g}", remedy)
    for column in ("value", "chance"):
        bad = np.isinf(table[column])
        yield from of_rows(table, bad, column, "range", "not finite", "leave the row out")
        for metric in set(table["metric"].unique()) & set(columns.RANGES):
            low, high = columns.RANGES[metric]
            bad = (table["metric"] == metric) & table[column].notna() & ~table[column].between(low, high)
            remedy = f"{metric}: " + ("give fractions, not percentages" if high == 1.0 else "it cannot be there")
            yield from of_rows(table, bad, column, "range", f"outside {low:g} to {high:g}", remedy)


def _chance(table: pd.DataFrame) -> Iterator[Problem]:
    absent = table["chance"].isna()
    share = table["metric"].isin(columns.FRACTIONS)
    if (absent & share).any():
        tasks = table.loc[absent & share, "task"].unique()
        remedy = f"give it (1/options, 0 for open answers): --chance {tasks[0]}=0.25, or a column chance"
        what = f"not known for {', '.join(tasks[:6])}"
        yield from of_rows(table, absent & share, "chance", "chance", what, remedy)
    if (absent & ~share).any():
        metrics = sorted(table.loc[absent & ~share, "metric"].unique())
        what = f"not known for metric {', '.join(metrics[:6])}"
        remedy = "no thresholds are computed from these"
        yield from of_rows(table, absent & ~share, "chance", "chance", what, remedy, WARNING)


def _duplicates(table: pd.DataFrame) -> Iterator[Problem]:
    bad = table.duplicated(list(columns.KEY), keep=False)
    if bad.any():
        index = np.flatnonzero(bad)
        first = table.iloc[index[0]]
        statement = (
            f"{len(index)} rows share a checkpoint, task and metric, the first of them run {first['run']} "
            f"step {first['step']:g} {first['task']} {first['metric']} (data row {index[0] + 1})"
        )
        listed = tuple((index[:ROWS_LISTED] + 1).tolist())
        yield Problem("run", "duplicate", statement, "keep one of each", FATAL, listed, len(index))


def _contradictions(table: pd.DataFrame) -> Iterator[Problem]:
    checkpoint = table.groupby(list(columns.CHECKPOINT), sort=False).ngroup().to_numpy()
    for column in ("loss", "tokens", "parameters"):
        bad = _differs_from_first(table[column].to_numpy(dtype=float), checkpoint)
        what = "not the same throughout one checkpoint"
        yield from of_rows(table, bad, column, "contradiction", what, "give one value a checkpoint")
    metric = pd.factorize(table["metric"])[0]
    bad = _differs_from_first(table["higher_is_better"].to_numpy(dtype=float), metric)
    what = "both true and false for one metric"
    yield from of_rows(table, bad, "higher_is_better", "contradiction", what, "give one direction a metric")


def _differs_from_first(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Which values (n,) are known and not those of the first row of their group."""
    _, first = np.unique(group, return_index=True)
    return ~np.isnan(values) & (values != values[first][group])


def _mixtures(table: pd.DataFrame) -> Iterator[Problem]:
    for column, thing, consequence in MIXTURES:
        values = _known(table, column)
        if len(values) > 1:
            shown = ", ".join(value[:12] for value in values)
            statement = f"{len(values)} {thing} in one table ({shown}): {consequence}"
            yield Problem(column, "mixture", statement, f"take one with --only {column}={values[0][:12]}", WARNING)
    counts = table.drop_duplicates(["task", "metric", "chance"]).groupby(["task", "metric"])["chance"].count()
    several = sorted({task for (task, _), count in counts.items() if count > 1})
    if several:
        statement = f"several chance levels of one task and metric ({', '.join(several[:6])})"
        yield Problem("chance", "mixture", statement, "evaluate all checkpoints on the same rows", WARNING)


def _design(checkpoints: pd.DataFrame) -> Iterator[Problem]:
    runs = checkpoints[["grid", "run"]].drop_duplicates()
    if len(runs) < 3:
        statement = f"{len(runs)} run{'s' * (len(runs) != 1)}: how runs differ cannot be seen, and no interval be given"
        yield Problem("run", "design", statement, "add runs, three at least", WARNING)
    if checkpoints["size"].nunique() < 2:
        statement = f"one size only ({checkpoints['size'].iloc[0]}): nothing can be said about sizes at equal loss"
        yield Problem("size", "design", statement, "add runs of another size", WARNING)


def _losses(table: pd.DataFrame, checkpoints: pd.DataFrame) -> Iterator[Problem]:
    loss = checkpoints["loss"]
    if len(checkpoints) > 1 and loss.nunique() == 1:
        statement = f"the loss is {loss.iloc[0]:g} at every checkpoint: performance cannot be set against it"
        yield Problem("loss", "loss", statement, "choose another loss with --loss, or --map loss=YOUR_COLUMN", WARNING)
        return
    ordered = checkpoints.sort_values(["grid", "run", "tokens"])
    runs = ordered.groupby(["grid", "run"])["loss"]
    change = (runs.last() - runs.first())[runs.size() >= 2]
    risen = change[change > 0]
    if risen.empty:
        return
    names = [run for _, run in risen.index]
    bad = table["run"].isin(names)
    listed = tuple((np.flatnonzero(bad)[:ROWS_LISTED] + 1).tolist())
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    statement = f"the loss rises with tokens in {len(risen)} of {len(change)} runs ({shown})"
    if len(risen) > len(change) / 2 and len(change) >= 2:
        remedy = "a pre-training loss falls: name the right column with --map loss=YOUR_COLUMN"
        yield Problem("loss", "loss", statement, remedy, FATAL, listed, int(bad.sum()))
    else:
        remedy = "look whether they diverged, and leave them out with --leave-out run=NAME"
        yield Problem("loss", "loss", statement, remedy, WARNING, listed, int(bad.sum()))


def _signal(table: pd.DataFrame) -> Iterator[Problem]:
    known = table["metric"].isin(columns.FRACTIONS) & table["chance"].notna()
    shares = table.loc[known, ["task", "metric", "value", "rows", "chance"]]
    flat = [str(task) for task, rows in shares.groupby("task") if no_better_than_chance(rows)]
    constant = table.groupby(["task", "metric"])["value"].agg(["nunique", "size", "first"])
    constant = constant[(constant["nunique"] == 1) & (constant["size"] > 1)]
    for (task, metric), row in list(constant.iterrows())[:20]:
        statement = f"{task} {metric} is {row['first']:g} at every checkpoint"
        yield Problem("value", "signal", statement, "look whether it was evaluated at all", WARNING)
    low = in_order(str(task) for task, rows in shares.groupby("task") if below_chance(rows))
    if low:
        statement = f"{', '.join(low)}: below chance by more than the sampling of rows at some checkpoints"
        remedy = "look whether options are preferred for their length or letter; a plateau before a rise may be that"
        yield Problem("value", "signal", statement, remedy, WARNING)
    if flat:
        names = in_order(flat)
        everything = "no task is" if len(flat) == table["task"].nunique() else f"{', '.join(names)}: not"
        statement = f"{everything} above chance by more than the sampling of rows at any checkpoint"
        yield Problem("value", "signal", statement, "nothing follows from these but a bound on a threshold", WARNING)


def below_chance(rows: pd.DataFrame) -> bool:
    """Whether a checkpoint of one task (shares of rows) lies below chance by more than sampling explains: one-sided
    exact binomial tests, 0.1 % for all checkpoints together (Bonferroni)."""
    correct = np.round(rows["value"].to_numpy(dtype=float) * rows["rows"].to_numpy(dtype=float))
    p_values = stats.binom.cdf(correct, rows["rows"].to_numpy(dtype=float), rows["chance"].to_numpy(dtype=float))
    return bool(p_values.min() * len(rows) < 0.001)


def no_better_than_chance(rows: pd.DataFrame) -> bool:
    """Whether no checkpoint of one task and metric (a share of rows) lies above chance by more than its rows' sampling
    error explains: one-sided exact binomial tests, 5 % for all checkpoints together (Bonferroni). Open answers
    (chance 0) count as chance up to `columns.GUESS_RATE`."""
    level = rows["chance"].to_numpy(dtype=float)
    correct = np.round(rows["value"].to_numpy(dtype=float) * rows["rows"].to_numpy(dtype=float))
    guessed = np.where(level > 0, level, columns.GUESS_RATE)
    p_values = stats.binom.sf(correct - 1, rows["rows"].to_numpy(dtype=float), guessed)
    return bool(p_values.min() * len(rows) > 0.05)
