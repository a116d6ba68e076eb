"""Train one run of a grid: on one CPU or GPU, or on many under `recipes.launch` or torchrun.

The run's directory, OUT/RUN, gets `run.yaml`, `loss.csv`, `sources.csv`, TensorBoard events and
`checkpoints/step_<n>`. Run the same command again after an interruption and it goes on from the newest whole
state: a checkpoint, or one of those that it leaves in `resume/` every `save_every_minutes` until it is complete.
Settings of `recipes.settings.RunSettings` can be overridden at the end, as key=value.

    python -m recipes.pretrain --grid recipes/grids/smoke.yaml --run small-20480 --out runs/smoke
    python -m recipes.launch --nproc-per-node 2 -- --grid smoke --run small-20480 --out runs/smoke tensor_parallel=2
    torchrun --nproc-per-node 2 -m -- recipes.pretrain --grid smoke --run small-20480 --out runs/smoke tensor_parallel=2

SIGTERM and SIGUSR1 let the step end, save and leave with exit code 75: the same command goes on, as it does after 69
(another process of the run is gone, or still holds its directory). Ctrl-C ends like SIGTERM with 130, a second one at
once. A loss that is not finite, or above `max_loss_jump`, stops the run before
its weights are touched and says which batch it was; `skip_steps=[STEP]` passes over it. (torchrun needs the `--`,
or it takes `--run` for an option of its own, and has exit codes of its own; `recipes.launch` has the run's.)
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
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
from recipes.guard import Stopped, StopSignals, follow_launcher, lost_peer
from recipes.outcome import hand_over
from recipes.provenance import git_revision, versions
from recipes.settings import LAYOUT_SETTINGS, OPERATION_SETTINGS, RunSettings, format_count
from tokenizer import cli
from tokenizer.cli import StartAgain, UserError
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


def train(
    grid: str, name: str, settings: RunSettings, directory: Path, data_directory: Path, signals: StopSignals
) -> None:
    """Train the run `name` into `directory` until its last step, from its newest whole state if there is one.

    Raises UserError where the data, the layout or an earlier start of the run do not fit the settings, where a
    loss must not be trained on and where the disk is full; StartAgain where another process trains it or the run's
    others are not there; Stopped after a signal.
    """
    layout.data_parallel_size(settings)
    data = encoded.read_data(data_directory)
    encoded.check(data, settings)
    precision.check(settings)
    writes = layout.rank() == 0
    with _locked(directory) if writes else nullcontext():
        _check_same_run(directory, settings, data)
        if writes:
            _log_to(directory / "train.log")
        # Here, so that --help, --dry-run and every mistake answer without loading torch.
        from recipes import cpu

        cpu.install()
        from recipes import distributed

        try:
            with distributed.process_groups(settings):
                _train_from_latest(grid, name, settings, directory, data, signals)
        except OSError as error:
            if error.errno not in _DISK_ERRORS:
                raise
            raise UserError(
                f"cannot write below {directory}: {error.strerror}; the states saved before are whole: make room, then "
                "run the same command again"
            ) from None


_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def _train_from_latest(
    grid: str, name: str, settings: RunSettings, directory: Path, data: EncodedData, signals: StopSignals
) -> None:
    from recipes import apex, cpu, distributed
    from recipes.loop import Run, resume_point, train_from

    run = Run(grid, name, settings, directory, data)
    done, state = resume_point(run)
    if done >= settings.num_steps:
        logger.info("%s is complete: %s", name, state)
        if distributed.is_first_rank():
            # A run that was killed at its very end has not come to this.
            checkpoint.remove_old_states(directory, settings.keep_optimizer_states)
            checkpoint.remove_resume_states(directory)
        return
    if distributed.is_first_rank():
        logger.info("%s\n%s", describe(name, settings), mixture.describe(data, settings))
        if cpu.has_gpu():
            logger.info("%s", apex.find().message)
        _write_run_file(directory, grid, name, settings, data)
    train_from(run, done, state, signals)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the run's directory; StartAgain if another process trains it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / ".lock", os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror}; choose another --out") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        # On a cluster it is the run's own, on a node that was given up a moment ago.
        raise StartAgain(f"another process trains {directory} now; wait for it or stop it") from None
    try:
        yield
    finally:
        os.close(lock)


def _check_same_run(directory: Path, settings: RunSettings, data: EncodedData) -> None:
    """UserError if the directory holds states of a run with other settings or data."""
    path = directory / "run.yaml"
    if not path.is_file() or not checkpoint.is_started(directory):
        return
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
        # What an older version did not know yet was as it is by default.
        then = {**_defaults(), **before["settings"], "data_fingerprint": before["data"]["fingerprint"]}
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError):
        raise UserError(
            f"{path} is damaged, so that nobody can say what {directory} was trained with; give another --out, or "
            "delete the directory to start again"
        ) from None
    if (sharded := then["distributed_optimizer"]) != settings.distributed_optimizer:
        raise UserError(
            f"{directory} was trained with distributed_optimizer={sharded}, and Megatron-Core does not read the "
            f"optimizer's state from one form into the other; resume with distributed_optimizer={sharded}"
        )
    now = {**dataclasses.asdict(settings), "data_fingerprint": data.fingerprint}
    changed = [key for key in now if key not in LAYOUT_SETTINGS | OPERATION_SETTINGS and now[key] != then.get(key)]
    if changed:
        key = changed[0]
        raise UserError(
            f"{directory} was trained with {key}={then.get(key)}, now it is {now[key]}; "
            "give another --out, or delete the directory to start again"
        )


def _defaults() -> dict[str, Any]:
    values = {}
    for field in dataclasses.fields(RunSettings):
        if field.default is not dataclasses.MISSING:
            values[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            values[field.name] = field.default_factory()
    return values


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
        # A full disk is told by what must be written, not by a traceback for each line of the log.
        handler.handleError = lambda record: None
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
    with StopSignals() as signals:
        try:
            follow_launcher()
            _run(arguments, signals)
        except Stopped as stop:
            logger.info("%s", stop)
            hand_over(stop.exit_code)
            return stop.exit_code
        except KeyboardInterrupt:
            hand_over(cli.EXIT_INTERRUPTED)
            raise
        except UserError as error:
            return _tell(error, cli.EXIT_USER_ERROR)
        except StartAgain as error:
            return _tell(error, error.exit_code)
        except Exception as error:
            if not lost_peer(error):
                raise
            reason = str(error).strip().splitlines()[0]
            lost = StartAgain(
                f"another process of the run is gone ({reason}); the states saved before are whole: run the same "
                "command again to go on from the newest"
            )
            return _tell(lost, lost.exit_code)
    hand_over(0)
    return 0


def _run(arguments: argparse.Namespace, signals: StopSignals) -> None:
    grid = load_grid(arguments.grid)
    settings = override(grid.run(arguments.run).settings, arguments.settings)
    data_directory = arguments.data or arguments.out / "data"
    if arguments.dry_run:
        print(describe(arguments.run, settings))
        if arguments.data or (data_directory / "manifest.json").is_file():
            encoded.check(data := encoded.read_data(data_directory), settings)
            print(mixture.describe(data, settings))
        return
    train(grid.name, arguments.run, settings, arguments.out / arguments.run, data_directory, signals)


def _tell(error: UserError | StartAgain, exit_code: int) -> int:
    """`exit_code` for `error`, which one process says: the launcher, or else the first rank by raising it."""
    if not hand_over(exit_code, str(error)) and layout.rank() == 0:
        raise error
    return exit_code


if __name__ == "__main__":
    cli.run(main)
