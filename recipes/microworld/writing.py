"""A micro-world on disk: `corpus/` with a file a source and language, `benchmarks/`, and a manifest written last."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from recipes.microworld.benchmarks import chinese_files, english_files
from recipes.microworld.chinese import CHINESE
from recipes.microworld.documents import SHARES, documents
from recipes.microworld.english import ENGLISH
from recipes.microworld.items import Items
from recipes.microworld.settings import MicroworldSettings
from recipes.microworld.world import World, build_world
from tokenizer.cli import UserError
from tokenizer.files import write_json, write_text

LANGUAGE_SHARES = {"en": 0.8, "zh": 0.2}
"""English to Chinese 4:1, as in the paper (App. A.1), here in bytes."""

MANIFEST = "manifest.json"


def worlds(settings: MicroworldSettings) -> dict[str, World]:
    """The worlds of both languages by their code."""
    return {
        "en": build_world(ENGLISH, settings.seed, settings.people),
        "zh": build_world(CHINESE, settings.seed, settings.people // 4),
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
    reserved: dict[str, set[int]] = {}
    for code, files_of in (("en", english_files), ("zh", chinese_files)):
        items = Items(made[code], settings.rows)
        for name, text in files_of(items).items():
            write_text(out / "benchmarks" / name, text)
        reserved[code] = set(map(hash, items.reserved))
    written = {}
    for code, language_share in LANGUAGE_SHARES.items():
        for source, share in SHARES.items():
            name = f"{code}-{source}.jsonl"
            budget = round(settings.megabytes * 1e6 * language_share * share)
            stream = _until(budget, documents(made[code], source))
            written[name] = _write(out / "corpus" / name, stream, code, source, reserved[code], advance)
    write_json(out / MANIFEST, {"settings": asdict(settings), "bytes": sum(written.values()), "files": written})
    return written


def is_written(settings: MicroworldSettings, out: Path) -> bool:
    """Whether `out` holds the whole world with these settings."""
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("settings") == asdict(settings)


def _until(budget: int, texts: Iterator[str]) -> Iterator[str]:
    """The first of `texts`, of `budget` bytes together and what the last one has more."""
    left = budget
    while left > 0:
        text = next(texts)
        left -= len(text.encode())
        yield text


def _write(
    path: Path, texts: Iterator[str], code: str, source: str, reserved: set[int], advance: Callable[[int], None]
) -> int:
    """Write one file of the corpus; its bytes of text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    total = pending = 0
    tail = f', "lang": "{code}", "source": "{source}"}}\n'
    with open(path, "w", encoding="utf-8") as file:
        for text in texts:
            if not reserved.isdisjoint(map(hash, pieces(text))):
                raise UserError(f"a document of {source} holds a test item: {text[:80]!r}")
            file.write(f'{{"text": {json.dumps(text, ensure_ascii=False)}{tail}')
            pending += len(text.encode())
            if pending > 1 << 18:
                advance(pending)
                total, pending = total + pending, 0
    advance(pending)
    return total + pending


def pieces(text: str) -> Iterator[str]:
    """All texts within a document that could be a test item: the beginning of each block up to every line's end, each
    line, and the first two sentences of each line."""
    for block in text.split("\n\n"):
        lines = block.split("\n")
        yield from lines
        for count in range(2, len(lines)):
            yield "\n".join(lines[:count])
    for match in _TWO_SENTENCES.finditer(text):
        yield match[0]


_TWO_SENTENCES = re.compile(r"^[^.\n]*\.[^.\n]*\.|^[^。\n]*。[^。\n]*。", re.MULTILINE)
