"""Encoding: what Megatron reads back, byte for byte the same however it was made, from every kind of input."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet
import pytest
import torch
import zstandard
from documents_for_tests import rows, write_jsonl
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

from tokenizer import documents, encode
from tokenizer.indexed import typecode, write_index
from tokenizer.shards import directory_name, is_held_out

FRACTION = 0.2


def files(directory: Path, *leave_out: str) -> dict[str, bytes]:
    """Contents of all files by relative path; inputs.json names the corpus and is left out."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in {"inputs.json", *leave_out}
    }


def manifest(directory: Path) -> dict:
    return json.loads((directory / "manifest.json").read_text())


@pytest.fixture
def small_blocks(monkeypatch):
    """Many blocks from little text (in this process: --workers 1)."""
    monkeypatch.setattr(documents, "SMALLEST_BLOCK", 4096)
    monkeypatch.setattr(documents, "_READ_SIZE", 1000)
    monkeypatch.setattr(documents, "_PARQUET_ROWS", 7)


def test_megatron_reads_back_every_document(corpus, encoded, tokenizer, small_blocks):
    data = encoded(corpus, "--heldout-fraction", str(FRACTION))
    expected: dict[str, list[str]] = {}
    for row in rows(400):
        split = "heldout" if is_held_out(row["text"].encode(), FRACTION) else "train"
        expected.setdefault(f"{row['lang']}/{directory_name(row['source'])}/{split}", []).append(row["text"])
    entries = {entry["prefix"]: entry for entry in manifest(data)["datasets"]}
    assert set(entries) == set(expected)
    for prefix, texts in expected.items():
        dataset = IndexedDataset(str(data / prefix))
        assert len(dataset) == len(texts) == entries[prefix]["documents"]
        assert dataset.document_indices.tolist() == list(range(len(texts) + 1))
        for ids, text in zip(dataset[:], texts, strict=True):
            assert ids[-1] == tokenizer.eod_id
            assert ids[:-1].tolist() == tokenizer.encode(text)
            assert tokenizer.decode(ids) == text
        assert entries[prefix]["tokens"] == dataset.sequence_lengths.sum()
        assert entries[prefix]["bytes"] == sum(len(text.encode()) for text in texts)
    heldout = sum(entry["documents"] for entry in entries.values() if entry["split"] == "heldout")
    assert 50 < heldout < 110


def test_manifest_and_copy_of_the_tokenizer(corpus, encoded, tokenizer, tokenizer_dir):
    data = encoded(corpus)
    content = manifest(data)
    assert content["tokenizer_sha256"] == tokenizer.sha256
    assert (content["vocab_size"], content["eod_id"], content["pad_id"]) == (1000, 1, 2)
    assert content["heldout_fraction"] == 0.02
    assert content["documents"] == 400 == sum(entry["documents"] for entry in content["datasets"])
    assert (content["skipped"], content["skipped_documents"], content["empty_documents"]) == ([], 0, 0)
    for name in ("tokenizer.model", "manifest.json"):
        assert (data / "tokenizer" / name).read_bytes() == (tokenizer_dir / name).read_bytes()
    assert not (data / ".work").exists()


def test_workers_do_not_matter(corpus, encoded):
    assert files(encoded(corpus)) == files(encoded(corpus, workers=3))


def test_split_follows_the_text_not_its_place(encoded, tmp_path, small_blocks):
    documents = list(rows(120))
    write_jsonl(tmp_path / "a" / "x.jsonl", documents)
    write_jsonl(tmp_path / "b" / "x.jsonl", documents[::-1])

    def held_out(directory):
        counts = {}
        for entry in manifest(encoded(directory, "--heldout-fraction", str(FRACTION)))["datasets"]:
            counts[entry["prefix"]] = (entry["documents"], entry["tokens"], entry["bytes"])
        return counts

    assert held_out(tmp_path / "a") == held_out(tmp_path / "b")


