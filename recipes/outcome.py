"""How each process of a run ended, for `recipes.launch`, which started them and speaks for all of them."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from json import loads
from pathlib import Path

from recipes import layout
from tokenizer.files import write_json

DIRECTORY = "RECIPES_OUTCOMES"
"""Environment variable that names the directory for the outcomes of this machine's processes."""


@dataclass(frozen=True)
class Outcome:
    """The end of one process."""

    rank: int
    exit_code: int
    message: str = ""
    """One line for the user."""


def hand_over(exit_code: int, message: str = "") -> bool:
    """Leave this process's outcome to the launcher, which will say `message`; False if there is none."""
    if not (directory := os.environ.get(DIRECTORY)):
        return False
    rank = layout.rank()
    write_json(Path(directory) / f"{rank}.json", asdict(Outcome(rank, exit_code, message)))
    return True


def collect(directory: Path) -> list[Outcome]:
    """The outcomes that were handed over, by rank."""
    found = [Outcome(**loads(path.read_text(encoding="utf-8"))) for path in directory.glob("[0-9]*.json")]
    return sorted(found, key=lambda outcome: outcome.rank)
