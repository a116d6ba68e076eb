"""Scores of generated answers, with each benchmark's own normalisation; the standard library, and sacrebleu for BLEU.

The functions named `score_*` are the `process_results` of the task YAML: they take a row and the generated texts
(one), and give `{"exact_match": 0.0 or 1.0, "f1": 0.0 to 1.0}`. F1 is SQuAD's, the overlap of words without their
order, the best over the accepted answers; of Chinese answers it is that of characters.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

_ENGLISH_PUNCTUATION = set(string.punctuation + "‘’´`")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
_PLAIN = str.maketrans({"，": " ", "、": " ", "−": "-", "–": "-", "﹣": "-"})
_INTEGER = re.compile(r"[-+]?\d+")


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
    """The last number of a text, or None. Thousands commas and full-width digits are understood; a Chinese comma
    separates two numbers."""
    found = _NUMBER.findall(unicodedata.normalize("NFKC", text.translate(_PLAIN)))
    if not found:
        return None
    try:
        return Decimal(found[-1].replace(",", ""))
    except InvalidOperation:
        return None


def squad_words(text: str) -> list[str]:
    """The words that SQuAD's evaluation compares (Rajpurkar et al. 2016): lower case, without punctuation and
    articles."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return [word for word in text.split() if word not in ("a", "an", "the")]


def f1(found: Sequence[str], reference: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over words (or characters), each as often as it occurs."""
    common = sum((Counter(found) & Counter(reference)).values())
    return 2 * common / (len(found) + len(reference)) if common else 0.0


def _scores(matches: bool, overlap: float) -> dict[str, float]:
    return {"exact_match": float(matches), "f1": overlap}


def score_triviaqa(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 if the normalised answer equals one of the normalised aliases."""
    answer = normalise_english(results[0])
    words = squad_words(results[0])
    # An alias such as "!" normalises to nothing; an empty answer is not right for that.
    return _scores(
        bool(answer) and answer in map(normalise_english, doc["answers"]),
        max(f1(words, squad_words(alias)) for alias in doc["answers"]),
    )


def score_nlpcc(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 if the normalised answer equals one of the normalised alternatives."""
    answer = normalise_chinese(results[0])
    accepted = list(map(normalise_chinese, doc["answers"]))
    return _scores(bool(answer) and answer in accepted, max(f1(answer, other) for other in accepted))


def _score_number(doc: dict[str, Any], text: str, overlap: float) -> dict[str, float]:
    number = last_number(text)
    return _scores(number is not None and number == last_number(doc["answer"]), overlap)


def score_gsm8k(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 if the last number of the solution is the answer, compared as numbers (18.00 is 18); F1 is that of the
    solution's words."""
    return _score_number(doc, results[0], f1(squad_words(results[0]), squad_words(doc["solution"])))


def score_gsm8k_zh(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """As `score_gsm8k`, with the characters of the solution. MGSM-zh has no worked solutions: there the reference
    is the sentence with the answer, and a worked solution has little precision."""
    overlap = f1(normalise_chinese(results[0]), normalise_chinese(doc["solution"]))
    return _score_number(doc, results[0], overlap)


def score_direct(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """As `score_gsm8k` where the answer alone is asked for; F1 is that of the digits."""
    return _score_number(doc, results[0], f1(normalise_chinese(results[0]), doc["answer"]))


def score_word(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """BIG-bench's exact_str_match: 1 if the answer is one of the targets; F1 is that of the letters."""
    answer = results[0].strip()
    return _scores(answer in doc["answers"], max(f1(answer, target) for target in doc["answers"]))


def score_arithmetic(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 if the first integer of the answer is the target, BIG-bench's exact_str_match after the task's
    `output_regex`; F1 is that of its digits."""
    found = _INTEGER.search(results[0])
    answer = found.group() if found else ""
    return _scores(answer in doc["answers"], max(f1(answer, target) for target in doc["answers"]))


def score_transliteration(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 if the sentence is the target; F1 is that of the words, `bleu` (0 to 1, BIG-bench's preferred metric, which
    takes it over the whole task) that of the sentence, with the smoothing and the tokens of BIG-bench."""
    import sacrebleu

    answer, (target,) = results[0].strip(), doc["answers"]
    bleu = sacrebleu.sentence_bleu(answer, [target], smooth_method="exp", tokenize="intl")
    scores = _scores(answer == target, f1(squad_words(answer), squad_words(target)))
    return scores | {"bleu": min(bleu.score / 100, 1.0)}
