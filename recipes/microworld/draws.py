"""Random draws of members with frequencies, without end or each once; the same for the same seed on any machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from random import Random
from typing import TypeVar

Member = TypeVar("Member")
Weighted = tuple[Member, float]
"""A member, and how often it is drawn in relation to others."""

_AT_ONCE = 256
"""`Random.choices` draws many in little more time than one."""


def evenly(members: Iterable[Member]) -> Iterator[Weighted[Member]]:
    """All equally often."""
    return ((member, 1.0) for member in members)


def drawn(random: Random, weighted: Iterable[Weighted[Member]]) -> Iterator[Member]:
    """Members by their frequencies, without end."""
    members, weights = zip(*weighted, strict=True)
    cumulative = list(accumulate(weights))
    while True:
        yield from random.choices(members, cum_weights=cumulative, k=_AT_ONCE)


def shuffled(random: Random, weighted: Iterable[Weighted[Member]]) -> list[Member]:
    """Every member once, in the order in which draws by the frequencies would first bring it."""
    # Whatever happens at random with a frequency happens first after an exponentially distributed time.
    timed = [(random.expovariate(weight), member) for member, weight in weighted]
    return [member for _, member in sorted(timed, key=lambda it: it[0])]
