"""The interactive view, in a real Chromium without a network: what is chosen is drawn, and all rows can be had."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pandas as pd
import paper_like
import pytest
from browser import Browser

from analysis import critical_scale, interactive, page, report, table, threshold
from analysis.figures import intervals, loss_words
from tokenizer.files import write_text

TEXTS = "document.getElementById('view-plot').data[0].text"
DRAWN = "!!document.querySelector('#view-plot .main-svg')"
POINTS = "document.getElementById('view-plot').data.reduce((sum, trace) => sum + trace.x.length, 0)"
AXES = "document.getElementById('view-plot').layout"


@pytest.fixture(scope="module")
def results():
    """The paper's 31 runs with few checkpoints, on four tasks; one name that HTML and CSV would trip over."""
    points = paper_like.checkpoints(small_checkpoints=2, large_every=400e9)
    tasks = {task: paper_like.TASKS[task] for task in ("hellaswag", "mmlu", "gsm8k", "ceval")}
    made = paper_like.table(points, tasks=tasks)
    made["run"] = made["run"].replace("300M-67B", '300M, "<i>67B</i>"')
    return table.check(made, "simulated")


@pytest.fixture(scope="module")
def verdicts(results):
    return threshold.thresholds(results[results["metric"].isin(("acc", "exact_match"))], replicates=100)


@pytest.fixture(scope="module")
def scales(results):
    return critical_scale.critical(results[results["metric"] == "acc"], "flops_6nd", replicates=100)


@pytest.fixture(scope="module")
def browser(results, verdicts, scales, tmp_path_factory):
    """A browser that shows a page with nothing but the view."""
    home = tmp_path_factory.mktemp("browser")
    index = home / "index.html"
    write_text(index, page.document("view", "", [interactive.view(results, verdicts, scales)], ""))
    with Browser(home) as opened:
        opened.index = index
        yield opened


@pytest.fixture
def shown(browser):
    """The view, freshly loaded."""
    browser.problems.clear()
    browser.requests.clear()
    browser.call("Page.navigate", url="about:blank")
    browser.open(browser.index)
    browser.wait_for(DRAWN)
    yield browser
    assert browser.problems == []


def choose(browser, name, value):
    """As a reader does: set the menu, and let the browser tell the page."""
    browser.run(
        f"(() => {{ const menu = document.getElementById('view-{name}'); menu.value = {json.dumps(value)};"
        " menu.dispatchEvent(new Event('change')); })()"
    )


def click(browser, selector):
    browser.run(f"document.querySelector({json.dumps(selector)}).click()")


def test_it_loads_from_a_file_and_asks_for_nothing(shown, results):
    assert [url for url in shown.requests if not url.startswith("data:")] == [shown.index.as_uri()]
    assert shown.run(POINTS) == (results["task"] == "hellaswag").sum() / 3
    assert shown.run("document.getElementById('view-task').options.length") == 4


def test_what_a_page_asks_for_is_refused_and_seen(browser, tmp_path):
    """The policy is no decoration: a page with a script from elsewhere gives an error in the console."""
    hungry = tmp_path / "hungry.html"
    write_text(hungry, page.document("x", "", ['<script src="https://example.org/x.js"></script>'], ""))
    browser.problems.clear()
    browser.open(hungry)
    assert any("Content Security Policy" in problem for problem in browser.problems)


def test_another_task_axis_and_metric_change_the_plot(shown, results):
    before = shown.run("document.getElementById('view-plot').data[0].y[0]")
    choose(shown, "task", "mmlu")
    assert shown.run(f"{AXES}.title.text") == "<b>MMLU</b>"
    assert shown.run("document.getElementById('view-plot').data[0].y[0]") != before
    left, right = shown.run(f"{AXES}.xaxis.range")
    assert left > right
    choose(shown, "axis", "flops_6nd")
    assert shown.run(f"{AXES}.xaxis.type") == "log"
    assert "FLOPs" in shown.run(f"{AXES}.xaxis.title.text")
    xs = shown.run("document.getElementById('view-plot').data.flatMap(trace => trace.x)")
    assert sorted(xs) == sorted(results.loc[(results["task"] == "mmlu") & (results["metric"] == "acc"), "flops_6nd"])
    choose(shown, "metric", "brier")
    assert "lower is better" in shown.run(f"{AXES}.yaxis.title.text")
    assert shown.run("location.hash") == "#task=mmlu&metric=brier&axis=flops_6nd"


