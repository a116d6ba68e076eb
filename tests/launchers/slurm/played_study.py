"""A study on the tests' Slurm whose programs are stand-ins: its files, its command line, and what became of it.

study = PlayedStudy(slurm, directory, grid_text)
study.launch()
study.wait_until_done(60)
study.check()
"""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from commands import REPOSITORY, loss_rows
from made_text import write_corpus
from slurm_cluster import Slurm
from stand_in_recording import behave, record

from launchers.plan import GridDirectory
from recipes.grid import Grid, load_grid

PATIENCE = 240.0
"""Seconds that a test waits for a small study, on a machine that others use as well."""

SMOKE = (REPOSITORY / "recipes" / "grids" / "smoke.yaml").read_text()

CLUSTER: dict[str, Any] = {
    "partition": "main",
    "time_limit": "01:00:00",
    "signal_seconds": 60,
    "cpu": {"nodes": 1, "processes_per_node": 1},
    "training": {"cpus_per_process": 2, "memory": None},
    "preparation": {"cpus": 1, "memory": None, "time_limit": "00:10:00"},
    "evaluation": {"gpus": 0, "cpus": 1, "memory": None, "time_limit": "00:10:00", "at_once": 16},
    "keeper_seconds": 2,
    "master_host": "127.0.0.1",
}
"""The `slurm` part of a cluster file for processes on CPUs."""


def smoke_with(runs: list[dict[str, Any]], **evaluation: Any) -> str:
    """The smoke grid's text with other runs, evaluated on one task."""
    grid = yaml.safe_load(SMOKE)
    return yaml.safe_dump({**grid, "evaluation": {"tasks": ["hellaswag"], "limit": 4, **evaluation}, "runs": runs})


RUNS = {"size": "small", "tokens": [20480, 40960], "micro_batch_size": 1}
"""small-20480 of 10 steps and small-40960 of 20, with two checkpoints each, for up to 16 processes."""


def runs_named(*names: str, **settings: int) -> str:
    """A smoke grid of equal runs with these names, of 10 steps with checkpoints after 5 and 10."""
    return smoke_with([{"size": "small", "tokens": 20480, "name": name, **settings} for name in names])


def write_benchmark(directory: Path, rows: int = 6) -> Path:
    """A HellaSwag of some made rows."""
    row = {"activity_label": "Pole vault", "ctx_a": "A woman runs fast.", "ctx_b": "she", "label": 1}
    row |= {"ctx": "A woman runs fast. she", "endings": ["jumps.", "sits down.", "eats a cake.", "sleeps."]}
    path = directory / "hellaswag" / "hellaswag_val.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps({"ind": number, **row}) + "\n" for number in range(rows)))
    return directory


