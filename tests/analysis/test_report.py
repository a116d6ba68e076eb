"""The report command: one page that loads nothing, says what is missing, and repeats itself."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pandas as pd
import pytest
import simulated_grids

import analysis
from analysis import report, result_files
from tokenizer.cli import UserError


class Page(HTMLParser):
    """What a page refers to, and its text."""

    def __init__(self, html):
        super().__init__()
        self.links, self.open, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "link", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


@pytest.fixture(scope="session")
def written(grid, tmp_path_factory):
    """A report made by the real command."""
    out = tmp_path_factory.mktemp("report") / "out"
    command = [sys.executable, "-m", "analysis.report", str(grid), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return out, done.stdout


def test_all_files_are_written_and_the_path_is_printed_last(written):
    out, printed = written
    assert printed.rstrip().splitlines()[-1] == f"report: {out / 'index.html'}"
    tables = (
        "results",
        "thresholds",
        "correlation",
        "same_loss",
        "axes",
        "critical_scale",
        "scaling_law",
        "first_above",
        "forecast",
    )
    drawn = (
        "performance_against_loss",
        "performance_against_compute",
        "correlations",
        "scaling",
        "forecast",
        "loss_curves",
    )
    assert {path.name for path in out.iterdir()} == {
        "index.html",
        *(f"{name}.csv" for name in tables),
        *(f"{name}.{kind}" for name in drawn for kind in ("png", "svg")),
    }
    footer = (out / "index.html").read_text(encoding="utf-8").split("<footer>")[1]
    assert all(f"{name}.csv" in footer for name in tables)
    assert len(analysis.load(out / "results.csv")) == 480


def test_the_page_loads_nothing_and_is_well_formed(written):
    html = (written[0] / "index.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    assert page.links
    assert all(link.startswith("data:") for link in page.links)
    assert not re.search(r"url\(|@import", re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL))
    assert not re.search(r"<script[^>]*src", html)
    # And whatever a script may ask for, the browser refuses (tests/analysis/test_interactive.py has it tried).
    assert "Content-Security-Policy\" content=\"default-src 'none'" in html


def test_the_page_says_what_the_simulation_put_in(written):
    text = Page((written[0] / "index.html").read_text(encoding="utf-8")).text
    assert "12 runs of 3 sizes (3M, 10M, 30M), trained on 4M to 32M tokens each" in text
    assert "48 checkpoints evaluated on 10 tasks (6 English, 4 Chinese) with 500 rows a task" in text
    assert re.search(r"2 of 10 tasks are above chance: HellaSwag [\d.]+ \[.*; MMLU", text)
    assert re.search(r"Rising from chance at a threshold .*MMLU at [34]\.\d+ \[", text)
    assert "Improving over the whole range of losses, without a threshold in it: HellaSwag" in text
    assert "−0.804" in text
    assert re.search(r"Of all axes .* leaves the least of the scores' variance open, [\d.]+ % \[", text)
    assert "At equal loss, models of different sizes score alike (within 0.02, with 95 % certainty) on" in text
    assert re.search(r"By the fitted scaling law, the least compute that crosses a threshold: MMLU .* FLOPs \[", text)
    assert "Forecast from the 10 runs below half of the largest compute: of 2 larger runs the loss at the" in text
    for provenance in ("a" * 64, "b" * 64, "c" * 40, "fp32", "0.4.13", "python -m analysis.report"):
        assert provenance in text
    assert "partial grid" not in text


def test_tables_beside_the_page_hold_its_numbers(written):
    thresholds = pd.read_csv(written[0] / "thresholds.csv").set_index("task")
    assert thresholds.loc["mmlu", "verdict"] == "emergent"
    assert thresholds.loc["mmlu", "eta_low"] <= 4.0 <= thresholds.loc["mmlu", "eta_high"]
    correlations = pd.read_csv(written[0] / "correlation.csv").set_index("task")
    assert correlations.loc["c3", "spearman_du2024"] == -0.988
    assert correlations.loc["mmlu", "spearman_high"] < 0


def test_the_same_grid_gives_the_same_files(tmp_path):
    results = simulated_grids.table({"mmlu": simulated_grids.emergent(4.0)}, simulated_grids.runs(1, 2))
    grid = simulated_grids.write_grid(tmp_path / "grid", results)
    for out in ("a", "b"):
        report.write_report(grid, tmp_path / out)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_a_context_too_short_for_the_tasks_is_said_at_the_top(tmp_path):
    results = simulated_grids.table({"mmlu": simulated_grids.flat, "race": simulated_grids.flat}, rows=20)
    results["num_fewshot_used_mean"] = results["task"].map({"mmlu": 0.3, "race": 1.7})
    grid = simulated_grids.write_grid(tmp_path / "grid", results.head(2 * 24))
    _, sentences = report.write_report(grid, tmp_path / "out", replicates=100)
    assert any("only the end was read: RACE 60 %" in sentence for sentence in sentences)
    assert any("fewer than one example in the prompt on average: MMLU." in sentence for sentence in sentences)


def test_sections_that_a_table_cannot_carry_say_why(tmp_path):
    results = simulated_grids.table({"mmlu": simulated_grids.flat}, rows=50)
    results = results[results["size"] == "3M"]
    grid = simulated_grids.write_grid(tmp_path / "grid", results)
    text = Page(report.write_report(grid, tmp_path / "out", replicates=100)[0].read_text(encoding="utf-8")).text
    for heading, cause in (
        ("Same loss, same performance?", "Not computed: MMLU: "),
        ("Is the threshold the metric's?", "no task has a threshold under two"),
        ("What a loss takes", "No scaling law was fitted: 1 model sizes"),
        ("Forecast of the large runs", "Not computed from the runs below half of the largest compute: there is none"),
    ):
        assert cause in text.split(heading)[1][:900], heading


def _change(path, **fields):
    result = json.loads(path.read_text(encoding="utf-8"))
    result["checkpoint"].update(fields)
    path.write_text(json.dumps(result), encoding="utf-8")


def test_a_partial_and_mixed_grid_says_so(grid, tmp_path):
    copy = tmp_path / "grid"
    shutil.copytree(grid, copy)
    shutil.rmtree(copy / "30M-32M" / "eval")
    (copy / "late").mkdir()
    (copy / "late" / "run.yaml").write_text("name: late\n", encoding="utf-8")
    checkpoint = copy / "3M-4M" / "checkpoints" / "step_99999"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text('{"final": true}', encoding="utf-8")
    for path in (copy / "3M-8M" / "eval").glob("*.json"):
        _change(path, precision="bf16", tokenizer_sha256="f" * 64)
    index, _ = report.write_report(copy, copy / "report", replicates=100)
    html = index.read_text(encoding="utf-8")
    text = Page(html).text
    assert "11 runs" in text
    assert "2 of 13 runs not finished (30M-32M, late)" in text
    assert "no checkpoint yet" in text
    assert 'class="loud"' in html
    assert "2 tokenizers in one table" in text
    assert "2 training precisions in one table (bf16, fp32)" in text
    assert "Not drawn, because nothing of them is evaluated yet: 30M-32M" in text
    # The report folder lies within the grid and must not be taken for a run.
    assert len(result_files.run_directories(copy)) == 13


def test_one_checkpoint_is_enough_for_a_report_that_claims_nothing(tmp_path):
    results = simulated_grids.table({"mmlu": simulated_grids.flat}, rows=8)
    grid = simulated_grids.write_grid(tmp_path / "tiny", results.head(1))
    index, sentences = report.write_report(grid, tmp_path / "out")
    text = Page(index.read_text(encoding="utf-8")).text
    assert any(sentence.startswith("1 run of 1 size") for sentence in sentences)
    assert "1 run with this task; at least 3 are needed" in text
    assert "correlation with loss cannot be computed" in text


def test_other_peoples_table_gets_a_report_beside_it(tmp_path, capsys):
    path = tmp_path / "others.csv"
    results = simulated_grids.table({"mmlu": simulated_grids.emergent(4.0, 0.4), "my_task": simulated_grids.flat})
    columns = [
        "run",
        "size",
        "step",
        "tokens",
        "parameters",
        "loss",
        "task",
        "language",
        "metric",
        "value",
        "rows",
        "chance",
        "higher_is_better",
    ]
    results["value"] = results["value"].round(6)
    results["task"] = results["task"].replace("my_task", "<b>mine</b> & yours")
    results[columns].to_csv(path, index=False)
    report.main([str(path), "--replicates", "100"])
    assert "others-report" in capsys.readouterr().out
    html = (tmp_path / "others-report" / "index.html").read_text(encoding="utf-8")
    assert "<b>mine" not in html
    assert "&lt;b&gt;mine&lt;/b&gt; &amp; yours" in html
    assert not (tmp_path / "others-report" / "loss_curves.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "no such file"),
        (["."], "no result file"),
        (["absent", "--replicates", "5"], "at least 100"),
        (["absent", "--margin", "0"], "give a difference above 0"),
        (["file.csv", "--out", "file.csv"], "is a file; give a folder"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.csv").write_text("x\n", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        report.main(arguments)


def test_the_command_exits_2_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "analysis.report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_nothing_of_the_training_stack_is_imported(repository):
    code = (
        "import sys, analysis.report, analysis.figures.__main__, analysis.known_truth\n"
        "heavy = {'torch', 'megatron', 'transformers', 'lm_eval', 'recipes', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository)
    assert done.returncode == 0, done.stderr
