"""Correlations against scipy's, their bootstrap over runs, and statements where there is nothing to compute."""

from __future__ import annotations

import numpy as np
import pytest
import simulated_grids
from scipy import stats

import analysis
from analysis import bootstrap, correlation


def test_values_are_scipys(grid):
    results = analysis.load(grid)
    found = {result.task: result for result in correlation.correlations(results, replicates=100)}
    for task in ("mmlu", "hellaswag", "c3"):
        rows = results[results["task"] == task]
        assert found[task].spearman == pytest.approx(stats.spearmanr(rows["loss"], rows["value"]).statistic)
        assert found[task].pearson == pytest.approx(stats.pearsonr(rows["loss"], rows["value"]).statistic)


def test_weighted_statistics_equal_those_of_the_repeated_sample():
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=20).round(1), generator.normal(size=20)
    weights = generator.integers(0, 4, size=(5, 20)).astype(float)
    ranks = correlation.weighted_ranks(x, weights)
    pearson = correlation.weighted_pearson(x, y, weights)
    for row in range(5):
        count = weights[row].astype(int)
        expected = stats.rankdata(np.repeat(x, count))
        assert np.repeat(ranks[row], count) == pytest.approx(expected)
        assert pearson[row] == pytest.approx(stats.pearsonr(np.repeat(x, count), np.repeat(y, count)).statistic)


def test_a_bootstrap_draws_whole_runs():
    draws = bootstrap.multiplicities(6, 500, seed=0)
    assert draws.shape == (500, 6)
    assert (draws.sum(axis=1) == 6).all()


def test_intervals_hold_the_value_and_repeat_themselves(grid):
    results = analysis.load(grid)
    first = correlation.correlations(results)
    for result in first:
        if not result.reason:
            assert result.spearman_low <= result.spearman <= result.spearman_high
            assert result.pearson_low <= result.pearson <= result.pearson_high
    assert correlation.correlations(results)[1] == first[1]


def test_lower_is_better_turns_the_sign():
    results = simulated_grids.table({"mmlu": simulated_grids.emergent(4.0)})
    turned = results.assign(value=1 - results["value"], chance=0.75, higher_is_better=False)
    assert correlation.correlations(turned)[0].spearman == pytest.approx(correlation.correlations(results)[0].spearman)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda frame: frame.assign(value=0.0), "performance is 0 at every checkpoint"),
        (lambda frame: frame.assign(loss=3.0), "loss is 3 at every checkpoint"),
        (lambda frame: frame[frame["run"] == frame["run"].iloc[0]], "1 run with this task; at least 3"),
    ],
)
def test_what_cannot_be_computed_is_said(change, reason):
    results = change(simulated_grids.table({"gsm8k": simulated_grids.emergent(4.5)}))
    result = correlation.correlations(results)[0]
    assert reason in result.reason
    assert np.isnan(result.spearman)
    assert np.isnan(result.pearson_low)


def test_the_published_table_is_at_hand():
    published = correlation.reference()
    assert len(published) == 12
    assert (published["mmlu"].spearman, published["mmlu"].pearson, published["mmlu"].threshold) == (-0.804, -0.903, 2.2)
    assert np.isnan(published["hellaswag"].threshold)
