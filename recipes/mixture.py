"""What a run reads and in which shares: the sources of each language, weighted, and how often each is seen.

Languages are weighted by the run's `languages` (the paper's 4:1). Within a language the sources are weighted
by `source_weights`, or, where a language has none there, by their tokens. Weights and sizes together say how
many epochs a source is seen for: in the paper's mixture several over Wikipedia and books, less than one over
web pages. Nothing here loads torch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import metadata

from recipes.encoded import EncodedData, Source
from recipes.settings import RunSettings, format_count

HELDOUT_SEED = 2403
"""Seed of the held-out sample: one for every run, so that their losses compare."""

_SCHEMA = 1


@dataclass(frozen=True)
class Blend:
    """Everything that determines which tokens stand in which sample of a data set, and in which order."""

    split: str
    """train or heldout."""
    sources: tuple[Source, ...]
    weights: tuple[float, ...]
    """Each source's share of the samples; they sum to 1."""
    samples: int
    """Sequences to draw, at least."""
    sequence_length: int
    """Tokens a sequence."""
    seed: int
    """Of the order of documents and samples."""

    def key(self, data: EncodedData) -> str:
        """Name of the blend's index: equal for two blends only if all their samples are equal, wherever the data
        lie. Megatron-Core's version is part of it, for its code makes the index."""
        identity = {
            "schema": _SCHEMA,
            "megatron-core": metadata.version("megatron-core"),
            "data": data.fingerprint,
            "split": self.split,
            "sources": [[it.prefix.relative_to(data.directory).as_posix(), it.tokens] for it in self.sources],
            "weights": self.weights,
            "samples": self.samples,
            "sequence_length": self.sequence_length,
            "seed": self.seed,
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class SourceShare:
    """One source's part in a run."""

    source: Source
    share: float
    """Of the run's tokens."""
    epochs: float
    """How often the run sees each of its tokens, on average."""


def source_shares(data: EncodedData, settings: RunSettings) -> list[SourceShare]:
    """Every source of the run with its share of the tokens, which sum to 1, and its epochs.

    Raises UserError where `source_weights` and the data do not name the same sources of a language.
    """
    total = sum(settings.languages.values())
    run_tokens = settings.num_steps * settings.tokens_per_step
    shares = []
    for language, ratio in settings.languages.items():
        weights = data.source_weights(language, settings)
        whole = sum(weights.values())
        for it in data.select(language, "train"):
            share = ratio / total * weights[it.source] / whole
            shares.append(SourceShare(it, share, share * run_tokens / it.tokens))
    return shares


def training_blend(data: EncodedData, settings: RunSettings) -> Blend:
    """What the run reads from its first step to its last. Raises UserError as `source_shares` does."""
    shares = source_shares(data, settings)
    return Blend(
        split="train",
        sources=tuple(it.source for it in shares),
        weights=tuple(it.share for it in shares),
        samples=settings.num_steps * settings.global_batch_size,
        sequence_length=settings.sequence_length,
        seed=settings.seed,
    )


def heldout_blend(data: EncodedData, settings: RunSettings, language: str) -> Blend:
    """The fixed held-out sample of a language: its sources by their tokens, the same for every run."""
    found = data.select(language, "heldout")
    tokens = sum(it.tokens for it in found)
    return Blend(
        split="heldout",
        sources=tuple(found),
        weights=tuple(it.tokens / tokens for it in found),
        samples=data.heldout_samples(language, settings),
        sequence_length=settings.sequence_length,
        seed=HELDOUT_SEED,
    )


def describe(data: EncodedData, settings: RunSettings) -> str:
    """A line a source: its share of the run, the tokens that the run sees of those there are, and the epochs."""
    lines = ["  mixture, by share of the run's tokens; epochs: how often it sees each token of a source"]
    run_tokens = settings.num_steps * settings.tokens_per_step
    for it in source_shares(data, settings):
        name = f"{it.source.language}/{it.source.source}"
        seen, there = format_count(it.share * run_tokens), format_count(it.source.tokens)
        lines.append(f"    {name:<28} {it.share:>7.2%}  {seen:>6} tokens of {there:>6}  {it.epochs:>7.3g} epochs")
    return "\n".join(lines)
