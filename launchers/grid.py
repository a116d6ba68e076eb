"""Trains and evaluates every run of a grid and writes the report: on this machine, or on a Slurm cluster.

Steps that are done are not done again: after an interruption of any kind, run the same command once more.

    bash launchers/slurm_grid.sh                                    # the grid micro, whose data it makes itself
    bash launchers/slurm_grid.sh --grid recipes/grids/realtext.yaml --corpus DIR --benchmarks DIR
    bash launchers/slurm_grid.sh --grid paper --cluster launchers/clusters/h100.yaml --corpus DIR --benchmarks DIR
    bash launchers/slurm_grid.sh --grid paper --dry-run             # what it would do, and how long
    bash launchers/slurm_grid.sh --grid paper --status --watch      # how far it is, from any terminal
    bash launchers/slurm_grid.sh --grid paper --resume 6B-3T        # try again what was given up or cancelled
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.markup import escape

from launchers.checks import check_before_start, tasks_of
from launchers.devices import find_gpus, num_jobs
from launchers.directory import choose_inputs, launcher_pid, locked, write_grid, write_sources
from launchers.dry_run import print_plan
from launchers.estimate import Estimator, total_seconds
from launchers.local import LocalExecutor, Outcome
from launchers.machine import measure
from launchers.plan import REPOSITORY, GridDirectory, Inputs, build_plan
from launchers.queued import QueuedJob
from launchers.status import Notes, format_duration, status_table, status_value
from launchers.watch import Display, watch
from recipes.grid import Grid, Run, load_grid
from recipes.planner import DAYS
from tokenizer import cli
from tokenizer.cli import UserError

PLAIN_WIDTH = 160
"""Columns of a table that is not printed on a terminal."""

CANCEL_SECONDS = 60.0
"""How long a launcher that was told to stop may take to end its processes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out, plan or describe the study of one grid."""
    arguments = _parser().parse_args(argv)
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    grid = load_grid(arguments.grid)
    folder = GridDirectory((arguments.out or Path("runs") / grid.name).resolve())
    _check_options(arguments)
    if arguments.status:
        return _status(grid, folder, arguments, console)
    if arguments.collect:
        return _collect(folder, console)
    chosen = arguments.resume or arguments.runs
    runs = grid.select(*filter(None, [chosen]))
    if _uses_slurm(folder, arguments):
        return _on_slurm(grid, runs, folder, arguments, console)
    if arguments.cancel:
        return _cancel_local(folder, console)
    inputs = _inputs(grid, folder, arguments)
    if arguments.dry_run:
        print_plan(grid, runs, folder, inputs, arguments.jobs or num_jobs(find_gpus()), console)
        return 0
    return _launch(grid, runs, folder, inputs, arguments, console)


def _check_options(arguments: argparse.Namespace) -> None:
    for option, needed in (("json", "status"), ("watch", "status")):
        if getattr(arguments, option) and not getattr(arguments, needed):
            raise UserError(f"--{option} goes with --{needed}; add --{needed}")
    if arguments.json and arguments.watch:
        raise UserError("--json and --watch exclude one another; give one")
    if arguments.gpus is not None and arguments.gpus < 1:
        raise UserError(f"--gpus is {arguments.gpus}; it must be above 0")
    if not arguments.days > 0:
        raise UserError(f"--days is {arguments.days:g}; it must be above 0")


def _uses_slurm(folder: GridDirectory, arguments: argparse.Namespace) -> bool:
    """Whether Slurm carries the grid out: as asked, or where a cluster is given, or as it was launched."""
    if arguments.local:
        if folder.is_on_slurm and _queue(folder):
            raise UserError(f"jobs of {folder.path} are in Slurm's queue; end them with --cancel before --local")
        return False
    return bool(arguments.slurm or arguments.cluster or folder.is_on_slurm)


def _queue(folder: GridDirectory) -> Mapping[str, QueuedJob]:
    """The study's jobs by step; none where it is not on Slurm."""
    if not folder.is_on_slurm:
        return {}
    # Here, because only those who use Slurm have need of it.
    from launchers.slurm.reconcile import Reconciler
    from launchers.slurm.study import Study

    return Reconciler(Study.read(folder)).queue


