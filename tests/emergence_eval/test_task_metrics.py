"""What a task's result holds: every metric with chance, error and rows, from a language model of known answers."""

from __future__ import annotations

import math

import pytest
from known_answers import KnownAnswers

from emergence_eval import definitions
from emergence_eval.metrics import LOWER_IS_BETTER
from emergence_eval.results import read_rows, write_rows
from emergence_eval.task_scores import evaluate_task, load_tasks

CHOICE_METRICS = [
    *("acc", "acc_norm", "correct_choice_prob", "brier"),
    *("loglikelihood_per_token", "loglikelihood_per_token_wrong"),
    *("loglikelihood_per_character", "loglikelihood_per_character_wrong"),
]


class Model(KnownAnswers):
    """Tokens are characters, of which there are 100."""

    tokenizer = range(100)
    max_length = 10_000

    def tok_encode(self, text):
        return list(text)

    def _encode_pair(self, context, continuation):
        return list(context), list(continuation)


@pytest.fixture(scope="module")
def tasks(benchmarks):
    return load_tasks(definitions.load(["emergence", "emergence_variants", "bigbench"]), benchmarks)


def evaluate(tasks, name, limit=None, **answers):
    (definition,) = definitions.load([name])
    model = Model(**answers)
    result, rows = evaluate_task(model, tasks[name], definition, "hash", "characters", limit)
    return result, rows, model


def test_every_metric_of_a_choice_task(tasks):
    """Always option A, as sure as can be, on answers A B C D A: right twice in five."""
    result, *_ = evaluate(
        tasks, "hellaswag", likelihood=lambda context, text: 0.0 if "jumps" in text else -100.0 * len(text)
    )
    assert list(result.metrics) == [*CHOICE_METRICS, "ece"]
    found = {name: (metric.value, metric.chance) for name, metric in result.metrics.items()}
    assert found["acc"] == found["correct_choice_prob"] == (pytest.approx(0.4), 0.25)
    assert found["brier"] == (pytest.approx(3 / 5 * 2), 0.75)
    assert found["ece"] == (pytest.approx(0.6), 0.0)
    # Of three rows one token costs 100, of the other two nothing; a uniform model pays ln 100 for each.
    assert found["loglikelihood_per_token"] == (pytest.approx(-60.0), pytest.approx(-math.log(100)))
    assert result.chance == 0.25
    assert {metric.rows for metric in result.metrics.values()} == {5}
    assert all(metric.stderr >= 0 for metric in result.metrics.values())
    assert {name for name, metric in result.metrics.items() if not metric.higher_is_better} == LOWER_IS_BETTER
    assert result.metrics["brier"].stderr == pytest.approx(2 * math.sqrt(0.6 * 0.4 / 4))


def test_the_delimiter_is_a_token_but_no_character_of_the_option(tasks):
    result, _, _ = evaluate(tasks, "mmlu", limit=1, likelihood=lambda context, text: -2.0)
    assert result.metrics["loglikelihood_per_token"].value == -1.0
    assert result.metrics["loglikelihood_per_character"].value == -2.0
    assert result.metrics["loglikelihood_per_character"].chance == pytest.approx(-2 * math.log(100))


def test_chance_is_that_of_each_row(tasks):
    """Half of the questions of C3 have two options, half four."""
    result, rows, _ = evaluate(tasks, "c3")
    assert result.chance == result.metrics["correct_choice_prob"].value == (0.5 + 0.25) / 2
    assert result.metrics["brier"].chance == result.metrics["brier"].value == (0.5 + 0.75) / 2
    assert {row.chance for row in rows if row.metric == "brier"} == {0.5, 0.75}


def test_rows_are_long(tasks, tmp_path):
    result, rows, _ = evaluate(tasks, "winogrande", likelihood=lambda context, text: -float(len(context)))
    assert [row.metric for row in rows] == [name for name in CHOICE_METRICS for _ in range(4)]
    path = tmp_path / "rows.parquet"
    write_rows(path, rows)
    read = read_rows(path)
    for name in CHOICE_METRICS:
        mine = read[read["metric"] == name]
        assert mine["row"].tolist() == [0, 1, 2, 3]
        assert mine["value"].mean() == pytest.approx(result.metrics[name].value)
        assert mine["chance"].mean() == pytest.approx(result.metrics[name].chance)
        # The options' log-likelihoods stand once, with the main metric.
        assert set(mine["loglikelihoods"].map(len)) == {2 if name == "acc" else 0}
    assert read["prediction"].tolist() == ["A"] * 4 * len(CHOICE_METRICS)