def test_threshold_and_chance_are_drawn_on_the_loss_axis_only(shown, verdicts):
    choose(shown, "task", "mmlu")
    found = next(result for result in verdicts if result.task == "mmlu")
    assert found.verdict == threshold.EMERGENT
    shapes = {shape.get("name", "chance"): shape for shape in shown.run(f"{AXES}.shapes")}
    assert shapes["threshold"]["x0"] == found.eta
    assert (shapes["interval"]["x0"], shapes["interval"]["x1"]) == (found.eta_low, found.eta_high)
    assert shapes["chance"]["y0"] == 0.25
    eta, low, high = loss_words(found.eta, found.eta_low, found.eta_high)
    assert f"η = {eta} [{low}, {high}]" in shown.run("document.getElementById('view-verdict').textContent")
    choose(shown, "axis", "tokens")
    assert [shape.get("name", "chance") for shape in shown.run(f"{AXES}.shapes")] == ["chance"]


def test_a_critical_scale_is_drawn_on_its_axis(shown, scales):
    found = next(result for result in scales if result.task == "mmlu")
    assert found.verdict == threshold.EMERGENT
    choose(shown, "task", "mmlu")
    choose(shown, "axis", "flops_6nd")
    shapes = {shape.get("name", "chance"): shape for shape in shown.run(f"{AXES}.shapes")}
    assert (shapes["interval"]["x0"], shapes["interval"]["x1"]) == (found.low, found.high)
    words = shown.run("document.getElementById('view-verdict').textContent")
    assert f"critical scale = {found.scale:.1e}".replace("e+", "e") in words


def test_sizes_and_ends_of_runs_can_be_chosen(shown, results):
    of_task = results[(results["task"] == "hellaswag") & (results["metric"] == "acc")]
    click(shown, '[data-size="300M"]')
    assert shown.run(POINTS) == (of_task["size"] != "300M").sum()
    click(shown, "#view-final")
    assert shown.run(POINTS) == ((of_task["size"] != "300M") & of_task["final"]).sum()
    for size in of_task["size"].unique():
        if size != "300M":
            click(shown, f'[data-size="{size}"]')
    assert "no checkpoint is chosen" in str(shown.run(f"{AXES}.annotations"))


def test_hover_tells_the_checkpoint_and_escapes_its_name(shown):
    text = shown.run(
        "document.getElementById('view-plot').data[0].text.find(t => t.includes('67B') && t.includes('&lt;'))"
    )
    assert re.search(r'300M, "&lt;i&gt;67B&lt;/i&gt;"</b>, step [\d,]+', text)
    assert re.search(r"350M parameters, \d.*B tokens, \d\.\de\+\d+ FLOPs<br>loss \d\.\d{4}<br>", text)
    assert "chance 0.250" in text


def test_intervals_are_those_of_the_figures(shown, results):
    for metric in ("acc", "brier"):
        choose(shown, "metric", metric)
        rows = results[(results["task"] == "hellaswag") & (results["metric"] == metric)]
        low, high = intervals(rows)
        ours = sorted(zip(rows["value"], high - rows["value"], rows["value"] - low, strict=True))
        theirs = shown.run(
            "document.getElementById('view-plot').data.flatMap(t => t.y.map((y, i) =>"
            " [y, t.error_y.array[i], t.error_y.arrayminus[i]]))"
        )
        np.testing.assert_allclose(sorted(map(tuple, theirs)), ours, atol=1e-12)


def test_the_table_sorts_by_numbers(shown):
    column = "[...document.querySelectorAll('#view-table tbody tr')].map(line => line.cells[{}].textContent)"
    losses = [float(text) for text in shown.run(column.format(3))]
    assert losses == sorted(losses)
    click(shown, '[data-column="value"]')
    rising = [float(text) for text in shown.run(column.format(4))]
    assert rising == sorted(rising)
    click(shown, '[data-column="value"]')
    falling = [float(text) for text in shown.run(column.format(4))]
    assert falling == sorted(falling, reverse=True)
    assert falling[0] > rising[0]
    click(shown, "#view-on")
    assert float(shown.run(column.format(4))[0]) <= falling[-1]


