"""SentencePiece's exact ids, several times faster: each word is encoded once and then looked up.

BPE joins two neighbours only into a piece of the vocabulary. Where no piece holds the characters a and b
side by side, nothing is ever joined across "ab": the text before and the text after can be encoded apart
and the ids put one behind the other. The result is SentencePiece's own, not an approximation. Which pairs
stand side by side in a piece is read from the vocabulary, so this holds for any BPE model. In ours no piece
holds a space after a letter; Chinese has no spaces, but few of its pairs are in a piece.

Text is cut, looked up and put together in numpy, a quarter of a megabyte at a time; only new words pass through Python.
A word of up to 16 bytes is its own key (two integers and its length), so no two words are ever confused.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise

import numpy

from tokenizer.vocabulary import Tokenizer

GROUP = 1 << 18
"""Characters encoded together, about: what `encode_all` is best given at a time."""

_KEY_BYTES = 16
_PAIR_BITS = 20
_MOST_SLOT_BITS, _FEWEST_SLOT_BITS = 20, 16
_IDS_PER_SLOT = 4

# Keeps the first n bytes of an integer of 8, n = 0..8 (the machine is little-endian, as Megatron's files are).
_FIRST_BYTES = numpy.array([(1 << 8 * count) - 1 for count in range(9)], dtype=numpy.uint64)

_ODD = [numpy.uint64(number) for number in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)]
"""Odd constants for multiplicative hashing."""


class WordEncoder:
    """Encodes texts to the bytes of their ids, remembering words; `typecode` is "H" (16 bits) or "i" (32)."""

    def __init__(self, tokenizer: Tokenizer, typecode: str = "i", processes: int = 1) -> None:
        self._tokenizer = tokenizer
        self._id_type = numpy.dtype(typecode)
        self._cuts, self._ascii_cuts = _cut_tables(joined_pairs(tokenizer))
        # 25 to 35 bytes a slot: all processes together stay below some 100 MB, up to 64 of them.
        self._slot_bits = min(_MOST_SLOT_BITS, max(_FEWEST_SLOT_BITS, 22 - processes.bit_length()))
        slots = 1 << self._slot_bits
        self._low = numpy.zeros(slots, dtype=numpy.uint64)
        self._high = numpy.zeros(slots, dtype=numpy.uint64)
        self._length = numpy.zeros(slots, dtype=numpy.uint8)
        self._first = numpy.zeros(slots, dtype=numpy.int64)
        self._count = numpy.zeros(slots, dtype=numpy.int64)
        self._ids = numpy.zeros(1 << 16, dtype=self._id_type)
        self._num_ids = 0

    def encode(self, text: str) -> bytes:
        """The ids of `text`, as `Tokenizer.encode` gives them, in the machine's byte order.

        Raises:
            UnicodeEncodeError: the text holds half of a surrogate pair.
        """
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[bytes]:
        """`encode` of each of several texts.

        Raises:
            UnicodeEncodeError: a text holds half of a surrogate pair.
        """
        if any(len(text) > 2 * GROUP for text in texts):
            return [b"".join(self._encode_group([part])[0] for part in self._parts(text)) for text in texts]
        return self._encode_group(texts)

    def _encode_group(self, texts: Sequence[str]) -> list[bytes]:
        joined = "".join(texts)
        if not joined:
            return [b""] * len(texts)
        utf8 = joined.encode()
        text_starts = numpy.cumsum([0, *map(len, texts)])
        word_starts, places = self._cut(joined, utf8, text_starts)
        first, count, ids = self._look_up(utf8, places)
        ends = numpy.cumsum(count)
        # For each id of the result its place in `ids`: a word's first place, then one more each.
        gather = numpy.repeat(first - (ends - count), count)
        gather += numpy.arange(len(gather))
        encoded = ids.take(gather).tobytes()
        width = self._id_type.itemsize
        ends_from_zero = numpy.concatenate(([0], ends))
        text_ends = ends_from_zero[numpy.searchsorted(word_starts, text_starts)] * width
        return [encoded[start:end] for start, end in pairwise(text_ends.tolist())]

    def _cut(self, joined: str, utf8: bytes, text_starts: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Where words begin: in characters [words], and in bytes with the end of the last word [words + 1]."""
        begins = numpy.ones(len(joined) + 1, dtype=bool)
        if len(utf8) == len(joined):
            codes = numpy.frombuffer(utf8, dtype=numpy.uint8)
            pairs = codes[:-1].astype(numpy.uint16)
            pairs <<= 7
            pairs |= codes[1:]
            self._ascii_cuts.take(pairs, out=begins[1:-1])
        else:
            codes = numpy.frombuffer(joined.encode("utf-32-le"), dtype=numpy.uint32)
            self._cuts.take(_pair_place(codes[:-1], codes[1:]), out=begins[1:-1])
        begins[text_starts] = True
        word_places = numpy.flatnonzero(begins)
        if len(utf8) == len(joined):
            return word_places[:-1], word_places
        # The first byte of a character is any byte but 10xxxxxx.
        character_places = numpy.flatnonzero((numpy.frombuffer(utf8, dtype=numpy.uint8) & 0xC0) != 0x80)
        return word_places[:-1], numpy.append(character_places, len(utf8)).take(word_places)

    def _look_up(self, utf8: bytes, places: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
        """For each word (from `places[n]` to `places[n + 1]`) the place of its first id and their number [words],
        and the ids. Words met for the first time are learnt."""
        starts, lengths = places[:-1], numpy.diff(places)
        # The 8 bytes from any place on as one integer.
        padded = utf8 + bytes(_KEY_BYTES)
        eights = numpy.ndarray(len(utf8) + 9, dtype=numpy.uint64, buffer=padded, strides=(1,))
        low = eights[starts] & _FIRST_BYTES.take(lengths, mode="clip")
        high = eights[numpy.minimum(starts + 8, len(utf8))] & _FIRST_BYTES.take(lengths - 8, mode="clip")
        slots, others = self._slots(low, high, lengths)
        for _ in range(2):
            known = self._holds(slots, low, high, lengths)
            unknown = numpy.flatnonzero(~known)
            second = others[unknown]
            found = self._holds(second, low[unknown], high[unknown], lengths[unknown])
            slots[unknown[found]] = second[found]
            unknown = unknown[~found]
            if self._num_ids <= _IDS_PER_SLOT << self._slot_bits:
                break
            self._forget()
        first, count = self._first[slots], self._count[slots]
        if len(unknown):
            self._learn(utf8, unknown, places, (low, high, lengths), first, count)
        return first, count, self._ids

    def _slots(
        self, low: numpy.ndarray, high: numpy.ndarray, lengths: numpy.ndarray
    ) -> tuple[numpy.ndarray, numpy.ndarray]:
        """The two slots that may hold each word."""
        mixed = low * _ODD[0]
        mixed ^= high * _ODD[1]
        mixed += lengths.astype(numpy.uint64)
        mixed *= _ODD[2]
        mask = numpy.uint64((1 << self._slot_bits) - 1)
        other = mixed >> numpy.uint64(63 - 2 * self._slot_bits)
        other &= mask
        mixed >>= numpy.uint64(64 - self._slot_bits)
        return mixed.astype(numpy.int64), other.astype(numpy.int64)

    def _holds(
        self, slots: numpy.ndarray, low: numpy.ndarray, high: numpy.ndarray, lengths: numpy.ndarray
    ) -> numpy.ndarray:
        holds = self._low[slots] == low
        holds &= self._high[slots] == high
        holds &= self._length[slots] == lengths
        return holds

    def _learn(
        self,
        utf8: bytes,
        unknown: numpy.ndarray,
        places: numpy.ndarray,
        keys: tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray],
        first: numpy.ndarray,
        count: numpy.ndarray,
    ) -> None:
        """Encode the words numbered `unknown`, set their `first` and `count`, and remember the short ones."""
        number: dict[bytes, int] = {}
        numbers = [
            number.setdefault(utf8[start:end], len(number))
            for start, end in zip(places[unknown].tolist(), places[unknown + 1].tolist(), strict=True)
        ]
        encoded = self._tokenizer.encode_batch([word.decode() for word in number])
        counts = numpy.fromiter(map(len, encoded), dtype=numpy.int64, count=len(encoded))
        ends = self._num_ids + numpy.cumsum(counts)
        firsts = ends - counts
        if ends[-1] > len(self._ids):
            self._ids = numpy.concatenate((self._ids, numpy.zeros(int(ends[-1]), dtype=self._id_type)))
        self._ids[self._num_ids : ends[-1]] = numpy.fromiter(
            chain.from_iterable(encoded), dtype=self._id_type, count=int(counts.sum())
        )
        first[unknown], count[unknown] = firsts[numbers], counts[numbers]

        low, high, lengths = (values[unknown] for values in keys)
        slots, others = self._slots(low, high, lengths)
        slots = numpy.where(self._length[slots] == 0, slots, others)
        # Of several words for one slot one is kept, whole.
        slots, chosen = numpy.unique(numpy.where(lengths <= _KEY_BYTES, slots, -1), return_index=True)
        if slots[0] < 0:
            slots, chosen = slots[1:], chosen[1:]
        self._low[slots], self._high[slots], self._length[slots] = low[chosen], high[chosen], lengths[chosen]
        self._first[slots], self._count[slots] = first[unknown[chosen]], count[unknown[chosen]]
        # The ids of a group without a word to remember are overwritten by the next one's.
        if len(slots):
            self._num_ids = int(ends[-1])

    def _forget(self) -> None:
        self._length[:] = 0
        self._num_ids = 0

    def _parts(self, text: str) -> list[str]:
        """A long text in parts of at least `GROUP` characters that BPE never joins."""
        parts = []
        start = 0
        while start < len(text):
            end = self._next_cut(text, start + GROUP)
            parts.append(text[start:end])
            start = end
        return parts

    def _next_cut(self, text: str, place: int) -> int:
        """The first place at or after `place` where BPE never joins the neighbours, else the text's end."""
        while place < len(text):
            codes = numpy.frombuffer(text[place - 1 : place + GROUP].encode("utf-32-le"), dtype=numpy.uint32)
            cuts = numpy.flatnonzero(self._cuts.take(_pair_place(codes[:-1], codes[1:])))
            if len(cuts):
                return place + int(cuts[0])
            place += GROUP
        return len(text)


