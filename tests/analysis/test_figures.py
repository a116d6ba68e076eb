"""The paper's figures from a grid like the paper's: which points, what is drawn in, is grey enough."""

from __future__ import annotations

import io
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import paper_like
import pytest
import simulated_grids
from PIL import Image

from analysis import correlation, figures, table, threshold
from analysis.chance import wilson_interval
from analysis.figures import __main__ as program
from analysis.figures.paper import LARGE_RUNS, PAPER, large_runs, select
from analysis.figures.style import THRESHOLD, legend_lines
from tokenizer.cli import UserError


@pytest.fixture(scope="module")
def results():
    return table.check(paper_like.table(paper_like.checkpoints(3, 300e9)), "simulated")


@pytest.fixture(scope="module")
def verdicts(results):
    wanted = results[results["task"].isin(("hellaswag", "mmlu", "ceval"))]
    return threshold.thresholds(wanted, replicates=100)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def panels(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


def points(axes):
    """All markers of a panel, shape (points, 2)."""
    drawn = [line.get_xydata() for line in axes.lines if line.get_marker() not in ("None", "", None)]
    return np.concatenate(drawn) if drawn else np.empty((0, 2))


def titles(figure):
    return [axes.get_title(loc="left") for axes in panels(figure)]


def test_the_large_runs_are_those_of_most_compute(results):
    assert sorted(large_runs(results)) == [f"paper-like/{run}" for run in ("1.5B-3T", "32B-2.5T", "6B-3T")]


@pytest.mark.parametrize(("number", "runs", "final"), [(1, 3, None), (2, 28, True), (5, 28, False), (6, 3, None)])
def test_figures_of_the_grid_have_twelve_panels_and_the_papers_points(results, number, runs, final):
    figure = figures.draw(results, number)
    assert titles(figure) == [
        *("TriviaQA", "HellaSwag", "RACE", "WinoGrande", "NLPCC-KBQA", "ClozeT", "C3", "CLUEWSC"),
        *("MMLU", "C-Eval", "GSM8K", "GSM8K-Chinese"),
    ]
    assert [axes.get_subplotspec().get_geometry()[:2] for axes in panels(figure)] == [(3, 4)] * 12
    shown = results[(results["task"] == "mmlu") & (results["metric"] == "acc")]
    large = shown["run"].isin([name.split("/")[1] for name in large_runs(results)])
    shown = shown[large if runs == LARGE_RUNS else ~large]
    if final is not None:
        shown = shown[shown["final"] == final]
    assert shown["run"].nunique() == runs
    x = "flops_6nd" if number == 6 else "loss"
    expected = shown[[x, "value"]].to_numpy()
    drawn = points(panels(figure)[8])
    np.testing.assert_array_equal(drawn[np.lexsort(drawn.T)], expected[np.lexsort(expected.T)])


def test_loss_falls_to_the_right_and_compute_rises_on_a_logarithmic_axis(results):
    against_loss, against_compute = panels(figures.draw(results, 1))[0], panels(figures.draw(results, 6))[0]
    assert np.diff(against_loss.get_xlim()) < 0
    assert np.diff(against_compute.get_xlim()) > 0
    assert against_compute.get_xscale() == "log"


def test_figure_4_has_three_metrics_of_two_tasks_with_chance(results, verdicts):
    figure = figures.draw(results, 4, verdicts)
    assert titles(figure) == ["MMLU"] * 3 + ["C-Eval"] * 3
    assert "lower is better" in panels(figure)[2].get_ylabel()
    for axes, chance in zip(panels(figure), (0.25, 0.25, 0.75) * 2, strict=True):
        dashed = [line for line in axes.lines if line.get_linestyle() == "--" and len(line.get_ydata()) == 2]
        assert chance in [line.get_ydata()[0] for line in dashed]


def test_figures_3_7_and_8(results):
    others = results[results["language"] == "en"]
    assert len(titles(figures.draw(others, 3))) == others["task"].nunique()
    assert figures.draw(others, 3).axes[0].get_subplotspec().get_geometry()[1] == 3
    assert len(panels(figures.draw(others, 7))) == others["task"].nunique()
    eight = figures.draw(results, 8)
    assert [axes.get_subplotspec().get_geometry()[:2] for axes in panels(eight)] == [(1, 3)] * 3
    assert len(points(panels(eight)[0])) == select(results, PAPER[8]).groupby("task").size().iloc[0]


def test_thresholds_and_their_intervals_are_drawn_in(results, verdicts):
    panel = panels(figures.draw(results, 1, verdicts))[8]
    found = next(v for v in verdicts if (v.task, v.metric) == ("mmlu", "acc"))
    assert found.verdict == threshold.EMERGENT
    lines = [line.get_xdata()[0] for line in panel.lines if line.get_color() == THRESHOLD]
    assert lines == [found.eta]
    bands = [patch for patch in panel.patches if patch.get_alpha() == 0.16]
    assert [(b.get_x(), b.get_x() + b.get_width()) for b in bands] == [(found.eta_low, pytest.approx(found.eta_high))]
    eta, low, high = figures.loss_words(found.eta, found.eta_low, found.eta_high)
    assert f"η = {eta} [{low}, {high}]" in [text.get_text() for text in panel.texts]
    smooth = panels(figures.draw(results, 1, verdicts))[1]
    assert not [line for line in smooth.lines if line.get_color() == THRESHOLD]
    assert any(text.get_text() in (threshold.SMOOTH, threshold.UNDECIDED) for text in smooth.texts)
    # η is a loss: on another axis it has no place.
    assert not [line for line in panels(figures.draw(results, 6, verdicts))[8].lines if line.get_color() == THRESHOLD]


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((2.2, 1.9, 2.4), ("2.20", "1.90", "2.40")),
        ((2.2014, 2.1985, 2.2041), ("2.201", "2.199", "2.204")),
        ((2.2, 2.2, 2.2), ("2.2000", "2.2000", "2.2000")),
        ((2.2, float("nan"), float("nan")), ("2.20", "nan", "nan")),
    ],
)
def test_a_loss_has_the_digits_that_its_interval_carries(numbers, words):
    assert figures.loss_words(*numbers) == words


