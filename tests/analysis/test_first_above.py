"""The loss below which performance stays above chance, without a model of the curve."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import simulated_grids
from scipy import stats
from simulated_grids import emergent, flat, runs, smooth

from analysis import first_above
from analysis.threshold_fit import Data
from tokenizer.cli import UserError


def by_hand(loss, excess, variance=1.0, runs_of=None, level_sd=1e-9):
    """Data with one checkpoint per run, or with the checkpoints of each run given."""
    starts = np.arange(len(loss)) if runs_of is None else np.array(runs_of)
    loss, excess = np.array(loss, dtype=float), np.array(excess, dtype=float)
    return Data(loss, excess, np.full(len(loss), float(variance)), starts, level_sd)


def test_groups_follow_the_loss_and_hold_two_runs_each():
    data = by_hand([5, 4, 3, 2, 1, 6, 7], np.zeros(7))
    groups = first_above.grouped(data, most=3)
    assert groups.index.tolist() == [1, 1, 0, 0, 0, 1, 1]
    assert (groups.low.tolist(), groups.high.tolist()) == ([1, 4], [3, 7])
    # The three lowest losses are all of the first run: the group goes on until another run is in it.
    data = by_hand([1, 2, 3, 4, 5, 6, 7, 8], np.zeros(8), runs_of=[0, 4])
    assert first_above.grouped(data).low.tolist() == [1]


def test_equal_losses_share_a_group():
    groups = first_above.grouped(by_hand([1, 2, 3, 3, 4, 5, 6], np.zeros(7)), most=3)
    assert groups.index.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_p_values_by_hand():
    # Two groups of three runs, variance 4: mean 2 with error 2/sqrt(3); then mean 1, the same error. The residuals
    # (0 in each group) are below what the rows explain, so φ is 1 and the quantile normal.
    data = by_hand([1, 2, 3, 4, 5, 6], [2, 2, 2, 1, 1, 1], 4.0)
    groups = first_above.grouped(data, most=2)
    p = first_above.p_values(data, groups, np.ones((1, 6)))
    error = 2 / math.sqrt(3)
    assert p == pytest.approx(stats.norm.sf(np.array([[2 / error, 1 / error]])))


def test_runs_that_differ_widen_the_error_by_hand():
    # Group 1: 0, 3, 6 with variance 1: robust variance of the mean 18/9·3/2 = 3, over 1/3 is 9. Group 2: 1, 1, 1: 0.
    # Pooled over 2 + 2 degrees of freedom, weighted by R − 1: (9·2 + 0·2)/4 = 4.5.
    data = by_hand([1, 2, 3, 4, 5, 6], [0, 3, 6, 1, 1, 1])
    p = first_above.p_values(data, first_above.grouped(data, most=2), np.ones((1, 6)))
    error = math.sqrt(4.5 / 3)
    assert p == pytest.approx(stats.t.sf(np.array([[3 / error, 1 / error]]), 4))


def test_what_all_checkpoints_share_is_not_averaged_away():
    data = by_hand(range(1, 301), np.full(300, 0.02), 1e-4, level_sd=0.02)
    assert first_above.p_values(data, first_above.grouped(data), np.ones((1, 300))).min() > 0.15


def test_the_sequence_ends_at_the_first_group_that_does_not_pass():
    p = np.array([[0.01, 0.04, 0.2, 0.001], [0.2, 0.01, 0.01, 0.01], [0.01, np.nan, 0.01, np.nan]])
    assert first_above.passed(p, 0.05).tolist() == [2, 0, 3]


def test_a_known_threshold_is_not_overshot():
    above, found = 0, 0
    for seed in range(40):
        table = simulated_grids.table({"mmlu": emergent(4.0)}, runs(4, 6), 1000, seed, 0.01)
        result = first_above.first_above(table, replicates=100, seed=seed)[0]
        found += np.isfinite(result.loss)
        # Above the threshold there is nothing but chance: naming a group that lies wholly there is an error of 5 %.
        above += result.loss >= 4.3
    assert found == 40
    assert above <= 5


def test_at_chance_nothing_is_above_more_often_than_agreed():
    names = ["mmlu", "race", "hellaswag", "ceval"]
    wrong = 0
    for seed in range(60):
        table = simulated_grids.table(dict.fromkeys(names, flat), runs(2, 4), 300, seed)
        wrong += any(r.groups_above for r in first_above.first_above(table, replicates=100, seed=seed))
    # 5 % of tables at most; 8 or more of 60 would be a chance of 1 %.
    assert wrong <= 7


def test_a_rise_from_the_start_is_above_at_every_loss():
    result = first_above.first_above(simulated_grids.table({"hellaswag": smooth()}, runs(4, 6), 2000))[0]
    assert result.groups_above == result.groups
    assert result.reason == "above chance at every loss seen"
    assert np.isnan(result.next_loss)
    assert result.low <= result.loss <= result.high


def test_the_level_is_shared_by_the_tasks():
    table = simulated_grids.table(dict.fromkeys(["mmlu", "race"], emergent(4.0)), runs(2, 4), 300)
    assert {r.alpha for r in first_above.first_above(table, replicates=100)} == {0.025}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t[t["run"].isin(t["run"].unique()[:2])], "at least 3"),
        (lambda t: t[t["final"]].head(5), "at least 6"),
        (lambda t: t.assign(chance=np.nan), "not known"),
    ],
)
def test_too_little_gives_a_reason(change, reason):
    result = first_above.first_above(change(simulated_grids.table({"mmlu": emergent(4.0)})), replicates=100)[0]
    assert np.isnan(result.loss)
    assert reason in result.reason
    assert reason in first_above.sentence(result)


def test_the_program_prints_a_line_per_task(tmp_path, capsys):
    table = simulated_grids.table({"mmlu": emergent(4.0, 0.4), "race": flat}, runs(4, 6), 1000)
    path = tmp_path / "t.csv"
    table.to_csv(path, index=False)
    first_above.main([str(path), "--replicates", "100"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "RACE, acc: not above chance" in lines[0] + lines[1]
    with pytest.raises(UserError, match="no such file"):
        first_above.main([str(tmp_path / "none.csv")])
    assert isinstance(first_above.as_table(first_above.first_above(table, replicates=100)), pd.DataFrame)