def joined_pairs(tokenizer: Tokenizer) -> frozenset[str]:
    """All pairs of characters that stand side by side in a piece, with a space as " "."""
    pairs: set[str] = set()
    for piece in tokenizer.text_pieces():
        pairs.update(map("".join, pairwise(piece)))
    return frozenset(pairs)


def _cut_tables(pairs: frozenset[str]) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Whether to cut between two characters, by `_pair_place`; and between two of ASCII, by 128 x before + after.

    Two pairs may share a place in the first table: then both are left whole, which is exact as well.
    """
    codes = numpy.frombuffer("".join(sorted(pairs)).encode("utf-32-le"), dtype=numpy.uint32)
    before, after = codes[::2], codes[1::2]
    cuts = numpy.ones(1 << _PAIR_BITS, dtype=bool)
    cuts[_pair_place(before, after)] = False
    ascii_cuts = numpy.ones(1 << 14, dtype=bool)
    is_ascii = (before < 128) & (after < 128)
    ascii_cuts[before[is_ascii] << 7 | after[is_ascii]] = False
    return cuts, ascii_cuts


def _pair_place(before: numpy.ndarray, after: numpy.ndarray) -> numpy.ndarray:
    place = before * numpy.uint32(0x9E3779B1)
    place ^= after * numpy.uint32(0x85EBCA77)
    place >>= numpy.uint32(32 - _PAIR_BITS)
    return place
