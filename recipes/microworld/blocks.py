"""The small texts that documents and test items are made of: facts, questions, activities, stories, sums.

Where a world has thousands of a kind, a function gives them all with their frequencies; where it has more, one draws
them without end. Documents leave out those that the world reserves for test items, and test items are made of no
others: the two share every word of code and no text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from random import Random

from recipes.microworld.draws import Weighted, drawn, evenly
from recipes.microworld.phrases import Coreference, Phrases
from recipes.microworld.world import Activity, World, frequency

LETTERS = "ABCD"
_NUMBERS = [str(number) for number in range(2, 10)]
"""Answers of an examination about numbers."""


@dataclass(frozen=True, slots=True)
class Fact:
    """An open question about a person with its answer."""

    question: str
    answer: str
    category: str
    """Category of which the answer is a member."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A question with lettered options."""

    question: str
    options: Sequence[str]
    gold: int
    """Index of the right option."""

    @property
    def letter(self) -> str:
        """The right option's."""
        return LETTERS[self.gold]

    def listed(self) -> str:
        """The options, a line each."""
        return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, self.options, strict=True))


@dataclass(frozen=True, slots=True)
class Event:
    """An activity of a person."""

    activity: Activity
    person: str
    start: str
    """The label and the first two sentences."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Two nouns and a reason that holds for one of them."""

    kind: Coreference
    first: str
    second: str
    of_first: bool
    """Whether the reason given is the first noun's."""


# Passages and problems are made one by one, and one that is not frozen in half the time.
@dataclass(slots=True)
class Passage:
    """A short story of who put what where."""

    text: str
    spots: tuple[tuple[str, str], ...]
    """Each thing and its place."""


@dataclass(slots=True)
class Problem:
    """A word problem, its worked steps and its number."""

    question: str
    steps: str
    answer: int


def facts(world: World) -> Iterator[Weighted[Fact]]:
    """All facts, by the frequencies of the people."""
    for rank, person in enumerate(world.people, 1):
        for relation, value in zip(world.phrases.relations, person.values, strict=True):
            yield Fact(relation.question.format(person=person.name), value, relation.category), frequency(rank)


def asked_facts(world: World) -> Iterator[Weighted[Fact]]:
    """The facts that documents ask for. They state the others, too."""
    return ((fact, weight) for fact, weight in facts(world) if not world.is_held_out(fact.question))


def choice(question: str, right: str, members: Sequence[str]) -> Choice:
    """The question with the four neighbours in `members` of which `right` is one, in their order: an option has the
    same letter wherever it stands, so that who knows the answer need not look for its letter."""
    first, gold = divmod(members.index(right), 4)
    return Choice(question, members[4 * first : 4 * first + 4], gold)


def exam_questions(world: World, subject: int) -> Iterator[Weighted[Choice]]:
    """All questions of the subject with this index: kinds of things, people, numbers."""
    return (_about_things, _about_people, _about_numbers)[subject](world)


def _about_things(world: World) -> Iterator[Weighted[Choice]]:
    categories = world.phrases.categories
    for key, category in categories.items():
        for member, question in product(world.nouns[key], world.phrases.kind_questions):
            yield choice(question.format(member=member), category, list(categories.values())), 1.0


def _about_people(world: World) -> Iterator[Weighted[Choice]]:
    for fact, weight in asked_facts(world):
        yield choice(fact.question, fact.answer, world.nouns[fact.category]), weight


def _about_numbers(world: World) -> Iterator[Weighted[Choice]]:
    """Sums and differences of two one-digit numbers, each result equally often."""
    terms: defaultdict[str, list[str]] = defaultdict(list)
    for a, b in product(range(1, 10), repeat=2):
        terms[str(a + b)].append(f"{a} + {b}")
        terms[str(a - b)].append(f"{a} - {b}")
    for result in _NUMBERS:
        for it, question in product(terms[result], world.phrases.sum_questions):
            yield choice(question.format(terms=it), result, _NUMBERS), 1 / len(terms[result])


def exam_text(phrases: Phrases, choice: Choice) -> str:
    """An examination's question up to its answer."""
    return phrases.choice_frame.format(question=choice.question, options=choice.listed())


