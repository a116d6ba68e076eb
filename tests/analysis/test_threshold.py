"""Verdicts on simulated grids whose truth is known. docs/methods.md has the larger simulations."""

from __future__ import annotations

import numpy as np
import pytest
import simulated_grids
from simulated_grids import emergent, flat, runs, smooth

from analysis import chance, threshold

SEEDS = range(8)


def verdicts(truth, task="mmlu", checkpoints=None, rows=1000, run_sd=0.0, **options):
    """The result under each of a few seeds."""
    checkpoints = runs(4, 6) if checkpoints is None else checkpoints
    return [
        threshold.thresholds(
            simulated_grids.table({task: truth}, checkpoints, rows, seed, run_sd, **options), replicates=200, seed=seed
        )[0]
        for seed in SEEDS
    ]


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("task", ["mmlu", "gsm8k"])
def test_a_known_threshold_is_found_within_its_interval(task, power):
    # An open answer's share cannot be below 0, so that its runs differ in proportion to the rise.
    differing = {"run_scale": 0.1} if task == "gsm8k" else {"run_sd": 0.01}
    results = verdicts(emergent(4.0, 0.25, power), task, **differing)
    assert [result.verdict for result in results].count(threshold.EMERGENT) >= 7
    found = [result for result in results if result.verdict == threshold.EMERGENT]
    assert sum(result.eta_low <= 4.0 <= result.eta_high for result in found) >= len(found) - 1
    assert np.median([result.eta for result in found]) == pytest.approx(4.0, abs=0.2)
    assert all(result.loss_low <= result.eta_low <= result.eta <= result.eta_high for result in found)


@pytest.mark.parametrize(
    ("task", "truth"),
    [
        ("mmlu", flat),
        ("gsm8k", flat),
        # The level of guessing on these very rows is not exactly chance, and the same for all checkpoints.
        ("mmlu", lambda loss: np.full_like(loss, 0.015)),
        ("gsm8k", lambda loss: np.full_like(loss, 0.004)),
    ],
)
def test_chance_is_not_reached_and_gets_a_bound_but_no_threshold(task, truth):
    results = verdicts(truth, task, runs(2, 4), rows=200)
    assert threshold.EMERGENT not in [result.verdict for result in results]
    found = [result for result in results if result.verdict == threshold.NOT_REACHED]
    assert len(found) >= 7
    for result in found:
        assert np.isnan(result.eta)
        assert result.eta_below == result.loss_low
        assert "not reached" in threshold.sentence(result)


@pytest.mark.parametrize("truth", [smooth(), smooth(7.0, 0.03), lambda loss: 0.4 * np.exp(3 - loss)])
def test_a_rise_from_the_start_is_not_called_emergent(truth):
    found = [result.verdict for result in verdicts(truth, "hellaswag", run_sd=0.01)]
    assert threshold.EMERGENT not in found
    assert threshold.NOT_REACHED not in found
    assert found.count(threshold.SMOOTH) >= 4


def test_a_constant_far_from_chance_is_neither():
    for result in verdicts(lambda loss: np.full_like(loss, 0.2)):
        assert result.verdict == threshold.UNDECIDED
        assert "at every loss" in result.reason


@pytest.mark.parametrize(
    ("task", "plateau", "rows"), [("hellaswag", 0.15, 200), ("hellaswag", -0.15, 200), ("gsm8k", 0.08, 1000)]
)
def test_a_plateau_that_is_not_chance_is_no_threshold(task, plateau, rows):
    """Eq. 3 asks for chance above η; who scores 0.4 where guessing gives 0.25 knows something already."""
    results = verdicts(lambda loss: plateau + emergent(4.0)(loss), task, rows=rows)
    assert threshold.EMERGENT not in [result.verdict for result in results]
    assert all(np.isnan(result.eta) for result in results)
    said = [result.reason for result in results if "which is not chance" in result.reason]
    assert said
    for reason in said:
        shown = float(reason.split("a plateau at ")[1].split()[0])
        assert shown == pytest.approx(simulated_grids.CHANCE[task] + plateau, abs=0.05)


def test_lower_is_better_gives_the_same_threshold():
    results = simulated_grids.table({"mmlu": emergent(4.0, 0.4)}, runs(4, 6), 1000)
    turned = results.assign(value=1 - results["value"], chance=1 - results["chance"], higher_is_better=False)
    straight, reverse = threshold.thresholds(results)[0], threshold.thresholds(turned)[0]
    assert straight.verdict == reverse.verdict == threshold.EMERGENT
    assert reverse.eta == pytest.approx(straight.eta, abs=0.1)


