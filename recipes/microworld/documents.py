"""Documents of a micro-world: endless streams, one a source, the same for the same seed on any machine.

A document is a few blocks of one kind, as a web page is. Blocks that are reserved for test items are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, permutations, product
from random import Random

from recipes.microworld.blocks import (
    Passage,
    asked_facts,
    event_product,
    events,
    exam_questions,
    exam_text,
    passages,
    place_choice,
    problems,
    scene_text,
    scenes,
)
from recipes.microworld.draws import Weighted, drawn, evenly
from recipes.microworld.world import World, frequency

SHARES: Mapping[str, float] = {
    "encyclopedia": 0.14,
    "stories": 0.20,
    "questions": 0.10,
    "examinations": 0.34,
    "problems": 0.12,
    "lists": 0.10,
}
"""Share of each source in the bytes of a language. *Ours*: the paper's sources are other ones."""

SUBJECT_SHARES = (0.3, 0.15, 0.15)
"""Share of the documents with an examination of each subject; the others have passages with questions."""

PRONOUNS_IN = "zh"
"""Language whose stories ask what a pronoun stands for, as its coreference task does; the other's repeat the noun."""


@dataclass(frozen=True)
class Kind:
    """Documents of one kind."""

    share: float
    """Of the source's documents."""
    count: int
    """Blocks in a document."""
    blocks: Iterator[str]
    """Without end."""
    joint: str = "\n\n"
    """Between two blocks."""
    header: str = ""


def documents(world: World, source: str) -> Iterator[str]:
    """The endless stream of documents of one source."""
    random = Random(f"documents-{world.seed}-{world.phrases.code}-{source}")
    for kind in drawn(random, [(kind, kind.share) for kind in _KINDS[source](world, random)]):
        yield kind.header + kind.joint.join(islice(kind.blocks, kind.count))


def _encyclopedia(world: World, random: Random) -> list[Kind]:
    return [
        Kind(0.85, 4, _articles(world, random), "\n"),
        Kind(0.15, 8, drawn(random, evenly(_kind_statements(world))), world.phrases.space),
    ]


def _articles(world: World, random: Random) -> Iterator[str]:
    """Three of a person's facts, in any order."""
    relations, space = world.phrases.relations, world.phrases.space
    said = [
        [
            statement.format(person=person.name, value=value)
            for relation, value in zip(relations, person.values, strict=True)
            for statement in relation.statements
        ]
        for person in world.people
    ]
    of = [index for index, relation in enumerate(relations) for _ in relation.statements]
    orders = [three for three in permutations(range(len(of)), 3) if len({of[index] for index in three}) == 3]
    people = drawn(random, ((statements, frequency(rank)) for rank, statements in enumerate(said, 1)))
    for statements, (one, two, three) in zip(people, drawn(random, evenly(orders)), strict=False):
        yield f"{statements[one]}{space}{statements[two]}{space}{statements[three]}"


def _kind_statements(world: World) -> Iterator[str]:
    for key, category in world.phrases.categories.items():
        for statement, member in product(world.phrases.kind_statements, world.nouns[key]):
            yield statement.format(member=member, category=category)


def _stories(world: World, random: Random) -> list[Kind]:
    phrases = world.phrases
    if phrases.code == PRONOUNS_IN:
        told = Kind(0.6, 4, drawn(random, evenly(_pronouns(world))))
    else:
        texts = ((scene_text(phrases, scene), weight) for scene, weight in scenes(world, people=True))
        told = Kind(0.6, 8, drawn(random, [it for it in texts if not world.is_held_out(it[0])]), "\n")
    return [Kind(0.4, 5, _events(world, random), "\n"), told]


def _events(world: World, random: Random) -> Iterator[str]:
    """Activities, with any last sentence."""
    phrases = world.phrases
    ends = {it.name: [end.format(person=it.name) for end in phrases.activity_ends] for it in world.people}
    begun = (
        ((phrases.space.join([event.start, event_product(phrases, event), ""]), ends[event.person]), weight)
        for event, weight in events(world)
        if not world.is_held_out(event.start)
    )
    which = drawn(random, evenly(range(len(phrases.activity_ends))))
    for (text, of_person), index in zip(drawn(random, begun), which, strict=False):
        yield f"{text}{of_person[index]}"


def _questions(world: World, random: Random) -> list[Kind]:
    asked = ((_answered(world, fact.question, fact.answer), weight) for fact, weight in asked_facts(world))
    return [Kind(0.6, 6, drawn(random, asked)), Kind(0.4, 3, _open_reading(world, random))]


