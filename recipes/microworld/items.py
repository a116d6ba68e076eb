"""Test items of a micro-world: blocks that no document holds, with the right answer in every position equally often.

Each is a block that `World.is_held_out` reserves; its text, as a document would hold it up to the answer, is kept, so
that documents can be searched for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import TypeVar

from recipes.microworld.blocks import Choice, Draw, Event, Passage, Problem, Question, Scene, rotated
from recipes.microworld.world import World
from tokenizer.cli import UserError

FEWSHOT_ROWS = 40
"""Examples beside the test items, of which the tasks use a handful."""
MOST_DRAWS = 200
"""Draws for each item after which the world is taken to be too small for more."""
EXAM_EXAMPLES = 5
"""Examples of a subject, as MMLU and C-Eval have."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Continuation:
    """An activity, its first two sentences, four third ones, and the index of the right one."""

    event: Event
    start: str
    ways: list[str]
    gold: int


class Items:
    """Test items of one world, all different."""

    def __init__(self, world: World, rows: int) -> None:
        self.world, self.rows = world, rows
        self.draw = Draw(world, Random(f"items-{world.seed}-{world.phrases.code}"))
        self.reserved: list[str] = []
        """Texts of the items made so far that no document may hold."""

    def distinct(
        self,
        count: int,
        make: Callable[[int], Item],
        text: Callable[[Item], str],
        *frames: str,
    ) -> list[Item]:
        """`count` items that are held out and differ in `text`; `make` is given an item's number.

        Args:
            frames: What may stand around the text in a document, with one gap.
        """
        found: dict[str, Item] = {}
        for _ in range(count * MOST_DRAWS):
            if len(found) == count:
                break
            item = make(len(found))
            if self.is_item(words := text(item)):
                found.setdefault(words, item)
        if len(found) < count:
            raise UserError(f"this world has no {count} different items of a kind; lower `rows` or raise `people`")
        for words in found:
            self._reserve(words, *(frame.replace("{}", words) for frame in frames))
        return list(found.values())

    def _reserve(self, *texts: str) -> None:
        """Keep what no document may hold: each text without the line that asks for its answer."""
        self.reserved += [text.rpartition("\n")[0] or text for text in texts]

    def is_item(self, text: str) -> bool:
        """Whether a block may be a test item: documents do not hold it."""
        return self.world.is_held_out(text)

    def facts(self) -> list[Question]:
        """Questions that no document asks: `rows` of them, or all where there are fewer."""
        world = self.world
        facts = [
            Question(relation.question.format(person=person.name), value)
            for person in world.people
            for relation, value in zip(world.phrases.relations, person.values, strict=True)
            if world.fact_is_held_out(person, relation)
        ]
        chosen = Random(f"facts-{world.seed}-{world.phrases.code}").sample(facts, min(self.rows, len(facts)))
        self._reserve(*(world.phrases.question_frame.format(question=it.question) for it in chosen))
        return chosen

    def asked_facts(self) -> list[Question]:
        """Questions that documents do ask: examples of what an answer looks like."""
        return [self.draw.fact_question() for _ in range(FEWSHOT_ROWS)]

    def continuations(self) -> list[Continuation]:
        """Activities that nobody of that name has done in a document, with four products to choose from."""
        draw = self.draw
        made = []
        for index, event in enumerate(self.distinct(self.rows, lambda _: draw.event(), draw.event_start)):
            right = event.activity.product
            products = draw.several([it.product for it in self.world.activities if it.product != right], 3)
            products.insert(index % 4, right)
            ways = [draw.event_product(event, product) for product in products]
            made.append(Continuation(event, draw.event_start(event), ways, index % 4))
        return made

    def passages(self, count: int) -> list[tuple[Passage, Choice]]:
        """Passages with a question each."""
        frame = self.world.phrases.passage_frame.partition("\n")[0].replace("{passage}", "{}")
        passages = self.distinct(count, lambda _: self.draw.passage(), lambda it: it.text, frame)
        return [(it, placed(self.draw.passage_question(it), index)) for index, it in enumerate(passages)]

    def scenes(self, text: Callable[[Scene], str], people: bool) -> list[Scene]:
        """Scenes whose reason holds for the first and the second noun by turns."""
        return self.distinct(self.rows, lambda index: replace(self.draw.scene(people), of_first=index % 2 == 0), text)

    def exam(self, subject: int) -> list[Choice]:
        """The questions of one subject, examples first; the subjects share the rows."""
        phrases = self.world.phrases
        count = EXAM_EXAMPLES + len(range(subject, self.rows, len(phrases.subjects)))
        return self.distinct(
            count,
            lambda index: placed(self.draw.exam_question(subject), index - EXAM_EXAMPLES),
            lambda it: phrases.choice_frame.format(question=it.question, options=it.listed()),
        )

    def problems(self) -> list[Problem]:
        """Word problems, examples first."""
        frame = self.world.phrases.problem_frame.replace("{question}", "{}")
        return self.distinct(FEWSHOT_ROWS + self.rows, lambda _: self.draw.problem(), lambda it: it.question, frame)


def placed(choice: Choice, index: int) -> Choice:
    """The same question with the right option at position `index` modulo the number of options."""
    options, gold = rotated(choice.options, choice.gold, index % len(choice.options))
    return replace(choice, options=options, gold=gold)
