"""Text that the tests make for themselves: two small languages, the same on every machine."""

from __future__ import annotations

import json
import random
from pathlib import Path

_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


def write_corpus(directory: Path, documents: int = 600, seed: int = 7) -> Path:
    """Write `documents` English-like and a quarter as many Chinese-like documents as JSONL, two sources each."""
    chooser = random.Random(seed)
    syllables = [consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS]
    words = ["".join(chooser.choices(syllables, k=chooser.randint(1, 3))) for _ in range(400)]
    signs = [chr(0x4E00 + number) for number in range(200)]
    directory.mkdir(parents=True, exist_ok=True)
    for language, count, pieces, glue in (("en", documents, words, " "), ("zh", documents // 4, signs, "")):
        weights = [1 / (rank + 1) for rank in range(len(pieces))]
        lines = []
        for number in range(count):
            sentences = [
                glue.join(chooser.choices(pieces, weights, k=chooser.randint(5, 12)))
                + ("." if language == "en" else "。")
                for _ in range(chooser.randint(3, 12))
            ]
            source = "web" if number % 3 else "books"
            text = "\n".join(sentences)
            lines.append(json.dumps({"text": text, "source": source, "lang": language}, ensure_ascii=False))
        (directory / f"{language}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory
