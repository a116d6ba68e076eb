"""The likelihoods behind a threshold, against dense matrices and hand-worked cases."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import paper_like
import pytest
import simulated_grids
from simulated_grids import emergent, runs

from analysis import bootstrap, threshold_draws, threshold_fit, threshold_shapes
from analysis.noise import fit_data, noise_variance
from analysis.threshold import EMERGENT, thresholds
from analysis.threshold_shapes import Data


def small(seed=0, num_runs=4, checkpoints=5):
    """A few runs with a rise below a loss of 4 and a level that is free to move."""
    generator = np.random.default_rng(seed)
    loss = generator.uniform(2.5, 6, num_runs * checkpoints)
    excess = 0.2 * np.maximum(0, 4 - loss) + generator.normal(0, 0.02, len(loss))
    variance = generator.uniform(1e-4, 9e-4, len(loss))
    return Data(loss, excess, variance, np.arange(num_runs) * checkpoints, 0.015)


def dense(data, x, sd, proportional, copies=None):
    """−2 log likelihood (up to a constant that no shape changes) with the covariance matrix written out; a >= 0."""
    run = np.repeat(np.arange(data.num_runs), np.diff([*data.starts, len(data.loss)]))
    blocks = [np.flatnonzero(run == r) for r, n in enumerate(copies or [1] * data.num_runs) for _ in range(n)]
    rows = np.concatenate(blocks)
    cluster = np.repeat(np.arange(len(blocks)), [len(b) for b in blocks])
    z = x[rows] if proportional else (x[rows] > 0).astype(float)
    covariance = np.diag(data.variance[rows]) + sd**2 * np.outer(z, z) * (cluster[:, None] == cluster[None, :])
    inverse = np.linalg.inv(covariance)
    y = data.excess[rows]
    best = np.inf
    for columns in ([np.ones(len(rows)), x[rows]], [np.ones(len(rows))]):
        design = np.column_stack(columns)
        penalty = np.zeros((design.shape[1], design.shape[1]))
        penalty[0, 0] = 1 / data.level_sd**2
        beta = np.linalg.solve(design.T @ inverse @ design + penalty, design.T @ inverse @ y)
        residual = y - design @ beta
        if len(beta) == 1 or beta[1] >= 0:
            best = min(best, residual @ inverse @ residual + beta[0] ** 2 / data.level_sd**2)
    return best + np.linalg.slogdet(covariance)[1] - np.log(data.variance[rows]).sum()


@pytest.mark.parametrize("proportional", [False, True])
@pytest.mark.parametrize("sd", [0.0, 0.01, 0.1])
def test_the_deviance_is_that_of_the_matrix_written_out(sd, proportional):
    data = small()
    shapes = threshold_shapes.shapes(data, np.array([3.5, 4.0, 4.5]))
    normal = threshold_fit.with_run_effect(threshold_fit.run_sums(data, shapes.rise), sd, proportional)
    found = threshold_fit.deviance(normal.total(), data.level_sd)[0]
    for candidate in range(0, len(found), 7):
        assert found[candidate] == pytest.approx(dense(data, shapes.rise[:, candidate], sd, proportional))


def test_a_draw_of_runs_is_the_sample_written_out():
    data = small()
    shapes = threshold_shapes.shapes(data, np.array([3.5, 4.0, 4.5]))
    normal = threshold_fit.with_run_effect(threshold_fit.run_sums(data, shapes.rise), 0.02, False)
    found = threshold_fit.deviance(normal.drawn(np.array([[2.0, 0, 1, 1]])), data.level_sd)[0]
    for candidate in range(0, len(found), 11):
        assert found[candidate] == pytest.approx(dense(data, shapes.rise[:, candidate], 0.02, False, [2, 0, 1, 1]))


def test_a_shape_is_one_at_the_lowest_loss_and_falls():
    data = small()
    shapes = threshold_shapes.shapes(data, np.array([3.5, 4.0]))
    order = np.argsort(data.loss)
    assert np.allclose(shapes.rise[order[0]], 1)
    assert (np.diff(shapes.rise[order], axis=0) <= 1e-12).all()
    at_chance = shapes.rise[:, shapes.emergent][data.loss >= 4.0]
    assert (at_chance == 0).all()
    assert (shapes.rise[:, shapes.smooth] > 0).sum() > 0.99 * shapes.rise[:, shapes.smooth].size
    assert not (shapes.emergent & shapes.smooth).any()


def test_a_threshold_needs_checkpoints_of_two_runs_on_each_side():
    loss = np.array([2.0, 2.5, 3.0, 6.0, 5.0, 4.0, 3.5, 6.5])
    data = Data(loss, np.zeros(8), np.ones(8), np.array([0, 4]), 1.0)
    # Below 3.2 there are three checkpoints, all of one run; below 3.8 four of both; above 5.5 only two.
    assert threshold_shapes.both_sides(data, np.array([3.2, 3.8, 5.5])).tolist() == [False, True, False]


def test_differences_between_runs_are_found():
    table = simulated_grids.table({"mmlu": emergent(4.0)}, runs(10, 8), 4000, 1, 0.03)
    fitted = threshold_fit.fit(fit_data(table))
    best = fitted.best(fitted.shapes.emergent)
    assert 0.015 < fitted.run_sd[best] < 0.045
    assert not fitted.proportional[best]
    assert fitted.shapes.eta[best] == pytest.approx(4.0, abs=0.15)
    table = simulated_grids.table({"mmlu": emergent(4.0)}, runs(10, 8), 4000, 1, run_scale=0.15)
    fitted = threshold_fit.fit(fit_data(table))
    assert fitted.proportional[fitted.best(fitted.shapes.emergent)]


def test_a_run_left_out_is_predicted_from_the_others():
    table = simulated_grids.table({"mmlu": emergent(4.0)}, runs(2, 6), 1000, 0, 0.01)
    fitted = threshold_fit.fit(fit_data(table))
    data, leads = fitted.data, threshold_draws.heldout_leads(fitted)
    assert leads.shape == (6,)
    assert leads.sum() > 0
    ends = [*data.starts[1:], len(data.loss)]
    for run, (start, end) in enumerate(zip(data.starts, ends, strict=True)):
        others = np.ones(data.num_runs)
        others[run] = 0
        logs = []
        for account in (fitted.shapes.emergent, fitted.shapes.smooth):
            normal = fitted.normal.drawn(others[None, :])
            found = threshold_fit.deviance(normal, data.level_sd)[0]
            best = np.flatnonzero(account)[found[account].argmin()]
            slope, level = (c[0, best] for c in threshold_fit.coefficients(normal, data.level_sd))
            x = fitted.shapes.rise[start:end, best]
            z = x if fitted.proportional[best] else (x > 0).astype(float)
            covariance = np.diag(data.variance[start:end]) + fitted.run_sd[best] ** 2 * np.outer(z, z)
            residual = data.excess[start:end] - level - slope * x
            logs.append(-0.5 * (residual @ np.linalg.solve(covariance, residual) + np.linalg.slogdet(covariance)[1]))
        assert leads[run] == pytest.approx(logs[0] - logs[1], abs=1e-6)


def test_candidates_that_are_far_behind_decide_no_draw():
    table = simulated_grids.table({"mmlu": emergent(4.0)}, runs(4, 6), 1000, 0, 0.01)
    fitted = threshold_fit.fit(fit_data(table))
    draws = bootstrap.multiplicities(12, 100, 0)
    some, everything = threshold_draws.replicates(fitted, draws), None
    kept = threshold_draws.CONTENDERS
    try:
        threshold_draws.CONTENDERS = 1e9
        everything = threshold_draws.replicates(fitted, draws)
    finally:
        threshold_draws.CONTENDERS = kept
    assert np.mean(some.eta == everything.eta) >= 0.98
    assert (some.excess >= -1e-9).all()


def test_the_profile_interval_by_hand():
    eta = np.array([1.0, 2, 3, 4, 5])
    # Within 4 of the least: from half-way between 1 and 2 (9 to −1 over 4 → 5, −5) to 3/4 of the way from 3 to 4.
    assert threshold_draws.profile_interval(eta, np.array([9.0, -1, 0, 4, 20]), 4.0) == pytest.approx((1.6, 3.75))
    assert threshold_draws.profile_interval(eta, np.array([9.0, 5, 0, 1, 2]), 4.0) == pytest.approx((2.2, 5.0))


def test_the_vertex_is_exact_on_a_parabola():
    eta = np.array([3.0, 3.1, 3.3, 3.4])
    assert threshold_draws.vertex(eta, 50 * (eta - 3.17) ** 2) == pytest.approx(3.17)
    assert threshold_draws.vertex(eta, eta) == 3.0


def test_the_cutoff_is_that_of_the_draws_widened_for_few_runs():
    excess = np.linspace(0, 10, 1001)
    assert threshold_draws.calibrated_cutoff(excess, 10_000) == pytest.approx(9.5, rel=1e-3)
    # 6 runs: 6/5 times (2.5706/1.9600)².
    assert threshold_draws.calibrated_cutoff(excess, 6) == pytest.approx(9.5 * 1.2 * 1.7202, rel=1e-3)
    assert threshold_draws.calibrated_cutoff(excess / 100, 6) == threshold_draws.DELTA_CHI2


def test_the_variance_of_a_share_is_taken_from_the_fit_not_from_the_share():
    table = simulated_grids.table({"mmlu": emergent(4.0)}, runs(2, 4), 100, 0)
    variance = noise_variance(table, table["loss"].to_numpy())
    # At chance, where the isotonic fit is nearly flat, the lucky and the unlucky weigh about the same.
    at_chance = variance[table["loss"] > 4.5]
    assert at_chance == pytest.approx(np.full(len(at_chance), 0.25 * 0.75 / 100), rel=0.25)


@pytest.mark.slow
def test_one_task_of_a_full_grid_is_fast():
    grid = pd.concat([runs(10, 60), runs(1, 60, {"100M": 100_000_000})])
    table = simulated_grids.table({"mmlu": emergent(4.0)}, grid, 2000, 0, 0.01)
    thresholds(table, replicates=100)
    start = time.process_time()
    thresholds(table, replicates=2000)
    # 0.4 s on an idle core; twice that for a machine that others use.
    assert time.process_time() - start < 0.8


def test_the_interval_of_a_sharp_threshold_is_closed_on_both_sides():
    """Where η is known to a hundredth of the range, the neighbours of the best η are far behind it; they were left out
    of the profile, which then seemed never to rise."""
    table = paper_like.table(tasks={"mmlu": paper_like.TASKS["mmlu"]})
    (found,) = thresholds(table[table["metric"] == "acc"], replicates=200)
    assert found.verdict == EMERGENT
    assert paper_like.ETA - 0.05 < found.eta_low < found.eta < found.eta_high < paper_like.ETA + 0.05
