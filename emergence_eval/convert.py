"""Megatron/NeMo weights to a Hugging Face directory that everybody's tools can load.

The model is exactly transformers' Glm architecture: grouped queries, rotary embedding on half of each head,
SwiGLU, RMSNorm. Three things differ in how the weights lie: Megatron fuses queries, keys and values by query
group; it rotates the two halves of the rotary dimensions against each other where Glm rotates neighbouring
pairs; and it pads the vocabulary. The tokenizer is converted with the weights.

    python -m emergence_eval.convert nemo-to-hf runs/smoke/small-20480/checkpoints/step_10 /tmp/small-hf
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from torch.distributed.checkpoint import FileSystemReader, load
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from emergence_eval.hf_tokenizer import write_hf_tokenizer
from recipes.checkpoint import CONTEXT, KEY_PREFIX, WEIGHTS, read_manifest
from tokenizer import cli
from tokenizer.cli import UserError
from tokenizer.files import atomic_directory
from tokenizer.vocabulary import EOD_ID, PAD_ID

_DTYPES = {"torch.float32": torch.float32, "torch.bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ModelDescription:
    """The shape of a checkpoint's model, from its `context/model.yaml`."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    layernorm_epsilon: float
    rotary_percent: float
    rotary_base: int
    seq_length: int
    dtype: torch.dtype

    @property
    def rotary_dimensions(self) -> int:
        """Dimensions of each head that are rotated."""
        return int(self.kv_channels * self.rotary_percent)


def read_description(checkpoint: Path) -> ModelDescription:
    """The shape that a checkpoint says it has. Raises UserError for a missing file or another architecture."""
    path = checkpoint / CONTEXT / "model.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))["config"]
        for key, wanted in (("normalization", "RMSNorm"), ("gated_linear_unit", True), ("add_bias_linear", False)):
            if config[key] != wanted:
                raise UserError(f"{path}: {key} is {config[key]!r}; only {wanted!r} can be converted")
        return ModelDescription(
            num_layers=config["num_layers"],
            hidden_size=config["hidden_size"],
            ffn_hidden_size=config["ffn_hidden_size"],
            num_attention_heads=config["num_attention_heads"],
            num_query_groups=config["num_query_groups"],
            kv_channels=config["kv_channels"],
            layernorm_epsilon=config["layernorm_epsilon"],
            rotary_percent=config["rotary_percent"],
            rotary_base=config["rotary_base"],
            seq_length=config["seq_length"],
            dtype=_DTYPES[config["params_dtype"]["_target_"]],
        )
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; is {checkpoint} a NeMo 2.0 checkpoint?") from None
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not describe a GPT model: {error!r}") from None


def read_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint's weights, whole, on the CPU, whatever layout wrote it."""
    directory = checkpoint / WEIGHTS
    try:
        metadata = FileSystemReader(directory).read_metadata()
        tensors = {
            key: torch.empty(entry.size, dtype=entry.properties.dtype)
            for key, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        load(tensors, storage_reader=FileSystemReader(directory), no_dist=True)
    except (OSError, CheckpointException) as error:
        raise UserError(f"cannot read the weights in {directory}: {str(error).splitlines()[0]}") from None
    return {key.removeprefix(KEY_PREFIX): tensor for key, tensor in tensors.items()}


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
    """The tensors of the Glm model, by their Hugging Face names."""
    yield "model.embed_tokens.weight", weights["embedding.word_embeddings.weight"][:vocab_size]
    yield "lm_head.weight", weights["output_layer.weight"][:vocab_size]
    yield "model.norm.weight", weights["decoder.final_layernorm.weight"]
    for layer in range(model.num_layers):
        stacked = {key: weights[f"decoder.layers.{key}"][layer] for key in _LAYER_KEYS}
        name = f"model.layers.{layer}"
        query, key, value = split_qkv(stacked["self_attention.linear_qkv.weight"], model)
        yield f"{name}.self_attn.q_proj.weight", query
        yield f"{name}.self_attn.k_proj.weight", key
        yield f"{name}.self_attn.v_proj.weight", value
        for ours, theirs in _LAYER_KEYS.items():
            if theirs:
                yield f"{name}.{theirs}", stacked[ours]


_LAYER_KEYS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "self_attention.linear_qkv.weight": "",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    "mlp.linear_fc1.weight": "mlp.gate_up_proj.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}
"""Megatron's tensors of a layer and what Glm calls those that it takes as they are."""


def nemo_to_hf(checkpoint: Path, out: Path) -> Path:
    """Convert a checkpoint to a Hugging Face directory (config, safetensors, tokenizer) at `out`.

    Raises UserError if `checkpoint` is none or holds another architecture.
    """
    from transformers import GlmConfig

    manifest = read_manifest(checkpoint)
    model = read_description(checkpoint)
    weights = read_weights(checkpoint)
    with atomic_directory(out) as directory:
        tensors = {name: it.contiguous() for name, it in glm_tensors(weights, model, manifest.vocab_size)}
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        write_hf_tokenizer(checkpoint / CONTEXT / "tokenizer", directory)
        GlmConfig(
            architectures=["GlmForCausalLM"],
            vocab_size=manifest.vocab_size,
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
            tie_word_embeddings=False,
            dtype=model.dtype,
            bos_token_id=None,
            eos_token_id=EOD_ID,
            pad_token_id=PAD_ID,
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
    verb = verbs.add_parser("nemo-to-hf", help="a NeMo 2.0 checkpoint directory to a Hugging Face one")
    verb.add_argument("checkpoint", type=Path, help="the checkpoint, RUN/checkpoints/step_<n>")
    verb.add_argument("out", type=Path, help="the directory to write")
    arguments = parser.parse_args(argv)
    print(nemo_to_hf(arguments.checkpoint, arguments.out))
    return 0


if __name__ == "__main__":
    cli.run(main)
