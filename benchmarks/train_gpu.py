"""Training tokens a second, TFLOP/s and MFU of one GPU: the paper's small shapes in bf16 and each FP8 recipe.

Every measurement is a process of its own that trains `recipes.trainer.Trainer` on random ids: some steps to warm up,
then steps timed with CUDA events. FLOPs are those of the run's matrix products and causal attention
(`RunSettings.flops_exact`). MFU is given of the peak rate of bf16 and, for FP8, of that of FP8 as well, for two
rates are in play: attention and output head stay in bf16. A model that does not fit is measured with fewer layers,
and the table says so. Recipes that the GPU cannot run are named with the reason.

    python benchmarks/train_gpu.py --shapes 300M 1.5B 6B --recipes bf16 tensorwise --json train_gpu.json

The shape `tiny` runs without a GPU too, with emulated FP8, to try the program; its rate means nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes import hardware, precision
from recipes.grid import load_grid
from recipes.provenance import git_revision, versions
from recipes.settings import FP8_RECIPES, RunSettings
from tokenizer import cli
from tokenizer.cli import UserError
from tokenizer.files import write_json

SHAPES = ("300M", "1.5B", "6B")
"""Sizes of recipes/grids/paper.yaml."""

MICRO_BATCH = {"300M": 8, "1.5B": 4, "6B": 1, "tiny": 2}
"""Sequences at once, unless --micro-batch says otherwise."""

STATE_BYTES = 18
"""A parameter's bytes: bf16 weight, fp32 gradient sum, fp32 master and Adam's two moments."""

OUT_OF_MEMORY = 3
"""Exit code of a measurement that did not fit."""


@dataclass(frozen=True)
class Measurement:
    """One shape at one precision."""

    shape: str
    recipe: str
    layers: int
    all_layers: int
    parameters: int
    micro_batch: int
    micro_batches: int
    step_seconds: float
    """Median over the timed steps."""
    fastest_step: float
    slowest_step: float
    tokens_per_second: float
    tflops: float
    """TFLOP/s of the model's own products."""
    mfu_bf16: float | None
    mfu_fp8: float | None
    peak_memory_gib: float | None
    loss: float
    """Of the last step: random ids have ln(vocabulary)."""


def shape_settings(arguments: argparse.Namespace, shape: str, recipe: str, layers: int | None) -> RunSettings:
    """The settings of a measurement: the paper's shape, with its steps and batch cut to what is timed."""
    if shape == "tiny":
        base = load_grid("smoke").run("large-40960").settings
        base = dataclasses.replace(base, ffn_hidden_size=256, num_checkpoints=1)
    else:
        base = next(run.settings for run in load_grid("paper").runs if run.settings.size == shape)
    on_gpu = precision.local_device() is not None
    fp8 = {"precision": "fp8" if on_gpu else "fp8-emulated", "fp8_recipe": recipe}
    micro = arguments.micro_batch or MICRO_BATCH[shape]
    batch = micro * arguments.micro_batches
    return dataclasses.replace(
        base,
        **(fp8 if recipe in FP8_RECIPES else {"precision": recipe}),
        num_layers=layers or base.num_layers,
        micro_batch_size=micro,
        global_batch_size=batch,
        tokens=(arguments.warmup + arguments.steps) * batch * base.sequence_length,
        num_checkpoints=1,
        warmup_ratio=1.0,
        warmup_steps=1000,
    )


def timed_steps(step: Callable[[int], Any], warmup: int, steps: int) -> list[float]:
    """Seconds of each of `steps` calls of `step` after `warmup` more: by CUDA events, or a clock without a GPU."""
    import torch

    for number in range(1, warmup + 1):
        step(number)
    if not torch.cuda.is_available():
        ends = [time.perf_counter()]
        for number in range(warmup + 1, warmup + steps + 1):
            step(number)
            ends.append(time.perf_counter())
        return [after - before for before, after in itertools.pairwise(ends)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for index in range(steps):
        step(warmup + 1 + index)
        events[index + 1].record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1000 for before, after in itertools.pairwise(events)]


