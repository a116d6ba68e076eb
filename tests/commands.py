"""The project's commands as the tests start them: real processes, one thread each."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def module_command(module: str, *arguments: object, processes: int = 1) -> list[str]:
    """``python -m module arguments``, under torchrun if there is more than one process."""
    if processes == 1:
        return [sys.executable, "-m", module, *map(str, arguments)]
    # Without the --, torchrun takes the module's --run for a shortened --run-path of its own.
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "--", module]
    return [sys.executable, "-m", *launcher, *map(str, arguments)]


def run_command(command: list[str], *, fails: bool = False) -> subprocess.CompletedProcess:
    """Run to the end; the exit code must be 0, or with `fails` another."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert (done.returncode != 0) == fails, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def run_module(module: str, *arguments: object, processes: int = 1, fails: bool = False) -> subprocess.CompletedProcess:
    """Run a module as a command."""
    return run_command(module_command(module, *arguments, processes=processes), fails=fails)


def pretrain_command(run: str, out: Path, data: Path, *settings: str, processes: int = 1) -> list[str]:
    """The command that trains a run of the smoke grid."""
    arguments = ["--grid", "smoke", "--run", run, "--out", out, "--data", data, *settings]
    return module_command("recipes.pretrain", *arguments, processes=processes)


def pretrain(
    run: str, out: Path, data: Path, *settings: str, processes: int = 1, fails: bool = False
) -> subprocess.CompletedProcess:
    """Train a run of the smoke grid."""
    return run_command(pretrain_command(run, out, data, *settings, processes=processes), fails=fails)


def loss_rows(run_directory: Path) -> list[dict[str, str]]:
    """The rows of loss.csv without what differs from machine to machine."""
    with open(run_directory / "loss.csv", encoding="utf-8", newline="") as file:
        return [
            {key: value for key, value in row.items() if key not in ("tokens_per_second", "mfu")}
            for row in csv.DictReader(file)
        ]
