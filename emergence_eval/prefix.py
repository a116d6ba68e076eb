"""Which tokens of many prompts are read once: a plan of forward passes over the trie of their token ids.

Prompts that begin alike share those tokens. Where many prompts share a long beginning (the examples of a subject),
it becomes a *trunk*: read once, its keys and values kept while the prompts behind it are read. Where few do (the
options of a question, the questions of a passage), they become a *segment*: a small tree, read in one pass in which
each token sees its ancestors. Segments of similar size are read together, so many tokens a pass.

    plan = plan_prompts([[1, 2, 3], [1, 2, 4]], Limits(pass_tokens=2048, positions=16384))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Limits:
    """What a pass may hold, and where sharing pays."""

    pass_tokens: int
    """Tokens that are read in one pass, at most (a single longer segment has a pass of its own)."""
    positions: int
    """Positions whose keys and values are held at a time, those of the trunks included."""
    segment_tokens: int = 512
    """A larger tree is split into a trunk and what is behind it: within a segment attention costs its square."""
    shared_tokens: int = 32
    """Fewer tokens in common are read again: a pass of its own costs more."""
    saved_tokens: int = 64
    """What a trunk must save."""
    trees: bool = True
    """Whether several prompts may form one segment; otherwise each is a segment."""
    room: int = 0
    """Positions that are kept free for each segment: tokens to be generated."""
    segments: int = 2**31
    """Segments in a pass, at most."""


@dataclass(frozen=True, eq=False)
class Trunk:
    """Tokens [start, end) of every prompt of `members`."""

    start: int
    end: int
    members: range
    """Prompts, as indices into `Plan.order`."""


@dataclass(frozen=True)
class Segment:
    """The tokens from `start` on of prompts that are read as one tree."""

    start: int
    members: range
    tokens: int


@dataclass(frozen=True)
class Leaf:
    """One pass: segments that are read together behind the same trunks."""

    path: tuple[Trunk, ...]
    segments: tuple[Segment, ...]

    @property
    def tokens(self) -> int:
        """Tokens that the pass reads."""
        return sum(segment.tokens for segment in self.segments)


@dataclass(frozen=True)
class Plan:
    """Passes in the order in which few trunks are held at a time (depth first)."""

    order: list[int]
    """Prompts sorted by their ids; trunks and segments name places in this list."""
    shared: np.ndarray
    """Tokens that each prompt of `order` has in common with the one before it."""
    leaves: list[Leaf]

    def tokens_read(self) -> int:
        """Tokens that all passes read together, trunks included."""
        trunks = {trunk for leaf in self.leaves for trunk in leaf.path}
        return sum(trunk.end - trunk.start for trunk in trunks) + sum(leaf.tokens for leaf in self.leaves)

    def share(self, rank: int, ranks: int, room: int = 0) -> list[Leaf]:
        """The leaves of one process: consecutive ones, so that trunks stay together, of about equal cost.

        The passes are those of a single process, whatever the number of processes: so are the results.

        Args:
            room: tokens to be generated behind each segment.
        """
        ends = np.cumsum([leaf.tokens + room * len(leaf.segments) for leaf in self.leaves])
        total = ends[-1] if len(ends) else 0
        middles = ends - np.diff(ends, prepend=0) / 2
        bounds = np.searchsorted(middles, total * np.arange(ranks + 1) / ranks)
        return self.leaves[bounds[rank] : bounds[rank + 1]]


def common_length(a: np.ndarray, b: np.ndarray) -> int:
    """Number of leading ids that two prompts have in common."""
    n = min(len(a), len(b))
    differ = a[:n] != b[:n]
    place = int(differ.argmax()) if n else 0
    return place if n and differ[place] else n


def plan_prompts(prompts: Sequence[np.ndarray], limits: Limits, unshared: int = 0) -> Plan:
    """Plan the reading of prompts, all different and none empty.

    Args:
        unshared: tokens at each prompt's end that belong to no trunk (1 where its last position must be computed
            anew, as for generation).
    """
    # Big-endian bytes of non-negative numbers sort as the numbers do.
    keys = [np.asarray(prompt, dtype=">u4").tobytes() for prompt in prompts]
    order = sorted(range(len(prompts)), key=keys.__getitem__)
    lengths = np.array([len(prompts[i]) for i in order], dtype=np.int64)
    shared = np.zeros(len(order), dtype=np.int64)
    for place in range(1, len(order)):
        shared[place] = common_length(prompts[order[place - 1]], prompts[order[place]])
    if unshared:
        shared[1:] = np.minimum(shared[1:], np.minimum(lengths[1:], lengths[:-1]) - unshared)
    planner = _Planner(lengths, shared, limits)
    return Plan(order, shared, list(planner.leaves(range(len(order)), 0, ())))


class _Planner:
    def __init__(self, lengths: np.ndarray, shared: np.ndarray, limits: Limits) -> None:
        self.lengths, self.shared, self.limits = lengths, shared, limits

    def leaves(self, members: range, depth: int, path: tuple[Trunk, ...]) -> Iterator[Leaf]:
        """The passes over prompts whose first `depth` tokens are read already."""
        segments: list[Segment] = []
        trunks: list[Trunk] = []
        for group in self._groups(members, depth):
            inner = self.shared[group.start + 1 : group.stop]
            size = int(self.lengths[group.start : group.stop].sum() - inner.sum()) - depth
            single = len(group) == 1
            if single or (self.limits.trees and size <= self.limits.segment_tokens):
                if size:
                    segments.append(Segment(depth, group, size))
            elif (int(inner.min()) - depth) * len(inner) >= self.limits.saved_tokens:
                trunks.append(Trunk(depth, int(inner.min()), group))
            else:
                segments += [
                    Segment(depth, range(i, i + 1), int(self.lengths[i]) - depth)
                    for i in group
                    if self.lengths[i] > depth
                ]
        for batch in self._passes(segments, depth):
            yield Leaf(path, batch)
        for trunk in trunks:
            yield from self.leaves(trunk.members, trunk.end, (*path, trunk))

    def _groups(self, members: range, depth: int) -> Iterator[range]:
        """Neighbours with enough tokens in common beyond `depth`."""
        inner = self.shared[members.start + 1 : members.stop]
        ends = np.flatnonzero(inner < depth + self.limits.shared_tokens) + members.start + 1
        start = members.start
        for end in [*ends.tolist(), members.stop]:
            if end > start:
                yield range(start, end)
            start = end

    def _passes(self, segments: list[Segment], depth: int) -> Iterator[tuple[Segment, ...]]:
        """Segments of similar length together, as many as the limits allow."""
        limits = self.limits
        batch: list[Segment] = []
        tokens = 0
        for segment in sorted(segments, key=lambda s: (-s.tokens, s.members.start)):
            tokens += segment.tokens
            # Padded to the longest, which is the first.
            held = (len(batch) + 1) * (batch[0].tokens + limits.room) if batch else 0
            too_many = tokens > limits.pass_tokens or len(batch) == limits.segments or held + depth > limits.positions
            if batch and too_many:
                yield tuple(batch)
                batch, tokens = [], segment.tokens
            batch.append(segment)
        if batch:
            yield tuple(batch)
