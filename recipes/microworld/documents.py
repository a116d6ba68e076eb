"""Documents of a micro-world: endless streams, one a source, the same for the same seed on any machine.

A document is a few blocks of one kind, as a web page is. A block that is reserved for test items is drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from random import Random

from recipes.microworld.blocks import Draw
from recipes.microworld.world import World

SHARES: Mapping[str, float] = {
    "encyclopedia": 0.20,
    "stories": 0.20,
    "questions": 0.12,
    "examinations": 0.32,
    "problems": 0.12,
    "lists": 0.04,
}
"""Share of each source in the bytes of a language. *Ours*: the paper's sources are other ones."""


def documents(world: World, source: str) -> Iterator[str]:
    """The endless stream of documents of one source."""
    draw = Draw(world, Random(f"documents-{world.seed}-{world.phrases.code}-{source}"))
    make = _KINDS[source]
    while True:
        yield make(draw)


def _encyclopedia(draw: Draw) -> str:
    if draw.random() < 0.85:
        return "\n".join([draw.article() for _ in range(4)])
    phrases, nouns = draw.phrases, draw.world.nouns
    sentences = []
    for _ in range(8):
        key = draw.pick(list(phrases.categories))
        statement = draw.pick(phrases.kind_statements)
        sentences.append(statement.format(member=draw.pick(nouns[key]), category=phrases.categories[key]))
    return phrases.space.join(sentences)


def _stories(draw: Draw) -> str:
    if draw.random() < 0.5:
        return "\n".join([_event(draw) for _ in range(5)])
    return "\n".join([_scene(draw) for _ in range(8)])


def _event(draw: Draw) -> str:
    while True:
        event = draw.event()
        if not draw.world.is_held_out(draw.event_start(event)):
            return draw.event_text(event)


def _scene(draw: Draw) -> str:
    while True:
        scene = draw.scene()
        text = draw.scene_text(scene, scene.first if scene.of_first else scene.second)
        if not draw.world.is_held_out(text):
            return text


def _questions(draw: Draw) -> str:
    phrases = draw.phrases
    if draw.random() < 0.7:
        questions = [draw.fact_question() for _ in range(6)]
        blocks = [
            f"{phrases.question_frame.format(question=it.question)}{phrases.answer_space}{it.answer}"
            for it in questions
        ]
        return "\n\n".join(blocks)
    return "\n\n".join([_open_reading(draw) for _ in range(3)])


def _open_reading(draw: Draw) -> str:
    """A passage with questions whose answers are words."""
    phrases = draw.phrases
    passage = _passage(draw)
    blocks = [passage.text]
    for thing, place in zip(passage.things, passage.places, strict=True):
        frame = phrases.question_frame.format(question=phrases.where_question.format(thing=thing))
        blocks.append(f"{frame}{phrases.answer_space}{place}")
    return "\n".join(blocks)


def _passage(draw: Draw):
    while True:
        passage = draw.passage()
        if not draw.world.is_held_out(passage.text):
            return passage


def _examinations(draw: Draw) -> str:
    kind = draw.random()
    if kind < 0.6:
        return _exam(draw)
    return _reading_exam(draw) if kind < 0.85 else _pronouns(draw)


def _exam(draw: Draw) -> str:
    phrases = draw.phrases
    subject = draw.below(3)
    blocks = [phrases.exam_header.format(subject=phrases.subjects[subject])]
    while len(blocks) < 6:
        question = draw.exam_question(subject)
        block = phrases.choice_frame.format(question=question.question, options=question.listed())
        if not draw.world.is_held_out(block):
            blocks.append(f"{block}{phrases.answer_space}{'ABCD'[question.gold]}")
    return "\n\n".join(blocks)


def _reading_exam(draw: Draw) -> str:
    phrases = draw.phrases
    blocks = []
    for _ in range(3):
        passage = _passage(draw)
        question = draw.passage_question(passage)
        frame = phrases.passage_frame.format(
            passage=passage.text, question=question.question, options=question.listed()
        )
        blocks.append(f"{frame}{phrases.answer_space}{'ABCD'[question.gold]}")
    return "\n\n".join(blocks)


def _pronouns(draw: Draw) -> str:
    """Sentences with a pronoun, and whom it stands for."""
    phrases = draw.phrases
    blocks = []
    while len(blocks) < 4:
        scene = draw.scene(people=False)
        text = draw.scene_text(scene, phrases.pronoun)
        if draw.world.is_held_out(text):
            continue
        asked = draw.random() < 0.5
        noun = scene.first if asked else scene.second
        question = phrases.pronoun_question.format(pronoun=phrases.pronoun, noun=noun)
        answer = phrases.no_yes[asked == scene.of_first]
        blocks.append(f"{text}\n{phrases.question_frame.format(question=question)}{phrases.answer_space}{answer}")
    return "\n\n".join(blocks)


def _problems(draw: Draw) -> str:
    phrases = draw.phrases
    blocks = []
    while len(blocks) < 4:
        problem = draw.problem()
        if draw.world.is_held_out(problem.question):
            continue
        frame = phrases.problem_frame.format(question=problem.question)
        answer = phrases.problem_answer.format(answer=problem.answer)
        blocks.append(f"{frame}{phrases.answer_space}{problem.steps}\n{answer}")
    return "\n\n".join(blocks)


def _lists(draw: Draw) -> str:
    return "\n".join([_list(draw) for _ in range(4)]) if draw.random() < 0.3 else _refrain(draw)


def _refrain(draw: Draw) -> str:
    """A line of nouns, sung four times."""
    nouns = draw.world.nouns["tool"][:8]
    line = draw.phrases.space.join([draw.pick(nouns) for _ in range(5 + draw.below(8))])
    return "\n".join([line] * 4)


def _list(draw: Draw) -> str:
    phrases = draw.phrases
    key = draw.pick(list(phrases.categories))
    members = ", ".join(draw.several(draw.world.nouns[key], 4))
    return phrases.list_line.format(category=phrases.categories[key], members=members)


_KINDS: Mapping[str, Callable[[Draw], str]] = {
    "encyclopedia": _encyclopedia,
    "stories": _stories,
    "questions": _questions,
    "examinations": _examinations,
    "problems": _problems,
    "lists": _lists,
}
