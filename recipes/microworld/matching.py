"""Matching exercises: four lettered options, then cues, each with the letter of the option that belongs to it.

An examination asks for one letter in thirty tokens, an exercise for one in four, about the same things with the same
options.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import islice, product
from random import Random

from recipes.microworld.blocks import Passage, asked, choice, place_choice
from recipes.microworld.draws import Weighted, drawn, evenly
from recipes.microworld.world import World

CUES = 8
"""Cues of an exercise about what is known."""


def exercises(world: World, random: Random, subject: int) -> Iterator[str]:
    """Exercises of the subject with this index, without end; each list of options is equally often there."""
    below: defaultdict[str, list[Weighted[str]]] = defaultdict(list)
    for it in asked(world, subject):
        made = choice(it.cue, it.right, it.members)
        below[made.listed()].append((world.phrases.matching_line.format(cue=it.cue, letter=made.letter), it.weight))
    lists = [(options, drawn(random, lines)) for options, lines in below.items()]
    for options, lines in drawn(random, evenly(lists)):
        yield "\n".join([options, *islice(lines, CUES)])


def reading_exercises(world: World, random: Random, passages: Iterator[Passage]) -> Iterator[str]:
    """The passages, each with its places as options and the letters of its things in any order."""
    line = world.phrases.matching_line
    made = {spot: place_choice(world, *spot) for spot in product(world.things, world.places)}
    lines = {spot: line.format(cue=spot[0], letter=it.letter) for spot, it in made.items()}
    options = {spot: it.listed() for spot, it in made.items()}
    for passage, first in zip(passages, drawn(random, evenly((0, 1))), strict=False):
        one, other = passage.spots[first], passage.spots[1 - first]
        yield "\n".join([passage.text, options[one], lines[one], lines[other]])
