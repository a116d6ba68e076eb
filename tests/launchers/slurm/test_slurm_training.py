"""The smoke grid, really trained and evaluated by the processes of Slurm's jobs, with accidents on the way."""

from __future__ import annotations

import contextlib
import json
import os
import signal

import pytest
from commands import loss_rows, run_module
from played_study import PlayedStudy, smoke_with

from launchers.records import Record

pytestmark = pytest.mark.slow

PATIENCE = 600.0

LONG = 81_920
"""Tokens of a run that is long enough to be disturbed: 40 steps."""

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Sums depend on the number of threads in their last digit."""


def train_here(study: PlayedStudy, run: str, *settings: str, processes: int = 1) -> None:
    """Train a run of the study once more, on its data, without Slurm and undisturbed."""
    out = study.directory / "undisturbed"
    arguments = ["--grid", study.grid_file, "--run", run, "--out", out, "--data", study.folder.data, *settings]
    run_module("recipes.pretrain", *arguments, processes=processes)
    assert loss_rows(study.folder.path / run) == loss_rows(out / run), run


def check_evaluated_once(study: PlayedStudy) -> None:
    """By the records of the evaluations."""
    for run, step in study.checkpoints():
        history = Record.of(study.folder.logs, f"evaluate {run} step {step}").history()
        assert history.starts == 1, (run, step)
        assert json.loads(study.folder.result(run, step).read_text())["tasks"].keys() == {"hellaswag"}


def test_the_smoke_grid_on_nodes(slurm, tmp_path):
    """Its four runs, a process each; one is killed and one preempted on the way."""
    grid = smoke_with([{"size": ["small", "large"], "tokens": [20480]}, {"size": ["small", "large"], "tokens": [LONG]}])
    site = {"training": {"cpus_per_process": 40, "memory": None}, "variables": ONE_THREAD}
    study = PlayedStudy(slurm, tmp_path / "study", grid, site, plays=False)
    study.launch()
    killed, preempted = f"large-{LONG}", f"small-{LONG}"
    study.wait_for_step(preempted, 10, PATIENCE)
    node = study.job(preempted)["nodes"]
    slurm.submit("--partition=high", f"--nodelist={node}", "--exclusive", "--wrap", "sleep 1")
    study.wait_for_step(killed, 22, PATIENCE)
    pids = slurm.job_processes(f"recipes.pretrain --grid {study.folder.grid_file} --run {killed} ")
    assert pids
    with contextlib.suppress(ProcessLookupError):
        os.kill(pids[-1], signal.SIGKILL)
    study.wait_until_done(PATIENCE)
    for run in study.grid.runs:
        train_here(study, run.name)
    check_evaluated_once(study)
    assert study.status_of(killed)["restarts"] >= 1 and study.status_of(preempted)["restarts"] >= 1
    page = study.folder.report_page.read_text()
    assert all(run.name in page for run in study.grid.runs)
    # The report from what there is, asked for by hand.
    study.folder.report_page.unlink()
    assert str(study.folder.report_page) in study.cli("--collect").stdout
    assert study.folder.report_page.is_file()


def test_a_run_over_two_nodes(slurm, tmp_path):
    """Data- and tensor-parallel, a process on each of two nodes; both are warned and go on."""
    grid = smoke_with(
        [
            {"size": "small", "tokens": LONG, "name": "data-parallel", "micro_batch_size": 8},
            {"size": "small", "tokens": LONG, "name": "tensor-parallel", "tensor_parallel": 2},
        ]
    )
    site = {"cpu": {"nodes": 2, "processes_per_node": 1}, "variables": ONE_THREAD}
    study = PlayedStudy(slurm, tmp_path / "study", grid, site, plays=False)
    study.launch()
    for run in study.grid.runs:
        study.wait_for_step(run.name, 10, PATIENCE)
        slurm.cancel("--signal=USR1", "--batch", study.job(run.name)["id"])
    study.wait_until_done(PATIENCE)
    for run in study.grid.runs:
        train_here(study, run.name, processes=2)
        assert study.status_of(run.name)["restarts"] == 1
    check_evaluated_once(study)
