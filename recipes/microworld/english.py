"""The English-like language: English sentences around invented two-syllable nouns and names."""

from __future__ import annotations

from random import Random

from recipes.microworld.phrases import Coreference, Phrases, Relation

_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
_SHORT_NAMES = 24
_FAMILY_NAMES = 20


def _words(random: Random, count: int) -> list[str]:
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(random.choices(_SYLLABLES, k=2))] = None
    return list(words)


def _names(random: Random, count: int) -> tuple[list[str], list[str]]:
    words = [word.capitalize() for word in _words(random, _SHORT_NAMES + _FAMILY_NAMES)]
    short, family = words[:_SHORT_NAMES], words[_SHORT_NAMES:]
    full = [f"{first} {last}" for first in short for last in family]
    return random.sample(full, count), short


ENGLISH = Phrases(
    code="en",
    make_words=_words,
    make_names=_names,
    categories={
        "city": "city",
        "job": "job",
        "animal": "animal",
        "fruit": "fruit",
        "game": "game",
        "tool": "tool",
        "dish": "dish",
        "box": "box",
    },
    relations=(
        Relation(
            "city", ("{person} lives in {value}.", "{value} is the home of {person}."), "Where does {person} live?"
        ),
        Relation(
            "job", ("{person} works as a {value}.", "{person} is a good {value}."), "What is the job of {person}?"
        ),
        Relation(
            "animal", ("{person} has a {value}.", "{person} keeps a {value}."), "Which animal does {person} have?"
        ),
        Relation(
            "fruit", ("{person} likes to eat {value}.", "{person} eats {value}."), "Which fruit does {person} eat?"
        ),
        Relation(
            "game", ("{person} plays {value}.", "{person} often plays {value}."), "Which game does {person} play?"
        ),
    ),
    space=" ",
    kind_statements=("{member} is a kind of {category}.", "One {category} is {member}."),
    kind_questions=(
        "What kind of thing is {member}?",
        "To which kind belongs {member}?",
        "What is {member}?",
        "Of which kind is {member}?",
    ),
    subjects=("things", "people", "numbers"),
    sum_questions=(
        "What is {terms}?",
        "How much is {terms}?",
        "Which number is {terms}?",
        "What do we get from {terms}?",
    ),
    activity="{activity}: {person} goes to the {place}. {person} takes the {tool}.",
    activity_product="{person} makes {product}.",
    activity_ends=("{person} is glad.", "{person} goes home.", "Then {person} sleeps."),
    put="{person} puts the {thing} in the {place}.",
    where_question="Where is the {thing}?",
    coreferences=(
        Coreference("The {first} does not fit into the {second} because the", "is too big.", "is too small."),
        Coreference("The {first} breaks the {second} because the", "is too heavy.", "is too weak."),
        Coreference("The {first} does not catch the {second} because the", "is too slow.", "is too fast."),
        Coreference("{first} thanks {second} because", "got help.", "gave help.", people=True),
        Coreference("{first} pays {second} because", "wants to buy.", "wants to sell.", people=True),
    ),
    pronoun="it",
    pronoun_question="Does {pronoun} stand for {noun}?",
    no_yes=("no", "yes"),
    problem_start="{person} has {a} {thing}.",
    problem_more="{other} gives {person} {b} {thing}.",
    problem_less="{person} loses {c} {thing}.",
    problem_question="How many {thing} does {person} have?",
    problem_answer="The answer is {answer}.",
    exam_header="The following are multiple choice questions (with answers) about {subject}.",
    question_frame="Question: {question}\nAnswer:",
    choice_frame="{question}\n{options}\nAnswer:",
    passage_frame="Article: {passage}\nQuestion: {question}\n{options}\nAnswer:",
    problem_frame="Question: {question}\nAnswer:",
    answer_space=" ",
    list_line="{category} = [{members}]",
)
