"""One look of the keeper, a job of some seconds that submits what is missing of a study (`launchers.slurm.reconcile`).

Its job script has submitted the next look before; when nothing is left to do, that is cancelled.

    python -m launchers.slurm.keeper runs/paper --next 813
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from launchers.directory import locked
from launchers.plan import GridDirectory
from launchers.slurm import commands
from launchers.slurm.reconcile import Reconciler
from launchers.slurm.study import Study
from tokenizer import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Look once."""
    parser = argparse.ArgumentParser(
        prog="python -m launchers.slurm.keeper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", type=Path, help="the grid's directory")
    parser.add_argument("--next", default="", metavar="JOB", help="the job of the next look")
    arguments = parser.parse_args(argv)
    folder = GridDirectory(arguments.directory.resolve())
    with locked(folder):
        reconciler = Reconciler(Study.read(folder), patience=commands.PATIENCE_SECONDS)
        reconciler.submit_missing()
        for line in (*reconciler.submitted, *(f"refused: {line}" for line in reconciler.refused)):
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", flush=True)
        if reconciler.is_settled():
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} nothing is left to do", flush=True)
            commands.cancel([arguments.next] if arguments.next else [])
    return 0


if __name__ == "__main__":
    cli.run(main)
