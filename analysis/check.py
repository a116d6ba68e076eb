"""What is wrong with a results table: each problem with its rows and remedy. And a table as one file.

    python -m analysis.check theirs.csv --map loss=c4_loss --map run=model_name
    python -m analysis.check runs/realtext --out results.csv

Exit code 2 if something is wrong that no program here goes on with.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from analysis import mapping, table
from tokenizer import cli
from tokenizer.cli import UserError


def main(argv: Sequence[str] | None = None) -> int | None:
    """Check a table, or write it as one file."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    mapping.add_options(parser)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the checked table here (.csv or .parquet) instead of the list"
    )
    arguments = parser.parse_args(argv)
    if arguments.out is None:
        return cli.EXIT_USER_ERROR if mapping.print_problems(arguments) else None
    if arguments.out.suffix not in (".csv", ".parquet"):
        raise UserError(f"--out {arguments.out}: end the name in .csv or .parquet")
    results = mapping.load_as_asked(arguments)
    table.write(results, arguments.out)
    checkpoints = results[["grid", "run", "step"]].drop_duplicates().shape[0]
    runs = table.run_ids(results).nunique()
    print(f"{arguments.out}: {len(results)} rows, {checkpoints} checkpoints of {runs} runs")
    return None


if __name__ == "__main__":
    cli.run(main)
