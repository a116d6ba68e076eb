"""Where the index of a blend lies in a data directory, and whether it is whole. `recipes.index_cache` builds it."""

from __future__ import annotations

import json
from pathlib import Path

from recipes import mixture
from recipes.encoded import EncodedData
from recipes.mixture import Blend
from recipes.settings import RunSettings

DIRECTORY = "index"
"""Where the indices lie in a data directory, one directory each, named after `Blend.key`."""

MANIFEST = "manifest.json"
"""Names every file of an index with its size; written last."""


def find(data: EncodedData, blend: Blend) -> Path | None:
    """The directory of the blend's index if it is there and whole: its manifest names every file with its size."""
    directory = data.directory / DIRECTORY / blend.key(data)
    return directory if is_whole(directory) else None


def is_whole(directory: Path) -> bool:
    """Whether the manifest of an index and all that it names are there."""
    try:
        content = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        files = {item["path"]: item["bytes"] for item in content["files"]}
        return bool(files) and all((directory / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_built(data: EncodedData, settings: RunSettings) -> bool:
    """Whether all that a run needs is there."""
    return all(find(data, blend) for blend in blends(data, settings))


def blends(data: EncodedData, settings: RunSettings) -> list[Blend]:
    """All that a run reads: its training set and the held-out sample of each language."""
    heldout = [mixture.heldout_blend(data, settings, language) for language in settings.languages]
    return [mixture.training_blend(data, settings), *heldout]
