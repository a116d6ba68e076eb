"""Runs of several processes: the launcher speaks for all of them, once, and ends them when one dies."""

from __future__ import annotations

import csv
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest
from marked_processes import MARK, assert_one_line, environment, module, processes_of

from recipes import checkpoint

RUN = "large-40960"


@pytest.fixture
def arguments(tmp_path, smoke_data) -> list[object]:
    """Of a run that writes to out/ in the test's directory."""
    return ["--grid", "smoke", "--run", RUN, "--out", tmp_path / "out", "--data", smoke_data]


def launch(arguments: list[object], *settings: str, options: tuple[object, ...] = ("--nproc-per-node", 2)) -> list[str]:
    return module("recipes.launch", *options, "--", *arguments, *settings)


def test_a_mistake_of_all_processes_is_said_once(arguments, tmp_path, mark):
    command = launch(arguments, "tensor_parallel=2", "micro_batch_size=3")
    done = subprocess.run(command, capture_output=True, text=True, env=environment(**{MARK: mark}), timeout=120)
    assert_one_line(done, r"global_batch_size 16 is no multiple of micro_batch_size 3; .* would divide it")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_port_in_use(arguments, tmp_path, mark, taken_port):
    """Under the launcher its own store binds the port, under srun the run's first process."""
    options = ("--nnodes", 1, "--nproc-per-node", 2, "--master-addr", "127.0.0.1", "--master-port", taken_port)
    command = launch(arguments, "tensor_parallel=2", options=options)
    done = subprocess.run(command, capture_output=True, text=True, env=environment(**{MARK: mark}), timeout=120)
    assert_one_line(done, rf"port .* is in use .*{taken_port}.*; give another --master-port")
    assert not list(tmp_path.iterdir())

    alone = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken_port), "WORLD_SIZE": "2", "RANK": "0"}
    command = module("recipes.pretrain", *arguments, "tensor_parallel=2")
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(**alone, **{MARK: mark}), timeout=120
    )
    assert_one_line(done, rf"port {taken_port} of 127\.0\.0\.1 is in use; give another MASTER_PORT")
    assert not list(tmp_path.rglob("step_*"))


def test_a_process_that_dies(arguments, tmp_path, mark):
    """Rank 1 is killed in the middle of a step: the other ends, the launcher says so, and what was saved is whole."""
    command = launch(arguments, "tensor_parallel=2", "tokens=4096000", "num_checkpoints=200")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**{MARK: mark})
    )
    out = tmp_path / "out"
    checkpoints = out / RUN / "checkpoints"
    deadline = time.monotonic() + 120
    while not (checkpoints / "step_20" / "manifest.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    victim = next(it for it in processes_of(mark) if it.environ().get("RANK") == "1")
    victim.send_signal(signal.SIGKILL)
    output, errors = process.communicate(timeout=120)
    done = subprocess.CompletedProcess(command, process.returncode, output, errors)
    assert_one_line(done, r"process 1 of the run was ended by SIGKILL .*; run the same command again to go on", 137)
    assert not processes_of(mark)
    steps = checkpoint.list_steps(out / RUN)
    assert len(steps) >= 2
    for step in steps:
        assert checkpoint.verify(checkpoints / f"step_{step}").step == step
    with open(out / RUN / "loss.csv", encoding="utf-8", newline="") as file:
        assert all(len(row) == 10 for row in csv.reader(file))
