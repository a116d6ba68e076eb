"""One curve against a curve a size: on grids in which sizes differ by a known amount, or not at all."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import simulated_grids

from analysis import curves, same_loss
from tokenizer.cli import UserError

ROWS = 4000


def grid(seed, *, budgets=5, checkpoints=12, larger=0.0, run_sd=0.005, truth=None):
    """A grid in which the largest size scores `larger` more than the others at every loss."""
    generator = np.random.default_rng(seed)
    results = simulated_grids.table({"mmlu": simulated_grids.flat}, simulated_grids.runs(budgets, checkpoints))
    loss = results["loss"].to_numpy()
    _, run = np.unique(results["run"], return_inverse=True)
    truth = truth or simulated_grids.smooth(6.5, 0.1)
    effect = generator.normal(0, run_sd, run.max() + 1)[run]
    share = np.clip(0.25 + truth(loss) + effect + larger * (results["size"] == "30M"), 0, 1)
    value = generator.binomial(ROWS, share) / ROWS
    return results.assign(value=value, stderr=np.sqrt(value * (1 - value) / ROWS), rows=ROWS)


def only(results, **options):
    (result,) = same_loss.compare(results, replicates=400, **options)
    return result


def test_sizes_that_differ_are_found_to_differ_by_what_they_do():
    result = only(grid(0, larger=0.08))
    assert result.verdict == same_loss.DIFFERENT
    assert 0.02 < result.largest_low <= 0.08 <= result.largest_high
    assert result.between[0] == "30M"
    assert result.gain_low > 0
    assert result.error_each < result.error_one
    assert "30M above" in same_loss.sentence(result)


def test_sizes_that_agree_are_equivalent_within_a_margin_that_is_wide_enough():
    result = only(grid(1), margin=0.06)
    assert result.verdict == same_loss.EQUIVALENT
    assert result.largest_low == 0
    assert result.largest < result.bound < min(0.06, result.largest_high)
    assert only(grid(1), margin=result.bound * 0.9).verdict == same_loss.UNDECIDED
    assert f"equivalent within {result.bound:.3f} and more" in same_loss.sentence(result)


def test_sizes_that_differ_by_the_margin_are_rarely_called_equivalent():
    results = [only(grid(50 + seed, larger=0.05), margin=0.05) for seed in range(20)]
    assert sum(result.verdict == same_loss.EQUIVALENT for result in results) <= 2


def test_intervals_hold_the_true_difference_about_as_often_as_they_say():
    covered = [r.largest_low <= 0.05 <= r.largest_high for r in (only(grid(seed, larger=0.05)) for seed in range(16))]
    assert np.mean(covered) >= 0.8
    agreeing = [only(grid(100 + seed)) for seed in range(16)]
    assert np.mean([r.largest_low > 0 for r in agreeing]) <= 0.2
    assert not any(r.verdict == same_loss.DIFFERENT for r in agreeing)


def test_what_runs_vary_by_is_estimated():
    spreads = [only(grid(seed, run_sd=0.02, budgets=8)).run_sd for seed in range(8)]
    assert np.mean(spreads) == pytest.approx(0.02, rel=0.3)


def test_one_run_a_size_never_proves_a_difference_of_sizes():
    result = only(grid(2, budgets=1, checkpoints=20, larger=0.1))
    assert result.verdict == same_loss.UNDECIDED
    assert result.largest == pytest.approx(0.1, abs=0.04)
    assert np.isnan(result.error_each)
    assert "runs and sizes cannot be told apart" in result.reason


def short_and_long(slopes, seed=6):
    """Sizes with four short runs each, at chance down to a loss of 2.6, and a long one for each of its `slopes`, which
    rises from chance below 2.5."""
    generator = np.random.default_rng(seed)
    parts = []
    for size, of_size in slopes.items():
        for number, slope in enumerate([*[0.0] * 4, *of_size]):
            last, count = (2.6, 4) if number < 4 else (1.9, 24)
            loss = np.linspace(4.0, last, count) + generator.normal(0, 0.01, count)
            value = generator.binomial(ROWS, 0.25 + slope * np.maximum(0, 2.5 - loss)) / ROWS
            run = {"run": f"{size}-{number}", "size": size, "parameters": simulated_grids.SIZES[size]}
            parts.append(pd.DataFrame({"loss": loss, "value": value, "step": np.arange(count), **run}))
    stderr = 0.5 / np.sqrt(ROWS)
    columns = {"grid": "simulated", "task": "mmlu", "metric": "acc", "stderr": stderr, "higher_is_better": True}
    return pd.concat(parts, ignore_index=True).assign(**columns, chance=0.25, rows=ROWS)


def test_a_difference_where_each_size_has_one_run_is_not_one_of_sizes():
    """In the micro grid one run a size got below the thresholds, where runs rise as luck has it. How runs vary was
    measured at chance, where they do not, and eight tasks were called different between sizes."""
    result = only(short_and_long({"3M": [1.0], "10M": [0.3], "30M": [0.6]}))
    assert result.largest_low > 0.02
    assert result.verdict == same_loss.UNDECIDED
    assert "where both have two runs no difference is clear, elsewhere runs and sizes cannot be told" in result.reason


def test_with_several_long_runs_a_size_sizes_can_be_told_from_runs():
    of_sizes = short_and_long({"3M": [1.0, 0.9, 0.95], "10M": [0.3, 0.35, 0.25], "30M": [0.6, 0.65, 0.55]})
    assert only(of_sizes).verdict == same_loss.DIFFERENT
    of_runs = short_and_long({"3M": [1.0, 0.3, 0.6], "10M": [0.3, 0.9, 0.5], "30M": [0.6, 0.4, 0.9]})
    assert only(of_runs).verdict == same_loss.UNDECIDED


def test_checkpoints_in_decay_are_compared_with_the_others():
    results = grid(3, budgets=6)
    share = results["tokens"] / results.groupby("run")["tokens"].transform("max")
    marked = results.assign(decay=share > 0.5)
    marked["value"] = (marked["value"] + 0.06 * marked["decay"]).clip(0, 1)
    result = only(marked, by="decay")
    assert result.between == ("decay", "before")
    assert result.largest_low <= 0.06 <= result.largest_high
    assert "no checkpoint is marked as from a decay phase" in only(results.assign(decay=False), by="decay").reason


def test_a_metric_of_which_less_is_better_turns_the_order():
    results = grid(0, larger=0.08)
    turned = results.assign(metric="brier", value=1 - results["value"], higher_is_better=False)
    assert only(turned).between[0] == "30M"
    assert only(turned).largest == pytest.approx(only(results).largest)


def _one_size(frame):
    return frame[frame["size"] == "3M"]


def _two_tokenizers(frame):
    return frame.assign(tokenizer_sha256=np.where(frame["size"] == "3M", "c" * 64, "d" * 64))


def _apart(frame):
    return frame.assign(loss=frame["loss"] + 10 * frame["size"].map({"3M": 0, "10M": 1, "30M": 2}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_one_size, "one size only"),
        (lambda frame: frame.assign(loss=3.0), "loss is 3 at every checkpoint"),
        (lambda frame: frame.assign(value=0.5), "performance is 0.5 at every checkpoint"),
        (_two_tokenizers, "2 tokenizers in one table"),
        (_apart, "no two sizes have 3 checkpoints each at common losses"),
        (lambda frame: grid(0, truth=simulated_grids.flat, run_sd=0.0), "no more than the sampling of rows"),
    ],
)
def test_what_cannot_be_said_is_said(change, reason):
    result = only(change(grid(4)))
    assert result.verdict == same_loss.UNDECIDED
    assert reason in result.reason
    assert np.isnan(result.largest)
    assert "nan" not in same_loss.sentence(result)


def test_predictions_without_a_run_are_those_of_a_fit_without_it():
    generator = np.random.default_rng(5)
    x, run = generator.uniform(2, 5, 60), np.arange(60) % 6
    y = np.sin(x) + generator.normal(0, 0.1, 60)
    design = curves.Basis.over(x)(x)
    predictions = curves.leave_runs_out(design, y, run)
    for left, penalty in ((0, 1), (4, 5)):
        kept = run != left
        operator = curves.fit_operator(design[kept], curves.PENALTIES[penalty], design[~kept])
        assert predictions[penalty][~kept] == pytest.approx(operator @ y[kept])


def test_a_curve_follows_what_it_can_and_is_a_line_where_it_must_be():
    x = np.linspace(1, 4, 200)
    basis = curves.Basis.over(x)
    smooth = curves.fit_operator(basis(x), curves.PENALTIES[0], basis(x)) @ np.sin(2 * x)
    assert np.abs(smooth - np.sin(2 * x)).max() < 0.01
    assert basis(x).sum(axis=1) == pytest.approx(np.ones(200))


def test_the_command_prints_and_writes(tmp_path, capsys):
    path, out = tmp_path / "table.csv", tmp_path / "same_loss.csv"
    grid(0, larger=0.08).to_csv(path, index=False)
    same_loss.main([str(path), "--replicates", "200", "--margin", "0.03", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "MMLU (accuracy): sizes are different at equal loss (margin 0.03)" in printed
    assert "error on runs left out: one curve" in printed
    assert pd.read_csv(out)["verdict"].tolist() == [same_loss.DIFFERENT]
    with pytest.raises(UserError, match="--margin 0: give a difference above 0"):
        same_loss.main([str(path), "--margin", "0"])


def test_the_simulation_of_its_coverage_prints_a_line_a_truth(capsys):
    program = runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "same_loss_coverage.py"))
    program["main"](["--simulations", "1", "--first-seed", "7"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 3 * 2 * 2
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    with pytest.raises(UserError, match="--simulations is at least 1"):
        program["main"](["--simulations", "0"])
