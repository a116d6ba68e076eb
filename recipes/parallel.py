"""The layout planner: how to spread each run of a grid over a cluster's GPUs, how long it takes, what it costs.

Every layout of tensor, pipeline (even, uneven and virtual stages), context and data parallel ranks, micro-batch and
recomputation is checked, its fullest GPU counted byte by byte, its step timed by a model; the fastest that fits is
the plan. The model and its assumptions stand in docs/planner.md.

    python -m recipes.parallel --grid paper --cluster dgx-a100 --gpus 256
    python -m recipes.parallel --grid paper --cluster dgx-a100 --gpus 2048 --run 32B-2.5T --explain
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recipes.cluster import GIB, Cluster, load_cluster
from recipes.grid import Grid, Run, load_grid, override
from recipes.planner import DAYS, GOODPUT, Plan, Planner
from recipes.refusals import NoPlanError, describe
from tokenizer import cli
from tokenizer.cli import UserError

_MOST_REASONS = 20


def show(
    grid: Grid,
    runs: Sequence[Run],
    cluster: Cluster,
    found: Sequence[Plan | NoPlanError],
    explain: bool,
    given: Sequence[str],
) -> None:
    """Print the plans of `runs`, one of `found` each; `given` are the user's own key=value settings."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=170, highlight=False)
    plans = [plan for plan in found if isinstance(plan, Plan)]
    console.print(table(grid, cluster, plans))
    for run, plan in zip(runs, found, strict=True):
        if isinstance(plan, NoPlanError):
            console.print(f"no plan: {escape(str(plan))}", soft_wrap=True)
        if explain:
            _explain(console, run, plan)
    if len(plans) == 1 and len(runs) == 1:
        _details(console, grid, plans[0], given)
    elif plans:
        console.print(
            "--run NAME shows one run's memory, time and the command that trains it; --explain what was refused."
        )


def table(grid: Grid, cluster: Cluster, plans: Sequence[Plan]) -> Table:
    """A line a plan: the layout, memory, speed, time and cost."""
    goodput = f", goodput {plans[0].goodput:.0%}" if plans else ""
    shown = Table(title=f"{grid.name} on {cluster.name}{goodput}", title_justify="left")
    shown.add_column("run")
    shown.add_column("layout", no_wrap=True)
    for heading in ("DP", "GPUs", "GiB a GPU", "s a step", "MFU (6ND)", "MFU (exact)", "days", "GPU-days", "GPU-hours"):
        shown.add_column(heading, justify="right")
    for plan in plans:
        shown.add_row(
            plan.run,
            describe(plan.settings),
            str(plan.data_parallel),
            f"{plan.gpus:,}",
            f"{plan.memory.total / GIB:.1f}",
            f"{plan.step.total:.3f}",
            f"{plan.utilisation():.1%}",
            f"{plan.utilisation(exact=True):.1%}",
            f"{plan.days:.2f}",
            f"{plan.gpu_days:,.0f}",
            f"{plan.gpu_hours:,.0f}",
        )
    if len(plans) > 1:
        shown.add_section()
        days, gpu_days = sum(plan.days for plan in plans), sum(plan.gpu_days for plan in plans)
        blank = [""] * 7
        shown.add_row("one after another", *blank, f"{days:.2f}", f"{gpu_days:,.0f}", f"{24 * gpu_days:,.0f}")
    return shown


def _details(console: Console, grid: Grid, plan: Plan, given: Sequence[str]) -> None:
    memory = Table(title=f"Memory of the fullest GPU, pipeline stage {plan.memory.stage}", title_justify="left")
    memory.add_column("part")
    memory.add_column("bytes", justify="right")
    memory.add_column("GiB", justify="right")
    for name, size in (*plan.memory.items(), ("together", plan.memory.total), ("usable", plan.cluster.usable_bytes)):
        memory.add_row(name, f"{size:,}", f"{size / GIB:.2f}")
    console.print(memory)
    time = Table(title="Time of a step", title_justify="left")
    time.add_column("part")
    time.add_column("ms", justify="right")
    time.add_column("share", justify="right")
    for name, seconds in (*plan.step.items(), ("together", plan.step.total)):
        time.add_row(name, f"{1000 * seconds:,.1f}", f"{seconds / plan.step.total:.1%}")
    console.print(time)
    legal = f"{plan.considered:,} legal layouts were compared"
    refused = sum(refusal.count for refusal in plan.refusals)
    console.print(f"{legal}, {refused:,} refused (--explain says why). On each node:")
    name = grid.path.stem if grid.path.parent.name == "grids" else str(grid.path)
    line = " ".join([plan.command(name, f"runs/{grid.name}"), *given])
    console.print(escape(line), soft_wrap=True)


def _explain(console: Console, run: Run, plan: Plan | NoPlanError) -> None:
    shown = Table(title=f"Refused for {run.name}", title_justify="left")
    shown.add_column("layouts", justify="right")
    shown.add_column("reason")
    shown.add_column("as in")
    refusals = sorted(plan.refusals, key=lambda refusal: -refusal.count)
    for refusal in refusals[:_MOST_REASONS]:
        shown.add_row(f"{refusal.count:,}", escape(refusal.reason), escape(refusal.layout))
    console.print(shown)
    if len(refusals) > _MOST_REASONS:
        console.print(f"and {len(refusals) - _MOST_REASONS} more reasons")


def main(argv: Sequence[str] | None = None) -> int:
    """Plan the runs of a grid and print the plans."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.parallel", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--grid", required=True, help="a grid file, or the name of a shipped grid")
    parser.add_argument(
        "--cluster",
        required=True,
        help="a cluster file, or the name of one in launchers/clusters: dgx-a100, dgx-h100, dgx-h200, dgx-b200",
    )
    parser.add_argument(
        "--gpus",
        type=int,
        help="GPUs of each run (default: for each run the fewest nodes, a power of two, that take at most --days)",
    )
    parser.add_argument("--days", type=float, default=DAYS, help="longest time of a run (default: %(default)s)")
    parser.add_argument("--run", default="*", metavar="PATTERN", help="runs to plan, as 'small-*' (default: all)")
    parser.add_argument(
        "--goodput",
        type=float,
        default=GOODPUT,
        help="share of the wall-clock time in which steps are taken; the rest goes into restarts, checkpoints and "
        "slow nodes (default: %(default)s)",
    )
    parser.add_argument("--explain", action="store_true", help="say of each run why layouts were refused")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings that replace the grid's")
    arguments = parser.parse_args(argv)
    if not 0 < arguments.goodput <= 1:
        raise UserError(f"--goodput is {arguments.goodput}; it is a share, above 0 and at most 1")
    if not arguments.days > 0:
        raise UserError(f"--days is {arguments.days}; it must be above 0")
    grid, cluster = load_grid(arguments.grid), load_cluster(arguments.cluster)
    runs = grid.select(arguments.run)
    planner = Planner(cluster, arguments.goodput)
    found: list[Plan | NoPlanError] = []
    with cli.progress_bar() as bar:
        for run in bar.track(runs, description="planning"):
            run = Run(run.name, override(run.settings, arguments.settings))
            try:
                of_days = arguments.gpus is None
                found.append(planner.within(run, arguments.days) if of_days else planner.on(run, arguments.gpus))
            except NoPlanError as error:
                if len(runs) == 1 and not arguments.explain:
                    raise
                found.append(error)
    show(grid, runs, cluster, found, arguments.explain, arguments.settings)
    return 0


if __name__ == "__main__":
    cli.run(main)