def test_a_metric_with_standard_errors_needs_no_binomial():
    results = simulated_grids.table({"mmlu": emergent(4.0, 0.4)}, runs(4, 6), 1000)
    brier = results.assign(
        metric="brier", value=0.75 - (results["value"] - 0.25), chance=0.75, higher_is_better=False, stderr=0.014
    )
    result = threshold.thresholds(brier)[0]
    assert result.verdict == threshold.EMERGENT
    assert result.eta_low <= 4.0 <= result.eta_high


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda frame: frame[frame["run"].isin(frame["run"].unique()[:2])], "at least 3 runs"),
        (lambda frame: frame.assign(loss=3.0), "loss is 3 at every checkpoint"),
        (lambda frame: frame[frame["final"]].head(4), "at least 6"),
        (lambda frame: frame.assign(chance=np.nan), "is not known"),
    ],
)
def test_too_little_is_undecided_with_the_reason(change, reason):
    result = threshold.thresholds(change(simulated_grids.table({"mmlu": emergent(4.0)})))[0]
    assert result.verdict == threshold.UNDECIDED
    assert reason in result.reason


def test_the_same_table_gives_the_same_interval():
    results = simulated_grids.table({"mmlu": emergent(4.0, 0.4)}, runs(4, 6), 1000)
    assert repr(threshold.thresholds(results)) == repr(threshold.thresholds(results))


def test_wilson_and_holm_are_the_textbooks():
    from statsmodels.stats.multitest import multipletests
    from statsmodels.stats.proportion import proportion_confint

    assert chance.wilson_interval(0.3, 50) == pytest.approx(proportion_confint(15, 50, method="wilson"))
    p_values = [0.01, 0.04, 0.03, 0.5]
    assert chance.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_only_real_abilities_are_above_chance_at_the_lowest_loss():
    truths = dict.fromkeys(simulated_grids.CHANCE, flat) | {"mmlu": emergent(4.0, 0.4)}
    mistaken = 0
    for seed in SEEDS:
        results = chance.at_lowest_loss(simulated_grids.table(truths, rows=300, seed=seed))
        found = {result.task for result in results if result.above}
        assert "mmlu" in found
        mistaken += found != {"mmlu"}
    # 5 % of such tables hold a task that is called above chance by accident.
    assert mistaken <= 1


def test_all_that_is_behind_a_verdict_is_in_the_table():
    result = verdicts(emergent(4.0), run_sd=0.01)[0]
    assert result.heldout_lead > result.heldout_error > 0
    for low, high in (
        (result.eta_profile_low, result.eta_profile_high),
        (result.eta_bootstrap_low, result.eta_bootstrap_high),
    ):
        assert result.loss_low <= low < high <= result.loss_high
    # The cutoff of the calibrated interval is never below that of chi-square.
    assert result.eta_low <= result.eta_profile_low <= result.eta <= result.eta_profile_high <= result.eta_high
    assert set(threshold.as_table([result]).columns) >= {"run_sd", "run_effect_grows", "heldout_lead", "support"}


def test_a_smooth_account_that_leads_predicts_runs_left_out_better():
    result = verdicts(smooth(), "hellaswag", run_sd=0.01)[0]
    assert result.verdict == threshold.SMOOTH
    assert result.heldout_lead < 0
    assert np.isnan(result.eta_low)


def test_the_held_out_likelihood_has_a_veto():
    evidence = {"bic_chance": 100.0, "bic_smooth": 60.0, "bic_emergent": 50.0, "support": 0.9}
    assert threshold._verdict(**evidence, heldout_lead=-1.0, heldout_error=2.0)[0] == threshold.EMERGENT
    verdict, reason = threshold._verdict(**evidence, heldout_lead=-3.0, heldout_error=2.0)
    assert verdict == threshold.UNDECIDED
    assert "predicts runs left out worse (-3.0 ± 2.0 nats)" in reason


def test_the_program_prints_and_writes(tmp_path, capsys):
    path = tmp_path / "t.csv"
    simulated_grids.table({"mmlu": emergent(4.0, 0.4)}, runs(4, 6), 1000).to_csv(path, index=False)
    threshold.main([str(path), "--replicates", "100", "--out", str(tmp_path / "out.csv")])
    assert "MMLU: emergent at a loss of" in capsys.readouterr().out
    assert (tmp_path / "out.csv").read_text().count("\n") == 2
