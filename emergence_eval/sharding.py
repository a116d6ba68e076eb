"""Several processes as one language model: each answers its share of the requests, and all get all answers.

    torchrun --nproc-per-node 2 emergence_eval/run.py ...

Only small Python objects pass between the processes, through gloo, so that this works with and without GPUs.
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    """Among those of the same machine: which GPU is this one's."""

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def gather(self, part: T) -> list[T]:
        """What every process gave, in the order of ranks; all must call it."""
        if self.count == 1:
            return [part]
        import torch.distributed as dist

        parts: list[Any] = [None] * self.count
        dist.all_gather_object(parts, part)
        return parts

    def of_first(self, value: T) -> T:
        """What the first process gave; all must call it."""
        if self.count == 1:
            return value
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def device(self) -> str:
        """This process's device: a GPU of its own where there are GPUs."""
        import torch

        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return f"cuda:{self.local_rank % gpus}" if gpus else "cpu"


def start() -> Processes:
    """Meet the other processes that torchrun started, if any; call `finish` at the end."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Processes()
    import torch.distributed as dist

    if not dist.is_initialized():
        # Others wait while the first converts, or watches a run; if one dies, torchrun ends them all.
        dist.init_process_group("gloo", timeout=datetime.timedelta(days=30))
    return Processes(dist.get_rank(), count, int(os.environ.get("LOCAL_RANK", "0")))


def finish() -> None:
    """Leave the group of processes; harmless where there is none."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()
