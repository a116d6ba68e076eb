"""What every rank of several layouts is given, without their processes: prints it as JSON for test_data.py.

A rank is played by this process in a process group of torch's "fake" backend, which answers as if the others
were there. A process of its own because recipes.cpu must not be installed where other tests load transformers.

    python tests/recipes/data_layouts.py DATA
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed
from megatron.core import parallel_state
from torch.testing._internal.distributed.fake_pg import FakeStore

from recipes import cpu, encoded
from recipes.data import BlendedSamples, consumed, heldout_sets, micro_batches, training_set
from recipes.encoded import EncodedData
from recipes.grid import load_grid, override
from recipes.settings import RunSettings

LAYOUTS = {
    "one": (1, 16, 1, 1),
    "dp2": (2, 8, 1, 1),
    "dp2-micro2": (2, 2, 1, 1),
    "dp4-micro1": (4, 1, 1, 1),
    "tp2-dp2": (4, 4, 2, 1),
    "dp16": (16, 1, 1, 1),
    "cp2-dp2": (4, 8, 1, 2),
}
"""Processes, micro-batch size, tensor and context parallel size."""

STEPS = 4

WEIGHTS = ("source_weights.en.web=1", "source_weights.en.books=3")


@contextmanager
def rank_of(processes: int, rank: int, tensor: int = 1, context: int = 1) -> Iterator[None]:
    """Be one rank of a layout."""
    torch.distributed.init_process_group("fake", rank=rank, world_size=processes, store=FakeStore())
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor, context_parallel_size=context, create_gloo_process_groups=False
    )
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


def rows(batches: Iterator[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    return [
        {key: value[row] for key, value in batch.items()} for batch in batches for row in range(len(batch["tokens"]))
    ]


def unslice(parts: list[torch.Tensor]) -> torch.Tensor:
    """A sequence from the slices of its context-parallel ranks: rank r holds the pieces r and 2 size - r - 1."""
    pieces: dict[int, torch.Tensor] = {}
    for rank, part in enumerate(parts):
        pieces[rank], pieces[2 * len(parts) - rank - 1] = part.chunk(2)
    return torch.cat([pieces[place] for place in range(2 * len(parts))])


def given(data: EncodedData, settings: RunSettings, layout: str, known: dict[bytes, int]) -> list[list[int]]:
    """For each step the samples that the replicas of a layout get, by their place in the run."""
    processes, micro, tensor, context = LAYOUTS[layout]
    by_replica: dict[int, dict[tuple[int, int], list[list[torch.Tensor]]]] = {}
    for rank in range(processes):
        with rank_of(processes, rank, tensor, context):
            dataset = training_set(data, settings)
            place = (parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_context_parallel_rank())
            by_replica.setdefault(parallel_state.get_data_parallel_rank(), {})[place] = [
                [row["tokens"] for row in rows(micro_batches(dataset, step * 16, 16, micro))] for step in range(STEPS)
            ]
    steps = []
    for step in range(STEPS):
        found = []
        for ranks in by_replica.values():
            for tensor_rank in range(tensor):
                slices = [ranks[tensor_rank, context_rank][step] for context_rank in range(context)]
                samples = [known[unslice(list(parts)).numpy().tobytes()] for parts in zip(*slices, strict=True)]
                if tensor_rank == 0:
                    found += samples
                # Ranks of a replica must be given the same.
                assert found[-len(samples) :] == samples
        steps.append(sorted(found))
    return steps


def report(data: EncodedData, settings: RunSettings) -> dict:
    with rank_of(1, 0):
        dataset = training_set(data, settings)
        samples = [dataset[index]["tokens"].numpy().tobytes() for index in range(len(dataset))]
        known = {content: index for index, content in enumerate(samples)}
        result = {
            "samples": len(samples),
            "distinct": len(known),
            "content": [hash_of(samples), *(hash_of(held(it)) for it in heldout_sets(data, settings).values())],
            "heldout": {language: len(it) for language, it in heldout_sets(data, settings).items()},
            "consumed": {},
            "counted": {},
        }
        skipping = dataclasses.replace(settings, skip_steps=(2, 9))
        # Backwards too, for a run may fall back to an earlier checkpoint.
        for step in (3, 20, 1, 9):
            result["consumed"][step] = [dataclasses.astuple(it) for it in consumed(dataset, skipping, data, step)]
            result["counted"][step] = count(dataset, skipping, step)
        weighted = override(settings, WEIGHTS)
        result["weighted"] = [
            dataclasses.astuple(it) for it in consumed(training_set(data, weighted), weighted, data, 20)
        ]
    result["layouts"] = {layout: given(data, settings, layout, known) for layout in LAYOUTS}
    return result


def held(dataset: BlendedSamples) -> list[bytes]:
    return [dataset[index]["tokens"].numpy().tobytes() for index in range(len(dataset))]


def hash_of(samples: list[bytes]) -> str:
    return hashlib.sha256(b"".join(samples)).hexdigest()


def count(dataset: BlendedSamples, settings: RunSettings, step: int) -> list[list]:
    """The tokens of each source by looking at every sample of every step that is not skipped."""
    tokens = [0] * len(dataset.blend.sources)
    for done in range(1, step + 1):
        for index in range((done - 1) * 16, done * 16):
            if done not in settings.skip_steps:
                sample = dataset[index]
                tokens[int(sample["dataset_id"])] += len(sample["tokens"])
    return [[it.language, it.source, n] for it, n in zip(dataset.blend.sources, tokens, strict=True)]


def main() -> None:
    cpu.install()
    data = encoded.read_data(Path(sys.argv[1]))
    print(json.dumps(report(data, load_grid("smoke").run("large-40960").settings)))


if __name__ == "__main__":
    main()
