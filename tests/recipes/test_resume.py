"""Runs of several processes that are killed, stopped or moved to another layout go on as if nothing had been."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from commands import REPOSITORY, loss_rows, pretrain_command, run_command

from recipes import checkpoint

LOADED = Path(__file__).parent / "loaded_losses.py"
TRAINED = ("tensor_parallel", "pipeline_parallel", "single")
TWO = ("tensor_parallel=2", "pipeline_parallel=2,micro_batch_size=8", "micro_batch_size=8")
FOUR = (
    "tensor_parallel=2,pipeline_parallel=2,micro_batch_size=8",
    "pipeline_parallel=4,micro_batch_size=8",
    "tensor_parallel=2,micro_batch_size=8",
)
SHARDED = "distributed_optimizer=true"


def _launch_command(out: Path, data: Path, *settings: str, run: str = "large-40960") -> list[str]:
    arguments = ["--grid", "smoke", "--run", run, "--out", out, "--data", data, *settings]
    return [sys.executable, "-m", "recipes.launch", "--nproc-per-node", "2", "--", *map(str, arguments)]


def _start(command: list[str], log: Path | None = None) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(open(log, "w")) if log else subprocess.DEVNULL
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=output)


def _kill_all(process: subprocess.Popen) -> None:
    """SIGKILL to the process and all that it has started, whatever their groups."""
    below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for one in (psutil.Process(process.pid), *below) if process.poll() is None else ():
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    psutil.wait_procs(below, timeout=30)


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 240) -> bool:
    """Whether the condition came true before the process ended."""
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)
    return True


def _rows(run: Path) -> int:
    path = run / "loss.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def _is_saving(run: Path) -> bool:
    return any(any((run / folder).glob(".step_*.saving")) for folder in ("checkpoints", "resume"))


@pytest.mark.slow
def test_processes_end_together_and_go_on(layout_runs, smoke_data, tmp_path):
    """One process dies: the others end, in one line. One launcher is warned by Slurm: all save after the same step."""
    run, log = tmp_path / "large-40960", tmp_path / "err"
    command = _launch_command(tmp_path, smoke_data, "tensor_parallel=2")
    process = _start(command, log)
    try:
        assert _wait_for(lambda: _rows(run) >= 2, process)
        workers = psutil.Process(process.pid).children()
        next(one for one in workers if one.environ().get("RANK") == "1").kill()
        assert process.wait(timeout=60) == 137
        assert not psutil.wait_procs(workers, timeout=10)[1], "a process was left behind"
    finally:
        _kill_all(process)
    said = log.read_text().strip().splitlines()
    assert said == [line for line in said if line.startswith("error: process 1 of the run was ended by SIGKILL")]
    assert len(said) == 1
    process = _start(command, log)
    try:
        assert _wait_for(lambda: _rows(run) >= 3, process)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=120) == 75
    finally:
        _kill_all(process)
    assert "Traceback" not in log.read_text()
    (state,) = (run / "resume").iterdir()
    assert checkpoint.verify(state).step < 20
    run_command(command)
    assert loss_rows(run) == loss_rows(layout_runs["tensor_parallel"])


def test_mistake_is_said_once_by_all_processes(smoke_data, tmp_path):
    done = run_command(_launch_command(tmp_path, smoke_data, "tensor_parallel=3"), fails=True)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and "do not divide over tensor_parallel=3" in line


def _loaded(state: Path, data: Path, out: Path, layouts: tuple[str, ...], processes: int) -> dict:
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    run_command([sys.executable, *start, str(LOADED), str(state), str(data), str(out), *layouts])
    return json.loads(out.read_text())


@pytest.mark.parametrize(
    ("trained", "layouts", "processes"),
    [
        ("tensor_parallel", TWO, 2),
        pytest.param("pipeline_parallel", TWO, 2, marks=pytest.mark.slow),
        pytest.param("single", TWO, 2, marks=pytest.mark.slow),
        *(pytest.param(name, FOUR, 4, marks=pytest.mark.slow) for name in TRAINED),
    ],
)
def test_other_layouts_load_the_same_losses(layout_runs, smoke_data, tmp_path, trained, layouts, processes):
    _compare_loaded(layout_runs[trained] / "checkpoints" / "step_20", smoke_data, tmp_path, layouts, processes)


@pytest.mark.slow
def test_sharded_optimizer_s_state_loads_on_other_layouts(smoke_data, tmp_path):
    run_command(_launch_command(tmp_path, smoke_data, "micro_batch_size=8", SHARDED))
    state = tmp_path / "large-40960" / "checkpoints" / "step_20"
    for layouts, processes in ((TWO, 2), (FOUR, 4)):
        _compare_loaded(state, smoke_data, tmp_path, tuple(f"{it},{SHARDED}" for it in layouts), processes)
    done = run_command(_launch_command(tmp_path, smoke_data, "micro_batch_size=8"), fails=True)
    assert done.returncode == 2 and "resume with distributed_optimizer=True" in done.stderr


def _compare_loaded(state: Path, data: Path, out: Path, layouts: tuple[str, ...], processes: int) -> None:
    expected = checkpoint.read_manifest(state).losses
    losses = _loaded(state, data, out / "losses.json", layouts, processes)
    assert set(losses) == set(layouts)
    for by_language in losses.values():
        for language in ("en", "zh"):
            assert by_language[language] == pytest.approx(expected[f"heldout_{language}"], rel=1e-6)


KILLS = 20


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout", [["tensor_parallel=2"], ["pipeline_parallel=2", "micro_batch_size=8"]], ids=["tp2", "pp2"]
)
def test_twenty_kills_leave_the_curve_to_the_last_bit(smoke_data, tmp_path, layout):
    """At random moments of the start and the training, and every other time while a state is being saved."""
    tokens = "tokens=819200"
    plain = _launch_command(tmp_path / "plain", smoke_data, tokens, *layout, "save_every_minutes=0", run="small-40960")
    started = time.monotonic()
    run_command(plain)
    life = time.monotonic() - started
    expected = loss_rows(tmp_path / "plain" / "small-40960")
    assert len(expected) == 400
    chooser = random.Random(2403)
    kills = saving = starts = attempt = 0
    while kills < KILLS or _rows(tmp_path / f"killed-{attempt}" / "small-40960") < 400:
        run = tmp_path / f"killed-{attempt}" / "small-40960"
        command = _launch_command(run.parent, smoke_data, tokens, *layout, "save_every_minutes=0.01", run="small-40960")
        if kills == KILLS:
            run_command(command)
            break
        process = _start(command)
        try:
            if kills % 2:
                time.sleep(chooser.uniform(0, 0.6 * life))
            else:
                before = _rows(run)
                _wait_for(lambda run=run, before=before: _rows(run) != before, process)
                time.sleep(chooser.uniform(0, 2))
                _wait_for(lambda run=run: _is_saving(run), process)
                time.sleep(chooser.uniform(0, 0.05))
            ended = process.poll() is not None
        finally:
            _kill_all(process)
        if ended:
            assert loss_rows(run) == expected
            attempt += 1
        else:
            kills += 1
            saving += _is_saving(run)
            starts += not checkpoint.is_started(run)
    print(f"{kills} kills, {saving} while saving, {starts} before the first state, {attempt + 1} runs")
    assert saving >= 3
    for number in range(attempt + 1):
        run = tmp_path / f"killed-{number}" / "small-40960"
        assert loss_rows(run) == expected
        assert "damaged" not in (run / "train.log").read_text()
        assert sorted(path.name for path in run.iterdir()) == sorted(
            path.name for path in (tmp_path / "plain" / "small-40960").iterdir()
        )


@pytest.mark.slow
def test_killed_twice_goes_on_from_the_newest_state(smoke_data, tmp_path):
    """One process: once while it saves, once between; RUN/resume serves where there is no checkpoint yet."""
    settings = ("tokens=81920", "save_every_minutes=0.005", "async_save=true")
    command = pretrain_command("small-40960", tmp_path / "killed", smoke_data, *settings)
    run = tmp_path / "killed" / "small-40960"
    for condition in (lambda: _rows(run) >= 5 and _is_saving(run), lambda: _rows(run) >= 20):
        process = _start(command)
        try:
            _wait_for(condition, process)
        finally:
            _kill_all(process)
    done = run_command(command)
    assert "resuming from step" in done.stdout
    assert "is complete" in run_command(command).stdout
    run_command(pretrain_command("small-40960", tmp_path / "plain", smoke_data, "tokens=81920"))
    assert loss_rows(run) == loss_rows(tmp_path / "plain" / "small-40960")
    assert not (run / "resume").exists()
