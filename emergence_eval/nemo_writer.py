"""A Hugging Face Glm or Qwen3 model as a NeMo 2.0 directory, `weights/` + `context/`, a tensor of a layer at a time.

torch.distributed.checkpoint writes the weights; its planner is asked for each part when it is to be written, and only
then the part is read and put together. What our own conversion left beside a model (`nemo/`: the tokenizer as it was,
the rows beyond the vocabulary) goes back, so that a checkpoint there and back again has every bit it had.
"""

from __future__ import annotations

import io
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.distributed.checkpoint import FileSystemWriter, save
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem, WriteItemType

from emergence_eval import hf_files
from emergence_eval import hf_layout as layout
from emergence_eval.description import ModelDescription, check_rotary
from emergence_eval.hf_files import HfTensors, Progress, read_header, read_object
from recipes.checkpoint import KEY_PREFIX
from tokenizer.cli import UserError
from tokenizer.files import write_json, write_text

SIDE = "nemo"
"""Folder of a converted model with what Hugging Face's form has no place for."""

PADDING = "padding.safetensors"

SYNC_BYTES = 1 << 28
"""Bytes after which those before are put on the disk."""

_MODULES = ("self_attention.linear_proj", "self_attention.linear_qkv", "mlp.linear_fc1", "mlp.linear_fc2")
"""Layers for which Megatron-Core keeps an extra state, empty but in FP8."""


@dataclass(frozen=True)
class HfModel:
    """A Glm or Qwen3 model's directory, opened."""

    tensors: HfTensors
    model: ModelDescription
    vocab_size: int
    padding: dict[str, torch.Tensor]
    """Rows beyond the vocabulary, by Megatron's keys."""


def read_config(directory: Path, vocab_multiple: int) -> tuple[ModelDescription, int]:
    """The model that config.json describes, and its vocabulary. Raises UserError naming what is not
    Glm's or Qwen3's."""
    path = directory / "config.json"
    config = read_object(path)
    if (kind := config.get("model_type")) not in ("glm", "qwen3"):
        raise UserError(f"{path}: model_type is {kind!r:.80}; only 'glm' and 'qwen3' can be converted to NeMo here")
    for key, wanted in (("hidden_act", "silu"), ("attention_bias", False), ("use_sliding_window", False)):
        if (value := config.get(key, wanted)) != wanted:
            raise UserError(f"{path}: {key} is {value!r:.80}; only {wanted!r} can be converted to NeMo here")
    # Transformers 4 called it rope_scaling, and its type type.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or config
    if isinstance(rope, dict) and (value := rope.get("rope_type", rope.get("type", "default"))) != "default":
        raise UserError(f"{path}: rope_type is {value!r:.80}; only 'default' can be converted to NeMo here")
    try:
        if spare := set(config.get("layer_types") or ()) - {"full_attention"}:
            raise UserError(f"{path}: layer_types has {spare!r:.80}; only 'full_attention' can be converted here")
        normed = kind == "qwen3"
        turned = config.get("partial_rotary_factor", 1.0 if normed else 0.5)
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
        model = ModelDescription(
            num_layers=int(config["num_hidden_layers"]),
            hidden_size=hidden,
            ffn_hidden_size=int(config["intermediate_size"]),
            num_attention_heads=heads,
            num_query_groups=int(config["num_key_value_heads"]),
            kv_channels=int(config.get("head_dim") or hidden // heads),
            layernorm_epsilon=float(config["rms_norm_eps"]),
            rotary_percent=float(rope.get("partial_rotary_factor", turned)),
            rotary_base=_whole(float(rope.get("rope_theta", config.get("rope_theta", 10000.0)))),
            seq_length=int(config["max_position_embeddings"]),
            dtype=dtype,
            tied=bool(config.get("tie_word_embeddings", False)),
            vocab_multiple=vocab_multiple,
            qk_layernorm=normed,
        )
        vocab_size = int(config["vocab_size"])
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"{path} does not describe a {kind.capitalize()} model: {error!r}") from None
    check_rotary(model, path)
    sizes = (model.num_layers, hidden, model.ffn_hidden_size, heads, model.num_query_groups, model.kv_channels)
    if min(*sizes, vocab_size) < 1 or heads % model.num_query_groups:
        raise UserError(f"{path} does not describe a {kind.capitalize()} model: sizes {sizes}, vocabulary {vocab_size}")
    return model, vocab_size


def _whole(value: float) -> int | float:
    return int(value) if value.is_integer() else value


