"""Test items of a micro-world: blocks that no document holds, with the right answer in every position equally often.

Each is a block that `World.is_held_out` reserves; its text, as a document would hold it up to the answer, is kept, so
that documents can be searched for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import TypeVar

from recipes.microworld.blocks import (
    Choice,
    Fact,
    Passage,
    Problem,
    Scene,
    asked_facts,
    event_product,
    events,
    exam_questions,
    exam_text,
    facts,
    passages,
    place_choice,
    problems,
    scenes,
)
from recipes.microworld.draws import drawn, shuffled
from recipes.microworld.world import World
from tokenizer.cli import UserError

FEWSHOT_ROWS = 40
"""Examples beside the test items, of which the tasks use a handful."""
MOST_DRAWS = 200
"""Draws for each item of a kind that has too many to list, after which the world is taken to be too small for more."""
EXAM_EXAMPLES = 5
"""Examples of a subject, as MMLU and C-Eval have."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Continuation:
    """An activity's first two sentences, four third ones, the index of the right one, and the last sentence."""

    start: str
    ways: list[str]
    gold: int
    end: str


class Items:
    """Test items of one world, all different."""

    def __init__(self, world: World, rows: int) -> None:
        self.world, self.rows = world, rows
        self.random = Random(f"items-{world.seed}-{world.phrases.code}")
        self.reserved: list[str] = []
        """Texts of the items made so far that no document may hold."""

    def is_item(self, text: str) -> bool:
        """Whether a block may be a test item: documents do not hold it."""
        return self.world.is_held_out(text)

    def _held_out(self, candidates: Iterable[Item], text: Callable[[Item], str], *frames: str) -> Iterator[Item]:
        """Those of `candidates` that may be test items and differ in `text`.

        Args:
            frames: What may stand around the text in a document, with one gap.
        """
        before: set[str] = set()
        for item in candidates:
            words = text(item)
            if words not in before and self.is_item(words):
                before.add(words)
                self._reserve(words, *(frame.replace("{}", words) for frame in frames))
                yield item

    def _reserve(self, *texts: str) -> None:
        """Keep what no document may hold: each text without the line that asks for its answer."""
        self.reserved += [text.rpartition("\n")[0] or text for text in texts]

    def facts(self) -> list[Fact]:
        """Questions that no document asks: `rows` of them, or all where there are fewer."""
        world = self.world
        unasked = [fact for fact, _ in facts(world) if self.is_item(fact.question)]
        chosen = Random(f"facts-{world.seed}-{world.phrases.code}").sample(unasked, min(self.rows, len(unasked)))
        self._reserve(*(world.phrases.question_frame.format(question=it.question) for it in chosen))
        return chosen

    def asked_facts(self) -> list[Fact]:
        """Questions that documents do ask: examples of what an answer looks like."""
        return list(islice(drawn(self.random, asked_facts(self.world)), FEWSHOT_ROWS))

    def continuations(self) -> list[Continuation]:
        """Activities that nobody of that name has done in a document, with four products to choose from."""
        phrases, random = self.world.phrases, self.random
        products = [it.product for it in self.world.activities]
        made = []
        candidates = self._held_out(shuffled(random, events(self.world)), lambda it: it.start)
        for index, event in enumerate(taken(self.rows, candidates)):
            right = event.activity.product
            shown = [it for it in dict.fromkeys(random.sample(products, len(products))) if it != right][:3]
            shown.insert(index % 4, right)
            ways = [event_product(phrases, event, it) for it in shown]
            end = random.choice(phrases.activity_ends).format(person=event.person)
            made.append(Continuation(event.start, ways, index % 4, end))
        return made

    def passages(self, count: int) -> list[tuple[Passage, Choice]]:
        """Passages with a question each."""
        frame = self.world.phrases.passage_frame.partition("\n")[0].replace("{passage}", "{}")
        candidates = islice(passages(self.world, self.random), MOST_DRAWS * count)
        held_out = self._held_out(candidates, lambda it: it.text, frame)
        return taken(count, self._asked_by_turns(held_out))

    def _asked_by_turns(self, passages: Iterable[Passage]) -> Iterator[tuple[Passage, Choice]]:
        """Those that have a thing in the place whose turn it is, with the question for it."""
        gold = 0
        for passage in passages:
            asked = (place_choice(self.world, *spot) for spot in passage.spots)
            found = next((it for it in asked if it.gold == gold), None)
            if found:
                yield passage, found
                gold = (gold + 1) % 4

    def scenes(self, text: Callable[[Scene], str], people: bool) -> list[Scene]:
        """Scenes whose reason holds for the first and the second noun by turns."""
        found = shuffled(self.random, scenes(self.world, people))
        turns = [[it for it in found if it.of_first == of_first] for of_first in (True, False)]
        return taken(self.rows, *(self._held_out(turn, text) for turn in turns))

    def exam(self, subject: int) -> list[Choice]:
        """The questions of one subject, examples first: its part of the rows, or fewer where the world has fewer."""
        phrases = self.world.phrases
        found = shuffled(self.random, exam_questions(self.world, subject))
        held_out = list(self._held_out(found, lambda it: exam_text(phrases, it)))
        # The first test item, behind the examples, has its right option in the first place.
        turns = [[it for it in held_out if it.gold == (number - EXAM_EXAMPLES) % 4] for number in range(4)]
        wanted = EXAM_EXAMPLES + len(range(subject, self.rows, len(phrases.subjects)))
        there = 4 * min(map(len, turns))
        return taken(max(min(wanted, there), EXAM_EXAMPLES + 1), *map(iter, turns))

    def problems(self) -> list[Problem]:
        """Word problems, examples first."""
        count = FEWSHOT_ROWS + self.rows
        frame = self.world.phrases.problem_frame.replace("{question}", "{}")
        candidates = islice(problems(self.world, self.random), MOST_DRAWS * count)
        return taken(count, self._held_out(candidates, lambda it: it.question, frame))


def taken(count: int, *turns: Iterator[Item]) -> list[Item]:
    """`count` items from each of `turns` by turns; raises UserError where one has too few."""
    items = []
    for index in range(count):
        item = next(turns[index % len(turns)], None)
        if item is None:
            raise UserError(f"this world has no {count} different items of a kind; lower `rows` or raise `people`")
        items.append(item)
    return items
