"""A small corpus of our own, a tokenizer trained on it, and the commands as tests call them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from documents_for_tests import rows, write_jsonl

from tokenizer import cli, encode, train, vocabulary
from tokenizer.documents import Document, find_inputs, parse_block, read_blocks


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """Some 400 documents in one JSON lines file."""
    directory = tmp_path_factory.mktemp("corpus")
    write_jsonl(directory / "all.jsonl", rows(400))
    return directory


@pytest.fixture(scope="session")
def tokenizer_dir(corpus, tmp_path_factory) -> Path:
    """A tokenizer of 1,000 ids trained on `corpus`."""
    out = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    train.main(["--corpus", str(corpus), "--out", str(out), "--vocab-size", "1000"])
    return out


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir) -> vocabulary.Tokenizer:
    """The tokenizer of `tokenizer_dir`."""
    return vocabulary.load(tokenizer_dir)


@pytest.fixture(scope="session")
def real_tokenizer_dir(shared, tmp_path_factory) -> Path:
    """A tokenizer of 8,192 ids trained on a sample of the real corpus."""
    out = tmp_path_factory.mktemp("real") / "tokenizer"
    arguments = ["--corpus", str(shared / "corpus"), "--out", str(out), "--vocab-size", "8192", "--sample-mb", "4"]
    train.main(arguments)
    return out


@pytest.fixture(scope="session")
def real_texts(shared) -> dict[str, list[str]]:
    """Every 25th document of the real corpus, by language."""
    texts: dict[str, list[str]] = {}
    for item in find_inputs(shared / "corpus"):
        documents = (document for block in read_blocks(item) for document in parse_block(block, None))
        for number, document in enumerate(documents):
            assert isinstance(document, Document)
            if number % 25 == 0:
                texts.setdefault(document.language, []).append(document.text)
    return texts


@pytest.fixture
def fails(capsys) -> Callable[..., str]:
    """Runs a command that must end as a user's error: one line on stderr, exit code 2. Returns the line."""

    def check(command, *arguments: object) -> str:
        with pytest.raises(SystemExit) as stop:
            cli.run(lambda: command.main([str(argument) for argument in arguments]))
        assert stop.value.code == cli.EXIT_USER_ERROR
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ")
        return lines[0]

    return check


@pytest.fixture
def encoded(tokenizer_dir, tmp_path) -> Callable[..., Path]:
    """Encodes a corpus with `tokenizer_dir` into a new directory, or the one given; returns it."""

    def run(corpus: Path, *arguments: object, out: Path | None = None, workers: int = 1) -> Path:
        out = out or tmp_path / f"data{len(list(tmp_path.glob('data*')))}"
        command = ["--corpus", corpus, "--tokenizer", tokenizer_dir, "--out", out, "--workers", workers, *arguments]
        assert not encode.main([str(argument) for argument in command])
        return out

    return run
