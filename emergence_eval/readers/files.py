"""Benchmark files on disk: where they may lie, how they are opened, what is said when they are wrong.

A `Reader` is what a task's YAML names as its `custom_dataset`. It is split in two so that a command can tell
which files a task would read, and whether they changed, without parsing them:

    definition.reader.find(Path("../shared/benchmarks"))   # {"test": [...], "fewshot": [...]}
    definition.reader(data="../shared/benchmarks")         # {"test": Rows, "fewshot": Rows}
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizer.cli import UserError

Row = dict[str, Any]
Files = dict[str, list[Path]]

LETTERS = "ABCDEFGH"
"""Labels of the options of an examination question."""

FEWSHOT_POOL = 64
"""Few-shot examples that a reader keeps; no task asks for more than a handful."""


class Rows(list[Row]):
    """Rows of one split: a list with the one attribute of `datasets.Dataset` that the harness asks for."""

    @property
    def features(self) -> dict[str, str]:
        """Column names (of the first row) with the names of their Python types."""
        return {key: type(value).__name__ for key, value in self[0].items()} if self else {}


@dataclass(frozen=True)
class Reader:
    """One benchmark's files."""

    name: str
    """The benchmark's name in error messages."""
    find: Callable[[Path], Files]
    """From the data directory to the files of each split; raises UserError if one is missing."""
    read: Callable[[Files], dict[str, list[Row]]]
    """From these files to the rows of each split; raises UserError for a malformed file."""

    def __call__(self, data: str | Path | None = None, **_: Any) -> dict[str, Rows]:
        """The splits `test` and, for few-shot tasks, `fewshot`. The harness passes the task's whole metadata
        as keywords; only `data`, the directory with the benchmark files, is used."""
        splits = self.read(self.find(data_directory(data)))
        for split, rows in splits.items():
            if not rows:
                raise UserError(f"{self.name}: no rows for the split {split}; the files are empty")
        return {split: Rows(rows) for split, rows in splits.items()}

    def fingerprint(self, data: str | Path | None) -> str:
        """A hash of the names and sizes of the files that would be read (16 hexadecimal digits)."""
        directory = data_directory(data)
        digest = hashlib.sha256()
        for split, paths in sorted(self.find(directory).items()):
            for path in paths:
                digest.update(f"{split}\t{path.relative_to(directory)}\t{path.stat().st_size}\n".encode())
        return digest.hexdigest()[:16]


def data_directory(data: str | Path | None) -> Path:
    """`data` as a directory that exists; raises UserError with the ways to name one."""
    if not data:
        raise UserError(
            "no benchmark data: pass --data DIR to emergence_eval/run.py, "
            """or --metadata '{"data": "DIR"}' to lm_eval"""
        )
    directory = Path(data).expanduser()
    if not directory.is_dir():
        raise UserError(f"no directory {directory}: --data must name the folder with the benchmark files")
    return directory


def first_folder(data: Path, name: str, folders: Sequence[str], remedy: str) -> Path:
    """The first of `folders` (relative to `data`) that exists."""
    for folder in folders:
        if (data / folder).is_dir():
            return data / folder
    raise UserError(f"{name}: no folder {' or '.join(folders)} under {data}; {remedy}")


def first_file(data: Path, name: str, folder: str, names: Sequence[str], remedy: str) -> Path:
    """The first of `names` that exists in `folder` of `data`: put the more complete file first."""
    for candidate in names:
        if (data / folder / candidate).is_file():
            return data / folder / candidate
    raise UserError(f"{name}: none of {', '.join(names)} in {data / folder}; {remedy}")


def malformed(path: Path, line: int | None, cause: str) -> UserError:
    """The error for a file that is there but is not what it should be."""
    where = f"{path}, line {line}" if line else str(path)
    return UserError(f"{where}: {cause}; restore the file from its official release")


def read_text(path: Path) -> str:
    """A UTF-8 file (with or without byte order mark), line ends untouched."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise malformed(path, None, f"not UTF-8 at byte {error.start}") from error


def read_json(path: Path) -> Any:
    """The value of a JSON file."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise malformed(path, error.lineno, f"invalid JSON ({error.msg})") from error


def read_json_lines(path: Path, keys: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Line number and object of each non-empty line; each object must have `keys`."""
    # Not str.splitlines: it also splits at U+2028 and its like, which JSON strings may hold.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise malformed(path, number, f"invalid JSON ({error.msg})") from error
        missing = [key for key in keys if not isinstance(row, dict) or key not in row]
        if missing:
            raise malformed(path, number, f"no {', '.join(missing)}")
        yield number, row


def read_csv(
    path: Path, columns: int | None = None, delimiter: str = ",", quoted: bool = True
) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each record. A real CSV reader: cells hold quoted line breaks, and cells such
    as `None` or `1` stay the strings they are. Where nothing is `quoted`, a quotation mark is text."""
    # Not str.splitlines: MMLU holds U+0085 and U+2028, which are no line ends of CSV.
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, quoting=quoting)
    try:
        for cells in reader:
            if columns and len(cells) != columns:
                raise malformed(path, reader.line_num, f"{len(cells)} columns where {columns} are expected")
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise malformed(path, reader.line_num, f"invalid CSV ({error})") from error


def letter_index(path: Path, line: int | None, letter: str, options: int) -> int:
    """The index of an answer letter among the first `options` letters."""
    index = LETTERS.find(letter.strip()) if len(letter.strip()) == 1 else -1
    if not 0 <= index < options:
        raise malformed(path, line, f"the answer is {letter!r}, not one of {', '.join(LETTERS[:options])}")
    return index


def alternate(*lists: Sequence[Row]) -> list[Row]:
    """Rows of several lists in turn, so that the first few examples show every kind."""
    longest = max(map(len, lists), default=0)
    return [rows[i] for i in range(longest) for rows in lists if i < len(rows)]
