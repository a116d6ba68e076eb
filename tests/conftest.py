"""What the tests share: where real data lie, and one thread for torch."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from commands import pretrain, run_module
from made_text import write_corpus

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real benchmark files and real text; tests that need it are skipped without it."""
    if not (SHARED / "benchmarks").is_dir():
        pytest.skip("needs ../shared with benchmarks/ and corpus/, which is not part of the project")
    return SHARED


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A directory of JSONL documents in two made languages."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def smoke_data(corpus, tmp_path_factory) -> Path:
    """The made corpus, tokenized and encoded for the smoke grid."""
    directory = tmp_path_factory.mktemp("smoke")
    tokenizer, data = directory / "tokenizer", directory / "data"
    run_module("tokenizer.train", "--corpus", corpus, "--out", tokenizer, "--vocab-size", 1024)
    run_module(
        "tokenizer.encode", "--corpus", corpus, "--tokenizer", tokenizer, "--out", data, "--heldout-fraction", 0.1
    )
    return data


@pytest.fixture(scope="session")
def layout_runs(smoke_data, tmp_path_factory) -> dict[str, Path]:
    """Run directories of the smoke grid's largest run, trained by one process, TP 2 and PP 2."""
    settings = {
        "single": [],
        "tensor_parallel": ["tensor_parallel=2"],
        "pipeline_parallel": ["pipeline_parallel=2", "micro_batch_size=8"],
    }
    runs = {}
    for name, assignments in settings.items():
        out = tmp_path_factory.mktemp(name)
        pretrain("large-40960", out, smoke_data, *assignments, processes=2 if assignments else 1)
        runs[name] = out / "large-40960"
    return runs