def test_row_intervals_are_wilsons(results):
    rows = results[(results["task"] == "gsm8k")].head(40)
    low, high = figures.intervals(rows)
    for value, n, *ours in zip(rows["value"], rows["rows"], low, high, strict=True):
        theirs = wilson_interval(value, n)
        assert ours == pytest.approx([min(theirs[0], value), max(theirs[1], value)], abs=1e-12)
    one = rows.assign(metric="brier", stderr=np.nan)
    assert figures.intervals(one)[0].tolist() == rows["value"].tolist()


def _luminance(colour):
    """CIE luminance of an sRGB colour: what a grey print shows."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("count", [2, 3, 6, 9])
def test_sizes_keep_their_order_in_grey(count):
    styles = figures.size_styles([f"size {i}" for i in range(count)])
    lightness = [_luminance(colour) ** (1 / 2.4) for colour, _ in styles.values()]
    assert all(brighter - darker > 0.04 for brighter, darker in pairwise(lightness))
    # Readable on white: the palest has a contrast of 1.5 at least; and markers differ where colours are close.
    assert 1.05 / (_luminance(next(iter(styles.values()))[0]) + 0.05) > 1.5
    assert len({marker for _, marker in styles.values()}) == count


def test_a_figure_in_grey_shows_sizes_and_threshold(results, verdicts):
    """The picture itself, made grey: the largest size is darkest, and the threshold stands out from the paper."""
    rows = results[(results["task"] == "mmlu") & (results["metric"] == "acc")]
    figure = figures.draw(rows, 1, verdicts)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150)
    grey = np.asarray(Image.open(buffer).convert("L"), dtype=float)
    panel = panels(figure)[8]
    found = next(v for v in verdicts if (v.task, v.metric) == ("mmlu", "acc"))

    def shade(x, y, reach=2):
        column, row = panel.transData.transform((x, y)) * 150 / figure.dpi
        row = grey.shape[0] - row
        return grey[int(row) - reach : int(row) + reach + 1, int(column) - reach : int(column) + reach + 1].min()

    ends = rows[rows["final"]].set_index("run")
    shades = [shade(ends.at[run, "loss"], ends.at[run, "value"], 0) for run in ("1.5B-3T", "6B-3T", "32B-2.5T")]
    assert shades[0] > shades[1] > shades[2]
    low, high = panel.get_ylim()
    assert shade(found.eta, low + 0.6 * (high - low)) < 160


def test_a_panel_without_rows_stays_in_its_place(results):
    figure = figures.draw(results[results["task"] != "clozet"], 1)
    assert titles(figure)[5] == "ClozeT"
    assert "not in this table" in [text.get_text() for text in panels(figure)[5].texts]


def test_the_published_correlations_stand_beside_ours(results):
    metrics = table.primary_metrics(results)
    shown = results[results["metric"] == results["task"].map(metrics)]
    found = correlation.correlations(shown, replicates=100)
    figure = figures.correlations_beside_the_paper(found)
    published = correlation.reference()
    diamonds = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() == "D"]
    assert diamonds == [published[r.task].spearman for r in found if r.task in published]
    assert len(diamonds) == 12


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (9, lambda t: t, "figures 1 to 8"),
        (2, lambda t: t[t["run"].isin(["6B-3T", "32B-2.5T"])], "shows the small runs, and the table has none"),
        (5, lambda t: t[t["final"]], "intermediate checkpoints, and the table has none"),
        (8, lambda t: t[t["task"] == "mmlu"], "the table has mmlu"),
        (4, lambda t: t[t["metric"] == "exact_match"], "shows MMLU, C-Eval"),
        (6, lambda t: t.assign(flops_6nd=np.nan), "column flops_6nd is empty"),
    ],
)
def test_what_a_table_cannot_show_is_said_in_a_line(results, number, change, message):
    with pytest.raises(UserError, match=message):
        figures.draw(change(results), number)


@pytest.mark.slow
def test_the_command_writes_what_was_asked_for_and_says_what_it_cannot(results, tmp_path, capsys):
    path = tmp_path / "few.csv"
    results[results["task"].isin(["mmlu", "ceval"]) & results["metric"].isin(["acc"])].to_csv(path, index=False)
    program.main([str(path), "--out", str(tmp_path / "out"), "--replicates", "100"])
    printed = capsys.readouterr().out
    assert "figure 8: not drawn: figure 8 shows word_unscramble" in printed.replace(
        "Word unscramble", "word_unscramble"
    )
    made = {file.name for file in (tmp_path / "out").iterdir()}
    assert made == {
        f"{name}.{kind}" for name in (*(f"figure_{n}" for n in range(1, 8)), "table2") for kind in ("png", "svg")
    }
    program.main([str(path), "--figure", "6", "--large", "6B-250B", "--out", str(tmp_path / "one")])
    assert {file.name for file in (tmp_path / "one").iterdir()} == {"figure_6.png", "figure_6.svg"}
    with pytest.raises(UserError, match="no such run; the table has"):
        program.main([str(path), "--figure", "1", "--large", "7B"])
    with pytest.raises(UserError, match="figure 8 shows"):
        program.main([str(path), "--figure", "8"])


def test_a_small_grid_fits_too():
    made = table.check(simulated_grids.table({"mmlu": simulated_grids.flat}), "simulated")
    figure = figures.performance(made)
    assert len(panels(figure)) == 1
    assert legend_lines(3.2, 3) > legend_lines(12, 3)
