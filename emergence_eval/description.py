"""The shape of a checkpoint's model, in Megatron-Core's words, and which architecture of transformers has it.

That is Glm, or Qwen3 where queries and keys have norms of their own. NeMo and Megatron-Bridge write Megatron-Core's
configuration as YAML; Megatron-LM saves its command line, which `from_arguments` translates. What neither can compute
is refused by its name. Nothing here loads torch.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizer.cli import UserError

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ModelDescription:
    """The shape of a checkpoint's model."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    layernorm_epsilon: float
    rotary_percent: float
    rotary_base: float
    seq_length: int
    dtype: str
    """Of the weights: float32, bfloat16 or float16."""
    tied: bool = False
    """Whether the output layer is the embedding."""
    vocab_multiple: int = 128
    """The embedding's rows are the vocabulary rounded up to a multiple of this."""
    qk_layernorm: bool = False
    """Whether each head's queries and keys are normed before they are rotated."""

    @property
    def architecture(self) -> str:
        """Transformers' name of it, which its classes begin with."""
        return "Qwen3" if self.qk_layernorm else "Glm"

    def as_dict(self) -> dict[str, Any]:
        """The fields by their names. `qk_layernorm` only where it is on: what was made of a checkpoint before there
        was this field is known by the others, and stays valid."""
        fields = asdict(self)
        return fields if self.qk_layernorm else {key: it for key, it in fields.items() if key != "qk_layernorm"}

    @property
    def rotary_dimensions(self) -> int:
        """Dimensions of each head that are rotated."""
        return int(self.kv_channels * self.rotary_percent)


_WANTED: dict[str, tuple[Any, ...]] = {
    "normalization": ("RMSNorm",),
    "gated_linear_unit": (True,),
    "activation_func": ("silu", "swiglu"),
    "add_bias_linear": (False,),
    "position_embedding_type": ("rope",),
}
"""What a configuration must say, and one of the values it must say."""

_UNUSED: dict[str, tuple[Any, ...]] = {
    "add_qkv_bias": (False,),
    "rotary_interleaved": (False,),
    "rope_scaling": (False,),
    "seq_len_interpolation_factor": (None, 1, 1.0),
    "num_moe_experts": (None, 0),
    "multi_latent_attention": (False,),
    "qk_l2_norm": (False,),
    "layernorm_zero_centered_gamma": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "window_size": (None,),
    "no_rope_freq": (None,),
    "softmax_type": ("vanilla",),
    "softmax_scale": (None,),
    "glu_linear_offset": (0, 0.0),
    "activation_func_clamp_value": (None,),
    "mtp_num_layers": (None, 0),
    "heterogeneous_block_specs": (False,),
    "attention_output_gate": (False,),
    "embedding_multiplier": (None, 1, 1.0),
    "mup_enabled": (False,),
    "is_hybrid_model": (False,),
}
"""What a configuration may have, and the values with which it changes nothing; None always does."""


def from_config(config: Mapping[str, Any], where: Path | str) -> ModelDescription:
    """The shape that Megatron-Core's configuration gives. Raises UserError naming what is missing from it, or what
    neither Glm nor Qwen3 has."""
    if not isinstance(config, Mapping):
        raise UserError(f"{where} does not describe a GPT model: no configuration in it")
    for key, values in _WANTED.items():
        _check(key, _plain(config[key]) if key in config else "missing", values, where)
    for key, values in _UNUSED.items():
        if (value := _plain(config.get(key))) is not None:
            _check(key, value, values, where)
    try:
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        tensor = int(config.get("tensor_model_parallel_size") or 1)
        model = ModelDescription(
            num_layers=int(config["num_layers"]),
            hidden_size=hidden,
            ffn_hidden_size=int(config["ffn_hidden_size"]),
            num_attention_heads=heads,
            num_query_groups=int(config.get("num_query_groups") or heads),
            kv_channels=int(config.get("kv_channels") or hidden // heads),
            layernorm_epsilon=float(config["layernorm_epsilon"]),
            rotary_percent=float(config["rotary_percent"]),
            rotary_base=config["rotary_base"],
            seq_length=int(config["seq_length"]),
            dtype=_dtype(config, where),
            tied=bool(config["share_embeddings_and_output_weights"]),
            vocab_multiple=int(config.get("make_vocab_size_divisible_by") or 128) * tensor,
            qk_layernorm=bool(config.get("qk_layernorm")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where} does not describe a GPT model: {error!r}") from None
    check_rotary(model, where)
    return model


def check_rotary(model: ModelDescription, where: Path | str) -> None:
    """Raises UserError for norms of queries and keys on heads that are rotated in part, which transformers' models do
    not have together."""
    if model.qk_layernorm and model.rotary_percent != 1:
        raise UserError(
            f"{where}: rotary_percent is {model.rotary_percent!r} with qk_layernorm; Qwen3, which has these norms, "
            "turns whole heads: train with rotary_percent 1.0, or without qk_layernorm"
        )


def _check(key: str, value: Any, values: tuple[Any, ...], where: Path | str) -> None:
    if value not in values:
        wanted = " or ".join(repr(it) for it in values if it is not None)
        raise UserError(f"{where}: {key} is {value!r}; only {wanted} can be converted to the Glm or Qwen3 architecture")


def _plain(value: Any) -> Any:
    """A function or class that YAML names by `_target_` as the last part of its name."""
    if isinstance(value, Mapping) and "_target_" in value:
        return str(value["_target_"]).rpartition(".")[2]
    return value


def _dtype(config: Mapping[str, Any], where: Path | str) -> str:
    name = str(_plain(config["params_dtype"])).removeprefix("torch.")
    # Mixed precision: the parameters that are saved are those that the model multiplies.
    name = "bfloat16" if config.get("bf16") else "float16" if config.get("fp16") else name
    if name not in DTYPES:
        raise UserError(f"{where}: params_dtype is {name}; only {', '.join(DTYPES)} can be converted")
    return name


_RENAMED = {
    "norm_epsilon": "layernorm_epsilon",
    "swiglu": "gated_linear_unit",
    "apply_layernorm_1p": "layernorm_zero_centered_gamma",
    "num_experts": "num_moe_experts",
    "use_rope_scaling": "rope_scaling",
    "rotary_seq_len_interpolation_factor": "seq_len_interpolation_factor",
}
"""Megatron-LM's options to Megatron-Core's settings."""


def from_arguments(arguments: Namespace, where: Path | str) -> ModelDescription:
    """The shape that Megatron-LM's command line gives (`args` of its checkpoints). Raises UserError as `from_config`
    does, naming the option."""
    given = vars(arguments)
    config = {_RENAMED.get(name, name): value for name, value in given.items()}
    if not given.get("swiglu"):
        raise UserError(f"{where}: swiglu is {given.get('swiglu')!r}; only models with --swiglu can be converted")
    config["activation_func"] = "swiglu"
    config["share_embeddings_and_output_weights"] = not given.get("untie_embeddings_and_output_weights", False)
    # Megatron-LM keeps num_query_groups 1 where it does not group the queries.
    if not given.get("group_query_attention"):
        config["num_query_groups"] = None
    return from_config(config, where)
