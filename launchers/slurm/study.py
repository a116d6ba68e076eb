"""A study on Slurm: what the launcher decided, kept in the grid's directory for jobs, `--status` and reruns.

study = Study.read(GridDirectory(Path("runs/paper")))
study.plan.by_name["train 6B-3T"].done()
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from launchers.directory import choose_inputs
from launchers.plan import PREPARATION, GridDirectory, Inputs, Plan, Step, build_plan, read_json
from launchers.slurm.allocation import Allocation
from launchers.slurm.site import SlurmCluster, load_slurm_cluster
from recipes.grid import Grid, Run, load_grid
from tokenizer import files
from tokenizer.cli import UserError


@dataclass(frozen=True)
class Launch:
    """What a person asked for, and what was decided on it."""

    corpus: str | None
    """The user's documents; None where the grid's world is made."""
    benchmarks: str | None
    """The user's benchmarks; None as above."""
    runs: tuple[str, ...]
    """Names of the runs to train, those of earlier launches included."""
    allocations: Mapping[str, Allocation]
    """By run."""
    decided_on: str
    """Checksum of what the allocations follow from."""


@dataclass(frozen=True)
class Study:
    """One grid's directory with its Slurm part."""

    folder: GridDirectory
    grid: Grid
    cluster: SlurmCluster
    launch: Launch

    @classmethod
    def read(cls, folder: GridDirectory) -> Study:
        """The study in a directory; UserError if it was not launched on Slurm."""
        value = read_json(folder.slurm_launch)
        if not value:
            raise UserError(f"{folder.path} holds no study on Slurm; launch one with --cluster FILE")
        allocations = {
            name: Allocation(**{**item, "overrides": tuple(item["overrides"])})
            for name, item in value.pop("allocations").items()
        }
        launch = Launch(**{**value, "runs": tuple(value["runs"])}, allocations=allocations)
        return cls(folder, load_grid(folder.grid_file), load_slurm_cluster(folder.slurm / "cluster.yaml"), launch)

    @property
    def directory(self) -> Path:
        """Where the job scripts lie."""
        return self.folder.slurm

    @property
    def checkpoints_file(self) -> Path:
        """A line a checkpoint: run, step, directory, result file. The line's number is the index in job arrays."""
        return self.directory / "checkpoints.tsv"

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The runs to train."""
        return tuple(run for run in self.grid.runs if run.name in self.launch.runs)

    @cached_property
    def inputs(self) -> Inputs:
        """What it is made from."""
        return choose_inputs(self.grid, self.folder, self.launch.corpus, self.launch.benchmarks)

    @cached_property
    def plan(self) -> Plan:
        """All steps of the study."""
        return build_plan(self.grid, self.folder, self.inputs, self.runs, self.cluster.site.preparation.cpus)

    @property
    def preparation(self) -> tuple[Step, ...]:
        """The steps before the trainings, which one job does."""
        return tuple(step for step in self.plan if step.phase in PREPARATION)

    def job_name(self, what: str) -> str:
        """Name of a job: the grid's, what it is (a run, prepare, evaluate, ...), and which directory it works in."""
        return f"{self.grid.name}-{what}-{_short_hash(self.folder.path)}"

    @property
    def kinds(self) -> dict[str, str]:
        """What each job is, by its name: a run's name, or prepare, evaluate, report, keeper."""
        return {self.job_name(what): what for what in (*self.launch.runs, *OTHER_JOBS)}

    def write(self) -> None:
        """Keep launch, cluster file and list of checkpoints, from which `read` makes the study again."""
        text = self.cluster.path.read_text(encoding="utf-8")
        if self.cluster.like is not None:
            text = re.sub(r"(?m)^like:.*$", lambda line: f"like: {json.dumps(str(self.cluster.like))}", text)
        self.write_checkpoints()
        files.write_text(self.directory / "cluster.yaml", text)
        value = {
            **vars(self.launch),
            "allocations": {k: dataclasses.asdict(v) for k, v in self.launch.allocations.items()},
        }
        files.write_json(self.folder.slurm_launch, value)

    def write_checkpoints(self) -> None:
        """Keep the list of checkpoints; nothing that was listed before changes its place."""
        known = listed_checkpoints(self.checkpoints_file)
        wanted = [
            (run.name, step) for run in self.grid.runs for step in run.settings.checkpoint_steps if run in self.runs
        ]
        listed = [*known, *(item for item in wanted if item not in set(known))]
        lines = [
            f"{run}\t{step}\t{self.folder.checkpoint(run, step)}\t{self.folder.result(run, step)}\n"
            for run, step in listed
        ]
        files.write_text(self.checkpoints_file, "".join(lines))


OTHER_JOBS = ("prepare", "evaluate", "report", "keeper")
"""Jobs beside the trainings."""


def listed_checkpoints(path: Path) -> list[tuple[str, int]]:
    """Run and step of each line of the list of checkpoints; none where there is no list."""
    if not path.is_file():
        return []
    rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    return [(row[0], int(row[1])) for row in rows]


def check_names(folder: GridDirectory, runs: Sequence[Run], paths: Sequence[Path]) -> None:
    """UserError for names and paths that job scripts cannot hold."""
    if clash := next((run.name for run in runs if run.name in OTHER_JOBS), None):
        raise UserError(f"a run cannot be called {clash}, a job of the launcher is; rename the run")
    for path in (folder.path, *paths):
        # Slurm reads a backslash in the name of a log as a sign of its own.
        if re.search(r"[\n\r\t\0\\]", str(path)):
            raise UserError(f"the path {str(path)!r} has a backslash, a tab or a line break in it; rename it")


def _short_hash(path: Path) -> str:
    return hashlib.sha256(str(path).encode()).hexdigest()[:6]
