"""The results table: one row per checkpoint x task x metric, from a grid's result files or from a CSV or
Parquet file with the same columns, checked before anything is computed from it.

    python -m analysis.table runs/realtext --out results.csv
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import result_files
from tokenizer import cli
from tokenizer.cli import UserError
from tokenizer.files import atomic_path

REQUIRED = (
    "run",
    "size",
    "step",
    "tokens",
    "parameters",
    "loss",
    "task",
    "language",
    "metric",
    "value",
    "rows",
    "chance",
    "higher_is_better",
)
"""Columns without which nothing can be said; none of their cells may be empty."""

OPTIONAL = (
    "grid",
    "seed",
    "final",
    "parameters_non_embedding",
    "flops_6nd",
    "flops_exact",
    "loss_train",
    "precision",
    "tokenizer_sha256",
    "data_fingerprint",
    "kind",
    "stderr",
    "num_fewshot_used_mean",
)
"""Columns that are derived or left empty where a table of other origin lacks them."""

ORDER = (
    *("grid", "run", "size", "seed", "step", "final", "tokens", "parameters", "parameters_non_embedding"),
    *("flops_6nd", "flops_exact", "loss", "loss_train"),
    *("precision", "tokenizer_sha256", "data_fingerprint", "task", "language", "kind", "metric", "value"),
    *("stderr", "rows", "chance", "higher_is_better", "num_fewshot_used_mean"),
)
"""The order in which columns are written; `loss_<language>` follow `loss_train`, unknown ones come last."""

KEY = ("grid", "run", "step", "task", "metric")
"""What names one row of the table."""

FRACTIONS = ("acc", "acc_norm", "exact_match")
"""Metrics that are a share of rows answered correctly: within 0 and 1, with binomial noise."""

RANGES = {**dict.fromkeys(FRACTIONS, (0.0, 1.0)), "brier": (0.0, 2.0), "correct_choice_prob": (0.0, 1.0)}
"""Least and greatest possible value of the metrics that have one."""

MAXIMUM_LOSS = 30.0
"""Nats per token; ln(vocabulary) is 11 for 65k entries, so anything above this is another quantity."""

_TEXT = ("grid", "run", "size", "task", "language", "kind", "metric", "precision", "tokenizer_sha256")
_TRUE = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}


def load(path: str | Path) -> pd.DataFrame:
    """Read and check a results table.

    `path` is a grid directory (all of its ``<run>/eval/step_*.json``), or a ``.csv`` or ``.parquet`` file with
    at least the columns of `REQUIRED`. Losses are in nats per token, accuracies fractions of 1, tokens and
    parameters counts. Rows are ordered by grid, run, step, task and metric.

    Raises UserError, naming file, column and rows, for a missing column, an empty or non-numeric cell, a value
    out of range, and two rows for the same checkpoint, task and metric.
    """
    path = Path(path)
    if path.is_dir():
        table = result_files.read_grid(path)
    elif not path.exists():
        raise UserError(f"{path}: no such file or directory; give a grid directory, a .csv or a .parquet file")
    elif path.suffix == ".csv":
        try:
            table = pd.read_csv(path, comment="#")
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a readable CSV table ({str(error).strip()})") from None
    elif path.suffix == ".parquet":
        try:
            table = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not a readable Parquet file ({error})") from None
    else:
        raise UserError(f"{path}: a results table is a grid directory, a .csv or a .parquet file")
    return check(table, str(path))


def check(table: pd.DataFrame, origin: str) -> pd.DataFrame:
    """The table with its columns typed, optional ones filled in, and rows ordered; UserError as in `load`.

    `origin` names the table in messages.
    """
    missing = [column for column in REQUIRED if column not in table.columns]
    if missing:
        raise UserError(
            f"{origin}: missing column{'s' * (len(missing) > 1)} {', '.join(missing)}; a results table needs "
            f"{', '.join(REQUIRED)}"
        )
    if table.empty:
        raise UserError(f"{origin}: the table has no rows; evaluate at least one checkpoint first")
    table = table.reset_index(drop=True).copy()
    for column in REQUIRED:
        _refuse(table, table[column].isna(), origin, column, "empty", "fill it in or leave the row out")
    _set_types(table, origin)
    _check_ranges(table, origin)
    _fill_optional(table)
    duplicated = table.duplicated(list(KEY), keep=False)
    if duplicated.any():
        first = table[duplicated].iloc[0]
        raise UserError(
            f"{origin}: {duplicated.sum()} rows share a checkpoint, task and metric, the first of them run "
            f"{first['run']} step {first['step']} {first['task']} {first['metric']}; keep one of each"
        )
    languages = sorted(column for column in table.columns if column.startswith("loss_") and column != "loss_train")
    order = list(ORDER)
    position = order.index("loss_train") + 1
    order[position:position] = languages
    order += [column for column in table.columns if column not in order]
    return table[order].sort_values(list(KEY), kind="stable").reset_index(drop=True)


def write(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV or Parquet (by the name's ending), whole or not at all."""
    with atomic_path(path) as temporary:
        if path.suffix == ".parquet":
            table.to_parquet(temporary, index=False)
        else:
            table.to_csv(temporary, index=False)


