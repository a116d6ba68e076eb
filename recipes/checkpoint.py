"""Checkpoints: written aside and renamed when whole, found, verified and loaded.

A checkpoint is a NeMo 2.0 directory: `weights/` (a Megatron distributed checkpoint of the model, which any
tensor- and pipeline-parallel layout can load) and `context/` (`model.yaml`, the tokenizer); beside them
`optimizer/` (a distributed checkpoint of what resuming needs more) and `manifest.json`. What has no valid
manifest is not a checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from recipes.precision import is_bf16
from recipes.settings import RunSettings
from tokenizer.cli import UserError
from tokenizer.files import publish_directory, sha256_file, write_json, write_text

if TYPE_CHECKING:
    from recipes.trainer import Trainer

logger = logging.getLogger(__name__)

SCHEMA = 1
"""Version of the manifest's layout."""

WEIGHTS, OPTIMIZER, CONTEXT, MANIFEST = "weights", "optimizer", "context", "manifest.json"

KEY_PREFIX = "module."
"""NeMo 2.0 names the tensors of a checkpoint after its wrapper of the model."""

_STEP = re.compile(r"step_(\d+)")
_OPTIMIZER_METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is and which files it is made of. Losses are nats per token."""

    grid: str
    run: str
    size: str
    seed: int
    step: int
    final: bool
    tokens: int
    parameters: int
    parameters_non_embedding: int
    flops_6nd: float
    flops_exact: float
    precision: str
    losses: dict[str, float]
    """`heldout` (weighted over the mixture), `heldout_<language>`, and `train`: the mean training loss over the
    last 1 % of the tokens."""
    sequence_length: int
    vocab_size: int
    tokenizer_sha256: str
    data_fingerprint: str
    git_revision: str
    files: tuple[FileEntry, ...] = ()
    schema: int = SCHEMA


def step_directory(run_directory: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return run_directory / "checkpoints" / f"step_{step}"


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a checkpoint. Raises UserError if there is none or it cannot be read."""
    path = directory / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{directory} is no checkpoint (no {MANIFEST}); give a directory such as RUN/checkpoints/step_100"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("schema") != SCHEMA:
            raise UserError(f"{path} has schema {content.get('schema')!r}; this version reads {SCHEMA}")
        files = tuple(FileEntry(**entry) for entry in content.pop("files"))
        return Manifest(**content, files=files)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); use another checkpoint of the run") from None


def verify(directory: Path) -> Manifest:
    """Read the manifest and compare every file's size and checksum with it. Raises UserError at a difference."""
    manifest = read_manifest(directory)
    for entry in manifest.files:
        path = directory / entry.path
        if not path.is_file():
            raise UserError(f"{path} is missing; the checkpoint is damaged, use another one")
        if (size := path.stat().st_size) != entry.bytes:
            raise UserError(f"{path} has {size} bytes instead of {entry.bytes}; the checkpoint is damaged, use another")
        if sha256_file(path) != entry.sha256:
            raise UserError(f"{path} does not match its checksum; the checkpoint is damaged, use another one")
    return manifest


def list_steps(run_directory: Path) -> list[int]:
    """Steps of the run that have a directory with a manifest, ascending."""
    found = (run_directory / "checkpoints").glob(f"step_*/{MANIFEST}")
    return sorted(int(match[1]) for path in found if (match := _STEP.fullmatch(path.parent.name)))


def latest(run_directory: Path) -> Manifest | None:
    """The newest whole checkpoint of a run; damaged newer ones are set aside as `step_<n>.damaged`."""
    for step in reversed(list_steps(run_directory)):
        directory = step_directory(run_directory, step)
        try:
            return verify(directory)
        except UserError as error:
            aside = directory.with_name(f"{directory.name}.damaged")
            logger.warning("%s; set aside as %s", error, aside.name)
            shutil.rmtree(aside, ignore_errors=True)
            directory.rename(aside)
    return None


def model_state(modules: Sequence[Any]) -> dict[str, Any]:
    """The sharded state of this rank's part of the model, under NeMo's names: ``model<i>`` for its i-th chunk."""
    return {f"model{index}": module.sharded_state_dict(prefix=KEY_PREFIX) for index, module in enumerate(modules)}


