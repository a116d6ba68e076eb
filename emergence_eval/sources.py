"""Checkpoints of others, opened: NeMo's without our manifest, Megatron-LM's and Megatron-Bridge's.

What such a directory says of itself is gathered, what it does not say is named in the result file. The weights
stay where they are; nothing here loads torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from emergence_eval import description, pickles, torch_dist
from emergence_eval.description import ModelDescription
from emergence_eval.found_tokenizer import FoundTokenizer, find_tokenizer
from emergence_eval.results import CheckpointIdentity
from recipes.checkpoint import CONTEXT, KEY_PREFIX, MANIFEST, WEIGHTS, Manifest, read_manifest
from recipes.settings import format_count
from tokenizer.cli import UserError
from tokenizer.files import sha256_file

NEMO_PREFIX = "module."
"""NeMo 2.0 names the tensors of a checkpoint after its wrapper of the model; Megatron-LM does not."""

_OTHER_TENSORS = re.compile(r"(chained_\d+\.)?optimizer\b|rng_state|rerun_state|opt_param_scheduler|train_state")
_EDGE_BYTES = 1 << 20


@dataclass(frozen=True)
class Source:
    """A checkpoint that can be converted."""

    directory: Path
    weights: Path
    """A Megatron distributed checkpoint (torch_dist)."""
    prefix: str
    """Of the keys of the model's tensors."""
    model: ModelDescription
    tokenizer: FoundTokenizer


