"""The data of a run: Megatron-Core's blend of the encoded sources, and the held-out sample.

`recipes.mixture` says which sources in which shares. A sample's place in the run depends on the seed and the
step alone, so that a resumed run sees each sample once and another number of data-parallel replicas, or
another micro-batch size, sees the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from megatron.core import parallel_state
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.utils import get_batch_on_this_cp_rank

from recipes import cpu, mixture
from recipes.encoded import EncodedData
from recipes.index import find
from recipes.mixture import Blend
from recipes.settings import RunSettings

_SPLITS = {"train": 0, "heldout": 1}
_IN_MEMORY = ""
"""Instead of a directory of index files: Megatron-Core then builds the index in memory. Left to write its own
files, it would read one half written by a killed run as whole."""

_COUNTED_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class _Ids:
    """What GPTDataset asks of its tokenizer."""

    eod: int
    pad: int
    vocab_size: int
    unique_identifiers: dict


@dataclass(frozen=True)
class SourceTokens:
    """Tokens of one source that a run has trained on."""

    language: str
    source: str
    tokens: int


@dataclass
class _Config(GPTDatasetConfig):
    """Megatron-Core's settings of a dataset, and where the prefixes, which are relative, lie: the names of the index
    files are hashes of the prefixes, and the data may be moved."""

    directory: Path = Path()
    advance: Callable[[int], None] | None = None
    """Told of the samples of each source that has been indexed."""


class _SourceSamples(GPTDataset):
    """The samples of one source."""

    def __init__(self, *arguments: object):
        super().__init__(*arguments)
        if self.config.advance is not None:
            self.config.advance(self.num_samples)

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: _Config) -> IndexedDataset:
        return GPTDataset.build_low_level_dataset(str(config.directory / dataset_path), config)


class BlendedSamples(torch.utils.data.Dataset):
    """Megatron-Core's dataset of a blend, which also knows where its samples come from.

    The index that `recipes.index_cache` has built is mapped into memory; without one it is built there.
    """

    def __init__(self, data: EncodedData, blend: Blend):
        self.blend = blend
        index = find(data, blend)
        self._samples = _build(data, blend, str(index) if index else _IN_MEMORY)
        self._counted = 0
        self._counts = numpy.zeros(len(blend.sources), dtype=numpy.int64)

    def __len__(self) -> int:
        # Of a single source Megatron-Core gives all whole epochs, more than was asked for.
        return len(self._samples) if isinstance(self._samples, BlendedDataset) else self.blend.samples

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self._samples[index]

    def count_sources(self, first: int, last: int) -> numpy.ndarray:
        """Samples of each source, in the blend's order, among the samples from `first` to before `last`: [sources]."""
        if not isinstance(self._samples, BlendedDataset):
            return numpy.array([last - first], dtype=numpy.int64)
        counts = numpy.zeros(len(self.blend.sources), dtype=numpy.int64)
        for start in range(first, last, _COUNTED_AT_ONCE):
            part = self._samples.dataset_index[start : min(start + _COUNTED_AT_ONCE, last)]
            counts += numpy.bincount(part, minlength=len(counts))
        return counts

    def count_sources_until(self, last: int) -> numpy.ndarray:
        """`count_sources` from the first sample, at the cost of what is new since the last call."""
        if last < self._counted:
            self._counted, self._counts = 0, numpy.zeros_like(self._counts)
        self._counts = self._counts + self.count_sources(self._counted, last)
        self._counted = last
        return self._counts


def write_index(data: EncodedData, blend: Blend, directory: Path, advance: Callable[[int], None]) -> None:
    """Write Megatron-Core's index files of a blend into an empty directory, telling `advance` of the samples of each
    source that is done. Needs a process group."""
    _build(data, blend, str(directory), advance)


