"""Nodes that failed under a study's jobs: those that do so again and again are left out for a while.

note_failure(folder.logs, ["node3"], job="812.1", reason="killed by SIGKILL")
excluded(folder.logs, num_nodes=64) -> []          # after a second one: ["node3"]
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from launchers.records import Event, Record
from launchers.slurm import commands
from tokenizer.cli import UserError

MOST_FAILURES = 2
"""Failures of a node, with nothing done on it in between, after which it is left out."""

FORGET_SECONDS = 2 * 86400.0
"""After that time a failure is forgotten: nodes are repaired."""

MOST_EXCLUDED = 0.25
"""Share of the nodes that is left out at most: where more of them fail, it is not the nodes."""

_NAME = "nodes"


def note_failure(logs: Path, nodes: Sequence[str], job: str, reason: str) -> None:
    """Write down that `nodes` failed under `job`."""
    if nodes:
        Record.of(logs, _NAME).add("failed", job=job, nodes=tuple(nodes), reason=reason)


def note_success(logs: Path, nodes: Sequence[str], job: str) -> None:
    """Write down that `job` got somewhere on `nodes`, where one of them has failed before."""
    failed = _failures(logs)
    if known := [node for node in nodes if node in failed]:
        Record.of(logs, _NAME).add("worked", job=job, nodes=tuple(known))


def excluded(logs: Path, num_nodes: int) -> list[str]:
    """Nodes that failed under two starts or more, of `num_nodes` that there are. To use them again at once, remove
    logs/starts/nodes.jsonl."""
    often = {node: max(starts.values()) for node, starts in _failures(logs).items() if len(starts) >= MOST_FAILURES}
    newest = sorted(often, key=lambda node: -often[node])
    return sorted(newest[: int(MOST_EXCLUDED * num_nodes)])


def excludable(logs: Path, patience: float = 0.0) -> list[str]:
    """The nodes that a study's jobs should not be given."""
    if not has_failures(logs):
        return []
    known = commands.call("sinfo", "--noheader", "--Node", "-o", "%N", patience=patience).split()
    return excluded(logs, len(set(known)))


def submit_avoiding(bad: Sequence[str], script: Path, *options: str, patience: float = 0.0) -> str:
    """`commands.submit`, without the nodes `bad`; with them where Slurm cannot do without."""
    if bad:
        try:
            return commands.submit(script, *options, f"--exclude={','.join(bad)}", patience=patience)
        except UserError:
            pass
    return commands.submit(script, *options, patience=patience)


def has_failures(logs: Path) -> bool:
    """Whether any node has failed lately: then it is worth asking how many there are."""
    return bool(_failures(logs))


def _failures(logs: Path) -> dict[str, dict[str, float]]:
    """By node: the starts that failed on it since something last worked there, and when."""
    failures: dict[str, dict[str, float]] = {}
    for event in Record.of(logs, _NAME).history().events:
        if time.time() - event.time < FORGET_SECONDS:
            _count(event, failures)
    return failures


def _count(event: Event, failures: dict[str, dict[str, float]]) -> None:
    for node in event.nodes:
        if event.event == "worked":
            failures.pop(node, None)
        else:
            failures.setdefault(node, {})[event.job] = event.time
