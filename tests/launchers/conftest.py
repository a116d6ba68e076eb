"""What the launchers' tests share: an environment that counts as set up, and a grid directory made by hand."""

from __future__ import annotations

import hashlib
import os
import sys

import pytest
from made_runs import write_json, write_run

from launchers.environment import STAMP
from launchers.plan import GridDirectory
from recipes.grid import Grid, load_grid


@pytest.fixture(scope="session")
def environment(repository, tmp_path_factory) -> dict[str, str]:
    """Variables with which the bash scripts find the interpreter of these tests and set nothing up."""
    venv = tmp_path_factory.mktemp("venv")
    (venv / "bin").mkdir()
    python = venv / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (venv / STAMP).write_text(hashlib.sha256((repository / "pyproject.toml").read_bytes()).hexdigest() + "\n")
    return {**os.environ, "EMERGENCE_VENV": str(venv)}


@pytest.fixture
def smoke() -> Grid:
    return load_grid("smoke")


@pytest.fixture
def folder(tmp_path, smoke) -> GridDirectory:
    """A grid directory in the middle of its work: one run evaluated, one training, one with a checkpoint, one not."""
    folder = GridDirectory(tmp_path / "smoke")
    folder.logs.mkdir(parents=True)
    write_json(folder.tokenizer / "manifest.json", {"sha256": "abc"})
    write_json(folder.data / "manifest.json", {"tokenizer_sha256": "abc", "datasets": []})
    folder.grid_file.write_text(smoke.path.read_text())
    finished, begun, training, _ = smoke.runs
    write_run(folder, finished, steps=10, checkpoints=(5, 10), results=(5, 10))
    write_run(folder, begun, steps=13, checkpoints=(10,), results=(10,))
    write_run(folder, training, steps=3)
    return folder
