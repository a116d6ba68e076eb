"""A Slurm of eight nodes for the tests here; they are skipped with a message where there cannot be one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from played_study import RUNS, PlayedStudy, smoke_with
from slurm_cluster import Slurm


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    """One cluster for all tests of a module."""
    with Slurm() as cluster:
        yield cluster


@pytest.fixture
def slurm(cluster: Slurm) -> Iterator[Slurm]:
    """The module's cluster, without jobs before and after the test."""
    yield cluster
    cluster.clear()


@pytest.fixture
def study(slurm: Slurm, tmp_path: Path) -> PlayedStudy:
    """A study of two runs of 10 and 20 steps, with two checkpoints each."""
    return PlayedStudy(slurm, tmp_path / "study", smoke_with([RUNS]))
