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
from recipes.layout import world_size
from recipes.settings import RunSettings
from tokenizer.cli import StartAgain, UserError

_TIMEOUT = timedelta(minutes=30)


@contextmanager
def process_groups(settings: RunSettings) -> Iterator[None]:
    """Join the run's processes and build Megatron-Core's groups; leave them when the block ends.

    Raises UserError if the port is in use, StartAgain if the processes do not meet.
    """
    cpu.install()
    if cpu.has_gpu():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if world_size() == 1:
        # In memory: runs side by side on one machine need no port each.
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group(cpu.backend(), store=store, rank=0, world_size=1)
    else:
        try:
            torch.distributed.init_process_group(cpu.backend(), timeout=_TIMEOUT)
        except torch.distributed.DistError as error:
            raise _cannot_meet(error) from None
    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=settings.tensor_parallel,
            pipeline_model_parallel_size=settings.pipeline_parallel,
            virtual_pipeline_model_parallel_size=(
                settings.virtual_pipeline_parallel if settings.virtual_pipeline_parallel > 1 else None
            ),
            context_parallel_size=settings.context_parallel,
        )
        tensor_parallel.model_parallel_cuda_manual_seed(settings.seed)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


def _cannot_meet(error: Exception) -> UserError | StartAgain:
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if "EADDRINUSE" in str(error):
        return UserError(f"port {port} of {address} is in use; give another MASTER_PORT (torchrun: --master-port)")
    reason = str(error).strip().splitlines()[0]
    return StartAgain(
        f"the processes cannot meet at {address}:{port} ({reason}); start all of them, on machines that reach it"
    )


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