def save(run_directory: Path, trainer: Trainer, manifest: Manifest, tokenizer: Path) -> None:
    """Write the checkpoint of `manifest.step` on all ranks; it appears under its name only when whole."""
    import torch
    from megatron.core import dist_checkpointing

    directory = step_directory(run_directory, manifest.step)
    aside = directory.with_name(f".{directory.name}.saving")
    first = torch.distributed.get_rank() == 0
    if first:
        shutil.rmtree(aside, ignore_errors=True)
        for name in (WEIGHTS, OPTIMIZER):
            (aside / name).mkdir(parents=True)
    torch.distributed.barrier()
    model = model_state(trainer.modules)
    dist_checkpointing.save(model, str(aside / WEIGHTS))
    dist_checkpointing.save(_training_state(trainer, loading=False), str(aside / OPTIMIZER))
    torch.distributed.barrier()
    if first:
        _write_context(aside / CONTEXT, trainer.settings, tokenizer)
        files = tuple(
            FileEntry(path.relative_to(aside).as_posix(), path.stat().st_size, sha256_file(path))
            for path in sorted(aside.rglob("*"))
            if path.is_file()
        )
        write_json(aside / MANIFEST, dataclasses.asdict(dataclasses.replace(manifest, files=files)))
        publish_directory(aside, directory)
    torch.distributed.barrier()


def load(run_directory: Path, trainer: Trainer, step: int) -> None:
    """Give the trainer, on whatever layout, the state that it had after `step`."""
    from megatron.core import dist_checkpointing

    directory = step_directory(run_directory, step)
    weights = dist_checkpointing.load(model_state(trainer.modules), str(directory / WEIGHTS))
    for index, module in enumerate(trainer.modules):
        chunk = weights[f"model{index}"]
        module.load_state_dict({key.removeprefix(KEY_PREFIX): value for key, value in chunk.items()})
    state = dist_checkpointing.load(_training_state(trainer, loading=True), str(directory / OPTIMIZER))
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.scheduler.load_state_dict(state["scheduler"])


def _training_state(trainer: Trainer, *, loading: bool) -> dict[str, Any]:
    """What resuming needs beside the weights. There is no dropout, so no random state is used in training."""
    model = model_state(trainer.modules)
    return {
        "optimizer": trainer.optimizer.sharded_state_dict(model, is_loading=loading, metadata=_OPTIMIZER_METADATA),
        "scheduler": trainer.scheduler.state_dict(),
    }


def _write_context(context: Path, settings: RunSettings, tokenizer: Path) -> None:
    shutil.copytree(tokenizer, context / "tokenizer")
    write_text(context / "model.yaml", yaml.safe_dump(model_description(settings), sort_keys=False))


def model_description(settings: RunSettings) -> dict[str, Any]:
    """The model as NeMo 2.0's `context/model.yaml` describes it."""
    return {
        "_target_": "nemo.collections.llm.gpt.model.base.GPTModel",
        "config": {
            "_target_": "nemo.collections.llm.gpt.model.base.GPTConfig",
            "num_layers": settings.num_layers,
            "hidden_size": settings.hidden_size,
            "ffn_hidden_size": settings.ffn_hidden_size,
            "num_attention_heads": settings.num_attention_heads,
            "num_query_groups": settings.num_query_groups,
            "kv_channels": settings.kv_channels,
            "normalization": "RMSNorm",
            "layernorm_epsilon": settings.layernorm_epsilon,
            "gated_linear_unit": True,
            "activation_func": {"_target_": "torch.nn.functional.silu", "_call_": False},
            "add_bias_linear": False,
            "position_embedding_type": "rope",
            "rotary_percent": settings.rotary_percent,
            "rotary_base": settings.rotary_base,
            "rotary_interleaved": False,
            "share_embeddings_and_output_weights": False,
            "seq_length": settings.sequence_length,
            "make_vocab_size_divisible_by": settings.vocab_multiple,
            "vocab_size": settings.padded_vocab_size,
            "bf16": is_bf16(settings),
            "params_dtype": {
                "_target_": "torch.bfloat16" if is_bf16(settings) else "torch.float32",
                "_call_": False,
            },
        },
        "tokenizer": {
            "_target_": "nemo.collections.common.tokenizers.sentencepiece_tokenizer.SentencePieceTokenizer",
            "model_path": "tokenizer/tokenizer.model",
        },
    }
