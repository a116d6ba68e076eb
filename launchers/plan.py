"""What a study consists of: its steps, what each needs, and how to see that it is done.

A plan is the same wherever it is carried out: `launchers.local` does it with this machine's cores, and another
executor can hand the same steps to a scheduler. A step's state is never stored: `done` looks at what the step
itself has written.

    python -m launchers.grid --grid recipes/grids/smoke.yaml --dry-run
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes import checkpoint, encoded, index, layout
from recipes.grid import Grid, Run
from recipes.microworld.settings import MANIFEST, MicroworldSettings
from tokenizer.cli import UserError

PREPARATION = {
    "world": "make the world",
    "tokenizer": "train the tokenizer",
    "encode": "encode the documents",
    "index": "index the documents",
}
"""Phases of one step each that every run waits for, in order, and the names of these steps."""

PHASES = (*PREPARATION, "train", "evaluate", "report")
"""Kinds of steps, in the order in which they are preferred when several could start."""

REPOSITORY = Path(__file__).resolve().parents[1]
"""The checkout; every step runs in it."""


@dataclass(frozen=True)
class Step:
    """One command that can be started, and started again after any interruption."""

    name: str
    phase: str
    """One of `PHASES`."""
    command: tuple[str, ...]
    """Program and arguments; never a line for a shell."""
    log: Path
    """File that its output is appended to."""
    done: Callable[[], bool]
    """Whether its output is whole on disk."""
    output: str = "its output"
    """What `done` looks for, in words."""
    needs: tuple[str, ...] = ()
    """Names of the steps that must be done before it starts."""
    needs_ended: bool = False
    """Start when all of `needs` have ended and one of them is done, although others failed (a scheduler's
    afterany instead of afterok)."""
    ready: Callable[[], bool] | None = None
    """Where given: start also before `needs` are done, as soon as this is true."""
    items: tuple[str, ...] = ()
    """Arguments to append. Steps with equal `command` may share a process: the command, then all their items."""
    run: str | None = None
    """The run that it belongs to."""
    progress: Callable[[], int] = lambda: 0
    """How far it is, in units of its own: where it goes on if it is started again."""
    processes: int = 1
    """Processes that it trains in: cores or GPUs of this machine that it takes."""


@dataclass(frozen=True)
class Plan:
    """Steps in an order in which each comes after what it needs."""

    steps: tuple[Step, ...]
    by_name: Mapping[str, Step] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        names: dict[str, Step] = {}
        for step in self.steps:
            if step.phase not in PHASES:
                raise ValueError(f"step {step.name}: {step.phase!r} is none of the phases {', '.join(PHASES)}")
            if step.name in names:
                raise ValueError(f"two steps are called {step.name}")
            if missing := [need for need in step.needs if need not in names]:
                raise ValueError(f"step {step.name} needs {missing[0]}, which does not stand before it")
            names[step.name] = step
        object.__setattr__(self, "by_name", names)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def done(self) -> list[Step]:
        """The steps that are not to be carried out. One that starts from whatever the steps before it left
        (`needs_ended`) is to be, although its output is there, while one of those is: it will have more to start from.
        """
        done: dict[str, Step] = {}
        for step in self.steps:
            if step.done() and (not step.needs_ended or all(need in done for need in step.needs)):
                done[step.name] = step
        return list(done.values())

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases that it has steps of, in their order."""
        return tuple(phase for phase in PHASES if any(step.phase == phase for step in self.steps))


@dataclass(frozen=True)
class Inputs:
    """What a study is made from (`launchers.directory.choose_inputs`)."""

    corpus: Path | None = None
    """Directory of documents; None in a plan that is only looked at."""
    benchmarks: Path | None = None
    """Directory of benchmark files; None as above."""
    world: MicroworldSettings | None = None
    """What a step of the plan makes both of; None where they are the user's."""

    @property
    def given(self) -> tuple[Path, ...]:
        """The paths that are the user's; those of a world lie in the grid's directory."""
        return () if self.world else tuple(path for path in (self.corpus, self.benchmarks) if path)

    def rows_per_task(self, limit: int | None) -> int | None:
        """Rows of a task that are evaluated under a grid's `limit`; None where that is not known before."""
        return min(limit or self.world.rows, self.world.rows) if self.world else limit


