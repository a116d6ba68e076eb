"""What the launchers' tests share: an environment that counts as set up, and a grid directory made by hand."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest

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


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_run(folder: GridDirectory, run, steps: int, checkpoints=(), results=()) -> None:
    """The files of a run as the training and the evaluation write them, in the contracts' format."""
    directory = folder.path / run.name
    directory.mkdir(parents=True)
    rows = ["step,tokens,train_loss,learning_rate,grad_norm,tokens_per_second,mfu,heldout_loss,heldout_loss_en"]
    for step in range(1, steps + 1):
        heldout = f"{6 - step / 10:.4f},{5 - step / 10:.4f}" if step in checkpoints else ","
        rows.append(f"{step},{step * 2048},{7 - step / 10:.4f},1e-3,0.5,{1000 + step},,{heldout}")
    # The last line is still being written.
    (directory / "loss.csv").write_text("\n".join(rows) + f"\n{steps + 1},{(steps + 1) * 2048},6.")
    for step in checkpoints:
        losses = {"heldout": 6 - step / 10, "train": 7 - step / 10}
        write_json(folder.checkpoint(run.name, step) / "manifest.json", {"schema": 1, "step": step, "losses": losses})
    # A directory without a manifest is no checkpoint.
    (directory / "checkpoints" / "step_999").mkdir(parents=True)
    for step in results:
        write_json(folder.result(run.name, step), {"schema": 1, "tasks": {}})
