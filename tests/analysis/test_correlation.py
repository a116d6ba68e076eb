"""Correlations against scipy's, their bootstrap over runs, and statements where there is nothing to compute."""

from __future__ import annotations

import numpy as np
import pandas as pd
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


@pytest.mark.parametrize("digits", [1, 6])
def test_drawn_statistics_equal_those_of_the_repeated_sample(digits):
    generator = np.random.default_rng(1)
    x, y, run = generator.normal(size=40).round(digits), generator.normal(size=40), np.arange(40) % 5
    draws = bootstrap.multiplicities(5, 50, seed=3)
    spearman, pearson = correlation.drawn_correlations(x + 3, y.round(digits), run, draws.astype(float))
    for row, counts in enumerate(draws[:, run]):
        written_out = np.repeat(x, counts), np.repeat(y.round(digits), counts)
        assert spearman[row] == pytest.approx(stats.spearmanr(*written_out).statistic)
        assert pearson[row] == pytest.approx(stats.pearsonr(*written_out).statistic)


def test_draws_without_variation_are_no_numbers():
    x, y, run = np.array([3.1, 3.1, 3.1, 2.0]), np.array([0.3, 0.1, 0.2, 0.4]), np.array([0, 0, 1, 2])
    spearman, pearson = correlation.drawn_correlations(x, y, run, np.array([[2.0, 1.0, 0.0], [1.0, 1.0, 1.0]]))
    assert np.isnan(spearman).tolist() == np.isnan(pearson).tolist() == [True, False]


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
        (
            lambda frame: frame.assign(tokenizer_sha256=np.where(frame["size"] == "3M", "c" * 64, "d" * 64)),
            "2 tokenizers in one table: losses per different tokens do not compare; take one with --only",
        ),
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


def test_the_command_takes_another_loss_and_writes_the_numbers(grid, tmp_path, capsys):
    out = tmp_path / "correlation.csv"
    correlation.main([str(grid), "--loss", "zh", "--only", "task=mmlu", "--replicates", "100", "--out", str(out)])
    results = analysis.load(grid, loss="zh")
    rows = results[results["task"] == "mmlu"]
    expected = stats.spearmanr(rows["loss_zh"], rows["value"]).statistic
    assert f"Spearman {expected:+.3f}" in capsys.readouterr().out
    written = pd.read_csv(out)
    assert written["spearman"].tolist() == [pytest.approx(expected)]
    assert written["spearman_du2024"].tolist() == [-0.804]
