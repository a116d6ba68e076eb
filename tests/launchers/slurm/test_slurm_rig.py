"""The cluster and the stand-ins of the tests beside this one are what they claim to be."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import loss_rows
from stand_in_recording import behave, record

from recipes.checkpoint import read_manifest
from recipes.grid import load_grid

HERE = Path(__file__).resolve().parent


def test_a_job_has_the_gpus_it_asks_for(slurm):
    job = slurm.submit("--wait", "--nodes=2", "--gres=gpu:3", "--wrap", "srun env")
    output = (slurm.root / f"{job}.out").read_text()
    assert output.count("CUDA_VISIBLE_DEVICES=0,1,2") == 2
    assert [line["JobState"] for line in slurm.job_history() if line["JobId"] == job] == ["COMPLETED"]


@pytest.mark.slow
def test_a_higher_partition_sends_a_job_back_into_the_queue(slurm):
    low = slurm.submit("--partition=low", "--nodes=8", "--exclusive", "--wrap", "sleep 100")
    slurm.wait(lambda: slurm.state(low) == "RUNNING", 20)
    high = slurm.submit("--partition=high", "--nodes=8", "--exclusive", "--wrap", "sleep 1")
    slurm.wait(lambda: slurm.state(high) == "COMPLETED", 20)
    slurm.wait(lambda: slurm.state(low) == "RUNNING", 20)
    assert "PREEMPTED" in {line["JobState"] for line in slurm.job_history() if line["JobId"] == low}


@pytest.mark.slow
def test_a_job_outlives_slurmctld(slurm):
    job = slurm.submit("--wrap", "sleep 2; echo done")
    slurm.wait(lambda: slurm.state(job) == "RUNNING", 20)
    slurm.stop_slurmctld()
    slurm.start_slurmctld()
    slurm.wait(lambda: slurm.state(job) == "COMPLETED", 30)
    assert (slurm.root / f"{job}.out").read_text() == "done\n"


@pytest.mark.slow
def test_a_job_leaves_a_node_that_is_down(slurm):
    job = slurm.submit("--requeue", "--wrap", "sleep 100")
    slurm.wait(lambda: slurm.state(job) == "RUNNING", 20)
    (node,) = (line["nodes"] for line in slurm.queue())
    slurm.set_node(node, "down")
    slurm.wait(lambda: [line for line in slurm.queue() if line["state"] == "RUNNING" and line["nodes"] != node], 20)


def test_nothing_is_left_of_a_cluster(cluster):
    """Neither by a stop nor by a kill -9 of the process that started it."""
    program = (
        "import os, signal, sys\n"
        f"sys.path.insert(0, {str(HERE)!r})\n"
        "from slurm_cluster import Slurm\n"
        "slurm = Slurm(nodes=2).__enter__()\n"
        "slurm.submit('--wrap', 'trap \"\" TERM; sleep 101; sleep 102')\n"
        "slurm.wait(lambda: slurm.job_processes('sleep 101'), 20)\n"
        "print(slurm.root, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    root = done.stdout.strip()

    def left() -> list[str]:
        listed = subprocess.run(["ps", "-eww", "-o", "pid,args"], capture_output=True, text=True, check=True).stdout
        return [line for line in listed.splitlines() if root in line or "sleep 101" in line]

    cluster.wait(lambda: not left(), 30, left)
    shutil.rmtree(root)


@pytest.mark.parametrize("script", sorted(path.name for path in HERE.glob("*.sh")))
def test_shellcheck(script):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", "--external-sources", HERE / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# The stand-in.


@pytest.fixture
def player(tmp_path):
    """A prepared grid directory, the program that plays, and a function that starts a training."""
    program, out = record(load_grid("smoke"), tmp_path / "stand in"), tmp_path / "out"
    for command in (
        ["-m", "tokenizer.train", "--out", out / "tokenizer"],
        ["-m", "tokenizer.encode", "--out", out / "data"],
    ):
        subprocess.run([program, *command], check=True)

    def train(run: str, *options: str) -> subprocess.Popen:
        command = [program, "-u", "-m", "recipes.launch", *options, "--", "--grid", "smoke", "--run", run, "--out", out]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    return program, out, train


def test_a_played_training_is_the_same_after_any_interruption(player):
    program, out, train = player
    behave(program.parent, training_seconds=0.2)
    assert train("small-20480").wait() == 0
    expected = loss_rows(out / "small-20480")
    (out / "small-20480").rename(out / "undisturbed")
    behave(program.parent, training_seconds=1.0, held={"small-20480": 4})
    for number, code in ((signal.SIGUSR1, 75), (signal.SIGKILL, -9)):
        process = train("small-20480")
        time.sleep(0.5)
        process.send_signal(number)
        assert process.wait() == code
    assert train("small-20480").wait() == 0
    assert loss_rows(out / "small-20480") == expected
    assert read_manifest(out / "small-20480" / "checkpoints" / "step_10").final
    assert not list((out / "small-20480").glob("resume/*"))


def test_the_processes_of_two_nodes_end_together(player):
    _, _, train = player
    nodes = [train("small-20480", "--nnodes", "2", "--node-rank", f"{rank}", "--master-port=29871") for rank in (0, 1)]
    time.sleep(0.7)
    nodes[1].send_signal(signal.SIGUSR1)
    assert [node.wait() for node in nodes] == [75, 75]
    nodes = [train("small-20480", "--nnodes", "2", "--node-rank", f"{rank}", "--master-port=29871") for rank in (0, 1)]
    time.sleep(0.4)
    os.kill(nodes[1].pid, signal.SIGKILL)
    assert [node.wait() for node in nodes] == [69, -9]


def test_a_played_evaluation_refuses_half_a_checkpoint(player):
    program, out, _ = player
    checkpoint = out / "small-20480" / "checkpoints" / "step_5"
    checkpoint.mkdir(parents=True)
    command = [program, "emergence_eval/run.py", "--data", "x", "--nemo-ckpt", checkpoint]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "manifest" in done.stderr