def random_tokens(settings: RunSettings) -> Any:
    """Random sequences in the form of Megatron's GPTDataset."""
    import torch

    length = settings.sequence_length
    rows = torch.randint(settings.vocab_size, (64, length + 1), generator=torch.Generator().manual_seed(0))
    rest = {"loss_mask": torch.ones(length), "position_ids": torch.arange(length)}

    class RandomTokens(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return sys.maxsize

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            row = rows[index % len(rows)]
            return {"tokens": row[:-1], "labels": row[1:], **rest}

    return RandomTokens()


def measure(arguments: argparse.Namespace, shape: str, recipe: str, layers: int | None) -> Measurement:
    """Train a shape for some steps in this process and time them."""
    from recipes import cpu

    cpu.install()
    import torch

    from recipes import distributed
    from recipes.trainer import Trainer

    whole = shape_settings(arguments, shape, recipe, None)
    settings = shape_settings(arguments, shape, recipe, layers)
    precision.check(settings)
    losses: list[float] = []
    with distributed.process_groups(settings):
        trainer, data = Trainer(settings), random_tokens(settings)
        seconds = timed_steps(
            lambda step: losses.append(trainer.step(data, step).loss), arguments.warmup, arguments.steps
        )
    median = statistics.median(seconds)
    rate = settings.tokens_per_step / median
    flops = rate * settings.flops_exact(1)
    gpu = torch.cuda.is_available()
    peak = hardware.peak_of(torch.cuda.get_device_name()) if gpu else None
    return Measurement(
        shape,
        recipe,
        settings.num_layers,
        whole.num_layers,
        settings.parameters,
        settings.micro_batch_size,
        arguments.micro_batches,
        median,
        min(seconds),
        max(seconds),
        rate,
        flops / 1e12,
        flops / peak.bf16 if peak else None,
        flops / peak.fp8 if peak and peak.fp8 and recipe in FP8_RECIPES else None,
        torch.cuda.max_memory_allocated() / 2**30 if gpu else None,
        losses[-1],
    )


def layers_that_fit(settings: RunSettings, memory: float) -> int:
    """Layers whose state takes at most 70 % of `memory` bytes; the rest is for activations and logits."""
    norms_and_matrices = (settings.parameters_non_embedding - settings.hidden_size) // settings.num_layers
    embeddings = 2 * settings.padded_vocab_size * settings.hidden_size
    room = 0.7 * memory / STATE_BYTES - embeddings
    return max(1, min(settings.num_layers, int(room // norms_and_matrices)))


def measure_apart(arguments: argparse.Namespace, shape: str, recipe: str) -> Measurement | str:
    """`measure` in a process of its own, with as many layers as fit; or why there is no measurement."""
    settings = shape_settings(arguments, shape, recipe, None)
    device = precision.local_device()
    try:
        precision.check_settings(settings)
        precision.check_device(settings, device)
    except UserError as error:
        return str(error)
    layers = settings.num_layers
    if device is not None:
        import torch

        layers = layers_that_fit(settings, torch.cuda.get_device_properties(0).total_memory)
    while layers >= 1:
        command = [sys.executable, __file__, "--one", shape, recipe, str(layers)]
        for name in ("steps", "warmup", "micro_batch", "micro_batches"):
            command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return Measurement(**json.loads(done.stdout.splitlines()[-1]))
        if done.returncode != OUT_OF_MEMORY:
            return f"failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}"
        layers -= max(1, layers // 8)
    return "does not fit with one layer; lower --micro-batch"


def measure_here(arguments: argparse.Namespace) -> int:
    """The measurement of --one, as a line of JSON."""
    import warnings

    warnings.filterwarnings("ignore")
    import torch

    shape, recipe, layers = arguments.one
    try:
        print(json.dumps(dataclasses.asdict(measure(arguments, shape, recipe, int(layers)))))
    except torch.OutOfMemoryError:
        return OUT_OF_MEMORY
    return 0


def row(it: Measurement) -> str:
    """A line of the table."""
    layers = f"{it.layers}" if it.layers == it.all_layers else f"{it.layers} of {it.all_layers}"
    share = [f"{mfu:.1%}" if mfu is not None else "" for mfu in (it.mfu_bf16, it.mfu_fp8)]
    memory = f"{it.peak_memory_gib:.1f}" if it.peak_memory_gib is not None else ""
    return (
        f"| {it.shape} | {it.recipe} | {layers} | {it.micro_batch} x {it.micro_batches} | {it.step_seconds:.3f} "
        f"({it.fastest_step:.3f}-{it.slowest_step:.3f}) | {it.tokens_per_second:,.0f} | {it.tflops:.1f} "
        f"| {share[0]} | {share[1]} | {memory} |"
    )


HEADER = (
    "| shape | precision | layers | sequences | s/step (range) | tokens/s | TFLOP/s | of bf16 peak | of FP8 peak "
    "| GiB |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    recipes = ("bf16", *FP8_RECIPES)
    parser.add_argument("--shapes", nargs="+", choices=(*SHAPES, "tiny"), default=list(SHAPES), help="default: all")
    parser.add_argument("--recipes", nargs="+", choices=recipes, default=list(recipes), help="default: all")
    parser.add_argument("--steps", type=int, default=20, help="steps that are timed (default %(default)s)")
    parser.add_argument("--warmup", type=int, default=5, help="steps before them (default %(default)s)")
    parser.add_argument("--micro-batch", type=int, default=0, help="sequences at once (default: by shape)")
    parser.add_argument("--micro-batches", type=int, default=8, help="micro-batches a step (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write the measurements to this file as well")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        return measure_here(arguments)
    device = precision.local_device()
    if device is None and set(arguments.shapes) != {"tiny"}:
        print("no GPU here: nothing was measured (--shapes tiny tries the program on the CPU)")
        return 0
    print(f"{device.name if device else 'CPU'}, {versions()}, {git_revision()}\n\n{HEADER}")
    measured: list[Measurement] = []
    left_out: list[str] = []
    with cli.progress_bar("{task.fields[state]}") as bar:
        task = bar.add_task("measurements", total=len(arguments.shapes) * len(arguments.recipes), state="")
        for shape in arguments.shapes:
            for recipe in arguments.recipes:
                bar.update(task, state=f"{shape} {recipe}")
                found = measure_apart(arguments, shape, recipe)
                bar.advance(task)
                if isinstance(found, str):
                    left_out.append(f"{shape} {recipe}: {found}")
                else:
                    measured.append(found)
                    print(row(found), flush=True)
    for reason in left_out:
        print(f"not measured: {reason}")
    if arguments.json:
        content = {
            "device": device.name if device else "cpu",
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "git_revision": git_revision(),
            "versions": versions(),
            "measurements": [dataclasses.asdict(it) for it in measured],
            "not_measured": left_out,
        }
        write_json(arguments.json, content)
    return 0


if __name__ == "__main__":
    cli.run(main)
