"""Grids: the file that names a set of runs, read, swept and checked.

`defaults` holds settings of every run, `sizes` those of a size, and each entry of `runs` is one run, or many:
a setting given as a list is swept over. The settings are those of `recipes.settings.RunSettings`. With a section
`microworld` (`{}` for its defaults) documents and benchmarks are generated where none are given.

    python -m recipes.grid recipes/grids/smoke.yaml
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from recipes.microworld.settings import MicroworldSettings
from recipes.settings import RESERVED_RUN_NAMES, RunSettings, format_count, parse_count
from recipes.settings_file import SettingsFile
from tokenizer import cli
from tokenizer.cli import UserError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_TOP_LEVEL = {"name", "description", "microworld", "tokenizer", "evaluation", "defaults", "sizes", "runs"}


@dataclass(frozen=True)
class TokenizerSettings:
    """How the grid's tokenizer is trained."""

    vocab_size: int
    """Pieces, special ones included; also the runs' `vocab_size`."""
    ratio: Mapping[str, float] = field(default_factory=lambda: {"en": 4.0, "zh": 1.0})
    """Mixture of languages in the training sample, in bytes."""


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured on every checkpoint."""

    tasks: tuple[str, ...] = ()
    """Names of the tasks; empty for all."""
    limit: int | None = None
    """Rows a task, a fixed random sample; None for all."""


@dataclass(frozen=True)
class Run:
    """One run of a grid: its name and its settings."""

    name: str
    settings: RunSettings


@dataclass(frozen=True)
class Grid:
    """A set of runs that share a tokenizer and an evaluation."""

    name: str
    path: Path
    tokenizer: TokenizerSettings
    evaluation: EvaluationSettings
    runs: tuple[Run, ...]
    description: str = ""
    microworld: MicroworldSettings | None = None
    """The generated documents and benchmarks that the grid is for; None where it has no such section."""

    def run(self, name: str) -> Run:
        """The run called `name`; UserError with the names there are if there is none."""
        for run in self.runs:
            if run.name == name:
                return run
        raise UserError(f"{self.path} has no run {name!r}; it has {', '.join(run.name for run in self.runs)}")

    def select(self, *patterns: str) -> tuple[Run, ...]:
        """The runs whose names match any of the shell patterns, all runs if there is none; UserError with the names
        there are for a pattern that none matches."""
        for pattern in patterns:
            if not any(fnmatchcase(run.name, pattern) for run in self.runs):
                names = ", ".join(run.name for run in self.runs)
                raise UserError(f"no run of {self.path} matches {pattern!r}; the runs are {names}")
        return tuple(run for run in self.runs if not patterns or any(fnmatchcase(run.name, it) for it in patterns))


def load_grid(path: str | Path) -> Grid:
    """Read and check a grid file, or one of the shipped grids by its bare name (``smoke``).

    Raises UserError with file and line for anything that cannot be trained.
    """
    source = SettingsFile.read(_resolve(path))
    source.check_keys((), _TOP_LEVEL)
    name = source.value.get("name", source.path.stem)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise source.error(("name",), f"{name!r} is no name; use letters, digits and . _ + -")
    tokenizer = _section(source, "tokenizer", TokenizerSettings)
    runs = tuple(_expand(source, tokenizer))
    seen: dict[str, int] = {}
    for index, run in runs:
        if run.name in seen:
            raise source.error(
                ("runs", index), f"two runs are called {run.name}; give one of them a name or another seed"
            )
        seen[run.name] = index
    return Grid(
        name=name,
        path=source.path,
        tokenizer=tokenizer,
        evaluation=_section(source, "evaluation", EvaluationSettings),
        runs=tuple(run for _, run in runs),
        description=str(source.value.get("description", "")).strip(),
        microworld=_section(source, "microworld", MicroworldSettings) if "microworld" in source.value else None,
    )


def override(settings: RunSettings, assignments: Sequence[str]) -> RunSettings:
    """`settings` with ``key=value`` assignments from a command line; UserError names what is wrong in one."""
    given: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, _ = assignment.partition("=")
        if not equals:
            raise UserError(f"{assignment!r} is no setting; write key=value, as learning_rate=1e-3")
        if key.split(".")[0] not in _FIELDS:
            raise UserError(f"there is no setting {key!r}; the settings are {', '.join(sorted(_FIELDS))}")
    try:
        given = OmegaConf.to_container(OmegaConf.from_dotlist(list(assignments)))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"cannot read the settings {' '.join(assignments)}: {_first_line(error)}") from None
    for key in ("languages", "source_weights"):
        if isinstance(given.get(key), dict):
            given[key] = {**getattr(settings, key), **given[key]}
    return _build({**dataclasses.asdict(settings), **given})


_FIELDS = {item.name: item for item in dataclasses.fields(RunSettings)}


def _resolve(path: str | Path) -> Path:
    shipped = Path(__file__).parent / "grids" / f"{Path(path).name}.yaml"
    path = Path(path)
    if path.is_file():
        return path
    if shipped.is_file() and path.name == str(path):
        return shipped
    names = ", ".join(sorted(file.stem for file in shipped.parent.glob("*.yaml")))
    raise UserError(f"there is no grid file {path}; give a YAML file or one of the shipped grids: {names}")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _build(values: Mapping[str, Any]) -> RunSettings:
    """Typed settings from plain values; UserError for a missing or ill-typed one."""
    values = dict(values)
    if "tokens" in values:
        try:
            values["tokens"] = parse_count(values["tokens"])
        except ValueError as error:
            raise UserError(f"tokens: {error}") from None
    missing = [
        name
        for name, item in _FIELDS.items()
        if name not in values and item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"missing settings: {', '.join(missing)}")
    typed = {name: _typed(name, value) for name, value in values.items()}
    return RunSettings(**typed)


_NUMBER_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a word"}


def _typed(name: str, value: Any) -> Any:
    """`value` as the type of the setting `name`."""
    wanted = str(_FIELDS[name].type)
    if wanted.startswith("tuple"):
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_as(name, "int", item) for item in items)
    if wanted.startswith("dict[str, dict"):
        if not isinstance(value, Mapping):
            raise UserError(f"{name} is {value!r}; it must map languages to sources, as {{en: {{web: 4, books: 1}}}}")
        return {str(key): _weights(f"{name}.{key}", weights) for key, weights in value.items()}
    return _weights(name, value) if wanted.startswith("dict") else _as(name, wanted, value)


def _weights(name: str, value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise UserError(f"{name} is {value!r}; it must map names to weights, as {{en: 4, zh: 1}}")
    return {str(key): _as(f"{name}.{key}", "float", weight) for key, weight in value.items()}


def _as(name: str, wanted: str, value: Any) -> Any:
    """`value` as a ``bool``, ``str``, ``int`` or ``float``; UserError if it is none."""
    if isinstance(value, bool) == (wanted == "bool"):
        if wanted == "bool":
            return value
        if wanted == "str" and isinstance(value, str | int | float):
            return str(value)
        try:
            # YAML reads 8e-3 as text: it wants 8.0e-3.
            number = float(value)
        except (TypeError, ValueError):
            number = None
        if wanted == "float" and number is not None:
            return number
        if wanted == "int" and number is not None and number.is_integer():
            return int(number)
    raise UserError(f"{name} is {value!r}; it must be {_NUMBER_WORDS[wanted]}")


def _expand(source: SettingsFile, tokenizer: TokenizerSettings) -> list[tuple[int, Run]]:
    """Every run of the file with the index of the entry that it comes from."""
    sizes = source.mapping(("sizes",))
    if not sizes:
        raise source.error((), "there are no sizes; add `sizes:` with a shape for each name")
    for place in (("defaults",), *(("sizes", size) for size in sizes)):
        source.check_keys(place, set(_FIELDS) - {"size"})
    entries = source.value.get("runs")
    if not isinstance(entries, list) or not entries:
        raise source.error(("runs",), "there are no runs; add `runs:` with a list, as - {size: tiny, tokens: 1M}")
    defaults = {"vocab_size": tokenizer.vocab_size, **source.mapping(("defaults",))}
    runs = []
    for index in range(len(entries)):
        entry = source.mapping(("runs", index))
        source.check_keys(("runs", index), {*_FIELDS, "name"})
        for key, value in entry.items():
            if value == []:
                raise source.error(("runs", index, key), f"{key} is an empty list, which makes no run; give it values")
        for point in _sweep(entry):
            try:
                runs.append((index, _one_run(point, _run_name(point, entry), defaults, sizes)))
            except UserError as error:
                raise source.error(("runs", index), str(error)) from None
    return runs


def _one_run(point: Mapping[str, Any], name: str, defaults: Mapping[str, Any], sizes: Mapping[str, Any]) -> Run:
    """The run of one point of a sweep: its own settings over its size's over the defaults."""
    if "size" not in point:
        raise UserError(f"this run names no size; add one of {', '.join(map(str, sizes))}")
    size = str(point["size"])
    if size not in sizes:
        raise UserError(f"there is no size {size!r}; sizes has {', '.join(map(str, sizes))}")
    values = {**defaults, **sizes[size], **point, "size": size}
    name = str(values.pop("name", name))
    if not _NAME.fullmatch(name) or name in RESERVED_RUN_NAMES:
        raise UserError(
            f"{name!r} cannot name a run; use letters, digits and . _ + -, "
            f"and none of {', '.join(sorted(RESERVED_RUN_NAMES))}"
        )
    try:
        return Run(name, _build(values))
    except UserError as error:
        raise UserError(f"run {name}: {error}") from None


