"""What the task YAML files say, read without the harness (which takes seconds to import).

python -c "from emergence_eval.definitions import load; print(load(['emergence_zh']))"
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from emergence_eval.readers.files import Reader
from tokenizer.cli import UserError

TASKS = Path(__file__).resolve().parent / "tasks"
"""The folder for lm_eval's --include_path."""

ALL = "emergence"
"""The group of the paper's tasks."""

SCORES = 2
"""Version of the metrics that a result holds; a change of them raises it, and tasks are evaluated again."""


class _Loader(yaml.SafeLoader):
    """YAML with the harness's `!function` tag kept as the dotted name."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


@dataclass(frozen=True)
class TaskDefinition:
    """One task's YAML file."""

    name: str
    version: int
    language: str
    """en or zh."""
    kind: str
    """The kind of task, as in Table 6 of Du et al. 2024."""
    prompting: str
    """zero-shot, few-shot or few-shot chain of thought."""
    num_fewshot: int
    metric: str
    reader: Reader
    yaml_sha256: str
    """Of the file and of those that it includes."""
    paper_rows: int | None = None
    """Rows that Du et al. evaluate; None for tasks that they do not have."""
    optional: bool = False
    """Whether a group may be evaluated without it where its data, which are hard to come by, are not at hand."""

    def task_hash(self, data: Path) -> str:
        """Identifies the task as evaluated (16 hexadecimal digits): its YAML, the metrics, and the names and sizes
        of the files that are read from `data`. Raises UserError if one of these is missing."""
        text = f"{self.yaml_sha256} {self.reader.fingerprint(data)} {SCORES}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
    """A YAML file with its includes merged in (its own keys win), and the bytes of all of them."""
    content = path.read_bytes()
    settings = yaml.load(content, Loader=_Loader)
    if "include" in settings:
        base, base_content = _read(path.parent / settings.pop("include"))
        settings, content = base | settings, base_content + content
    return settings, content


def _definition(settings: dict[str, Any], content: bytes) -> TaskDefinition:
    module, _, name = settings["custom_dataset"].rpartition(".")
    metadata = settings["metadata"]
    return TaskDefinition(
        name=settings["task"],
        version=metadata["version"],
        language=metadata["language"],
        kind=metadata["kind"],
        prompting=metadata["prompting"],
        num_fewshot=settings["num_fewshot"],
        metric=settings["metric_list"][0]["metric"],
        reader=getattr(importlib.import_module(module), name),
        yaml_sha256=hashlib.sha256(content).hexdigest(),
        paper_rows=metadata.get("paper_rows"),
        optional=metadata.get("optional", False),
    )


def _files() -> tuple[dict[str, TaskDefinition], dict[str, list[str]]]:
    tasks, groups = {}, {}
    for path in sorted(TASKS.glob("*.yaml")):
        settings, content = _read(path)
        if "group" in settings:
            groups[settings["group"]] = settings["task"]
        else:
            tasks[settings["task"]] = _definition(settings, content)
    return tasks, groups


def load(names: Sequence[str] = (ALL,), data: Path | None = None) -> list[TaskDefinition]:
    """The tasks of these names and groups, each once, in the order named.

    With `data`, the directory of the benchmark files, optional tasks of a group are left out if they have no files
    there (`left_out`); a task that is named itself is not. Raises UserError for a name that is neither task nor
    group, with all there are.
    """
    tasks = _expand(names)
    missing = _without_data(names, tasks, data) if data is not None else {}
    return [task for task in tasks if task.name not in missing]


def left_out(names: Sequence[str], data: Path) -> list[str]:
    """One line for each optional task that `load` leaves out: its name and what is missing."""
    return [f"{name} is left out: {cause}" for name, cause in _without_data(names, _expand(names), data).items()]


def _expand(names: Sequence[str]) -> list[TaskDefinition]:
    tasks, groups = _files()

    def expand(name: str) -> list[str]:
        if name in groups:
            return [task for member in groups[name] for task in expand(member)]
        if name not in tasks:
            raise UserError(
                f"unknown task {name!r}; tasks: {', '.join(sorted(tasks))}; groups: {', '.join(sorted(groups))}"
            )
        return [name]

    return [tasks[name] for name in dict.fromkeys(task for name in names for task in expand(name))]


def _without_data(names: Sequence[str], tasks: Sequence[TaskDefinition], data: Path) -> dict[str, str]:
    missing = {}
    for task in tasks:
        if task.optional and task.name not in names:
            try:
                task.reader.find(data)
            except UserError as error:
                missing[task.name] = str(error)
    return missing
