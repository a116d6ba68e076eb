"""What can be wrong with a corpus or a data directory: one line with file, line and remedy, exit code 2."""

from __future__ import annotations

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from documents_for_tests import rows, write_jsonl

from tokenizer import encode, train
from tokenizer.shards import MOST_BAD_LISTED

GOOD = b'{"text": "good", "lang": "en"}\n'
BAD_LINES = {
    b'{"text": "cut off"': "invalid JSON (Expecting",
    b'{"text": "cut off': "invalid JSON (Unterminated string",
    b"not json at all": "invalid JSON",
    b'["text"]': "not a JSON object but list",
    b"null": "not a JSON object but NoneType",
    b'{"body": "x", "lang": "en"}': "no field 'text' (fields: body, lang)",
    b"{}": "no field 'text' (fields: none)",
    b'{"text": null}': "no field 'text'",
    b'{"text": 5, "lang": "en"}': "field 'text' is not a string but int",
    b'{"text": "x"}': "no field 'lang'; pass --language",
    b'{"text": "x", "lang": 5}': "field 'lang' is not a non-empty string but 5",
    b'{"text": "x", "lang": "en", "source": ""}': "field 'source' is not a non-empty string but ''",
    b'{"text": "x", "lang": "en", "source": "\\ud800"}': "field 'source' holds half of a surrogate pair",
    b'{"text": "caf\xe9", "lang": "en"}': "invalid UTF-8 (byte 0xe9 at offset 13)",
    b'{"text": "\\ud83d", "lang": "en"}': "text holds half of a surrogate pair (U+D83D at character 0)",
    b"[" * 100_000: "invalid JSON",
    b'{"text": "x", "lang": "en", "n": 1' + b"0" * 5000 + b"}": "invalid JSON",
}


@pytest.fixture
def arguments(tokenizer_dir, tmp_path):
    """Command line on the corpus directory tmp_path/corpus, which exists."""
    (tmp_path / "corpus").mkdir()
    command = ["--corpus", tmp_path / "corpus", "--tokenizer", tokenizer_dir, "--out", tmp_path / "data"]
    return [*command, "--workers", "1"]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.items(), ids=[line[:30] for line in BAD_LINES])
def test_bad_lines(line, reason, arguments, fails, tmp_path):
    (tmp_path / "corpus" / "x.jsonl").write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
    message = fails(encode, *arguments)
    assert f"x.jsonl:3: {reason}" in message
    assert "pass --" in message
    assert len(message) < 400
    encode.main([*map(str, arguments), "--skip-bad-documents"])
    content = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert (content["documents"], content["skipped_documents"]) == (2, 1)
    assert content["skipped"][0]["file"] == "x.jsonl" and content["skipped"][0]["line"] == 3
    assert reason in content["skipped"][0]["reason"]
    # Without the flag, data that lack a document are not taken for all that was asked for.
    assert "x.jsonl:3" in fails(encode, *arguments)


def test_the_first_bad_document_is_named_whatever_the_workers(arguments, fails, tmp_path):
    for name in "abcdef":
        (tmp_path / "corpus" / f"{name}.jsonl").write_bytes(GOOD * 3 + b"{\n" * 2)
    assert "a.jsonl:4: invalid JSON" in fails(encode, *arguments, "--workers", "3")


def test_only_so_many_bad_documents_are_listed(arguments, tmp_path):
    for name in "ab":
        (tmp_path / "corpus" / f"{name}.jsonl").write_bytes(GOOD + b"{\n" * 80)
    encode.main([*map(str, arguments), "--skip-bad-documents"])
    content = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert content["skipped_documents"] == 160 and len(content["skipped"]) == MOST_BAD_LISTED


def test_empty_documents_are_counted(arguments, tmp_path):
    (tmp_path / "corpus" / "x.jsonl").write_bytes(GOOD + b'{"text": "", "lang": "en"}\n')
    encode.main([*map(str, arguments)])
    content = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert (content["documents"], content["empty_documents"]) == (1, 1)


def test_bad_text_file(arguments, fails, tmp_path):
    (tmp_path / "corpus" / "a.txt").write_bytes(b"fine\nno\xffgood")
    assert "a.txt:2: invalid UTF-8 (byte 0xff at offset 7)" in fails(encode, *arguments, "--language", "en")


def test_bad_parquet(arguments, fails, tmp_path):
    path = tmp_path / "corpus" / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"content": ["x"], "id": [1]}), path)
    assert "x.parquet: no column 'text' (columns: content, id)" in fails(encode, *arguments)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x", None], "lang": ["en", "en"]}), path)
    assert "x.parquet:2: no field 'text'" in fails(encode, *arguments)
    broken = pyarrow.StringArray.from_buffers(
        2, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0"), pyarrow.py_buffer(b"a\xc3(")
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": broken, "lang": ["en", "en"]}), path)
    assert "x.parquet:2: column 'text': invalid UTF-8 (byte 0xc3 at offset 0)" in fails(encode, *arguments)
    path.write_bytes(b"PAR1 nonsense PAR1")
    assert "cannot be read as Parquet" in fails(encode, *arguments)


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("damage", ["truncated", "corrupt", "nonsense"])
def test_damaged_compression(suffix, damage, arguments, fails, tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", rows(200))
    compress = gzip.compress if suffix == "gz" else zstandard.ZstdCompressor(write_checksum=True).compress
    content = compress(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "corrupt":
        content = content[:-20] + bytes(8) + content[-12:]
    else:
        content = b"nonsense"
    (tmp_path / "corpus" / f"x.jsonl.{suffix}").write_bytes(content)
    assert f"x.jsonl.{suffix}: truncated or corrupt" in fails(encode, *arguments)


def test_no_documents(arguments, fails, tmp_path):
    assert "no documents; looked for .jsonl" in fails(encode, *arguments)
    (tmp_path / "corpus" / "x.jsonl").write_bytes(b"\n\n")
    assert "no text in 1 inputs (0 bad and 0 empty documents)" in fails(encode, *arguments)
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_wrong_settings(arguments, fails, tmp_path):
    (tmp_path / "corpus" / "x.jsonl").write_bytes(GOOD)
    assert "--heldout-fraction 1.0" in fails(encode, *arguments, "--heldout-fraction", "1")
    assert "--workers 0" in fails(encode, *arguments, "--workers", "0")
    assert "no such file or directory" in fails(encode, *arguments, "--corpus", tmp_path / "nowhere")
    assert "not a tokenizer" in fails(encode, *arguments, "--tokenizer", tmp_path)


def test_other_tokenizers_output_is_left_alone(corpus, encoded, fails, tmp_path):
    data = encoded(corpus)
    other = tmp_path / "other"
    train.main(["--corpus", str(corpus), "--out", str(other), "--vocab-size", "800"])
    before = (data / "manifest.json").read_bytes()
    command = ["--corpus", corpus, "--tokenizer", other, "--out", data, "--workers", "1"]
    assert "holds data of another tokenizer" in fails(encode, *command)
    assert (data / "manifest.json").read_bytes() == before
    (data / "manifest.json").unlink()
    assert "holds data of another tokenizer" in fails(encode, *command)


def test_other_peoples_directories_are_left_alone(arguments, fails, tmp_path):
    (tmp_path / "corpus" / "x.jsonl").write_bytes(GOOD)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.doc").touch()
    assert "is not empty and was not written by this command" in fails(encode, *arguments)
    assert "is a file" in fails(encode, *arguments, "--out", tmp_path / "corpus" / "x.jsonl")
