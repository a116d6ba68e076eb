"""The tasks as the harness's objects, the choice of rows, and one task's scores from a language model."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from emergence_eval.definitions import TASKS, TaskDefinition
from emergence_eval.fewshot import FittedTask, Window
from emergence_eval.metrics import LOWER_IS_BETTER, Score, calibration, choice_scores, reference_scores
from emergence_eval.readers.files import LETTERS
from emergence_eval.results import Metric, RowScore, TaskResult, mean_with_error

SAMPLE_SEED = "emergence"
"""Seeds the choice of rows under a row limit."""

Sample = dict[str, Any]
"""What the harness keeps of a row: `doc`, `doc_id`, `target`, `arguments`, `filtered_resps`, a value a metric."""


def load_tasks(definitions: Sequence[TaskDefinition], data: Path) -> dict[str, FittedTask]:
    """The harness's task objects, data read. Raises UserError for malformed data files."""
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata={"data": str(data)})
    return {d.name: manager.load([d.name])["tasks"][d.name] for d in definitions}


def sample_rows(name: str, available: int, limit: int | None) -> list[int]:
    """Indices of the rows to evaluate: all, or a random sample that depends on nothing but the task's name and
    its size (so that checkpoints are compared on the same rows); a smaller sample is part of a larger one."""
    indices = list(range(available))
    if limit is None or limit >= available:
        return indices
    random.Random(f"{SAMPLE_SEED} {name} {available}").shuffle(indices)
    return sorted(indices[:limit])


def evaluate_task(
    model: TemplateLM, task: FittedTask, definition: TaskDefinition, task_hash: str, key: str, limit: int | None
) -> tuple[TaskResult, list[RowScore]]:
    """Evaluate one task.

    Args:
        key: identifies the tokenizer; prompts are built once for each key and context length.
        limit: rows at most, see `sample_rows`; None for all.

    Returns:
        The task's result, and its rows under each metric: first all rows under the main one.
    """
    task.window = Window(model.tok_encode, model._encode_pair, model.max_length, f"{key} {model.max_length}")
    available = len(task.eval_docs)
    indices = sample_rows(definition.name, available, limit)
    task.config.num_fewshot = definition.num_fewshot
    task.set_fewshot_seed(0)
    with torch.inference_mode():
        output = evaluate(
            lm=model,
            task_dict={"tasks": {definition.name: task}, "groups": {}},
            samples={definition.name: indices},
            bootstrap_iters=0,
        )
        samples = sorted(output["samples"][definition.name], key=lambda sample: sample["doc_id"])
        is_open = task.OUTPUT_TYPE == "generate_until"
        scores = _open_scores(model, task, samples) if is_open else _choice_scores(model, task, samples)
    rows = _rows(definition, task, samples, scores)
    metrics = {name: _metric([score[name] for score in scores], name) for name in _names(definition, scores)}
    if not is_open:
        metrics["ece"] = _calibration(samples)
    # A model that has diverged, or an option that underflows, gives no number for some of them; rows tell which.
    metrics = {name: metric for name, metric in metrics.items() if metric is not None}
    result = TaskResult(
        language=definition.language,
        kind=definition.kind,
        prompting=definition.prompting,
        version=definition.version,
        task_hash=task_hash,
        num_fewshot=definition.num_fewshot,
        num_fewshot_used_mean=sum(task.examples_used) / len(samples),
        truncated_rows=sum(task.truncated),
        rows=len(samples),
        rows_available=available,
        chance=math.fsum(score[definition.metric].chance for score in scores) / len(scores),
        metrics=metrics,
    )
    return result, rows


def vocabulary_of(model: TemplateLM) -> int | None:
    """Entries of a language model's tokenizer, or None if it does not tell."""
    tokenizer = getattr(model, "tokenizer", None)
    return len(tokenizer) if hasattr(tokenizer, "__len__") else None


def _likelihoods(sample: Sample) -> list[float]:
    return [float(likelihood) for likelihood, _ in sample["filtered_resps"]]


