"""The results table: one row per checkpoint x task x metric, from a grid's result files or from anybody's CSV or
Parquet file, checked before anything is computed from it.

    table = load("theirs.csv", columns={"loss": "c4_loss"})
    table = load("runs/micro", "runs/micro-seeds")
    problems_of(table)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import columns as names
from analysis import problems, result_files
from analysis.columns import DERIVED, FRACTIONS, KEY, LOWER_IS_BETTER, OPTIONAL, ORDER, REQUIRED
from analysis.problems import Problem
from tokenizer.cli import UserError
from tokenizer.files import atomic_path

__all__ = [
    *("FRACTIONS", "KEY", "ORDER", "REQUIRED"),
    *("check", "gathered", "load", "losses", "primary_metrics", "run_ids", "title", "write"),
]

_TRUE = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}


def load(
    path: str | Path,
    *others: str | Path,
    columns: Mapping[str, str] | None = None,
    loss: str = "loss",
    chance: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Read and check a results table.

    Args:
        path: a grid directory (all of its ``<run>/eval/step_*.json``), or a ``.csv`` or ``.parquet`` file with at least
            the columns of `columns.REQUIRED`. Losses are in nats per token, accuracies fractions of 1, tokens and
            parameters counts.
        others: more of the same kind, whose rows are added.
        columns: name in this project -> name in the file at `path`, such as ``{"loss": "c4_loss"}``.
        loss: which of several losses becomes the column ``loss``: a column's name, or ``zh`` for ``loss_zh``; the one
            that was there before stays as ``loss_default``.
        chance: task -> chance level of its accuracy, for tasks whose level the file does not give.

    Returns:
        The table, rows ordered by grid, run, step, task and metric; ``attrs["loss"]`` names the loss that was chosen.

    Raises UserError, naming file, column and rows, for a missing column, an empty or non-numeric cell, a value out of
    range, a share without a chance level, two rows for the same checkpoint, task and metric, and losses that rise.
    """
    if others:
        together = gathered(path, *others, columns=columns, loss=loss, chance=chance)
        return check(together, title(path, *others), chance=chance)
    table, origin = read(path), str(path)
    table = choose_loss(renamed(table, columns or {}, origin), loss, origin)
    return check(table, origin, chance=chance)


def gathered(
    path: str | Path, *others: str | Path, columns: Mapping[str, str] | None = None, **options: Any
) -> pd.DataFrame:
    """The rows of all, each checked by itself as `load` does, but not yet together."""
    tables = [load(path, columns=columns, **options), *(load(other, **options) for other in others)]
    together = pd.concat(tables, ignore_index=True)
    together.attrs.update(tables[0].attrs)
    return together


def title(path: str | Path, *others: str | Path) -> str:
    """What a table is called in messages: as on a command line."""
    return " --with ".join(map(str, (path, *others)))


