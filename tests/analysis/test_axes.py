"""Which axis explains performance: on grids in which it follows the loss, or follows something else."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import simulated_grids

from analysis import axes, critical_scale, threshold

ROWS = 4000


def grid(seed, position=None, *, task="mmlu"):
    """A grid in which performance is a function of `position` (checkpoints -> 0 to 1; default: of the loss)."""
    generator = np.random.default_rng(seed)
    results = simulated_grids.table({task: simulated_grids.flat}, simulated_grids.runs(5, 8))
    share = 0.25 + 0.6 * (position or falling_loss)(results)
    value = generator.binomial(ROWS, share.clip(0, 1)) / ROWS
    return results.assign(value=value, stderr=np.sqrt(value * (1 - value) / ROWS), rows=ROWS)


def scaled(values):
    return (values - values.min()) / np.ptp(values)


def falling_loss(results):
    return scaled(-results["loss"])


def growing_tokens(results):
    return scaled(np.log(results["tokens"]))


def by_axis(results, **options):
    return {result.axis: result for result in axes.compare(results, replicates=300, **options)}


def test_loss_explains_what_follows_it_and_compute_does_not():
    found = by_axis(grid(0))
    assert list(found) == ["loss", "flops_6nd", "parameters", "tokens"]
    assert found["loss"].least and found["loss"].support > 0.99
    assert found["loss"].unexplained < 0.05
    assert found["loss"].low <= found["loss"].unexplained <= found["loss"].high
    for axis in ("flops_6nd", "parameters", "tokens"):
        assert found[axis].more_low > 0
        assert found[axis].unexplained > 5 * found["loss"].unexplained
    assert found["parameters"].unexplained > 0.3


def test_the_winner_is_the_axis_that_performance_follows_whichever_it_is():
    found = by_axis(grid(1, growing_tokens))
    assert found["tokens"].least and found["tokens"].support > 0.99
    assert found["tokens"].more_high < 0 < found["flops_6nd"].unexplained


def test_a_perplexity_on_another_text_is_an_axis_of_its_own():
    results = grid(2)
    results["perplexity_wikitext"] = np.exp(1.1 * results["loss"])
    found = by_axis(results)
    # A monotone function of the loss explains as much as the loss.
    assert found["perplexity_wikitext"].unexplained == pytest.approx(found["loss"].unexplained, rel=0.3)


def test_nothing_is_left_of_a_score_without_noise_and_about_all_of_pure_noise():
    exact = grid(3).assign(stderr=0.001)
    exact["value"] = 0.25 + 0.6 * falling_loss(exact)
    assert by_axis(exact)["loss"].unexplained < 1e-3
    noise = exact.assign(value=np.random.default_rng(0).uniform(0.3, 0.5, len(exact)))
    assert 0.8 < by_axis(noise)["loss"].unexplained < 1.3


def test_the_mean_over_tasks_is_theirs():
    results = pd.concat([grid(4), grid(5, task="race"), grid(6, growing_tokens, task="c3")], ignore_index=True)
    single = axes.compare(results, replicates=200)
    together = {result.axis: result for result in axes.overall(results, replicates=200)}
    for axis, result in together.items():
        assert result.task == axes.ALL_TASKS
        assert result.unexplained == pytest.approx(np.mean([r.unexplained for r in single if r.axis == axis]))
        assert result.low < result.unexplained < result.high
    assert together["loss"].num_checkpoints == 3 * 120


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda frame: frame.assign(value=0.4), "performance is 0.4 at every checkpoint"),
        (lambda frame: frame.assign(loss=2.5), "the loss is 2.5 at every checkpoint"),
        (lambda frame: frame[frame["run"].isin(["3M-4M", "10M-4M"])], "2 of the 3 runs"),
        (lambda frame: grid(0, lambda results: 0 * results["loss"]), "no more than the sampling of rows"),
        (
            lambda frame: frame[frame["final"]].head(5),
            "lie within the range of the other runs on every axis; 6 are needed",
        ),
    ],
)
def test_what_cannot_be_compared_is_said(change, reason):
    results = axes.evaluate(change(grid(7)), replicates=200)
    assert reason in results[0].reason
    assert np.isnan(results[0].unexplained) and not results[0].least
    assert "no task has scores" in results[-1].reason
    assert "nan" not in axes.sentence(results[:4])


def test_the_command_says_how_much_more_the_others_leave(tmp_path, capsys):
    path, out = tmp_path / "table.csv", tmp_path / "axes.csv"
    grid(0).to_csv(path, index=False)
    axes.main([str(path), "--replicates", "200", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "MMLU (accuracy): unexplained by pre-training loss" in printed
    assert "mean over tasks: unexplained by pre-training loss" in printed
    assert len(pd.read_csv(out)) == 8


def emergent_in_compute(results):
    exponent = np.log10(results["flops_6nd"])
    critical = exponent.quantile(0.5)
    return np.maximum(0, exponent - critical) / (exponent.max() - critical)


def test_the_critical_scale_is_where_performance_leaves_chance():
    results = grid(8, emergent_in_compute)
    true = 10 ** np.log10(results["flops_6nd"]).quantile(0.5)
    (found,) = critical_scale.critical(results, "flops_6nd", replicates=100)
    assert found.verdict == threshold.EMERGENT
    assert found.low <= true <= found.high
    assert found.scale == pytest.approx(true, rel=0.5)
    assert f"{found.scale:.2e}" in critical_scale.sentence(found)
    chance = grid(9, lambda frame: 0 * frame["loss"])
    (flat,) = critical_scale.critical(chance, "tokens", replicates=100)
    assert flat.verdict == threshold.NOT_REACHED
    assert flat.above == pytest.approx(chance["tokens"].max(), rel=0.05)
    with pytest.raises(ValueError, match="axis 'loss'"):
        critical_scale.critical(results, "loss")


def test_the_critical_scale_of_other_tokenizers_compares():
    results = grid(8, emergent_in_compute)
    mixed = results.assign(tokenizer_sha256=np.where(results["size"] == "3M", "c" * 64, "d" * 64))
    found = critical_scale.critical(mixed, replicates=100)
    assert found[0].verdict == threshold.EMERGENT
    assert repr(found) == repr(critical_scale.critical(results, replicates=100))


def test_the_critical_scale_command(tmp_path, capsys):
    path = tmp_path / "table.csv"
    grid(8, emergent_in_compute).assign(flops_exact=np.nan).to_csv(path, index=False)
    critical_scale.main([str(path), "--axis", "flops_6nd", "--replicates", "100"])
    assert "MMLU (accuracy) against training FLOPs: at chance up to a critical scale of" in capsys.readouterr().out


def test_the_simulation_of_the_intervals_prints_a_line_an_axis(capsys, monkeypatch):
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    program = runpy.run_path(str(folder / "axes_coverage.py"))
    program["main"](["--simulations", "2", "--first-seed", "7"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 3 * 2 * 4
    assert all(line.count("|") == lines[0].count("|") for line in lines)
