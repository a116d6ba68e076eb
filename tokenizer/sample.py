"""A sample of bounded size, drawn by content hash: independent of the order of documents and of the machine.

Documents are cut into pieces of at most 16 KiB at line ends; a piece's hash is its priority, and each
language keeps the pieces of lowest hash up to its share of the bytes. A piece that occurs twice counts once.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from hashlib import blake2b

PIECE_CHARACTERS = 1 << 14


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = start + PIECE_CHARACTERS
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end


class Sample:
    """At most `limit` bytes of text in all, `ratio[language]` shares of it for each language."""

    def __init__(self, ratio: dict[str, float], limit: int) -> None:
        total = sum(ratio.values())
        self._limits = {language: int(limit * share / total) for language, share in ratio.items()}
        self._heaps: dict[str, list[tuple[int, int, str]]] = {language: [] for language in ratio}
        self._priorities: dict[str, set[int]] = {language: set() for language in ratio}
        self._sizes = dict.fromkeys(ratio, 0)

    def add(self, language: str, text: str) -> None:
        """Offer a document; one in a language without a share is ignored."""
        heap = self._heaps.get(language)
        if heap is None:
            return
        priorities = self._priorities[language]
        for piece in _pieces(text):
            utf8 = piece.encode()
            priority = int.from_bytes(blake2b(utf8, digest_size=8, person=b"sample").digest())
            full = self._sizes[language] >= self._limits[language]
            if priority in priorities or (full and priority >= -heap[0][0]):
                continue
            # heapq keeps the smallest in front: the negative of the largest hash, the next to go.
            heapq.heappush(heap, (-priority, len(utf8), piece))
            priorities.add(priority)
            self._sizes[language] += len(utf8)
            while heap and self._sizes[language] - heap[0][1] >= self._limits[language]:
                dropped, size, _ = heapq.heappop(heap)
                priorities.discard(-dropped)
                self._sizes[language] -= size

    def texts(self) -> tuple[dict[str, list[str]], dict[str, int]]:
        """The sample by language, and its bytes. Where a language has less text than its share, the others
        are cut down with it, so that the ratio holds."""
        scale = min(1.0, *(self._sizes[language] / limit for language, limit in self._limits.items() if limit))
        texts: dict[str, list[str]] = {}
        sizes: dict[str, int] = {}
        for language, heap in self._heaps.items():
            chosen: list[str] = []
            size = 0
            for _, piece_bytes, piece in sorted(heap, key=lambda entry: -entry[0]):
                if size >= scale * self._limits[language]:
                    break
                chosen.append(piece)
                size += piece_bytes
            texts[language] = chosen
            sizes[language] = size
        return texts, sizes
