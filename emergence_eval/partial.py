"""Finished tasks of an evaluation that is not finished, so that an interrupted one goes on where it stopped.

Beside `eval/step_<n>.json` a directory `eval/.step_<n>.partial/` holds a JSON and a Parquet file for each
finished task; it is removed when the result file is whole.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from emergence_eval.results import RowScore, TaskResult, parse, read_result, read_rows, rows_path, write_rows
from tokenizer.cli import UserError
from tokenizer.files import write_json


@dataclass(frozen=True)
class Asked:
    """What results must agree in to be put into one file, beside each task's hash."""

    manifest_sha256: str
    limit: int | None
    dtype: str
    backend: str


Finished = dict[str, tuple[TaskResult, list[RowScore]]]


def _directory(path: Path) -> Path:
    return path.parent / f".{path.stem}.partial"


def save_task(path: Path, asked: Asked, name: str, result: TaskResult, rows: list[RowScore]) -> None:
    """Keep one task's scores for the result file `path`."""
    file = _directory(path) / f"{name}.json"
    write_rows(rows_path(file), rows)
    write_json(file, {"asked": asdict(asked), "result": asdict(result)})


def remove(path: Path) -> None:
    """Forget what was kept for the result file `path`."""
    shutil.rmtree(_directory(path), ignore_errors=True)


def finished_tasks(path: Path, asked: Asked, hashes: dict[str, str]) -> Finished:
    """The tasks that need not be evaluated again: of the result file `path` and of what an interrupted
    evaluation kept, those for the same checkpoint, limit, precision, backend and task hash."""
    return of_result(path, asked, hashes) | _same_hash(_of_partial(path, asked), hashes)


def of_result(path: Path, asked: Asked, hashes: dict[str, str]) -> Finished:
    """Those of the result file alone."""
    return _same_hash(_of_result(path, asked), hashes)


def _same_hash(found: Finished, hashes: dict[str, str]) -> Finished:
    # A task that is not asked for now keeps its place in the file.
    return {name: it for name, it in found.items() if it[0].task_hash == hashes.get(name, it[0].task_hash)}


def _rows_by_task(path: Path) -> dict[str, list[RowScore]]:
    rows: dict[str, list[RowScore]] = {}
    for record in read_rows(path).to_dict("records"):
        record["loglikelihoods"] = [float(value) for value in record["loglikelihoods"]]
        rows.setdefault(record["task"], []).append(RowScore(**record))
    return rows


def _of_result(path: Path, asked: Asked) -> Finished:
    try:
        result = read_result(path)
        made = result.environment
        if asked != Asked(result.checkpoint.manifest_sha256, result.limit, made.dtype, made.backend):
            return {}
        rows = _rows_by_task(rows_path(path))
    except UserError:
        # Missing, damaged or of another version: evaluated again and replaced.
        return {}
    return {name: (task, rows[name]) for name, task in result.tasks.items() if _is_whole(task, rows.get(name, []))}


def _is_whole(task: TaskResult, rows: list[RowScore]) -> bool:
    """Whether every row of a task is there under its main metric."""
    return sum(row.metric == next(iter(task.metrics)) for row in rows) == task.rows


def _of_partial(path: Path, asked: Asked) -> Finished:
    found: Finished = {}
    for file in sorted(_directory(path).glob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            result = parse(TaskResult, content["result"], str(file))
            if parse(Asked, content["asked"], str(file)) == asked:
                found[file.stem] = (result, _rows_by_task(rows_path(file))[file.stem])
        except (UserError, ValueError, KeyError, OSError):
            continue
    return found