def open_model(directory: Path) -> HfModel:
    """A Glm or Qwen3 model's directory. Raises UserError for another model, or weights that are not its own."""
    record = read_object(directory / "conversion.json") if (directory / "conversion.json").is_file() else {}
    multiple = record.get("vocab_multiple")
    multiple = multiple if type(multiple) is int and 1 <= multiple <= 1 << 20 else 128
    model, vocab_size = read_config(directory, multiple)
    tensors = HfTensors(directory)
    wanted = layout.hf_shapes(model, vocab_size)
    for name, shape in wanted.items():
        if name not in tensors.shapes:
            raise UserError(f"{directory} has no {name} among its safetensors; it is not whole")
        if tensors.shapes[name] != shape:
            raise UserError(
                f"{directory}: {name} is of {list(tensors.shapes[name])} where config.json says {list(shape)}"
            )
    if spare := sorted(tensors.shapes.keys() - wanted.keys() - ({layout.HF_OUTPUT} if model.tied else set())):
        raise UserError(f"{directory} has {', '.join(spare[:3])}, which a NeMo model of this kind has not")
    return HfModel(tensors, model, vocab_size, _padding(directory, model, vocab_size, tensors))


def _padding(directory: Path, model: ModelDescription, vocab_size: int, tensors: HfTensors) -> dict[str, torch.Tensor]:
    """The rows that a conversion from NeMo cut off, else zeros."""
    rows = -vocab_size % model.vocab_multiple
    ends = {layout.EMBEDDING: layout.HF_EMBEDDING} | ({} if model.tied else {layout.OUTPUT: layout.HF_OUTPUT})
    path = directory / SIDE / PADDING
    kept: dict[str, torch.Tensor] = {}
    if path.is_file():
        from safetensors.torch import load_file

        shapes = {name: (shape, dtype) for name, shape, dtype in read_header(path)}
        if all(shapes.get(ours) == ((rows, model.hidden_size), tensors.dtypes[it]) for ours, it in ends.items()):
            kept = load_file(path)
    for ours, theirs in ends.items():
        dtype = getattr(torch, tensors.dtypes[theirs].removeprefix("torch."), torch.float32)
        kept.setdefault(ours, torch.zeros(rows, model.hidden_size, dtype=dtype))
    return kept


def model_yaml(model: ModelDescription, vocab_size: int, padded: int) -> dict[str, Any]:
    """`context/model.yaml` of a NeMo 2.0 checkpoint."""
    shape = model.as_dict()
    tied, dtype = shape.pop("tied"), shape.pop("dtype")
    return {
        "_target_": "nemo.collections.llm.gpt.model.base.GPTModel",
        "config": {
            "_target_": "nemo.collections.llm.gpt.model.base.GPTConfig",
            **{key: it for key, it in shape.items() if key != "vocab_multiple"},
            "normalization": "RMSNorm",
            "gated_linear_unit": True,
            "activation_func": {"_target_": "torch.nn.functional.silu", "_call_": False},
            "add_bias_linear": False,
            "position_embedding_type": "rope",
            "rotary_interleaved": False,
            "share_embeddings_and_output_weights": tied,
            "make_vocab_size_divisible_by": model.vocab_multiple,
            "vocab_size": padded,
            "bf16": dtype == "bfloat16",
            "fp16": dtype == "float16",
            "params_dtype": {"_target_": f"torch.{dtype}", "_call_": False},
        },
        "tokenizer": {"vocab_size": vocab_size},
    }


def write_context(source: Path, context: Path, opened: HfModel) -> None:
    """Write `context/`: the model's description and its tokenizer."""
    padded = opened.vocab_size + len(opened.padding[layout.EMBEDDING])
    text = yaml.safe_dump(model_yaml(opened.model, opened.vocab_size, padded), sort_keys=False)
    write_text(context / "model.yaml", text)
    (context / "tokenizer").mkdir()
    kept = source / SIDE / "tokenizer"
    for path in sorted(kept.iterdir()) if kept.is_dir() else sorted(source.iterdir()):
        names = ("token", "special_tokens", "added_tokens", "chat_template", "vocab", "merges")
        if path.is_file() and (kept.is_dir() or path.name.startswith(names)):
            shutil.copyfile(path, context / "tokenizer" / path.name)


Part = tuple[str, tuple[int, ...], tuple[int, ...], str, Callable[[], torch.Tensor]]
"""Key, whole shape, offsets, type and maker of a part of a tensor."""


