"""The command: checkpoints in, result files out; what is done is skipped, what is wrong is said."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
import sys

import pytest

from emergence_eval import convert, definitions, run, task_scores
from emergence_eval.results import read_result, read_rows, rows_path
from recipes.checkpoint import Manifest
from tokenizer.cli import UserError

TASKS = [task.name for task in definitions.load()]


@pytest.fixture
def checkpoints(tmp_path, tiny_hf, monkeypatch):
    """Two checkpoints of a run; conversion gives the tiny model."""
    directories = []
    for step in (10, 20):
        directory = tmp_path / "grid" / "small" / "checkpoints" / f"step_{step}"
        directory.mkdir(parents=True)
        manifest = Manifest(
            grid="grid",
            run="small",
            size="small",
            seed=1,
            step=step,
            final=step == 20,
            tokens=step * 100,
            parameters=3000,
            parameters_non_embedding=2000,
            flops_6nd=1e6,
            flops_exact=1.1e6,
            precision="fp32",
            losses={"heldout": 5.0, "train": 5.1, "heldout_en": 4.9, "heldout_zh": 5.4},
            sequence_length=256,
            vocab_size=259,
            tokenizer_sha256="same",
            data_fingerprint="data",
            git_revision="revision",
        )
        (directory / "manifest.json").write_text(json.dumps(dataclasses.asdict(manifest)))
        directories.append(directory)
    monkeypatch.setattr(convert, "nemo_to_hf", lambda checkpoint, out: shutil.copytree(tiny_hf, out))
    return directories


def command(benchmarks, *arguments):
    return run.main(["--data", str(benchmarks), *map(str, arguments)])


@pytest.fixture
def evaluated(monkeypatch):
    """The tasks that were evaluated, in order."""
    names = []
    original = task_scores.evaluate_task

    def evaluate_task(model, task, definition, *arguments):
        names.append(definition.name)
        return original(model, task, definition, *arguments)

    monkeypatch.setattr(task_scores, "evaluate_task", evaluate_task)
    return names


def test_all_tasks_of_two_checkpoints(checkpoints, benchmarks, evaluated, capfd):
    assert command(benchmarks, "--limit", 3, "--device", "cpu", "--nemo-ckpt", *checkpoints) == 0
    evaluations = checkpoints[0].parents[1] / "eval"
    assert sorted(path.name for path in evaluations.iterdir()) == [
        *("step_10.json", "step_10.parquet", "step_20.json", "step_20.parquet")
    ]
    output = capfd.readouterr()
    assert [line.split(":")[0] for line in output.out.splitlines()] == [
        *(str(evaluations.resolve() / f"step_{step}.json") for step in (10, 20))
    ]
    assert output.err == ""
    results = [read_result(evaluations / f"step_{step}.json") for step in (10, 20)]
    rows = [read_rows(rows_path(evaluations / f"step_{step}.json")) for step in (10, 20)]
    # The same weights, rows and prompts: the same scores.
    assert results[0].tasks == results[1].tasks
    assert rows[0].equals(rows[1])
    assert results[0].checkpoint.step == 10 and results[0].limit == 3
    assert list(results[0].tasks) == TASKS
    for name, task in results[0].tasks.items():
        metric = next(iter(task.metrics))
        mine = rows[0][(rows[0]["task"] == name) & (rows[0]["metric"] == metric)]
        assert task.rows == len(mine) == 3 <= task.rows_available
        assert metric in ("acc", "exact_match")
        assert task.metrics[metric].value == pytest.approx(mine["value"].mean())
        assert task.metrics[metric].stderr == pytest.approx(mine["value"].std() / math.sqrt(3))
        assert task.chance == pytest.approx(mine["chance"].mean())
        assert task.num_fewshot_used_mean == pytest.approx(mine["num_fewshot_used"].mean())
        for row in mine.itertuples():
            if metric == "acc":
                likelihoods = list(row.loglikelihoods)
                assert len(likelihoods) == round(1 / row.chance) and max(likelihoods) < 0
                assert row.prediction == "ABCD"[likelihoods.index(max(likelihoods))]
                assert row.value == (row.prediction == row.target)
            else:
                assert len(row.loglikelihoods) == 0
    assert command(benchmarks, "--limit", 3, "--nemo-ckpt", *checkpoints) == 0
    assert "step_10.json is up to date" in capfd.readouterr().out
    assert len(evaluated) == 2 * len(TASKS)


def test_a_task_without_data_is_left_out_and_named(checkpoints, benchmarks, tmp_path, capfd):
    data = shutil.copytree(benchmarks, tmp_path / "data")
    shutil.rmtree(data / "clozet")
    arguments = ("--limit", 1, "--device", "cpu", "--nemo-ckpt", checkpoints[0])
    command(data, "--tasks", "emergence_commonsense", *arguments)
    assert capfd.readouterr().out.startswith("clozet is left out: ClozeT: none of")
    assert list(read_result(checkpoints[0].parents[1] / "eval/step_10.json").tasks) == ["hellaswag"]
    with pytest.raises(UserError, match="ClozeT: none of"):
        command(data, "--tasks", "clozet", *arguments)


def test_interrupted_evaluation_goes_on_by_task(checkpoints, benchmarks, evaluated, monkeypatch):
    arguments = ("--tasks", "mmlu,cluewsc,c3", "--limit", 2, "--nemo-ckpt", checkpoints[0])
    counted = task_scores.evaluate_task

    def interrupted(model, task, definition, *rest):
        if definition.name == "c3":
            raise KeyboardInterrupt
        return counted(model, task, definition, *rest)

    monkeypatch.setattr(task_scores, "evaluate_task", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command(benchmarks, *arguments)
    folder = checkpoints[0].parents[1] / "eval"
    assert [path.name for path in folder.iterdir()] == [".step_10.partial"]
    monkeypatch.setattr(task_scores, "evaluate_task", counted)
    command(benchmarks, *arguments)
    assert evaluated == ["mmlu", "cluewsc", "c3"]
    assert list(read_result(folder / "step_10.json").tasks) == ["cluewsc", "mmlu", "c3"]
    assert not (folder / ".step_10.partial").exists()


def test_results_are_renewed_when_something_changed(checkpoints, benchmarks, evaluated, tmp_path):
    data = shutil.copytree(benchmarks, tmp_path / "data")
    arguments = ("--tasks", "cluewsc,gsm8k", "--nemo-ckpt", checkpoints[0])

    def ran(*extra):
        evaluated.clear()
        command(data, *arguments, *extra)
        return list(evaluated)

    assert ran("--limit", 2) == ["cluewsc", "gsm8k"]
    assert ran("--limit", 2) == []
    assert ran("--limit", 3) == ["cluewsc", "gsm8k"]
    assert ran("--limit", 3, "--dtype", "bfloat16") == ["cluewsc", "gsm8k"]
    assert ran("--limit", 3, "--backend", "hf") == ["cluewsc", "gsm8k"]
    assert ran() == ["cluewsc", "gsm8k"]
    with open(data / "gsm8k/test.jsonl", "a") as file:
        file.write("\n")
    assert ran() == ["gsm8k"]
    arguments = ("--tasks", "winogrande", "--nemo-ckpt", checkpoints[0])
    assert ran() == ["winogrande"]
    output = checkpoints[0].parents[1] / "eval" / "step_10.json"
    assert set(read_result(output).tasks) == {"cluewsc", "gsm8k", "winogrande"}
    output.write_text("{")
    assert ran() == ["winogrande"]
    manifest = checkpoints[0] / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    assert ran() == ["winogrande"]


def test_out_and_keep_hf(checkpoints, benchmarks, tmp_path):
    single = ("--tasks", "cluewsc", "--limit", 1)
    command(benchmarks, *single, "--out", tmp_path / "a.json", "--nemo-ckpt", checkpoints[0])
    assert read_result(tmp_path / "a.json").tasks["cluewsc"].metrics["acc"].stderr is None
    command(benchmarks, *single, "--out", tmp_path / "b", "--keep-hf", tmp_path / "hf", "--nemo-ckpt", *checkpoints)
    assert {path.name for path in (tmp_path / "b").glob("*.json")} == {"small-step_10.json", "small-step_20.json"}
    assert (tmp_path / "hf" / "small-step_20" / "config.json").is_file()
    with pytest.raises(UserError, match="names one file for 2 checkpoints"):
        command(benchmarks, "--out", tmp_path / "a.json", "--nemo-ckpt", *checkpoints)
    with pytest.raises(UserError, match="both be written"):
        command(benchmarks, "--nemo-ckpt", checkpoints[0], checkpoints[0])


def test_errors_before_anything_starts(checkpoints, benchmarks, tmp_path, evaluated):
    with pytest.raises(UserError, match=r"unknown task 'nlu'; tasks: c3"):
        command(benchmarks, "--tasks", "nlu", "--nemo-ckpt", *checkpoints)
    with pytest.raises(UserError, match="is no checkpoint"):
        command(benchmarks, "--nemo-ckpt", tmp_path)
    with pytest.raises(UserError, match=r"TriviaQA: none of"):
        command(tmp_path, "--nemo-ckpt", *checkpoints)
    broken = shutil.copytree(benchmarks, tmp_path / "broken")
    (broken / "gsm8k/test.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="line 1: no question, answer"):
        command(broken, "--nemo-ckpt", *checkpoints)
    assert evaluated == []


def test_command_line_reports_mistakes_in_one_line(repository, tmp_path):
    script = [sys.executable, "emergence_eval/run.py"]
    done = subprocess.run(
        [*script, "--nemo-ckpt", str(tmp_path), "--data", str(tmp_path)],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path} is no checkpoint")
    assert done.stderr.count("\n") == 1
    done = subprocess.run([*script, "--help"], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0 and "lm-evaluation-harness" in done.stdout and "--limit" in done.stdout
    done = subprocess.run([*script, "--limit", "0"], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 2


def test_deciding_what_to_do_imports_no_torch():
    code = "import sys, emergence_eval.run; sys.exit(bool({'torch', 'lm_eval', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
