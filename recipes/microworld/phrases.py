"""What a language of the micro-world says: its sentences with gaps, and how its words are made.

The words are invented, so that nothing of the real world is known in advance; the frames around questions and answers
are those of `emergence_eval/tasks`, so that the documents show what an examination looks like, as the web does.
`english.py` and `chinese.py` fill this in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Relation:
    """One kind of fact about a person."""

    category: str
    """Category of its values."""
    statements: tuple[str, ...]
    """Ways to say it; gaps ``{person}`` and ``{value}``."""
    question: str
    """Gap ``{person}``."""


@dataclass(frozen=True)
class Coreference:
    """Two nouns and a reason that only one of them can have."""

    scene: str
    """Gaps ``{first}`` and ``{second}``; ends where the noun is said again."""
    of_first: str
    """What is true of the first noun, from behind it to the end of the sentence."""
    of_second: str
    """The same of the second noun."""
    people: bool = False
    """Whether the nouns are persons."""


@dataclass(frozen=True)
class Phrases:
    """A language: its words and its sentences. Gaps are Python's, ``{name}``."""

    code: str
    """en or zh: the language of the documents."""
    make_words: Callable[[Random, int], list[str]]
    """That many different common nouns."""
    make_names: Callable[[Random, int], tuple[list[str], list[str]]]
    """That many full names of persons, and the short names used in stories."""
    categories: Mapping[str, str]
    """Key of a category to the word for its members."""
    relations: tuple[Relation, ...]
    """The facts about a person."""
    space: str
    """Between two sentences."""

    kind_statements: tuple[str, ...]
    """Gaps ``{member}`` and ``{category}``."""
    kind_questions: tuple[str, ...]
    """Gap ``{member}``."""
    subjects: tuple[str, str, str]
    """Names of the examination's subjects: kinds of things, people, numbers."""
    sum_questions: tuple[str, ...]
    """Gap ``{terms}``."""

    activity: str
    """Gaps ``{activity}``, ``{person}``, ``{place}``, ``{tool}``: the label and the first two sentences."""
    activity_product: str
    """Gaps ``{person}`` and ``{product}``: the third sentence."""
    activity_ends: tuple[str, ...]
    """Gap ``{person}``: the last sentence, any of them."""
    put: str
    """Gaps ``{person}``, ``{thing}``, ``{place}``."""
    where_question: str
    """Gap ``{thing}``."""
    coreferences: tuple[Coreference, ...]
    """Sentences whose second half speaks of one of two nouns."""
    pronoun: str
    """Stands for either noun where the question is which."""
    pronoun_question: str
    """Gaps ``{pronoun}`` and ``{noun}``."""
    no_yes: tuple[str, str]
    """Its answers."""

    problem_start: str
    """Gaps ``{person}``, ``{a}``, ``{thing}``."""
    problem_more: str
    """Gaps ``{person}``, ``{other}``, ``{b}``, ``{thing}``: as many are added."""
    problem_less: str
    """Gaps ``{person}``, ``{c}``, ``{thing}``: as many are taken away."""
    problem_question: str
    """Gaps ``{person}`` and ``{thing}``."""
    problem_answer: str
    """Gap ``{answer}``: the line behind the worked steps."""

    exam_header: str
    """Gap ``{subject}``; as the task's description."""
    question_frame: str
    """Gap ``{question}``: an open question, up to its answer."""
    choice_frame: str
    """Gaps ``{question}`` and ``{options}``: a question with lettered options, up to its answer."""
    passage_frame: str
    """Gaps ``{passage}``, ``{question}``, ``{options}``."""
    problem_frame: str
    """Gap ``{question}``: a word problem, up to its worked steps."""
    answer_space: str
    """Between a frame and the answer."""
    list_line: str
    """Gaps ``{category}`` and ``{members}``: a list as in a program."""
