"""A shard: the encoded documents of one block, in one file that is whole or absent.

A shard holds a JSON header and, for each data set that the block has documents of, their lengths and ids.
Which documents are held out is decided here, by a hash of the text alone.
"""

from __future__ import annotations

import json
import re
import struct
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

from tokenizer.documents import BadDocument, Block, Document, parse_block
from tokenizer.files import atomic_path
from tokenizer.words import GROUP, WordEncoder

MOST_BAD_LISTED = 100
"""Bad documents that a shard, and a manifest, list one by one; beyond that they are counted."""

_RESERVED = frozenset({"tokenizer"})
_LONGEST_NAME = 100


@dataclass(frozen=True, order=True)
class DataSet:
    """Key of one data set: a language and a source as they stand in directory names, and the split."""

    language: str
    source: str
    split: str
    """"train" or "heldout"."""

    @property
    def prefix(self) -> str:
        """Path of its files without suffix, relative to the data directory."""
        return f"{self.language}/{self.source}/{self.split}"


@dataclass(frozen=True)
class Part:
    """What a shard holds of one data set; `start` is the place of the lengths, the ids follow them."""

    data_set: DataSet
    documents: int
    tokens: int
    bytes: int
    start: int


@dataclass(frozen=True)
class Header:
    """What a shard holds."""

    parts: list[Part]
    bad: list[BadDocument]
    num_bad: int
    num_empty: int


def directory_name(name: str) -> str:
    """`name` as the name of a directory. Different names stay different: one that had to be changed gets a
    hash of the original."""
    safe = re.sub(r"[^\w.+-]", "_", name)
    if (
        safe == name
        and not name.startswith((".", "-"))
        and name not in _RESERVED
        and len(name.encode()) <= _LONGEST_NAME
    ):
        return name
    short = safe.encode()[: _LONGEST_NAME - 9].decode(errors="ignore").lstrip(".-")
    return f"{short or 'unnamed'}-{blake2b(name.encode(), digest_size=4).hexdigest()}"


def is_held_out(utf8: bytes, fraction: float) -> bool:
    """Whether a document belongs to the held-out split: by its text alone, so that copies of it go the same way."""
    value = int.from_bytes(blake2b(utf8, digest_size=8, person=b"held out").digest())
    return value < fraction * 2.0**64


@dataclass
class _Growing:
    lengths: array[int]
    ids: list[bytes]
    bytes: int = 0


def _encode_group(
    group: list[tuple[DataSet, Document]], growing: dict[DataSet, _Growing], encoder: WordEncoder, eod_ids: bytes
) -> None:
    encoded = encoder.encode_all([document.text for _, document in group])
    for (key, document), ids in zip(group, encoded, strict=True):
        part = growing.get(key)
        if part is None:
            part = growing[key] = _Growing(array("i"), [])
        part.lengths.append((len(ids) + len(eod_ids)) // len(eod_ids))
        part.ids += (ids, eod_ids)
        part.bytes += len(document.utf8)


def write_shard(
    block: Block, encoder: WordEncoder, eod_ids: bytes, fraction: float, language: str | None, path: Path
) -> Header:
    """Encode a block into the file `path`.

    Args:
        eod_ids: the document separator as `encoder` would give it.
        fraction: share of the documents to hold out.
        language: of documents that name none.
    """
    growing: dict[DataSet, _Growing] = {}
    names: dict[str, str] = {}
    bad: list[BadDocument] = []
    num_bad = num_empty = group_size = 0
    group: list[tuple[DataSet, Document]] = []
    for document in parse_block(block, language):
        if isinstance(document, BadDocument):
            num_bad += 1
            if num_bad <= MOST_BAD_LISTED:
                bad.append(document)
            continue
        if not document.text:
            num_empty += 1
            continue
        for name in (document.language, document.source):
            if name not in names:
                names[name] = directory_name(name)
        split = "heldout" if is_held_out(document.utf8, fraction) else "train"
        key = DataSet(names[document.language], names[document.source], split)
        group.append((key, document))
        group_size += len(document.text)
        if group_size >= GROUP:
            _encode_group(group, growing, encoder, eod_ids)
            group, group_size = [], 0
    _encode_group(group, growing, encoder, eod_ids)

    parts = []
    start = 0
    for key, part in sorted(growing.items(), key=lambda item: item[0]):
        tokens = sum(part.lengths)
        parts.append(Part(key, len(part.lengths), tokens, part.bytes, start))
        start += 4 * len(part.lengths) + len(eod_ids) * tokens
    header = Header(parts, bad, num_bad, num_empty)
    encoded = json.dumps(asdict(header)).encode()
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for _, part in sorted(growing.items(), key=lambda item: item[0]):
            file.write(part.lengths.tobytes())
            file.writelines(part.ids)
    return header


def read_header(path: Path) -> Header:
    """The header of the shard `path`."""
    with open(path, "rb") as file:
        content = json.loads(file.read(*struct.unpack("<Q", file.read(8))))
    parts = [Part(**{**part, "data_set": DataSet(**part["data_set"])}) for part in content["parts"]]
    bad = [BadDocument(**document) for document in content["bad"]]
    return Header(parts, bad, content["num_bad"], content["num_empty"])


def read_parts(path: Path, header: Header, item_bytes: int) -> Iterator[tuple[Part, bytes, bytes]]:
    """Each part of a shard with its lengths (int32) and ids (`item_bytes` each) as bytes."""
    with open(path, "rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        for part in header.parts:
            file.seek(8 + header_bytes + part.start)
            yield part, file.read(4 * part.documents), file.read(item_bytes * part.tokens)