def parts(opened: HfModel) -> Iterator[Part]:
    """The parts of Megatron's tensors in the order in which Hugging Face's lie on the disk."""
    model, tensors, padding = opened.model, opened.tensors, opened.padding

    def end(key: str, name: str) -> Callable[[], torch.Tensor]:
        return lambda: torch.cat([tensors.read(name), padding[key]]) if len(padding[key]) else tensors.read(name)

    def fused(name: str, theirs: list[str]) -> Callable[[], torch.Tensor]:
        return lambda: layout.fuse(name, [tensors.read(it) for it in theirs], model)

    ends = {layout.EMBEDDING: layout.HF_EMBEDDING} | ({} if model.tied else {layout.OUTPUT: layout.HF_OUTPUT})
    for key, name in ends.items():
        rows = opened.vocab_size + len(padding[key])
        yield key, (rows, model.hidden_size), (0, 0), tensors.dtypes[name], end(key, name)
    shapes, counterparts = layout.layer_shapes(model), layout.counterparts(model)
    for index in range(model.num_layers):
        for name, shape in shapes.items():
            theirs = [f"model.layers.{index}.{it}" for it in counterparts[name]]
            offsets = (index, *(0 for _ in shape))
            dtype, make = tensors.dtypes[theirs[0]], fused(name, theirs)
            yield f"decoder.layers.{name}", (model.num_layers, *shape), offsets, dtype, make
    dtype = tensors.dtypes[layout.HF_NORM]
    yield layout.NORM, (model.hidden_size,), (0,), dtype, lambda: tensors.read(layout.HF_NORM)


class _Planner(SavePlanner):
    """Feeds torch's writer a part at a time, and has what is written put on the disk meanwhile."""

    def __init__(self, items: list[Part], num_layers: int, progress: Progress, sync: Callable[[], object]) -> None:
        self._items = items
        self._num_layers = num_layers
        self._progress = progress
        self._makers = {(key, offsets): make for key, _, offsets, _, make in items}
        self._done = self._synced = 0
        self._sync = sync

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        """Nothing: the parts are known."""

    def create_local_plan(self) -> SavePlan:
        """One item a part, and the empty extra states."""
        items = []
        for key, shape, offsets, dtype, _ in self._items:
            whole = len(shape) == 1 or not key.startswith("decoder.layers.")
            sizes = shape if whole else (1, *shape[1:])
            data = TensorWriteData(
                chunk=ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)),
                properties=TensorProperties(dtype=getattr(torch, dtype.removeprefix("torch."))),
                size=torch.Size(shape),
            )
            index = MetadataIndex(f"{KEY_PREFIX}{key}", torch.Size(offsets))
            items.append(WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data))
        for module in _MODULES:
            for index in range(self._num_layers):
                key = f"{KEY_PREFIX}decoder.layers.{module}._extra_state/shard_{index}_{self._num_layers}"
                items.append(WriteItem(index=MetadataIndex(key), type=WriteItemType.BYTE_IO))
        self._total = sum(item.tensor_data.chunk.sizes.numel() * _item(item) for item in items if item.tensor_data)
        return SavePlan(items)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """As torch's own planner."""
        return create_default_global_save_plan(all_plans)

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        """As it is."""
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        """The part, read now."""
        if write_item.type == WriteItemType.BYTE_IO:
            buffer = io.BytesIO()
            torch.save([None], buffer)
            return buffer
        key = write_item.index.fqn.removeprefix(KEY_PREFIX)
        tensor = self._makers[key, tuple(write_item.index.offset)]()
        self._done += tensor.nbytes
        self._progress(self._done, self._total)
        if self._done - self._synced > SYNC_BYTES:
            self._synced = self._done
            self._sync()
        return tensor.view(write_item.tensor_data.chunk.sizes)


def _item(item: WriteItem) -> int:
    return item.tensor_data.properties.dtype.itemsize


def write_weights(opened: HfModel, weights: Path, step: int | None, progress: Progress) -> None:
    """Write `weights/` as Megatron-Core's torch_dist does. Raises UserError if a tensor cannot be read."""
    weights.mkdir(parents=True)
    pool = ThreadPoolExecutor(1)
    path = weights / "__0_0.distcp"
    planner = _Planner(
        list(parts(opened)),
        opened.model.num_layers,
        progress,
        lambda: path.exists() and pool.submit(hf_files.sync, path),
    )
    checksums = torch.serialization.get_crc32_options()
    try:
        # Checksums in the archives take as long as the writing, and nothing that loads them looks at them.
        torch.serialization.set_crc32_options(False)
        with pool, warnings.catch_warnings():
            # It is as meant that there is one process.
            warnings.filterwarnings("ignore", message=".*assuming the intent is to save in a single process")
            save({}, storage_writer=FileSystemWriter(weights, thread_count=1), planner=planner, no_dist=True)
    except CheckpointException as error:
        # torch keeps every exception of the writing for the end, Ctrl-C too.
        for cause, _ in error.failures.values():
            if isinstance(cause, (UserError, KeyboardInterrupt)):
                raise cause from None
            if isinstance(cause, OSError):
                raise UserError(f"cannot write {weights}: {cause.strerror}; make room, then convert again") from None
        raise
    finally:
        torch.serialization.set_crc32_options(checksums)
    torch.save({} if step is None else {"global_step": step}, weights / "common.pt")
    versions = {"sharded_backend_version": 1, "common_backend": "torch", "common_backend_version": 1}
    write_json(weights / "metadata.json", {"sharded_backend": "torch_dist", **versions})
