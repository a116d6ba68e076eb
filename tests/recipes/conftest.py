"""Fixtures of the tests that start runs as processes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from marked_processes import processes_of


@pytest.fixture
def mark() -> Iterator[str]:
    """A value for `MARK`; at the end no process that was given it is left."""
    mark = uuid.uuid4().hex
    yield mark
    left = processes_of(mark)
    for process in left:
        process.kill()
    assert not left
