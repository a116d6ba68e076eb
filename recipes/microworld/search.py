"""Looks for test items in documents, in the finished text: it knows nothing of how either was made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable


class Search:
    """Finds texts that stand at the beginning of a line of a document, whatever follows them."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts: defaultdict[str, list[str]] = defaultdict(list)
        for text in set(texts):
            self._texts[_first_sentences(text)[0]].append(text)
        self._beginnings = frozenset(self._texts)

    def finds_any(self, document: str) -> bool:
        """Whether the document holds one of the texts."""
        # Few lines begin as a text does; only then is the whole text looked for.
        found = self._beginnings.intersection(_first_sentences(document))
        return any(text in document for beginning in found for text in self._texts[beginning])


def _first_sentences(text: str) -> list[str]:
    """The first sentence of each line."""
    return [line.partition(".")[0] for line in text.replace("。", ".").split("\n")]
