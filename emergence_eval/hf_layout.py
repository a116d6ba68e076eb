"""How Megatron's tensors of a model and those of transformers' Glm or Qwen3 correspond, a layer at a time, both ways.

How the weights lie differs: Megatron fuses queries, keys and values by query group; it rotates the two halves of the
rotary dimensions against each other, as Qwen3 does, where Glm rotates neighbouring pairs; it has SwiGLU's two halves
in one, as Glm has, where Qwen3 has one each; and it pads the vocabulary. Megatron may keep a tensor of all layers as
one, or one each; norms as layers of their own; SwiGLU's halves apart. All of it is planned from shapes, before a
tensor is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from emergence_eval.description import ModelDescription
from tokenizer.cli import UserError

if TYPE_CHECKING:
    import torch

    from emergence_eval.torch_dist import Weights

Shape = tuple[int, ...]

_LAYER = re.compile(r"decoder\.layers\.(?:(\d+)\.)?(.+)")

EMBEDDING, OUTPUT, NORM = "embedding.word_embeddings.weight", "output_layer.weight", "decoder.final_layernorm.weight"
QKV = "self_attention.linear_qkv.weight"
_FC1 = "mlp.linear_fc1.weight"

HF_EMBEDDING, HF_OUTPUT, HF_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"

LOCAL_NORMS = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}
"""Names of the norms where they are layers of their own, and where Transformer Engine fuses them."""

_SAME = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "self_attention.q_layernorm.weight": "self_attn.q_norm.weight",
    "self_attention.k_layernorm.weight": "self_attn.k_norm.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    _FC1: "mlp.gate_up_proj.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}
"""Megatron's tensors of a layer that are taken as they are, and what transformers calls them."""


@dataclass(frozen=True)
class Group:
    """Tensors that are made together: names, shapes and the type, known before `read` reads them."""

    shapes: Mapping[str, Shape]
    dtype: str
    read: Callable[[], dict[str, torch.Tensor]] = field(repr=False)


def layer_shapes(model: ModelDescription) -> dict[str, Shape]:
    """Megatron's tensors of a layer."""
    hidden, ffn, size = model.hidden_size, model.ffn_hidden_size, model.kv_channels
    return {
        QKV: ((model.num_attention_heads + 2 * model.num_query_groups) * size, hidden),
        "self_attention.linear_qkv.layer_norm_weight": (hidden,),
        "self_attention.linear_proj.weight": (hidden, model.num_attention_heads * size),
        **{f"self_attention.{it}_layernorm.weight": (size,) for it in ("qk" if model.qk_layernorm else "")},
        "mlp.linear_fc1.layer_norm_weight": (hidden,),
        _FC1: (2 * ffn, hidden),
        "mlp.linear_fc2.weight": (hidden, ffn),
    }


def counterparts(model: ModelDescription) -> dict[str, dict[str, Shape]]:
    """What each of Megatron's tensors of a layer is made into: transformers' names and shapes."""
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    query, key = (it * model.kv_channels for it in (model.num_attention_heads, model.num_query_groups))
    found = {ours: {_SAME[ours]: shape} for ours, shape in layer_shapes(model).items() if ours != QKV}
    if model.qk_layernorm:
        found[_FC1] = {f"mlp.{half}_proj.weight": (ffn, hidden) for half in ("gate", "up")}
    rows = {"q": query, "k": key, "v": key}
    return {QKV: {f"self_attn.{name}_proj.weight": (it, hidden) for name, it in rows.items()}, **found}


def split(name: str, tensor: torch.Tensor, model: ModelDescription) -> Sequence[torch.Tensor]:
    """The tensors that one of Megatron's is made into, in the order of `counterparts`."""
    if name == QKV:
        return split_qkv(tensor, model)
    return tensor.chunk(len(counterparts(model)[name]))


