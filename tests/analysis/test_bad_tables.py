"""Tables that cannot be right, or that say nothing: every program answers with a statement, and with no number that
means nothing. The public programs are driven as a user does, on a file."""

from __future__ import annotations

import importlib

import numpy as np
import pandas as pd
import pytest
import simulated_grids

from analysis import check, correlation, same_loss, table, threshold
from tokenizer.cli import UserError

PROGRAMS = ("check", "correlation", "threshold", "same_loss", "axes", "scaling", "critical_scale", "forecast")


def grid():
    truths = {"mmlu": simulated_grids.emergent(4.2, slope=0.4), "hellaswag": simulated_grids.smooth()}
    return simulated_grids.table(truths, simulated_grids.runs(3, 4), rows=1000)


def run_program(program, path, tmp_path):
    """What a program says about a table: all that it prints, or the one line of its refusal."""
    out = tmp_path / "out"
    options = {
        "check": [],
        "report": ["--out", str(out), "--replicates", "100"],
        "scaling": ["--eta", "2.2", "--replicates", "100"],
        "critical_scale": ["--axis", "flops_6nd", "--replicates", "100"],
    }
    importlib.import_module(f"analysis.{program}").main(
        [str(path), *options.get(program, ["--replicates", "100"])],
    )


def _cells(chosen, /, **values):
    def change(frame):
        frame = frame.astype(dict.fromkeys(values, object))
        for column, value in values.items():
            frame.loc[chosen, column] = value
        return frame

    return change


def _no_chance(frame):
    return frame.assign(task="arc_" + frame["task"]).drop(columns="chance")


