"""What the tests share: where real data lie, and one thread for torch."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

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
