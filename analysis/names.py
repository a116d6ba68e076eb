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
}
"""Titles of the paper's tasks, in the order of its Fig. 1; other tasks follow under their own names."""

LANGUAGE_TITLES = {"en": "English", "zh": "Chinese"}

METRIC_TITLES = {"acc": "accuracy", "exact_match": "exact match"}


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
    return sorted(set(tasks), key=lambda task: (rank.get(task, len(rank)), task))
