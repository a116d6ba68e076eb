"""The result file: what one checkpoint scored on each task, with all that is needed to trust the numbers.

`eval/step_<n>.json` holds the checkpoint's identity and the scores, `eval/step_<n>.parquet` beside it the
scores of every row, so that statistics can be redone without a model. Jobs never share a file.

    python -c "from emergence_eval.results import read_result; print(read_result(PATH).tasks)"
"""

from __future__ import annotations

import json
import math
import statistics
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tokenizer.cli import UserError
from tokenizer.files import atomic_path, write_json

SCHEMA = 1
"""Version of the file format; a change that old readers would misread raises it."""


@dataclass(frozen=True)
class Metric:
    """One number about a task."""

    value: float
    """Mean over the rows; for `ece` a number of the whole task."""
    stderr: float | None
    """Standard error of the value; None for a single row."""
    higher_is_better: bool
    chance: float | None = None
    """Value of a uniform guess, mean over the rows; None where it is not known, and in older files."""
    rows: int | None = None
    """Rows behind the value; None in older files: all rows of the task."""


@dataclass(frozen=True)
class TaskResult:
    """One task's scores and how they came about."""

    language: str
    kind: str
    prompting: str
    """zero-shot, few-shot or few-shot chain of thought."""
    version: int
    """Of the task's YAML file."""
    task_hash: str
    """Of the task's YAML and the data files' names and sizes."""
    num_fewshot: int
    """Examples asked for."""
    num_fewshot_used_mean: float
    """Examples that fitted into the context, mean over the rows."""
    truncated_rows: int
    """Rows whose prompt is longer than the context even without examples."""
    rows: int
    """Rows evaluated."""
    rows_available: int
    """Rows of the split."""
    chance: float
    """Score of a uniform guess under the main metric, mean over the rows evaluated."""
    metrics: dict[str, Metric]
    """The main metric (acc or exact_match) comes first."""


@dataclass(frozen=True)
class CheckpointIdentity:
    """Which checkpoint was evaluated: its manifest without the list of files.

    Of checkpoints that others trained some of it is not known: None, or "" or {}, and named in `unknown`.
    """

    grid: str
    run: str
    size: str
    seed: int | None
    step: int
    final: bool | None
    """Whether it ends its run (the learning rate has reached its minimum)."""
    tokens: int | None
    """Consumed so far."""
    parameters: int
    parameters_non_embedding: int
    flops_6nd: float | None
    """6 N D with N without embeddings."""
    flops_exact: float | None
    """With attention and the output layer."""
    precision: str
    losses: dict[str, float]
    """heldout, train, heldout_<language>: nats per token."""
    sequence_length: int
    vocab_size: int
    tokenizer_sha256: str
    data_fingerprint: str
    git_revision: str
    manifest_sha256: str
    """Of the manifest file's bytes, and with it of every weight; without a manifest, of the files' edges."""
    origin: str = "recipes"
    """Who wrote it: recipes (of this repository), nemo or megatron."""
    unknown: list[str] = field(default_factory=list)
    """Fields that the checkpoint does not tell."""


@dataclass(frozen=True)
class Environment:
    """With what the evaluation was made."""

    git_revision: str
    lm_eval: str
    transformers: str
    torch: str
    device: str
    dtype: str
    date: str
    """UTC, ISO 8601."""
    backend: str = "ours"
    """What scored: ours, hf (the harness's own model) or vllm."""


@dataclass(frozen=True)
class Result:
    """A result file."""

    checkpoint: CheckpointIdentity
    limit: int | None
    """Rows asked for per task (a fixed random sample); None for all."""
    tasks: dict[str, TaskResult]
    environment: Environment
    schema: int = SCHEMA


@dataclass(frozen=True)
class RowScore:
    """One row of one task under one metric."""

    task: str
    row: int
    """Index in the dataset, the same for every checkpoint."""
    metric: str
    value: float
    chance: float
    """Value of a uniform guess; NaN where it is not known."""
    prediction: str
    """Letter of the chosen option (A is the first), or the generated text."""
    target: str
    """Letter of the right option, or the (first) reference answer."""
    loglikelihoods: list[float]
    """Sum of log-probabilities (nats) of each option; empty for generated answers and for all metrics but the
    main one."""
    num_fewshot_used: int


ROW_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("row", pa.int64()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("chance", pa.float64()),
        ("prediction", pa.string()),
        ("target", pa.string()),
        ("loglikelihoods", pa.list_(pa.float64())),
        ("num_fewshot_used", pa.int64()),
    ]
)
"""Columns of the Parquet file."""


def mean_with_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error: the sample standard deviation over sqrt(n), which for values of 0 and 1
    is sqrt(p (1 - p) / (n - 1)); None for one value."""
    mean = math.fsum(values) / len(values)
    return mean, statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def rows_path(path: Path) -> Path:
    """The Parquet file that belongs to a result file."""
    return path.with_suffix(".parquet")


def write_rows(path: Path, rows: Sequence[RowScore]) -> None:
    """Write rows as Parquet, atomically."""
    table = pa.Table.from_pylist([vars(row) for row in rows], schema=ROW_SCHEMA)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def read_rows(path: Path) -> pd.DataFrame:
    """The rows of a Parquet file; raises UserError if it is none of ours."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: no readable Parquet file ({error}); evaluate the checkpoint again") from error
    missing = [name for name in ROW_SCHEMA.names if name not in table.column_names]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}; evaluate the checkpoint again")
    return table.select(ROW_SCHEMA.names).to_pandas()


def write_result(path: Path, result: Result, rows: Sequence[RowScore]) -> None:
    """Write a result file and its rows. The JSON comes last: where it is, the rows are."""
    write_rows(rows_path(path), rows)
    write_json(path, asdict(result))


def read_result(path: Path) -> Result:
    """Read and check a result file; raises UserError naming the file and the first thing that is wrong."""
    return parse(Result, _read_object(path), str(path))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: no valid JSON ({error}); remove it and evaluate again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; remove it and evaluate again")
    if value.get("schema") != SCHEMA:
        raise UserError(f"{path}: schema {value.get('schema')!r}, this version reads {SCHEMA}")
    return value


def parse(kind: Any, value: Any, where: str) -> Any:
    """`value` (from JSON) as `kind`: a dataclass, a builtin type, a union of those, or list[...], dict[str, ...].

    Keys that a dataclass does not have are ignored. Raises UserError with the path to what does not fit.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise UserError(f"{where}: {_name(value)} where an object is expected")
        hints = typing.get_type_hints(kind)
        present = [it for it in fields(kind) if it.name in value]
        needed = {it.name for it in fields(kind) if it.default is it.default_factory is MISSING}
        if missing := sorted(needed - {it.name for it in present}):
            raise UserError(f"{where}: {', '.join(missing)} missing")
        return kind(**{it.name: parse(hints[it.name], value[it.name], f"{where}: {it.name}") for it in present})
    if origin is types.UnionType:
        if value is None and types.NoneType in arguments:
            return None
        return parse(next(a for a in arguments if a is not types.NoneType), value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where}: {_name(value)} where an object is expected")
        return {key: parse(arguments[1], item, f"{where}: {key}") for key, item in value.items()}
    if origin is list:
        if not isinstance(value, list):
            raise UserError(f"{where}: {_name(value)} where a list is expected")
        return [parse(arguments[0], item, f"{where}: {index}") for index, item in enumerate(value)]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise UserError(f"{where}: {_name(value)} where {kind.__name__} is expected")
    return value


def _name(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {value!r}"[:60]