def _num_tokens(task: FittedTask, pair: Sequence[str]) -> int:
    """Tokens of a continuation that are scored: at most a whole context."""
    return min(len(task.window.encode_pair(*pair)[1]), task.window.max_length)


def _choice_scores(model: TemplateLM, task: FittedTask, samples: Sequence[Sample]) -> list[dict[str, Score]]:
    delimiter = task.config.target_delimiter
    vocabulary = vocabulary_of(model)
    return [
        choice_scores(
            _likelihoods(sample),
            sample["doc"]["gold"],
            [len(continuation.removeprefix(delimiter)) for _, continuation in sample["arguments"]],
            [_num_tokens(task, pair) for pair in sample["arguments"]],
            vocabulary,
        )
        for sample in samples
    ]


def _open_scores(model: TemplateLM, task: FittedTask, samples: Sequence[Sample]) -> list[dict[str, Score]]:
    """The harness's scores of the generated answers, and those of the reference answer behind the same prompt: one
    request a row more."""
    pairs = [(sample["arguments"][0][0], task.reference(sample["doc"])) for sample in samples]
    requests = [
        Instance(request_type="loglikelihood", doc=sample["doc"], arguments=pair, idx=0, metadata=(None, i, 1))
        for i, (sample, pair) in enumerate(zip(samples, pairs, strict=True))
    ]
    likelihoods = model.loglikelihood(requests)
    vocabulary = vocabulary_of(model)
    names = list(task.aggregation())
    return [
        {name: Score(float(sample[name]), 0.0) for name in names}
        | reference_scores(float(likelihood), _num_tokens(task, pair), vocabulary)
        for sample, pair, (likelihood, _) in zip(samples, pairs, likelihoods, strict=True)
    ]


def _names(definition: TaskDefinition, scores: Sequence[dict[str, Score]]) -> list[str]:
    """The metrics, the task's main one first."""
    return list(dict.fromkeys([definition.metric, *scores[0]]))


def _metric(scores: Sequence[Score], name: str) -> Metric | None:
    values = [score.value for score in scores]
    if not all(map(math.isfinite, values)):
        return None
    value, stderr = mean_with_error(values)
    chance = math.fsum(score.chance for score in scores) / len(scores)
    return Metric(value, stderr, name not in LOWER_IS_BETTER, None if math.isnan(chance) else chance, len(scores))


def _calibration(samples: Sequence[Sample]) -> Metric | None:
    likelihoods = [_likelihoods(sample) for sample in samples]
    if any(math.isnan(value) for row in likelihoods for value in row):
        return None
    value, stderr = calibration(likelihoods, [sample["doc"]["gold"] for sample in samples])
    return Metric(value, stderr, higher_is_better=False, chance=0.0, rows=len(samples))


def _rows(
    definition: TaskDefinition, task: FittedTask, samples: Sequence[Sample], scores: Sequence[dict[str, Score]]
) -> list[RowScore]:
    rows = []
    answers = [_answer(task, sample) for sample in samples]
    for name in _names(definition, scores):
        for sample, (prediction, target), score, examples in zip(
            samples, answers, scores, task.examples_used, strict=True
        ):
            is_main = name == definition.metric and task.OUTPUT_TYPE != "generate_until"
            rows.append(
                RowScore(
                    task=definition.name,
                    row=sample["doc_id"],
                    metric=name,
                    value=score[name].value,
                    chance=score[name].chance,
                    prediction=prediction,
                    target=target,
                    loglikelihoods=_likelihoods(sample) if is_main else [],
                    num_fewshot_used=examples,
                )
            )
    return rows


def _answer(task: FittedTask, sample: Sample) -> tuple[str, str]:
    """What was answered and what was right: letters of options, or texts."""
    if task.OUTPUT_TYPE == "generate_until":
        target = sample["target"]
        return sample["filtered_resps"][0].strip(), target[0] if isinstance(target, list) else target
    likelihoods = _likelihoods(sample)
    return LETTERS[likelihoods.index(max(likelihoods))], LETTERS[sample["doc"]["gold"]]