def _status(grid: Grid, folder: GridDirectory, arguments: argparse.Namespace, console: Console) -> int:
    def queue() -> Mapping[str, QueuedJob]:
        try:
            return _queue(folder)
        except UserError as error:
            # What the files say is true without Slurm as well.
            print(f"without Slurm's queue: {error}", file=sys.stderr)
            return {}

    if arguments.json:
        print(json.dumps(status_value(grid, folder, queue()), indent=2, ensure_ascii=False))
        return 0

    def read() -> RenderableType:
        height = console.height if console.is_terminal and arguments.watch else None
        return status_table(grid, folder, queue(), height)

    if arguments.watch:
        return watch(read, console, finished=lambda: bool(status_value(grid, folder, {})["done"]))
    console.print(read())
    return 0


def _collect(folder: GridDirectory, console: Console) -> int:
    """Write the report from the results that there are."""
    if not any(folder.path.glob("*/eval/step_*.json")):
        raise UserError(f"there are no results in {folder.path} yet; see --status")
    code = subprocess.run([sys.executable, "-m", "analysis.report", str(folder.path)], cwd=REPOSITORY).returncode
    if code == 0:
        console.print(f"report: {folder.report_page}", highlight=False, soft_wrap=True, markup=False)
    return code


def _on_slurm(
    grid: Grid, runs: Sequence[Run], folder: GridDirectory, arguments: argparse.Namespace, console: Console
) -> int:
    from launchers.slurm import launch as slurm_launch

    if arguments.cancel:
        return slurm_launch.cancel_study(folder, runs if arguments.runs else None, console)
    if arguments.resume:
        return slurm_launch.resume(folder, runs, console)
    request = slurm_launch.Request(
        *(grid, tuple(runs), folder, arguments.cluster, _inputs(grid, folder, arguments)),
        *(arguments.days, arguments.gpus, arguments.dry_run, arguments.yes),
    )
    return slurm_launch.launch(request, console)


def _inputs(grid: Grid, folder: GridDirectory, arguments: argparse.Namespace) -> Inputs:
    inputs = choose_inputs(grid, folder, arguments.corpus, arguments.benchmarks)
    if grid.microworld is not None and len(inputs.given) == 1:
        given, missing = ("corpus", "benchmarks") if inputs.corpus else ("benchmarks", "corpus")
        raise UserError(
            f"--{missing} is missing; give it beside --{given}, or neither, and both are made as {grid.path} says"
        )
    return inputs


def _cancel_local(folder: GridDirectory, console: Console) -> int:
    """End the launcher that is at work in the directory; its runs save first."""
    pid = launcher_pid(folder)
    if pid is None:
        raise UserError(f"no launcher is at work in {folder.path}")
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + CANCEL_SECONDS
    while launcher_pid(folder) == pid:
        if time.monotonic() > deadline:
            raise UserError(f"process {pid} has not ended in {CANCEL_SECONDS:.0f} s; end it with: kill -9 {pid}")
        time.sleep(0.2)
    console.print(f"Ended the launcher (process {pid}); run the same launch again to go on.", highlight=False)
    return 0


def _launch(
    grid: Grid,
    runs: Sequence[Run],
    folder: GridDirectory,
    inputs: Inputs,
    arguments: argparse.Namespace,
    console: Console,
) -> int:
    started, gpus = time.time(), find_gpus()
    jobs = arguments.jobs or num_jobs(gpus)
    sources = check_before_start(grid, runs, folder, inputs, jobs)
    with locked(folder) as lock:
        write_grid(grid, folder)
        write_sources(sources, folder)
        plan = build_plan(grid, folder, inputs, runs, num_jobs(()) if gpus else jobs)
        rates = measure([run.settings.hidden_size for run in runs], jobs)
        num_tasks = len(tasks_of(grid, inputs))
        rows = inputs.rows_per_task(grid.evaluation.limit)
        estimator = Estimator(runs, folder, rates, num_tasks, rows, sources["bytes"], jobs)
        display = Display(plan, estimator, jobs, console)
        done = len(plan.done())

        def left() -> float:
            return total_seconds(plan, estimator.left, jobs)

        display.say(
            f"{escape(grid.name)}: {len(plan)} steps, {done} done before; {jobs} side by side, "
            f"about {format_duration(left())}; in {escape(str(folder.path))}"
        )
        observers = (Notes(folder, jobs, left), estimator, display)
        with display.drawing():
            outcome = LocalExecutor(plan, jobs, estimator.left, observers, inherit=(lock,), gpus=gpus).run()
    _summarise(outcome, console)
    if folder.report_page.is_file():
        console.print(f"report: {folder.report_page}", highlight=False, soft_wrap=True, markup=False)
    console.print(f"elapsed: {format_duration(time.time() - started)}", highlight=False)
    if not outcome.failed and not arguments.no_open and _has_display():
        with contextlib.suppress(webbrowser.Error):
            webbrowser.open(folder.report_page.as_uri())
    return outcome.exit_code


