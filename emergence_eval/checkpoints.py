"""Checkpoints to evaluate: what each says of itself and where its result goes, before anything heavy is loaded."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emergence_eval.results import CheckpointIdentity
from recipes.checkpoint import MANIFEST, read_manifest
from tokenizer.cli import UserError
from tokenizer.files import sha256_file

if TYPE_CHECKING:
    from emergence_eval.sources import Source


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint to evaluate and where its result goes."""

    directory: Path
    identity: CheckpointIdentity
    output: Path
    source: Source | None = None
    """Of a checkpoint without our manifest."""


def open_checkpoints(
    nemo: Sequence[Path],
    out: Path | None,
    megatron: Sequence[Path] = (),
    tokenizer: Path | None = None,
    loss: str | None = None,
) -> list[Checkpoint]:
    """Read what the checkpoints say of themselves: ours and NeMo's, and Megatron's.

    `tokenizer` and `loss` (a number, or a CSV file with the columns step and heldout_loss) are for those that do
    not tell. Raises UserError for what is no checkpoint, and where two would share a file.
    """
    if not (nemo or megatron):
        raise UserError("no checkpoint is given; give --nemo-ckpt or --megatron-ckpt")
    if out and out.suffix == ".json" and len(nemo) + len(megatron) > 1:
        raise UserError(f"--out {out} names one file for {len(nemo) + len(megatron)} checkpoints; give a directory")
    opened = [_open(directory, False, tokenizer, loss) for directory in nemo]
    opened += [_open(directory, True, tokenizer, loss) for directory in megatron]
    others = [identity for _, identity, source in opened if source]
    if loss is not None and _is_number(loss) and len(others) > 1:
        raise UserError(f"--loss {loss} is one loss for {len(others)} checkpoints; give a CSV file: step,heldout_loss")
    checkpoints: dict[Path, Checkpoint] = {}
    for directory, identity, source in opened:
        output = _output(directory.resolve(), identity.run, out)
        if output in checkpoints:
            raise UserError(f"{checkpoints[output].directory} and {directory} would both be written to {output}")
        checkpoints[output] = Checkpoint(directory, identity, output, source)
    return list(checkpoints.values())


def _open(
    directory: Path, megatron: bool, tokenizer: Path | None, loss: str | None
) -> tuple[Path, CheckpointIdentity, Source | None]:
    """Where a checkpoint lies, what it is, and how to convert it if it has no manifest."""
    if not megatron and (directory / MANIFEST).is_file():
        for option, value in (("--tokenizer", tokenizer), ("--loss", loss)):
            if value is not None:
                raise UserError(f"{directory} carries its own, in its manifest; leave {option} out")
        manifest = read_manifest(directory)
        values = {
            f.name: getattr(manifest, f.name)
            for f in dataclasses.fields(CheckpointIdentity)
            if f.name in vars(manifest)
        }
        return directory, CheckpointIdentity(**values, manifest_sha256=sha256_file(directory / MANIFEST)), None
    from emergence_eval import sources

    source, identity = (sources.open_megatron if megatron else sources.open_nemo)(directory, tokenizer)
    if loss is not None:
        losses = {"heldout": float(loss)} if _is_number(loss) else _losses_of(Path(loss), identity.step)
        identity = sources.with_losses(identity, losses)
    return source.directory, identity, source


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _losses_of(path: Path, step: int) -> dict[str, float]:
    """The losses of a step in a CSV file such as a run's loss.csv."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get("step") == str(step) and row.get("heldout_loss")]
        if not rows:
            raise UserError(
                f"--loss {path} has no heldout_loss at step {step}; its columns are to be step,heldout_loss"
            )
        found = {key: value for key, value in rows[-1].items() if key and key.startswith("heldout_loss") and value}
        losses = {key.replace("heldout_loss", "heldout"): float(value) for key, value in found.items()}
        return losses | ({"train": float(rows[-1]["train_loss"])} if rows[-1].get("train_loss") else {})
    except OSError as error:
        raise UserError(f"--loss {path}: {error.strerror}; give a number or a CSV file: step,heldout_loss") from None
    except (ValueError, csv.Error) as error:
        raise UserError(f"--loss {path}: {error}; give a number or a CSV file: step,heldout_loss") from None


def _output(directory: Path, run: str, out: Path | None) -> Path:
    if out is None:
        run_directory = directory.parent.parent if directory.parent.name == "checkpoints" else directory.parent
        return run_directory / "eval" / f"{directory.name}.json"
    return out if out.suffix == ".json" else out / f"{run}-{directory.name}.json"
