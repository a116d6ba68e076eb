"""A run over several machines, each with a `recipes.launch` of its own; here all of them are this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from commands import REPOSITORY, loss_rows

from recipes.launch import _with_defaults

RUN = "large-40960"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_nodes(out: Path, data: Path, *settings: str) -> list[subprocess.Popen]:
    """Both nodes of a run as `srun python -m recipes.launch` starts them: the same command, told apart by Slurm."""
    options = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", free_port()]
    arguments = ["--grid", "smoke", "--run", RUN, "--out", out, "--data", data, "tensor_parallel=2", *settings]
    command = [sys.executable, "-m", "recipes.launch", *map(str, [*options, "--", *arguments])]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            command,
            env={**environment, "SLURM_NODEID": str(node)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(2)
    ]


def kill_all(nodes: list[subprocess.Popen]) -> None:
    for node in nodes:
        if node.poll() is None:
            for process in (*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)):
                process.kill()
            node.communicate()


@pytest.mark.slow
def test_two_nodes_train_one_run_and_part_with_exit_codes_that_say_start_again(layout_runs, smoke_data, tmp_path):
    """A process of the second node is killed: there it says so (137), on the first the peer is lost (69)."""
    nodes = start_nodes(tmp_path, smoke_data)
    try:
        table, end = tmp_path / RUN / "loss.csv", time.monotonic() + 120
        while not (table.exists() and len(table.read_text().splitlines()) > 3):
            assert all(node.poll() is None for node in nodes) and time.monotonic() < end
            time.sleep(0.01)
        (worker,) = psutil.Process(nodes[1].pid).children()
        assert worker.environ()["RANK"] == "1"
        worker.kill()
        said = [node.communicate(timeout=120)[1].strip() for node in nodes]
    finally:
        kill_all(nodes)
    assert [node.returncode for node in nodes] == [69, 137], said
    assert said[0].startswith("error: another process of the run is gone") and "\n" not in said[0]
    assert said[1].startswith("error: process 1 of the run was ended by SIGKILL") and "\n" not in said[1]

    nodes = start_nodes(tmp_path, smoke_data)
    try:
        said = [node.communicate(timeout=120)[1] for node in nodes]
    finally:
        kill_all(nodes)
    assert [node.returncode for node in nodes] == [0, 0], said
    assert loss_rows(tmp_path / RUN) == loss_rows(layout_runs["tensor_parallel"])


@pytest.mark.parametrize(
    ("options", "added"),
    [
        (["--nnodes", "2"], True),
        (["--nnodes=2", "--master-addr=h"], True),
        (["--nproc-per-node", "2"], False),
        (["--nnodes", "1"], False),
        (["--nnodes=2", "--node_rank=1"], False),
        (["--nnodes=2", "--rdzv-backend=c10d"], False),
    ],
)
def test_the_node_s_rank_is_slurm_s_where_none_is_given(monkeypatch, options, added):
    monkeypatch.setenv("SLURM_NODEID", "3")
    assert ("--node-rank=3" in _with_defaults(options)) == added
    monkeypatch.delenv("SLURM_NODEID")
    assert not any(option.startswith("--node-rank=3") for option in _with_defaults(options))
