"""A grid's directory: its status from files made by hand, and the grids and corpora that contradict it."""

from __future__ import annotations

import dataclasses
import io
import json

import pytest
from rich.console import Console

from launchers import grid as command
from launchers.checks import check_before_start
from launchers.directory import check_sources, check_unchanged, locked, write_grid, write_sources
from launchers.plan import GridDirectory, Inputs, build_plan
from launchers.states import read_status
from launchers.status import status_table
from launchers.tried import NOTES
from recipes.grid import load_grid
from tokenizer.cli import UserError


def states(grid, folder) -> dict[str, str]:
    return {line.run: line.state for line in read_status(grid, folder)}


def test_status_of_a_directory_that_nobody_works_in(smoke, folder):
    assert list(states(smoke, folder).values()) == ["finished", "stopped", "stopped", "waiting"]
    finished, begun, training, waiting = read_status(smoke, folder)
    assert (finished.step, finished.steps, finished.tokens) == (10, 10, 20480)
    assert (finished.checkpoints, finished.checkpoints_evaluated) == (2, 2)
    assert (begun.step, begun.tokens, begun.loss) == (13, 13 * 2048, pytest.approx(5.7))
    assert begun.heldout_loss == pytest.approx(5.0)
    assert begun.tokens_per_second == pytest.approx(1007)
    assert (begun.checkpoints, begun.checkpoints_planned, begun.checkpoints_evaluated) == (1, 2, 1)
    assert training.heldout_loss is None and training.step == 3
    assert (waiting.step, waiting.loss) == (0, None)


def test_status_while_a_launcher_works_and_after_a_failure(smoke, folder):
    begun, training = smoke.runs[1].name, smoke.runs[2].name
    notes = {
        "running": {f"train {begun}": {"pid": 1, "since": 0}},
        "failed": {
            f"train {training}": {"run": training, "phase": "train", "message": "loss is nan", "log": "logs/x.log"}
        },
    }
    (folder.logs / NOTES).write_text(json.dumps(notes))
    with locked(folder):
        assert list(states(smoke, folder).values()) == ["finished", "running", "failed", "waiting"]
        running, failed = read_status(smoke, folder)[1:3]
    assert running.eta_seconds == pytest.approx(7 * 2048 / 1007)
    assert (failed.error, failed.log) == ("loss is nan", "logs/x.log")
    # Without its launcher, nothing runs.
    assert states(smoke, folder)[begun] == "stopped"


def test_status_as_a_table_and_as_json(smoke, folder, capsys):
    arguments = ["--grid", "smoke", "--out", str(folder.path), "--status"]
    assert command.main([*arguments, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert [line["state"] for line in value["runs"]] == ["finished", "stopped", "stopped", "waiting"]
    assert value["tokenizer_done"] and value["data_done"] and value["report"] is None
    console = Console(file=io.StringIO(), width=160)
    console.print(status_table(smoke, folder))
    shown = console.file.getvalue()
    assert "13 of 20" in shown and "5.0000" in shown and "no launcher at work" in shown
    assert command.main(arguments) == 0


def test_the_plan_sees_what_is_done(smoke, folder):
    plan = build_plan(smoke, folder, Inputs())
    done = {step.name for step in plan if step.done()}
    first, second, *_ = (run.name for run in smoke.runs)
    assert done == {
        "train the tokenizer",
        "encode the documents",
        f"train {first}",
        f"evaluate {first} step 5",
        f"evaluate {first} step 10",
        f"evaluate {second} step 10",
    }
    # A tokenizer that was trained anew makes the data out of date.
    (folder.tokenizer / "manifest.json").write_text('{"sha256": "other"}')
    assert not plan.by_name["encode the documents"].done()


def test_the_report_is_done_until_there_are_newer_results(smoke, folder):
    plan = build_plan(smoke, folder, Inputs())
    folder.report.mkdir()
    folder.report_page.write_text("<html>")
    assert plan.by_name["write the report"].done()
    import os

    result = folder.result(smoke.runs[0].name, 5)
    later = folder.report_page.stat().st_mtime + 10
    os.utime(result, (later, later))
    assert not plan.by_name["write the report"].done()


def changed(smoke, tmp_path, old: str, new: str):
    text = smoke.path.read_text()
    assert old in text
    path = tmp_path / "smoke.yaml"
    path.write_text(text.replace(old, new))
    return load_grid(path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("learning_rate: 8e-3", "learning_rate: 1e-3", "run small-20480: learning_rate is 0.001, but"),
        ("vocab_size: 1024", "vocab_size: 2048", "tokenizer: vocab_size is 2048, but"),
        ("zh: 1", "zh: 2", "tokenizer: ratio is"),
        ("limit: 8", "limit: 9", "evaluation: limit is 9, but"),
    ],
)
def test_a_grid_that_contradicts_its_directory_is_refused(smoke, folder, tmp_path, old, new, said):
    with pytest.raises(UserError, match=said) as error:
        check_unchanged(changed(smoke, tmp_path, old, new), folder)
    assert "or give another --out" in str(error.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("tokens: [20480, 40960]", "tokens: [20480, 40960, 61440]"),
        ("tokens: [20480, 40960]", "tokens: [20480]"),
        ("micro_batch_size: 16", "micro_batch_size: 8"),
    ],
)
def test_runs_may_be_added_and_left_out_and_laid_out_anew(smoke, folder, tmp_path, old, new):
    check_unchanged(changed(smoke, tmp_path, old, new), folder)


