"""Layouts that the planner refused, and why; a layout in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from recipes.settings import RunSettings
from tokenizer.cli import UserError


@dataclass(frozen=True)
class Refusal:
    """Why layouts were refused: one reason, the layouts it holds for, one of them as an example."""

    reason: str
    layout: str
    count: int


class Refusals:
    """Reasons, each counted, in the order in which they were met."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, int]] = {}
        self._reasons: dict[tuple, str] = {}

    def add(self, reason: str, settings: RunSettings, more: str = "") -> None:
        """Note that a layout was refused for `reason`."""
        example, count = self._found.get(reason, ("", 0))
        self._found[reason] = example or describe(settings) + more, count + 1

    def add_from(self, check: Callable[[], object], key: tuple, settings: RunSettings) -> None:
        """Note what `check` says; it is asked once for layouts of the same `key`."""
        if key not in self._reasons:
            try:
                check()
            except UserError as error:
                self._reasons[key] = str(error)
        self.add(self._reasons[key], settings)

    def all(self) -> tuple[Refusal, ...]:
        """All of them."""
        return tuple(Refusal(reason, example, count) for reason, (example, count) in self._found.items())


class NoPlanError(UserError):
    """No layout of the run is legal and fits; `refusals` says why for each."""

    def __init__(self, message: str, refusals: tuple[Refusal, ...] = ()) -> None:
        super().__init__(message)
        self.refusals = refusals


def describe(settings: RunSettings) -> str:
    """A layout in short: ``TP 2 x PP 8 (5+8+5) x VP 2 x CP 2, micro-batch 2, full recompute``."""
    it = settings
    pipeline = f"PP {it.pipeline_parallel}"
    if it.first_stage_layers or it.last_stage_layers:
        middle = f"+{middle_layers(it)}" if it.pipeline_parallel > 2 else ""
        pipeline += f" ({it.first_stage_layers}{middle}+{it.last_stage_layers})"
    elif it.embedding_and_loss_as_layers:
        pipeline += " (ends one less)"
    parts = [f"TP {it.tensor_parallel}", pipeline]
    if it.virtual_pipeline_parallel > 1:
        parts.append(f"VP {it.virtual_pipeline_parallel}")
    if it.context_parallel > 1:
        parts.append(f"CP {it.context_parallel}")
    text = f"{' x '.join(parts)}, micro-batch {it.micro_batch_size}"
    return text if it.recompute == "none" else f"{text}, {it.recompute} recompute"


def middle_layers(settings: RunSettings) -> int:
    """Layers of a stage that is not an end one, embedding and loss counted as the settings say."""
    if settings.embedding_and_loss_as_layers:
        return (settings.num_layers + 2) // settings.pipeline_parallel
    if not settings.last_stage_layers:
        return settings.num_layers // settings.pipeline_parallel
    ends = settings.first_stage_layers + settings.last_stage_layers
    return (settings.num_layers - ends) // max(1, settings.pipeline_parallel - 2) or settings.last_stage_layers
