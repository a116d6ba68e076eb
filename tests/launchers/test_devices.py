"""Which GPUs a machine has, by a stand-in for nvidia-smi, and what each process is given of cores and GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from executor_plans import python

from launchers.devices import VISIBLE, find_gpus, num_jobs
from launchers.local import LocalExecutor
from launchers.plan import Plan, Step
from tokenizer.cli import UserError

NAMES = [f"GPU-{number}0e9ed3a-0b1c-4c58-a8f9-6f5d2b1c7e2{number}" for number in range(4)]
GPUS = "".join(f"GPU {number}: NVIDIA H100 80GB HBM3 (UUID: {name})\n" for number, name in enumerate(NAMES))
SLICES = ["MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb"]
CUT = GPUS.splitlines()[0] + "".join(
    f"\n  MIG 3g.40gb     Device  {number}: (UUID: {name})" for number, name in enumerate(SLICES)
)


@pytest.fixture
def machine(tmp_path):
    """``machine(said, code)``: the environment of a machine whose nvidia-smi says that."""

    def machine(said: str, code: int = 0, **more: str) -> dict[str, str]:
        directory = tmp_path / "bin"
        directory.mkdir(exist_ok=True)
        program = directory / "nvidia-smi"
        program.write_text(f'#!/bin/sh\n[ "$1" = -L ] || exit 3\ncat <<"END"\n{said}\nEND\nexit {code}\n')
        program.chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if name != VISIBLE}
        return {**kept, "PATH": f"{directory}:/usr/bin:/bin", **more}

    return machine


@pytest.mark.parametrize(
    ("said", "visible", "found"),
    [
        (GPUS, None, NAMES),
        (GPUS, "2,0", ["2", "0"]),
        (GPUS, "0,7,1", ["0"]),
        (GPUS, "-1", []),
        (GPUS, "", []),
        (GPUS, NAMES[3][:12], [NAMES[3][:12]]),
        (GPUS, "GPU-none", []),
        (CUT, None, SLICES),
        (CUT, SLICES[1], [SLICES[1]]),
        ("No devices found.", None, []),
    ],
)
def test_the_gpus_are_what_nvidia_smi_lists_and_the_variable_allows(machine, said, visible, found):
    environment = machine(said, **({} if visible is None else {VISIBLE: visible}))
    assert list(find_gpus(environment)) == found


def test_a_machine_without_driver_or_program_has_none(machine, tmp_path):
    assert find_gpus(machine("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9)) == ()
    assert find_gpus({"PATH": str(tmp_path / "empty")}) == ()
    assert num_jobs(()) == len(os.sched_getaffinity(0)) and num_jobs(NAMES) == 4


def test_nvidia_smi_that_hangs_is_said(machine, tmp_path, monkeypatch):
    environment = machine(GPUS)
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr("launchers.devices.ANSWER_SECONDS", 0.2)
    with pytest.raises(UserError, match="nvidia-smi -L gave no answer"):
        find_gpus(environment)


def test_the_command_lists_them(machine, repository):
    command = [sys.executable, "-m", "launchers.devices"]
    said = subprocess.run(command, env=machine(GPUS), cwd=repository, capture_output=True, text=True, check=True).stdout
    assert said.split() == NAMES


SHOW = """
import os, pathlib, sys, time
started = time.time()
time.sleep(0.15)
for path in sys.argv[2:]:
    while not os.path.exists(path):
        time.sleep(0.01)
pathlib.Path(sys.argv[1]).write_text(f"{started} {time.time()} {os.environ.get('CUDA_VISIBLE_DEVICES')}")
"""
"""Waits until the files after the first are there, then writes its start, its end and its GPUs into the first."""


def show(folder: Path, name: str, phase: str = "train", processes: int = 1, after: Sequence[str] = ()) -> Step:
    path = folder / name
    command = python(SHOW, path, *(folder / other for other in after))
    return Step(name, phase, command, folder / "logs" / name, path.is_file, run=name, processes=processes)


def shown(folder: Path, name: str) -> tuple[float, float, set[str]]:
    started, ended, *gpus = (folder / name).read_text().split()
    return float(started), float(ended), set(filter(None, "".join(gpus).split(",")))


def test_a_step_of_several_processes_takes_as_many_jobs(tmp_path):
    """The large one is first in order, but waits for the one at work; what ends before that may go ahead."""
    left = {"first": 1.0, "large": 3.0, "short": 0.5, "long": 1.5}
    steps = [
        show(tmp_path, "first", "index", after=["short"]),
        show(tmp_path, "large", processes=2),
        show(tmp_path, "short"),
        show(tmp_path, "long"),
    ]
    executor = LocalExecutor(Plan(tuple(steps)), jobs=2, seconds=lambda step: left[step.name])
    assert executor.run().exit_code == 0
    first, short, large, long = (shown(tmp_path, name) for name in ("first", "short", "large", "long"))
    assert short[1] <= first[1] <= large[0] <= large[1] <= long[0]


def test_a_step_of_more_processes_than_jobs_runs_alone(tmp_path):
    steps = (show(tmp_path, "huge", processes=8), show(tmp_path, "other"))
    assert LocalExecutor(Plan(steps), jobs=2).run().exit_code == 0
    huge, other = (shown(tmp_path, step.name) for step in steps)
    assert huge[1] <= other[0] or other[1] <= huge[0]


def test_no_two_processes_share_a_gpu_and_other_phases_have_none(machine, tmp_path):
    gpus = find_gpus(machine(GPUS))[:3]
    steps = [
        show(tmp_path, "encode", "encode"),
        *(show(tmp_path, f"train{number}", "train", 1 + number % 2) for number in range(5)),
        *(show(tmp_path, f"evaluate{number}", "evaluate") for number in range(4)),
        show(tmp_path, "report", "report"),
    ]
    executor = LocalExecutor(Plan(tuple(steps)), jobs=16, gpus=gpus)
    assert executor.run().exit_code == 0
    for step in steps:
        started, ended, given = shown(tmp_path, step.name)
        assert len(given) == (step.processes if step.phase in ("train", "evaluate") else 0) and given <= set(gpus)
        for other in steps:
            other_started, other_ended, taken = shown(tmp_path, other.name)
            assert other is step or ended <= other_started or other_ended <= started or not given & taken


def test_without_gpus_the_variable_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.delenv(VISIBLE, raising=False)
    assert LocalExecutor(Plan((show(tmp_path, "alone"),)), jobs=1).run().exit_code == 0
    assert (tmp_path / "alone").read_text().endswith("None")
