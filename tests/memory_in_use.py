"""What a trainer allocates on each rank, beside what `recipes.memory` predicts: a program, for tests and torchrun.

    torchrun --nproc-per-node 2 -m -- memory_in_use OUT GRID RUN "precision=bf16 tensor_parallel=2" "precision=fp32"

trains one step of RUN under each group of settings and writes OUT/<group>-<rank>.json.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from megatron.core import parallel_state

from recipes import cpu, memory
from recipes.distributed import process_groups
from recipes.grid import load_grid, override
from recipes.layout import data_parallel_size
from recipes.settings import RunSettings
from recipes.trainer import Trainer


class RandomTokens(torch.utils.data.Dataset):
    """Samples of random tokens, as `recipes.data` gives them."""

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings

    def __len__(self) -> int:
        return self.settings.global_batch_size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        length = self.settings.sequence_length
        generator = torch.Generator().manual_seed(index)
        tokens = torch.randint(self.settings.vocab_size, (length + 1,), generator=generator)
        return {
            "tokens": tokens[:-1],
            "labels": tokens[1:],
            "loss_mask": torch.ones(length),
            "position_ids": torch.arange(length),
        }


def storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Address and bytes of the memory behind tensors, shared memory once."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}


def optimizer_tensors(trainer: Trainer) -> list[torch.Tensor]:
    """Every tensor that the optimizers hold: parameters they step, and their states."""
    found = []
    for optimizer in getattr(trainer.optimizer, "chained_optimizers", [trainer.optimizer]):
        inner = optimizer.optimizer
        found += [parameter for group in inner.param_groups for parameter in group["params"]]
        found += [value for state in inner.state.values() for value in state.values() if torch.is_tensor(value)]
    return found


def measure(settings: RunSettings) -> dict[str, dict[str, int]]:
    """Bytes allocated and bytes predicted on this rank, after one step."""
    replicas = data_parallel_size(settings)
    with process_groups(settings):
        if cpu.has_gpu():
            torch.cuda.reset_peak_memory_stats()
        trainer = Trainer(settings)
        trainer.step(RandomTokens(settings), 1)
        weights = storages(p.data for module in trainer.modules for p in module.parameters())
        gradients = storages(buffer.grad_data for model in trainer.models for buffer in model.buffers)
        optimizer = storages(optimizer_tensors(trainer))
        stage = memory.stages(settings)[parallel_state.get_pipeline_model_parallel_rank()]
        measured = {
            "weights": sum(weights.values()),
            "gradients": sum(gradients.values()),
            "optimizer": sum(size for place, size in optimizer.items() if place not in weights | gradients),
        }
        if cpu.has_gpu():
            measured["total"] = torch.cuda.max_memory_allocated()
    predicted = memory.stage_memory(settings, stage, replicas)
    return {"measured": measured, "predicted": {**dict(predicted.items()), "total": predicted.total}}


def main(out: str, grid: str, run: str, *groups: str) -> None:
    """Measure each group of settings."""
    cpu.install()
    base = load_grid(grid).run(run).settings
    join = torch.distributed.init_process_group
    if "RANK" in os.environ:
        store, rank, size = next(iter(torch.distributed.rendezvous("env://")))
    for number, group in enumerate(groups):
        if "RANK" in os.environ:
            # Keys of its own for each group: torch numbers process groups anew, and finds those that have left.
            own = torch.distributed.PrefixStore(str(number), store)
            torch.distributed.init_process_group = partial(join, store=own, rank=rank, world_size=size)
        result = measure(override(base, group.split()))
        Path(out, f"{number}-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
