"""What tasks and languages are called in figures and in the report, and the order in which they appear."""

from __future__ import annotations

from collections.abc import Iterable

TASK_TITLES = {
    "triviaqa": "TriviaQA",
    "hellaswag": "HellaSwag",
    "race": "RACE",
    "winogrande": "WinoGrande",
    "nlpcc_kbqa": "NLPCC-KBQA",
    "clozet": "ClozeT",
    "c3": "C3",
    "cluewsc": "CLUEWSC",
    "mmlu": "MMLU",
    "ceval": "C-Eval",
    "gsm8k": "GSM8K",
    "gsm8k_zh": "GSM8K-Chinese",
    "word_unscramble": "Word unscramble",
    "modified_arithmetic": "Modified arithmetic",
    "ipa_transliterate": "IPA transliterate",
}
"""Titles of the paper's tasks, in the order of its Fig. 1 and 8; other tasks follow under their own names."""

LANGUAGE_TITLES = {"en": "English", "zh": "Chinese"}

METRIC_TITLES = {
    "acc": "accuracy",
    "acc_norm": "accuracy (by length)",
    "exact_match": "exact match",
    "reference_prob": "probability of the reference answer",
    "f1": "F1",
    "correct_choice_prob": "CorrectChoiceProb",
    "brier": "Brier score",
    "ece": "calibration error",
    "loglikelihood_per_token": "log-likelihood per token, right option",
    "loglikelihood_per_token_wrong": "log-likelihood per token, wrong options",
    "loglikelihood_per_character": "log-likelihood per character, right option",
    "loglikelihood_per_character_wrong": "log-likelihood per character, wrong options",
}


def task_title(task: str) -> str:
    """The published spelling of a task's name, or the name itself."""
    return TASK_TITLES.get(task, task)


def language_title(language: str) -> str:
    """`en` as English; an unknown code as itself."""
    return LANGUAGE_TITLES.get(language, language)


def metric_title(metric: str) -> str:
    """`acc` as accuracy; an unknown metric as itself."""
    return METRIC_TITLES.get(metric, metric.replace("_", " "))


def in_order(tasks: Iterable[str]) -> list[str]:
    """The distinct `tasks` in the order of the paper's Fig. 1, others behind them by name."""
    rank = {task: position for position, task in enumerate(TASK_TITLES)}
    # A column of half a million names knows its own few much faster.
    distinct = tasks.unique() if hasattr(tasks, "unique") else set(tasks)
    return sorted(distinct, key=lambda task: (rank.get(task, len(rank)), task))
