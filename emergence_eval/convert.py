"""Megatron/NeMo weights to a Hugging Face directory that everybody's tools can load.

The model is exactly transformers' Glm architecture: grouped queries, rotary embedding on half of each head,
SwiGLU, RMSNorm. Three things differ in how the weights lie: Megatron fuses queries, keys and values by query
group; it rotates the two halves of the rotary dimensions against each other where Glm rotates neighbouring
pairs; and it pads the vocabulary. The tokenizer is converted with the weights.

    python -m emergence_eval.convert nemo-to-hf runs/smoke/small-20480/checkpoints/step_10 /tmp/small-hf
    python -m emergence_eval.convert megatron-to-hf gpt/iter_0000100 /tmp/gpt-hf --tokenizer tokenizer
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint import FileSystemReader, load
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from emergence_eval import pickles, sources
from emergence_eval.description import ModelDescription
from emergence_eval.found_tokenizer import find_tokenizer
from emergence_eval.sources import Source, model_shapes
from recipes.checkpoint import CONTEXT, KEY_PREFIX, MANIFEST, WEIGHTS, read_manifest
from tokenizer import cli
from tokenizer.cli import UserError
from tokenizer.files import atomic_directory

_LAYER = re.compile(r"decoder\.layers\.(?:(\d+)\.)?(.+)")
"""Megatron keeps a tensor of all layers as one, or, where they differ, one each."""


class _Reader(FileSystemReader):
    """torch's reader, which trusts the checkpoint's table to be no program."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        metadata = pickles.read_metadata(Path(self.path))
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def read_weights(directory: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Every tensor of the model in a distributed checkpoint, whole, on the CPU, whatever layout wrote it, by its
    key without `prefix`."""
    try:
        metadata = _Reader(directory).read_metadata()
        keys = model_shapes(directory, prefix)
        tensors = {}
        for key in keys:
            entry = metadata.state_dict_metadata[f"{prefix}{key}"]
            tensors[f"{prefix}{key}"] = torch.empty(entry.size, dtype=entry.properties.dtype)
        load(tensors, storage_reader=_Reader(directory), no_dist=True)
    except (OSError, KeyError, AttributeError, CheckpointException) as error:
        raise UserError(f"cannot read the weights in {directory}: {str(error).splitlines()[0]}") from None
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}


def pairs_from_halves(weight: torch.Tensor, rotary_dimensions: int) -> torch.Tensor:
    """Re-order the rotary rows of [heads, head size, hidden] from halves (0..r/2 with r/2..r) to neighbours."""
    rotary, rest = weight[:, :rotary_dimensions], weight[:, rotary_dimensions:]
    pairs = torch.stack(rotary.chunk(2, dim=1), dim=2).flatten(1, 2)
    return torch.cat([pairs, rest], dim=1)


def split_qkv(fused: torch.Tensor, model: ModelDescription) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value projections in Glm's order, from Megatron's rows [groups x (q... q, k, v), hidden]."""
    heads_per_group = model.num_attention_heads // model.num_query_groups
    groups = fused.view(model.num_query_groups, heads_per_group + 2, model.kv_channels, model.hidden_size)
    query, key, value = groups[:, :-2].flatten(0, 1), groups[:, -2], groups[:, -1]
    query, key = (pairs_from_halves(it, model.rotary_dimensions) for it in (query, key))
    return query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)


def glm_tensors(
    weights: dict[str, torch.Tensor], model: ModelDescription, vocab_size: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of the Glm model, by their Hugging Face names. Takes them out of `weights`.

    Raises UserError for a tensor that is missing, or one that Glm has not.
    """
    layers = _by_layer(weights, model.num_layers)
    ends = {"embedding.word_embeddings.weight": "model.embed_tokens.weight"}
    if not model.tied:
        ends["output_layer.weight"] = "lm_head.weight"
    for ours, theirs in ends.items():
        yield theirs, _take(weights, ours)[:vocab_size]
    yield "model.norm.weight", _take(weights, "decoder.final_layernorm.weight")
    for index, tensors in enumerate(layers):
        name = f"model.layers.{index}"
        query, key, value = split_qkv(_take(tensors, "self_attention.linear_qkv.weight"), model)
        yield f"{name}.self_attn.q_proj.weight", query
        yield f"{name}.self_attn.k_proj.weight", key
        yield f"{name}.self_attn.v_proj.weight", value
        for ours, theirs in _LAYER_KEYS.items():
            yield f"{name}.{theirs}", _take(tensors, ours)
        weights |= {f"decoder.layers.{index}.{key}": tensor for key, tensor in tensors.items()}
    if weights:
        raise UserError(f"the weights have {', '.join(sorted(weights)[:3])}, which the Glm architecture has not")


def _take(tensors: dict[str, torch.Tensor], key: str) -> torch.Tensor:
    if key not in tensors:
        raise UserError(f"the weights have no {key}; the checkpoint is not whole or of another architecture")
    return tensors.pop(key)


def _by_layer(weights: dict[str, torch.Tensor], num_layers: int) -> list[dict[str, torch.Tensor]]:
    """The tensors of each layer, taken out of `weights`, under the names of Transformer Engine's layers."""
    layers: list[dict[str, torch.Tensor]] = [{} for _ in range(num_layers)]
    for key in [key for key in weights if _LAYER.fullmatch(key)]:
        number, name = _LAYER.fullmatch(key).groups()
        tensor = weights.pop(key)
        name = _LOCAL_NORMS.get(name, name)
        if (number is None and len(tensor) != num_layers) or (number is not None and int(number) >= num_layers):
            raise UserError(f"{key} is of more or fewer than the {num_layers} layers that the checkpoint says it has")
        for index in range(num_layers) if number is None else [int(number)]:
            layers[index][name] = tensor[index] if number is None else tensor
    for tensors in layers:
        # One layout of the checkpoint keeps SwiGLU's halves apart.
        halves = [tensors.pop(f"mlp.linear_fc1.weight_{half}", None) for half in "wv"]
        if all(half is not None for half in halves):
            tensors["mlp.linear_fc1.weight"] = torch.cat(halves)
    return layers


_LOCAL_NORMS = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}
"""Names of the norms where they are layers of their own, and where Transformer Engine fuses them."""

