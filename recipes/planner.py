"""The search for a run's layout: every legal one is counted and timed, the fastest that fits is the plan.

Legality is `recipes.layout`'s, bytes are `recipes.memory`'s, seconds `recipes.cost`'s. A launcher takes a `Plan` from
`plan_run` and starts `Plan.settings` on `Plan.gpus`; people use the command:

    python -m recipes.parallel --grid paper --cluster dgx-a100 --gpus 256
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from recipes import layout
from recipes.cluster import GIB, Cluster
from recipes.cost import CostModel, StepTime
from recipes.grid import Run
from recipes.memory import Memory, worst_rank
from recipes.refusals import NoPlanError, Refusal, Refusals, describe, middle_layers
from recipes.settings import LAYOUT_SETTINGS, RECOMPUTE, RunSettings
from tokenizer.cli import UserError

GOODPUT = 0.95
"""*Ours*: share of the wall-clock time that goes into steps at the modelled speed; the rest is lost to restarts,
checkpoints, evaluation, slow nodes. The paper's four figures fit 0.96 best (docs/planner.md)."""

DAYS = 30.0
"""*Ours*: a run should take no longer, where the number of GPUs is left open."""

MOST_NODES = 256
"""*Ours*: nodes at which the search for a number of GPUs ends."""

SLICES = (1024, 128)
"""*Ours*: tokens of a sequence that a rank holds at least under context parallelism. Shorter slices keep no GPU busy:
they are tried only where longer ones leave no plan, with more GPUs than the batch divides over."""

LARGEST_MICRO_BATCH = 64
"""Sequences at once at most."""

_SECONDS_A_DAY = 86400.0


