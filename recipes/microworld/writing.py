"""A micro-world on disk: `corpus/` with a file a source and language, `benchmarks/`, and a manifest written last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from recipes.microworld.benchmarks import chinese_files, english_files
from recipes.microworld.chinese import CHINESE
from recipes.microworld.documents import SHARES, documents
from recipes.microworld.english import ENGLISH
from recipes.microworld.items import Items
from recipes.microworld.search import Search
from recipes.microworld.settings import MANIFEST, MicroworldSettings
from recipes.microworld.world import World, build_world
from tokenizer.cli import UserError
from tokenizer.files import write_json

LANGUAGE_SHARES = {"en": 0.8, "zh": 0.2}
"""English to Chinese 4:1, as in the paper (App. A.1), here in bytes."""


def worlds(settings: MicroworldSettings) -> dict[str, World]:
    """The worlds of both languages by their code."""
    return {
        "en": build_world(ENGLISH, settings.seed, settings.people),
        "zh": build_world(CHINESE, settings.seed, settings.people // 2),
    }


def write_microworld(settings: MicroworldSettings, out: Path, advance: Callable[[int], None]) -> dict[str, int]:
    """Write documents and benchmarks to `out`, anew if a part of them is there.

    Args:
        advance: Called with the bytes of text written since the last call.

    Returns:
        Bytes of text by file of the corpus.

    Raises:
        UserError: a document holds a test item, which would be a mistake of this package.
    """
    made = worlds(settings)
    shutil.rmtree(out, ignore_errors=True)
    reserved: dict[str, Search] = {}
    for code, files_of in (("en", english_files), ("zh", chinese_files)):
        items = Items(made[code], settings.rows)
        for name, text in files_of(items).items():
            path = out / "benchmarks" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        reserved[code] = Search(items.reserved)
    written = {}
    for code, language_share in LANGUAGE_SHARES.items():
        for source, share in SHARES.items():
            name = f"{code}-{source}.jsonl"
            budget = round(settings.megabytes * 1e6 * language_share * share)
            texts = documents(made[code], source)
            written[name] = _write(out / "corpus" / name, texts, budget, reserved[code], advance)
    write_json(out / MANIFEST, {"settings": settings.identity(), "bytes": sum(written.values()), "files": written})
    return written


def _write(path: Path, texts: Iterator[str], budget: int, search: Search, advance: Callable[[int], None]) -> int:
    """Write the first of `texts`, of `budget` bytes together and what the last one has more; their bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    code, source = path.stem.split("-")
    total = pending = 0
    tail = f', "lang": "{code}", "source": "{source}"}}\n'
    with open(path, "w", encoding="utf-8") as file:
        while total + pending < budget:
            text = next(texts)
            if search.finds_any(text):
                raise UserError(f"a document of {source} holds a test item: {text[:80]!r}")
            file.write(f'{{"text": {_quoted(text)}{tail}')
            pending += len(text.encode())
            if pending > 1 << 18:
                advance(pending)
                total, pending = total + pending, 0
    advance(pending)
    return total + pending


_quoted = json.JSONEncoder(ensure_ascii=False).encode