def model_shapes(weights: Path, prefix: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the model's tensors, without those of the optimizer, by their keys without `prefix`."""
    shapes = torch_dist.read_shapes(weights)
    return {key.removeprefix(prefix): it for key, it in shapes.items() if is_model_tensor(key)}


def is_model_tensor(key: str) -> bool:
    """Whether a tensor of a checkpoint is the model's, not the optimizer's or the random numbers' state."""
    return not _OTHER_TENSORS.match(key)


def check_torch_dist(directory: Path) -> None:
    """UserError, saying what it is, unless `directory` is a distributed checkpoint in the format torch_dist."""
    if any(directory.glob("mp_rank_*")):
        raise UserError(
            f"{directory} is in Megatron-LM's old format torch (mp_rank_*); save it again with "
            "--ckpt-convert-format torch_dist --ckpt-convert-save DIR"
        )
    path = directory / "metadata.json"
    if not path.is_file():
        kind = "of torch_dcp or fsdp_dtensor" if (directory / pickles.METADATA).exists() else "no checkpoint"
        raise UserError(f"{directory} is {kind} (no metadata.json); only torch_dist can be read (--ckpt-format)")
    try:
        backend = json.loads(path.read_text(encoding="utf-8"))["sharded_backend"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); use another checkpoint") from None
    if backend != "torch_dist":
        raise UserError(f"{directory} is in the format {backend}; only torch_dist can be read (--ckpt-format)")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; is this a checkpoint's directory?") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML ({' '.join(str(error).split())}); the checkpoint is damaged") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings; the checkpoint is damaged")
    return content


def read_nemo_description(checkpoint: Path) -> ModelDescription:
    """The shape that `context/model.yaml` of a NeMo 2.0 checkpoint gives."""
    path = checkpoint / "context" / "model.yaml"
    return description.from_config(_read_yaml(path).get("config"), path)


def open_ours(checkpoint: Path) -> tuple[Source, Manifest]:
    """A checkpoint of this repository. Raises UserError for what is none, or has files of other sizes than its
    manifest says; checksums are compared when training resumes, not here."""
    manifest = read_manifest(checkpoint)
    for entry in manifest.files:
        path = checkpoint / entry.path
        if Path(entry.path).is_absolute() or ".." in Path(entry.path).parts:
            raise UserError(f"{checkpoint / MANIFEST} names {entry.path!r}, which is outside the checkpoint")
        if not path.is_file():
            raise UserError(f"{path} is missing; the checkpoint is damaged, use another one")
        if (size := path.stat().st_size) != entry.bytes:
            raise UserError(f"{path} has {size} bytes instead of {entry.bytes}; the checkpoint is damaged, use another")
    model = read_nemo_description(checkpoint)
    tokenizer = find_tokenizer(checkpoint / CONTEXT / "tokenizer", [], checkpoint)
    return Source(checkpoint, checkpoint / WEIGHTS, KEY_PREFIX, model, tokenizer), manifest


def open_nemo(checkpoint: Path, tokenizer: Path | None) -> tuple[Source, CheckpointIdentity]:
    """A NeMo 2.0 checkpoint without our manifest, or a Megatron-Bridge one. Raises UserError for what is none or
    cannot be converted; NeMo 1's archives are told by their name and never opened."""
    if checkpoint.suffix == ".nemo" or (checkpoint / "model_config.yaml").is_file():
        raise UserError(
            f"{checkpoint} is an archive of NeMo 1; it is not opened here. Convert it with NeMo 2's "
            "scripts/checkpoint_converters/convert_nemo1_to_nemo2.py --input_path FILE.nemo --output_path DIR "
            "--model_id MODEL, then give DIR"
        )
    if _is_bridge(checkpoint):
        return open_megatron(checkpoint, tokenizer)
    if not (checkpoint / "context").is_dir() or not (checkpoint / "weights").is_dir():
        raise UserError(
            f"{checkpoint} is no checkpoint (no manifest.json, nor NeMo's context/ and weights/); "
            "give a directory such as RUN/checkpoints/step_100"
        )
    model = read_nemo_description(checkpoint)
    weights = checkpoint / "weights"
    check_torch_dist(weights)
    common = pickles.read_common(weights)
    step = common.get("global_step")
    if not isinstance(step, int):
        step = _step_of_name(checkpoint)
    samples = next((it["consumed_samples"] for it in common.values() if _has(it, "consumed_samples")), None)
    context = checkpoint / "context"
    places = [context / "tokenizer", context / "nemo_tokenizer", context]
    source = Source(checkpoint, weights, NEMO_PREFIX, model, find_tokenizer(tokenizer, places, checkpoint))
    run = checkpoint.resolve().parent
    run = run.parent if run.name == "checkpoints" else run
    return source, _identity(source, "nemo", run, step, samples, seed=None, last=None)


def _is_bridge(directory: Path) -> bool:
    """Whether this is a Megatron-Bridge checkpoint, iter_<n>/ with run_config.yaml, or the directory above some."""
    return (directory / "run_config.yaml").is_file() or any(directory.glob("iter_*/run_config.yaml"))


def open_megatron(directory: Path, tokenizer: Path | None) -> tuple[Source, CheckpointIdentity]:
    """A Megatron-LM or Megatron-Bridge checkpoint: iter_<n>/, or the directory above, whose latest is taken.

    Raises UserError for what is none, is in another format, or cannot be converted.
    """
    checkpoint = _iteration_directory(directory)
    check_torch_dist(checkpoint)
    common = pickles.read_common(checkpoint)
    configuration = checkpoint / "run_config.yaml"
    seed = last = samples = None
    if configuration.is_file():
        settings = _read_yaml(configuration)
        model = description.from_config(settings.get("model"), configuration)
        train = settings.get("train") or {}
        step = _step_of_name(checkpoint)
        last, size = train.get("train_iters"), train.get("global_batch_size")
        if size and not train.get("rampup_batch_size"):
            samples = step * size
        seed = (settings.get("rng") or {}).get("seed")
    else:
        arguments = common.get("args")
        if not isinstance(arguments, Namespace):
            raise UserError(
                f"{checkpoint} does not say what model it is (no args in common.pt, no run_config.yaml); "
                "only checkpoints of Megatron-LM and Megatron-Bridge can be read"
            )
        model = description.from_arguments(arguments, checkpoint / pickles.COMMON)
        step = common.get("iteration", _step_of_name(checkpoint))
        samples, last = getattr(arguments, "consumed_train_samples", None), getattr(arguments, "train_iters", None)
        seed = getattr(arguments, "seed", None)
    found = find_tokenizer(tokenizer, [checkpoint / "tokenizer"], checkpoint)
    source = Source(checkpoint, checkpoint, "", model, found)
    return source, _identity(source, "megatron", checkpoint.resolve().parent, step, samples, seed=seed, last=last)


def _iteration_directory(directory: Path) -> Path:
    """`directory`, or the iteration in it that its tracker names."""
    tracker = directory / "latest_checkpointed_iteration.txt"
    if not tracker.is_file():
        if not directory.is_dir() or not any((directory / name).exists() for name in (pickles.COMMON, "metadata.json")):
            if directory.is_dir() and any(directory.glob("mp_rank_*")):
                return directory
            raise UserError(
                f"{directory} is no Megatron checkpoint (no latest_checkpointed_iteration.txt, no common.pt); "
                "give a directory such as RUN/iter_0000100"
            )
        return directory
    text = tracker.read_text(encoding="utf-8").strip()
    name = "release" if text == "release" else f"iter_{int(text):07d}" if text.isdigit() else ""
    if not name or not (directory / name).is_dir():
        raise UserError(f"{tracker} says {text[:40]!r}, which is not there; give the iteration's directory itself")
    return directory / name


def _step_of_name(checkpoint: Path) -> int:
    """The last whole number in a directory's name: step_100, iter_0000100, model--step=99-last."""
    numbers = re.findall(r"\d+", checkpoint.resolve().name)
    if not numbers:
        raise UserError(f"{checkpoint} does not say its step; give the directory a name such as step_100")
    return int(numbers[-1])


def _has(value: Any, key: str) -> bool:
    return isinstance(value, dict) and isinstance(value.get(key), int)


def _identity(
    source: Source, origin: str, run: Path, step: int, samples: int | None, *, seed: int | None, last: int | None
) -> CheckpointIdentity:
    model = source.model
    shapes = model_shapes(source.weights, source.prefix)
    tokens = samples * model.seq_length if isinstance(samples, int) and not isinstance(samples, bool) else None
    vocab_size = source.tokenizer.vocab_size
    _check_vocabulary(source, shapes)
    inner = sum(_count(shape) for key, shape in shapes.items() if key.startswith("decoder."))
    ends = 1 if model.tied else 2
    norms = (2 * model.num_layers + 1) * model.hidden_size
    norms += 2 * model.num_layers * model.kv_channels if model.qk_layernorm else 0
    query = model.num_attention_heads * model.kv_channels
    attention = model.num_layers * 2 * query * (model.seq_length + 1) / 2
    a_token = 6.0 * (inner - norms + vocab_size * model.hidden_size + attention)
    values = {
        "grid": run.parent.name,
        "run": run.name,
        "size": format_count(inner),
        "seed": seed if isinstance(seed, int) else None,
        "step": step,
        "final": None if not isinstance(last, int) else step >= last,
        "tokens": tokens,
        "flops_6nd": None if tokens is None else 6.0 * inner * tokens,
        "flops_exact": None if tokens is None else a_token * tokens,
        "precision": {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[model.dtype],
    }
    unknown = [name for name, value in values.items() if value is None]
    return CheckpointIdentity(
        **values,
        parameters=inner + ends * vocab_size * model.hidden_size,
        parameters_non_embedding=inner,
        losses={},
        sequence_length=model.seq_length,
        vocab_size=vocab_size,
        tokenizer_sha256=source.tokenizer.sha256,
        data_fingerprint="",
        git_revision="",
        manifest_sha256=fingerprint(source),
        origin=origin,
        unknown=[*unknown, "losses", "data_fingerprint", "git_revision"],
    )


def with_losses(identity: CheckpointIdentity, losses: dict[str, float]) -> CheckpointIdentity:
    """The identity with losses from elsewhere; results for others are not taken for results of this one."""
    unknown = [name for name in identity.unknown if name != "losses" or "heldout" not in losses]
    digest = hashlib.sha256(f"{identity.manifest_sha256}{sorted(losses.items())}".encode()).hexdigest()
    return replace(identity, losses=losses, unknown=unknown, manifest_sha256=digest)


def _count(shape: Iterable[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _check_vocabulary(source: Source, shapes: dict[str, tuple[int, ...]]) -> None:
    """UserError unless the tokenizer can be the one that the model was trained with."""
    key = "embedding.word_embeddings.weight"
    if key not in shapes:
        raise UserError(f"{source.weights} holds no {source.prefix}{key}; it is no GPT model's whole checkpoint")
    rows, size = shapes[key][0], source.tokenizer.vocab_size
    multiple = source.model.vocab_multiple
    if not size <= rows < size + multiple:
        raise UserError(
            f"{source.weights} has an embedding of {rows} rows, the tokenizer {source.tokenizer.path} has {size} "
            f"pieces, padded {-(-size // multiple) * multiple}; give the model's own tokenizer with --tokenizer"
        )


def fingerprint(source: Source) -> str:
    """What tells one checkpoint from another: SHA-256 of the manifest if it is ours, else of the files' edges, what
    the model is and its tokenizer."""
    if (source.directory / MANIFEST).is_file():
        return sha256_file(source.directory / MANIFEST)
    model = json.dumps(source.model.as_dict(), sort_keys=True)
    return fingerprint_files(source.directory, model, source.tokenizer.sha256)


def fingerprint_files(directory: Path, *more: str) -> str:
    """SHA-256 of what tells one directory from another without reading all of it: the names and sizes of its files,
    the first and the last megabyte of each, and `more`."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.relative_to(directory).as_posix()} {size}\n".encode())
        with path.open("rb") as stream:
            digest.update(stream.read(_EDGE_BYTES))
            if size > 2 * _EDGE_BYTES:
                stream.seek(size - _EDGE_BYTES)
            digest.update(stream.read())
    for text in more:
        digest.update(text.encode())
    return digest.hexdigest()