def test_the_copy_of_the_grid_keeps_its_name(smoke, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(smoke.path.read_text().replace("name: smoke\n", ""))
    grid = load_grid(path)
    folder = GridDirectory(tmp_path / "out")
    write_grid(grid, folder)
    copy = load_grid(folder.grid_file)
    assert dataclasses.replace(copy, path=path) == grid


def test_a_corpus_is_known_by_its_files(folder, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.jsonl").write_text('{"text": "one"}\n')
    (corpus / "README.md").write_text("not a document")
    write_sources(check_sources(Inputs(corpus, corpus), folder), folder)
    (corpus / "README.md").write_text("changed")
    check_sources(Inputs(corpus, corpus), folder)
    moved = corpus.rename(tmp_path / "elsewhere")
    check_sources(Inputs(moved, corpus), folder)
    (moved / "b.jsonl").write_text('{"text": "two"}\n')
    with pytest.raises(UserError, match=r"was made from .*corpus with 16 bytes of documents, which is not .* with 32"):
        check_sources(Inputs(moved, corpus), folder)


def test_what_is_missing_is_said_before_anything_starts(smoke, tmp_path):
    folder = GridDirectory(tmp_path / "out")
    corpus, empty = tmp_path / "corpus", tmp_path / "empty"
    corpus.mkdir()
    empty.mkdir()
    (corpus / "a.jsonl").write_text('{"text": "one"}\n')

    def said(corpus, benchmarks, out=folder) -> str:
        with pytest.raises(UserError) as error:
            check_before_start(smoke, smoke.runs, out, Inputs(corpus, benchmarks), jobs=2)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "--corpus is missing" in said(None, empty)
    assert "--benchmarks is missing" in said(corpus, None)
    assert "no such directory" in said(corpus, tmp_path / "nowhere")
    assert str(empty) in said(corpus, empty)
    assert not folder.path.exists()


def test_runs_that_do_not_fit_the_machine_are_refused_with_numbers(smoke, shared, tmp_path):
    huge = dataclasses.replace(smoke.runs[0].settings, hidden_size=65536, ffn_hidden_size=65536 * 3, num_layers=80)
    runs = [dataclasses.replace(smoke.runs[0], settings=huge)]
    inputs = Inputs(shared / "corpus", shared / "benchmarks")
    with pytest.raises(UserError, match=r"GiB of memory without activations, this machine has"):
        folder = GridDirectory(tmp_path / "out")
        check_before_start(smoke, runs, folder, inputs, jobs=1)
    with pytest.raises(UserError, match="is a file; give --out a directory"):
        check_before_start(
            smoke,
            smoke.runs,
            GridDirectory(smoke.path / "out"),
            inputs,
            jobs=1,
        )