def _answered(world: World, question: str, answer: str) -> str:
    return f"{world.phrases.question_frame.format(question=question)}{world.phrases.answer_space}{answer}"


def _told_passages(world: World, random: Random) -> Iterator[Passage]:
    return (passage for passage in passages(world, random) if not world.is_held_out(passage.text))


def _open_reading(world: World, random: Random) -> Iterator[str]:
    """Passages with questions whose answers are words."""
    where = world.phrases.where_question
    asked = {
        (thing, place): _answered(world, where.format(thing=thing), place)
        for thing, place in product(world.things, world.places)
    }
    for passage in _told_passages(world, random):
        here, there = passage.spots
        yield f"{passage.text}\n{asked[here]}\n{asked[there]}"


def _examinations(world: World, random: Random) -> list[Kind]:
    phrases = world.phrases
    headers = [phrases.exam_header.format(subject=name) + "\n\n" for name in phrases.subjects]
    exams = zip(SUBJECT_SHARES, headers, strict=True)
    return [
        *(Kind(it, 5, drawn(random, _exam(world, i)), header=header) for i, (it, header) in enumerate(exams)),
        Kind(1 - sum(SUBJECT_SHARES), 3, _reading_exam(world, random)),
    ]


def _exam(world: World, subject: int) -> Iterator[Weighted[str]]:
    for choice, weight in exam_questions(world, subject):
        text = exam_text(world.phrases, choice)
        if not world.is_held_out(text):
            yield f"{text}{world.phrases.answer_space}{choice.letter}", weight


def _reading_exam(world: World, random: Random) -> Iterator[str]:
    """Passages with a question and lettered options."""
    frame = f"{world.phrases.passage_frame}{world.phrases.answer_space}{{letter}}"
    asked = {}
    for thing, place in product(world.things, world.places):
        it = place_choice(world, thing, place)
        asked[thing, place] = frame.format(passage="%s", question=it.question, options=it.listed(), letter=it.letter)
    for passage, which in zip(_told_passages(world, random), drawn(random, evenly((0, 1))), strict=False):
        yield asked[passage.spots[which]] % passage.text


def _pronouns(world: World) -> Iterator[str]:
    """Sentences with a pronoun, and whether it stands for one of the nouns."""
    phrases = world.phrases
    for scene, _ in scenes(world, people=False):
        text = scene_text(phrases, scene, phrases.pronoun)
        if not world.is_held_out(text):
            for noun in (scene.first, scene.second):
                question = phrases.pronoun_question.format(pronoun=phrases.pronoun, noun=noun)
                answer = phrases.no_yes[(noun == scene.first) == scene.of_first]
                yield f"{text}\n{_answered(world, question, answer)}"


def _problems(world: World, random: Random) -> list[Kind]:
    return [Kind(1.0, 4, _problem_texts(world, random))]


def _problem_texts(world: World, random: Random) -> Iterator[str]:
    phrases = world.phrases
    frame = f"{phrases.problem_frame}{phrases.answer_space}{{steps}}\n{phrases.problem_answer}"
    gaps = frame.format(question="%s", steps="%s", answer="%d")
    for problem in problems(world, random):
        if not world.is_held_out(problem.question):
            yield gaps % (problem.question, problem.steps, problem.answer)


def _lists(world: World, random: Random) -> list[Kind]:
    return [Kind(0.3, 4, _category_lists(world, random), "\n"), Kind(0.7, 1, _refrains(world, random))]


def _category_lists(world: World, random: Random) -> Iterator[str]:
    """Four different members of a category."""
    phrases = world.phrases
    for key in drawn(random, evenly(phrases.categories)):
        members = ", ".join(random.sample(world.nouns[key], 4))
        yield phrases.list_line.format(category=phrases.categories[key], members=members)


def _refrains(world: World, random: Random) -> Iterator[str]:
    """A line of nouns, sung four times."""
    for length in drawn(random, evenly(range(5, 13))):
        line = world.phrases.space.join(random.choices(world.things, k=length))
        yield "\n".join([line] * 4)


_KINDS: Mapping[str, Callable[[World, Random], list[Kind]]] = {
    "encyclopedia": _encyclopedia,
    "stories": _stories,
    "questions": _questions,
    "examinations": _examinations,
    "problems": _problems,
    "lists": _lists,
}
