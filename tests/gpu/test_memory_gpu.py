"""Predicted bytes against `torch.cuda.max_memory_allocated` of a real training step on one GPU, within 10 %."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from commands import REPOSITORY, module_command

LAYOUT = "tokens=32768 global_batch_size=16 num_checkpoints=1"


@pytest.mark.parametrize(
    ("run", "settings"),
    [
        ("300M-67B", "micro_batch_size=4"),
        ("300M-67B", "micro_batch_size=4 recompute=full"),
        ("1.5B-67B", "micro_batch_size=2"),
        ("1.5B-67B", "micro_batch_size=4 recompute=mlp distributed_optimizer=true"),
    ],
)
def test_the_peak_is_the_predicted_one(gpu, run, settings, tmp_path):
    command = module_command("memory_in_use", tmp_path, "paper", run, f"{LAYOUT} {settings}")
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "0-0.json").read_text())
    for part in ("weights", "gradients", "optimizer"):
        assert found["predicted"][part] == pytest.approx(found["measured"][part], rel=0.02), part
    assert found["predicted"]["total"] == pytest.approx(found["measured"]["total"], rel=0.10)
