"""The report of a grid: a results table, what follows from it with the uncertainty of each number, figures, and one
HTML page that opens without a network, says in plain sentences what was found, and lets the reader look for himself.

    python -m analysis.report runs/realtext
    python -m analysis.report other_models.csv --out report --map loss=c4_loss

Written into the output folder: index.html, the numbers as CSV, and the figures as PNG and SVG. A grid that is still
being trained gives a report of what is there, and says what is missing.
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

from analysis import (
    bootstrap,
    findings,
    forecast_section,
    interactive,
    mapping,
    metric_findings,
    page,
    report_figures,
    result_files,
    same_loss,
    sections,
    summary,
    table,
)
from analysis.statements import Statements, infer
from tokenizer import cli
from tokenizer.cli import UserError
from tokenizer.files import write_text

_PACKAGES = ("numpy", "scipy", "pandas", "statsmodels", "matplotlib", "plotly")


def write_report(
    path: Path,
    out: Path,
    *,
    results: pd.DataFrame | None = None,
    margin: float = same_loss.MARGIN,
    replicates: int = bootstrap.REPLICATES,
    seed: int = 0,
    command: str = "",
) -> tuple[Path, list[str]]:
    """Write the report of the grid directory or table `path` into `out`; its page, and the summary's sentences.

    Args:
        results: the table if it was loaded already; `path` then tells only what runs there are.
        margin: difference at equal loss that counts as none, in units of the metric.
        replicates: bootstrap draws of runs behind every interval.
        command: what the reader would type to get this report, for its provenance.

    Raises:
        UserError: for a table that `analysis.load` refuses.
    """
    results = table.load(path) if results is None else results
    states = result_files.run_states(path) if path.is_dir() else []
    curves = result_files.read_loss_curves(path) if path.is_dir() else {}
    found = infer(results, margin=margin, replicates=replicates, seed=seed)
    table.write(results, out / "results.csv")
    for name, numbers in found.tables().items():
        table.write(numbers, out / f"{name}.csv")

    mixed, partial, cut = summary.mixtures(results), summary.progress(states), summary.short_context(results)
    sentences = _sentences(results, found)
    body = []
    if mixed:
        body.append(page.box(mixed, "loud", "These numbers do not all compare with each other"))
    if partial:
        body.append(page.box([partial], "note", "Not finished"))
    body.append(page.bullets(sentences, style="summary"))
    if cut:
        body.append(page.box(cut, "note", "Short context"))
    drawn = report_figures.Drawn(results, found, out)
    body.append(page.section("Performance against pre-training loss", drawn.against_loss()))
    body.append(interactive.view(results, found.thresholds, found.critical))
    body += [
        sections.thresholds(found.thresholds, found.best, found.first_above, found.primary),
        metric_findings.section(found, drawn.metrics()),
        findings.same_loss(found.same_loss, found.same_in_decay),
        findings.axes(found.axes, found.critical, drawn.against_compute()),
        sections.correlations(found.correlations, found.primary, drawn.table_2()),
        findings.scaling(found.law, found.shown, drawn.scaling()),
        forecast_section.section(found.forecast, drawn.forecast()),
    ]
    if curves:
        body.append(page.section("Loss curves", drawn.loss_curves(curves)))
    body += [
        sections.runs(results, states),
        sections.asked(results),
        sections.methods(results, replicates, seed),
        sections.provenance(results, _own_provenance(command)),
    ]
    grids = ", ".join(sorted({name for name in results["grid"].unique() if name})) or path.stem
    title = f"Performance against pre-training loss: {grids}"
    lead = "At which loss does an ability appear? Each checkpoint of each run, evaluated on each task."
    files = ", ".join(f"{name}.csv" for name in ("results", *found.tables()))
    footer = f"Beside this page: {files}, and the figures as PNG and SVG."
    index = out / "index.html"
    write_text(index, page.document(title, lead, body, footer))
    return index, [*mixed, *([partial] if partial else []), *sentences, *cut]


def _sentences(results: pd.DataFrame, found: Statements) -> list[str]:
    """The summary: what was looked at, then what was found, thresholds first."""
    sentences = [
        summary.scope(results),
        *summary.verdicts(found.shown, list(found.best.values())),
        summary.above_chance(list(found.best.values())),
        findings.same_loss_sentence(found.same_loss),
        findings.axes_sentence(found.axes),
        summary.correlation(found.shown_correlations),
        *metric_findings.sentences(found),
        findings.scaling_sentence(found.law, found.shown),
        forecast_section.sentence(found.forecast),
    ]
    return [sentence for sentence in sentences if sentence]


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
    mapping.add_options(parser)
    parser.add_argument(
        "--out", type=Path, help="folder to write (default: <grid>/report; for a table <name>-report beside it)"
    )
    mapping.add_replicates(parser)
    parser.add_argument(
        "--margin",
        type=float,
        default=same_loss.MARGIN,
        help="difference at equal loss that counts as none, in units of the metric (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: %(default)s)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    arguments = parser.parse_args(argv)
    mapping.check_replicates(arguments.replicates)
    if not arguments.margin > 0:
        raise UserError(f"--margin {arguments.margin:g}: give a difference above 0, as 0.02")
    path = arguments.path
    out = arguments.out or (path / "report" if path.is_dir() else path.with_name(f"{path.stem}-report"))
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    results = mapping.load_as_asked(arguments)
    given = list(argv) if argv is not None else sys.argv[1:]
    index, sentences = write_report(
        path,
        out,
        results=results,
        margin=arguments.margin,
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
