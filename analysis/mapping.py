"""The options by which every program of `analysis/` reads a table: which columns mean what, which loss, which rows.

python -m analysis.correlation theirs.csv --map loss=c4_loss --loss zh --only language=zh --decay drop
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis import bootstrap, problems
from analysis.problems import Problem
from analysis.table import check, choose_loss, gathered, load, problems_of, read, renamed, title, write
from tokenizer.cli import UserError

DECAY = ("keep", "drop", "only")
"""What to do with checkpoints from the decay phase of their run's schedule."""

_ROWS_SHOWN = 12


def add_options(parser: argparse.ArgumentParser) -> None:
    """The table's path and the options that `load_as_asked` reads."""
    parser.add_argument("path", type=Path, help="a grid directory, or a .csv or .parquet results table")
    group = parser.add_argument_group("table", "how the table is read (docs/methods.md)")
    group.add_argument(
        "--with",
        dest="others",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="another grid directory or table with our column names, whose rows are added; repeat as needed",
    )
    group.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="OURS=THEIRS",
        help="a column of the file under our name: --map loss=c4_loss --map run=model_name; repeat as needed",
    )
    group.add_argument(
        "--loss",
        default="loss",
        metavar="NAME",
        help="which of several losses to use: a column, or zh for loss_zh (default: %(default)s)",
    )
    group.add_argument(
        "--chance",
        action="append",
        default=[],
        metavar="TASK=LEVEL",
        help="chance level of a task's accuracy where the file gives none: --chance arc=0.25",
    )
    group.add_argument(
        "--only", action="append", default=[], metavar="COLUMN=VALUE", help="keep these rows (VALUE may be the start)"
    )
    group.add_argument("--leave-out", action="append", default=[], metavar="COLUMN=VALUE", help="leave out these rows")
    group.add_argument(
        "--decay",
        choices=DECAY,
        default="keep",
        help="checkpoints from the decay phase of their schedule (column decay): default %(default)s",
    )
    group.add_argument(
        "--decay-from",
        type=float,
        metavar="SHARE",
        help="mark checkpoints from this share of their run's last tokens on as decay (0.8: the last fifth)",
    )


def add_replicates(parser: argparse.ArgumentParser, default: int = bootstrap.REPLICATES) -> None:
    """The number of bootstrap draws, which `check_replicates` checks."""
    parser.add_argument(
        "--replicates", type=int, default=default, help="bootstrap draws of runs (default: %(default)s)"
    )


def add_out(parser: argparse.ArgumentParser) -> None:
    """The file that `write_results` writes."""
    parser.add_argument("--out", type=Path, help="also write the numbers to this .csv or .parquet file")


def load_as_asked(arguments: argparse.Namespace, *, warn: bool = True) -> pd.DataFrame:
    """The checked table that the options ask for; its warnings go to stderr, a line each.

    Raises UserError for a table that `analysis.load` refuses, for a malformed option, and if no row is left.
    """
    table = load(
        arguments.path,
        *arguments.others,
        columns=_pairs(arguments.map, "--map"),
        loss=arguments.loss,
        chance=_levels(arguments.chance),
    )
    table = select(table, arguments)
    if warn:
        for problem in problems.found_in(table):
            print(f"warning: {problem}", file=sys.stderr)
    return table


def select(table: pd.DataFrame, arguments: argparse.Namespace) -> pd.DataFrame:
    """The rows that --only, --leave-out and --decay ask for, with decay marked by --decay-from."""
    attributes = dict(table.attrs)
    for option, wanted in (("--only", True), ("--leave-out", False)):
        for column, value in _pair_list(getattr(arguments, option[2:].replace("-", "_")), option):
            matches = _matches(table, column, value, option)
            if not matches.any() or (matches.all() and not wanted):
                what = "no row has it" if not matches.any() else "every row has it"
                raise UserError(f"{option} {column}={value}: {what}; {_values(table, column)}")
            table = table[matches if wanted else ~matches]
    if arguments.decay_from is not None:
        table = mark_decay(table, arguments.decay_from)
    if arguments.decay != "keep":
        if not table["decay"].any():
            raise UserError(
                f"--decay {arguments.decay}: no checkpoint is marked as from a decay phase; "
                "mark the end of each run with --decay-from 0.8"
            )
        table = table[table["decay"] == (arguments.decay == "only")]
        if table.empty:
            raise UserError(f"--decay {arguments.decay}: no row is left; every checkpoint is from a decay phase")
    table = table.reset_index(drop=True)
    table.attrs.update(attributes)
    return table


