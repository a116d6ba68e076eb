"""Layouts of the model in tests/recipes/layouts.yaml, and a program that trains many of them in one start.

Loading torch and Megatron-Core takes longer than training this model, so that the layouts of one number of
processes share their processes. Each is trained by `recipes.pretrain.main`, then once more from a copy that has
lost its last checkpoint, so that it resumes in the middle:

    torchrun --nproc-per-node 4 tests/layouts.py OUT DATA tp4 tp2-pp2

leaves OUT/full/<layout>/deep and OUT/resumed/<layout>/deep.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

GRID = Path(__file__).parent / "recipes" / "layouts.yaml"
RUN = "deep"


@dataclass(frozen=True)
class Layout:
    """How many processes train the model, with which settings."""

    processes: int
    settings: tuple[str, ...] = ()


def _layout(processes: int, settings: str = "") -> Layout:
    return Layout(processes, tuple(settings.split()))


FP32 = {
    "single": _layout(1),
    "recompute-mlp": _layout(1, "recompute=mlp"),
    "recompute-full": _layout(1, "recompute=full"),
    "distributed-optimizer-1": _layout(1, "distributed_optimizer=true"),
    "tp2": _layout(2, "tensor_parallel=2 micro_batch_size=8"),
    "tp2-sp": _layout(2, "tensor_parallel=2 sequence_parallel=true"),
    "tp2-sp-recompute": _layout(2, "tensor_parallel=2 sequence_parallel=true recompute=full micro_batch_size=8"),
    "pp2": _layout(2, "pipeline_parallel=2"),
    "pp2-uneven": _layout(2, "pipeline_parallel=2 first_stage_layers=3"),
    "pp2-embedding": _layout(2, "pipeline_parallel=2 embedding_and_loss_as_layers=true"),
    "pp2-virtual": _layout(2, "pipeline_parallel=2 virtual_pipeline_parallel=2"),
    "dp2": _layout(2),
    "dp2-distributed-optimizer": _layout(2, "distributed_optimizer=true"),
    "tp4": _layout(4, "tensor_parallel=4 micro_batch_size=8"),
    "tp4-sp": _layout(4, "tensor_parallel=4 sequence_parallel=true micro_batch_size=8"),
    "pp4": _layout(4, "pipeline_parallel=4"),
    "pp4-uneven": _layout(4, "pipeline_parallel=4 first_stage_layers=1 last_stage_layers=1"),
    "pp4-virtual": _layout(4, "pipeline_parallel=4 virtual_pipeline_parallel=2"),
    "tp2-pp2": _layout(4, "tensor_parallel=2 pipeline_parallel=2 micro_batch_size=4"),
    "tp2-pp2-sp-virtual": _layout(
        4, "tensor_parallel=2 pipeline_parallel=2 sequence_parallel=true virtual_pipeline_parallel=2 micro_batch_size=4"
    ),
    "tp2-dp2": _layout(4, "tensor_parallel=2 micro_batch_size=4"),
    "tp2-dp2-sp-distributed-optimizer": _layout(
        4, "tensor_parallel=2 sequence_parallel=true distributed_optimizer=true micro_batch_size=4"
    ),
    "pp2-dp2": _layout(4, "pipeline_parallel=2"),
    "pp2-dp2-virtual-distributed-optimizer": _layout(
        4, "pipeline_parallel=2 virtual_pipeline_parallel=2 distributed_optimizer=true"
    ),
}
"""Trained in fp32: tensor, pipeline and data parallel sizes 1, 2 and 4 on at most four processes. With four, and no
pipeline to fill, micro-batches are large: on two cores the processes wait long for each other."""

BF16 = {
    f"bf16-{name}": Layout(FP32[name].processes, (*FP32[name].settings, "precision=bf16"))
    for name in ("single", "tp2-sp", "pp2-virtual", "tp2-pp2", "pp2-dp2-virtual-distributed-optimizer")
}
"""Trained in bf16."""

LAYOUTS = FP32 | BF16


def command(out: Path, data: Path, names: list[str], processes: int) -> list[str]:
    """The command that trains layouts of one number of processes."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*start, str(Path(__file__).resolve()), str(out), str(data), *names]


@contextmanager
def _own_store(name: str) -> Iterator[None]:
    """Let each training meet under keys of its own: torch numbers its groups anew, and finds those that have left."""
    import torch.distributed as dist

    if "RANK" not in os.environ:
        yield
        return
    if not _stores:
        _stores.extend(next(iter(dist.rendezvous("env://"))))
    store, rank, size = _stores
    join = dist.init_process_group
    dist.init_process_group = partial(join, store=dist.PrefixStore(name, store), rank=rank, world_size=size)
    try:
        yield
    finally:
        dist.init_process_group = join


_stores: list = []


def _train(out: Path, data: Path, name: str) -> None:
    from recipes import pretrain

    argv = ["--grid", str(GRID), "--run", RUN, "--out", str(out), "--data", str(data), *LAYOUTS[name].settings]
    with _own_store(str(out)):
        assert pretrain.main(argv) == 0


def _forget_last_checkpoint(full: Path, resumed: Path) -> None:
    shutil.copytree(full, resumed)
    last = max((resumed / RUN / "checkpoints").glob("step_*"), key=lambda path: int(path.name.partition("_")[2]))
    shutil.rmtree(last)


def main(out: Path, data: Path, names: list[str]) -> None:
    """Train each layout whole, then its second half again."""
    for name in names:
        full, resumed = out / "full" / name, out / "resumed" / name
        _train(full, data, name)
        if os.environ.get("RANK", "0") == "0":
            _forget_last_checkpoint(full, resumed)
        _train(resumed, data, name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
