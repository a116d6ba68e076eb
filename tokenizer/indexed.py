"""Megatron's indexed format, written as a stream.

`<prefix>.bin` holds the ids of all documents one after the other, `<prefix>.idx` their lengths and places.
Megatron's own builder keeps a Python object per document and imports torch in every worker; this writer
keeps nothing, and its files equal the builder's byte for byte (tested). Format: header, version, type code,
number of sequences, number of document boundaries; then lengths (int32), byte offsets (int64) and boundaries
(int64): see megatron/core/datasets/indexed_dataset.py.
"""

from __future__ import annotations

import struct
from pathlib import Path

_HEADER = b"MMIDIDX\0\0"
_VERSION = 1
_TYPE_CODES = {"i": 4, "H": 8}
_CHUNK = 1 << 18


def typecode(vocab_size: int) -> str:
    """Type of the ids as Megatron chooses it: "H" (16 bits unsigned) below 65,500 ids, else "i" (32 bits)."""
    return "H" if vocab_size < 65500 else "i"


def index_bytes(documents: int) -> int:
    """Size of the `.idx` of that many documents: 34 bytes of header, then a length, an offset and a boundary each."""
    return len(_HEADER) + 25 + documents * (4 + 8 + 8) + 8


def write_index(lengths_path: Path, index_path: Path, code: str) -> None:
    """Write the `.idx` of documents of one sequence each.

    Args:
        lengths_path: file of int32, the number of ids of each document.
        index_path: file to write.
        code: `typecode` of the ids.
    """
    # Here, so that checking data against their manifest does not wait for it.
    import numpy

    count = lengths_path.stat().st_size // 4
    item_bytes = numpy.dtype(code).itemsize
    with open(lengths_path, "rb") as lengths_file, open(index_path, "wb") as index:
        index.write(_HEADER)
        index.write(struct.pack("<QBQQ", _VERSION, _TYPE_CODES[code], count, count + 1))

        def lengths() -> numpy.ndarray:
            return numpy.frombuffer(lengths_file.read(4 * _CHUNK), dtype=numpy.int32)

        while (chunk := lengths()).size:
            index.write(chunk.tobytes())
        lengths_file.seek(0)
        offset = 0
        while (chunk := lengths()).size:
            ends = offset + numpy.cumsum(chunk.astype(numpy.int64) * item_bytes)
            index.write(numpy.concatenate(([offset], ends[:-1])).astype(numpy.int64).tobytes())
            offset = int(ends[-1])
        for start in range(0, count + 1, _CHUNK):
            index.write(numpy.arange(start, min(start + _CHUNK, count + 1), dtype=numpy.int64).tobytes())
