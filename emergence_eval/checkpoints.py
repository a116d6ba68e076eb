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
    """Of a checkpoint without our manifest that is to be converted."""
    is_hf: bool = False
    """Whether the directory is a Hugging Face model as it is."""


def open_checkpoints(
    nemo: Sequence[Path],
    out: Path | None,
    megatron: Sequence[Path] = (),
    tokenizer: Path | None = None,
    loss: str | None = None,
    hf: Sequence[str] = (),
) -> list[Checkpoint]:
    """Read what the checkpoints say of themselves: ours and NeMo's, Megatron's, and Hugging Face models.

    `tokenizer` and `loss` (a number, or a CSV file with the columns step and heldout_loss) are for those that do
    not tell. Raises UserError for what is no checkpoint, and where two would share a file.
    """
    number = len(nemo) + len(megatron) + len(hf)
    if not number:
        raise UserError("no checkpoint is given; give --nemo-ckpt, --megatron-ckpt, --hf-ckpt or --watch")
    if out and out.suffix == ".json" and number > 1:
        raise UserError(f"--out {out} names one file for {number} checkpoints; give a directory")
    if hf and tokenizer is not None:
        raise UserError(f"--hf-ckpt {hf[0]} has a tokenizer of its own; leave --tokenizer out")
    opened = [_open(directory, False, tokenizer, loss) for directory in nemo]
    opened += [_open(directory, True, tokenizer, loss) for directory in megatron]
    opened += [_open_hf(name, loss) for name in hf]
    others = [identity for _, identity, _ in opened if identity.origin != "recipes"]
    if loss is not None and _is_number(loss) and len(others) > 1:
        raise UserError(f"--loss {loss} is one loss for {len(others)} checkpoints; give a CSV file: step,heldout_loss")
    checkpoints: dict[Path, Checkpoint] = {}
    for directory, identity, source in opened:
        is_hf = identity.origin == "huggingface"
        output = _hf_output(directory, identity.run, out) if is_hf else _output(directory, identity.run, out)
        if output in checkpoints:
            raise UserError(f"{checkpoints[output].directory} and {directory} would both be written to {output}")
        checkpoints[output] = Checkpoint(directory, identity, output, source, is_hf)
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
    return source.directory, _with_loss(identity, loss), source


def _open_hf(name: str, loss: str | None) -> tuple[Path, CheckpointIdentity, None]:
    from emergence_eval import hf_checkpoint

    directory, identity = hf_checkpoint.open_hf(name)
    return directory, _with_loss(identity, loss), None


def _with_loss(identity: CheckpointIdentity, loss: str | None) -> CheckpointIdentity:
    if loss is None:
        return identity
    from emergence_eval import sources

    losses = {"heldout": float(loss)} if _is_number(loss) else _losses_of(Path(loss), identity.step)
    return sources.with_losses(identity, losses)


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


def _hf_output(directory: Path, run: str, out: Path | None) -> Path:
    """A model's result: in eval/ beside its directory; of one from the hub in eval/ here, not in the hub's cache."""
    if out is None:
        out = (directory.resolve().parent if directory.resolve().name == run else Path.cwd()) / "eval"
    return out if out.suffix == ".json" else out / f"{run}.json"


def _output(directory: Path, run: str, out: Path | None) -> Path:
    directory = directory.resolve()
    if out is None:
        run_directory = directory.parent.parent if directory.parent.name == "checkpoints" else directory.parent
        return run_directory / "eval" / f"{directory.name}.json"
    return out if out.suffix == ".json" else out / f"{run}-{directory.name}.json"