_LAYER_KEYS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    "mlp.linear_fc1.weight": "mlp.gate_up_proj.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}
"""Megatron's tensors of a layer that Glm takes as they are, and what it calls them."""


def nemo_to_hf(checkpoint: Path, out: Path) -> Path:
    """Convert a checkpoint of this repository or of NeMo to a Hugging Face directory (config, safetensors,
    tokenizer) at `out`.

    Raises UserError if `checkpoint` is none or holds another architecture.
    """
    if not (checkpoint / MANIFEST).is_file():
        source, _ = sources.open_nemo(checkpoint, None)
        return to_hf(source, out)
    read_manifest(checkpoint)
    tokenizer = checkpoint / CONTEXT / "tokenizer"
    source = sources.Source(
        checkpoint,
        checkpoint / WEIGHTS,
        KEY_PREFIX,
        sources.read_nemo_description(checkpoint),
        find_tokenizer(tokenizer, [], checkpoint),
    )
    return to_hf(source, out)


def to_hf(source: Source, out: Path) -> Path:
    """Convert an opened checkpoint to a Hugging Face directory at `out`."""
    from transformers import GlmConfig

    model, tokenizer = source.model, source.tokenizer
    weights = read_weights(source.weights, source.prefix)
    dtype = weights["embedding.word_embeddings.weight"].dtype
    with atomic_directory(out) as directory:
        try:
            found = glm_tensors(weights, model, tokenizer.vocab_size)
            tensors = {name: it.to(dtype).contiguous() for name, it in found}
        except UserError as error:
            raise UserError(f"{source.weights}: {error}") from None
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        tokenizer.write(directory)
        GlmConfig(
            architectures=["GlmForCausalLM"],
            vocab_size=tokenizer.vocab_size,
            hidden_size=model.hidden_size,
            intermediate_size=model.ffn_hidden_size,
            num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_attention_heads,
            num_key_value_heads=model.num_query_groups,
            head_dim=model.kv_channels,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": float(model.rotary_base),
                "partial_rotary_factor": model.rotary_percent,
            },
            rms_norm_eps=model.layernorm_epsilon,
            max_position_embeddings=model.seq_length,
            attention_bias=False,
            tie_word_embeddings=model.tied,
            dtype=dtype,
            bos_token_id=None,
            eos_token_id=tokenizer.eod_id,
            pad_token_id=tokenizer.pad_id,
        ).save_pretrained(directory)
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Convert a checkpoint from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m emergence_eval.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, what, example in (
        ("nemo-to-hf", "a NeMo 2.0 checkpoint directory", "RUN/checkpoints/step_<n>"),
        ("megatron-to-hf", "a Megatron-LM or Megatron-Bridge checkpoint directory", "RUN/iter_<n>"),
    ):
        verb = verbs.add_parser(name, help=f"{what} to a Hugging Face one")
        verb.add_argument("checkpoint", type=Path, help=f"the checkpoint, {example}")
        verb.add_argument("out", type=Path, help="the directory to write")
        verb.add_argument("--tokenizer", type=Path, metavar="DIR", help="its tokenizer, if it does not carry one")
    arguments = parser.parse_args(argv)
    checkpoint, out, tokenizer = arguments.checkpoint, arguments.out, arguments.tokenizer
    if arguments.verb == "megatron-to-hf":
        print(to_hf(sources.open_megatron(checkpoint, tokenizer)[0], out))
    elif tokenizer is not None and not (checkpoint / MANIFEST).is_file():
        print(to_hf(sources.open_nemo(checkpoint, tokenizer)[0], out))
    elif tokenizer is not None:
        raise UserError(f"{checkpoint} carries its own tokenizer; leave --tokenizer out")
    else:
        print(nemo_to_hf(checkpoint, out))
    return 0


if __name__ == "__main__":
    cli.run(main)
