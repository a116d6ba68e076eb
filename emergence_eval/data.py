"""Prepares the benchmark data for `emergence_eval/run.py --data DIR`, and says how they differ from the paper's.

    python -m emergence_eval.data --out benchmarks --from downloads     # official files that are at hand
    python -m emergence_eval.data --out benchmarks                      # from the Hugging Face hub
    python -m emergence_eval.data --out benchmarks --from benchmarks    # check what is there

The official files lie in a folder for each data set: triviaqa/, hellaswag/, race/, winogrande/, mmlu/, gsm8k/,
nlpcc-kbqa/, clozet/, c3/, cluewsc2020/, c-eval/, gsm8k-chinese/, bigbench/. Every file is read as the evaluation reads
it before it is copied; what --out holds already is kept. The table gives the rows of each data set beside those of
Du et al. 2024, Table 6. Exit code 2 if there is not one data set to evaluate.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from emergence_eval import definitions, hub
from emergence_eval.definitions import TaskDefinition
from emergence_eval.readers.files import data_directory
from tokenizer import cli
from tokenizer.cli import UserError
from tokenizer.files import atomic_path

NOTES = {
    ("nlpcc_kbqa", 10_488): "tests of 2016 and 2018; the paper's split was not found",
    ("cluewsc", 1_548): "all labelled rows of train and validation; the paper names these two and counts 508",
    ("gsm8k_zh", 250): "MGSM-zh: the first 250 problems, translated by people",
    ("gsm8k_zh", 1_319): "GSM8K_zh; the paper does not name its translation",
    ("hellaswag", 1_000): "a subset of the validation rows, not a random one",
    ("triviaqa", 3_000): "a subset of the validation rows",
}
"""What explains a known number of rows, by task."""


@dataclass(frozen=True)
class Found:
    """What became of one task's data."""

    task: TaskDefinition
    rows: int | None
    """Rows to be scored; None without usable data."""
    examples: int
    """Rows that few-shot examples are taken from."""
    origin: str
    """Where the data were, or why there are none."""

    @property
    def difference(self) -> str:
        """The rows in relation to the paper's."""
        if self.rows is None or self.task.paper_rows is None:
            return ""
        return "none" if self.rows == self.task.paper_rows else f"{self.rows - self.task.paper_rows:+,}"

    @property
    def note(self) -> str:
        """What explains the number of rows, or why there are none; empty if nothing is to be said."""
        return NOTES.get((self.task.name, self.rows), "") if self.rows is not None else self.origin


def main(argv: Sequence[str] | None = None, load: hub.Load | None = None) -> int:
    """Prepare the data from the command line; `load` stands in for `datasets.load_dataset`."""
    arguments = _parser().parse_args(argv)
    tasks = definitions.load(arguments.tasks.split(","))
    out = arguments.out.expanduser()
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    if arguments.source is not None:
        source = data_directory_given(arguments.source)
        found = [prepare(task, out, source) for task in tasks]
    else:
        load = load or _hub()
        found = []
        with cli.progress_bar() as bar:
            progress = bar.add_task("fetching", total=len(tasks))
            for task in tasks:
                bar.update(progress, description=f"fetching {task.name}")
                found.append(prepare(task, out, None, load))
                bar.advance(progress)
    usable = [it for it in found if it.rows is not None]
    if not usable:
        where = f"under {arguments.source}" if arguments.source else "on the hub"
        raise UserError(f"no data set {where} that could be used; {found[0].task.name}: {found[0].origin}")
    _print(found, out)
    return 0


def data_directory_given(path: Path) -> Path:
    """`path` as a directory; raises UserError."""
    try:
        return data_directory(path)
    except UserError:
        raise UserError(f"--from {path}: no such directory; name the folder with the benchmarks' files") from None


def prepare(task: TaskDefinition, out: Path, source: Path | None, load: hub.Load | None = None) -> Found:
    """Bring one task's files to `out`, unless they are there: from the folder `source`, or from the hub."""
    if source is None:
        out.mkdir(parents=True, exist_ok=True)
    kept = _read(task, out, "already there")
    if kept.rows is not None:
        return kept
    if source is not None:
        found = _read(task, source, str(source))
        if found.rows is not None and source.resolve() != out.resolve():
            _copy(task, source, out)
        return found
    if task.name not in hub.SOURCES:
        return Found(task, None, 0, f"not on the hub; {kept.origin}")
    # Nothing appears in `out` before it has been read whole.
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=out) as temporary:
        try:
            hub.fetch(task.name, Path(temporary), load)
        except Exception as error:
            # The libraries below raise errors of a dozen kinds for what a network and a changed data set can do.
            cause = (str(error).strip() or "no message").splitlines()[0]
            return Found(task, None, 0, f"the hub: {type(error).__name__}: {cause}")
        found = _read(task, Path(temporary), "the hub")
        if found.rows is not None:
            _copy(task, Path(temporary), out)
    return found


def _read(task: TaskDefinition, directory: Path, origin: str) -> Found:
    try:
        splits = task.reader(data=directory)
    except UserError as error:
        return Found(task, None, 0, str(error))
    return Found(task, len(splits["test"]), len(splits.get("fewshot", ())), origin)


def _copy(task: TaskDefinition, source: Path, out: Path) -> None:
    for path in {path for paths in task.reader.find(source).values() for path in paths}:
        with atomic_path(out / path.relative_to(source)) as temporary:
            shutil.copyfile(path, temporary)


def _hub() -> hub.Load:
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        raise UserError("HF_HUB_OFFLINE is set, so that nothing can be fetched; unset it or pass --from DIR")
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset


def _print(found: Sequence[Found], out: Path) -> None:
    table = Table(title=f"Data in {out}", title_justify="left")
    for column in ("task", "rows", "paper", "difference", "examples"):
        table.add_column(column, justify="left" if column == "task" else "right", no_wrap=True)
    for it in found:
        table.add_row(
            it.task.name,
            "-" if it.rows is None else f"{it.rows:,}",
            "" if it.task.paper_rows is None else f"{it.task.paper_rows:,}",
            it.difference,
            f"{it.examples:,}" if it.examples else "",
        )
    Console().print(table)
    for it in found:
        if it.note:
            print(f"{it.task.name}: {it.note}")
    usable = sum(it.rows is not None for it in found)
    print(f"{usable} of {len(found)} data sets can be evaluated: emergence_eval/run.py --data {out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m emergence_eval.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the data, --data of emergence_eval/run.py")
    add(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        help="folder with the official files (default: the Hugging Face hub)",
    )
    add(
        "--tasks",
        default=f"{definitions.ALL},bigbench",
        metavar="A,B",
        help="tasks or groups (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    cli.run(main)
