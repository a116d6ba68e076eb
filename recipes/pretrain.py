"""Train one run of a grid: on one CPU or GPU, or on many under torchrun.

The run's directory, OUT/RUN, gets `run.yaml`, `loss.csv`, TensorBoard events and `checkpoints/step_<n>`. Run
the same command again after an interruption and it goes on from the last checkpoint. Settings of
`recipes.settings.RunSettings` can be overridden at the end, as key=value.

    python -m recipes.pretrain --grid recipes/grids/smoke.yaml --run small-20480 --out runs/smoke
    torchrun --nproc-per-node 2 -m -- recipes.pretrain --grid smoke --run small-20480 --out runs/smoke tensor_parallel=2

(torchrun needs the `--`, or it takes `--run` for an option of its own.)
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import yaml

from recipes import checkpoint, encoded, layout, mixture, precision
from recipes.encoded import EncodedData
from recipes.grid import load_grid, override
from recipes.provenance import git_revision, versions
from recipes.settings import LAYOUT_SETTINGS, OPERATION_SETTINGS, RunSettings, format_count
from tokenizer import cli
from tokenizer.cli import UserError
from tokenizer.files import write_text

logger = logging.getLogger("recipes.pretrain")


def describe(name: str, settings: RunSettings) -> str:
    """What will be trained, with the arithmetic behind it, before anything runs."""
    it = settings
    tokens = it.num_steps * it.tokens_per_step
    steps = it.checkpoint_steps
    shown = ", ".join(map(str, steps if len(steps) <= 6 else [*steps[:3], "...", *steps[-2:]]))
    return "\n".join(
        [
            f"run {name}: {format_count(it.parameters)} parameters, "
            f"{format_count(it.parameters_non_embedding)} without embeddings",
            f"  {it.num_layers} layers x {it.hidden_size} wide, {it.num_attention_heads} heads of {it.kv_channels} "
            f"in {it.num_query_groups} query groups, feed-forward {it.ffn_hidden_size}, vocabulary {it.vocab_size:,}",
            f"  {it.num_steps:,} steps x {it.global_batch_size} sequences x {it.sequence_length} tokens "
            f"= {tokens:,} tokens ({tokens / it.parameters_non_embedding:.3g} a parameter)",
            f"  {it.flops_exact(tokens):.3g} FLOPs, {it.flops_exact(1):.3g} a token (6ND: {it.flops_6nd(tokens):.3g})",
            f"  layout: tensor {it.tensor_parallel} x pipeline {it.pipeline_parallel}, {it.precision}",
            f"  learning rate {_schedule_picture(it)}  peak {it.learning_rate:g} after {it.num_warmup_steps} steps",
            f"  checkpoints   {_checkpoint_picture(it)}  after steps {shown}",
        ]
    )


_WIDTH = 48


def _schedule_picture(settings: RunSettings) -> str:
    bars = " ▁▂▃▄▅▆▇█"
    picture = ""
    for column in range(_WIDTH):
        step = max(1, round((column + 1) / _WIDTH * settings.num_steps))
        warmup = settings.num_warmup_steps
        if step < warmup:
            share = step / warmup
        else:
            cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, settings.num_steps - warmup)))
            share = settings.min_learning_rate_ratio + (1 - settings.min_learning_rate_ratio) * cosine
        picture += bars[round(share * (len(bars) - 1))]
    return picture


def _checkpoint_picture(settings: RunSettings) -> str:
    columns = {math.ceil(step / settings.num_steps * _WIDTH) - 1 for step in settings.checkpoint_steps}
    return "".join("┴" if column in columns else "─" for column in range(_WIDTH))


def train(grid: str, name: str, settings: RunSettings, directory: Path, data_directory: Path) -> None:
    """Train the run `name` into `directory` until its last step, from its last checkpoint if there is one.

    Raises UserError where the data, the layout or an earlier start of the run do not fit the settings.
    """
    layout.data_parallel_size(settings)
    data = encoded.read_data(data_directory)
    encoded.check(data, settings)
    precision.check(settings)
    writes = int(os.environ.get("RANK", "0")) == 0
    with _locked(directory) if writes else nullcontext():
        _check_same_run(directory, settings, data)
        if writes:
            _log_to(directory / "train.log")
        # Here, so that --help, --dry-run and every mistake answer without loading torch.
        from recipes import cpu

        cpu.install()
        from recipes import distributed

        with distributed.process_groups(settings):
            _train_from_latest(grid, name, settings, directory, data)


def _train_from_latest(grid: str, name: str, settings: RunSettings, directory: Path, data: EncodedData) -> None:
    from recipes import distributed, hardware
    from recipes.data import heldout_sets, training_set
    from recipes.journal import Journal
    from recipes.trainer import Trainer

    first_rank = distributed.is_first_rank()
    done = distributed.from_first_rank(lambda: _latest_step(directory))
    if done >= settings.num_steps:
        logger.info("%s is complete: %s", name, checkpoint.step_directory(directory, done))
        return
    if first_rank:
        logger.info("%s\n%s", describe(name, settings), mixture.describe(data, settings))
        _write_run_file(directory, grid, name, settings, data)
    trainer = Trainer(settings)
    if done:
        logger.info("resuming from step %d", done)
        checkpoint.load(directory, trainer, done)
    dataset = training_set(data, settings)
    heldout = heldout_sets(data, settings)
    with (
        Journal(directory, name, settings, done, hardware.peak_flops(settings.precision))
        if first_rank
        else nullcontext()
    ) as journal:
        for step in range(done + 1, settings.num_steps + 1):
            result = trainer.step(dataset, step)
            if not math.isfinite(result.loss):
                raise UserError(f"the loss of {name} is {result.loss} at step {step}; lower learning_rate or clip_grad")
            losses = None
            if step in settings.checkpoint_steps:
                losses = _heldout_losses(settings, trainer.heldout_losses(heldout))
            if journal:
                journal.record(step, result, losses)
            if losses:
                manifest = _manifest(grid, name, settings, data, step, losses, journal)
                checkpoint.save(directory, trainer, manifest, data.tokenizer)


def _latest_step(directory: Path) -> int:
    found = checkpoint.latest(directory)
    return found.step if found else 0


def _heldout_losses(settings: RunSettings, by_language: dict[str, float]) -> dict[str, float]:
    """The losses of the languages and, as `heldout`, their mean over the mixture's tokens."""
    total = sum(settings.languages.values())
    mixture = sum(settings.languages[language] / total * loss for language, loss in by_language.items())
    return {"heldout": mixture, **{f"heldout_{language}": loss for language, loss in by_language.items()}}


