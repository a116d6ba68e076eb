"""A run's shape as a Megatron-Core GPTModel.

The architecture is LLaMA's (RMSNorm, SwiGLU, no biases, untied embeddings) with grouped-query attention and
rotary embedding on half of each head (Du et al. 2024, App. A.2). On a GPU its layers are Transformer
Engine's; on a CPU Megatron-Core's local ones, around those of `recipes.layers`.
"""

from __future__ import annotations

import hashlib
import math

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from recipes import cpu, emulation, megatron_words, precision
from recipes.layers import LocalGPTModel, RMSNorm, SwiGLU, TorchAttention
from recipes.settings import RunSettings

_SCALED_OUTPUTS = ("linear_proj.weight", "linear_fc2.weight")
_NORMS = ("layernorm.weight", "layer_norm_weight")


def layer_spec(
    config: TransformerConfig, settings: RunSettings, chunk: int | None = None
) -> ModuleSpec | TransformerBlockSubmodules:
    """What the layers of this rank's model chunk are made of: Transformer Engine's on a GPU, local ones without."""
    if cpu.has_gpu():
        return get_gpt_layer_with_transformer_engine_spec(qk_layernorm=settings.qk_layernorm)
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer = spec.submodules
    layer.input_layernorm = layer.pre_mlp_layernorm = RMSNorm
    attention = layer.self_attention.submodules
    attention.core_attention = TorchAttention
    if settings.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    layer.mlp.submodules.activation_func = SwiGLU
    layers = [spec] * get_num_layers_to_build(config, chunk)
    if settings.precision == "fp8-emulated":
        layers = emulation.layer_specs(spec, settings, get_transformer_layer_offset(config, chunk), len(layers))
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=RMSNorm)


def transformer_config(settings: RunSettings) -> TransformerConfig:
    """Megatron-Core's configuration of a run's model."""
    return TransformerConfig(
        **megatron_words.architecture(settings),
        activation_func=F.silu,
        bias_activation_fusion=cpu.has_gpu(),
        # Off the GPU, "TE" is whatever the layer specification puts there: recipes.layers.SwiGLU.
        use_te_activation_func=not cpu.has_gpu(),
        hidden_dropout=0.0,
        attention_dropout=0.0,
        # `initialize` draws the weights, the same ones on every layout. Megatron-Core's own step stays on, for it
        # marks the tensor-parallel parameters, without which the gradient norm misses all ranks but the first.
        init_method=_leave,
        output_layer_init_method=_leave,
        **precision.config(settings),
        **megatron_words.parallel_sizes(settings),
        # In batches, two stages would mix up what they send each other for one chunk and for another.
        overlap_p2p_comm=settings.virtual_pipeline_parallel > 1,
        batch_p2p_comm=settings.virtual_pipeline_parallel == 1,
        **megatron_words.recomputation(settings),
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        cross_entropy_loss_fusion=cpu.has_gpu(),
        cross_entropy_fusion_impl="te" if cpu.has_gpu() else "native",
    )


def _leave(weight: torch.Tensor) -> torch.Tensor:
    return weight


def build_model(settings: RunSettings) -> list[GPTModel]:
    """This rank's part of a run's model with its initial weights: a model for each of its virtual pipeline stages.

    Needs `recipes.distributed.process_groups`.
    """
    config = transformer_config(settings)
    if settings.virtual_pipeline_parallel == 1:
        return [_build_chunk(settings, config, None)]
    return [_build_chunk(settings, config, chunk) for chunk in range(settings.virtual_pipeline_parallel)]


def _build_chunk(settings: RunSettings, config: TransformerConfig, chunk: int | None) -> GPTModel:
    model = (GPTModel if cpu.has_gpu() else LocalGPTModel)(
        config=config,
        transformer_layer_spec=layer_spec(config, settings, chunk),
        vocab_size=settings.padded_vocab_size,
        max_sequence_length=settings.sequence_length,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=chunk),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=chunk),
        vp_stage=chunk,
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
        rotary_percent=settings.rotary_percent,
        rotary_base=settings.rotary_base,
    )
    if not settings.fp8_params:
        # FP8 weights are where they belong, and Module.to would take them for plain ones.
        model.to(cpu.device(), config.params_dtype)
    with precision.plain_weights(model):
        initialize(model, settings)
    return model


@torch.no_grad()
def initialize(model: GPTModel, settings: RunSettings) -> None:
    """Draw the initial weights: normal with `init_std`, output projections divided by sqrt(2 layers), norms 1.

    Each tensor is a function of the seed, its name and its layer alone, drawn whole and then cut to this
    rank's part, so that every tensor- and pipeline-parallel layout starts from the same model.
    """
    shards = model.sharded_state_dict()
    apply_factories(shards)
    for shard in nested_values(shards):
        if not isinstance(shard, ShardedTensor) or shard.data is None:
            continue
        if shard.key.endswith(_NORMS):
            shard.data.fill_(1.0)
            continue
        std = settings.init_std
        if shard.key.endswith(_SCALED_OUTPUTS):
            std /= math.sqrt(2 * settings.num_layers)
        shard.data.copy_(_draw(shard, std, settings.seed))


def _draw(shard: ShardedTensor, std: float, seed: int) -> torch.Tensor:
    """This rank's part of a tensor of normal deviates. Stacked layers are drawn one by one."""
    stacked = shard.prepend_axis_num
    layer = shard.global_offset[:stacked]
    name = f"{seed}/{shard.key}/{','.join(map(str, layer))}"
    digest = hashlib.blake2b(name.encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    whole = torch.randn(shard.global_shape[stacked:], generator=generator) * std
    part = tuple(
        slice(start, start + size) for start, size in zip(shard.global_offset[stacked:], shard.local_shape, strict=True)
    )
    return whole[part]
