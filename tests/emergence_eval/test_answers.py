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
    assert answers.score_triviaqa({"answers": accepted}, [answer])["exact_match"] == score


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
    assert answers.score_nlpcc({"answers": accepted}, [answer])["exact_match"] == score


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7. The answer is 1,234.", "1234"),
        ("she pays $18.00", "18"),
        ("It is -5", "-5"),
        ("答案是 １２。", "12"),
        ("no number", None),
        ("1,2,3", "123"),
        ("他有 ３，４ 个", "4"),
        ("有 3、12 和 １，２３４ 个", "234"),
        ("−7.50", "-7.5"),
        ("一半是 ０．５。", "0.5"),
    ],
)
def test_last_number(text, number):
    assert answers.last_number(text) == (None if number is None else Decimal(number))


GSM8K = {"answer": "18", "solution": "16 - 3 = 13\nThe answer is 18."}


def test_gsm8k_compares_numbers():
    assert answers.score_gsm8k(GSM8K, ["16 - 3 = 13\nThe answer is 18.00."])["exact_match"] == 1
    assert answers.score_gsm8k(GSM8K, ["18 eggs are 3"])["exact_match"] == 0
    assert answers.score_gsm8k(GSM8K, ["none"])["exact_match"] == 0
    chinese = {"answer": "70000", "solution": "答案是 70000。"}
    assert answers.score_gsm8k_zh(chinese, ["答案是 ７０，０００"])["exact_match"] == 0
    assert answers.score_gsm8k_zh(chinese, ["答案是 ７００００。"]) == {"exact_match": 1, "f1": 1}


def test_f1_is_squad_s():
    """Two of three words found, two of four given: precision 2/3, recall 2/4."""
    assert answers.f1(["grand", "old", "duke"], ["the", "old", "duke", "york"]) == pytest.approx(4 / 7)
    assert answers.f1(["a", "a"], ["a"]) == pytest.approx(2 / 3)
    assert answers.f1([], []) == answers.f1([], ["a"]) == 0.0
    found = answers.score_triviaqa({"answers": ["Nothing", "The grand Duke, of York"]}, ["an old Duke of York!"])
    assert found == {"exact_match": 0.0, "f1": pytest.approx(6 / 8)}


def test_f1_of_chinese_is_of_characters():
    """三 of 张三 and of 三张 alike; punctuation and the accepted answer that fits worst do not count."""
    found = answers.score_nlpcc({"answers": ["王五", "张三丰"]}, ["《张三》"])
    assert found == {"exact_match": 0.0, "f1": pytest.approx(4 / 5)}


def test_answers_of_bigbench():
    assert answers.score_word({"answers": ["this", "hits"]}, [" hits "]) == {"exact_match": 1, "f1": 1}
    assert answers.score_word({"answers": ["this"]}, ["shit"]) == {"exact_match": 0, "f1": 1}
    assert answers.score_arithmetic({"answers": ["-332"]}, [" -332\n14"])["exact_match"] == 1
    assert answers.score_arithmetic({"answers": ["332"]}, ["about 332.5"])["exact_match"] == 1
    assert answers.score_arithmetic({"answers": ["332"]}, ["none"]) == {"exact_match": 0, "f1": 0}


def test_bleu_of_a_transliteration():
    doc = {"answers": ["They were unloaded but not sorted"]}
    assert answers.score_transliteration(doc, [" They were unloaded but not sorted "]) == {
        **dict.fromkeys(("exact_match", "f1"), 1.0),
        "bleu": pytest.approx(1.0),
    }
    assert 0 < answers.score_transliteration(doc, ["They were unloaded and sorted"])["bleu"] < 0.6
    assert answers.score_transliteration(doc, [""]) == {"exact_match": 0.0, "f1": 0.0, "bleu": 0.0}