def test_the_download_has_all_rows_and_can_be_read_again(shown, results):
    click(shown, "#view-download")
    path = shown.downloads / "all_rows.csv"
    shown.wait_for(lambda: path.exists() and path.stat().st_size > 0)
    # Every digit: doubles are written so that they are read as the same.
    again = table.check(pd.read_csv(path, float_precision="round_trip"), "download")
    columns = [*table.REQUIRED, "flops_6nd", "loss_zh", "final", "stderr", "tokenizer_sha256"]
    pd.testing.assert_frame_equal(again[columns], results[columns], check_exact=True, check_dtype=False)
    path.unlink()


def test_the_rows_shown_can_be_downloaded(shown, results):
    choose(shown, "task", "gsm8k")
    click(shown, "#view-final")
    click(shown, "#view-download-shown")
    path = shown.downloads / "gsm8k-exact_match.csv"
    shown.wait_for(lambda: path.exists() and path.stat().st_size > 0)
    assert len(table.load(path)) == 31


def test_a_telephone_shows_all_of_it(shown):
    shown.call("Page.navigate", url="about:blank")
    shown.open(shown.index, width=390, height=844)
    shown.wait_for(DRAWN)
    assert shown.run("document.documentElement.scrollWidth") == 390
    plot = shown.run("(() => { const r = document.querySelector('#view-plot .main-svg').getBoundingClientRect();"
                     " return [r.left, r.right, r.height]; })()")  # fmt: skip
    assert plot[0] >= 0
    assert plot[1] <= 390
    assert plot[2] == 380


def test_a_link_opens_what_it_names(shown):
    shown.call("Page.navigate", url="about:blank")
    shown.call("Page.navigate", url=shown.index.as_uri() + "#task=gsm8k&axis=parameters")
    shown.wait_for(f"{DRAWN} && document.getElementById('view-task').value === 'gsm8k'")
    assert shown.run("document.getElementById('view-axis').value") == "parameters"


def test_a_report_has_the_view_and_no_error(browser, results, tmp_path):
    path = tmp_path / "theirs.csv"
    results[results["task"] == "mmlu"].to_csv(path, index=False)
    index, _ = report.write_report(path, tmp_path / "out", replicates=100)
    browser.problems.clear()
    browser.requests.clear()
    browser.open(index)
    browser.wait_for(DRAWN)
    assert browser.problems == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [index.as_uri()]
    assert browser.run("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


def test_numbers_are_packed_to_the_last_bit(results):
    packed = interactive.pack(results)
    series = next(entry for entry in packed["series"] if (entry["task"], entry["metric"]) == ("mmlu", "brier"))
    rows = results[(results["task"] == "mmlu") & (results["metric"] == "brier")]
    value = np.frombuffer(base64.b64decode(series["value"]["numbers"]), "<f8")
    assert value.tolist() == rows["value"].tolist()
    checkpoint = np.frombuffer(base64.b64decode(series["checkpoint"]), "<u4")
    loss = np.frombuffer(base64.b64decode(packed["checkpoints"]["loss"]["numbers"]), "<f8")
    assert loss[checkpoint].tolist() == rows["loss"].tolist()
    assert series["rows"] == {"all": 14042.0}
    assert len(loss) == len(results.drop_duplicates(["run", "step"]))


def test_a_table_too_large_for_a_page_is_thinned_and_says_so(results):
    few, every = interactive.thin(results, 700)
    assert len(few) <= 700 < len(results)
    assert every > 1
    assert few["final"].sum() == results["final"].sum()
    html = interactive.view(results, largest=700)
    assert f"one in {every} of the others ({len(few):,} rows)" in html
    assert interactive.thin(results, len(results))[0] is results


@pytest.mark.slow
def test_half_a_million_rows_stay_a_page(tmp_path, browser):
    large = table.check(paper_like.large_table(500_000), "large")
    assert len(large) >= 500_000
    index = tmp_path / "large.html"
    write_text(index, page.document("large", "", [interactive.view(large)], ""))
    assert index.stat().st_size < 30e6
    browser.problems.clear()
    browser.open(index)
    browser.wait_for(DRAWN)
    click(browser, "#view-download")
    path = browser.downloads / "all_rows.csv"
    browser.wait_for(lambda: path.exists() and path.stat().st_size > 0)
    with path.open("rb") as lines:
        assert sum(1 for _ in lines) == len(large) + 1
    assert browser.problems == []