def _build(
    data: EncodedData, blend: Blend, cache: str, advance: Callable[[int], None] | None = None
) -> torch.utils.data.Dataset:
    split = _SPLITS[blend.split]
    prefixes: list = [None, None, None]
    prefixes[split] = ([it.prefix.relative_to(data.directory).as_posix() for it in blend.sources], list(blend.weights))
    config = _Config(
        directory=data.directory,
        advance=advance,
        random_seed=blend.seed,
        sequence_length=blend.sequence_length,
        blend_per_split=prefixes,
        path_to_cache=cache,
        tokenizer=_Ids(data.eod_id, data.pad_id, data.vocab_size, {"sha256": data.tokenizer_sha256}),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    sizes: list = [None, None, None]
    sizes[split] = blend.samples
    return BlendedMegatronDatasetBuilder(_SourceSamples, sizes, lambda: True, config).build()[split]


def training_set(data: EncodedData, settings: RunSettings) -> BlendedSamples:
    """The blend that the run reads from its first step to its last, in order."""
    return BlendedSamples(data, mixture.training_blend(data, settings))


def heldout_sets(data: EncodedData, settings: RunSettings) -> dict[str, BlendedSamples]:
    """The fixed held-out sample of each language: `heldout_sequences`, or as many as there are."""
    return {
        language: BlendedSamples(data, mixture.heldout_blend(data, settings, language))
        for language in settings.languages
    }


def consumed(dataset: BlendedSamples, settings: RunSettings, data: EncodedData, step: int) -> list[SourceTokens]:
    """The tokens of each source that the run has trained on after `step` steps, exactly: the samples of the steps
    that were not skipped, counted in the blend's index."""
    batch = settings.global_batch_size
    counts = dataset.count_sources_until(step * batch).copy()
    for skipped in {it for it in settings.skip_steps if it <= step}:
        counts -= dataset.count_sources((skipped - 1) * batch, skipped * batch)
    return [
        SourceTokens(it.language, it.source, int(count) * settings.sequence_length)
        for it, count in zip(dataset.blend.sources, counts, strict=True)
    ]


def micro_batch_samples(first: int, count: int, micro_batch_size: int, replica: int, replicas: int) -> Iterator[range]:
    """The samples of each micro-batch that a replica takes of the global batch ``first`` to ``first + count``.

    Micro-batches are dealt to the replicas in turn, so that all replicas together take every sample once.
    """
    for start in range(first + replica * micro_batch_size, first + count, replicas * micro_batch_size):
        yield range(start, start + micro_batch_size)


def micro_batches(
    dataset: torch.utils.data.Dataset, first: int, count: int, micro_batch_size: int
) -> Iterator[dict[str, torch.Tensor]]:
    """This replica's share of the samples ``first`` to ``first + count``, in micro-batches.

    Each is a dict of [micro_batch_size, sequence_length] tensors: tokens, labels, loss_mask, position_ids. With
    context parallelism each rank gets two slices of every sequence, sequence_length / context_parallel in all,
    as Megatron-Core shares causal attention out. Samples beyond the end of the dataset stand in with a loss mask
    of zeros, so that every replica takes part.
    """
    replica = parallel_state.get_data_parallel_rank()
    replicas = parallel_state.get_data_parallel_world_size()
    for indices in micro_batch_samples(first, count, micro_batch_size, replica, replicas):
        samples = [_sample(dataset, index) for index in indices]
        batch = {key: torch.stack([sample[key] for sample in samples]).to(cpu.device()) for key in samples[0]}
        yield get_batch_on_this_cp_rank(batch)


def _sample(dataset: torch.utils.data.Dataset, index: int) -> dict[str, torch.Tensor]:
    sample = dataset[min(index, len(dataset) - 1)]
    kept = {key: torch.as_tensor(sample[key]) for key in ("tokens", "labels", "loss_mask", "position_ids")}
    if index >= len(dataset):
        kept["loss_mask"] = torch.zeros_like(kept["loss_mask"])
    return kept
