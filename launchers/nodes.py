"""Nodes that failed under a study's jobs: those that did so twice are not used again.

note_failure(folder.logs, ["node3"], job="812.1", reason="killed by SIGKILL")
excluded(folder.logs) -> []          # after a second one: ["node3"]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launchers.records import Record

MOST_FAILURES = 2
"""Failures of a node after which it is left out."""

_NAME = "nodes"


def note_failure(logs: Path, nodes: Sequence[str], job: str, reason: str) -> None:
    """Write down that `nodes` failed under `job`."""
    if nodes:
        Record.of(logs, _NAME).add("failed", job=job, nodes=tuple(nodes), reason=reason)


def excluded(logs: Path) -> list[str]:
    """Nodes that failed under two starts or more. To use them again, remove logs/starts/nodes.jsonl."""
    failures: dict[str, set[str]] = {}
    for event in Record.of(logs, _NAME).history().events:
        for node in event.nodes:
            failures.setdefault(node, set()).add(event.job)
    return sorted(node for node, starts in failures.items() if len(starts) >= MOST_FAILURES)
