"""An encoded data set as `tokenizer.encode` leaves it: its manifest, read and checked against a run.

Nothing here loads torch, so that a run that cannot start says so at once.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from recipes.settings import RunSettings
from tokenizer.cli import UserError
from tokenizer.files import sha256_file
from tokenizer.indexed import index_bytes, typecode


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

    def source_weights(self, language: str, settings: RunSettings) -> dict[str, float]:
        """The weight of each training source of a language: the run's `source_weights`, or its tokens.

        Raises UserError where the weights and the data do not name the same sources.
        """
        tokens = {it.source: float(it.tokens) for it in self.select(language, "train")}
        weights = settings.source_weights.get(language) or tokens
        if unknown := sorted(weights.keys() - tokens.keys()):
            raise UserError(
                f"source_weights.{language} names {unknown[0]!r}, which {self.directory} lacks (it has "
                f"{', '.join(sorted(tokens))}); encode that source, or take it out of the weights"
            )
        if missing := sorted(tokens.keys() - weights.keys()):
            raise UserError(
                f"source_weights.{language} leaves out {missing[0]!r} of {self.directory} (it has "
                f"{', '.join(sorted(weights))}); give it a weight, or encode a corpus without it"
            )
        return weights

    def heldout_samples(self, language: str, settings: RunSettings) -> int:
        """Held-out sequences of a language: `heldout_sequences`, or as many as there are without a token twice."""
        tokens = sum(it.tokens for it in self.select(language, "heldout"))
        samples = min(settings.heldout_sequences, (tokens - 1) // settings.sequence_length)
        if samples < 1:
            raise UserError(
                f"the held-out documents in language {language!r} are {tokens} tokens, less than one sequence of "
                f"{settings.sequence_length}; encode more documents or raise --heldout-fraction"
            )
        return samples


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
    """What identifies the data, wherever they lie: the tokenizer and the checksum of each data set's ids."""
    sets = [[it["language"], it["source"], it["split"], it["sha256"]] for it in content["datasets"]]
    identity = json.dumps([content["tokenizer_sha256"], sorted(sets)])
    return hashlib.sha256(identity.encode()).hexdigest()


def check(data: EncodedData, settings: RunSettings) -> None:
    """UserError unless the run can be trained on the data: the tokenizer's vocabulary is the model's, every
    language has documents, sources are those that have weights, the held-out documents fill a sequence, and the
    files have the sizes that the manifest implies."""
    if data.vocab_size != settings.vocab_size:
        raise UserError(
            f"the data in {data.directory} were encoded with {data.vocab_size} pieces, the run has "
            f"vocab_size {settings.vocab_size}; encode with the grid's tokenizer or change tokenizer.vocab_size"
        )
    for language in settings.languages:
        data.source_weights(language, settings)
        data.heldout_samples(language, settings)
    _check_tokenizer(data)
    for it in data.sources:
        if it.language in settings.languages and it.tokens:
            _check_files(it, data)


def _check_tokenizer(data: EncodedData) -> None:
    """UserError unless the tokenizer beside the data, which every checkpoint gets a copy of, is the one that encoded
    them."""
    model = data.tokenizer / "tokenizer.model"
    if not model.is_file():
        raise UserError(f"{model} is missing; copy the tokenizer there again, or run tokenizer.encode again")
    if (there := sha256_file(model)) != data.tokenizer_sha256:
        raise UserError(
            f"{model} is not the tokenizer that encoded the data ({there[:12]}..., the manifest says "
            f"{data.tokenizer_sha256[:12]}...); put that one back, or encode with this one into another directory"
        )


def _check_files(source: Source, data: EncodedData) -> None:
    """UserError unless both files of a data set have the size that its documents and tokens give."""
    item_bytes = 2 if typecode(data.vocab_size) == "H" else 4
    expected = {".bin": item_bytes * source.tokens, ".idx": index_bytes(source.documents)}
    for suffix, size in expected.items():
        path = Path(f"{source.prefix}{suffix}")
        there = path.stat().st_size if path.is_file() else None
        if there != size:
            found = "is missing" if there is None else f"has {there:,} bytes"
            raise UserError(
                f"{path} {found}, the manifest's {source.documents:,} documents and {source.tokens:,} tokens are "
                f"{size:,} bytes; copy it again, or delete {data.directory} and run tokenizer.encode again"
            )
