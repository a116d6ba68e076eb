"""The results table: read from result files and from other people's tables, refused when it cannot be right."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import simulated_grids

import analysis
from analysis import check, mapping, result_files, table
from tokenizer.cli import UserError

CONTRACT = [
    *("grid", "run", "size", "seed", "step", "final", "decay", "tokens", "parameters", "parameters_non_embedding"),
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


def test_each_metric_is_a_row_with_its_own_chance(grid, tmp_path):
    grid = shutil.copytree(grid, tmp_path / "grid")
    for path in grid.glob("*/eval/step_*.json"):
        content = json.loads(path.read_text())
        task = content["tasks"]["mmlu"]
        accuracy = task["metrics"]["acc"]["value"]
        more = {"higher_is_better": False, "rows": task["rows"], "stderr": 0.01}
        task["metrics"]["brier"] = {"value": 1 - accuracy, "chance": 0.75, **more}
        task["metrics"]["ece"] = {"value": 0.1, "chance": 0.0, **more}
        task["metrics"]["loglikelihood_per_token"] = {"value": -1.0, "chance": None, **more, "higher_is_better": True}
        # Older files give no level of their own.
        content["tasks"]["race"]["metrics"]["brier"] = {"value": 0.7, "chance": None, **more}
        path.write_text(json.dumps(content))
    results = analysis.load(grid)
    mmlu = results[results["task"] == "mmlu"].groupby("metric")
    assert mmlu["chance"].first().to_dict() == {
        "acc": 0.25,
        "brier": 0.75,
        "ece": 0.0,
        "loglikelihood_per_token": pytest.approx(np.nan, nan_ok=True),
    }
    assert results.loc[(results["task"] == "race") & (results["metric"] == "brier"), "chance"].unique() == [0.75]
    assert mmlu["higher_is_better"].first().to_dict() == {
        "acc": True,
        "brier": False,
        "ece": False,
        "loglikelihood_per_token": True,
    }
    assert table.primary_metrics(results)["mmlu"] == "acc"
    (found,) = [p for p in table.problems_of(results) if p.kind == "chance"]
    assert not found.fatal
    assert "loglikelihood_per_token" in found.statement and found.count == 48


def test_the_required_columns_suffice_and_the_rest_is_derived(small, tmp_path):
    path = tmp_path / "others.csv"
    small[list(table.REQUIRED)].to_csv(path, index=False)
    results = analysis.load(path)
    assert results["stderr"].equals(
        pd.Series(np.sqrt(results["value"] * (1 - results["value"]) / results["rows"]), name="stderr")
    )
    assert results.groupby(["run", "task"])["step"].apply(list).map(tuple).unique().tolist() == [(1, 2, 3, 4)]
    assert results.loc[results["final"], "step"].unique() == [4]
    assert results.groupby("size")["parameters"].first().to_dict() == {"3M": 3e6, "10M": 1e7, "30M": 3e7}
    assert results.groupby("task")["chance"].first().to_dict() == {"mmlu": 0.25, "gsm8k": 0.0}
    assert results["flops_6nd"].equals((6 * results["parameters"] * results["tokens"]).rename("flops_6nd"))
    assert results["higher_is_better"].all() and not results["decay"].any()


def test_other_names_and_another_loss_are_mapped(small, tmp_path):
    path = tmp_path / "theirs.csv"
    theirs = small.drop(columns=["chance", "loss"]).rename(columns={"run": "model", "loss_train": "c4_loss"})
    theirs["task"] = theirs["task"].replace("mmlu", "arc")
    theirs.assign(pile_loss=theirs["c4_loss"] + 1).to_csv(path, index=False)
    with pytest.raises(UserError, match=r"missing column loss.*--map loss=YOUR_COLUMN"):
        analysis.load(path)
    with pytest.raises(UserError, match=r"chance is not known for arc in 24 of 48 rows.*--chance arc=0.25"):
        analysis.load(path, columns={"loss": "c4_loss"})
    results = analysis.load(path, columns={"loss": "c4_loss"}, chance={"arc": 0.2})
    assert set(results["run"]) == set(small["run"])
    assert results.groupby("task")["chance"].first().to_dict() == {"arc": 0.2, "gsm8k": 0.0}
    assert table.losses(results) == ["loss", "loss_en", "loss_zh", "c4_loss", "pile_loss"]
    chosen = analysis.load(path, columns={"loss": "c4_loss"}, loss="pile_loss", chance={"arc": 0.2})
    assert chosen["loss"].to_numpy() == pytest.approx(results["loss"].to_numpy() + 1)
    assert chosen["loss_default"].equals(results["loss"].rename("loss_default"))
    assert chosen.attrs["loss"] == "pile_loss"
    with pytest.raises(UserError, match="no loss wikitext; there are c4_loss, loss_en"):
        analysis.load(path, columns={"loss": "c4_loss"}, loss="wikitext")
    with pytest.raises(UserError, match="--map loss=c5_loss: no column c5_loss"):
        analysis.load(path, columns={"loss": "c5_loss"})


def test_rows_of_several_tables_are_put_together(grid, small, tmp_path):
    """A grid directory has columns that a bare table has not: each is completed by itself."""
    bare, out = tmp_path / "bare.csv", tmp_path / "both.csv"
    small.assign(grid="theirs")[["grid", *table.REQUIRED]].to_csv(bare, index=False)
    both = analysis.load(grid, bare)
    assert sorted(both["grid"].unique()) == ["simulated", "theirs"]
    assert len(both) == len(analysis.load(grid)) + len(small)
    theirs = analysis.load(bare)
    added = both.loc[both["grid"] == "theirs", theirs.columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(added, theirs, check_dtype=False)
    assert check.main([str(grid), "--with", str(bare), "--out", str(out)]) is None
    pd.testing.assert_frame_equal(analysis.load(out)[CONTRACT], both[CONTRACT], check_dtype=False)


def test_tables_that_do_not_go_together_are_refused_by_name(grid, small, tmp_path, capsys):
    path = tmp_path / "theirs.csv"
    small.drop(columns="loss").to_csv(path, index=False)
    with pytest.raises(UserError, match=r"theirs\.csv: missing column loss"):
        analysis.load(grid, path)
    with pytest.raises(UserError, match=f"{grid} --with {grid}: .* share a checkpoint, task and metric"):
        analysis.load(grid, grid)
    assert check.main([str(grid), "--with", str(grid)]) == 2
    assert "fatal: 960 rows share a checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize("metric", ["correct_choice_prob", "brier"])
def test_the_chance_of_continuous_metrics_follows_from_that_of_accuracy(small, metric):
    more = small[small["task"] == "mmlu"].assign(metric=metric, chance=np.nan, task="arc", higher_is_better=np.nan)
    accuracy = more.assign(metric="acc", chance=0.2)
    results = table.check(pd.concat([accuracy, more]), "here")
    found = results[results["metric"] == metric].iloc[0]
    assert (found["chance"], found["higher_is_better"]) == (
        (pytest.approx(0.8), False) if metric == "brier" else (0.2, True)
    )


def test_categories_and_numbers_as_names_are_read(small, tmp_path):
    path = tmp_path / "others.parquet"
    codes = pd.factorize(small["run"])[0]
    small.assign(run=codes, task=small["task"].astype("category"), language=pd.Categorical([None] * 48)).to_parquet(
        path
    )
    results = analysis.load(path)
    assert sorted(results["run"].unique()) == ["0", "1", "2", "3", "4", "5"]
    assert results["task"].unique().tolist() == ["gsm8k", "mmlu"]
    assert set(results["language"]) == {""}


def test_problems_list_all_rows_with_their_remedy(small, tmp_path, capsys):
    bad = small.astype({"value": object})
    bad.loc[[3, 7, 20], "value"] = np.nan
    bad.loc[30, "rows"] = 0
    found = table.problems_of(bad)
    assert [(p.column, p.kind, p.rows, p.count, p.fatal) for p in found] == [
        ("value", "empty", (4, 8, 21), 3, True),
        ("rows", "range", (31,), 1, True),
    ]
    assert all(p.remedy for p in found)
    path = tmp_path / "bad.csv"
    bad.to_csv(path, index=False)
    with pytest.raises(UserError, match=r"and 1 more: python -m analysis.check .* lists them"):
        analysis.load(path)
    assert check.main([str(path)]) == 2
    printed = capsys.readouterr().out
    assert "data rows 4, 8, 21\n" in printed and f"{path}: 2 problems, 2 of them fatal" in printed


def test_a_clean_table_has_no_problem(tmp_path, capsys):
    clean = simulated_grids.table({"mmlu": simulated_grids.emergent(4.5), "gsm8k": simulated_grids.emergent(5.0)})
    path = tmp_path / "clean.parquet"
    clean.to_parquet(path)
    assert table.problems_of(clean) == []
    assert check.main([str(path)]) is None
    assert capsys.readouterr().out == f"{path}: no problem found\n"


def _schedule(path, rates):
    lines = [f"{step},{step * 4096},3.0,{rate}" for step, rate in enumerate(rates, start=1)]
    path.write_text("step,tokens,train_loss,learning_rate\n" + "\n".join(lines) + "\n", encoding="utf-8")


def test_decay_is_read_from_the_recorded_learning_rates(tmp_path):
    warm_up, hold, decay = [1, 2, 3, 4], [4] * 10, [3.2, 2.4, 1.6, 0.8]
    _schedule(tmp_path / "loss.csv", [1e-3 * rate for rate in warm_up + hold + decay])
    assert result_files.decay_start(tmp_path) == 17
    _schedule(tmp_path / "loss.csv", warm_up + hold)
    assert result_files.decay_start(tmp_path) is None


def test_decay_follows_from_the_settings_where_nothing_is_recorded(tmp_path):
    settings = {"tokens": 4096 * 1000, "global_batch_size": 8, "sequence_length": 512, "warmup_steps": 100}
    settings |= {"warmup_ratio": 0.05, "min_learning_rate_ratio": 0.1}
    (tmp_path / "run.yaml").write_text(json.dumps({"settings": settings}), encoding="utf-8")
    start = result_files.decay_start(tmp_path)
    share = (start - 50) / 950
    assert 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * share)) == pytest.approx(result_files.DECAYED)
    assert result_files.decay_start(tmp_path / "absent") is None


def test_checkpoints_in_decay_are_marked_and_can_be_left_out(grid, tmp_path):
    copy = shutil.copytree(grid, tmp_path / "grid")
    run = sorted(copy.glob("*/loss.csv"))[0]
    curve = pd.read_csv(run)
    middle = curve["step"].median()
    curve.assign(learning_rate=np.where(curve["step"] < middle, 1e-3, 1e-4)).to_csv(run, index=False)
    results = analysis.load(copy)
    marked = results[results["decay"]]
    assert set(marked["run"]) == {run.parent.name}
    assert (
        marked["step"].min()
        >= middle
        > results.loc[~results["decay"] & (results["run"] == run.parent.name), "step"].max()
    )
    assert len(_asked(copy, "--decay", "drop")) == len(results) - len(marked)
    assert len(_asked(copy, "--decay", "only")) == len(marked)
    last_quarter = _asked(copy, "--decay-from", "0.9", "--decay", "only")
    assert last_quarter["final"].all() and len(last_quarter) == len(results) / 4


def _asked(path, *options):
    parser = argparse.ArgumentParser()
    mapping.add_options(parser)
    return mapping.load_as_asked(parser.parse_args([str(path), *options]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--decay", "drop"], "no checkpoint is marked.*--decay-from 0.8"),
        (["--decay-from", "2"], "a share between 0 and 1"),
        (["--only", "task=chess"], "no row has it; task is c3, ceval"),
        (["--only", "colour=red"], "no column colour"),
        (["--only", "task"], "write it with an equals sign"),
        (["--leave-out", "grid=simulated"], "every row has it"),
        (["--chance", "mmlu=25"], "at least 0 and below 1"),
        (["--chance", "mmlu=x"], "give a number"),
        (["--loss", "wikitext"], "no loss wikitext"),
        (["--map", "loss=c4"], "no column c4"),
    ],
)
def test_options_that_cannot_be_met_are_refused(grid, options, message):
    with pytest.raises(UserError, match=message):
        _asked(grid, *options)


def test_rows_are_chosen_by_value_and_hashes_by_their_start(grid):
    assert set(_asked(grid, "--only", "size=3M", "--only", "language=ZH")["size"]) == {"3M"}
    assert len(_asked(grid, "--only", "tokenizer_sha256=aaaaaa")) == 480
    assert set(_asked(grid, "--leave-out", "task=race")["task"]) == set(simulated_grids.CHANCE) - {"race"}


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
        (_without(["rows", "tokens"]), "missing columns tokens, rows; .*--map tokens=YOUR_COLUMN"),
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
        (_cell("loss", 4.25), "loss is not the same throughout one checkpoint"),
        (_cell("higher_is_better", False), "higher_is_better is both true and false for one metric"),
        (lambda frame: frame.assign(loss=9 - frame["loss"]), "the loss rises with tokens in 6 of 6 runs"),
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
    command = [sys.executable, "-m", "analysis.check", str(grid), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "480 rows, 48 checkpoints of 12 runs" in done.stdout
    assert len(analysis.load(out)) == 480