def _summarise(outcome: Outcome, console: Console) -> None:
    """Say what failed and what to do, one line a failed step."""
    for failure in outcome.failed:
        # A step's word to the user is passed on as ours.
        kind = "error" if failure.is_user_error else f"failed (exit code {failure.exit_code})"
        print(f"{kind}: {failure.step.name}: {failure.message} [log: {failure.log}]", file=sys.stderr)
    if outcome.failed:
        console.print(
            f"{len(outcome.done)} steps are done, {len(outcome.failed)} failed and {len(outcome.blocked)} "
            "were not started because of that; mend the cause and run the same command again, "
            "what is done is kept",
            highlight=False,
            soft_wrap=True,
        )


def _has_display() -> bool:
    """Whether somebody sits in front of a screen."""
    return sys.stdout.isatty() and any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _num_jobs(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number above 0")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bash launchers/slurm_grid.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--grid",
        default="micro",
        metavar="FILE",
        help="the grid: a YAML file, or the name of a shipped one, as smoke (default: %(default)s)",
    )
    parser.add_argument(
        "--corpus",
        type=Path,
        metavar="DIR",
        help="documents to train on: JSON lines (plain, .gz, .zst), Parquet, or directories of .txt files (default: as "
        "before, or made by the grid's microworld)",
    )
    parser.add_argument(
        "--benchmarks",
        type=Path,
        metavar="DIR",
        help="the benchmarks' official files, a folder each: hellaswag/, mmlu/, ... (default: as --corpus)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where everything is written (default: runs/<name of the grid>)"
    )
    parser.add_argument("--runs", metavar="GLOB", help="only the runs whose names match, as 'small-*' (default: all)")
    parser.add_argument(
        "--jobs",
        type=_num_jobs,
        metavar="N",
        help="processes side by side, each with a GPU or one thread (default: the GPUs there are, or the cores)",
    )
    parser.add_argument(
        "--cluster",
        metavar="FILE",
        help="launch on Slurm: a cluster file, or the name of a shipped one (h100); docs/cluster.md",
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--local", action="store_true", help="on this machine, although a cluster is known")
    place.add_argument("--slurm", action="store_true", help="on Slurm (implied by --cluster, and by a launch there)")
    parser.add_argument(
        "--days",
        type=float,
        default=DAYS,
        help="on Slurm: longest time of a run, by the planner (default: %(default)g)",
    )
    parser.add_argument("--gpus", type=int, help="on Slurm: GPUs of each run, instead of --days")
    parser.add_argument("--yes", action="store_true", help="on Slurm: submit without asking")
    verbs = parser.add_mutually_exclusive_group()
    verbs.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan with times and sizes; needs no data and starts nothing (on Slurm: writes the job scripts)",
    )
    verbs.add_argument("--status", action="store_true", help="print what each run has done; also during a launch")
    verbs.add_argument("--cancel", action="store_true", help="end the launch (on Slurm with --runs: of these runs)")
    verbs.add_argument("--resume", metavar="RUN", help="try again runs that were given up or cancelled (a pattern)")
    verbs.add_argument("--collect", action="store_true", help="write the report from the results that there are")
    parser.add_argument("--json", action="store_true", help="with --status: as JSON")
    parser.add_argument("--watch", action="store_true", help="with --status: keep it on the screen")
    parser.add_argument("--no-open", action="store_true", help="do not open the report in a browser")
    return parser


if __name__ == "__main__":
    cli.run(main)
