"""Seconds and memory of the analysis: all statements of a large grid with 2,000 bootstrap replicates, and loading and
drawing a table of half a million rows.

    python benchmarks/analysis_speed.py
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

import analysis
from analysis import figures, statements
from tokenizer import cli

METRICS = {"acc": 0.25, "acc_norm": 0.25, "correct_choice_prob": 0.25, "brier": 0.75}
"""Metrics of each task, and their chance level."""

EXPECTED = {"statements": 60.0, "figures": 20.0}
"""Seconds on two cores."""


def made_table(runs: int, checkpoints: int, tasks: int, seed: int = 0) -> pd.DataFrame:
    """A results table of runs x checkpoints x tasks x 4 metrics; every third task has a threshold at 2.2 nats."""
    generator = np.random.default_rng(seed)
    run, place = np.repeat(np.arange(runs), checkpoints), np.tile(np.arange(1, checkpoints + 1), runs)
    parameters = np.array([3e8, 5.4e8, 1e9, 1.5e9, 3e9, 6e9])[run % 6]
    budget = np.array([67e9, 125e9, 250e9, 375e9, 500e9, 1e12])[(run // 6) % 6] * (1 + run / 100)
    tokens = budget * place / checkpoints
    loss = 1.6 + 0.35 * (3e8 / parameters) ** 0.3 + 1.2 * (3e9 / tokens) ** 0.4
    points = pd.DataFrame(
        {
            "run": [f"run-{number:03d}" for number in run],
            "size": [f"{number / 1e9:g}B" for number in parameters],
            "step": place * 1000,
            "tokens": tokens,
            "parameters": parameters,
            "parameters_non_embedding": 0.9 * parameters,
            "loss": loss,
            "language": "en",
            "rows": 2000,
        }
    )
    parts = []
    for task in range(tasks):
        excess = 0.3 * np.maximum(0, (2.2 if task % 3 == 0 else 3.2) - loss)
        excess += (excess > 0) * generator.normal(0, 0.01, runs)[run]
        for metric, chance in METRICS.items():
            sign = -1 if metric == "brier" else 1
            value = np.clip(chance + sign * excess + generator.normal(0, 0.01, len(run)), 0, 1)
            named = {"task": f"task-{task:02d}", "metric": metric, "chance": chance, "higher_is_better": sign > 0}
            parts.append(points.assign(value=value, stderr=0.01, **named))
    return pd.concat(parts, ignore_index=True)


def measure_statements(path: Path, replicates: int) -> None:
    """All that the report says."""
    statements.infer(analysis.load(path), replicates=replicates)


def measure_figures(path: Path) -> None:
    """Loading, and performance against loss and against compute as the report has them, in both formats."""
    table = analysis.load(path)
    for column in ("loss", "flops_6nd"):
        figures.save(figures.performance(table, x=column), path.with_name(column))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/analysis_speed.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--replicates", type=int, default=2000, help="draws of runs (default: %(default)s)")
    parser.add_argument("--part", choices=EXPECTED, help="only this one")
    parser.add_argument("--table", type=Path, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int | None:
    """Each part in a process of its own, so that memory is its own."""
    arguments = _parser().parse_args(argv)
    if arguments.table:
        start = time.perf_counter()
        if arguments.part == "statements":
            measure_statements(arguments.table, arguments.replicates)
        else:
            measure_figures(arguments.table)
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        peak = sum(it.ru_maxrss for it in used) / 1e6
        seconds = sum(it.ru_utime + it.ru_stime for it in used)
        print(
            f"{arguments.part}: {time.perf_counter() - start:.1f} s by the clock, {seconds:.1f} s of processor time, "
            f"{peak:.2f} GB at most, with the largest child; expected {EXPECTED[arguments.part]:.0f} s, 2 GB",
            flush=True,
        )
        return None
    with tempfile.TemporaryDirectory() as directory:
        for part in [arguments.part] if arguments.part else EXPECTED:
            table = made_table(31, 60, 15) if part == "statements" else made_table(140, 60, 15)
            path = Path(directory) / f"{part}.parquet"
            table.to_parquet(path)
            print(f"{part}: {len(table):,} rows", flush=True)
            options = ["--part", part, "--table", str(path), "--replicates", str(arguments.replicates)]
            subprocess.run([sys.executable, __file__, *options], check=True)
    return None


if __name__ == "__main__":
    cli.run(main)
