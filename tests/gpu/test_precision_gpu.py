"""On a GPU: every precision trains, FP8 gives bf16's loss, a run resumes, and the CPU computes the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import loss_rows, pretrain

from recipes import precision
from recipes.grid import load_grid, override
from recipes.precision import Device
from tokenizer.cli import UserError

REPOSITORY = Path(__file__).resolve().parents[2]

RUN = "large-40960"

SHAPE = ("hidden_size=128", "ffn_hidden_size=384", "num_attention_heads=4", "kv_channels=32", "learning_rate=2e-3")
"""Sides that divide by 32, as FP8 products want."""

PRECISIONS = {
    "fp32": ("precision=fp32",),
    "bf16": ("precision=bf16",),
    "delayed": ("precision=fp8", "fp8_recipe=delayed"),
    "tensorwise": ("precision=fp8", "fp8_recipe=tensorwise"),
    "tensorwise, two layers in bf16": ("precision=fp8", "fp8_recipe=tensorwise", "fp8_bf16_layers=1"),
    "tensorwise, FP8 weights": (
        *("precision=fp8", "fp8_recipe=tensorwise"),
        *("fp8_params=true", "distributed_optimizer=true"),
    ),
    "blockwise": ("precision=fp8", "fp8_recipe=blockwise"),
    "mxfp8": ("precision=fp8", "fp8_recipe=mxfp8"),
    "mxfp8, FP8 weights": (
        *("precision=fp8", "fp8_recipe=mxfp8"),
        *("fp8_params=true", "distributed_optimizer=true"),
    ),
}


def skip_unless_it_can(gpu: Device, changes: tuple[str, ...]) -> None:
    """Skip where the GPU cannot train at these settings: MXFP8 on Hopper, say."""
    try:
        precision.check_device(override(load_grid("smoke").run(RUN).settings, [*SHAPE, *changes]), gpu)
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def trained(gpu, once, smoke_data):
    """``trained(name)``: the run directory of a precision, trained on the GPU."""

    def train(name: str) -> Path:
        changes = PRECISIONS[name]
        skip_unless_it_can(gpu, changes)
        key = "gpu-" + "".join(letter if letter.isalnum() else "-" for letter in name)
        return once(key, lambda out: pretrain(RUN, out, smoke_data, *SHAPE, *changes) and None) / RUN

    return train


@pytest.mark.parametrize("name", PRECISIONS)
def test_the_loss_falls_and_is_that_of_bf16(trained, name):
    rows, bf16 = loss_rows(trained(name)), loss_rows(trained("bf16"))
    losses = [float(row["train_loss"]) for row in rows]
    assert losses[0] - losses[-1] > 1.0
    # The first step has the same weights; later ones drift apart with the rounding.
    assert losses[0] == pytest.approx(float(bf16[0]["train_loss"]), rel=5e-3)
    assert float(rows[-1]["heldout_loss"]) == pytest.approx(float(bf16[-1]["heldout_loss"]), rel=1e-2)


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_run_resumes_where_it_was(trained, name, smoke_data, tmp_path):
    whole = trained(name)
    shutil.copytree(whole, tmp_path / RUN)
    shutil.rmtree(tmp_path / RUN / "checkpoints" / "step_20")
    done = pretrain(RUN, tmp_path, smoke_data, *SHAPE, *PRECISIONS[name])
    assert "resuming from step 10" in done.stdout
    rows, expected = loss_rows(tmp_path / RUN), loss_rows(whole)
    # Of the first step after the checkpoint the loss depends on nothing but what was restored. Some of the
    # backward pass's kernels (the embedding's, attention's) add in no fixed order.
    assert float(rows[10]["train_loss"]) == pytest.approx(float(expected[10]["train_loss"]), rel=1e-6)
    for row, beside in zip(rows[11:], expected[11:], strict=True):
        assert float(row["train_loss"]) == pytest.approx(float(beside["train_loss"]), rel=2e-3)


def forward(out: Path, *changes: str, on_cpu: bool) -> dict:
    """Logits and loss of the initial weights on the CPU or the GPU."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "NVIDIA_TF32_OVERRIDE": "0"}
    if on_cpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, str(REPOSITORY / "tests" / "gpu" / "forward.py"), str(out), *SHAPE, *changes]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return torch.load(out)


@pytest.mark.parametrize(("name", "tolerance"), [("fp32", 1e-4), ("bf16", 3e-2)])
def test_cpu_and_gpu_compute_the_same(gpu, name, tolerance, tmp_path):
    here = forward(tmp_path / "gpu.pt", f"precision={name}", on_cpu=False)
    there = forward(tmp_path / "cpu.pt", f"precision={name}", on_cpu=True)
    assert (here["device"], there["device"]) == ("cuda", "cpu")
    spread = there["logits"].std()
    assert (here["logits"] - there["logits"]).abs().max() < tolerance * spread * 5
    assert here["loss"] == pytest.approx(there["loss"], rel=tolerance / 10)


@pytest.mark.parametrize("recipe", precision.MIN_CAPABILITY)
def test_emulation_gives_the_gpus_loss(gpu, recipe, tmp_path):
    real = ("precision=fp8", f"fp8_recipe={recipe}")
    skip_unless_it_can(gpu, real)
    here = forward(tmp_path / "gpu.pt", *real, on_cpu=False)
    there = forward(tmp_path / "cpu.pt", "precision=fp8-emulated", f"fp8_recipe={recipe}", on_cpu=True)
    assert here["loss"] == pytest.approx(there["loss"], rel=2e-3)
    # Logits of the initial weights: an operand that were rounded another way would show in their spread.
    difference = (here["logits"] - there["logits"]).norm() / there["logits"].norm()
    exact = forward(tmp_path / "bf16.pt", "precision=bf16", on_cpu=True)
    rounding = (there["logits"] - exact["logits"]).norm() / exact["logits"].norm()
    assert difference < max(rounding, 1e-2)


@pytest.mark.slow
def test_the_benchmark_measures_a_shape(gpu, tmp_path):
    out = tmp_path / "rates.json"
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "train_gpu.py"), "--shapes", "300M", "--recipes", "bf16"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([*command, "--steps", "3", "--json", str(out)], check=True, env=environment, timeout=600)
    assert '"tokens_per_second"' in out.read_text()
