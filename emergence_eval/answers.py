"""Exact match of generated answers, with each benchmark's own normalisation; the standard library only.

The functions named `score_*` are the `process_results` of the task YAML: they take a row and the generated
texts (one), and give `{"exact_match": 0.0 or 1.0}`.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

_ENGLISH_PUNCTUATION = set(string.punctuation + "‘’´`")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def normalise_english(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous spaces: TriviaQA's own `normalize_answer`
    (Joshi et al. 2017, evaluation/triviaqa_evaluation.py)."""
    text = text.replace("_", " ").lower()
    text = "".join(" " if character in _ENGLISH_PUNCTUATION else character for character in text)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def normalise_chinese(text: str) -> str:
    """Full-width forms to half-width (NFKC), lower case, without punctuation and white space of any script."""
    text = unicodedata.normalize("NFKC", text).lower()
    return "".join(c for c in text if not c.isspace() and unicodedata.category(c)[0] not in "PC")


def last_number(text: str) -> Decimal | None:
    """The last number of a text, thousands commas and full-width digits understood, or None."""
    found = _NUMBER.findall(unicodedata.normalize("NFKC", text))
    if not found:
        return None
    try:
        return Decimal(found[-1].replace(",", ""))
    except InvalidOperation:
        return None


def _exact_match(matches: bool) -> dict[str, float]:
    return {"exact_match": float(matches)}


def score_triviaqa(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 if the normalised answer equals one of the normalised aliases."""
    answer = normalise_english(results[0])
    # An alias such as "!" normalises to nothing; an empty answer is not right for that.
    return _exact_match(bool(answer) and answer in map(normalise_english, doc["answers"]))


def score_nlpcc(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 if the normalised answer equals one of the normalised alternatives."""
    answer = normalise_chinese(results[0])
    return _exact_match(bool(answer) and answer in map(normalise_chinese, doc["answers"]))


def score_gsm8k(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 if the last number of the solution is the answer, compared as numbers (18.00 is 18)."""
    number = last_number(results[0])
    return _exact_match(number is not None and number == last_number(doc["answer"]))
