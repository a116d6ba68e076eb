"""What NeMo does otherwise than `recipes.pretrain`, put right: when checkpoints are saved, and the learning rate.

Both are the trainer's callbacks, which NeMo does not need to read a checkpoint, so that one can be used where this
repository is not. Imports NeMo: `recipes.nemo` imports this where it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback
from nemo.lightning import ModelCheckpoint


class CheckpointAtSteps(ModelCheckpoint):
    """Saves after each of `steps`, which need not lie evenly, as `dirpath/step_<n>`; all are kept with their
    optimizer state. The link `step_<n>-last` is where NeMo's AutoResume goes on."""

    def __init__(self, steps: Sequence[int], dirpath: str) -> None:
        self.steps = tuple(steps)
        super().__init__(
            dirpath=dirpath,
            filename="step_{step}",
            auto_insert_metric_name=False,
            monitor=None,
            save_top_k=-1,
            save_last="link",
            every_n_train_steps=1,
            save_optim_on_train_end=True,
        )

    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        """Save if this was one of the steps."""
        if trainer.global_step in self.steps:
            super().on_train_batch_end(trainer, *arguments)

    def _monitor_candidates(self, trainer: Any) -> dict[str, torch.Tensor]:
        # NeMo logs the steps before the last one as `step` and would name the checkpoint after them.
        return super()._monitor_candidates(trainer) | {"step": torch.tensor(trainer.global_step)}


class StepsFromOne(Callback):
    """Lets NeMo's cosine reach its minimum at the last step, as Megatron-Core's does.

    NeMo counts steps from 0 and gives its scheduler the run's number of steps, so that the minimum would be that
    of the step after the last one.
    """

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Correct the scheduler, and the learning rate of the step to come."""
        for entry in trainer.lr_scheduler_configs:
            scheduler = entry.scheduler
            scheduler.max_steps = trainer.max_steps - 1
            for group, rate in zip(scheduler.optimizer.param_groups, scheduler.get_lr(), strict=True):
                group["lr"] = rate