def _manifest(
    grid: str,
    name: str,
    settings: RunSettings,
    data: EncodedData,
    step: int,
    losses: dict[str, float],
    journal: Any,
) -> checkpoint.Manifest:
    from recipes.journal import final_train_loss

    losses = dict(losses)
    if journal:
        journal.sync()
        losses["train"] = final_train_loss(journal.path, step)
    tokens = step * settings.tokens_per_step
    return checkpoint.Manifest(
        grid=grid,
        run=name,
        size=settings.size,
        seed=settings.seed,
        step=step,
        final=step == settings.num_steps,
        tokens=tokens,
        parameters=settings.parameters,
        parameters_non_embedding=settings.parameters_non_embedding,
        flops_6nd=settings.flops_6nd(tokens),
        flops_exact=settings.flops_exact(tokens),
        precision=settings.precision,
        losses=losses,
        sequence_length=settings.sequence_length,
        vocab_size=settings.vocab_size,
        tokenizer_sha256=data.tokenizer_sha256,
        data_fingerprint=data.fingerprint,
        git_revision=git_revision(),
    )


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the run's directory; UserError if another process trains it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / ".lock", os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror}; choose another --out") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UserError(f"another process trains {directory} now; wait for it or stop it") from None
    try:
        yield
    finally:
        os.close(lock)


def _check_same_run(directory: Path, settings: RunSettings, data: EncodedData) -> None:
    """UserError if the directory holds checkpoints of a run with other settings or data."""
    path = directory / "run.yaml"
    if not path.is_file() or not checkpoint.list_steps(directory):
        return
    before = yaml.safe_load(path.read_text(encoding="utf-8"))
    now = {**dataclasses.asdict(settings), "data_fingerprint": data.fingerprint}
    then = {**before["settings"], "data_fingerprint": before["data"]["fingerprint"]}
    changed = [key for key in now if key not in LAYOUT_SETTINGS | OPERATION_SETTINGS and now[key] != then.get(key)]
    if changed:
        key = changed[0]
        raise UserError(
            f"{directory} was trained with {key}={then.get(key)}, now it is {now[key]}; "
            "give another --out, or delete the directory to start again"
        )


def _write_run_file(directory: Path, grid: str, name: str, settings: RunSettings, data: EncodedData) -> None:
    content = {
        "grid": grid,
        "run": name,
        "settings": dataclasses.asdict(settings),
        "data": {
            "directory": str(data.directory),
            "fingerprint": data.fingerprint,
            "tokenizer_sha256": data.tokenizer_sha256,
        },
        "processes": layout.world_size(),
        "git_revision": git_revision(),
        "versions": versions(),
        "command": sys.argv,
    }
    write_text(directory / "run.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _log_to(path: Path) -> None:
    """Put this package's messages in the run's log and on the standard output."""
    root = logging.getLogger("recipes")
    root.setLevel(logging.INFO)
    root.propagate = False
    logging.getLogger("megatron").setLevel(logging.ERROR)
    for handler in list(root.handlers):
        root.removeHandler(handler)
    for handler in (logging.FileHandler(path, encoding="utf-8"), logging.StreamHandler(sys.stdout)):
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        root.addHandler(handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--grid", required=True, help="a grid file, or the name of a shipped grid")
    parser.add_argument("--run", required=True, help="the run to train (python -m recipes.grid FILE lists them)")
    parser.add_argument("--out", required=True, type=Path, help="the grid's directory; the run's is OUT/RUN")
    parser.add_argument("--data", type=Path, help="data encoded by tokenizer.encode (default: OUT/data)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be trained, and stop")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings that replace the grid's")
    arguments = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    try:
        grid = load_grid(arguments.grid)
        settings = override(grid.run(arguments.run).settings, arguments.settings)
        data_directory = arguments.data or arguments.out / "data"
        if arguments.dry_run:
            print(describe(arguments.run, settings))
            if arguments.data or (data_directory / "manifest.json").is_file():
                encoded.check(data := encoded.read_data(data_directory), settings)
                print(mixture.describe(data, settings))
            return 0
        train(grid.name, arguments.run, settings, arguments.out / arguments.run, data_directory)
    except UserError:
        if os.environ.get("RANK", "0") != "0":
            # The first rank says it; once is enough.
            return cli.EXIT_USER_ERROR
        raise
    return 0


if __name__ == "__main__":
    cli.run(main)