def write_as(kind: str, directory: Path, documents: list[dict[str, str]]) -> None:
    directory.mkdir()
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in documents).encode()
    if kind == "jsonl":
        (directory / "x.jsonl").write_bytes(lines)
    elif kind == "jsonl with BOM, blank lines, CR LF and no end":
        (directory / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n\n").rstrip())
    elif kind == "escaped jsonl":
        (directory / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    elif kind == "gzip":
        (directory / "x.jsonl.gz").write_bytes(gzip.compress(lines))
    elif kind == "zstd, two frames":
        middle = lines.index(b"\n", len(lines) // 2) - 30
        parts = (zstandard.compress(lines[:middle]), zstandard.compress(lines[middle:]))
        (directory / "x.jsonl.zst").write_bytes(b"".join(parts))
    else:
        table = pyarrow.table({name: [row[name] for row in documents] for name in ("source", "text", "lang")})
        if kind == "parquet, dictionary and large strings":
            fields = [
                ("source", pyarrow.dictionary(pyarrow.int32(), pyarrow.string())),
                ("text", pyarrow.large_string()),
            ]
            table = table.cast(pyarrow.schema([*fields, ("lang", pyarrow.string())]))
        pyarrow.parquet.write_table(
            table.append_column("id", pyarrow.array(range(len(table)))), directory / "x.parquet", 50
        )


@pytest.mark.parametrize(
    "kind",
    [
        "jsonl with BOM, blank lines, CR LF and no end",
        "escaped jsonl",
        "gzip",
        "zstd, two frames",
        "parquet",
        "parquet, dictionary and large strings",
    ],
)
def test_every_format_gives_the_same_data(kind, encoded, tmp_path, small_blocks):
    documents = list(rows(150))
    write_as("jsonl", tmp_path / "plain", documents)
    write_as(kind, tmp_path / "other", documents)
    assert files(encoded(tmp_path / "plain")) == files(encoded(tmp_path / "other"))


def test_directories_of_text_files(encoded, tokenizer, tmp_path, small_blocks):
    texts = {row["text"] for row in rows(60) if row["lang"] == "en"}
    for number, text in enumerate(sorted(texts)):
        path = tmp_path / "corpus" / ("essays" if number % 2 else "deep/letters") / f"{number:03d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    (tmp_path / "corpus" / "README.md").write_text("not a document")
    (tmp_path / "corpus" / "essays" / ".hidden.txt").write_bytes(b"\xff")
    data = encoded(tmp_path / "corpus", "--language", "en", "--heldout-fraction", "0")
    entries = manifest(data)["datasets"]
    assert [entry["prefix"] for entry in entries] == ["en/essays/train", "en/letters/train"]
    found = set()
    for entry in entries:
        dataset = IndexedDataset(str(data / entry["prefix"]))
        found.update(tokenizer.decode(ids) for ids in dataset[:])
    assert found == texts


def test_language_and_source_where_a_row_names_none(encoded, tmp_path):
    write_jsonl(tmp_path / "corpus" / "wiki.jsonl", [{"text": "one"}, {"text": "two", "lang": "zh", "source": None}])
    data = encoded(tmp_path / "corpus", "--language", "en", "--heldout-fraction", "0")
    assert [entry["prefix"] for entry in manifest(data)["datasets"]] == ["en/wiki/train", "zh/wiki/train"]


def test_one_file_as_corpus(corpus, encoded):
    assert manifest(encoded(corpus / "all.jsonl"))["documents"] == 400


def test_directory_names_are_safe_and_distinct():
    names = [
        "en",
        "web pages",
        "web_pages",
        "a/b",
        "../../etc",
        "..",
        ".",
        "",
        "tokenizer",
        "书",
        "x" * 300,
        "x" * 301,
        "-rf",
    ]
    safe = [directory_name(name) for name in names]
    assert len(set(safe)) == len(names)
    assert directory_name("python3.11-doc") == "python3.11-doc" and directory_name("书") == "书"
    for name in safe:
        assert Path(name).name == name and not name.startswith((".", "-")) and len(name.encode()) <= 110
        assert name != "tokenizer"


@pytest.mark.parametrize("vocab_size", [65024, 65500, 200_000])
def test_index_equals_megatrons_own(vocab_size, tmp_path, monkeypatch):
    monkeypatch.setattr("tokenizer.indexed._CHUNK", 10)
    code = typecode(vocab_size)
    assert DType.optimal_dtype(vocab_size) == numpy.dtype(code)
    lengths = [3, 1, 7, *range(1, 60)]
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=DType.optimal_dtype(vocab_size))
    for length in lengths:
        builder.add_document(torch.arange(length), [length])
    builder.finalize(str(tmp_path / "theirs.idx"))
    numpy.array(lengths, dtype=numpy.int32).tofile(tmp_path / "lengths")
    write_index(tmp_path / "lengths", tmp_path / "ours.idx", code)
    assert (tmp_path / "ours.idx").read_bytes() == (tmp_path / "theirs.idx").read_bytes()


def test_real_corpus(shared, real_tokenizer_dir, tmp_path):
    """The Chinese half, on two workers."""
    command = [
        "--corpus",
        shared / "corpus" / "zh.jsonl.zst",
        "--tokenizer",
        real_tokenizer_dir,
        "--out",
        tmp_path / "d",
    ]
    encode.main([*map(str, command), "--workers", "2"])
    content = manifest(tmp_path / "d")
    assert content["documents"] == 7523
    assert content["bytes"] == 8_401_445
    heldout = sum(entry["bytes"] for entry in content["datasets"] if entry["split"] == "heldout")
    assert 0.01 < heldout / content["bytes"] < 0.04
