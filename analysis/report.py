"""The report of a grid: a results table, correlations with loss, thresholds, figures, and one HTML page that
opens without a network and says in plain sentences what they show and how certain it is.

    python -m analysis.report runs/realtext
    python -m analysis.report other_models.csv --out report

Written into the output folder: index.html, results.csv, correlation.csv, thresholds.csv, and the figures as
PNG and SVG. A grid that is still being trained gives a report of what is there, and says what is missing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import webbrowser
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pandas as pd

from analysis import bootstrap, chance, correlation, figures, page, result_files, sections, summary, table, threshold
from tokenizer import cli
from tokenizer.cli import UserError
from tokenizer.files import write_text

_PACKAGES = ("numpy", "scipy", "pandas", "matplotlib")


def write_report(
    path: Path, out: Path, *, replicates: int = bootstrap.REPLICATES, seed: int = 0, command: str = ""
) -> tuple[Path, list[str]]:
    """Write the report of the grid directory or table `path` into `out`; its page, and the summary's sentences.

    Raises UserError for a table that `analysis.load` refuses.
    """
    results = table.load(path)
    states = result_files.run_states(path) if path.is_dir() else []
    curves = result_files.read_loss_curves(path) if path.is_dir() else {}
    metrics = table.primary_metrics(results)

    correlations = correlation.correlations(results, replicates=replicates, seed=seed)
    thresholds = threshold.thresholds(results, replicates=replicates, seed=seed)
    best = chance.at_lowest_loss(results)
    table.write(results, out / "results.csv")
    table.write(correlation.as_table(correlations), out / "correlation.csv")
    table.write(threshold.as_table(thresholds), out / "thresholds.csv")
    performance = figures.save(figures.performance_against_loss(results, thresholds), out / "performance_against_loss")

    shown = [result for result in thresholds if metrics[result.task] == result.metric]
    shown_correlations = [result for result in correlations if metrics[result.task] == result.metric]
    sentences = [
        summary.scope(results),
        summary.above_chance(best),
        *summary.verdicts(shown, best),
        summary.correlation(shown_correlations),
    ]
    body = []
    mixed = summary.mixtures(results)
    if mixed:
        body.append(page.box(mixed, "loud", "These numbers do not all compare with each other"))
    partial = summary.progress(states)
    if partial:
        body.append(page.box([partial], "note", "Not finished"))
    body.append(page.bullets(sentences, style="summary"))
    cut = summary.short_context(results)
    if cut:
        body.append(page.box(cut, "note", "Short context"))
    body.append(page.section("Performance against pre-training loss", _performance_figure(performance)))
    if curves:
        body.append(page.section("Loss curves", _curves_figure(curves, results, out)))
    body += [
        sections.thresholds(thresholds, {result.task: result for result in best}),
        sections.correlations(correlations),
        sections.runs(results, states),
        sections.asked(results),
        sections.methods(results, replicates, seed),
        sections.provenance(results, _own_provenance(command)),
    ]
    grids = ", ".join(sorted({name for name in results["grid"].unique() if name})) or path.stem
    title = f"Performance against pre-training loss: {grids}"
    lead = "At which loss does an ability appear? Each checkpoint of each run, evaluated on each task."
    footer = (
        "Beside this page: results.csv (one row per checkpoint, task and metric), correlation.csv, thresholds.csv, "
        "and the figures as PNG and SVG."
    )
    index = out / "index.html"
    write_text(index, page.document(title, lead, body, footer))
    return index, [*mixed, *([partial] if partial else []), *sentences, *cut]


def _performance_figure(paths: tuple[Path, Path]) -> str:
    return page.figure(
        *paths,
        alternative="One panel a task: performance of every checkpoint against its held-out loss.",
        caption=(
            "One marker a checkpoint, filled at the end of a run; loss falls to the right. Bars: 95 % intervals over "
            "rows, cut at the panel's edge. Dashed: chance. Orange: a threshold η with its 95 % interval, drawn only "
            "where the verdict is emergent. Panels have different heights, of 0.16 at least."
        ),
    )


def _curves_figure(curves: dict[str, pd.DataFrame], results: pd.DataFrame, out: Path) -> str:
    sizes = dict(zip(results["run"], results["size"], strict=True))
    # Runs without a result file have no size to be coloured by yet.
    known = {run: curve for run, curve in curves.items() if run in sizes}
    if not known:
        return page.caption("None of the evaluated runs has a loss.csv.")
    paths = figures.save(figures.loss_curves(known, sizes, figures.sizes_in_order(results)), out / "loss_curves")
    left_out = sorted(set(curves) - set(known))
    return page.figure(
        *paths,
        alternative="Training and held-out loss of every run against tokens, in total and by language.",
        caption=(
            "Training loss as a running mean, held-out loss at checkpoints, in total and by language, on common axes; "
            "the first steps are left out."
            + (f" Not drawn, because nothing of them is evaluated yet: {', '.join(left_out)}." if left_out else "")
        ),
    )


def _own_provenance(command: str) -> list[tuple[str, str]]:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
    return [
        ("git revision, this report", _git_revision()),
        ("this report was made with", f"Python {sys.version.split()[0]}, {versions}"),
        ("command", command or "not recorded"),
    ]


def _git_revision() -> str:
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def main(argv: Sequence[str] | None = None) -> int | None:
    """Write a report and print where it is."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, help="a grid directory (runs/<grid>), or a .csv or .parquet results table")
    parser.add_argument(
        "--out", type=Path, help="folder to write (default: <grid>/report; for a table <name>-report beside it)"
    )
    parser.add_argument(
        "--replicates", type=int, default=bootstrap.REPLICATES, help="bootstrap draws of runs (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: %(default)s)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    arguments = parser.parse_args(argv)
    if arguments.replicates < 100:
        raise UserError(f"--replicates {arguments.replicates}: a 95 % interval needs at least 100")
    path = arguments.path
    out = arguments.out or (path / "report" if path.is_dir() else path.with_name(f"{path.stem}-report"))
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    given = list(argv) if argv is not None else sys.argv[1:]
    index, sentences = write_report(
        path,
        out,
        replicates=arguments.replicates,
        seed=arguments.seed,
        command=" ".join(["python -m analysis.report", *given]),
    )
    for sentence in sentences:
        print(sentence)
    print(f"report: {index}")
    if arguments.open:
        webbrowser.open(index.resolve().as_uri())
    return None


if __name__ == "__main__":
    cli.run(main)