def mark_decay(table: pd.DataFrame, share: float) -> pd.DataFrame:
    """`decay` true for checkpoints with at least `share` of the tokens of their run's last checkpoint."""
    if not 0 < share < 1:
        raise UserError(f"--decay-from {share:g}: give a share between 0 and 1, as 0.8")
    last = table["tokens"].groupby([table["grid"], table["run"]]).transform("max")
    return table.assign(decay=table["tokens"] >= share * last)


def print_problems(arguments: argparse.Namespace) -> bool:
    """Print every problem of the table with rows and remedy; whether one of them is fatal."""
    columns, chance = _pairs(arguments.map, "--map"), _levels(arguments.chance)
    paths = (arguments.path, *arguments.others)
    origin = title(*paths)
    if arguments.others:
        raw = gathered(*paths, columns=columns, loss=arguments.loss, chance=chance)
    else:
        raw = renamed(read(arguments.path), columns, origin)
        lacks = problems.missing(raw)
        if not lacks or (lacks[0].column == "loss" and arguments.loss != "loss"):
            raw = choose_loss(raw, arguments.loss, origin)
    found = problems_of(raw, chance=chance)
    selects = arguments.only or arguments.leave_out or arguments.decay != "keep"
    if selects and not any(problem.fatal for problem in found):
        # Of the rows that are asked for, which are counted anew.
        found = problems.found_in(select(check(raw, origin, chance=chance), arguments))
    for problem in found:
        print(f"{problem.severity}: {problem}")
        if problem.rows:
            shown = ", ".join(map(str, problem.rows[:_ROWS_SHOWN]))
            more = f" and {problem.count - _ROWS_SHOWN} more" if problem.count > _ROWS_SHOWN else ""
            print(f"    data rows {shown}{more}")
    fatal = [problem for problem in found if problem.fatal]
    print(_verdict(found, fatal, origin))
    return bool(fatal)


def _verdict(found: Sequence[Problem], fatal: Sequence[Problem], origin: str) -> str:
    if not found:
        return f"{origin}: no problem found"
    return f"{origin}: {len(found)} problem{'s' * (len(found) != 1)}, {len(fatal)} of them fatal"


def _pair_list(texts: Sequence[str], option: str) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        left, equals, right = text.partition("=")
        if not left or not equals or not right:
            raise UserError(f"{option} {text}: write it with an equals sign, as {option} name=value")
        pairs.append((left, right))
    return pairs


def _pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    return dict(_pair_list(texts, option))


def _levels(texts: Sequence[str]) -> dict[str, float]:
    levels = {}
    for task, text in _pair_list(texts, "--chance"):
        try:
            levels[task] = float(text)
        except ValueError:
            raise UserError(f"--chance {task}={text}: give a number, as --chance {task}=0.25") from None
        if not 0 <= levels[task] < 1:
            raise UserError(f"--chance {task}={text}: a chance level is at least 0 and below 1")
    return levels


def _matches(table: pd.DataFrame, column: str, value: str, option: str) -> pd.Series:
    if column not in table:
        raise UserError(f"{option} {column}={value}: no column {column}; there are {', '.join(table.columns)}")
    text = table[column].astype(str)
    exact = text.str.lower() == value.lower()
    if exact.any():
        return exact
    if pd.api.types.is_numeric_dtype(table[column]) and not pd.api.types.is_bool_dtype(table[column]):
        try:
            return table[column] == float(value)
        except ValueError:
            return exact
    # Hashes are told apart by their beginning; names must be given whole.
    return text.str.startswith(value) if len(value) >= 6 and column.endswith(("sha256", "fingerprint")) else exact


def _values(table: pd.DataFrame, column: str) -> str:
    values = sorted(table[column].astype(str).unique())
    return f"{column} is {', '.join(values[:8])}{' ...' if len(values) > 8 else ''}"


def check_replicates(replicates: int) -> None:
    """UserError unless a 95 % interval can be read off so many replicates."""
    if replicates < 100:
        raise UserError(f"--replicates {replicates}: a 95 % interval needs at least 100")


def write_results(results: pd.DataFrame, out: Path | None) -> None:
    """Write a result table where a program was asked to, and say so."""
    if out is None:
        return
    if out.suffix not in (".csv", ".parquet"):
        raise UserError(f"--out {out}: end the name in .csv or .parquet")
    write(results, out)
    print(f"{out}: {len(results)} rows")
