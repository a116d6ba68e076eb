"""The data of a run: Megatron-Core's blend of the encoded sources, and the held-out sample.

Sources are weighted by their tokens within a language, languages by the run's mixture (the paper's 4:1). A
sample's place in the run depends on the seed and the step alone, so that a resumed run sees each sample once
and another number of data-parallel replicas sees the same batches.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core import parallel_state
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from recipes import cpu
from recipes.settings import RunSettings
from tokenizer.cli import UserError

HELDOUT_SEED = 2403
"""Seed of the held-out sample: one for every run, so that their losses compare."""

_NO_CACHE = ""
"""Megatron-Core's index cache is built in memory: a file half written by a killed run would be read as whole."""


@dataclass(frozen=True)
class Source:
    """One encoded data set: a split of one source in one language."""

    language: str
    source: str
    split: str
    prefix: Path
    documents: int
    tokens: int


@dataclass(frozen=True)
class EncodedData:
    """A directory written by `python -m tokenizer.encode`."""

    directory: Path
    sources: tuple[Source, ...]
    vocab_size: int
    eod_id: int
    pad_id: int
    tokenizer_sha256: str
    fingerprint: str

    @property
    def tokenizer(self) -> Path:
        """The tokenizer that encoded the data."""
        return self.directory / "tokenizer"

    def select(self, language: str, split: str) -> list[Source]:
        """The sources of a language and split that hold any text; UserError if there are none."""
        found = [it for it in self.sources if (it.language, it.split) == (language, split) and it.tokens]
        if not found:
            there = ", ".join(sorted({it.language for it in self.sources}))
            raise UserError(
                f"{self.directory} has no {split} documents in language {language!r} (it has {there}); "
                "encode some, or change the run's languages"
            )
        return found


def read_data(directory: Path) -> EncodedData:
    """Read and check a data directory's manifest. Raises UserError if it is missing or unfinished."""
    manifest = directory / "manifest.json"
    if not manifest.is_file():
        raise UserError(
            f"{directory} holds no finished data set (no manifest.json); "
            f"make it with python -m tokenizer.encode --out {directory}"
        )
    raw = manifest.read_bytes()
    try:
        content = json.loads(raw)
        sources = tuple(
            Source(
                language=item["language"],
                source=item["source"],
                split=item["split"],
                prefix=directory / item["prefix"],
                documents=item["documents"],
                tokens=item["tokens"],
            )
            for item in content["datasets"]
        )
        return EncodedData(
            directory=directory,
            sources=sources,
            vocab_size=content["vocab_size"],
            eod_id=content["eod_id"],
            pad_id=content["pad_id"],
            tokenizer_sha256=content["tokenizer_sha256"],
            fingerprint=_fingerprint(content),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{manifest} is damaged ({error!r}); delete it and run tokenizer.encode again") from None


def _fingerprint(content: dict) -> str:
    """What identifies the data, whoever encoded them: tokenizer, split and the size of each source."""
    counts = [[it["language"], it["source"], it["split"], it["documents"], it["tokens"]] for it in content["datasets"]]
    identity = json.dumps([content["tokenizer_sha256"], content["heldout_fraction"], sorted(counts)])
    return hashlib.sha256(identity.encode()).hexdigest()


def check_vocabulary(data: EncodedData, settings: RunSettings) -> None:
    """UserError unless the model's vocabulary is the tokenizer's."""
    if data.vocab_size != settings.vocab_size:
        raise UserError(
            f"the data in {data.directory} were encoded with {data.vocab_size} pieces, the run has "
            f"vocab_size {settings.vocab_size}; encode with the grid's tokenizer or change tokenizer.vocab_size"
        )


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
        samples = min(settings.heldout_sequences, (tokens - 1) // settings.sequence_length)
        if samples < 1:
            raise UserError(
                f"the held-out documents in language {language!r} are {tokens} tokens, less than one sequence of "
                f"{settings.sequence_length}; encode more documents or raise --heldout-fraction"
            )
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
