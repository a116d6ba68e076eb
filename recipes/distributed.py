"""The processes of a run: started by torchrun or alone, grouped into tensor, pipeline and data parallel ranks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed
from megatron.core import parallel_state, tensor_parallel

from recipes import cpu
from recipes.settings import RunSettings
from tokenizer.cli import UserError

_TIMEOUT = timedelta(minutes=30)


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


@contextmanager
def process_groups(settings: RunSettings) -> Iterator[None]:
    """Join the run's processes and build Megatron-Core's groups; leave them when the block ends."""
    data_parallel_size(settings)
    cpu.install()
    if cpu.has_gpu():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if world_size() == 1:
        # In memory: runs side by side on one machine need no port each.
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group(cpu.backend(), store=store, rank=0, world_size=1)
    else:
        torch.distributed.init_process_group(cpu.backend(), timeout=_TIMEOUT)
    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=settings.tensor_parallel,
            pipeline_model_parallel_size=settings.pipeline_parallel,
        )
        tensor_parallel.model_parallel_cuda_manual_seed(settings.seed)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


def is_first_rank() -> bool:
    """Whether this process is the one that writes the run's files."""
    return torch.distributed.get_rank() == 0


def from_first_rank(compute: Callable[[], int]) -> int:
    """A whole number that the first rank computes, on every rank."""
    value = torch.zeros(1, dtype=torch.int64, device=cpu.device())
    if is_first_rank():
        value += compute()
    torch.distributed.broadcast(value, 0)
    return int(value.item())
