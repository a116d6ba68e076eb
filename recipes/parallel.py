"""The layout of a run over its processes: tensor x pipeline x data parallel, checked before anything starts."""

from __future__ import annotations

import os

from recipes.settings import RunSettings
from tokenizer.cli import UserError


def world_size() -> int:
    """Processes of this run, as torchrun says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def data_parallel_size(settings: RunSettings) -> int:
    """Replicas of the model over the run's processes. UserError if the layout does not fit them."""
    model_parallel = settings.tensor_parallel * settings.pipeline_parallel
    replicas, rest = divmod(world_size(), model_parallel)
    layout = f"tensor_parallel={settings.tensor_parallel} x pipeline_parallel={settings.pipeline_parallel}"
    if rest or not replicas:
        raise UserError(
            f"{world_size()} processes do not divide into {layout} = {model_parallel}; "
            f"start them with torchrun --nproc-per-node {model_parallel} or a multiple"
        )
    if settings.global_batch_size % (replicas * settings.micro_batch_size):
        raise UserError(
            f"global_batch_size {settings.global_batch_size} does not divide over {replicas} data-parallel replicas "
            f"x micro_batch_size {settings.micro_batch_size}; change one of them or the number of processes"
        )
    return replicas
