"""Predicted bytes against those that Megatron-Core allocates: weights, gradients and optimizer of a real trainer."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess

import pytest
from commands import REPOSITORY, module_command

from recipes import memory
from recipes.grid import load_grid

GRID = REPOSITORY / "tests" / "recipes" / "layouts.yaml"

CASES = {
    1: [
        "precision=fp32",
        "precision=bf16",
        "precision=bf16 distributed_optimizer=true",
        "precision=fp32 distributed_optimizer=true recompute=full",
    ],
    2: [
        "precision=bf16 tensor_parallel=2 sequence_parallel=true",
        "precision=bf16 distributed_optimizer=true",
        "precision=fp32 distributed_optimizer=true",
        "precision=bf16 pipeline_parallel=2 virtual_pipeline_parallel=2",
    ],
}


@pytest.mark.parametrize("processes", CASES)
def test_weights_gradients_and_optimizer_are_those_allocated(processes, tmp_path):
    command = module_command("memory_in_use", tmp_path, GRID, "deep", *CASES[processes], processes=processes)
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-3000:]
    for number, settings in enumerate(CASES[processes]):
        for rank in range(processes):
            found = json.loads((tmp_path / f"{number}-{rank}.json").read_text())
            for part, size in found["measured"].items():
                assert found["predicted"][part] == pytest.approx(size, rel=0.02), (settings, rank, part)


def settings(run: str = "1.5B-3T", **changes):
    return dataclasses.replace(load_grid("paper").run(run).settings, **changes)


def test_a_billion_parameters_in_bf16_are_18_bytes_each():
    """2 of weights, 4 of gradients, 12 of optimizer (master, two moments); fp32 needs 4 + 4 + 8."""
    for precision, each in (("bf16", (2, 4, 12)), ("fp32", (4, 4, 8))):
        it = settings(precision=precision)
        found = memory.worst_rank(it, 1)
        assert (found.weights, found.gradients, found.optimizer) == tuple(n * it.parameters for n in each)


def test_the_distributed_optimizer_shares_its_states_over_all_data_parallel_ranks():
    alone = memory.worst_rank(settings(), 64)
    shared = memory.worst_rank(settings(distributed_optimizer=True), 64)
    assert shared.optimizer == pytest.approx(alone.optimizer / 64, rel=0.001)
    assert shared.gradients == pytest.approx(alone.gradients, rel=0.001)
    with_context = memory.worst_rank(settings(distributed_optimizer=True, context_parallel=2), 32)
    assert with_context.optimizer == shared.optimizer
    assert with_context.activations == pytest.approx(shared.activations / 2, rel=0.001)


def test_stages_hold_all_layers_once():
    for layout, counts in (
        ({"pipeline_parallel": 4}, (6, 6, 6, 6)),
        ({"pipeline_parallel": 2, "embedding_and_loss_as_layers": True}, (12, 12)),
        ({"pipeline_parallel": 4, "first_stage_layers": 7, "last_stage_layers": 3}, (7, 7, 7, 3)),
        ({"pipeline_parallel": 4, "last_stage_layers": 3}, (7, 7, 7, 3)),
        ({"pipeline_parallel": 2, "first_stage_layers": 13, "last_stage_layers": 11}, (13, 11)),
    ):
        found = memory.stages(settings(**layout))
        assert tuple(stage.layers for stage in found) == counts
        assert found[0].embedding and found[-1].output
        total = sum(memory.parameter_count(settings(**layout), stage) for stage in found)
        assert total == settings().parameters


def test_the_first_stage_holds_the_most_micro_batches():
    """1F1B: as many as there are stages behind, itself included, but no more than the step has."""
    it = settings(pipeline_parallel=4)
    in_flight = [memory.layers_in_flight(it, stage, micro_batches=21) for stage in memory.stages(it)]
    assert in_flight == [24, 18, 12, 6]
    assert memory.layers_in_flight(it, memory.stages(it)[0], micro_batches=2) == 12
    # Narayanan et al. 2021, §2.2: virtual stages hold more, by a factor of 1 + (p - 1) / (p v).
    virtual = settings(pipeline_parallel=4, virtual_pipeline_parallel=3)
    assert memory.layers_in_flight(virtual, memory.stages(virtual)[0], micro_batches=20) == 2 * (2 * 3 + 2 * 4 + 1)


def test_recomputation_and_sequence_parallelism_save_activations():
    kept = [memory.worst_rank(settings(recompute=way), 64).activations for way in ("none", "mlp", "full")]
    assert kept[0] > kept[1] > kept[2]
    cut = [
        memory.worst_rank(settings(tensor_parallel=2, sequence_parallel=shared), 64).activations
        for shared in (False, True)
    ]
    assert cut[0] > cut[1]
    assert cut[1] == pytest.approx(kept[0] / 2, rel=0.01)