class PlayedStudy:
    """One study.

    Args:
        directory: Of its inputs; the grid's directory is DIRECTORY/out.
        grid: Text of the grid file.
        cluster: Keys of the cluster file's `slurm` part that replace those of `CLUSTER`.
        top: Keys beside it, as `like`.
        room: Whether the disk seems to be endless; a grid of billions of parameters asks for it.
        plays: Whether stand-ins take the place of python. Without them all is real.
    """

    def __init__(
        self,
        slurm: Slurm,
        directory: Path,
        grid: str,
        cluster: dict[str, Any] | None = None,
        top: dict[str, Any] | None = None,
        room: bool = False,
        plays: bool = True,
    ):
        self.slurm, self.directory = slurm, directory
        directory.mkdir(parents=True, exist_ok=True)
        self.grid_file, self.cluster_file = directory / "grid.yaml", directory / "cluster.yaml"
        self.grid_file.write_text(grid)
        self.corpus = write_corpus(directory / "corpus", documents=20 if plays else 3000)
        self.benchmarks = write_benchmark(directory / "benchmarks")
        self.folder = GridDirectory(directory / "out")
        self.stand_in = directory / "stand in"
        environment = {"python": str(record(self.grid, self.stand_in))} if plays else {}
        self._site = {**CLUSTER, "environment": environment, **(cluster or {})}
        self._top = top or {}
        self.set_cluster()
        self._room = room

    @cached_property
    def grid(self) -> Grid:
        """The grid."""
        return load_grid(self.grid_file)

    def set_cluster(self, **changed: Any) -> None:
        """Write the cluster file, with these keys changed."""
        self.cluster_file.write_text(yaml.safe_dump({**self._top, "slurm": {**self._site, **changed}}))

    def behave(self, **behaviour: Any) -> None:
        """Say how its programs behave from now on."""
        behave(self.stand_in, **behaviour)

    def release(self) -> None:
        """Let trainings that are held go on."""
        (self.stand_in / "release").touch()

    # The command line.

    def cli(self, *arguments: object, fails: int = 0) -> subprocess.CompletedProcess:
        """`launchers.grid`; it must end with exit code `fails`."""
        words = ["--grid", self.grid_file, "--out", self.folder.path, *arguments]
        environment = {**self.slurm.environment, "PYTHONPATH": self._python_path(), "COLUMNS": "200"}
        done = subprocess.run(
            [sys.executable, "-P", "-m", "launchers.grid", *map(str, words)],
            capture_output=True,
            text=True,
            env=environment,
            cwd=self.directory,
            timeout=120,
        )
        assert done.returncode == fails, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def _python_path(self) -> str:
        if not self._room:
            return str(REPOSITORY)
        # Python loads this module at every start, in the jobs as well.
        (self.stand_in / "room").mkdir(exist_ok=True)
        (self.stand_in / "room" / "sitecustomize.py").write_text(
            "import collections, shutil\n"
            "Usage = collections.namedtuple('Usage', 'total used free')\n"
            "shutil.disk_usage = lambda path: Usage(2**62, 0, 2**62)\n"
        )
        return f"{self.stand_in / 'room'}{os.pathsep}{REPOSITORY}"

    def launch(self, *arguments: object, fails: int = 0) -> subprocess.CompletedProcess:
        """The launch, and what it printed."""
        inputs = ["--cluster", self.cluster_file, "--corpus", self.corpus, "--benchmarks", self.benchmarks]
        return self.cli(*inputs, "--yes", *arguments, fails=fails)

    def status(self) -> dict[str, Any]:
        """`--status --json`."""
        return json.loads(self.cli("--status", "--json").stdout)

    def status_of(self, run: str) -> dict[str, Any]:
        """The line of one run."""
        return next(line for line in self.status()["runs"] if line["run"] == run)

    # What has happened.

    def events(self, *names: str, **fields: Any) -> list[dict[str, Any]]:
        """What the stand-ins have noted: the events with one of the names, and with these fields."""
        path = self.stand_in / "events.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [
            line
            for line in lines
            if (not names or line["event"] in names) and all(line.get(key) == value for key, value in fields.items())
        ]

    def jobs(self, what: str = "", *states: str) -> list[dict[str, str]]:
        """Its jobs in the queue, of a run or a kind."""
        found = self.slurm.find(f"{self.grid.name}-{what}", *states)
        return [job for job in found if not what or job["name"].rpartition("-")[0] == f"{self.grid.name}-{what}"]

    def job(self, run: str) -> dict[str, str]:
        """The running job of a run; one that is only about to run is waited for."""
        self.slurm.wait(lambda: self.jobs(run, "RUNNING"), 60, f"job of {run}")
        return self.jobs(run, "RUNNING")[0]

    def step(self, run: str) -> int:
        """The last step in a run's loss.csv."""
        path = self.folder.path / run / "loss.csv"
        rows = path.read_text().splitlines()[1:] if path.exists() else []
        return int(rows[-1].partition(",")[0]) if rows else 0

    def wait_for_step(self, run: str, step: int, seconds: float = 60) -> None:
        """Until a run has come to a step."""
        self.slurm.wait(lambda: self.step(run) >= step, seconds, self.describe)

    def checkpoints(self) -> list[tuple[str, int]]:
        """Run and step of all there are to be."""
        return [(run.name, step) for run in self.grid.runs for step in run.settings.checkpoint_steps]

    def is_done(self) -> bool:
        """Whether all is evaluated and in the report, and no job is left."""
        results = [self.folder.result(run, step) for run, step in self.checkpoints()]
        return all(path.is_file() for path in results) and self.folder.report_is_done(results) and not self.jobs()

    def wait_until_done(self, seconds: float) -> float:
        """Until it is; the seconds that it took."""
        started = time.monotonic()
        self.slurm.wait(self.is_done, seconds, self.describe)
        return time.monotonic() - started

    def check(self) -> None:
        """Every run is complete, each checkpoint was evaluated once and whole, losses are those of no disturbance."""
        evaluated = collections.Counter((line["run"], line["step"]) for line in self.events("evaluated"))
        assert evaluated == collections.Counter(self.checkpoints())
        assert not self.events("refused"), "a checkpoint was evaluated before it was whole"
        assert not self.events("locked out"), "two processes trained one run"
        for run in self.grid.runs:
            assert loss_rows(self.folder.path / run.name) == loss_rows(self._undisturbed / run.name), run.name

    @cached_property
    def _undisturbed(self) -> Path:
        """All runs, played one after the other without Slurm."""
        out = self.directory / "undisturbed"
        directory = self.directory / "undisturbed stand in"
        program = record(self.grid, directory)
        behave(directory, training_seconds=0.0)
        subprocess.run([program, "-m", "tokenizer.encode", "--out", out / "data"], check=True)
        for run in self.grid.runs:
            command = [program, "-m", "recipes.launch", "--", "--grid", self.grid_file, "--run", run.name, "--out", out]
            subprocess.run(command, check=True)
        return out

    def describe(self) -> str:
        """Where everything stands, for a test that fails."""
        missing = [item for item in self.checkpoints() if not self.folder.result(*item).is_file()]
        logs = [f"{path}:\n{path.read_text()[-2000:]}" for path in sorted(self.folder.logs.rglob("*.log"))[:20]]
        return "\n".join([f"not evaluated: {missing}", *map(str, self.events()[-15:]), *logs])
