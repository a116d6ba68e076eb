"""What a precision costs in loss: one run of a grid in fp32, bf16 and emulated FP8, several seeds each.

Every run is trained by the real command, `python -m recipes.pretrain`; runs of a seed share their initial weights
and the order of their data, so each is compared with bf16 of its own seed, and the spread of these differences over
the seeds gives their standard error. Runs that are complete under --out are not trained again.

    python benchmarks/fp8_loss.py --data runs/realtext/data --out runs/fp8_loss --seeds 1 2 3
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.settings import FP8_RECIPES
from tokenizer import cli
from tokenizer.cli import UserError

REFERENCE = "bf16"
"""The precision that the others are compared with."""

SETTINGS = {
    "fp32": ["precision=fp32"],
    "bf16": ["precision=bf16"],
    **{recipe: ["precision=fp8-emulated", f"fp8_recipe={recipe}"] for recipe in FP8_RECIPES},
}
"""What to measure, by name: settings of the run."""


@dataclass(frozen=True)
class Row:
    """One precision's held-out losses, nats per token."""

    name: str
    losses: dict[int, float]
    """By seed."""

    def differences(self, reference: Row) -> list[float]:
        """Loss above the reference's, seed by seed."""
        return [loss - reference.losses[seed] for seed, loss in self.losses.items()]


def train(arguments: argparse.Namespace, name: str, seed: int) -> float:
    """Train one run to its end, if it is not there already; its final held-out loss."""
    out = arguments.out / f"{name}-seed{seed}"
    command = [sys.executable, "-m", "recipes.pretrain", "--grid", arguments.grid, "--run", arguments.run]
    command += ["--out", str(out), "--data", str(arguments.data), "num_checkpoints=1", f"seed={seed}"]
    done = subprocess.run(
        [*command, *SETTINGS[name], *arguments.settings],
        capture_output=True,
        text=True,
        env={"OMP_NUM_THREADS": "1", **os.environ},
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise UserError(f"{name}, seed {seed} failed: {' '.join(last).removeprefix('error: ')}")
    with open(out / arguments.run / "loss.csv", encoding="utf-8", newline="") as file:
        return float(list(csv.DictReader(file))[-1]["heldout_loss"])


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    reference = next(row for row in rows if row.name == REFERENCE)
    seeds = list(reference.losses)
    lines = [
        f"| precision | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | above {REFERENCE} |",
        f"|---|{'---|' * (len(seeds) + 2)}",
    ]
    for row in rows:
        losses = " | ".join(f"{row.losses[seed]:.4f}" for seed in seeds)
        lines.append(
            f"| {row.name} | {losses} | {statistics.mean(row.losses.values()):.4f} | {_above(row, reference)} |"
        )
    return "\n".join(lines)


def _above(row: Row, reference: Row) -> str:
    if row is reference:
        return ""
    differences = row.differences(reference)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return f"{statistics.mean(differences):+.4f} ± {error:.4f}"


def main() -> None:
    """Train the runs and print their losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="data encoded by tokenizer.encode")
    parser.add_argument("--out", required=True, type=Path, help="where the runs go: OUT/<precision>-seed<n>/RUN")
    parser.add_argument("--grid", default="realtext", help="a grid file or name (default %(default)s)")
    parser.add_argument("--run", default="1.0M-0.3M", help="the run to train (default %(default)s)")
    parser.add_argument("--precisions", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="at least two (default 1 2 3)")
    parser.add_argument("--settings", nargs="+", metavar="key=value", default=[], help="more settings of the runs")
    arguments = parser.parse_args()
    if len(set(arguments.seeds)) < 2:
        raise UserError(f"{len(set(arguments.seeds))} seed gives a difference no error bar; give --seeds 1 2 or more")
    names = list(dict.fromkeys([REFERENCE, *arguments.precisions]))
    losses: dict[str, dict[int, float]] = {name: {} for name in names}
    with cli.progress_bar("{task.fields[state]}") as bar:
        task = bar.add_task("runs", total=len(names) * len(arguments.seeds), state="")
        for seed in dict.fromkeys(arguments.seeds):
            for name in names:
                bar.update(task, state=f"{name}, seed {seed}")
                losses[name][seed] = train(arguments, name, seed)
                bar.advance(task)
                print(f"{name:10} seed {seed}  held-out {losses[name][seed]:.4f}", file=sys.stderr, flush=True)
    print(f"held-out loss of {arguments.run} ({arguments.grid}), nats per token\n")
    print(table([Row(name, losses[name]) for name in names]))


if __name__ == "__main__":
    cli.run(main)
