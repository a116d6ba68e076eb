"""The data of a run: Megatron-Core's blend of the encoded sources, and the held-out sample.

Sources are weighted by their tokens within a language, languages by the run's mixture (the paper's 4:1). A
sample's place in the run depends on the seed and the step alone, so that a resumed run sees each sample once
and another number of data-parallel replicas sees the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from recipes import cpu
from recipes.encoded import EncodedData, Source
from recipes.settings import RunSettings

HELDOUT_SEED = 2403
"""Seed of the held-out sample: one for every run, so that their losses compare."""

_NO_CACHE = ""
"""Megatron-Core's index cache is built in memory: a file half written by a killed run would be read as whole."""


@dataclass(frozen=True)
class _Ids:
    """What GPTDataset asks of its tokenizer."""

    eod: int
    pad: int
    vocab_size: int
    unique_identifiers: dict


def _build(
    data: EncodedData, sources: list[Source], weights: list[float], split: int, samples: int, length: int, seed: int
) -> torch.utils.data.Dataset:
    blend: list = [None, None, None]
    blend[split] = ([str(it.prefix) for it in sources], weights)
    config = GPTDatasetConfig(
        random_seed=seed,
        sequence_length=length,
        blend_per_split=blend,
        path_to_cache=_NO_CACHE,
        tokenizer=_Ids(data.eod_id, data.pad_id, data.vocab_size, {"sha256": data.tokenizer_sha256}),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    sizes: list = [None, None, None]
    sizes[split] = samples
    return BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()[split]


def training_set(data: EncodedData, settings: RunSettings) -> torch.utils.data.Dataset:
    """The blend that the run reads from its first step to its last, in order."""
    sources, weights = [], []
    total = sum(settings.languages.values())
    for language, ratio in settings.languages.items():
        found = data.select(language, "train")
        tokens = sum(it.tokens for it in found)
        sources += found
        weights += [ratio / total * it.tokens / tokens for it in found]
    samples = settings.num_steps * settings.global_batch_size
    return _build(data, sources, weights, 0, samples, settings.sequence_length, settings.seed)


def heldout_sets(data: EncodedData, settings: RunSettings) -> dict[str, torch.utils.data.Dataset]:
    """The fixed held-out sample of each language: at most `heldout_sequences`, no token twice."""
    sets = {}
    for language in settings.languages:
        found = data.select(language, "heldout")
        tokens = sum(it.tokens for it in found)
        samples = data.heldout_samples(language, settings)
        weights = [it.tokens / tokens for it in found]
        sets[language] = _build(data, found, weights, 1, samples, settings.sequence_length, HELDOUT_SEED)
    return sets


def micro_batches(
    dataset: torch.utils.data.Dataset, first: int, count: int, micro_batch_size: int
) -> Iterator[dict[str, torch.Tensor]]:
    """This replica's share of the samples ``first`` to ``first + count``, in micro-batches.

    Each is a dict of [micro_batch_size, sequence_length] tensors: tokens, labels, loss_mask, position_ids.
    Samples beyond the end of the dataset stand in with a loss mask of zeros, so that every replica takes part.
    """
    replica = parallel_state.get_data_parallel_rank()
    replicas = parallel_state.get_data_parallel_world_size()
    for start in range(first + replica * micro_batch_size, first + count, replicas * micro_batch_size):
        samples = [_sample(dataset, index) for index in range(start, start + micro_batch_size)]
        yield {key: torch.stack([sample[key] for sample in samples]).to(cpu.device()) for key in samples[0]}


def _sample(dataset: torch.utils.data.Dataset, index: int) -> dict[str, torch.Tensor]:
    sample = dataset[min(index, len(dataset) - 1)]
    kept = {key: torch.as_tensor(sample[key]) for key in ("tokens", "labels", "loss_mask", "position_ids")}
    if index >= len(dataset):
        kept["loss_mask"] = torch.zeros_like(kept["loss_mask"])
    return kept
