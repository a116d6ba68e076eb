"""Exact match on worked examples."""

from __future__ import annotations

from decimal import Decimal

import pytest

from emergence_eval import answers


@pytest.mark.parametrize(
    ("answer", "accepted", "score"),
    [
        (" The Sunset Blvd.", ["Sunset Blvd"], 1),
        ("sunset_blvd", ["Sunset Blvd"], 1),
        ("Bob's", ["bob s"], 1),
        ("Harry Truman", ["Truman", "Harry S. Truman"], 0),
        ("an", ["the"], 0),
        ("", ["!"], 0),
        ("Zoë", ["zoë"], 1),
    ],
)
def test_triviaqa(answer, accepted, score):
    assert answers.score_triviaqa({"answers": accepted}, [answer]) == {"exact_match": score}


@pytest.mark.parametrize(
    ("answer", "accepted", "score"),
    [
        ("１７６ｃｍ。", ["176厘米", "176CM"], 1),
        ("《机械 设计基础》", ["机械设计基础"], 1),
        ("杨可桢,程光蕴", ["杨可桢，程光蕴"], 1),
        ("杨可桢", ["杨可桢，程光蕴"], 0),
        ("。", ["！"], 0),
    ],
)
def test_nlpcc(answer, accepted, score):
    assert answers.score_nlpcc({"answers": accepted}, [answer]) == {"exact_match": score}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7. The answer is 1,234.", "1234"),
        ("she pays $18.00", "18"),
        ("It is -5", "-5"),
        ("答案是 １２。", "12"),
        ("no number", None),
        ("1,2,3", "123"),
    ],
)
def test_last_number(text, number):
    assert answers.last_number(text) == (None if number is None else Decimal(number))


def test_gsm8k_compares_numbers():
    assert answers.score_gsm8k({"answer": "18"}, ["16 - 3 = 13\nThe answer is 18.00."]) == {"exact_match": 1}
    assert answers.score_gsm8k({"answer": "18"}, ["18 eggs are 3"]) == {"exact_match": 0}
    assert answers.score_gsm8k({"answer": "18"}, ["none"]) == {"exact_match": 0}
