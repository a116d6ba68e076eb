"""The notebooks: without outputs in the repository, and each reaches its claim when it is executed."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import analysis
from analysis import known_truth

HOME = Path(analysis.__file__).parent / "notebooks"
NOTEBOOKS = sorted(HOME.glob("*.ipynb"))

CLAIMS = {
    "1_what_a_table_says": ["6 runs of 3 sizes", "Not reached (a threshold, if there is one, lies below"],
    "2_same_loss_same_performance": ["by_loss: equivalent", "by_size_too: different", "loss leaves the least"],
    "3_where_is_the_threshold": ["emergent: emergent at a loss of 2.", "smooth: smooth", "true 2.2"],
    "4_is_it_the_metric": ["acc - correct_choice_prob: ", "the interval holds 0", "one_step: smooth"],
    "5_what_would_it_take": ["true 0.34", "asked for 2.1"],
}
"""What a notebook prints at its end, in words that stay when a number's last digit changes."""


def test_every_notebook_has_a_claim():
    assert {path.stem for path in NOTEBOOKS} == set(CLAIMS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_output_is_committed(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    assert notebook["cells"][0]["cell_type"] == "markdown"
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_reaches_its_claim(path, monkeypatch):
    """Its cells one after the other, in this process: what a kernel would do, without its start."""
    monkeypatch.delenv("TABLE", raising=False)
    notebook = json.loads(path.read_text(encoding="utf-8"))
    names: dict = {"__name__": "__main__"}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for number, cell in enumerate(notebook["cells"]):
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), f"{path.name}[{number}]", "exec"), names)
    plt.close("all")
    for claim in CLAIMS[path.stem]:
        assert claim in printed.getvalue()


def test_the_threshold_that_was_put_in_is_in_the_interval(monkeypatch):
    """Of the third notebook, whose whole point it is."""
    notebook = json.loads((HOME / "3_where_is_the_threshold.ipynb").read_text(encoding="utf-8"))
    names: dict = {}
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for source in code[:2]:
        exec(source, names)
    plt.close("all")
    assert names["found"]["emergent"].eta_low <= names["ETA"] <= names["found"]["emergent"].eta_high


def test_a_made_table_is_at_chance_where_its_truth_is():
    points = known_truth.checkpoints({"1B": 1.1e9, "3B": 3e9}, (67e9, 250e9), num_checkpoints=5)
    made = known_truth.scores(points, {"none": lambda loss: 0 * loss}, rows=20_000, continuous=True)
    assert set(made["metric"]) == {"acc", "correct_choice_prob", "brier"}
    # Mean of 20 checkpoints, four standard errors.
    for _, rows in made.groupby("metric"):
        error = rows["stderr"].mean() / len(rows) ** 0.5
        assert abs((rows["value"] - rows["chance"]).mean()) < 4 * error
    some = known_truth.scores(points, {"some": lambda loss: 0.2 + 0 * loss}, rows=20_000, continuous=True)
    for metric, sign in (("acc", 1), ("correct_choice_prob", 1), ("brier", -1)):
        rows = some[some["metric"] == metric]
        assert (sign * (rows["value"] - rows["chance"]) > 0.1).all()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_in_a_kernel(path, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    # Not from the repository: a reader may start it anywhere.
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    text = "".join(output.get("text", "") for output in outputs)
    for claim in CLAIMS[path.stem]:
        assert claim in text
    if path.stem != "5_what_would_it_take":
        assert any("image/png" in output.get("data", {}) for output in outputs)
