"""The numbers about a task beside accuracy and exact match; NumPy only.

A choice row has the log-likelihood of each option (nats, summed over its tokens), an open row that of a reference
answer. Each score of a row comes with its chance level: what a model scores that gives all options, or where
tokens are counted all entries of the vocabulary, the same probability.

    scores = choice_scores([-1.0, -2.0], gold=0, characters=[4, 4], tokens=[1, 2])
    scores["brier"].value, scores["brier"].chance
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LOWER_IS_BETTER = frozenset(("brier", "ece", "loglikelihood_per_token_wrong", "loglikelihood_per_character_wrong"))
"""Metrics of which a smaller value is the better one; of all others a larger one is."""

ECE_BINS = 10
"""Bins of equal width over the confidence, for `expected_calibration_error`."""

BOOTSTRAP_REPLICATES = 200
"""Samples drawn for the standard error of the calibration error."""


@dataclass(frozen=True)
class Score:
    """One row under one metric."""

    value: float
    chance: float
    """NaN where it is not known (the size of the vocabulary is not)."""


def probabilities(loglikelihoods: Sequence[float]) -> list[float]:
    """The probabilities of the options, renormalised over the options (Du et al. 2024, App. C); uniform if the
    model excludes every one of them, NaN if one of them is."""
    if any(map(math.isnan, loglikelihoods)):
        return [math.nan] * len(loglikelihoods)
    highest = max(loglikelihoods)
    if highest == -math.inf:
        return [1 / len(loglikelihoods)] * len(loglikelihoods)
    weights = [math.exp(value - highest) for value in loglikelihoods]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def choice_scores(
    loglikelihoods: Sequence[float],
    gold: int,
    characters: Sequence[int],
    tokens: Sequence[int],
    vocabulary: int | None = None,
) -> dict[str, Score]:
    """The scores of a row with options.

    Args:
        loglikelihoods: of each option, summed over its tokens, in nats.
        gold: index of the right option.
        characters: length of each option's text.
        tokens: length of each option as it was scored.
        vocabulary: entries of the tokenizer, for the chance level of the log-likelihoods.

    Returns:
        acc, acc_norm: whether the likeliest option is the right one, by the sum and by the sum per character;
        correct_choice_prob: probability of the right option (`probabilities`);
        brier: sum over the options of the squared difference between that and 1 or 0 (Du et al. 2024, App. C;
        0 to 2, uniform over four options 0.75, certain and wrong 2);
        loglikelihood_per_token, loglikelihood_per_character: of the right option, nats;
        the same with `_wrong`: mean over the wrong options.
    """
    options = len(loglikelihoods)
    lengths = [max(length, 1) for length in characters]
    counts = [max(count, 1) for count in tokens]
    given = probabilities(loglikelihoods)
    uniform = 1 / options
    per_character = [value / length for value, length in zip(loglikelihoods, lengths, strict=True)]
    per_token = [value / count for value, count in zip(loglikelihoods, counts, strict=True)]
    brier = math.fsum((probability - (i == gold)) ** 2 for i, probability in enumerate(given))
    of_one_token = -math.log(vocabulary) if vocabulary else math.nan
    scores = {
        "acc": Score(float(_first_of_highest(loglikelihoods) == gold), uniform),
        "acc_norm": Score(float(_first_of_highest(per_character) == gold), uniform),
        "correct_choice_prob": Score(given[gold], uniform),
        "brier": Score(brier, 1 - uniform),
    }
    chances = [of_one_token * count / length for count, length in zip(counts, lengths, strict=True)]
    for name, values, chance in (
        ("loglikelihood_per_token", per_token, [of_one_token] * options),
        ("loglikelihood_per_character", per_character, chances),
    ):
        scores[name] = Score(values[gold], chance[gold])
        if options > 1:
            scores[f"{name}_wrong"] = Score(_mean_without(values, gold), _mean_without(chance, gold))
    return scores


def _first_of_highest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _mean_without(values: Sequence[float], left_out: int) -> float:
    return math.fsum(value for i, value in enumerate(values) if i != left_out) / (len(values) - 1)


def reference_scores(loglikelihood: float, tokens: int, vocabulary: int | None = None) -> dict[str, Score]:
    """The scores of an open row's reference answer.

    Args:
        loglikelihood: of the whole answer, nats.
        tokens: its length as it was scored.
        vocabulary: entries of the tokenizer, for the chance level of the log-likelihood.

    Returns:
        reference_prob: the answer's probability, which is how often a model that is sampled gives it word for word:
        exact match without its threshold. Chance is taken as 0, as exact match's is, though it is vocabulary^-tokens;
        loglikelihood_per_token: nats.
    """
    return {
        "reference_prob": Score(math.exp(loglikelihood), 0.0),
        "loglikelihood_per_token": Score(
            loglikelihood / max(tokens, 1), -math.log(vocabulary) if vocabulary else math.nan
        ),
    }


def expected_calibration_error(confidences: Sequence[float], correct: Sequence[float], bins: int = ECE_BINS) -> float:
    """Mean distance between confidence and accuracy, over bins of equal width weighted by their rows (Naeini et
    al. 2015; Guo et al. 2017, eq. 3). The bins are (0, 1/bins], ..., (1 - 1/bins, 1].

    Args:
        confidences: the probability of each row's prediction.
        correct: 1 for each row whose prediction is right, else 0.
    """
    gaps = np.asarray(correct, dtype=float) - np.asarray(confidences, dtype=float)
    return float(np.abs(np.bincount(_bins(confidences, bins), gaps, minlength=bins)).sum() / len(gaps))


def _bins(confidences: Sequence[float], bins: int) -> np.ndarray:
    return np.clip(np.ceil(np.asarray(confidences, dtype=float) * bins).astype(int) - 1, 0, bins - 1)


def calibration(rows: Sequence[Sequence[float]], gold: Sequence[int]) -> tuple[float, float | None]:
    """Expected calibration error of a task and its standard error.

    The standard error is that of `BOOTSTRAP_REPLICATES` samples of the rows with replacement (a fixed seed), as the
    error is no mean over rows; None for one row. With few rows the error is biased upwards.

    Args:
        rows: log-likelihoods of the options of each row.
        gold: index of each row's right option.
    """
    given = [probabilities(row) for row in rows]
    confidences = np.array([max(p) for p in given])
    correct = np.array([float(_first_of_highest(p) == right) for p, right in zip(given, gold, strict=True)])
    value = expected_calibration_error(confidences, correct)
    if len(given) < 2:
        return value, None
    generator = np.random.default_rng(0)
    bins, gaps = _bins(confidences, ECE_BINS), correct - confidences
    replicates = []
    for _ in range(BOOTSTRAP_REPLICATES):
        drawn = generator.integers(len(gaps), size=len(gaps))
        sums = np.bincount(bins[drawn], gaps[drawn], minlength=ECE_BINS)
        replicates.append(np.abs(sums).sum() / len(gaps))
    return value, float(np.std(replicates, ddof=1))
