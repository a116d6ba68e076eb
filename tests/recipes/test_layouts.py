"""Every layout trains the same model: TP 1, 2, 4 x PP 1, 2, 4 x DP 1, 2 on at most four processes."""

from __future__ import annotations

import csv
import os
import subprocess
from pathlib import Path

import pytest
from layouts import BF16, FP32, LAYOUTS, RUN, command

QUICK = ("single", "tp2-sp", "pp2-virtual")
"""Trained in the default suite, the others in the slow one."""

NUMBERS = ("train_loss", "grad_norm", "heldout_loss", "heldout_loss_en", "heldout_loss_zh")


@pytest.fixture(scope="session")
def trained(once, smoke_data):
    """``trained(name)``: where the layouts that share that one's start were trained."""

    def train(name: str) -> Path:
        kind, processes = name in QUICK, LAYOUTS[name].processes
        names = [other for other, it in LAYOUTS.items() if (other in QUICK) == kind and it.processes == processes]

        def make(directory: Path) -> None:
            environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
            start = command(directory, smoke_data, names, processes)
            done = subprocess.run(start, capture_output=True, text=True, env=environment, timeout=2400)
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"

        return once(f"layouts-{'quick' if kind else 'slow'}-{processes}", make)

    return train


def names(group: dict) -> list:
    """The layouts of a group but the single process, those that are not quick marked as slow."""
    return [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in group
        if not name.endswith("single")
    ]


def rows(run_directory: Path) -> list[dict[str, str]]:
    with open(run_directory / "loss.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def compare(one: list[dict[str, str]], other: list[dict[str, str]], columns: tuple[str, ...], tolerance: float) -> None:
    assert len(one) == len(other) == 20
    for expected, found in zip(one, other, strict=True):
        for column in columns:
            assert bool(expected[column]) == bool(found[column])
            if expected[column]:
                assert float(found[column]) == pytest.approx(float(expected[column]), rel=tolerance), (
                    f"{column} at step {expected['step']}"
                )


@pytest.mark.parametrize("name", names(FP32))
def test_every_layout_trains_the_single_process_s_curve(trained, name):
    single, layout = (trained(it) / "full" / it / RUN for it in ("single", name))
    losses = tuple(column for column in NUMBERS if column != "grad_norm")
    compare(rows(single), rows(layout), losses, 1e-5)
    compare(rows(single), rows(layout), ("grad_norm",), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", names(BF16))
def test_every_layout_trains_the_same_curve_in_bf16(trained, name):
    single, layout = (trained(it) / "full" / it / RUN for it in ("bf16-single", name))
    compare(rows(single), rows(layout), tuple(column for column in NUMBERS if column != "grad_norm"), 1e-2)


@pytest.mark.parametrize("name", ["single", *names(LAYOUTS)])
def test_ten_steps_and_a_resumption_are_twenty_steps(trained, name):
    out = trained(name)
    full, resumed = (rows(out / part / name / RUN) for part in ("full", "resumed"))
    for row in (*full, *resumed):
        del row["tokens_per_second"], row["mfu"]
    assert full == resumed