def events(world: World) -> Iterator[Weighted[Event]]:
    """All activities of all people, by the frequencies of the activities."""
    for rank, activity in enumerate(world.activities, 1):
        for person in world.people:
            start = world.phrases.activity.format(
                activity=activity.name, person=person.name, place=activity.place, tool=activity.tool
            )
            yield Event(activity, person.name, start), frequency(rank)


def event_product(phrases: Phrases, event: Event, product: str | None = None) -> str:
    """The third sentence: what becomes of it, or `product` instead."""
    return phrases.activity_product.format(person=event.person, product=product or event.activity.product)


def scenes(world: World, people: bool) -> Iterator[Weighted[Scene]]:
    """All scenes, each kind equally often; with `people` also those of two persons."""
    for kind in world.phrases.coreferences:
        if people or not kind.people:
            pairs = list(permutations(world.short_names if kind.people else world.nouns["tool"], 2))
            for (first, second), of_first in product(pairs, (True, False)):
                yield Scene(kind, first, second, of_first), 1 / len(pairs)


def scene_text(phrases: Phrases, scene: Scene, noun: str | None = None) -> str:
    """The sentence with `noun` in front of the reason, or with the noun whose reason it is."""
    kind = scene.kind
    start = kind.scene.format(first=scene.first, second=scene.second)
    reason = kind.of_first if scene.of_first else kind.of_second
    noun = noun or (scene.first if scene.of_first else scene.second)
    return f"{start}{phrases.space}{noun}{phrases.space}{reason}"


def passages(world: World, random: Random) -> Iterator[Passage]:
    """Two persons put two things in two of four places."""
    space = world.phrases.space
    put = {
        (name, (thing, place)): world.phrases.put.format(person=name, thing=thing, place=place)
        for name, thing, place in product(world.short_names, world.things, world.places)
    }
    spots = [
        tuple(zip(two, places, strict=True))
        for two, places in product(permutations(world.things, 2), permutations(world.places, 2))
    ]
    names = drawn(random, evenly(permutations(world.short_names, 2)))
    for (one, other), (here, there) in zip(names, drawn(random, evenly(spots)), strict=False):
        yield Passage(f"{put[one, here]}{space}{put[other, there]}", (here, there))


def place_choice(world: World, thing: str, place: str) -> Choice:
    """Where the thing is."""
    return choice(world.phrases.where_question.format(thing=thing), place, world.places)


def problems(world: World, random: Random) -> Iterator[Problem]:
    """Sums of two numbers and, equally often, of three."""
    people = permutations(world.short_names, 2)
    stories = [_problem_stories(world.phrases, *it, thing) for it, thing in product(people, world.nouns["fruit"])]
    for two_and_three, it in zip(drawn(random, evenly(stories)), _sums(random), strict=False):
        yield Problem(two_and_three[len(it.terms) - 2] % it.terms, it.steps, it.answer)


def _problem_stories(phrases: Phrases, person: str, other: str, thing: str) -> tuple[str, str]:
    """A story of two numbers and one of three, with gaps of `%`, which fills them much faster than `format`."""
    start = phrases.problem_start.format(person=person, a="%d", thing=thing)
    more = phrases.problem_more.format(person=person, other=other, b="%d", thing=thing)
    less = phrases.problem_less.format(person=person, c="%d", thing=thing)
    question = phrases.problem_question.format(person=person, thing=thing)
    return phrases.space.join([start, more, question]), phrases.space.join([start, more, less, question])


@dataclass(frozen=True)
class _Sum:
    terms: tuple[int, ...]
    """Two to add and perhaps one to take away."""
    steps: str
    answer: int


def _sums(random: Random) -> Iterator[_Sum]:
    """A two-digit number and a one-digit one, added without a carry, and perhaps another taken away. No answer is
    likely enough to be guessed; who copies the tens and knows the sums of one-digit numbers is right."""
    pairs = [(a, b) for a in range(1, 9) for b in range(1, 10 - a)]
    for (one, b), ten in zip(drawn(random, evenly(pairs)), drawn(random, evenly(range(10, 100, 10))), strict=False):
        a, both = ten + one, ten + one + b
        step = f"{a} + {b} = {both}"
        if random.random() < 0.5:
            yield _Sum((a, b), step, both)
        else:
            c = random.randrange(1, one + b + 1)
            yield _Sum((a, b, c), f"{step}\n{both} - {c} = {both - c}", both - c)
