"""What a micro-world is made of: a seed, how much text, how many people and how many test items."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizer.cli import UserError

MANIFEST = "manifest.json"
"""File of a world's directory that is written last: `identity` under "settings", bytes of text, files."""

GENERATOR = 3
"""Version of what is generated: raised with every change by which equal settings give other texts."""


@dataclass(frozen=True)
class MicroworldSettings:
    """A generated world, its documents and its benchmarks. All values are *ours*: the paper's data are real.

    Raises UserError for a world that cannot be made.
    """

    seed: int = 1
    """Of the words, the people, the facts, the documents and the test items."""
    megabytes: float = 32.0
    """Documents to write, in 10⁶ bytes of UTF-8 text over both languages."""
    people: int = 300
    """People of the English-like world; the Chinese-like one has half as many, for a quarter of the tokens."""
    rows: int = 200
    """Test items of each of the twelve tasks."""

    def __post_init__(self) -> None:
        for name, least, most in (("megabytes", 0.1, 1e6), ("people", 16, 400), ("rows", 8, 2000)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
                raise UserError(f"microworld: {name} is {value!r}; it must be from {least:g} to {most:g}")
        for name in ("seed", "people", "rows"):
            if isinstance(value := getattr(self, name), bool) or not isinstance(value, int):
                raise UserError(f"microworld: {name} is {value!r}; it must be a whole number")

    def identity(self) -> dict[str, Any]:
        """What decides every byte of the world: the settings, and the version of the generator."""
        return {**asdict(self), "generator": GENERATOR}

    def is_written(self, directory: Path) -> bool:
        """Whether `directory` holds the whole of this world."""
        try:
            manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(manifest, dict) and manifest.get("settings") == self.identity()
