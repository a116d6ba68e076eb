"""The small texts that documents and test items are made of, drawn at random: a fact, a question, a story, a sum.

A block that the world reserves for test items is drawn again by documents, and kept by test items; so the two share
every word of code and no text.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from recipes.microworld.phrases import Coreference
from recipes.microworld.world import Activity, Person, Ranked, World

LETTERS = "ABCD"
LARGEST = 9
"""Largest number that a word problem names."""
LARGEST_ASKED = 12
"""Largest term of an examination's sums."""
_NUMBERS = [str(number) for number in range(2, 2 * LARGEST_ASKED + 2)]


@dataclass(frozen=True, slots=True)
class Question:
    """An open question with its answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Choice:
    """A question with lettered options."""

    question: str
    options: Sequence[str]
    gold: int
    """Index of the right option."""

    def listed(self) -> str:
        """The options, a line each."""
        return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, self.options, strict=True))


@dataclass(frozen=True, slots=True)
class Passage:
    """A short story of who put what where."""

    text: str
    things: Sequence[str]
    places: Sequence[str]


@dataclass(frozen=True, slots=True)
class Event:
    """An activity of a person."""

    activity: Activity
    person: str
    end: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A word problem, its worked steps and its number."""

    question: str
    steps: str
    answer: int


@dataclass(frozen=True, slots=True)
class Scene:
    """Two nouns and a reason that holds for one of them."""

    kind: Coreference
    first: str
    second: str
    of_first: bool
    """Whether the reason given is the first noun's."""


def rotated(options: Sequence[str], gold: int, place: int) -> tuple[list[str], int]:
    """The options from another one on, so that number `gold` comes to stand at `place`."""
    shift = (gold - place) % len(options)
    return [*options[shift:], *options[:shift]], place


