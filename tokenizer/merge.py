"""Shards into data sets: `<language>/<source>/{train,heldout}.{bin,idx}`, in the order of the corpus.

One shard is held in memory at a time, and per data set a few numbers; the result does not depend on which
process wrote which shard, or when.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy

from tokenizer import cli
from tokenizer.indexed import write_index
from tokenizer.shards import DataSet, read_header, read_parts


@dataclass
class Merged:
    """One finished data set."""

    data_set: DataSet
    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    hash: Any = field(default_factory=hashlib.sha256)
    """Running SHA-256 of the ids."""

    def entry(self) -> dict[str, object]:
        """Its entry in the manifest."""
        key = self.data_set
        return {
            "language": key.language,
            "source": key.source,
            "split": key.split,
            "prefix": key.prefix,
            "documents": self.documents,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "sha256": self.hash.hexdigest(),
        }


def merge(shards: Sequence[Path], directory: Path, code: str) -> list[Merged]:
    """Write the data sets of `shards` under `directory`, which is emptied first.

    Args:
        code: type of the ids, see `indexed.typecode`.
    """
    shutil.rmtree(directory, ignore_errors=True)
    merged: dict[DataSet, Merged] = {}
    item_bytes = numpy.dtype(code).itemsize
    with cli.progress_bar() as progress:
        for shard in progress.track(shards, description="merging (shards)"):
            for part, lengths, ids in read_parts(shard, read_header(shard), item_bytes):
                key = part.data_set
                if key not in merged:
                    merged[key] = Merged(key)
                    (directory / key.prefix).parent.mkdir(parents=True, exist_ok=True)
                # Opened anew each time: there may be more data sets than files that a process may hold open.
                for suffix, content in ((".lengths", lengths), (".bin", ids)):
                    with open(f"{directory / key.prefix}{suffix}", "ab") as file:
                        file.write(content)
                total = merged[key]
                total.documents += part.documents
                total.tokens += part.tokens
                total.bytes += part.bytes
                total.hash.update(ids)
    for key in merged:
        lengths_path = Path(f"{directory / key.prefix}.lengths")
        write_index(lengths_path, Path(f"{directory / key.prefix}.idx"), code)
        lengths_path.unlink()
    return [merged[key] for key in sorted(merged)]


def publish(merged: Sequence[Merged], directory: Path, out: Path) -> None:
    """Move the data sets from `directory` into their places under `out`, and remove older ones from there."""
    wanted = set()
    for item in merged:
        for suffix in (".bin", ".idx"):
            source = directory / f"{item.data_set.prefix}{suffix}"
            target = out / f"{item.data_set.prefix}{suffix}"
            with open(source, "rb") as file:
                os.fsync(file.fileno())
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
            wanted.add(target)
    for split in ("train", "heldout"):
        for suffix in (".bin", ".idx"):
            for stale in set(out.glob(f"[!.]*/*/{split}{suffix}")) - wanted:
                stale.unlink()
