"""NeMo: a recipe trains as `recipes.pretrain` does, on a CPU; checkpoints go both ways."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import loss_rows, pretrain, run_command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from emergence_eval import run, sources
from emergence_eval.results import read_result
from recipes.checkpoint import read_manifest

HERE = Path(__file__).parent
RUN = "large-40960"


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    from emergence_eval.convert import read_weights

    return read_weights(checkpoint / "weights", "module.")


def logged(directory: Path, name: str) -> list[float]:
    """A curve of NeMo's TensorBoard log, the last value of each step."""
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    return [it.value for it in sorted(events.Scalars(name), key=lambda it: it.step)]


@pytest.fixture(scope="session")
def ours(once, smoke_data) -> Path:
    """The run, trained by `recipes.pretrain`."""
    return once("nemo-ours", lambda directory: pretrain(RUN, directory, smoke_data)) / RUN


@pytest.fixture(scope="session")
def theirs(once, smoke_data, in_nemo) -> Path:
    """The same run from the same weights, trained and saved by NeMo."""

    def make(directory: Path) -> None:
        initial = directory / "initial"
        run_command([sys.executable, str(HERE / "initial_weights.py"), RUN, str(initial)])
        arguments = ["--grid", "smoke", "--run", RUN, "--data", smoke_data, "--out", directory]
        in_nemo("-m", "recipes.nemo", *arguments, "--initial-weights", initial)

    return once("nemo-theirs", make) / RUN


@pytest.mark.slow
def test_nemo_s_losses_are_those_of_pretrain(ours, theirs):
    (events,) = theirs.rglob("events.out.tfevents.*")
    rows = loss_rows(ours)
    assert logged(events.parent, "reduced_train_loss") == pytest.approx(
        [float(row["train_loss"]) for row in rows], rel=1e-5
    )
    assert logged(events.parent, "lr") == pytest.approx([float(row["learning_rate"]) for row in rows], rel=1e-5)


@pytest.mark.slow
def test_checkpoints_lie_where_pretrain_puts_them_and_say_the_same(ours, theirs):
    names = [path.name for path in sorted((theirs / "checkpoints").iterdir())]
    assert names == ["step_10", "step_20", "step_20-last"]
    for step in (10, 20):
        _, identity = sources.open_nemo(theirs / "checkpoints" / f"step_{step}", None)
        manifest = read_manifest(ours / "checkpoints" / f"step_{step}")
        for field in ("step", "tokens", "parameters", "parameters_non_embedding", "vocab_size", "tokenizer_sha256"):
            assert getattr(identity, field) == getattr(manifest, field), field
        assert identity.flops_exact == pytest.approx(manifest.flops_exact)


@pytest.mark.slow
def test_a_checkpoint_of_nemo_is_evaluated(theirs, shared, tmp_path):
    checkpoint = theirs / "checkpoints" / "step_20"
    options = ["--data", str(shared / "benchmarks"), "--tasks", "cluewsc", "--limit", "8", "--device", "cpu"]
    run.main([*options, "--nemo-ckpt", str(checkpoint), "--loss", "5.0", "--out", str(tmp_path / "result.json")])
    result = read_result(tmp_path / "result.json")
    assert result.tasks["cluewsc"].rows == 8
    assert (result.checkpoint.origin, result.checkpoint.losses) == ("nemo", {"heldout": 5.0})
    assert result.checkpoint.unknown == ["seed", "final", "data_fingerprint", "git_revision"]


@pytest.mark.slow
def test_a_checkpoint_of_pretrain_loads_in_nemo(ours, smoke_data, in_nemo, tmp_path):
    """One step at a learning rate that changes no weight: what NeMo then saves is what it loaded."""
    checkpoint = ours / "checkpoints" / "step_20"
    arguments = ["--grid", "smoke", "--run", RUN, "--data", smoke_data, "--out", tmp_path]
    settings = ["tokens=2048", "num_checkpoints=1", "learning_rate=1e-30"]
    in_nemo("-m", "recipes.nemo", *arguments, "--initial-weights", checkpoint, *settings)
    expected, found = weights(checkpoint), weights(tmp_path / RUN / "checkpoints" / "step_1")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    said = run_command([sys.executable, str(HERE / "loss_of_checkpoint.py"), RUN, str(checkpoint), str(smoke_data)])
    (events,) = (tmp_path / RUN).rglob("events.out.tfevents.*")
    (loss,) = logged(events.parent, "reduced_train_loss")
    assert loss == pytest.approx(float(said.stdout.split()[-1]), rel=1e-6)


@pytest.mark.slow
def test_nemo_goes_on_from_its_last_checkpoint(theirs, smoke_data, in_nemo, tmp_path):
    """With the distributed optimizer, in bf16, on two tensor-parallel processes."""
    settings = ["precision=bf16", "distributed_optimizer=true", "tensor_parallel=2"]
    arguments = ["--grid", "smoke", "--run", RUN, "--data", smoke_data]
    in_nemo("-m", "recipes.nemo", *arguments, "--out", tmp_path / "whole", *settings)
    stopped = tmp_path / "stopped" / RUN / "checkpoints"
    shutil.copytree(tmp_path / "whole" / RUN / "checkpoints" / "step_10", stopped / "step_10")
    (stopped / "step_10-last").symlink_to("step_10")
    said = in_nemo("-m", "recipes.nemo", *arguments, "--out", tmp_path / "stopped", *settings)
    assert "iteration 10/19" in said and "iteration 9/19" not in said
    expected, found = weights(tmp_path / "whole" / RUN / "checkpoints" / "step_20"), weights(stopped / "step_20")
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.slow
def test_executors_of_nemo_run_take_the_recipe(smoke_data, in_nemo, tmp_path):
    said = in_nemo(HERE / "hand_over.py", smoke_data, tmp_path)
    assert "2 2 True\nbf16-mixed 2 8\n" in said
    assert "torchrun" in said and "runners.fdl_runner" in said.replace("\n", "").replace(" ", "")


@pytest.mark.slow
def test_mistakes_are_one_line(smoke_data, in_nemo, tmp_path):
    arguments = ["--grid", "smoke", "--run", RUN, "--data", smoke_data, "--out", tmp_path]
    said = in_nemo("-m", "recipes.nemo", *arguments, "precision=fp8-emulated", fails=True)
    assert "error: precision=fp8-emulated is recipes.pretrain's own" in said and "Traceback" not in said
    assert not (tmp_path / RUN).exists()


def test_without_the_extra_it_says_what_to_install(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, "-m", "recipes.nemo", "--grid", "smoke", "--run", RUN, "--data", ".", "--out", tmp_path]
    done = subprocess.run(command, env=environment, text=True, capture_output=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "nemo and nemo_run and lightning cannot be imported; pip install -e '.[nemo]'" in done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "recipes.nemo", "--help"], env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0 and "nemo_run.run(recipe(" in done.stdout and "--initial-weights" in done.stdout
