"""A simulated grid directory that the tests of this room share."""

from __future__ import annotations

import pytest
import simulated_grids


@pytest.fixture(scope="session")
def truths():
    """What each task of the shared grid does as loss falls."""
    return dict.fromkeys(simulated_grids.CHANCE, simulated_grids.flat) | {
        "mmlu": simulated_grids.emergent(4.0, slope=0.4),
        "hellaswag": simulated_grids.smooth(),
    }


@pytest.fixture(scope="session")
def grid(tmp_path_factory, truths):
    """12 runs x 4 checkpoints x 10 tasks as a grid directory. Tests that change it copy it first."""
    results = simulated_grids.table(truths, simulated_grids.runs(4, 4), rows=500)
    return simulated_grids.write_grid(tmp_path_factory.mktemp("runs") / "simulated", results)
