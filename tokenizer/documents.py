"""Documents in, one at a time: JSON lines (plain, gzip, zstd), Parquet files, directories of text files.

A corpus is a list of `Input`s. An input is read in `Block`s of about a megabyte that one process hands to
many: cutting is cheap, parsing (`parse_block`) is the work. Where an input is cut depends on nothing but
the input, so block number n holds the same documents on any machine and in any run, and memory holds a
few blocks whatever the size of the corpus (a document is never cut: the largest one must fit).
"""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from tokenizer.cli import UserError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
TEXT_SUFFIX = ".txt"
COLUMNS = ("text", "source", "lang")

SMALLEST_BLOCK = 1 << 20
LARGEST_BLOCK = 16 << 20
_READ_SIZE = 1 << 16
_PARQUET_ROWS = 256
_EXCERPT = 60


@dataclass(frozen=True)
class Input:
    """One JSON lines or Parquet file, or the text files that lie directly in one directory."""

    path: Path
    name: str
    """Path relative to the corpus, with forward slashes."""
    kind: str
    """One of `SUFFIXES`, or ".txt" for a directory of text files."""
    bytes: int
    """Size on disk."""

    @property
    def block_bytes(self) -> int:
        """Bytes of documents in a block: many blocks for many processes, few for a large input."""
        return min(max(self.bytes // 64, SMALLEST_BLOCK), LARGEST_BLOCK)

    @property
    def default_source(self) -> str:
        """The source of documents that name none: the file's or the directory's name."""
        if self.kind == TEXT_SUFFIX:
            return self.path.resolve().name
        return self.path.name.removesuffix(self.kind)

    def files(self) -> list[Path]:
        """The files of this input, in order."""
        if self.kind != TEXT_SUFFIX:
            return [self.path]
        with os.scandir(self.path) as entries:
            return sorted(
                Path(entry.path) for entry in entries if _is_document(entry.name, TEXT_SUFFIX) and entry.is_file()
            )


@dataclass(frozen=True)
class Block:
    """Some consecutive documents of an input, not yet parsed."""

    input: Input
    index: int
    first_line: int
    """Line (JSON lines), row (Parquet) or file number (text) of the first document, from 1."""
    payload: list[bytes]
    """Whole lines; or Arrow IPC streams; or file name and content by turns."""
    disk_bytes: int
    """What reading this block took from the input's bytes on disk."""


@dataclass(frozen=True)
class Document:
    """A text with its language and source; `utf8` is the text in UTF-8."""

    text: str
    utf8: bytes
    language: str
    source: str


@dataclass(frozen=True)
class BadDocument:
    """Why a document cannot be used, and where it stands."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


def _is_document(name: str, suffix: str) -> bool:
    return name.endswith(suffix) and not name.startswith(".")


def find_inputs(corpus: Path) -> list[Input]:
    """All inputs under `corpus` (a directory, or one file), in order of name. Hidden files are left out.

    Raises:
        UserError: there is no such place, or no documents in it.
    """
    if not corpus.exists():
        raise UserError(f"{corpus}: no such file or directory; --corpus takes a directory of documents")
    if corpus.is_file():
        inputs = _inputs_among(corpus.parent, [corpus.name], corpus.parent)
    else:
        inputs = []
        for directory, subdirectories, names in os.walk(corpus):
            subdirectories[:] = sorted(name for name in subdirectories if not name.startswith("."))
            inputs += _inputs_among(Path(directory), names, corpus)
    if not inputs:
        raise UserError(
            f"{corpus}: no documents; looked for {', '.join(SUFFIXES)} files and directories of {TEXT_SUFFIX} files"
        )
    return sorted(inputs, key=lambda item: item.name)


def _inputs_among(directory: Path, names: list[str], corpus: Path) -> list[Input]:
    inputs = []
    text_bytes = 0
    text_files = 0
    for name in names:
        path = directory / name
        if _is_document(name, TEXT_SUFFIX):
            text_files += 1
            text_bytes += path.stat().st_size
        for suffix in SUFFIXES:
            if _is_document(name, suffix):
                relative = path.relative_to(corpus).as_posix()
                inputs.append(Input(path, relative, suffix, path.stat().st_size))
    if text_files:
        relative = directory.relative_to(corpus).as_posix()
        inputs.append(Input(directory, relative, TEXT_SUFFIX, text_bytes))
    return inputs


def read_blocks(source: Input) -> Iterator[Block]:
    """The blocks of an input, in order.

    Raises:
        UserError: the file is truncated or corrupt, or (Parquet) has no column `text`.
    """
    if source.kind == TEXT_SUFFIX:
        yield from _text_blocks(source)
    elif source.kind == ".parquet":
        yield from _parquet_blocks(source)
    else:
        yield from _line_blocks(source)


def _zstd_chunks(file: BinaryIO) -> Iterator[bytes]:
    """Decompress frame after frame. The library's own stream reader takes a truncated file for a short one."""
    decompressor = zstandard.ZstdDecompressor()
    frame = None
    while chunk := file.read(_READ_SIZE):
        while chunk:
            frame = frame or decompressor.decompressobj()
            yield frame.decompress(chunk)
            chunk = b""
            if frame.eof:
                chunk, frame = frame.unused_data, None
    if frame is not None:
        raise EOFError("compressed file ended before the end of its last frame")


def _chunks(source: Input, file: BinaryIO) -> Iterator[bytes]:
    if source.kind == ".jsonl.zst":
        yield from _zstd_chunks(file)
        return
    stream = gzip.GzipFile(fileobj=file) if source.kind == ".jsonl.gz" else file
    while chunk := stream.read(_READ_SIZE):
        yield chunk


def _line_blocks(source: Input) -> Iterator[Block]:
    """Blocks that end with a line's end; the remainder of the last line opens the next block."""
    index, first_line, position, size = 0, 1, 0, 0
    pending: list[bytes] = []
    with open(source.path, "rb") as file:
        try:
            for chunk in _chunks(source, file):
                pending.append(chunk)
                size += len(chunk)
                end = chunk.rfind(b"\n") + 1
                if size < source.block_bytes or not end:
                    continue
                pending[-1] = chunk[:end]
                consumed = file.tell()
                payload = b"".join(pending)
                yield Block(source, index, first_line, [payload], consumed - position)
                index, first_line, position = index + 1, first_line + payload.count(b"\n"), consumed
                pending = [chunk[end:]]
                size = len(chunk) - end
            if size:
                yield Block(source, index, first_line, [b"".join(pending)], file.tell() - position)
        except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
            raise UserError(
                f"{source.path}: truncated or corrupt after about line {first_line} ({error}); copy or compress it anew"
            ) from error


def _text_blocks(source: Input) -> Iterator[Block]:
    payload: list[bytes] = []
    size, index, first = 0, 0, 1
    for number, path in enumerate(source.files(), start=1):
        content = path.read_bytes()
        payload += [path.name.encode(errors="surrogateescape"), content]
        size += len(content)
        if size >= source.block_bytes:
            yield Block(source, index, first, payload, size)
            payload, size, index, first = [], 0, index + 1, number + 1
    if payload:
        yield Block(source, index, first, payload, size)


def _parquet_blocks(source: Input) -> Iterator[Block]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(source.path, buffer_size=1 << 20) as file:
            names = file.schema_arrow.names
            if "text" not in names:
                raise UserError(f"{source.path}: no column 'text' (columns: {', '.join(names)}); rename or add it")
            columns = [name for name in COLUMNS if name in names]
            share = source.bytes / max(file.metadata.num_rows, 1)
            payload: list[bytes] = []
            size = rows = index = 0
            first = 1
            for batch in file.iter_batches(_PARQUET_ROWS, columns=columns, use_threads=False):
                sink = io.BytesIO()
                with pyarrow.ipc.new_stream(sink, batch.schema) as writer:
                    writer.write_batch(batch)
                payload.append(sink.getvalue())
                size += len(payload[-1])
                rows += batch.num_rows
                if size >= source.block_bytes:
                    yield Block(source, index, first, payload, int(rows * share))
                    payload, size, index, first, rows = [], 0, index + 1, first + rows, 0
            if payload:
                yield Block(source, index, first, payload, int(rows * share))
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{source.path}: cannot be read as Parquet ({error}); write it anew") from error


def parse_block(block: Block, language: str | None) -> Iterator[Document | BadDocument]:
    """The documents of a block, in order; `language` is that of documents that name none."""
    if block.input.kind == TEXT_SUFFIX:
        records = _text_records(block)
    elif block.input.kind == ".parquet":
        records = _parquet_records(block)
    else:
        records = _line_records(block)
    for file, line, record in records:
        if isinstance(record, str):
            yield BadDocument(file, line, record)
            continue
        try:
            yield _document(record, block.input, language)
        except ValueError as error:
            yield BadDocument(file, line, str(error))


def _line_records(block: Block) -> Iterator[tuple[str, int, Any]]:
    for offset, line in enumerate(block.payload[0].split(b"\n")):
        number = block.first_line + offset
        if not line or line.isspace():
            continue
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            record = json.loads(text)
        except UnicodeDecodeError as error:
            record = _invalid_utf8(error)
        except (ValueError, RecursionError) as error:
            record = f"invalid JSON ({error}): {text[:_EXCERPT]!r}"
        yield block.input.name, number, record


def _text_records(block: Block) -> Iterator[tuple[str, int, Any]]:
    for name, content in zip(block.payload[::2], block.payload[1::2], strict=True):
        try:
            record: Any = {"text": content.decode("utf-8-sig")}
            line = 1
        except UnicodeDecodeError as error:
            record = _invalid_utf8(error)
            line = content.count(b"\n", 0, error.start) + 1
        yield f"{block.input.name}/{name.decode(errors='replace')}".removeprefix("./"), line, record


def _parquet_records(block: Block) -> Iterator[tuple[str, int, Any]]:
    import pyarrow

    number = block.first_line
    for payload in block.payload:
        with pyarrow.ipc.open_stream(payload) as reader:
            for batch in reader:
                columns = {
                    name: _column_values(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)
                }
                for row in range(batch.num_rows):
                    record: Any = {}
                    for name, values in columns.items():
                        value = values[row]
                        if isinstance(value, bytes):
                            try:
                                value = value.decode()
                            except UnicodeDecodeError as error:
                                record = f"column {name!r}: {_invalid_utf8(error)}"
                                break
                        if value is not None:
                            record[name] = value
                    yield block.input.name, number, record
                    number += 1


def _column_values(column: Any) -> list[Any]:
    """Python values of an Arrow column, strings as bytes: Arrow's own decoding would stop at invalid UTF-8."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
        column = column.cast(pyarrow.large_binary())
    return column.to_pylist()


def _invalid_utf8(error: UnicodeDecodeError) -> str:
    return f"invalid UTF-8 (byte 0x{error.object[error.start]:02x} at offset {error.start})"


def _document(record: Any, source: Input, language: str | None) -> Document:
    """Check one record. Raises ValueError with the reason in words."""
    if not isinstance(record, dict):
        raise ValueError(f"not a JSON object but {type(record).__name__}: {str(record)[:_EXCERPT]!r}")
    text = record.get("text")
    if text is None:
        raise ValueError(f"no field 'text' (fields: {', '.join(map(str, record)) or 'none'})")
    if not isinstance(text, str):
        raise ValueError(f"field 'text' is not a string but {type(text).__name__}")
    name = record.get("source")
    if name is None:
        name = source.default_source
    spoken = record.get("lang")
    if spoken is None:
        spoken = language
    if spoken is None:
        raise ValueError("no field 'lang'; pass --language for documents that name none")
    for field, value in (("source", name), ("lang", spoken)):
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"field {field!r} is not a non-empty string but {value!r}")
        if not value.isascii() and "\ud800" <= max(value) <= "\udfff":
            raise ValueError(f"field {field!r} holds half of a surrogate pair")
    try:
        utf8 = text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise ValueError(f"text holds half of a surrogate pair (U+{code:04X} at character {error.start})") from None
    return Document(text, utf8, spoken, name)


def bad_documents_error(bad: list[BadDocument], count: int) -> UserError:
    """The error of a run without --skip-bad-documents; `bad` may be a part of the `count` found."""
    more = f" (and {count - 1} more so far)" if count > 1 else ""
    return UserError(f"{bad[0]}{more}; mend it or pass --skip-bad-documents")
