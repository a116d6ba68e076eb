"""A run's settings in Megatron-Core's words: arguments that its own classes and NeMo's take under the same names.

`recipes.precision` has those of the data types. Nothing here loads torch.
"""

from __future__ import annotations

from typing import Any

from recipes.settings import RunSettings

_RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {},
    "mlp": {"recompute_granularity": "selective", "recompute_modules": ["mlp"]},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}


def architecture(settings: RunSettings) -> dict[str, Any]:
    """The layers, as TransformerConfig and NeMo's GPTConfig take them; the activation function, SiLU, is torch's."""
    return {
        "num_layers": settings.num_layers,
        "hidden_size": settings.hidden_size,
        "ffn_hidden_size": settings.ffn_hidden_size,
        "num_attention_heads": settings.num_attention_heads,
        "num_query_groups": settings.num_query_groups,
        "kv_channels": settings.kv_channels,
        "qk_layernorm": settings.qk_layernorm,
        "normalization": "RMSNorm",
        "layernorm_epsilon": settings.layernorm_epsilon,
        "gated_linear_unit": True,
        "add_bias_linear": False,
    }


def parallel_sizes(settings: RunSettings) -> dict[str, Any]:
    """The cut of the model over its ranks, as TransformerConfig and NeMo's MegatronStrategy take it."""
    chunks = settings.virtual_pipeline_parallel
    return {
        "tensor_model_parallel_size": settings.tensor_parallel,
        "pipeline_model_parallel_size": settings.pipeline_parallel,
        "virtual_pipeline_model_parallel_size": chunks if chunks > 1 else None,
        "num_layers_in_first_pipeline_stage": settings.first_stage_layers or None,
        "num_layers_in_last_pipeline_stage": settings.last_stage_layers or None,
        "account_for_embedding_in_pipeline_split": settings.embedding_and_loss_as_layers,
        "account_for_loss_in_pipeline_split": settings.embedding_and_loss_as_layers,
        "context_parallel_size": settings.context_parallel,
        "sequence_parallel": settings.sequence_parallel,
    }


def recomputation(settings: RunSettings) -> dict[str, Any]:
    """What the backward pass computes again, as TransformerConfig and NeMo's GPTConfig take it."""
    return _RECOMPUTE[settings.recompute]


def optimizer(settings: RunSettings) -> dict[str, Any]:
    """AdamW and its learning rates, as OptimizerConfig takes them."""
    return {
        "optimizer": "adam",
        "lr": settings.learning_rate,
        "min_lr": settings.learning_rate * settings.min_learning_rate_ratio,
        "weight_decay": settings.weight_decay,
        "adam_beta1": settings.adam_beta1,
        "adam_beta2": settings.adam_beta2,
        "adam_eps": settings.adam_epsilon,
        "clip_grad": settings.clip_grad,
        "use_distributed_optimizer": settings.distributed_optimizer,
    }
