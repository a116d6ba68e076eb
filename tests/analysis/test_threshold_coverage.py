"""The simulations of benchmarks/threshold_coverage.py: that they run, and small versions of what they must show."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from analysis.threshold import EMERGENT, SMOOTH
from tokenizer.cli import UserError

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "threshold_coverage.py"


@pytest.fixture(scope="module")
def coverage():
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("threshold_coverage", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["threshold_coverage"] = module
    spec.loader.exec_module(module)
    return module


def test_the_program_prints_a_line_per_truth_and_the_totals(coverage, capsys):
    coverage.main(["--simulations", "2", "--runs", "12", "--compared", "0", "--replicates", "50"])
    out = capsys.readouterr().out
    assert "12 runs, 6 checkpoints each, 1000 rows:" in out
    assert sum(line.startswith(("| chance: ", "| smooth: ", "| threshold: ")) for line in out.splitlines()) == len(
        coverage.CASES
    )
    assert "Called emergent without a threshold: at most" in out


@pytest.mark.parametrize("arguments", [["--simulations", "0"], ["--runs", "7"], ["--replicates", "3"]])
def test_what_cannot_be_simulated_is_the_users_mistake(coverage, arguments):
    with pytest.raises(UserError):
        coverage.main(arguments)


def test_covered_counts_the_intervals_that_hold_the_truth(coverage):
    assert coverage.covered([(3.9, 4.1)] * 15 + [(4.1, 4.2)] * 5) == 0.75
    assert np.isnan(coverage.covered([(3.9, 4.1)] * 19))


def test_the_grids_have_6_to_31_runs(coverage):
    for grid in coverage.GRIDS:
        assert grid.runs()["run"].nunique() == grid.num_runs
        assert len(grid.runs()) == grid.num_runs * grid.checkpoints
    assert [grid.num_runs for grid in coverage.GRIDS] == [6, 6, 12, 31]


def test_piecewise_regression_finds_a_plain_kink(coverage):
    pytest.importorskip("piecewise_regression")
    loss = np.linspace(2, 6, 60)
    value = 0.2 * np.maximum(0, 4 - loss) + np.random.default_rng(0).normal(0, 0.005, 60)
    found, place, low, high = coverage.by_piecewise_regression(loss, value)
    assert found
    assert place == pytest.approx(4.0, abs=0.1)
    assert low < place < high


def test_ruptures_finds_a_plain_kink(coverage):
    pytest.importorskip("ruptures")
    loss = np.linspace(2, 6, 60)[::-1]
    value = 0.2 * np.maximum(0, 4 - loss) + np.random.default_rng(0).normal(0, 0.005, 60)
    number, place = coverage.by_ruptures(loss, value)
    assert number >= 1
    assert place == pytest.approx(4.0, abs=0.3)
    assert coverage.by_ruptures(loss, np.random.default_rng(1).normal(0, 0.005, 60))[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("grid", [1, 2, 3])
def test_intervals_and_verdicts_are_right_about_as_often_as_stated(coverage, grid):
    emergent_cases = [c for c in coverage.CASES if c.kind == coverage.WITH_THRESHOLD]
    smooth_cases = [c for c in coverage.CASES if c.kind == coverage.SMOOTH_RISE]
    found = [
        coverage.outcome(case, coverage.GRIDS[grid], seed, 200, []) for case in emergent_cases for seed in range(25)
    ]
    assert np.mean([o.verdict == EMERGENT for o in found]) >= 0.9
    held = [o.calibrated[0] <= coverage.ETA <= o.calibrated[1] for o in found if o.verdict == EMERGENT]
    assert np.mean(held) >= 0.9
    found = [coverage.outcome(case, coverage.GRIDS[grid], seed, 200, []) for case in smooth_cases for seed in range(25)]
    assert np.mean([o.verdict == EMERGENT for o in found]) <= 0.05
    assert np.mean([o.verdict == SMOOTH for o in found]) >= 0.5
