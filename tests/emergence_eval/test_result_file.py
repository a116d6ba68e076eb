"""The result file: what is written is read back, and what is wrong with a file is said."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from emergence_eval.results import (
    CheckpointIdentity,
    Environment,
    Metric,
    Result,
    RowScore,
    TaskResult,
    mean_with_error,
    read_result,
    read_rows,
    rows_path,
    write_result,
)
from tokenizer.cli import UserError

IDENTITY = CheckpointIdentity(
    grid="smoke",
    run="small-20480",
    size="small",
    seed=1,
    step=10,
    final=True,
    tokens=20480,
    parameters=3000,
    parameters_non_embedding=2000,
    flops_6nd=2.4e8,
    flops_exact=2.6e8,
    precision="fp32",
    losses={"heldout": 4.5, "train": 4.4, "heldout_en": 4.2, "heldout_zh": 5.1},
    sequence_length=128,
    vocab_size=512,
    tokenizer_sha256="ab",
    data_fingerprint="cd",
    git_revision="ef",
    manifest_sha256="01",
)
TASK = TaskResult(
    language="zh",
    kind="coreference",
    prompting="zero-shot",
    version=1,
    task_hash="23",
    num_fewshot=0,
    num_fewshot_used_mean=0.0,
    truncated_rows=0,
    rows=2,
    rows_available=1548,
    chance=0.5,
    metrics={"acc": Metric(0.5, 0.5, True)},
)
RESULT = Result(
    checkpoint=IDENTITY,
    limit=2,
    tasks={"cluewsc": TASK},
    environment=Environment("ef", "0.4.13", "5.23", "2.13", "cpu", "float32", "2026-01-01T00:00:00+00:00"),
)
ROWS = [
    RowScore("cluewsc", 3, "acc", 1.0, 0.5, "A", "A", [-1.5, -2.0], 0),
    RowScore("cluewsc", 9, "acc", 0.0, 0.5, "B", "A", [-2.5, -2.0], 0),
    RowScore("triviaqa", 4, "exact_match", 0.0, 0.0, "北京", "David Seville", [], 5),
]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "eval" / "step_10.json"
    write_result(path, RESULT, ROWS)
    return path


def test_round_trip(path):
    assert read_result(path) == RESULT
    rows = read_rows(rows_path(path))
    assert rows["row"].tolist() == [3, 9, 4]
    assert rows["loglikelihoods"].map(list).tolist() == [[-1.5, -2.0], [-2.5, -2.0], []]
    assert rows["prediction"].tolist() == ["A", "B", "北京"]
    assert list(rows.columns) == [field.name for field in dataclasses.fields(RowScore)]


def test_file_follows_the_contract(path):
    content = json.loads(path.read_text())
    assert content["schema"] == 1
    assert content["tasks"]["cluewsc"]["metrics"] == {
        "acc": {"value": 0.5, "stderr": 0.5, "higher_is_better": True, "chance": None, "rows": None}
    }
    assert content["checkpoint"]["losses"]["heldout"] == 4.5


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(schema=2), "schema 2, this version reads 1"),
        (lambda c: c.pop("environment"), "environment missing"),
        (lambda c: c["tasks"]["cluewsc"].pop("chance"), "tasks: cluewsc: chance missing"),
        (lambda c: c["tasks"]["cluewsc"].update(rows="two"), "rows: str 'two' where int is expected"),
        (lambda c: c["tasks"]["cluewsc"].update(rows=True), "rows: bool True where int is expected"),
        (lambda c: c["tasks"]["cluewsc"]["metrics"].update(acc=None), "acc: null where an object is expected"),
        (lambda c: c["checkpoint"]["losses"].update(heldout=None), "heldout: null where float is expected"),
        (lambda c: c.update(tasks=[]), "tasks: list .. where an object is expected"),
    ],
)
def test_wrong_content_is_named(path, edit, message):
    change(path, edit)
    with pytest.raises(UserError, match=message) as caught:
        read_result(path)
    assert str(path) in str(caught.value)


def test_files_without_chance_and_rows_of_each_metric_are_read(path):
    change(path, lambda c: [c["tasks"]["cluewsc"]["metrics"]["acc"].pop(name) for name in ("chance", "rows")])
    change(path, lambda c: c["environment"].pop("backend"))
    assert read_result(path) == RESULT


def test_other_fields_and_whole_numbers_are_accepted(path):
    change(path, lambda c: (c.update(extra=1), c["tasks"]["cluewsc"].update(chance=1), c.update(limit=None)))
    assert read_result(path).tasks["cluewsc"].chance == 1.0
    assert read_result(path).limit is None


@pytest.mark.parametrize("content", ["", "[]", "{", "\0"])
def test_unreadable_result_is_named(path, content):
    path.write_text(content)
    with pytest.raises(UserError, match=r"step_10\.json"):
        read_result(path)


def test_unreadable_rows_are_named(path):
    rows_path(path).write_bytes(b"PAR1 not")
    with pytest.raises(UserError, match=r"step_10\.parquet"):
        read_rows(rows_path(path))
    with pytest.raises(UserError, match="cannot be read"):
        read_result(path.with_name("step_11.json"))


def test_standard_error_is_that_of_a_proportion():
    mean, error = mean_with_error([1.0, 0.0, 0.0, 1.0, 1.0])
    assert mean == pytest.approx(0.6)
    assert error == pytest.approx(math.sqrt(0.6 * 0.4 / 4))
    assert mean_with_error([1.0]) == (1.0, None)
