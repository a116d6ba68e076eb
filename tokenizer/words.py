"""SentencePiece's exact ids, several times faster on English: each word is encoded once and then looked up.

BPE joins two neighbours only into a piece of the vocabulary. Where no piece holds the characters a and b
side by side, nothing is ever joined across "ab": the text before and the text after can be encoded apart
and the ids put one behind the other. The result is SentencePiece's own, not an approximation. Which pairs
stand side by side in a piece is read from the vocabulary, so this holds for any BPE model; how much is won
depends on the model (a space after a letter is in no piece of ours; Chinese has no spaces, but few of its
pairs are in a piece).
"""

from __future__ import annotations

from array import array
from itertools import pairwise

import numpy

from tokenizer.vocabulary import Tokenizer

MOST_ENTRIES = 1 << 20
"""Words remembered by all processes together; each takes some 150 bytes."""
_FEWEST_ENTRIES = 1 << 14
_LONGEST_ENTRY = 24
_SLICE = 1 << 20
_TABLE_BITS = 20
_CUT = "\1"
_NO_CUT = "\0"


class WordEncoder(dict[str, bytes]):
    """Encodes text to the bytes of its ids in `typecode` ("H" for 16 bits, "i" for 32), remembering words.

    It maps a word to the bytes of its ids; `processes` share the bound on its size.
    """

    def __init__(self, tokenizer: Tokenizer, typecode: str = "i", processes: int = 1) -> None:
        self._tokenizer = tokenizer
        self._typecode = typecode
        self._room = max(MOST_ENTRIES // processes, _FEWEST_ENTRIES)
        pairs = "".join(sorted(joined_pairs(tokenizer)))
        codes = numpy.frombuffer(pairs.encode("utf-32-le"), dtype=numpy.uint32)
        before, after = codes[::2], codes[1::2]
        self._ascii_cuts = numpy.ones(1 << 16, dtype=numpy.uint8)
        ascii_pairs = (before < 128) & (after < 128)
        self._ascii_cuts[before[ascii_pairs] << 8 | after[ascii_pairs]] = 0
        # Two pairs may share a place in this table: then one of them is left whole, which is exact as well.
        self._cuts = numpy.ones(1 << _TABLE_BITS, dtype=numpy.uint8)
        self._cuts[_place(before, after)] = 0

    def encode(self, text: str) -> bytes:
        """The ids of `text`, as `Tokenizer.encode` gives them, in the machine's byte order.

        Raises:
            UnicodeEncodeError: the text holds half of a surrogate pair.
        """
        if len(text) > _SLICE:
            return b"".join(map(self._encode_slice, self._slices(text)))
        return self._encode_slice(text)

    def _encode_slice(self, text: str) -> bytes:
        if _CUT in text or _NO_CUT in text:
            return self._ids(text)
        return b"".join(map(self.__getitem__, self.cut(text)))

    def cut(self, text: str) -> list[str]:
        """`text`, which must not hold U+0000 or U+0001, in parts that BPE never joins."""
        # Every character is preceded by U+0001 where a part begins and by U+0000 elsewhere; the latter is
        # then removed and the string split at the former. All of it runs in C, one pass each.
        if text.isascii():
            codes = numpy.frombuffer(text.encode(), dtype=numpy.uint8)
            pairs = codes[:-1].astype(numpy.uint16)
            pairs <<= 8
            pairs |= codes[1:]
            marked = _interleave(codes, self._ascii_cuts.take(pairs))
            return marked.tobytes().translate(None, b"\0").decode("ascii").split(_CUT)
        encoding, data, width = "utf-16-le", text.encode("utf-16-le"), numpy.uint16
        if len(data) != 2 * len(text):
            encoding, data, width = "utf-32-le", text.encode("utf-32-le"), numpy.uint32
        codes = numpy.frombuffer(data, dtype=width)
        marked = _interleave(codes, self._cuts.take(_place(codes[:-1], codes[1:])))
        return marked[marked != 0].tobytes().decode(encoding).split(_CUT)

    def __missing__(self, word: str) -> bytes:
        # One call a word: SentencePiece starts a thread for each batch, which costs more than it saves.
        ids = self._ids(word)
        if len(word) <= _LONGEST_ENTRY:
            if len(self) >= self._room:
                self.clear()
            self[word] = ids
        return ids

    def _ids(self, text: str) -> bytes:
        return array(self._typecode, self._tokenizer.encode(text)).tobytes()

    def _slices(self, text: str) -> list[str]:
        """Parts of at least 2^20 characters that BPE never joins: the words of a whole book at once are many."""
        slices = []
        start = 0
        while start < len(text):
            end = self._next_cut(text, start + _SLICE)
            slices.append(text[start:end])
            start = end
        return slices

    def _next_cut(self, text: str, place: int) -> int:
        """The first place at or after `place` where BPE never joins the neighbours, else the text's end."""
        while place < len(text):
            codes = numpy.frombuffer(text[place - 1 : place + _SLICE].encode("utf-32-le"), dtype=numpy.uint32)
            cuts = numpy.flatnonzero(self._cuts.take(_place(codes[:-1], codes[1:])))
            if len(cuts):
                return place + int(cuts[0])
            place += _SLICE
        return len(text)


def _interleave(codes: numpy.ndarray, cuts: numpy.ndarray) -> numpy.ndarray:
    """0, c0, cut01, c1, cut12, c2, ... in the type of `codes` [n]; `cuts` [n - 1] are 0 or 1."""
    marked = numpy.zeros(2 * len(codes), dtype=codes.dtype)
    marked[1::2] = codes
    marked[2::2] = cuts
    return marked


def _place(before: numpy.ndarray, after: numpy.ndarray) -> numpy.ndarray:
    """Place of each pair in the table of cuts: multiplicative hashing of the two code points."""
    place = before.astype(numpy.uint32)
    place *= numpy.uint32(0x9E3779B1)
    other = after.astype(numpy.uint32)
    other *= numpy.uint32(0x85EBCA77)
    place ^= other
    place >>= numpy.uint32(32 - _TABLE_BITS)
    return place


def joined_pairs(tokenizer: Tokenizer) -> frozenset[str]:
    """All pairs of characters that stand side by side in a piece, with a space as " "."""
    pairs: set[str] = set()
    for piece in tokenizer.text_pieces():
        pairs.update(map("".join, pairwise(piece)))
    return frozenset(pairs)
