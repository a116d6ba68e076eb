"""How Megatron's tensors of a model and those of transformers' Glm correspond, a layer at a time, both ways.

Three things differ in how the weights lie: Megatron fuses queries, keys and values by query group; it rotates the
two halves of the rotary dimensions against each other where Glm rotates neighbouring pairs; and it pads the
vocabulary. Megatron may keep a tensor of all layers as one, or one each; norms as layers of their own; SwiGLU's
halves apart. All of it is planned from shapes, before a tensor is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
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

LAYER_KEYS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    _FC1: "mlp.gate_up_proj.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}
"""Megatron's tensors of a layer that Glm takes as they are, and what it calls them."""


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
        "mlp.linear_fc1.layer_norm_weight": (hidden,),
        _FC1: (2 * ffn, hidden),
        "mlp.linear_fc2.weight": (hidden, ffn),
    }


def projections(model: ModelDescription) -> dict[str, Shape]:
    """Glm's tensors of a layer that Megatron fuses."""
    query = model.num_attention_heads * model.kv_channels
    key = model.num_query_groups * model.kv_channels
    return {
        "self_attn.q_proj.weight": (query, model.hidden_size),
        "self_attn.k_proj.weight": (key, model.hidden_size),
        "self_attn.v_proj.weight": (key, model.hidden_size),
    }


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
    """Query, key and value projections in Glm's order, from Megatron's rows [groups x (q... q, k, v), hidden]."""
    heads_per_group = model.num_attention_heads // model.num_query_groups
    groups = fused.view(model.num_query_groups, heads_per_group + 2, model.kv_channels, model.hidden_size)
    query, key, value = groups[:, :-2].flatten(0, 1), groups[:, -2], groups[:, -1]
    query, key = (pairs_from_halves(it, model.rotary_dimensions) for it in (query, key))
    return query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)


def fuse_qkv(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, model: ModelDescription) -> torch.Tensor:
    """The inverse of `split_qkv`."""
    import torch

    size, groups = model.kv_channels, model.num_query_groups
    query, key, value = (it.view(-1, size, model.hidden_size) for it in (query, key, value))
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
    """The tensors of the Glm model, in the order of its layers, by their Hugging Face names.

    The rows beyond the vocabulary are left in `padding` when they are read, by Megatron's keys. Raises
    UserError, before anything is read, for a tensor that is missing, has another shape, or that Glm has not.
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
        raise UserError(f"the weights have {', '.join(sorted(spare)[:3])}, which the Glm architecture has not")
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

    def one(name: str, shape: Shape, places: list[_Place]) -> Group:
        def read() -> dict[str, torch.Tensor]:
            parts = [weights.read(it.key, it.index) for it in places]
            return {name: parts[0] if len(parts) == 1 else torch.cat(parts)}

        return Group({name: shape}, entries[places[0].key].dtype, read)

    def end(name: str, key: str) -> Group:
        def read() -> dict[str, torch.Tensor]:
            tensor = weights.read(key)
            if len(tensor) > vocab_size:
                padding[key] = tensor[vocab_size:].clone()
            return {name: tensor[:vocab_size]}

        return Group({name: (vocab_size, model.hidden_size)}, entries[key].dtype, read)

    def attention(name: str, places: list[_Place]) -> Group:
        def read() -> dict[str, torch.Tensor]:
            fused = weights.read(places[0].key, places[0].index)
            return {f"{name}.{key}": it for key, it in zip(projections(model), split_qkv(fused, model), strict=True)}

        shapes = {f"{name}.{key}": shape for key, shape in projections(model).items()}
        return Group(shapes, entries[places[0].key].dtype, read)

    for ours, theirs in ends.items():
        yield end(theirs, ours)
    for index, places in enumerate(layers):
        name = f"model.layers.{index}"
        yield attention(name, places[QKV])
        for ours, theirs in LAYER_KEYS.items():
            yield one(f"{name}.{theirs}", layer_shapes(model)[ours], places[ours])
    yield one(HF_NORM, (model.hidden_size,), [_Place(NORM, None)])


def _missing(key: str) -> UserError:
    return UserError(f"the weights have no {key}; the checkpoint is not whole or of another architecture")


def _check_shape(key: str, found: Shape, wanted: Shape) -> None:
    if found != wanted:
        raise UserError(f"{key} is of {list(found)} where the checkpoint's settings say {list(wanted)}")


def hf_shapes(model: ModelDescription, vocab_size: int) -> dict[str, Shape]:
    """Every tensor of the Glm model."""
    shapes = dict.fromkeys([HF_EMBEDDING, *([] if model.tied else [HF_OUTPUT])], (vocab_size, model.hidden_size))
    for index in range(model.num_layers):
        name = f"model.layers.{index}"
        shapes |= {f"{name}.{key}": shape for key, shape in projections(model).items()}
        shapes |= {f"{name}.{LAYER_KEYS[key]}": it for key, it in layer_shapes(model).items() if key in LAYER_KEYS}
    return {**shapes, HF_NORM: (model.hidden_size,)}
