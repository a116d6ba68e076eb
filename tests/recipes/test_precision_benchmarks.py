"""The benchmarks of precision: what they say without a GPU, and that all but the device works."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def benchmark(name: str, *arguments: object, fails: bool = False) -> subprocess.CompletedProcess:
    """Run a benchmark to its end."""
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCHMARKS / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert (done.returncode != 0) == fails, f"{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture
def no_gpu():
    """Skip where there is a GPU."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")


def test_without_a_gpu_nothing_is_measured(no_gpu):
    assert benchmark("train_gpu.py").stdout.startswith("no GPU here")


def test_one_seed_has_no_error_bar(tmp_path):
    done = benchmark("fp8_loss.py", "--data", tmp_path, "--out", tmp_path, "--seeds", "1", fails=True)
    assert done.returncode == 2 and "give --seeds 1 2" in done.stderr


@pytest.mark.slow
def test_the_gpu_benchmark_runs_without_its_device(no_gpu, tmp_path):
    arguments = ("--shapes", "tiny", "--recipes", "bf16", "delayed", "--steps", "2", "--warmup", "1")
    done = benchmark("train_gpu.py", *arguments, "--micro-batches", "2", "--json", tmp_path / "rates.json")
    content = json.loads((tmp_path / "rates.json").read_text())
    first, second = content["measurements"]
    assert (first["recipe"], second["recipe"]) == ("bf16", "delayed") and "| tiny | bf16 | 4 |" in done.stdout
    # 2 x 2 sequences of 128 tokens a step; random ids have the loss of a uniform guess.
    assert first["tokens_per_second"] == pytest.approx(512 / first["step_seconds"])
    assert first["loss"] == pytest.approx(6.93, abs=0.1) and first["mfu_bf16"] is None


@pytest.mark.slow
def test_the_loss_benchmark_compares_precisions_seed_by_seed(smoke_data, tmp_path):
    arguments = (
        "--data",
        smoke_data,
        "--out",
        tmp_path,
        "--grid",
        "smoke",
        "--run",
        "small-20480",
        "--seeds",
        1,
        2,
        "--settings",
        "heldout_sequences=4",
    )
    done = benchmark("fp8_loss.py", *arguments, "--precisions", "tensorwise")
    rows = {line.split("|")[1].strip(): line for line in done.stdout.splitlines() if line.startswith("|")}
    bf16, tensorwise = (
        [float(number) for number in re.findall(r"\d\.\d{4}", rows[it])] for it in ("bf16", "tensorwise")
    )
    assert bf16[2] == pytest.approx((bf16[0] + bf16[1]) / 2, abs=1e-4)
    above = tensorwise[2] - bf16[2]
    assert f"{above:+.3f}"[:5] in rows["tensorwise"] or abs(above) < 1e-3