def read(path: str | Path) -> pd.DataFrame:
    """A grid directory or a file as it is, unchecked; UserError if it is none or cannot be read."""
    path = Path(path)
    if path.is_dir():
        return result_files.read_grid(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or directory; give a grid directory, a .csv or a .parquet file")
    if path.suffix == ".csv":
        try:
            return pd.read_csv(path, comment="#", low_memory=False)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a readable CSV table ({str(error).strip()})") from None
    if path.suffix == ".parquet":
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not a readable Parquet file ({error})") from None
    raise UserError(f"{path}: a results table is a grid directory, a .csv or a .parquet file")


def check(table: pd.DataFrame, origin: str, *, chance: Mapping[str, float] | None = None) -> pd.DataFrame:
    """The table with its columns typed, optional ones filled in, and rows ordered; UserError as in `load`.

    `origin` names the table in messages.
    """
    chosen = table.attrs.get("loss", "loss")
    table, found = _examined(table, chance)
    _refuse(found, origin)
    others = sorted(name for name in table.columns if name.startswith("loss_") and name != "loss_train")
    order = list(ORDER)
    position = order.index("loss_train") + 1
    order[position:position] = others
    order += [column for column in table.columns if column not in order]
    table = table[order].iloc[_order_of(table)].reset_index(drop=True)
    table.attrs["loss"] = chosen
    return table


def completed(table: pd.DataFrame, *, chance: Mapping[str, float] | None = None) -> tuple[pd.DataFrame, list[Problem]]:
    """A copy with cells typed and derived columns filled, and the cells that have no such type (then nothing is
    derived). The required columns must be there."""
    table = table.reset_index(drop=True).copy()
    found = _set_types(table)
    if not found:
        _derive(table, dict(chance or {}))
    return table, found


def problems_of(table: pd.DataFrame, *, chance: Mapping[str, float] | None = None) -> list[Problem]:
    """All problems of a table, fatal ones first; an empty list is a clean table.

    Takes tables as they are read as well as checked ones: with a column missing only that is reported, with cells of
    a wrong type only those.
    """
    return _examined(table, chance)[1]


def _examined(table: pd.DataFrame, chance: Mapping[str, float] | None) -> tuple[pd.DataFrame, list[Problem]]:
    """The table, completed as far as it can be, and its problems."""
    if found := problems.missing(table):
        return table, found
    table, found = completed(table, chance=chance)
    return table, found or problems.found_in(table)


def write(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV or Parquet (by the name's ending), whole or not at all."""
    with atomic_path(path) as temporary:
        if path.suffix == ".parquet":
            table.to_parquet(temporary, index=False)
        else:
            table.to_csv(temporary, index=False)


def losses(table: pd.DataFrame) -> list[str]:
    """The columns that hold a loss and can be chosen by name."""
    found = [str(c) for c in table.columns if c == "loss" or str(c).startswith("loss_") or str(c).endswith("_loss")]
    return [name for name in found if not table[name].isna().all()]


def primary_metrics(table: pd.DataFrame) -> dict[str, str]:
    """For each task the metric that is shown first: accuracy or exact match, else the first by name."""
    chosen: dict[str, str] = {}
    pairs = table[["task", "metric"]].drop_duplicates()
    for task, metrics in pairs.groupby("task")["metric"]:
        present = sorted(metrics)
        chosen[str(task)] = next((metric for metric in FRACTIONS if metric in present), present[0])
    return chosen


def run_ids(table: pd.DataFrame) -> pd.Series:
    """`grid/run` of each row: what the bootstrap draws."""
    return table["grid"] + "/" + table["run"]


def binomial_stderr(value: np.ndarray | pd.Series, rows: np.ndarray | pd.Series) -> np.ndarray:
    """Standard error of a share `value` of `rows` answers, both shaped alike."""
    return np.sqrt(np.asarray(value) * (1 - np.asarray(value)) / np.asarray(rows))


def _refuse(found: Sequence[Problem], origin: str) -> None:
    fatal = [problem for problem in found if problem.fatal]
    if fatal:
        more = len(fatal) - 1
        hint = f" (and {more} more: python -m analysis.check {origin} lists them)" if more else ""
        raise UserError(f"{origin}: {fatal[0]}{hint}")


def renamed(table: pd.DataFrame, mapping: Mapping[str, str], origin: str) -> pd.DataFrame:
    """The table with columns under our names as well: those that `mapping` gives, and `columns.ALIASES`."""
    for ours, theirs in mapping.items():
        if theirs not in table.columns:
            there = ", ".join(map(str, table.columns[:20]))
            raise UserError(f"{origin}: --map {ours}={theirs}: no column {theirs}; there are {there}")
    # The column keeps its own name beside ours: two of ours may come from one of theirs.
    for ours, theirs in mapping.items():
        table[ours] = table[theirs]
    for ours, aliases in names.ALIASES.items():
        alias = next((name for name in aliases if name in table.columns), None)
        if ours not in table.columns and alias is not None:
            table = table.rename(columns={alias: ours})
    return table


def choose_loss(table: pd.DataFrame, loss: str, origin: str) -> pd.DataFrame:
    """The table with the named loss in the column ``loss``, as `load` says."""
    chosen = loss if loss in table.columns else f"loss_{loss}"
    if loss != "loss":
        if chosen not in table.columns:
            raise UserError(f"{origin}: no loss {loss}; there are {', '.join(losses(table)) or 'none'}")
        if "loss" in table.columns:
            table = table.rename(columns={"loss": "loss_default"})
        table["loss"] = table[chosen]
    else:
        chosen = "loss"
    table.attrs["loss"] = chosen
    return table


def _set_types(table: pd.DataFrame) -> list[Problem]:
    found: list[Problem] = []
    for column in table.columns:
        is_number = column in (*REQUIRED, *DERIVED, *OPTIONAL) or str(column).startswith("loss_")
        if isinstance(table[column].dtype, pd.CategoricalDtype):
            table[column] = table[column].astype(object)
        if column in names.TEXT:
            if table[column].isna().any():
                table[column] = table[column].where(table[column].notna(), "")
            table[column] = table[column].astype(str)
        elif column in names.TRUTH:
            found += _set_truth(table, column)
        elif is_number and not pd.api.types.is_float_dtype(table[column]):
            parsed = pd.to_numeric(table[column], errors="coerce")
            bad = parsed.isna() & table[column].notna()
            remedy = "write plain decimal numbers"
            found += problems.of_rows(table, bad, str(column), "type", "not a number", remedy)
            table[column] = parsed
    return found


def _set_truth(table: pd.DataFrame, column: str) -> list[Problem]:
    if pd.api.types.is_bool_dtype(table[column]) and not table[column].isna().any():
        return []
    text = table[column].astype(str).str.strip().str.lower()
    known = text.map(_TRUE)
    bad = known.isna() & table[column].notna()
    found = problems.of_rows(table, bad, column, "type", "neither true nor false", "write true or false")
    empty = known.isna()
    if column == "higher_is_better":
        known = known.where(~empty, ~table["metric"].isin(LOWER_IS_BETTER))
    if column != "final" or not empty.all():
        table[column] = known.where(known.notna(), False).astype(bool)
    return found


def _derive(table: pd.DataFrame, chance: dict[str, float]) -> None:
    """Fill what follows from other columns, and give those that follow from nothing an empty one."""
    for column in (*DERIVED, *OPTIONAL):
        if column not in table:
            table[column] = "" if column in names.TEXT else np.nan
    run = [table["grid"], table["run"]]
    if table["step"].isna().all():
        table["step"] = table["tokens"].groupby(run).rank(method="dense")
    if table["parameters"].isna().any():
        table["parameters"] = table["parameters"].fillna(names.parameters_of(table["size"]))
    if table["higher_is_better"].isna().any():
        table["higher_is_better"] = ~table["metric"].isin(LOWER_IS_BETTER)
    if table["chance"].isna().any():
        table["chance"] = table["chance"].fillna(names.chance_levels(table, chance))
    if table["final"].isna().any():
        table["final"] = table["step"] == table["step"].groupby(run).transform("max")
    table["decay"] = table["decay"].astype(float).fillna(0.0).astype(bool)
    share = table["metric"].isin(FRACTIONS) & table["stderr"].isna()
    possible = share & table["value"].between(0, 1) & (table["rows"] > 0)
    table.loc[possible, "stderr"] = binomial_stderr(table.loc[possible, "value"], table.loc[possible, "rows"])
    if table["flops_6nd"].isna().any():
        # Without embeddings where known, as in Kaplan et al. 2020; else with them.
        parameters = table["parameters_non_embedding"].fillna(table["parameters"])
        table["flops_6nd"] = table["flops_6nd"].fillna(6.0 * parameters * table["tokens"])


def _order_of(table: pd.DataFrame) -> np.ndarray:
    """Positions of the rows ordered by `KEY`; codes sort several times faster than words."""
    codes = []
    for column in reversed(KEY):
        values = table[column]
        codes.append(values.to_numpy() if column == "step" else pd.factorize(values, sort=True)[0])
    return np.lexsort(codes)