@dataclass(frozen=True)
class GridDirectory:
    """Names of the files that the steps of a grid write, below `path` (DESIGN: run directory)."""

    path: Path

    @property
    def world(self) -> Path:
        """Documents and benchmarks that are generated, where the user gives none."""
        return self.path / "world"

    @property
    def tokenizer(self) -> Path:
        """The trained tokenizer."""
        return self.path / "tokenizer"

    @property
    def data(self) -> Path:
        """The encoded documents."""
        return self.path / "data"

    @property
    def report(self) -> Path:
        """Where the report is written."""
        return self.path / "report"

    @property
    def logs(self) -> Path:
        """Output of every step, and the launcher's own notes."""
        return self.path / "logs"

    @property
    def slurm(self) -> Path:
        """Where the job scripts of a launch on Slurm lie, with what was decided for it."""
        return self.path / "slurm"

    @property
    def slurm_launch(self) -> Path:
        """What was decided for a launch on Slurm."""
        return self.slurm / "launch.json"

    @property
    def is_on_slurm(self) -> bool:
        """Whether the grid was launched on Slurm."""
        return self.slurm_launch.is_file()

    @property
    def grid_file(self) -> Path:
        """Copy of the grid file as launched."""
        return self.path / "grid.yaml"

    @property
    def report_page(self) -> Path:
        """The page that the report step writes."""
        return self.report / "index.html"

    def checkpoint(self, run: str, step: int) -> Path:
        """Directory of a run's checkpoint after `step` steps."""
        return self.path / run / "checkpoints" / f"step_{step}"

    def result(self, run: str, step: int) -> Path:
        """Result file of that checkpoint."""
        return self.path / run / "eval" / f"step_{step}.json"

    def has_checkpoint(self, run: str, step: int) -> bool:
        """Whether the checkpoint is whole: its manifest is written last."""
        return (self.checkpoint(run, step) / "manifest.json").is_file()

    def world_is_done(self, settings: MicroworldSettings) -> bool:
        """Whether the world is whole and was made with these settings."""
        return settings.is_written(self.world)

    def tokenizer_is_done(self) -> bool:
        """Whether the tokenizer is whole."""
        return (self.tokenizer / "manifest.json").is_file()

    def data_are_done(self) -> bool:
        """Whether the data are whole and were encoded with the tokenizer that is there."""
        wanted = read_json(self.tokenizer / "manifest.json").get("sha256")
        return wanted is not None and read_json(self.data / "manifest.json").get("tokenizer_sha256") == wanted

    def index_is_done(self, runs: Sequence[Run]) -> bool:
        """Whether the index of the data is there for each of `runs` that is not trained yet."""
        waiting = [run for run in runs if not self.has_checkpoint(run.name, run.settings.checkpoint_steps[-1])]
        if not waiting:
            return True
        try:
            data = encoded.read_data(self.data)
            return all(index.is_built(data, run.settings) for run in waiting)
        except UserError:
            # No data yet, or none that fit: it is their steps that say so.
            return False

    def report_is_done(self, results: Sequence[Path]) -> bool:
        """Whether the report is there and no older than any of the result files."""
        if not self.report_page.is_file():
            return False
        written = self.report_page.stat().st_mtime
        return all(path.stat().st_mtime <= written for path in results if path.is_file())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is none (yet)."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def build_plan(
    grid: Grid,
    folder: GridDirectory,
    inputs: Inputs,
    runs: Sequence[Run] | None = None,
    jobs: int = 1,
) -> Plan:
    """The steps that make the report of `grid` in `folder`.

    Args:
        inputs: Documents and benchmarks; with a world, the first step makes it.
        runs: The runs to train and evaluate; all of the grid by default.
        jobs: Processes side by side, which is also how many workers encode.
    """
    runs = grid.runs if runs is None else runs
    python = sys.executable
    documents, tasks = str(inputs.corpus or "CORPUS"), str(inputs.benchmarks or "BENCHMARKS")
    ratio = [f"{language}={weight:g}" for language, weight in grid.tokenizer.ratio.items()]
    world = [] if inputs.world is None else [_make_world(folder, inputs.world)]
    steps = [
        *world,
        Step(
            name=PREPARATION["tokenizer"],
            phase="tokenizer",
            command=(
                *(python, "-m", "tokenizer.train", "--corpus", documents, "--out", str(folder.tokenizer)),
                *("--vocab-size", str(grid.tokenizer.vocab_size), "--ratio", *ratio),
            ),
            log=folder.logs / "tokenizer.log",
            done=folder.tokenizer_is_done,
            output=str(folder.tokenizer / "manifest.json"),
            needs=tuple(step.name for step in world),
        ),
        Step(
            name=PREPARATION["encode"],
            phase="encode",
            command=(
                *(python, "-m", "tokenizer.encode", "--corpus", documents, "--tokenizer", str(folder.tokenizer)),
                *("--out", str(folder.data), "--workers", str(jobs)),
            ),
            log=folder.logs / "encode.log",
            done=folder.data_are_done,
            output=str(folder.data / "manifest.json"),
            needs=(PREPARATION["tokenizer"], *(step.name for step in world)),
        ),
        Step(
            name=PREPARATION["index"],
            phase="index",
            command=(
                *(python, "-m", "recipes.index_cache", "--grid", str(folder.grid_file), "--data", str(folder.data)),
                *(() if len(runs) == len(grid.runs) else [word for run in runs for word in ("--runs", run.name)]),
            ),
            log=folder.logs / "index.log",
            done=lambda: folder.index_is_done(runs),
            output=str(folder.data / index.DIRECTORY),
            needs=(PREPARATION["encode"],),
        ),
    ]
    evaluations = []
    for run in runs:
        last = run.settings.checkpoint_steps[-1]
        processes = layout.model_parallel_size(run.settings)
        train = Step(
            name=f"train {run.name}",
            phase="train",
            command=(*_train(processes), "--grid", str(folder.grid_file), "--run", run.name, "--out", str(folder.path)),
            log=folder.logs / f"train-{run.name}.log",
            done=lambda name=run.name, last=last: folder.has_checkpoint(name, last),
            output=str(folder.checkpoint(run.name, last)),
            needs=(PREPARATION["index"],),
            run=run.name,
            progress=lambda name=run.name: checkpoint.newest_saved_step(folder.path / name),
            processes=processes,
        )
        steps.append(train)
        evaluations += [
            Step(
                name=f"evaluate {run.name} step {step}",
                phase="evaluate",
                command=_evaluate(grid, tasks),
                log=folder.logs / f"evaluate-{run.name}-step_{step}.log",
                done=folder.result(run.name, step).is_file,
                output=str(folder.result(run.name, step)),
                needs=(train.name,),
                ready=lambda name=run.name, step=step: folder.has_checkpoint(name, step),
                items=(str(folder.checkpoint(run.name, step)),),
                run=run.name,
            )
            for step in run.settings.checkpoint_steps
        ]
    results = [folder.result(run.name, step) for run in runs for step in run.settings.checkpoint_steps]
    report = Step(
        name="write the report",
        phase="report",
        command=(python, "-m", "analysis.report", str(folder.path)),
        log=folder.logs / "report.log",
        done=lambda: folder.report_is_done(results),
        output=str(folder.report_page),
        needs=tuple(step.name for step in evaluations),
        needs_ended=True,
    )
    return Plan((*steps, *evaluations, report))


def _make_world(folder: GridDirectory, settings: MicroworldSettings) -> Step:
    return Step(
        name=PREPARATION["world"],
        phase="world",
        command=(
            *(sys.executable, "-m", "recipes.microworld"),
            *("--grid", str(folder.grid_file), "--out", str(folder.world)),
        ),
        log=folder.logs / "world.log",
        done=lambda: folder.world_is_done(settings),
        output=str(folder.world / MANIFEST),
    )


def _train(processes: int) -> tuple[str, ...]:
    """The training's command up to its options."""
    if processes == 1:
        return (sys.executable, "-m", "recipes.pretrain")
    return (sys.executable, "-m", "recipes.launch", "--nproc-per-node", str(processes), "--")


def _evaluate(grid: Grid, benchmarks: str) -> tuple[str, ...]:
    """The evaluation's command up to the checkpoints, which are a step's items."""
    settings = grid.evaluation
    return (
        *(sys.executable, str(REPOSITORY / "emergence_eval" / "run.py"), "--data", benchmarks),
        *(("--tasks", ",".join(settings.tasks)) if settings.tasks else ()),
        *(("--limit", str(settings.limit)) if settings.limit else ()),
        "--nemo-ckpt",
    )