REFUSED = {
    "empty": (lambda f: f.iloc[:0], "the table has no rows; evaluate at least one checkpoint first"),
    "a column missing": (lambda f: f.drop(columns="task"), "missing column task.*--map task=YOUR_COLUMN"),
    "empty cells": (_cells([3, 9], value=np.nan), "value is empty in 2 of 72 rows, first in data row 4"),
    "percentages": (lambda f: f.assign(value=100 * f["value"]), "give fractions, not percentages"),
    "one percentage": (_cells([5], value=31.0), "value is outside 0 to 1 in 1 of 72 rows, first in data row 6"),
    "duplicated checkpoints": (lambda f: pd.concat([f, f]), "144 rows share a checkpoint.*keep one of each"),
    "two losses of one checkpoint": (_cells([2], loss=3.33), "loss is not the same throughout one checkpoint"),
    "loss rising": (lambda f: f.assign(loss=10 - f["loss"]), "the loss rises with tokens in 9 of 9 runs.*--map loss="),
    "perplexity for loss": (
        lambda f: f.assign(loss=np.exp(f["loss"])),
        "loss is outside 0 to 30.*logarithm of a perpl",
    ),
    "infinite loss": (_cells([1], loss=np.inf), "loss is outside 0 to 30 in 1 of 72 rows"),
    "words for numbers": (_cells([0], value="n. d."), "value is not a number in 1 of 72 rows"),
    "no chance level": (_no_chance, "chance is not known for arc_.*--chance arc_"),
    "chance in percent": (lambda f: f.assign(chance=25.0), "chance is outside 0 to 1"),
    "no rows behind a value": (_cells([4], rows=0), "rows is outside 1 to inf.*number of rows behind the value"),
    "two directions": (_cells([4], higher_is_better=False), "both true and false for one metric"),
    "negative error": (lambda f: f.assign(stderr=-0.01), "stderr is outside 0 to inf"),
    "sizes without a number": (
        lambda f: f.assign(size="large").drop(columns="parameters"),
        "parameters is empty.*write sizes as 300M",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_every_program_refuses_it_in_one_line(kind, tmp_path, capsys):
    change, message = REFUSED[kind]
    path = tmp_path / "bad.csv"
    change(grid()).to_csv(path, index=False)
    for program in (*PROGRAMS[1:], "report"):
        with pytest.raises(UserError, match=message) as error:
            run_program(program, path, tmp_path)
        assert str(error.value).startswith(str(path))
        assert "\n" not in str(error.value)
        assert capsys.readouterr().out == ""
    assert check.main([str(path)]) == 2
    assert "fatal: " in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def _two(frame, column):
    return frame.assign(**{column: np.where(frame["size"] == "3M", "c" * 64, "d" * 64)})


def _at_chance(frame):
    return simulated_grids.table(dict.fromkeys(["mmlu", "gsm8k"], simulated_grids.flat), simulated_grids.runs(3, 4))


def _one_run(frame):
    return frame[frame["run"] == "30M-8M"]


NOTHING_TO_SAY = {
    "one run only": (
        _one_run,
        {
            "check": "1 run: how runs differ cannot be seen",
            "correlation": "not computed: 1 run with this task",
            "threshold": "undecided",
            "same_loss": "undecided: one size only",
            "axes": "not computed: 1 of the 3 runs",
            "scaling": "not fitted: 1 model sizes",
            "critical_scale": "undecided",
            "forecast": "no forecast from the runs below half of the largest compute",
        },
    ),
    "two runs": (
        lambda f: f[f["run"].isin(["3M-8M", "30M-8M"])],
        {
            "check": "2 runs: how runs differ",
            "correlation": "not computed: 2 runs",
            "threshold": "undecided",
            "same_loss": "undecided: no two sizes have 3 checkpoints each at common losses",
            "axes": "not computed: 2 of the 3 runs",
            "scaling": "not fitted: 2 model sizes",
            "critical_scale": "undecided",
        },
    ),
    "constant loss": (
        lambda f: f.assign(loss=3.0),
        {
            "check": "the loss is 3 at every checkpoint: performance cannot be set against it",
            "correlation": "not computed: the loss is 3 at every checkpoint",
            "threshold": "undecided",
            "same_loss": "undecided: the loss is 3 at every checkpoint",
            "axes": "not computed: the loss is 3 at every checkpoint",
            "scaling": "not fitted: the loss is 3 at every checkpoint",
            "forecast": "no forecast from the runs below half of the largest compute",
        },
    ),
    "constant scores": (
        lambda f: f.assign(value=0.25, stderr=0.01),
        {
            "check": "mmlu acc is 0.25 at every checkpoint; look whether it was evaluated",
            "correlation": "not computed: performance is 0.25 at every checkpoint",
            "threshold": "not reached",
            "same_loss": "undecided: performance is 0.25 at every checkpoint",
            "axes": "not computed: performance is 0.25 at every checkpoint",
            "critical_scale": "not reached",
        },
    ),
    "all at chance": (
        _at_chance,
        {
            "check": "no task is above chance by more than the sampling of rows at any checkpoint",
            "threshold": "not reached",
            "same_loss": "nothing to explain",
            "axes": "no task has scores that an axis could explain",
            "critical_scale": "not reached",
        },
    ),
    "two tokenizers": (
        lambda f: _two(f, "tokenizer_sha256"),
        {
            "check": "2 tokenizers in one table .*take one with --only tokenizer_sha256=cccccccccccc",
            "correlation": "not computed: 2 tokenizers in one table: losses per different tokens do not compare",
            "threshold": "2 tokenizers",
            "same_loss": "undecided: 2 tokenizers",
            "axes": "not computed: 2 tokenizers",
            "scaling": "not fitted: 2 tokenizers",
            "forecast": "no forecast .*: 2 tokenizers",
        },
    ),
    "two corpora": (
        lambda f: _two(f, "data_fingerprint"),
        {
            "check": "2 training data sets in one table",
            "correlation": "not computed: 2 training data sets",
            "threshold": "2 training data sets",
            "same_loss": "undecided: 2 training data sets",
            "axes": "not computed: 2 training data sets",
            "scaling": "not fitted: 2 training data sets",
        },
    ),
    "one size only": (
        lambda f: f[f["size"] == "30M"],
        {
            "check": "one size only .30M.: nothing can be said about sizes",
            "same_loss": "undecided: one size only",
            "scaling": "not fitted: 1 model sizes",
        },
    ),
    "one run diverges": (
        lambda f: f.assign(loss=f["loss"].where(f["run"] != "3M-4M", 12 - f["loss"])),
        {"check": "the loss rises with tokens in 1 of 9 runs .3M-4M.; .*--leave-out run=NAME"},
    ),
    "one checkpoint a run": (
        lambda f: f[f["final"] & f["size"].isin(["3M", "30M"])],
        {
            "axes": "are needed at least to tell how well other runs predict them",
            "same_loss": "no two sizes have 3 checkpoints each at common losses",
            "scaling": "not fitted: 2 model sizes",
        },
    ),
    "below chance": (
        lambda f: f.assign(value=f["value"].where(f["value"] > 0.3, 0.15)),
        {"check": "mmlu: below chance by more than the sampling of rows at some checkpoints"},
    ),
    "several chance levels": (
        _cells([5], chance=0.2),
        {"check": "several chance levels of one task and metric .mmlu."},
    ),
}


@pytest.mark.parametrize("kind", NOTHING_TO_SAY)
def test_every_program_says_why_it_gives_no_number(kind, tmp_path, capsys):
    change, expected = NOTHING_TO_SAY[kind]
    path = tmp_path / "poor.csv"
    change(grid()).to_csv(path, index=False)
    for program in PROGRAMS:
        run_program(program, path, tmp_path)
        said = capsys.readouterr()
        assert "nan" not in said.out.lower(), f"{program}: {said.out}"
        if program in expected:
            assert _found(expected[program], said.out), f"{program}: {said.out}"
        if program != "check" and "check" in expected:
            assert _found(expected["check"], said.err), f"{program}: {said.err}"


def _found(pattern, text):
    return any(pd.Series([line]).str.contains(pattern).item() for line in text.splitlines())


@pytest.mark.parametrize(
    "kind", ["one run only", "constant loss", "constant scores", "all at chance", "two tokenizers"]
)
def test_a_report_is_written_and_says_it(kind, tmp_path, capsys):
    path = tmp_path / "poor.csv"
    NOTHING_TO_SAY[kind][0](grid()).to_csv(path, index=False)
    run_program("report", path, tmp_path)
    assert "nan" not in capsys.readouterr().out.lower()
    assert (tmp_path / "out" / "index.html").stat().st_size > 1000


def test_the_same_grid_without_a_fault_gives_numbers(tmp_path, capsys):
    """Else the statements above could come from anything."""
    path = tmp_path / "good.csv"
    grid().to_csv(path, index=False)
    loaded = table.load(path)
    assert check.main([str(path)]) is None
    assert all(not result.reason for result in correlation.correlations(loaded, replicates=100))
    assert all(np.isfinite(result.largest) for result in same_loss.compare(loaded, replicates=100))
    assert {r.task: r.verdict for r in threshold.thresholds(loaded, replicates=100)}["mmlu"] == threshold.EMERGENT
    run_program("axes", path, tmp_path)
    run_program("scaling", path, tmp_path)
    said = capsys.readouterr().out
    assert "MMLU (accuracy): unexplained by" in said
    assert "L(N, D) = E + A/N^alpha" in said