class Draw:
    """Random blocks of one world."""

    def __init__(self, world: World, random: Random) -> None:
        self.world = world
        self.phrases = world.phrases
        self.random = random.random
        self._keys = list(world.phrases.categories)
        self._things = world.nouns["tool"][:8]
        self._scene_nouns = world.nouns["tool"]
        self._statements = {
            person.name: [
                tuple(statement.format(person=person.name, value=value) for statement in relation.statements)
                for relation, value in zip(world.phrases.relations, person.values, strict=True)
            ]
            for person in world.people
        }

    def below(self, count: int) -> int:
        """A whole number from 0 to count - 1."""
        return int(self.random() * count)

    def pick(self, members: Sequence) -> object:
        """One of `members`."""
        return members[int(self.random() * len(members))]

    def several(self, members: Sequence[str], count: int) -> list[str]:
        """That many different ones of `members`, in random order."""
        chosen: list[str] = []
        while len(chosen) < count:
            member = members[int(self.random() * len(members))]
            if member not in chosen:
                chosen.append(member)
        return chosen

    def ranked(self, members: Sequence, ranked: Ranked) -> object:
        """One of `members` by its frequency."""
        cumulative = ranked.cumulative
        return members[bisect(cumulative, self.random() * cumulative[-1])]

    def person(self) -> Person:
        """A person by frequency."""
        return self.ranked(self.world.people, self.world.people_ranked)

    def article(self) -> str:
        """Three of a person's facts, in any order."""
        statements = self._statements[self.person().name]
        start, step = self.below(5), 1 + self.below(4)
        return self.phrases.space.join([self.pick(statements[(start + step * i) % 5]) for i in range(3)])

    def _asked_fact(self) -> tuple[Person, int]:
        """A person and the index of a relation that documents may ask for."""
        while True:
            person, index = self.person(), self.below(len(self.phrases.relations))
            if not self.world.fact_is_held_out(person, self.phrases.relations[index]):
                return person, index

    def fact_question(self) -> Question:
        """A question about a person that documents may ask."""
        person, index = self._asked_fact()
        return Question(self.phrases.relations[index].question.format(person=person.name), person.values[index])

    def options(self, right: str, members: Sequence[str]) -> tuple[list[str], int]:
        """The four neighbours in `members` of which `right` is one, from any of them on, and its place."""
        index = members.index(right)
        first = index // 4 * 4
        return rotated(members[first : first + 4], index - first, self.below(4))

    def exam_question(self, subject: int) -> Choice:
        """A question of the subject with this index: kinds of things, people, numbers."""
        return (self._about_things, self._about_people, self._about_numbers)[subject]()

    def _about_things(self) -> Choice:
        categories = self.phrases.categories
        key = self.pick(self._keys)
        question = self.pick(self.phrases.kind_questions).format(member=self.pick(self.world.nouns[key]))
        return Choice(question, *self.options(categories[key], list(categories.values())))

    def _about_people(self) -> Choice:
        person, index = self._asked_fact()
        relation = self.phrases.relations[index]
        options, gold = self.options(person.values[index], self.world.nouns[relation.category])
        return Choice(relation.question.format(person=person.name), options, gold)

    def _about_numbers(self) -> Choice:
        a, b = 1 + self.below(LARGEST_ASKED), 1 + self.below(LARGEST_ASKED)
        if self.random() < 0.5:
            question = self.phrases.sum_question.format(a=a, b=b)
        else:
            question = self.phrases.next_question.format(a=a + b - 1)
        return Choice(question, *self.options(str(a + b), _NUMBERS))

    def passage(self) -> Passage:
        """Two things put in two of four places."""
        things = self.several(self._things, 2)
        places = self.several(self.world.places, 2)
        names = self.several(self.world.short_names, 2)
        put = self.phrases.put
        text = self.phrases.space.join(
            [put.format(person=n, thing=t, place=p) for n, t, p in zip(names, things, places, strict=True)]
        )
        return Passage(text, things, places)

    def passage_question(self, passage: Passage) -> Choice:
        """Where one of the things of a passage is."""
        index = self.below(len(passage.things))
        question = self.phrases.where_question.format(thing=passage.things[index])
        return Choice(question, *self.options(passage.places[index], self.world.places))

    def event(self) -> Event:
        """An activity by its frequency."""
        activity = self.ranked(self.world.activities, self.world.activities_ranked)
        return Event(activity, self.pick(self.world.people).name, self.pick(self.phrases.activity_ends))

    def event_start(self, event: Event) -> str:
        """The label and the first two sentences."""
        it = event.activity
        return self.phrases.activity.format(activity=it.name, person=event.person, place=it.place, tool=it.tool)

    def event_product(self, event: Event, product: str) -> str:
        """The third sentence."""
        return self.phrases.activity_product.format(person=event.person, product=product)

    def event_text(self, event: Event) -> str:
        """The whole story."""
        sentences = (
            self.event_start(event),
            self.event_product(event, event.activity.product),
            event.end.format(person=event.person),
        )
        return self.phrases.space.join(sentences)

    def scene(self, people: bool = True) -> Scene:
        """Two nouns and a reason; with `people` also two persons."""
        kinds = self.phrases.coreferences
        kind = self.pick(kinds if people else [kind for kind in kinds if not kind.people])
        nouns = self.world.short_names if kind.people else self._scene_nouns
        first, second = self.several(nouns, 2)
        return Scene(kind, first, second, self.random() < 0.5)

    def scene_text(self, scene: Scene, noun: str) -> str:
        """The sentence with `noun` in front of the reason."""
        kind = scene.kind
        start = kind.scene.format(first=scene.first, second=scene.second)
        reason = kind.of_first if scene.of_first else kind.of_second
        return f"{start}{self.phrases.space}{noun}{self.phrases.space}{reason}"

    def problem(self) -> Problem:
        """A sum of two numbers, or of three."""
        phrases = self.phrases
        person, other = self.several(self.world.short_names, 2)
        thing = self.pick(self.world.nouns["fruit"])
        a, b = 1 + self.below(LARGEST), 1 + self.below(LARGEST)
        sentences = [
            phrases.problem_start.format(person=person, a=a, thing=thing),
            phrases.problem_more.format(person=person, other=other, b=b, thing=thing),
        ]
        steps, answer = f"{a} + {b} = {a + b}", a + b
        if self.random() < 0.5:
            c = 1 + self.below(min(LARGEST, answer - 1))
            sentences.append(phrases.problem_less.format(person=person, c=c, thing=thing))
            steps, answer = f"{steps}\n{answer} - {c} = {answer - c}", answer - c
        sentences.append(phrases.problem_question.format(person=person, thing=thing))
        return Problem(phrases.space.join(sentences), steps, answer)