def fuse(name: str, tensors: Sequence[torch.Tensor], model: ModelDescription) -> torch.Tensor:
    """The inverse of `split`."""
    import torch

    if name == QKV:
        return fuse_qkv(*tensors, model)
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def pairs_from_halves(weight: torch.Tensor, rotary_dimensions: int) -> torch.Tensor:
    """Re-order the rotary rows of [heads, head size, hidden] from halves (0..r/2 with r/2..r) to neighbours."""
    import torch

    rotary, rest = weight[:, :rotary_dimensions], weight[:, rotary_dimensions:]
    pairs = torch.stack(rotary.chunk(2, dim=1), dim=2).flatten(1, 2)
    return torch.cat([pairs, rest], dim=1)


def halves_from_pairs(weight: torch.Tensor, rotary_dimensions: int) -> torch.Tensor:
    """The inverse of `pairs_from_halves`."""
    import torch

    rotary, rest = weight[:, :rotary_dimensions], weight[:, rotary_dimensions:]
    return torch.cat([rotary[:, 0::2], rotary[:, 1::2], rest], dim=1)


def split_qkv(fused: torch.Tensor, model: ModelDescription) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Transformers' query, key and value projections from Megatron's rows [groups x (q... q, k, v), hidden]."""
    heads_per_group = model.num_attention_heads // model.num_query_groups
    groups = fused.view(model.num_query_groups, heads_per_group + 2, model.kv_channels, model.hidden_size)
    query, key, value = groups[:, :-2].flatten(0, 1), groups[:, -2], groups[:, -1]
    if not model.qk_layernorm:
        query, key = (pairs_from_halves(it, model.rotary_dimensions) for it in (query, key))
    return query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)


def fuse_qkv(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, model: ModelDescription) -> torch.Tensor:
    """The inverse of `split_qkv`."""
    import torch

    size, groups = model.kv_channels, model.num_query_groups
    query, key, value = (it.view(-1, size, model.hidden_size) for it in (query, key, value))
    if not model.qk_layernorm:
        query, key = (halves_from_pairs(it, model.rotary_dimensions) for it in (query, key))
    parts = [query.view(groups, -1, size, model.hidden_size), key.unsqueeze(1), value.unsqueeze(1)]
    return torch.cat(parts, dim=1).flatten(0, 2)


@dataclass(frozen=True)
class _Place:
    """A tensor of a layer: its key, and which of the layers if it is of all."""

    key: str
    index: int | None


def _places(weights: Weights, num_layers: int) -> list[dict[str, list[_Place]]]:
    """For each layer where its tensors lie, under the names of Transformer Engine's layers."""
    layers: list[dict[str, list[_Place]]] = [{} for _ in range(num_layers)]
    for key, entry in weights.entries.items():
        if not (match := _LAYER.fullmatch(key)):
            continue
        number, name = match.groups()
        name = LOCAL_NORMS.get(name, name)
        stacked = number is None
        if (stacked and entry.shape[:1] != (num_layers,)) or (not stacked and int(number) >= num_layers):
            raise UserError(f"{key} is of more or fewer than the {num_layers} layers that the checkpoint says it has")
        for index in range(num_layers) if stacked else [int(number)]:
            layers[index][name] = [_Place(key, index if stacked else None)]
    for places in layers:
        # One layout of the checkpoint keeps SwiGLU's halves apart.
        halves = [places.pop(f"{_FC1}_{half}", None) for half in "wv"]
        if all(half is not None for half in halves):
            places[_FC1] = [place for half in halves for place in half]
    return layers


