"""The layout planner's speed against published ones: the paper's own four figures, and throughput tables.

The tables stand in published_throughput.csv, each row with its source; rows of use `fit` are those that the constants
of a cluster file were fitted on, `check` those that they were not.

    python benchmarks/planner_vs_published.py
    python benchmarks/planner_vs_published.py --fit
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from recipes.cluster import Cluster, load_cluster
from recipes.cost import CostModel
from recipes.grid import load_grid
from recipes.planner import GOODPUT, plan_run
from recipes.settings import RunSettings
from tokenizer import cli

ROWS = Path(__file__).with_name("published_throughput.csv")

SOURCES = {
    "llm-foundry A100": "https://github.com/mosaicml/llm-foundry/blob/main/scripts/train/benchmarking/README.md",
    "llm-foundry H100": "https://github.com/mosaicml/llm-foundry/blob/main/scripts/train/benchmarking/README.md",
    "Megatron-LM README": "https://github.com/NVIDIA/Megatron-LM (its table is an image without these shapes)",
    "NeMo 24.12": "https://docs.nvidia.com/nemo-framework/user-guide/24.12/nemotoolkit/performance/"
    "performance_summary.html",
    "Megatron-Bridge 25.11": "https://docs.nvidia.com/nemo/megatron-bridge/latest/performance-summary.html",
}
"""Where the rows were read."""

PAPER = (("1.5B-3T", 256, 8.0), ("6B-3T", 1024, 8.0), ("32B-2.5T", 2048, 20.0))
"""Run, GPUs and days of the large runs (Du et al. 2024, App. H); the 28 small ones: about 20 days on 256."""

SMALL = (256, 20.0)


@dataclasses.dataclass(frozen=True)
class Published:
    """One row of the tables."""

    source: str
    use: str
    cluster: str
    model: str
    gpus: int
    settings: RunSettings
    data_parallel: int
    tokens_per_second_per_gpu: float
    note: str


def read_rows(path: Path = ROWS) -> list[Published]:
    """The published rows."""
    with open(path, encoding="utf-8", newline="") as file:
        return [_row(row) for row in csv.DictReader(file)]


def _row(row: dict[str, str]) -> Published:
    number = {key: int(row[key]) for key in row if key in _NUMBERS}
    feed_forward = number["ffn"]
    if row["gated"] == "no":
        # Two matrices instead of SwiGLU's three: the width with as many parameters and products.
        feed_forward = round(2 * feed_forward / 3 / number["tp"]) * number["tp"]
    settings = RunSettings(
        size=row["model"],
        tokens=number["batch"] * number["sequence"],
        precision=row["precision"],
        hidden_size=number["hidden"],
        ffn_hidden_size=feed_forward,
        num_attention_heads=number["heads"],
        num_query_groups=number["groups"],
        kv_channels=number["kv_channels"],
        num_layers=number["layers"],
        vocab_size=number["vocab"],
        sequence_length=number["sequence"],
        global_batch_size=number["batch"],
        micro_batch_size=number["micro"],
        tensor_parallel=number["tp"],
        pipeline_parallel=number["pp"],
        virtual_pipeline_parallel=number["vp"],
        context_parallel=number["cp"],
        sequence_parallel=number["tp"] > 1,
        distributed_optimizer=True,
    )
    speed = float(row["tokens_per_second_per_gpu"] or 0)
    if not speed:
        peak = load_cluster(row["cluster"]).peak_flops[row["precision"]]
        speed = float(row["mfu"]) / 100 * peak / _flops_as_published(settings)
    replicas = number["gpus"] // (number["tp"] * number["pp"] * number["cp"])
    return Published(
        row["source"], row["use"], row["cluster"], row["model"], number["gpus"], settings, replicas, speed, row["note"]
    )


_SHAPE = ("hidden", "ffn", "heads", "groups", "kv_channels", "layers", "vocab")
_NUMBERS = {"gpus", "batch", "micro", "sequence", "tp", "pp", "vp", "cp", *_SHAPE}


def _flops_as_published(settings: RunSettings) -> float:
    """Megatron-LM's count of a token's model FLOPs: as `flops_exact`, but with attention that is not causal."""
    causal = 6.0 * settings.num_layers * settings.num_attention_heads * settings.kv_channels
    return settings.flops_exact(1) + causal * (settings.sequence_length - 1)


def predicted(row: Published, cluster: Cluster) -> float:
    """Tokens/s a GPU that the model gives a row."""
    # All of these programs hide the data-parallel collectives.
    step = CostModel(cluster, overlap_gather=True).step_time(row.settings, row.data_parallel)
    return row.settings.tokens_per_step / step.total / row.gpus


def error(rows: Iterable[Published], cluster: Cluster) -> float:
    """Root mean square of the logarithm of predicted over published."""
    logs = [math.log(predicted(row, cluster) / row.tokens_per_second_per_gpu) for row in rows]
    return math.sqrt(statistics.fmean(log * log for log in logs))


def fit(rows: Sequence[Published]) -> dict[str, dict[str, float]]:
    """The constants that fit each cluster's `fit` rows best: the efficiencies of products and of element-wise kernels
    on the bf16 rows, then that of fp8 products with the others held."""
    found: dict[str, dict[str, float]] = {}
    for name in sorted({row.cluster for row in rows if row.use == "fit"}):
        cluster = load_cluster(name)
        mine = [row for row in rows if row.cluster == name and row.use == "fit"]
        bf16 = [row for row in mine if row.settings.precision == "bf16"]
        choices = itertools.product(range(56, 96, 2), range(20, 100, 5))
        tried = [_with(cluster, "bf16", product / 100, memory / 100) for product, memory in choices]
        cluster = min(tried, key=lambda it: error(bf16, it))
        found[name] = {
            "gemm_efficiency.bf16": cluster.gemm_efficiency["bf16"],
            "memory_efficiency": cluster.memory_efficiency,
        }
        if fp8 := [row for row in mine if row.settings.precision == "fp8"]:
            tried = [_with(cluster, "fp8", percent / 100, cluster.memory_efficiency) for percent in range(50, 100, 2)]
            found[name]["gemm_efficiency.fp8"] = min(tried, key=lambda it: error(fp8, it)).gemm_efficiency["fp8"]
    return found


def _with(cluster: Cluster, precision: str, product: float, memory: float) -> Cluster:
    changed = {**cluster.gemm_efficiency, precision: product}
    return dataclasses.replace(cluster, gemm_efficiency=changed, memory_efficiency=memory)


def throughput_table(rows: Sequence[Published]) -> Table:
    """Predicted beside published tokens/s, a line a row."""
    shown = Table(title="Throughput, tokens/s a GPU", title_justify="left")
    for heading in ("source", "use", "cluster", "model", "layout"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("GPUs", "published", "predicted", "ratio"):
        shown.add_column(heading, justify="right")
    for row in rows:
        it = row.settings
        layout = f"TP {it.tensor_parallel} PP {it.pipeline_parallel} VP {it.virtual_pipeline_parallel}"
        layout += f" CP {it.context_parallel} mb {it.micro_batch_size}, {it.sequence_length}, {it.precision}"
        speed = predicted(row, load_cluster(row.cluster))
        shown.add_row(
            row.source,
            row.use,
            row.cluster,
            row.model,
            layout,
            str(row.gpus),
            f"{row.tokens_per_second_per_gpu:,.0f}",
            f"{speed:,.0f}",
            f"{speed / row.tokens_per_second_per_gpu:.2f}",
        )
    return shown


def paper_table(goodput: float) -> Table:
    """The paper's four figures beside the planner's."""
    grid, cluster = load_grid("paper"), load_cluster("dgx-a100")
    shown = Table(title=f"GPU-days of Du et al. 2024, App. H, goodput {goodput:.0%}", title_justify="left")
    for heading in ("runs", "GPUs", "published days", "predicted days", "GPU-days", "ratio", "without goodput"):
        shown.add_column(heading, justify="left" if heading == "runs" else "right")
    lines = [(name, gpus, days, [grid.run(name)]) for name, gpus, days in PAPER]
    lines.append(("28 small runs", *SMALL, [run for run in grid.runs if run.settings.tokens < 10**12]))
    ratios = []
    for name, gpus, published, runs in lines:
        days = sum(plan_run(run, cluster, gpus, goodput).days for run in runs)
        ratios.append(days * goodput / published)
        shown.add_row(
            name,
            str(gpus),
            f"{published:g}",
            f"{days:.2f}",
            f"{days * gpus:,.0f}",
            f"{days / published:.2f}",
            f"{days * goodput:.2f}",
        )
    best = statistics.geometric_mean(ratios)
    shown.caption = f"the goodput that fits the four best: {best:.2f}"
    return shown


def main(argv: Sequence[str] | None = None) -> int:
    """Print both tables, or fit the constants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="fit the *calibrated* constants of the cluster files")
    parser.add_argument(
        "--goodput", type=float, default=GOODPUT, help="share of the time in steps (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    console = Console(width=170, highlight=False)
    rows = read_rows()
    if arguments.fit:
        for name, constants in fit(rows).items():
            console.print(name, *(f"{key}: {value}" for key, value in constants.items()))
        return 0
    console.print(throughput_table(rows))
    for use in ("fit", "check"):
        for name in sorted({row.cluster for row in rows if row.use == use}):
            chosen = [row for row in rows if row.cluster == name and row.use == use]
            console.print(f"{name}, {use}: {len(chosen)} rows, error {error(chosen, load_cluster(name)):.1%}")
    for source, address in SOURCES.items():
        console.print(f"{source}: {address}")
    console.print(paper_table(arguments.goodput))
    return 0


if __name__ == "__main__":
    cli.run(main)
