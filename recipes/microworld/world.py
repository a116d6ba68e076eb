"""A world: its words, its people with a long tail of frequency, and what is true of them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from recipes.microworld.phrases import Phrases

MEMBERS = 16
"""Nouns of each category: a multiple of four, for the options of an examination are four neighbours."""
ACTIVITIES = 36
"""Activities, each with a place, a tool and a product."""
TAIL = 1.0
"""How often a person or an activity is spoken of: in proportion to rank^-TAIL (Zipf's law)."""
HELD_OUT_EVERY = 5
"""One text in so many that could be a test item is never written into a document."""


def frequency(rank: int) -> float:
    """How often the member with this rank, from 1 on, is spoken of in relation to the first."""
    return rank**-TAIL


@dataclass(frozen=True)
class Person:
    """Somebody, and a value for each relation."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Activity:
    """What is done where, with what, and what becomes of it."""

    name: str
    place: str
    tool: str
    product: str


@dataclass(frozen=True)
class World:
    """All that documents and test items of one language speak of."""

    phrases: Phrases
    seed: int
    nouns: Mapping[str, Sequence[str]]
    """Members of each category."""
    people: Sequence[Person]
    """The most frequent first, as the activities."""
    short_names: Sequence[str]
    """Names of the persons in stories."""
    things: Sequence[str]
    """What is put somewhere in passages."""
    places: Sequence[str]
    """Where it is put."""
    activities: Sequence[Activity]

    def is_held_out(self, text: str) -> bool:
        """Whether `text` is reserved for test items: a hash of it and the seed decides, so that no list is kept."""
        return zlib.crc32(text.encode(), self.seed) % HELD_OUT_EVERY == 0


def build_world(phrases: Phrases, seed: int, num_people: int) -> World:
    """The world of one language; equal arguments give an equal world on any machine."""
    random = Random(f"world-{seed}-{phrases.code}")
    words = phrases.make_words(random, MEMBERS * len(phrases.categories) + ACTIVITIES)
    nouns = {key: words[index * MEMBERS :][:MEMBERS] for index, key in enumerate(phrases.categories)}
    names, short_names = phrases.make_names(random, num_people)
    people = [Person(name, tuple(random.choice(nouns[it.category]) for it in phrases.relations)) for name in names]
    activities = [
        Activity(word, *(random.choice(nouns[key]) for key in ("city", "tool", "dish")))
        for word in words[MEMBERS * len(phrases.categories) :]
    ]
    return World(
        phrases,
        seed,
        nouns,
        people,
        short_names[:10],
        nouns["tool"][:8],
        nouns["box"][:4],
        activities,
    )
