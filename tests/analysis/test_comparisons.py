"""Comparisons around a threshold: two metrics, the log-likelihood before the rise, an augmented prompt."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import simulated_grids
from simulated_grids import emergent, flat, runs, smooth

from analysis import comparisons
from tokenizer.cli import UserError


def two_metrics(seed, eta_brier, run_sd=0.01):
    """Accuracy with a threshold at 4, Brier score with one of its own."""
    grid = runs(4, 6)
    accuracy = simulated_grids.table({"mmlu": emergent(4.0)}, grid, 1000, seed, run_sd)
    brier = simulated_grids.table({"mmlu": emergent(eta_brier, 0.25)}, grid, 1000, 500 + seed, run_sd, metric="brier")
    return pd.concat([accuracy, brier], ignore_index=True)


def test_the_interval_of_a_difference_by_hand():
    # Independent: sqrt(3² + 4²) = 5 below, sqrt(6² + 8²) = 10 above.
    assert comparisons.difference_interval((10, 7, 16), (2, -6, 6), 0.0) == pytest.approx((3, 18))
    # Wholly correlated terms of equal width cancel.
    assert comparisons.difference_interval((10, 9, 11), (2, 1, 3), 1.0) == pytest.approx((8, 8))


@pytest.mark.slow
def test_metrics_of_one_threshold_seldom_differ_and_of_two_do():
    same = [comparisons.same_eta(two_metrics(seed, 4.0), replicates=100, seed=seed)[0] for seed in range(16)]
    assert sum(d.p_value < 0.05 for d in same) <= 3
    for d in same:
        assert d.low <= d.difference <= d.high
        assert (d.p_value < 0.05) == (d.low > 0 or d.high < 0)
    apart = [comparisons.same_eta(two_metrics(seed, 5.0), replicates=100, seed=seed)[0] for seed in range(4)]
    assert all(d.high < 0 and d.p_value < 0.01 for d in apart)
    assert np.mean([d.difference for d in apart]) == pytest.approx(-1.0, abs=0.15)


def test_a_metric_without_a_threshold_has_no_difference():
    table = pd.concat(
        [
            simulated_grids.table({"mmlu": emergent(4.0, 0.4)}, runs(4, 6), 1000),
            simulated_grids.table({"mmlu": smooth()}, runs(4, 6), 1000, metric="correct_choice_prob"),
        ],
        ignore_index=True,
    )
    (result,) = comparisons.same_eta(table, replicates=100)
    assert np.isnan(result.difference)
    assert np.isnan(result.p_adjusted)
    assert result.reason == "correct_choice_prob is smooth"


def test_a_table_without_such_metrics_has_no_pairs():
    assert comparisons.same_eta(simulated_grids.table({"mmlu": flat}, metric="loglikelihood_per_token")) == []


def with_loglikelihood(right, wrong=None, accuracy=None, seed=0):
    """Accuracy with a threshold at 4 (or `accuracy`), and log-likelihoods as functions of loss."""
    grid = runs(4, 6)
    parts = [simulated_grids.table({"mmlu": accuracy or emergent(4.0, 0.4)}, grid, 1000, seed)]
    parts.append(simulated_grids.table({"mmlu": right}, grid, 1000, seed, metric="loglikelihood_per_token"))
    if wrong:
        other = simulated_grids.table({"mmlu": wrong}, grid, 1000, seed + 50, metric="loglikelihood_per_token")
        parts.append(other.assign(metric="loglikelihood_per_token_wrong"))
    return pd.concat(parts, ignore_index=True)


def test_a_log_likelihood_that_moves_before_accuracy_is_seen():
    right, margin = comparisons.earlier_movement(
        with_loglikelihood(lambda loss: -0.6 * loss, lambda loss: -0.6 * loss), replicates=200
    )
    assert right.moves
    assert right.slope == pytest.approx(-0.6, abs=0.05)
    assert right.slope_low < right.slope < right.slope_high < 0
    assert right.loss_low >= 4.0
    assert right.accuracy_slope_low <= 0 <= right.accuracy_slope_high
    # That of the wrong options moves as much: no ability, and the margin says so.
    assert margin.quantity.endswith("right minus wrong")
    assert abs(margin.slope) < 0.06
    assert margin.slope_low <= 0.01
    assert margin.slope_high >= -0.01


def test_one_that_does_not_move_is_not():
    wrong = 0
    for seed in range(20):
        (result,) = comparisons.earlier_movement(with_loglikelihood(lambda loss: 0 * loss, seed=seed), replicates=100)
        wrong += result.moves
    assert wrong <= 3


def test_a_smooth_task_has_no_plateau():
    (result,) = comparisons.earlier_movement(with_loglikelihood(lambda loss: -loss, accuracy=smooth()), replicates=100)
    assert "no plateau" in result.reason
    assert np.isnan(result.slope)


def test_the_slope_is_exact_on_a_line():
    values = pd.DataFrame({"run": list("aabbcc"), "loss": [1.0, 2, 3, 4, 5, 6], "value": [2.0, 4, 6, 8, 10, 12]})
    assert comparisons.clustered_slope(values) == pytest.approx((2.0, 2.0, 2.0))


def test_runs_that_differ_widen_the_interval_of_the_slope():
    # Each run is a level of its own: twelve checkpoints are worth four runs.
    loss = np.tile([1.0, 1.1, 1.2], 4) + np.repeat([0, 1, 2, 3], 3)
    level = np.repeat([0.0, 1.0, -1.0, 0.0], 3)
    runs_apart = pd.DataFrame({"run": np.repeat(list("abcd"), 3), "loss": loss, "value": level})
    one_each = runs_apart.assign(run=[str(i) for i in range(12)])
    wide, narrow = comparisons.clustered_slope(runs_apart), comparisons.clustered_slope(one_each)
    assert wide[0] == pytest.approx(narrow[0])
    assert wide[2] - wide[1] > 1.3 * (narrow[2] - narrow[1])


def prompts(plain, augmented, seed=0):
    """Two prompts of one open task."""
    grid = runs(4, 6)
    return pd.concat(
        [
            simulated_grids.table({"gsm8k": truth}, grid, 1000, seed + 100 * i).assign(task=name)
            for i, (name, truth) in enumerate((("direct", plain), ("thought", augmented)))
        ],
        ignore_index=True,
    )


def test_the_loss_from_which_a_chain_of_thought_is_better():
    found = [
        comparisons.augmented_prompting(
            prompts(emergent(5.0, 0.05), lambda loss: emergent(5.0, 0.05)(loss) + emergent(3.9, 0.4)(loss), seed),
            "direct",
            "thought",
            replicates=100,
        )
        for seed in range(10)
    ]
    assert sum(result.loss <= 4.0 for result in found) >= 9
    assert np.median([result.loss for result in found]) > 3.2
    for result in found:
        assert result.difference_lowest > 3 * result.error_lowest
        assert abs(result.difference_highest) < 4 * result.error_highest


def test_prompts_that_are_equally_good_are_not_told_apart():
    wrong = sum(
        np.isfinite(
            comparisons.augmented_prompting(
                prompts(emergent(4.0), emergent(4.0), seed), "direct", "thought", replicates=100
            ).loss
        )
        for seed in range(20)
    )
    assert wrong <= 3


def test_a_task_or_metric_that_is_not_there_is_the_users_mistake():
    table = prompts(flat, flat)
    with pytest.raises(UserError, match="no task cot in the table; it has direct, thought"):
        comparisons.augmented_prompting(table, "direct", "cot")
    with pytest.raises(UserError, match="no metric brier"):
        comparisons.augmented_prompting(table, "direct", "thought", metric="brier")
    alone = pd.concat([table[(table["task"] == "direct") & table["final"]], table[table["task"] == "thought"].head(2)])
    assert "are needed" in comparisons.augmented_prompting(alone, "direct", "thought").reason


def test_the_program_says_what_it_found(tmp_path, capsys):
    path = tmp_path / "t.csv"
    two_metrics(0, 4.0).to_csv(path, index=False)
    comparisons.main([str(path), "--replicates", "100"])
    assert "η by acc minus η by brier" in capsys.readouterr().out
    prompts(flat, emergent(4.0, 0.4)).to_csv(path, index=False)
    comparisons.main([str(path), "--augmented", "direct", "thought", "--replicates", "100"])
    assert "thought against direct [exact_match]: the augmented prompt is better" in capsys.readouterr().out