def _sweep(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The Cartesian product of the entry's lists, the last key varying fastest."""
    axes = [[(key, item) for item in (value if isinstance(value, list) else [value])] for key, value in entry.items()]
    return [dict(point) for point in itertools.product(*axes)]


def _run_name(point: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """Size and budget, then every other swept setting: ``1.5B-67B``, ``tiny-1M-seed2``."""
    name = f"{point.get('size')}-{point.get('tokens')}"
    swept = [key for key, value in entry.items() if isinstance(value, list) and key not in ("size", "tokens")]
    return name + "".join(f"-{key}{point[key]}" for key in swept)


def _section(source: SettingsFile, name: str, kind: type) -> Any:
    """The dataclass `kind` from the section `name`."""
    values = source.mapping((name,))
    fields = {item.name: item for item in dataclasses.fields(kind)}
    source.check_keys((name,), set(fields))
    for key, item in fields.items():
        if key not in values and item.default is item.default_factory is dataclasses.MISSING:
            raise source.error((name,), f"{name} has no {key}; add it")
    for key, value in values.items():
        if key in ("vocab_size", "limit") and (not isinstance(value, int) or value < 1) and value is not None:
            raise source.error((name, key), f"{key} is {value!r}; it must be a whole number above 0")
        if key == "tasks" and not isinstance(value, list):
            raise source.error((name, key), f"tasks is {value!r}; it must be a list of names")
        if key == "ratio" and not isinstance(value, dict):
            raise source.error((name, key), f"ratio is {value!r}; it must map languages to weights")
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    except UserError as error:
        raise source.error((name,), str(error)) from None


def table(grid: Grid) -> Table:
    """The grid as a table: a line a run, with what follows from its settings, and their sums."""
    shown = Table(title=f"{grid.name}: {len(grid.runs)} runs", title_justify="left")
    headings = ["run", "parameters", "without emb.", "tokens", "steps", "batch", "6ND FLOPs", "exact", "checkpoints"]
    for heading in headings:
        shown.add_column(heading, justify="left" if heading == "run" else "right")
    for run in grid.runs:
        it = run.settings
        tokens = it.num_steps * it.tokens_per_step
        shown.add_row(
            run.name,
            format_count(it.parameters),
            format_count(it.parameters_non_embedding),
            f"{tokens:,}",
            f"{it.num_steps:,}",
            f"{it.global_batch_size:,}",
            f"{it.flops_6nd(tokens):.3g}",
            f"{it.flops_exact(tokens):.3g}",
            str(len(it.checkpoint_steps)),
        )
    shown.add_section()
    settings = [run.settings for run in grid.runs]
    tokens = [it.num_steps * it.tokens_per_step for it in settings]
    shown.add_row(
        "together",
        "",
        "",
        f"{sum(tokens):,}",
        f"{sum(it.num_steps for it in settings):,}",
        "",
        f"{sum(it.flops_6nd(count) for it, count in zip(settings, tokens, strict=True)):.3g}",
        f"{sum(it.flops_exact(count) for it, count in zip(settings, tokens, strict=True)):.3g}",
        f"{sum(len(it.checkpoint_steps) for it in settings):,}",
    )
    return shown


def main(argv: Sequence[str] | None = None) -> int:
    """Print a grid as a table."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.grid",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("grid", help="a grid file, or the name of a shipped grid")
    arguments = parser.parse_args(argv)
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table(load_grid(arguments.grid)))
    return 0


if __name__ == "__main__":
    cli.run(main)
