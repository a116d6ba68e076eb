"""The results table: read from result files and from other people's tables, refused when it cannot be right."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import simulated_grids

import analysis
from analysis import table
from tokenizer.cli import UserError

CONTRACT = [
    *("grid", "run", "size", "seed", "step", "final", "tokens", "parameters", "parameters_non_embedding"),
    *("flops_6nd", "flops_exact", "loss", "loss_train", "loss_en", "loss_zh", "precision", "tokenizer_sha256"),
    *("data_fingerprint", "task", "language", "kind", "metric", "value", "stderr", "rows", "chance"),
    *("higher_is_better", "num_fewshot_used_mean"),
]


@pytest.fixture
def small():
    return simulated_grids.table({"mmlu": simulated_grids.flat, "gsm8k": simulated_grids.flat})


def test_a_grid_has_the_contracts_columns_and_one_row_per_checkpoint_and_task(grid):
    results = analysis.load(grid)
    assert list(results.columns[: len(CONTRACT)]) == CONTRACT
    assert len(results) == 12 * 4 * 10
    row = results[(results["task"] == "race") & results["final"]].iloc[0]
    assert (row["prompting"], row["rows_available"], row["truncated_rows"]) == ("few-shot", 10_000, 12)
    assert row["eval_lm_eval"] == "0.4.13"
    assert row["loss_zh"] == pytest.approx(row["loss"] + 0.4)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_written_table_reads_back_the_same(grid, tmp_path, suffix):
    results = analysis.load(grid)
    path = tmp_path / f"results.{suffix}"
    table.write(results, path)
    again = analysis.load(path)
    pd.testing.assert_frame_equal(results[CONTRACT], again[CONTRACT], check_dtype=False)


def test_each_metric_of_the_paper_is_a_row_with_its_own_chance(grid, tmp_path):
    grid = shutil.copytree(grid, tmp_path / "grid")
    for path in grid.glob("*/eval/step_*.json"):
        content = json.loads(path.read_text())
        task = content["tasks"]["mmlu"]
        accuracy = task["metrics"]["acc"]["value"]
        more = {"higher_is_better": False, "rows": task["rows"], "stderr": 0.01}
        task["metrics"]["brier"] = {"value": 1 - accuracy, "chance": 0.75, **more}
        task["metrics"]["ece"] = {"value": 0.1, "chance": 0.0, **more}
        task["metrics"]["loglikelihood_per_token"] = {"value": -1.0, "chance": None, **more}
        path.write_text(json.dumps(content))
    results = analysis.load(grid)
    mmlu = results[results["task"] == "mmlu"]
    assert set(mmlu["metric"]) == {"acc", "brier"}
    assert mmlu.groupby("metric")["chance"].unique().to_dict() == {"acc": [0.25], "brier": [0.75]}
    assert mmlu.groupby("metric")["higher_is_better"].unique().to_dict() == {"acc": [True], "brier": [False]}
    assert table.primary_metrics(results)["mmlu"] == "acc"


def test_the_required_columns_suffice_and_the_rest_is_derived(small, tmp_path):
    path = tmp_path / "others.csv"
    small[list(table.REQUIRED)].to_csv(path, index=False)
    results = analysis.load(path)
    assert results["stderr"].equals(
        pd.Series(np.sqrt(results["value"] * (1 - results["value"]) / results["rows"]), name="stderr")
    )
    assert results.loc[results["final"], "step"].equals(
        results.groupby("run")["step"].transform("max")[results["final"]]
    )


def _without(column):
    return lambda frame: frame.drop(columns=column)


def _cell(column, value):
    def change(frame):
        frame = frame.astype({column: object})
        frame.loc[3, column] = value
        return frame

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("loss"), "missing column loss"),
        (_without(["rows", "chance"]), "missing columns rows, chance"),
        (lambda frame: frame.iloc[:0], "no rows"),
        (lambda frame: pd.concat([frame, frame.iloc[:1]]), "2 rows share a checkpoint"),
        (_cell("value", None), "column value is empty in 1 of 48 rows, first in data row 4"),
        (_cell("value", 31.5), "fractions, not percentages"),
        (_cell("value", float("inf")), "value is not finite"),
        (_cell("value", "n/a?"), "value is not a number"),
        (_cell("loss", -1.0), "loss is outside 0 to 30"),
        (_cell("loss", 4000.0), "nats per token"),
        (_cell("rows", 0), "rows is outside"),
        (_cell("chance", 25), "chance is outside 0 to 1"),
        (_cell("higher_is_better", "perhaps"), "neither true nor false"),
        (_cell("tokens", -5), "tokens is outside"),
    ],
)
def test_what_cannot_be_right_is_refused_with_file_and_column(small, tmp_path, change, message):
    path = tmp_path / "bad.csv"
    change(small).to_csv(path, index=False)
    with pytest.raises(UserError, match=message) as error:
        analysis.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.csv", None, "no such file"),
        ("table.xlsx", b"PK", "grid directory, a .csv or a .parquet"),
        ("empty.csv", b"", "not a readable CSV"),
        ("broken.parquet", b"not parquet", "not a readable Parquet"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        analysis.load(tmp_path / name)


def test_a_directory_without_results_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="evaluate a checkpoint first"):
        analysis.load(tmp_path)


def test_a_broken_result_file_is_named(grid, tmp_path):
    copy = tmp_path / "grid"
    shutil.copytree(grid, copy)
    path = sorted(copy.glob("*/eval/*.json"))[0]
    path.write_text(path.read_text(encoding="utf-8")[:100], encoding="utf-8")
    with pytest.raises(UserError, match=path.name):
        analysis.load(copy)


def test_unfinished_evaluations_and_reserved_folders_do_not_count(grid, tmp_path):
    copy = tmp_path / "grid"
    shutil.copytree(grid, copy)
    run = next(copy.glob("*/eval"))
    (run / ".step_9.partial").mkdir()
    (run / ".step_9.partial" / "race.json").write_text("{}", encoding="utf-8")
    (copy / "report" / "eval").mkdir(parents=True)
    (copy / "report" / "eval" / "step_1.json").write_text("{}", encoding="utf-8")
    assert len(analysis.load(copy)) == 480


def test_the_command_writes_the_table(grid, tmp_path):
    out = tmp_path / "results.parquet"
    command = [sys.executable, "-m", "analysis.table", str(grid), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "480 rows, 48 checkpoints of 12 runs" in done.stdout
    assert len(analysis.load(out)) == 480