@dataclass(frozen=True)
class Plan:
    """How a run is trained on a number of GPUs: all that a launcher needs to start it."""

    run: str
    """Name of the run."""
    settings: RunSettings
    """The run's settings with the layout in them."""
    cluster: Cluster
    """The machine."""
    gpus: int
    """GPUs of the run."""
    data_parallel: int
    """Replicas of the model."""
    memory: Memory
    """Bytes on the fullest GPU."""
    step: StepTime
    """Modelled time of a step."""
    goodput: float = GOODPUT
    """Share of the wall-clock time spent in steps."""
    considered: int = 0
    """Layouts that were legal."""
    refusals: tuple[Refusal, ...] = field(default=(), repr=False)
    """Why the others were refused."""

    @property
    def nodes(self) -> int:
        """Nodes of the run."""
        return max(1, self.gpus // self.cluster.gpus_per_node)

    @property
    def days(self) -> float:
        """Days of wall-clock time."""
        return self.step.total * self.settings.num_steps / self.goodput / _SECONDS_A_DAY

    @property
    def gpu_days(self) -> float:
        """Days times GPUs."""
        return self.days * self.gpus

    @property
    def gpu_hours(self) -> float:
        """Hours times GPUs."""
        return 24 * self.gpu_days

    @property
    def tokens_per_second_per_gpu(self) -> float:
        """Tokens/s while steps are taken."""
        return self.settings.tokens_per_step / self.step.total / self.gpus

    def utilisation(self, exact: bool = False) -> float:
        """Model FLOPs utilisation while steps are taken: of 6·N·D, or `exact`, of all matrix products."""
        count = self.settings.flops_exact if exact else self.settings.flops_6nd
        return count(1) * self.tokens_per_second_per_gpu / self.cluster.peak_flops[self.settings.precision]

    @property
    def overrides(self) -> tuple[str, ...]:
        """The layout as ``key=value`` settings for `recipes.pretrain`: those that are not the default."""
        return tuple(
            f"{item.name}={str(value).lower() if isinstance(value, bool) else value}"
            for item in dataclasses.fields(self.settings)
            if item.name in LAYOUT_SETTINGS and (value := getattr(self.settings, item.name)) != item.default
        )

    def command(self, grid: str, out: str) -> str:
        """The line that trains the run, to be started once on each node (with HEAD, the name of the first)."""
        words = ["torchrun", "--nproc-per-node", str(self.gpus // self.nodes)]
        if self.nodes > 1:
            words += ["--nnodes", str(self.nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint"]
        line = shlex.join(words) + (' "$HEAD:29500"' if self.nodes > 1 else "")
        program = ["-m", "--", "recipes.pretrain", "--grid", grid, "--run", self.run, "--out", out, *self.overrides]
        return f"{line} {shlex.join(program)}"


def plan_run(run: Run, cluster: Cluster, gpus: int, goodput: float = GOODPUT) -> Plan:
    """The fastest layout of a run on `gpus` GPUs. NoPlanError, with the reasons, if none is legal and fits."""
    check_gpus(cluster, gpus)
    cluster.rate(run.settings.precision)
    for shortest in SLICES[:-1]:
        with contextlib.suppress(NoPlanError):
            return _search(run, cluster, gpus, goodput, shortest)
    return _search(run, cluster, gpus, goodput, SLICES[-1])


def _search(run: Run, cluster: Cluster, gpus: int, goodput: float, shortest_slice: int) -> Plan:
    refusals = Refusals()
    model = CostModel(cluster)
    best: Plan | None = None
    smallest: tuple[Memory, RunSettings] | None = None
    considered = 0

    def may_be_faster(settings: RunSettings, data_parallel: int) -> bool:
        # Recomputation only takes longer: most layouts need no account of their memory.
        nonlocal considered
        considered += 1
        if best is None:
            return True
        if model.least_seconds(settings, data_parallel) >= best.step.total:
            return False
        return model.step_time(settings, data_parallel).total < best.step.total

    for settings, data_parallel, memory in legal_layouts(
        run.settings, cluster, gpus, refusals, shortest_slice, may_be_faster
    ):
        if memory.total > cluster.usable_bytes:
            if smallest is None or memory.total < smallest[0].total:
                smallest = memory, settings
            continue
        step = model.step_time(settings, data_parallel)
        if best is None or step.total < best.step.total:
            best = Plan(run.name, settings, cluster, gpus, data_parallel, memory, step, goodput)
    if best is None:
        raise NoPlanError(_why_not(run, cluster, gpus, smallest, refusals.all()), refusals.all())
    # Of the checks on settings the search makes those on layouts alone; what it found passes them all.
    return dataclasses.replace(
        best, settings=dataclasses.replace(best.settings), considered=considered, refusals=refusals.all()
    )


def plan_within(run: Run, cluster: Cluster, days: float = DAYS, goodput: float = GOODPUT) -> Plan:
    """The plan with the fewest nodes, a power of two, that takes at most `days`; NoPlanError if there is none."""
    return Planner(cluster, goodput).within(run, days)


class Planner:
    """Plans of many runs on one cluster: runs that differ in budget and seed alone are searched once."""

    def __init__(self, cluster: Cluster, goodput: float = GOODPUT) -> None:
        self.cluster = cluster
        self.goodput = goodput
        self._found: dict[tuple, Plan] = {}

    def on(self, run: Run, gpus: int) -> Plan:
        """`plan_run`."""
        shape = {**vars(run.settings), "tokens": 0, "seed": 0, "num_checkpoints": 0, "skip_steps": ()}
        key = (repr(sorted(shape.items())), gpus)
        if key not in self._found:
            self._found[key] = plan_run(run, self.cluster, gpus, self.goodput)
        plan = self._found[key]
        layout_ = {name: getattr(plan.settings, name) for name in LAYOUT_SETTINGS}
        return dataclasses.replace(plan, run=run.name, settings=dataclasses.replace(run.settings, **layout_))

    def within(self, run: Run, days: float = DAYS) -> Plan:
        """`plan_within`."""
        self.cluster.rate(run.settings.precision)
        peak = max(self.cluster.peak_flops.values()) * self.cluster.gpus_per_node
        # What the GPUs' peak rate cannot do in time need not be searched.
        ideal = run.settings.flops_6nd(run.settings.num_steps * run.settings.tokens_per_step) / peak / _SECONDS_A_DAY
        nodes, slowest = 1, None
        while 2 * nodes <= MOST_NODES and ideal / nodes > days:
            nodes *= 2
        reason = NoPlanError(f"{run.name} has no plan on {self.cluster.name}")
        while nodes <= MOST_NODES:
            try:
                slowest = self.on(run, nodes * self.cluster.gpus_per_node)
                if slowest.days <= days:
                    return slowest
            except NoPlanError as error:
                reason = error
            nodes *= 2
        if slowest is None:
            raise reason
        raise NoPlanError(
            f"{run.name} takes {slowest.days:.0f} days on {slowest.gpus} GPUs of {self.cluster.name}, more than "
            f"--days {days:g}; raise it, or give --gpus"
        )


def check_gpus(cluster: Cluster, gpus: int) -> None:
    """UserError unless `gpus` are part of one node or whole nodes."""
    node = cluster.gpus_per_node
    if gpus < 1 or (gpus > node and gpus % node) or (gpus < node and node % gpus):
        low = max(node, gpus // node * node)
        raise UserError(
            f"{gpus} GPUs are no whole number of {cluster.name} nodes of {node}; give --gpus {low} or {low + node}"
        )


def legal_layouts(
    base: RunSettings,
    cluster: Cluster,
    gpus: int,
    refusals: Refusals,
    shortest_slice: int = SLICES[-1],
    wanted: Callable[[RunSettings, int], bool] = lambda settings, data_parallel: True,
) -> Iterator[tuple[RunSettings, int, Memory]]:
    """Every legal layout on `gpus` GPUs with its replicas and the memory of its fullest GPU, in the cheapest
    recomputation that fits; those that fit in none come too, with the full one's memory. Context parallel ranks hold
    at least `shortest_slice` tokens of a sequence. Layouts that are not `wanted`, asked without recomputation, are left
    out."""
    base = dataclasses.replace(base, **_DEFAULTS)
    for tensor in _divisors(gpus, cluster.gpus_per_node):
        cut = _try(base, refusals, tensor_parallel=tensor, sequence_parallel=tensor > 1)
        if cut is None:
            continue
        for context in _divisors(gpus // tensor, max(1, base.sequence_length // shortest_slice)):
            shared = _try(cut, refusals, context_parallel=context)
            if shared is None:
                continue
            for pipeline in _divisors(gpus // tensor // context, base.num_layers + 2):
                try:
                    replicas = layout.data_parallel_size(shared, gpus // pipeline)
                except UserError as error:
                    refusals.add(str(error), shared, f" x PP {pipeline}")
                    continue
                distributed = replicas * context > 1
                for stage_settings in _pipelines(shared, pipeline, refusals):
                    settings = _unchecked(stage_settings, distributed_optimizer=distributed)
                    yield from _micro_batches(settings, replicas, cluster, gpus, refusals, wanted)


_DEFAULTS: dict[str, Any] = {
    item.name: item.default for item in dataclasses.fields(RunSettings) if item.name in LAYOUT_SETTINGS
}


def _try(settings: RunSettings, refusals: Refusals, **changes: Any) -> RunSettings | None:
    """`settings` with `changes`, or None and the reason noted if that is no legal layout."""
    changed = _unchecked(settings, **changes)
    try:
        layout.check(changed)
    except UserError as error:
        words = " ".join(f"{key}={value}" for key, value in changes.items() if value != _DEFAULTS.get(key))
        refusals.add(str(error), settings, f" with {words}")
        return None
    return changed


def _pipelines(settings: RunSettings, stages: int, refusals: Refusals) -> Iterator[RunSettings]:
    """Ways to cut the layers into `stages`: evenly, with embedding and loss counted as layers, with lighter ends;
    each with every number of virtual stages that divides it."""
    if stages == 1:
        yield settings
        return
    ways: list[dict[str, Any]] = [{}, {"embedding_and_loss_as_layers": True}]
    ways += [{"first_stage_layers": a, "last_stage_layers": b} for a, b in _uneven(settings, stages)]
    for way in ways:
        cut = _try(settings, refusals, pipeline_parallel=stages, **way)
        if cut is None:
            continue
        yield cut
        each = math.gcd(middle_layers(cut), cut.first_stage_layers, cut.last_stage_layers)
        for chunks in _divisors(each, each)[1:]:
            if virtual := _try(cut, refusals, virtual_pipeline_parallel=chunks):
                yield virtual


def _uneven(settings: RunSettings, stages: int) -> Iterator[tuple[int, int]]:
    """Layers of the first and the last stage where the last is lighter by about what the output layer weighs and
    the stages between are equal."""
    layers = settings.num_layers
    table = settings.padded_vocab_size * settings.hidden_size
    output = round(table * layers / settings.parameters_non_embedding)
    even = -(-layers // stages)
    for each in range(even, even + 3):
        ends = layers - (stages - 2) * each
        for last in sorted({max(1, each - output + shift) for shift in (-1, 0, 1)}):
            first = ends - last
            if 1 <= first <= max(each, last) and (first, last) != (each, each):
                yield first, last


def _micro_batches(
    settings: RunSettings,
    replicas: int,
    cluster: Cluster,
    gpus: int,
    refusals: Refusals,
    wanted: Callable[[RunSettings, int], bool],
) -> Iterator[tuple[RunSettings, int, Memory]]:
    virtual, stages = settings.virtual_pipeline_parallel > 1, settings.pipeline_parallel
    share = settings.global_batch_size // replicas
    for micro in _divisors(share, LARGEST_MICRO_BATCH):
        candidate = _unchecked(settings, micro_batch_size=micro)
        if virtual and share // micro % stages:
            refusals.add_from(lambda it=candidate: layout.data_parallel_size(it, gpus), (stages, micro), candidate)
            continue
        if not wanted(candidate, replicas):
            continue
        for recompute in RECOMPUTE:
            if recompute != candidate.recompute:
                candidate = _unchecked(candidate, recompute=recompute)
            memory = worst_rank(candidate, replicas)
            if memory.total <= cluster.usable_bytes:
                yield candidate, replicas, memory
                break
        else:
            refusals.add(f"more than the {cluster.usable_bytes / GIB:.1f} GiB that a GPU has", candidate)
            yield candidate, replicas, memory
            # A larger micro-batch needs more.
            return


def _unchecked(settings: RunSettings, **changes: Any) -> RunSettings:
    """`settings` with changes, without any of the checks, which would be most of the search's time."""
    copied = object.__new__(type(settings))
    vars(copied).update(vars(settings), **changes)
    return copied


def _divisors(number: int, largest: int) -> list[int]:
    return [d for d in range(1, min(number, largest) + 1) if number % d == 0]


def _why_not(
    run: Run,
    cluster: Cluster,
    gpus: int,
    smallest: tuple[Memory, RunSettings] | None,
    refusals: tuple[Refusal, ...],
) -> str:
    if smallest is None:
        batch = [refusal.reason for refusal in refusals if "sequences" in refusal.reason]
        reason = batch[-1] if batch else refusals[-1].reason
        return f"{run.name} has no legal layout on {gpus} GPUs: {reason}"
    memory, settings = smallest
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in memory.items())
    return (
        f"{run.name} does not fit on {gpus} GPUs of {cluster.name}: {describe(settings)} needs least, "
        f"{memory.total / GIB:.1f} GiB a GPU ({parts}) of {cluster.usable_bytes / GIB:.1f}; give more GPUs"
    )
