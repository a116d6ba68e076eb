"""A Slurm of eight nodes for the tests here; they are skipped with a message where there cannot be one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
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
