"""The tasks as the harness's objects, the choice of rows, and one task's scores from a language model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from emergence_eval.definitions import TASKS, TaskDefinition
from emergence_eval.fewshot import FittedTask, Window
from emergence_eval.readers.files import LETTERS
from emergence_eval.results import Metric, RowScore, TaskResult, mean_with_error

if TYPE_CHECKING:
    from emergence_eval.harness import CachedHFLM

SAMPLE_SEED = "emergence"
"""Seeds the choice of rows under a row limit."""


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
    model: CachedHFLM, task: FittedTask, definition: TaskDefinition, task_hash: str, key: str, limit: int | None
) -> tuple[TaskResult, list[RowScore]]:
    """Evaluate one task.

    Args:
        key: identifies the tokenizer; prompts are built once for each key and context length.
        limit: rows at most, see `sample_rows`; None for all.
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
    rows = [_row_score(definition, task, s, k) for s, k in zip(samples, task.examples_used, strict=True)]
    value, stderr = mean_with_error([row.value for row in rows])
    result = TaskResult(
        language=definition.language,
        kind=definition.kind,
        prompting=definition.prompting,
        version=definition.version,
        task_hash=task_hash,
        num_fewshot=definition.num_fewshot,
        num_fewshot_used_mean=sum(task.examples_used) / len(rows),
        truncated_rows=sum(task.truncated),
        rows=len(rows),
        rows_available=available,
        chance=sum(row.chance for row in rows) / len(rows),
        metrics={definition.metric: Metric(value, stderr, task.higher_is_better()[definition.metric])},
    )
    return result, rows


def _row_score(definition: TaskDefinition, task: FittedTask, sample: dict[str, Any], examples: int) -> RowScore:
    doc, responses = sample["doc"], sample["filtered_resps"]
    if task.OUTPUT_TYPE == "generate_until":
        target = sample["target"]
        likelihoods: list[float] = []
        prediction = responses[0].strip()
        target = target[0] if isinstance(target, list) else target
    else:
        likelihoods = [float(likelihood) for likelihood, _ in responses]
        prediction = LETTERS[likelihoods.index(max(likelihoods))]
        target = LETTERS[doc["gold"]]
    return RowScore(
        task=definition.name,
        row=sample["doc_id"],
        metric=definition.metric,
        value=float(sample[definition.metric]),
        chance=task.chance(doc),
        prediction=prediction,
        target=target,
        loglikelihoods=likelihoods,
        num_fewshot_used=examples,
    )
