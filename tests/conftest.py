"""What the tests share: where real data lie, and one thread for torch."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell starts what is put into the background; the programs under test would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

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
def once(tmp_path_factory, worker_id) -> Callable[[str, Callable[[Path], None]], Path]:
    """``once(name, make)``: a directory that `make` fills once for all of pytest-xdist's workers."""
    base = tmp_path_factory.getbasetemp()
    root = base if worker_id == "master" else base.parent

    def once(name: str, make: Callable[[Path], None]) -> Path:
        directory, done = root / f"once-{name}", root / f"once-{name}.done"
        with open(root / f"once-{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                directory.mkdir(exist_ok=True)
                make(directory)
                done.touch()
        return directory

    return once


@pytest.fixture(scope="session")
def smoke_data(once) -> Path:
    """A made corpus, tokenized and encoded for the smoke grid."""

    def make(directory: Path) -> None:
        corpus, tokenizer, data = write_corpus(directory / "corpus"), directory / "tokenizer", directory / "data"
        run_module("tokenizer.train", "--corpus", corpus, "--out", tokenizer, "--vocab-size", 1024)
        arguments = ["--corpus", corpus, "--tokenizer", tokenizer, "--out", data, "--heldout-fraction", 0.1]
        run_module("tokenizer.encode", *arguments)

    return once("smoke", make) / "data"


LAYOUTS = {
    "single": [],
    "tensor_parallel": ["tensor_parallel=2"],
    "pipeline_parallel": ["pipeline_parallel=2", "micro_batch_size=8"],
}


@pytest.fixture(scope="session")
def layout_runs(once, smoke_data) -> dict[str, Path]:
    """Run directories of the smoke grid's largest run, trained by one process, TP 2 and PP 2."""

    def make(directory: Path) -> None:
        for name, settings in LAYOUTS.items():
            pretrain("large-40960", directory / name, smoke_data, *settings, processes=2 if settings else 1)

    directory = once("layouts", make)
    return {name: directory / name / "large-40960" for name in LAYOUTS}
