"""Disk space: what is asked for before a launch against what runs have written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from launchers.checks import needed_disk_bytes
from launchers.disk import checkpoint_bytes, kept_bytes, meanwhile_bytes, optimizer_state_bytes
from launchers.plan import GridDirectory
from recipes.grid import load_grid

GIB = 2**30


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def changed(run, **settings):
    return dataclasses.replace(run, settings=dataclasses.replace(run.settings, **settings))


def test_a_finished_run_has_the_size_that_was_planned(layout_runs, smoke):
    run = smoke.run("large-40960")
    for layout, directory in layout_runs.items():
        planned = changed(run, tensor_parallel=2) if layout == "tensor_parallel" else run
        newest = directory / "checkpoints" / "step_20"
        assert optimizer_state_bytes(planned.settings) == pytest.approx(size(newest / "optimizer"), rel=0.05)
        assert checkpoint_bytes(planned.settings) == pytest.approx(
            size(newest / "weights") + size(newest / "context"), rel=0.05
        )
        assert kept_bytes(planned, 2) == pytest.approx(size(directory), rel=0.05)


@pytest.mark.parametrize(
    ("settings", "weights", "optimizer"),
    [
        ({"precision": "fp32"}, 4, 8),
        ({"precision": "fp32", "distributed_optimizer": True}, 4, 12),
        ({"precision": "bf16"}, 2, 12),
        ({"precision": "fp8"}, 2, 12),
        ({"precision": "fp8", "fp8_params": True, "distributed_optimizer": True}, 2, 12),
    ],
)
def test_bytes_a_parameter(settings, weights, optimizer):
    run = changed(load_grid("paper").run("6B-3T"), **settings)
    assert checkpoint_bytes(run.settings) / run.settings.parameters == pytest.approx(weights, rel=1e-3)
    assert optimizer_state_bytes(run.settings) / run.settings.parameters == pytest.approx(optimizer, rel=1e-3)


def test_optimizer_states_and_resume_states_are_counted_while_they_are_there():
    run = load_grid("paper").run("6B-3T")
    weights, state = checkpoint_bytes(run.settings), optimizer_state_bytes(run.settings)
    journal = kept_bytes(changed(run, keep_optimizer_states=1), 70) - 70 * weights - state
    assert 0 < journal < GIB
    assert kept_bytes(run, 70) == 70 * weights + 2 * state + journal
    assert kept_bytes(changed(run, keep_optimizer_states=0), 70) == 70 * (weights + state) + journal
    # Two states to resume from, and the third optimizer state until the first has gone.
    assert meanwhile_bytes(run, 70) == 2 * (weights + state) + state
    assert meanwhile_bytes(changed(run, keep_optimizer_states=0), 70) == 2 * (weights + state)
    # The last checkpoint takes the place of an older one's optimizer state.
    assert weights <= kept_bytes(run, 1) < weights + journal
    assert kept_bytes(run, 0) == meanwhile_bytes(run, 0) == 0


def test_only_runs_side_by_side_have_states_to_resume_from(smoke, tmp_path):
    folder = GridDirectory(tmp_path)
    needs = [needed_disk_bytes(smoke.runs, folder, 0, at_once) for at_once in (1, 2, None)]
    assert needs[0] < needs[1] < needs[2] == needed_disk_bytes(smoke.runs, folder, 0, len(smoke.runs))
    before = needs[2]
    largest = smoke.runs[-1]
    manifest = tmp_path / largest.name / "resume" / "step_7" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    state = checkpoint_bytes(largest.settings) + optimizer_state_bytes(largest.settings)
    assert needed_disk_bytes(smoke.runs, folder, 0) == before - state