def primary_metrics(table: pd.DataFrame) -> dict[str, str]:
    """For each task the metric that is shown first: accuracy or exact match, else the first by name."""
    chosen = {}
    for task, metrics in table.groupby("task")["metric"]:
        present = sorted(metrics.unique())
        chosen[str(task)] = next((metric for metric in FRACTIONS if metric in present), present[0])
    return chosen


def run_ids(table: pd.DataFrame) -> pd.Series:
    """`grid/run` of each row: what the bootstrap draws."""
    return table["grid"] + "/" + table["run"]


def binomial_stderr(value: np.ndarray | pd.Series, rows: np.ndarray | pd.Series) -> np.ndarray:
    """Standard error of a share `value` of `rows` answers, both shaped alike."""
    return np.sqrt(np.asarray(value) * (1 - np.asarray(value)) / np.asarray(rows))


def _refuse(table: pd.DataFrame, bad: pd.Series, origin: str, column: str, what: str, remedy: str) -> None:
    if bad.any():
        index = int(np.flatnonzero(bad)[0])
        row = table.iloc[index]
        where = f"run {row['run']} step {row['step']} {row['task']} {row['metric']}"
        raise UserError(
            f"{origin}: column {column} is {what} in {int(bad.sum())} of {len(table)} rows, first in data row "
            f"{index + 1} ({where}); {remedy}"
        )


def _set_types(table: pd.DataFrame, origin: str) -> None:
    numbers = [c for c in table.columns if c in (*REQUIRED, *OPTIONAL) or c.startswith("loss_")]
    numbers = [c for c in numbers if c not in (*_TEXT, "data_fingerprint", "higher_is_better", "final")]
    for column in numbers:
        parsed = pd.to_numeric(table[column], errors="coerce")
        bad = parsed.isna() & table[column].notna()
        _refuse(table, bad, origin, column, "not a number", "write plain decimal numbers")
        table[column] = parsed
    for column in ("higher_is_better", "final"):
        if column in table:
            text = table[column].astype(str).str.strip().str.lower()
            bad = ~text.isin(list(_TRUE)) & table[column].notna()
            _refuse(table, bad, origin, column, "neither true nor false", "write true or false")
            table[column] = text.map(_TRUE).fillna(False).astype(bool)
    for column in (*_TEXT, "data_fingerprint"):
        if column in table:
            table[column] = table[column].where(table[column].notna(), "").astype(str)


def _check_ranges(table: pd.DataFrame, origin: str) -> None:
    for column, low, high, remedy in (
        ("loss", 0.0, MAXIMUM_LOSS, "give nats per token"),
        ("step", 0, np.inf, "count optimizer steps from 0"),
        ("tokens", 0, np.inf, "count consumed tokens"),
        ("parameters", 1, np.inf, "count parameters"),
        ("rows", 1, np.inf, "give the number of rows behind the value"),
        ("stderr", 0, np.inf, "give a standard error or leave it empty"),
    ):
        if column in table:
            values = table[column]
            bad = values.notna() & ~(np.isfinite(values) & (values >= low) & (values <= high))
            _refuse(table, bad, origin, column, f"outside {low:g} to {high:g}", remedy)
    for column in ("value", "chance"):
        bad = ~np.isfinite(table[column])
        _refuse(table, bad, origin, column, "not finite", "leave the row out")
        for metric, (low, high) in RANGES.items():
            bad = (table["metric"] == metric) & ~table[column].between(low, high)
            remedy = "give fractions, not percentages" if high == 1.0 else f"{metric} cannot be there"
            _refuse(table, bad, origin, column, f"outside {low:g} to {high:g}", remedy)


def _fill_optional(table: pd.DataFrame) -> None:
    for column in (*OPTIONAL, "loss_train"):
        if column not in table:
            table[column] = "" if column in (*_TEXT, "data_fingerprint") else np.nan
    if table["final"].isna().all():
        last = table.groupby(["grid", "run"])["step"].transform("max")
        table["final"] = table["step"] == last
    share = table["metric"].isin(FRACTIONS) & table["stderr"].isna()
    table.loc[share, "stderr"] = binomial_stderr(table.loc[share, "value"], table.loc[share, "rows"])
    computed = 6 * table["parameters_non_embedding"] * table["tokens"]
    table["flops_6nd"] = table["flops_6nd"].fillna(computed)


def main(argv: Sequence[str] | None = None) -> int | None:
    """Write a grid's results table as one file."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, help="a grid directory (runs/<grid>), or a .csv or .parquet table to check")
    parser.add_argument("--out", type=Path, required=True, help="file to write: .csv or .parquet")
    arguments = parser.parse_args(argv)
    if arguments.out.suffix not in (".csv", ".parquet"):
        raise UserError(f"--out {arguments.out}: end the name in .csv or .parquet")
    table = load(arguments.path)
    write(table, arguments.out)
    checkpoints = table[["grid", "run", "step"]].drop_duplicates().shape[0]
    print(f"{arguments.out}: {len(table)} rows, {checkpoints} checkpoints of {run_ids(table).nunique()} runs")
    return None


if __name__ == "__main__":
    cli.run(main)