def test_open_tasks_have_f1_and_the_likelihood_of_the_reference(tasks):
    result, rows, model = evaluate(
        tasks, "gsm8k", likelihood=lambda context, text: -0.5 * len(text), text=lambda context: "The answer is 1,201."
    )
    assert list(result.metrics) == ["exact_match", "f1", "reference_prob", "loglikelihood_per_token"]
    assert result.metrics["exact_match"].value == 0.25
    assert 0.25 < result.metrics["f1"].value < 1
    assert result.metrics["f1"].chance == 0.0
    assert result.metrics["loglikelihood_per_token"].value == -0.5
    # A token a character: e to the -0.5 times the length of each of the four solutions.
    lengths = [len(text) for _, text in model.asked[4:]]
    assert result.metrics["reference_prob"].value == pytest.approx(sum(math.exp(-0.5 * it) for it in lengths) / 4)
    assert result.metrics["reference_prob"].chance == 0.0
    assert result.metrics["loglikelihood_per_token"].chance == pytest.approx(-math.log(100))
    assert all(row.loglikelihoods == [] for row in rows)
    # One request a row beside the generation, with its prompt and the worked solution.
    generated, scored = model.asked[:4], model.asked[4:]
    assert [context for context, _ in scored] == [context for context, _ in generated]
    assert scored[1][1] == " It is 1+1 = 2.\nThe answer is 1201."


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("triviaqa", ' The "Author" 0'),
        ("nlpcc_kbqa", "杨可桢"),
        ("gsm8k_direct", " 1200"),
        ("gsm8k_zh", "答案是 18。"),
        ("gsm8k_zh_direct", "18"),
        ("modified_arithmetic", " -6"),
        ("ipa_transliterate", " You don't."),
    ],
)
def test_references(tasks, name, reference):
    *_, model = evaluate(tasks, name)
    rows = len(model.asked) // 2
    assert model.asked[rows][1] == reference


def test_a_reference_has_a_letter_or_digit(tasks):
    doc = {"question": "What flies?", "answers": ["🚁", "Helicopter"]}
    assert tasks["triviaqa"].reference(doc) == " Helicopter"
    assert tasks["triviaqa"].reference({**doc, "answers": ["!"]}) == " !"


def test_bleu_is_a_metric_of_transliteration_alone(tasks):
    result, *_ = evaluate(tasks, "ipa_transliterate", text=lambda context: "Go.")
    assert list(result.metrics) == ["exact_match", "f1", "bleu", "reference_prob", "loglikelihood_per_token"]


def test_a_single_row_has_no_standard_error(tasks):
    result, *_ = evaluate(tasks, "mmlu", limit=1)
    assert {metric.stderr for metric in result.metrics.values()} == {None}


def test_an_unknown_vocabulary_leaves_the_chance_open(tasks, monkeypatch):
    monkeypatch.setattr(Model, "tokenizer", None)
    result, rows, _ = evaluate(tasks, "ceval", limit=2)
    assert result.metrics["loglikelihood_per_token"].chance is None
    assert all(math.isnan(row.chance) for row in rows if row.metric == "loglikelihood_per_token")
    assert result.metrics["brier"].chance == 0.75


def test_a_model_that_diverged_has_an_accuracy_and_nothing_else(tasks, tmp_path):
    result, rows, _ = evaluate(tasks, "mmlu", likelihood=lambda context, text: math.nan)
    assert list(result.metrics) == ["acc", "acc_norm"]
    assert len(rows) == len(CHOICE_METRICS) * result.rows
    write_rows(tmp_path / "rows.parquet", rows)
    result, *_ = evaluate(tasks, "gsm8k", likelihood=lambda context, text: -math.inf)
    assert list(result.metrics) == ["exact_match", "f1", "reference_prob"]


def test_an_impossible_option_leaves_its_likelihood_out(tasks):
    result, *_ = evaluate(tasks, "mmlu", likelihood=lambda context, text: -1.0 if "A" in text else -math.inf)
    assert list(result.metrics) == [*CHOICE_METRICS[:4], "ece"]
    assert result.metrics["acc"].value == pytest.approx(4 / 12)
