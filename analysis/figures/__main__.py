"""Draw figures of Du et al. 2024 (arXiv 2403.15796v3) from a grid or from anybody's results table, as PNG and SVG.

    python -m analysis.figures runs/paper --figure 1
    python -m analysis.figures llama.csv --figure 3 --out figures
    python -m analysis.figures runs/paper

Without --figure all those are drawn that the table has the runs and tasks for; of the others a line says why not.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis import correlation, mapping, threshold
from analysis.figures import PAPER, correlations_beside_the_paper, draw, save
from analysis.figures.paper import select
from analysis.table import primary_metrics
from tokenizer import cli
from tokenizer.cli import UserError

TABLE_2 = "table2"


def main(argv: Sequence[str] | None = None) -> int | None:
    """Draw the figures that were asked for and print where they are."""
    names = "\n".join(f"  {number}       {recipe.caption}" for number, recipe in PAPER.items())
    parser = argparse.ArgumentParser(
        prog="python -m analysis.figures",
        description=__doc__,
        epilog=f"figures:\n{names}\n  {TABLE_2}  Correlations with loss beside the published ones (Table 2)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mapping.add_options(parser)
    parser.add_argument(
        "--figure", choices=[*map(str, PAPER), TABLE_2], action="append", help="which (may be given several times)"
    )
    parser.add_argument("--out", type=Path, help="folder to write (default: figures beside the table or in the grid)")
    parser.add_argument("--large", nargs="+", metavar="RUN", help="the large runs (default: the 3 of most compute)")
    parser.add_argument("--no-thresholds", action="store_true", help="draw no verdicts: as in the paper, and faster")
    mapping.add_replicates(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: %(default)s)")
    arguments = parser.parse_args(argv)
    table = mapping.load_as_asked(arguments)
    path = arguments.path
    out = arguments.out or (path if path.is_dir() else path.parent) / "figures"
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    asked = arguments.figure or [*map(str, PAPER), TABLE_2]
    verdicts: list[threshold.Threshold] = []
    for name in asked:
        try:
            stem = _draw(name, table, out, arguments, verdicts)
        except UserError as error:
            if arguments.figure:
                raise
            print(f"figure {name}: not drawn: {error}")
            continue
        print(f"figure {name}: {stem}.png and .svg")
    return None


def _draw(
    name: str, table: pd.DataFrame, out: Path, arguments: argparse.Namespace, verdicts: list[threshold.Threshold]
) -> Path:
    drawn = {"replicates": arguments.replicates, "seed": arguments.seed}
    if name == TABLE_2:
        first = primary_metrics(table)
        shown = table[table["metric"] == table["task"].map(first)]
        save(correlations_beside_the_paper(correlation.correlations(shown, **drawn)), out / TABLE_2)
        return out / TABLE_2
    number = int(name)
    rows = select(table, PAPER[number], arguments.large)
    known = {(verdict.task, verdict.metric) for verdict in verdicts}
    wanted = rows[["task", "metric"]].drop_duplicates().itertuples(index=False, name=None)
    missing = set(wanted) - known
    if missing and not arguments.no_thresholds and PAPER[number].x == "loss":
        # Of all runs of the table, also where a figure shows some of them: η belongs to the task.
        chosen = table[pd.MultiIndex.from_frame(table[["task", "metric"]]).isin(list(missing))]
        verdicts += threshold.thresholds(chosen, **drawn)
    stem = out / f"figure_{number}"
    save(draw(table, number, verdicts, large=arguments.large), stem)
    return stem


if __name__ == "__main__":
    cli.run(main)