def hf_groups(
    weights: Weights, model: ModelDescription, vocab_size: int, padding: dict[str, torch.Tensor]
) -> Iterator[Group]:
    """The tensors of transformers' model, in the order of its layers, by their Hugging Face names.

    The rows beyond the vocabulary are left in `padding` when they are read, by Megatron's keys. Raises
    UserError, before anything is read, for a tensor that is missing, has another shape, or that its architecture
    has not.
    """
    layers = _places(weights, model.num_layers)
    wanted = layer_shapes(model)
    entries = weights.entries
    ends = {EMBEDDING: HF_EMBEDDING} | ({} if model.tied else {OUTPUT: HF_OUTPUT})
    for key in (*ends, NORM):
        if key not in entries:
            raise _missing(key)
    rows = entries[EMBEDDING].shape[0] if entries[EMBEDDING].shape else 0
    for key, shape in {**dict.fromkeys(ends, (rows, model.hidden_size)), NORM: (model.hidden_size,)}.items():
        _check_shape(key, entries[key].shape, shape)
    if rows < vocab_size:
        raise UserError(f"{EMBEDDING} has {rows} rows for a vocabulary of {vocab_size}")
    spare = {key for key in entries if not _LAYER.fullmatch(key)} - {*ends, NORM}
    for index, places in enumerate(layers):
        spare |= {f"decoder.layers.{index}.{name}" for name in places.keys() - wanted.keys()}
        for name, shape in wanted.items():
            if name not in places:
                raise _missing(name)
            shapes = [entries[it.key].shape[0 if it.index is None else 1 :] for it in places[name]]
            found = shapes[0] if len(shapes) == 1 else (sum(it[0] for it in shapes if it), *shapes[0][1:])
            _check_shape(f"{name} of layer {index}", found, shape)
    if spare:
        names = ", ".join(sorted(spare)[:3])
        raise UserError(f"the weights have {names}, which the {model.architecture} architecture has not")
    return _groups(weights, model, vocab_size, ends, layers, padding)


def _groups(
    weights: Weights,
    model: ModelDescription,
    vocab_size: int,
    ends: dict[str, str],
    layers: list[dict[str, list[_Place]]],
    padding: dict[str, torch.Tensor],
) -> Iterator[Group]:
    import torch

    entries = weights.entries

    def of_layer(index: int, ours: str, theirs: dict[str, Shape], places: list[_Place]) -> Group:
        shapes = {f"model.layers.{index}.{name}": shape for name, shape in theirs.items()}

        def read() -> dict[str, torch.Tensor]:
            parts = [weights.read(it.key, it.index) for it in places]
            whole = parts[0] if len(parts) == 1 else torch.cat(parts)
            return dict(zip(shapes, split(ours, whole, model), strict=True))

        return Group(shapes, entries[places[0].key].dtype, read)

    def end(name: str, key: str) -> Group:
        def read() -> dict[str, torch.Tensor]:
            tensor = weights.read(key)
            if len(tensor) > vocab_size:
                padding[key] = tensor[vocab_size:].clone()
            return {name: tensor[:vocab_size]}

        return Group({name: (vocab_size, model.hidden_size)}, entries[key].dtype, read)

    for ours, theirs in ends.items():
        yield end(theirs, ours)
    for index, places in enumerate(layers):
        for ours, theirs in counterparts(model).items():
            yield of_layer(index, ours, theirs, places[ours])
    yield Group({HF_NORM: (model.hidden_size,)}, entries[NORM].dtype, lambda: {HF_NORM: weights.read(NORM)})


def _missing(key: str) -> UserError:
    return UserError(f"the weights have no {key}; the checkpoint is not whole or of another architecture")


def _check_shape(key: str, found: Shape, wanted: Shape) -> None:
    if found != wanted:
        raise UserError(f"{key} is of {list(found)} where the checkpoint's settings say {list(wanted)}")


def hf_shapes(model: ModelDescription, vocab_size: int) -> dict[str, Shape]:
    """Every tensor of transformers' model."""
    shapes = dict.fromkeys([HF_EMBEDDING, *([] if model.tied else [HF_OUTPUT])], (vocab_size, model.hidden_size))
    for index in range(model.num_layers):
        for theirs in counterparts(model).values():
            shapes |= {f"model.layers.{index}.{name}": shape for name, shape in theirs.items()}
    return {**shapes, HF_NORM: (model.hidden_size,)}
