"""Writes a micro-world: documents to train on and twelve benchmarks, both generated, the same for the same seed.

python -m recipes.microworld --out world --megabytes 4          # look at world/corpus and world/benchmarks
python -m recipes.microworld --grid micro --out runs/micro/world
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from recipes.grid import load_grid
from recipes.microworld.settings import MANIFEST, MicroworldSettings
from recipes.microworld.writing import write_microworld
from tokenizer import cli
from tokenizer.cli import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Write the micro-world that a grid or the command line describes."""
    arguments = _parser().parse_args(argv)
    settings = _settings(arguments)
    if settings.is_written(arguments.out):
        print(f"{arguments.out} is there already")
        return 0
    others = {path.name for path in arguments.out.glob("*")} - {"corpus", "benchmarks", MANIFEST}
    if others:
        raise UserError(f"{arguments.out} holds other files ({min(others)}); give another directory with --out")
    started = time.monotonic()
    with cli.progress_bar() as bar:
        task = bar.add_task("writing the world", total=round(settings.megabytes * 1e6))
        written = write_microworld(settings, arguments.out, lambda size: bar.advance(task, size))
    seconds = time.monotonic() - started
    print(f"{sum(written.values()) / 1e6:.1f} MB of text in {len(written)} files, 12 benchmarks, {seconds:.1f} s")
    return 0


def _settings(arguments: argparse.Namespace) -> MicroworldSettings:
    settings = MicroworldSettings()
    if arguments.grid:
        settings = load_grid(arguments.grid).microworld
        if settings is None:
            raise UserError(f"{arguments.grid} has no section `microworld:`; add one, or leave --grid out")
    given = {name: value for name in _OPTIONS if (value := getattr(arguments, name)) is not None}
    return dataclasses.replace(settings, **given)


_OPTIONS = {item.name: type(item.default) for item in dataclasses.fields(MicroworldSettings)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.microworld", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where corpus/ and benchmarks/ go")
    parser.add_argument("--grid", metavar="FILE", help="take the settings from this grid's section `microworld:`")
    meanings = {
        "seed": "of words, people, facts, documents and test items",
        "megabytes": "text to write, 10^6 bytes",
        "people": "people of the English-like world",
        "rows": "test items of each benchmark",
    }
    for name, kind in _OPTIONS.items():
        default = getattr(MicroworldSettings(), name)
        parser.add_argument(f"--{name}", type=kind, help=f"{meanings[name]} (default: {default}, or the grid's)")
    return parser


if __name__ == "__main__":
    cli.run(main)
