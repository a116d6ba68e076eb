"""Nodes, processes and layout of each run on a cluster: the planner's where there are GPUs, else the grid's own.

allocate(runs, cluster, days=30.0, gpus=None) -> [Allocation(run="6B-3T", nodes=16, ...), ...]
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from launchers.slurm.site import SlurmCluster, seconds_of
from recipes import layout
from recipes.grid import Run
from recipes.planner import Planner
from recipes.refusals import describe
from tokenizer.cli import UserError


@dataclass(frozen=True)
class Allocation:
    """What a run is given."""

    run: str
    nodes: int
    processes_per_node: int
    gpus_per_node: int
    """0 on a cluster without GPUs."""
    overrides: tuple[str, ...]
    """The layout as ``key=value`` settings for `recipes.pretrain`."""
    layout: str
    """The layout in words."""
    days: float | None
    """Modelled wall-clock time; None where nothing is known of the machine."""

    @property
    def gpus(self) -> int:
        """GPUs of the run."""
        return self.nodes * self.gpus_per_node

    @property
    def gpu_hours(self) -> float:
        """GPUs times hours."""
        return 24 * self.gpus * (self.days or 0.0)

    def segments(self, time_limit: str) -> int:
        """Jobs, one after the other, that the run takes under a time limit; at least one."""
        return max(1, math.ceil(86400 * (self.days or 0.0) / seconds_of(time_limit)))


def allocate(runs: Sequence[Run], cluster: SlurmCluster, days: float, gpus: int | None) -> list[Allocation]:
    """An allocation for each run: on `gpus` GPUs, or on the fewest nodes that train it in `days`.

    Raises UserError for a run that has no layout there.
    """
    if cluster.machine is None:
        return [_on_processors(run, cluster) for run in runs]
    planner = Planner(cluster.machine)
    found = []
    for run in runs:
        plan = planner.on(run, gpus) if gpus else planner.within(run, days)
        each = plan.gpus // plan.nodes
        words = f"{describe(plan.settings)}, DP {plan.data_parallel}"
        found.append(Allocation(run.name, plan.nodes, each, each, plan.overrides, words, plan.days))
    return found


def _on_processors(run: Run, cluster: SlurmCluster) -> Allocation:
    nodes, each = cluster.site.cpu.nodes, cluster.site.cpu.processes_per_node
    try:
        replicas = layout.data_parallel_size(run.settings, nodes * each)
    except UserError as error:
        raise UserError(
            f"{run.name} on {nodes} x {each} processes: {error}; see cpu: in {cluster.path} and the layout in the grid"
        ) from None
    return Allocation(run.name, nodes, each, 0, (), f"{describe(run.settings)}, DP {replicas}", None)


def days_if_empty(allocations: Sequence[Allocation], nodes: int) -> float:
    """When the last run ends if the queue is empty, `nodes` are free and larger runs go first, in days."""
    running: list[tuple[float, int]] = []
    now, free = 0.0, nodes
    for item in sorted(allocations, key=lambda item: (-item.nodes, -(item.days or 0.0))):
        while free < item.nodes and running:
            now, released = heapq.heappop(running)
            free += released
        heapq.heappush(running, (now + (item.days or 0.0), item.nodes))
        free -= item.nodes
    return max((end for end, _ in running), default=0.0)
