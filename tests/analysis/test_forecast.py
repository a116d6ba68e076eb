"""What small runs foretell of large ones: on grids whose law, threshold and noise are known."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import forecast, forecast_section, forecast_text, known_truth, noise, threshold_fit, threshold_shapes
from analysis.table import check
from tokenizer.cli import UserError

SIZES = {"300M": 0.35e9, "1B": 1.1e9, "3B": 3.2e9, "6B": 6.2e9}
BUDGETS = (33e9, 67e9, 125e9, 250e9, 500e9)
HELD = ["6B-250B", "3B-500B", "6B-500B"]
"""The runs of at least half of the largest compute."""
TRUTHS = {
    "mmlu": lambda loss: 0.8 * np.maximum(0.0, 2.25 - loss),
    "hellaswag": lambda loss: 0.3 * (2.9 - loss),
    "ceval": lambda loss: 0.0 * loss,
}


def grid(seed=0, truths=TRUTHS, *, loss_sd=0.003, **options):
    """20 runs x 4 checkpoints whose losses differ by run from the law; scores follow the losses."""
    points = known_truth.checkpoints(SIZES, BUDGETS, 4)
    names, run = np.unique(points["run"], return_inverse=True)
    points["loss"] *= np.exp(np.random.default_rng([seed, 1]).normal(0, loss_sd, len(names)))[run]
    return known_truth.scores(points, truths, seed=seed, run_sd=0.01, **options)


def made(table, **options):
    return forecast.forecast(table, **{"replicates": 200} | options)


def scores_of(result, task):
    return [it for it in result.scores if it.task == task]


@pytest.fixture(scope="module")
def table():
    return grid()


@pytest.fixture(scope="module")
def result(table):
    return made(table)


def test_runs_of_half_the_largest_compute_are_held_out_whole(table, result):
    assert [it.run for it in result.losses] == HELD
    assert result.num_fitted == 17
    assert result.cut == pytest.approx(0.5 * table["flops_6nd"].max())
    assert [it.run for it in made(table, below=1.0).losses] == HELD[-1:]


def test_intervals_hold_what_the_runs_did_about_as_often_as_they_say():
    results = [made(grid(seed), seed=seed) for seed in range(10)]
    losses = [it.inside for result in results for it in result.losses]
    assert np.mean(losses) >= 0.85
    for task in TRUTHS:
        found = [it for result in results for it in scores_of(result, task)]
        # Curves are continued beyond what they were fitted to: docs/methods.md has how often that covers.
        assert np.mean([it.inside for it in found]) >= 0.8, task
        assert np.mean([it.clear_inside for it in found]) >= 0.85, task
    crossed = [it for result in results for it in scores_of(result, "mmlu") if it.verdict == "emergent"]
    assert len(crossed) >= 20
    assert np.mean([it.below for it in crossed]) == pytest.approx(np.mean([it.ends_below for it in crossed]), abs=0.1)


def test_a_forecast_of_the_loss_is_worth_having(result):
    for it in result.losses:
        assert it.forecast.high - it.forecast.low < 0.1
        assert it.forecast.low < it.forecast.value < it.forecast.high


def test_the_tokens_that_reach_the_threshold_are_those_of_the_law():
    found = scores_of(made(grid(loss_sd=1e-5, rows=5000)), "mmlu")
    for it, (parameters, _) in zip(found, [(6.2e9, 0), (3.2e9, 0), (6.2e9, 0)], strict=True):
        budgets = np.geomspace(1e9, 1e12, 20_000)
        true = budgets[np.argmax(known_truth.law(parameters, budgets) < 2.25)]
        assert it.eta_tokens.low <= true <= it.eta_tokens.high
        # On its way, at a higher learning rate, it falls below later than one that ends there.
        assert it.eta_between[1] > true


def test_runs_that_are_held_out_do_not_influence_what_is_said_of_them(table, result):
    held = table["run"].isin(HELD)
    other = table.assign(value=table["value"].where(~held, 0.99), stderr=table["stderr"].where(~held, 0.003))
    changed = made(other)
    for before, after in zip(result.scores, changed.scores, strict=True):
        for name in ("score", "eta", "below", "eta_tokens", "clear_from", "verdict"):
            assert str(getattr(before, name)) == str(getattr(after, name)), (before.task, name)
        assert after.measured.value == 0.99
    lower = other.assign(loss=other["loss"].where(~held, other["loss"] - 0.1))
    for before, after in zip(result.losses, made(lower).losses, strict=True):
        assert after.forecast == before.forecast
        assert after.measured == pytest.approx(before.measured - 0.1)
    fitted = table.assign(value=table["value"].where(held, 0.4))
    assert scores_of(made(fitted), "mmlu")[0].score != scores_of(result, "mmlu")[0].score


def test_another_task_in_the_table_changes_nothing(table, result):
    alone = made(table[table["task"] == "mmlu"])
    assert [it.score for it in alone.scores] == [it.score for it in scores_of(result, "mmlu")]


def test_a_task_that_not_every_run_was_asked_is_forecast_from_those_that_were(table, result):
    missing = (table["task"] == "mmlu") & table["run"].isin(["1B-33B", HELD[0]])
    found = made(table[~missing])
    assert [it.run for it in scores_of(found, "mmlu")] == HELD[1:]
    assert found.losses == result.losses
    # As words, because nothing equals NaN.
    assert str(scores_of(found, "hellaswag")) == str(scores_of(result, "hellaswag"))


def test_an_ability_that_begins_beyond_the_fit_cannot_be_foreseen_and_that_is_said():
    result = made(grid(truths={"mmlu": lambda loss: 2.0 * np.maximum(0.0, 2.0 - loss), "ceval": TRUTHS["ceval"]}))
    last = scores_of(result, "mmlu")[-1]
    assert last.run == HELD[-1]
    assert (last.verdict, last.risen, last.inside, last.clear_inside) == ("not reached", True, False, False)
    assert np.isnan(last.eta.value)
    assert last.ends_below is None
    told = "\n".join(forecast_text.lines(result))
    assert "MMLU (acc): no threshold below half of the largest compute: not reached" in told
    assert "Of the 2 tasks not reached below it, 1 rose clear of chance in a larger run: MMLU." in (
        forecast_section.sentence(result)
    )


def test_a_score_of_which_less_is_better_is_forecast_too(table):
    results = grid(continuous=True)
    brier = made(results[results["metric"] == "brier"])
    assert np.mean([it.inside for it in brier.scores]) >= 0.7
    for it in scores_of(brier, "mmlu"):
        assert it.score.high < it.chance
        assert it.risen


def test_unfinished_runs_are_left_out(table):
    stopped = table["run"].isin(["300M-33B", HELD[-1]]) & table["final"]
    result = made(table[~stopped].assign(final=table["final"][~stopped]))
    assert result.num_unfinished == 2
    assert HELD[-1] not in [it.run for it in result.losses]
    assert result.cut == pytest.approx(0.5 * 6 * 0.9 * 3.2e9 * 500e9)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: f[f["size"] == "6B"], "1 model sizes; a power law needs 3"),
        (lambda f: f[f["tokens"] > 200e9], "2 numbers of tokens"),
        (lambda f: f.assign(final=False), "no run is finished"),
        (lambda f: f.assign(tokenizer_sha256=np.where(f["size"] == "1B", "c" * 64, "d" * 64)), "2 tokenizers"),
    ],
)
def test_a_table_that_carries_no_forecast_says_why(change, reason, table):
    result = made(change(table))
    assert reason in result.reason
    assert (result.losses, result.scores) == ([], [])
    (line,) = forecast_text.lines(result)
    assert line.startswith("no forecast from the runs below half of the largest compute: ")
    assert reason in forecast_section.section(result)
    assert forecast_section.sentence(result) is None


def test_a_task_that_was_hardly_asked_has_a_measurement_but_no_forecast(table):
    few = (table["task"] != "ceval") | table["run"].isin([*HELD, "1B-33B"])
    found = scores_of(made(table[few]), "ceval")
    assert len(found) == 3
    assert all(np.isnan(it.score.value) and it.inside is None for it in found)
    assert "1 run with this task" in found[0].reason
    assert "nan" not in "\n".join(forecast_text.lines(made(table[few]))).lower()


def test_the_command_prints_and_writes(table, tmp_path, capsys):
    path, out = tmp_path / "table.csv", tmp_path / "forecast.csv"
    table.to_csv(path, index=False)
    forecast.main([str(path), "--replicates", "200", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "fitted to the 17 runs below half of the largest compute" in printed
    assert "6B-500B: loss at its end forecast " in printed
    assert "MMLU (acc): threshold at a loss of 2.2" in printed
    assert "nan" not in printed
    written = pd.read_csv(out)
    assert len(written) == 3 * len(TRUTHS)
    numbers = [name.removesuffix("_low") for name in written.columns if name.endswith("_low")]
    assert {"loss", "score", "measured", "eta", "eta_tokens", "clear_from"} == set(numbers)
    assert (written["score_low"] <= written["score"]).all()
    assert (written["score"] <= written["score_high"]).all()


@pytest.mark.parametrize("share", ["0", "-1", "1.5", "nan"])
def test_a_share_that_is_none_is_refused_in_one_line(share, tmp_path):
    with pytest.raises(UserError, match=r"--below .*: give a share of the largest compute above 0"):
        forecast.main([str(tmp_path / "absent.csv"), "--below", share])


def test_a_curve_is_continued_as_it_was_fitted(table):
    rows = table[(table["task"] == "mmlu") & (table["metric"] == "acc")]
    data = noise.fit_data(check(rows, "test"))
    shapes = threshold_fit.fit(data).shapes
    at = np.broadcast_to(data.loss, (len(shapes.eta), len(data.loss)))
    assert threshold_shapes.rise_at(data, shapes, at) == pytest.approx(shapes.rise.T, abs=1e-9)
    beyond = threshold_shapes.rise_at(data, shapes, at[:, :1] * 0 + data.loss.min() - 0.05)
    assert (beyond >= 1).all()


def test_the_simulation_of_its_coverage_prints_a_line_a_truth(capsys, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    program = runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "forecast_coverage.py"))
    program["main"](["--simulations", "1", "--first-seed", "7"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * len(program["TRUTHS"])
    assert all(line.count("|") == lines[0].count("|") for line in lines)
