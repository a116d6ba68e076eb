"""The metrics against values worked out by hand, the paper's anchors and, where it is installed, scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest

from emergence_eval import metrics


def scores(loglikelihoods, gold, **options):
    options.setdefault("characters", [1] * len(loglikelihoods))
    options.setdefault("tokens", [1] * len(loglikelihoods))
    return metrics.choice_scores(loglikelihoods, gold, **options)


def mean(name, rows):
    return np.mean([row[name].value for row in rows])


def test_worked_by_hand():
    """Probabilities 0.5, 0.25, 0.25 of 0.4, 0.2, 0.2: what is left beside the options does not count."""
    found = scores([math.log(0.4), math.log(0.2), math.log(0.2)], gold=1)
    assert found["correct_choice_prob"].value == pytest.approx(0.25)
    assert found["brier"].value == pytest.approx(0.5**2 + 0.75**2 + 0.25**2)
    assert found["acc"].value == 0.0
    assert [found[name].chance for name in ("acc", "acc_norm", "correct_choice_prob")] == [pytest.approx(1 / 3)] * 3
    assert found["brier"].chance == pytest.approx(2 / 3)


@pytest.mark.parametrize("options", [2, 3, 4])
def test_a_uniform_model_scores_the_chance_level(options):
    rows = [scores([-3.0] * options, gold, vocabulary=100) for gold in range(options)]
    for name in ("acc", "acc_norm", "correct_choice_prob", "brier"):
        assert mean(name, rows) == pytest.approx(rows[0][name].chance)
    if options == 4:
        assert mean("brier", rows) == pytest.approx(0.75)


def test_always_a_on_balanced_answers_scores_one_and_a_half():
    rows = [scores([0.0, -1e3, -1e3, -1e3], gold) for gold in range(4)]
    assert mean("brier", rows) == pytest.approx(1.5)
    assert mean("acc", rows) == 0.25
    assert mean("correct_choice_prob", rows) == pytest.approx(0.25)


def test_perfect_and_perfectly_wrong():
    assert scores([0.0, -1e3], 0)["brier"].value == 0.0
    assert scores([0.0, -1e3], 1)["brier"].value == 2.0


def test_loglikelihoods_per_token_and_per_character():
    found = scores([-6.0, -8.0, -3.0], 0, characters=[3, 4, 1], tokens=[2, 1, 1], vocabulary=50)
    assert found["loglikelihood_per_token"].value == -3.0
    assert found["loglikelihood_per_token_wrong"].value == (-8.0 - 3.0) / 2
    assert found["loglikelihood_per_character"].value == -2.0
    assert found["loglikelihood_per_character_wrong"].value == (-2.0 - 3.0) / 2
    assert found["loglikelihood_per_token"].chance == pytest.approx(-math.log(50))
    assert found["loglikelihood_per_character"].chance == pytest.approx(-math.log(50) * 2 / 3)
    # The sum prefers the third option, the sum per character the first two alike: the first of equals.
    assert (found["acc"].value, found["acc_norm"].value) == (0.0, 1.0)
    assert math.isnan(scores([-1.0, -2.0], 0)["loglikelihood_per_token"].chance)


def test_impossible_options_are_no_error():
    found = scores([-math.inf, -math.inf], 1)
    assert found["correct_choice_prob"].value == 0.5
    assert scores([-math.inf, -1.0], 1)["correct_choice_prob"].value == 1.0
    assert scores([-1.0], 0, characters=[0], tokens=[0])["brier"].value == 0.0


def test_calibration_error_worked_by_hand():
    """Bins (0.5, 0.6] with gap |1/2 - 0.55| and (0.9, 1] with gap |2/3 - 0.95|."""
    confidences, correct = [0.52, 0.58, 0.92, 0.95, 0.98], [1, 0, 1, 1, 0]
    expected = 2 / 5 * 0.05 + 3 / 5 * (0.95 - 2 / 3)
    assert metrics.expected_calibration_error(confidences, correct) == pytest.approx(expected)


def test_a_bin_holds_its_upper_edge():
    assert metrics.expected_calibration_error([0.5, 0.5], [1, 0]) == 0.0
    # 0.5 and 0.41 share the bin (0.4, 0.5].
    assert metrics.expected_calibration_error([0.5, 0.41], [1, 0]) == pytest.approx((0.5 - 0.41) / 2)
    assert metrics.expected_calibration_error([1.0], [1]) == 0.0


def test_calibrated_and_overconfident_models():
    generator = np.random.default_rng(1)
    rows, gold = [], []
    for _ in range(4000):
        probability = generator.uniform(0.5, 1)
        rows.append([math.log(probability), math.log(1 - probability)])
        gold.append(int(generator.random() > probability))
    value, error = metrics.calibration(rows, gold)
    assert value < 0.03
    assert 0.002 < error < 0.02
    value, _ = metrics.calibration([[0.0, -50.0]] * 4, [0, 1, 0, 1])
    assert value == pytest.approx(0.5)
    assert metrics.calibration([[0.0, -1.0]], [0])[1] is None
    assert metrics.calibration(rows, gold) == metrics.calibration(rows, gold)


def test_agrees_with_scikit_learn():
    sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn, which lm_eval installs")
    calibration = pytest.importorskip("sklearn.calibration")
    generator = np.random.default_rng(2)
    values = generator.normal(size=(500, 4))
    gold = generator.integers(4, size=500)
    given = np.array([metrics.probabilities(row) for row in values])
    ours = [scores(list(row), right) for row, right in zip(values, gold, strict=True)]
    theirs = sklearn_metrics.brier_score_loss(gold, given, labels=[0, 1, 2, 3], scale_by_half=False)
    assert mean("brier", ours) == pytest.approx(theirs)
    assert mean("acc", ours) == pytest.approx(sklearn_metrics.accuracy_score(gold, given.argmax(1)))
    nats = sklearn_metrics.log_loss(gold, given, labels=[0, 1, 2, 3])
    assert -np.mean([math.log(row["correct_choice_prob"].value) for row in ours]) == pytest.approx(nats)

    confidences, correct = given.max(1), (given.argmax(1) == gold).astype(float)
    accuracy, confidence = calibration.calibration_curve(correct, confidences, n_bins=10)
    counts = np.histogram(confidences, bins=np.linspace(0, 1, 11))[0]
    expected = np.average(np.abs(accuracy - confidence), weights=counts[counts > 0])
    assert metrics.expected_calibration_error(confidences, correct) == pytest.approx(expected)
