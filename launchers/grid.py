"""Trains and evaluates every run of a grid and writes the report, with all cores of this machine.

Steps that are done are not done again: after an interruption of any kind, run the same command once more.

    bash launchers/slurm_grid.sh --grid recipes/grids/smoke.yaml --corpus DIR --benchmarks DIR
    bash launchers/slurm_grid.sh --grid recipes/grids/smoke.yaml --dry-run      # what it would do, and how long
    bash launchers/slurm_grid.sh --grid recipes/grids/smoke.yaml --status       # how far it is, from elsewhere
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from launchers.checks import check_before_start, tasks_of
from launchers.directory import locked, write_grid, write_sources
from launchers.dry_run import print_plan
from launchers.estimate import Estimator, total_seconds
from launchers.local import LocalExecutor, Outcome
from launchers.machine import measure
from launchers.plan import GridDirectory, build_plan
from launchers.status import Notes, format_duration, status_table, status_value
from launchers.watch import Display
from recipes.grid import Grid, Run, load_grid
from tokenizer import cli
from tokenizer.cli import UserError

PLAIN_WIDTH = 160
"""Columns of a table that is not printed on a terminal."""


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out, plan or describe the study of one grid."""
    arguments = _parser().parse_args(argv)
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    grid = load_grid(arguments.grid)
    folder = GridDirectory((arguments.out or Path("runs") / grid.name).resolve())
    if arguments.json and not arguments.status:
        raise UserError("--json goes with --status; add --status")
    if arguments.status:
        if arguments.json:
            print(json.dumps(status_value(grid, folder), indent=2, ensure_ascii=False))
        else:
            console.print(status_table(grid, folder))
        return 0
    runs = grid.select(*filter(None, [arguments.runs]))
    if arguments.dry_run:
        print_plan(grid, runs, folder, arguments.corpus, arguments.benchmarks, arguments.jobs, console)
        return 0
    return _launch(grid, runs, folder, arguments, console)


def _launch(
    grid: Grid, runs: Sequence[Run], folder: GridDirectory, arguments: argparse.Namespace, console: Console
) -> int:
    jobs, started = arguments.jobs, time.time()
    corpus, benchmarks = (path and path.resolve() for path in (arguments.corpus, arguments.benchmarks))
    sources = check_before_start(grid, runs, folder, corpus, benchmarks, jobs)
    with locked(folder) as lock:
        write_grid(grid, folder)
        write_sources(sources, folder)
        plan = build_plan(grid, folder, corpus, benchmarks, runs, jobs)
        rates = measure([run.settings.hidden_size for run in runs], jobs)
        num_tasks = len(tasks_of(grid))
        estimator = Estimator(runs, folder, rates, num_tasks, grid.evaluation.limit, sources["bytes"], jobs)
        display = Display(plan, estimator, jobs, console)
        done = sum(step.done() for step in plan)
        left = total_seconds(plan, estimator.left, jobs)
        display.say(
            f"{escape(grid.name)}: {len(plan)} steps, {done} done before; {jobs} side by side, "
            f"about {format_duration(left)}; in {escape(str(folder.path))}"
        )
        observers = (Notes(folder, jobs), estimator, display)
        with display.drawing():
            outcome = LocalExecutor(plan, jobs, estimator.left, observers, inherit=(lock,)).run()
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
        "--grid", required=True, metavar="FILE", help="the grid: a YAML file, or the name of a shipped one (smoke)"
    )
    parser.add_argument(
        "--corpus",
        type=Path,
        metavar="DIR",
        help="documents to train on: JSON lines (plain, .gz, .zst), Parquet, or directories of .txt files",
    )
    parser.add_argument(
        "--benchmarks",
        type=Path,
        metavar="DIR",
        help="the benchmarks' official files, a folder each (hellaswag/, mmlu/, ...)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where everything is written (default: runs/<name of the grid>)"
    )
    parser.add_argument("--runs", metavar="GLOB", help="only the runs whose names match, as 'small-*' (default: all)")
    parser.add_argument(
        "--jobs",
        type=_num_jobs,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="processes side by side, one thread each (default: the cores there are, %(default)s)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan with times and sizes; needs no data and writes nothing"
    )
    parser.add_argument("--status", action="store_true", help="print what each run has done; also during a launch")
    parser.add_argument("--json", action="store_true", help="with --status: as JSON")
    parser.add_argument("--no-open", action="store_true", help="do not open the report in a browser")
    return parser


if __name__ == "__main__":
    cli.run(main)
