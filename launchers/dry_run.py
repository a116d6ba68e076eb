"""The plan as a person reads it: settings, steps, times, sizes. Nothing is written.

bash launchers/slurm_grid.sh --grid recipes/grids/smoke.yaml --dry-run
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from launchers.checks import check_machine, needed_disk_bytes, tasks_of
from launchers.directory import check_unchanged, documents_bytes
from launchers.estimate import TRAINING_EFFICIENCY, Estimator, phase_seconds, total_seconds
from launchers.machine import measure
from launchers.plan import REPOSITORY, GridDirectory, Inputs, Plan, Step, build_plan
from launchers.status import format_duration
from recipes.grid import Grid, Run, table
from tokenizer.cli import UserError


def print_plan(
    grid: Grid,
    runs: Sequence[Run],
    folder: GridDirectory,
    inputs: Inputs,
    jobs: int,
    console: Console,
) -> None:
    """Print what a launch would do and how long it would take on this machine."""
    check_unchanged(grid, folder)
    tasks = tasks_of(grid, inputs)
    corpus_bytes = documents_bytes(inputs)
    plan = build_plan(grid, folder, inputs, runs, jobs)
    rates = measure([run.settings.hidden_size for run in runs], jobs)
    rows_per_task = inputs.rows_per_task(grid.evaluation.limit)
    estimator = Estimator(runs, folder, rates, len(tasks), rows_per_task, corpus_bytes, jobs)

    def say(text: str = "") -> None:
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    console.print(table(dataclasses.replace(grid, runs=tuple(runs))))
    rows = f"{rows_per_task} rows each" if rows_per_task else "all rows"
    say(
        f"\ntokenizer: {grid.tokenizer.vocab_size:,} pieces; evaluation: {len(tasks)} tasks, {rows}; in {folder.path}\n"
    )
    console.print(_steps_table(plan, estimator))
    say("\nThe commands, one of each kind:")
    for phase in plan.phases:
        say(f"  {_command(next(step for step in plan if step.phase == phase))}")
    say()
    console.print(_phases_table(plan, estimator, jobs))
    slowest, fastest = min(rates.values()), max(rates.values())
    measured = f"; read from finished steps for {', '.join(m)}" if (m := estimator.measured_sizes) else ""
    say(
        f"Assumed: a run's matrix products reach {TRAINING_EFFICIENCY:.0%} of this machine's rate, measured now as "
        f"{slowest / 1e9:.0f} to {fastest / 1e9:.0f} GFLOP/s a core with {jobs} at work{measured}."
    )
    if corpus_bytes is None:
        say("The time for encoding is that of an empty corpus; give --corpus for a better one.")
    disk = needed_disk_bytes(runs, folder, corpus_bytes or 0, jobs)
    beside = "" if corpus_bytes else " beside the encoded documents"
    say(f"Disk: {_size(disk)} more{beside} at the fullest moment, optimizer states to resume from included.")
    try:
        check_machine(runs, folder, corpus_bytes or 0, jobs)
    except UserError as error:
        say(f"This machine would refuse it: {error}")


def _steps_table(plan: Plan, estimator: Estimator) -> Table:
    """A line a step; the evaluations of a run share one."""
    shown = Table(title=f"{len(plan)} steps", title_justify="left")
    for heading in ("step", "done", "time alone"):
        shown.add_column(heading, justify="right" if heading == "time alone" else "left")
    seen: set[str] = set()
    whole = {step.name for step in plan.done()}
    for step in plan:
        same = [step]
        name = step.name
        if step.items and step.run is not None:
            name = f"evaluate {step.run}"
            same = [other for other in plan if other.items and other.run == step.run]
        if name in seen:
            continue
        seen.add(name)
        done = sum(other.name in whole for other in same)
        state = f"{done} of {len(same)}" if len(same) > 1 else "yes" if done else "no"
        shown.add_row(name, state, format_duration(sum(estimator.seconds(other) for other in same)))
    return shown


def _phases_table(plan: Plan, estimator: Estimator, jobs: int) -> Table:
    shown = Table(title=f"Time on this machine, {jobs} side by side", title_justify="left")
    for heading in ("phase", "in all", "still to do"):
        shown.add_column(heading, justify="left" if heading == "phase" else "right")
    whole = phase_seconds(plan, estimator.seconds, jobs)
    left = phase_seconds(plan, estimator.left, jobs)
    for phase in plan.phases:
        shown.add_row(phase, format_duration(whole[phase]), format_duration(left[phase]))
    shown.add_section()
    shown.add_row(
        "together",
        format_duration(total_seconds(plan, estimator.seconds, jobs)),
        format_duration(total_seconds(plan, estimator.left, jobs)),
    )
    return shown


def _command(step: Step) -> str:
    """A command as a person would type it in the repository."""
    words = [word.removeprefix(f"{REPOSITORY}/") for word in (*step.command, *step.items)]
    return shlex.join("python" if word == sys.executable.removeprefix(f"{REPOSITORY}/") else word for word in words)


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count > 2**30 else f"{count / 2**20:,.0f} MiB"
