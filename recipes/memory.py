"""Bytes that a run needs on its fullest GPU: weights, gradients, optimizer, activations, item by item.

Weights, gradients and optimizer states are counted tensor by tensor as Megatron-Core lays them out (tested
against what it allocates). Activations follow Korthikanti et al. 2022, §4, with what has changed since: no
s x s matrix (flash attention), SwiGLU, grouped queries, no dropout masks, Transformer Engine's fused norms.

    python -m recipes.parallel --grid paper --cluster dgx-a100 --run 32B-2.5T --gpus 2048
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from recipes.settings import RunSettings

GRADIENT_BYTES = 4
"""DDP's gradient buffer is fp32 (grad_reduce_in_fp32)."""

_ALIGNMENT = 64
"""Elements at whose multiples a parameter starts in the distributed optimizer's buffer."""


@dataclass(frozen=True)
class Stage:
    """What one pipeline stage holds."""

    index: int
    layers: int
    """Transformer layers, over all virtual stages."""
    embedding: bool
    """Whether it has the input embedding."""
    output: bool
    """Whether it has the final norm, the output layer and the loss."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU of a pipeline stage."""

    stage: int
    """Pipeline stage, from 0."""
    weights: int
    """Parameters in the precision of the forward pass."""
    gradients: int
    """The fp32 gradient buffer."""
    optimizer: int
    """AdamW's two moments and, below fp32, the master weights; this rank's shard of them."""
    activations: int
    """What the layers keep for the backward pass, of all micro-batches in flight."""
    logits: int
    """The output layer's logits, their fp32 copy and their gradient."""
    workspace: int
    """The largest of what lives for one layer only: gradients of activations, one weight gradient, gathered inputs."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + max(self.logits, 0) + self.workspace

    def items(self) -> Iterator[tuple[str, int]]:
        """Name and bytes of each part."""
        for name in ("weights", "gradients", "optimizer", "activations", "logits", "workspace"):
            yield name, getattr(self, name)


def stages(settings: RunSettings) -> tuple[Stage, ...]:
    """The pipeline stages of a checked layout, in order."""
    parallel = settings.pipeline_parallel
    if parallel == 1:
        return (Stage(0, settings.num_layers, True, True),)
    if settings.embedding_and_loss_as_layers:
        each = (settings.num_layers + 2) // parallel
        counts = [each] * parallel
        counts[0] -= 1
        counts[-1] -= 1
    else:
        first, last = settings.first_stage_layers, settings.last_stage_layers
        parts = parallel - bool(first) - bool(last)
        each = (settings.num_layers - first - last) // parts if parts else 0
        counts = [each] * parallel
        counts[0] = first or each
        counts[-1] = last or each
    return tuple(Stage(i, n, i == 0, i == parallel - 1) for i, n in enumerate(counts))


def parameter_sizes(settings: RunSettings, stage: Stage) -> tuple[int, ...]:
    """Elements of each parameter tensor on one rank of a stage."""
    return _sizes(*_shape(settings), stage.layers, stage.embedding, stage.output)


def parameter_count(settings: RunSettings, stage: Stage) -> int:
    """Elements of all of them."""
    return _count(*_shape(settings), stage.layers, stage.embedding, stage.output)


def _shape(settings: RunSettings) -> tuple[int, ...]:
    query = settings.num_attention_heads * settings.kv_channels
    key_value = settings.num_query_groups * settings.kv_channels
    head_norm = settings.kv_channels if settings.qk_layernorm else 0
    widths = (settings.hidden_size, query, key_value, head_norm, settings.ffn_hidden_size, settings.padded_vocab_size)
    return settings.tensor_parallel, *widths


# The planner asks for the same few stages thousands of times.
@lru_cache(maxsize=256)
def _sizes(
    tensor: int,
    hidden: int,
    query: int,
    key_value: int,
    head_norm: int,
    feed_forward: int,
    vocabulary: int,
    layers: int,
    embedding: bool,
    output: bool,
) -> tuple[int, ...]:
    layer = (
        hidden,
        hidden * (query + 2 * key_value) // tensor,
        query * hidden // tensor,
        *([head_norm] * 2 if head_norm else []),
        hidden,
        hidden * 2 * feed_forward // tensor,
        feed_forward * hidden // tensor,
    )
    table = vocabulary * hidden // tensor
    return (table,) * embedding + layer * layers + (hidden, table) * output


@lru_cache(maxsize=256)
def _count(*stage: int) -> int:
    return sum(_sizes(*stage))


@lru_cache(maxsize=256)
def _aligned_count(*stage: int) -> int:
    end = 0
    for size in _sizes(*stage):
        end = _up(end, _ALIGNMENT) + size
    return end


def weight_bytes(settings: RunSettings, stage: Stage) -> int:
    """Bytes of a stage's weights on one rank."""
    count = parameter_count(settings, stage)
    if settings.precision in ("fp32", "fp8-emulated"):
        return 4 * count
    if settings.precision == "bf16":
        return 2 * count
    table = settings.padded_vocab_size * settings.hidden_size // settings.tensor_parallel
    others = table * (stage.embedding + stage.output) + settings.hidden_size * (2 * stage.layers + stage.output)
    linear = count - others
    # Each linear weight stands there in FP8 twice, as it is and transposed; in bf16 too unless FP8 is its own type.
    return 2 * others + (2 if settings.fp8_params else 4) * linear


def optimizer_bytes(settings: RunSettings, stage: Stage, replicas: int) -> int:
    """Bytes of the optimizer's states on the rank that holds most: replicas include the context-parallel ranks."""
    each = 8 if settings.precision in ("fp32", "fp8-emulated") else 12
    count = parameter_count(settings, stage)
    if not settings.distributed_optimizer:
        return each * count
    return each * min(count, math.ceil(buffer_elements(settings, stage, replicas) / replicas))


def buffer_elements(settings: RunSettings, stage: Stage, replicas: int) -> int:
    """Elements of DDP's gradient buffer on one rank, its padding included (param_and_grad_buffer.py, 0.16)."""
    if not settings.distributed_optimizer:
        return parameter_count(settings, stage)
    end = _aligned_count(*_shape(settings), stage.layers, stage.embedding, stage.output)
    return _up(end, math.lcm(replicas, 128))


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def layer_activation_bytes(settings: RunSettings) -> int:
    """Bytes that one layer keeps of one micro-batch for its backward pass, with nothing computed again."""
    wide, narrow = _element_bytes(settings)
    tensor = settings.tensor_parallel
    sequence = tensor if settings.sequence_parallel else 1
    hidden, feed_forward = settings.hidden_size, settings.ffn_hidden_size
    query = settings.num_attention_heads * settings.kv_channels // tensor
    key_value = max(1, settings.num_query_groups // tensor) * settings.kv_channels
    # The fused projection, which the values are a view of: with fewer groups than ranks, all ranks' gathered.
    projected = query + 2 * key_value
    if settings.num_query_groups < tensor:
        projected = (settings.num_attention_heads + 2 * settings.num_query_groups) * settings.kv_channels
    per_token = (
        # Both norms' inputs, which the residual stream keeps, and their outputs, the linear layers' inputs.
        2 * wide * hidden / sequence
        + 2 * narrow * hidden / sequence
        # It and the rotated queries and keys, with norms of their own the normed ones too.
        + wide * projected
        + wide * (query + key_value) * (2 if settings.qk_layernorm else 1)
        # Attention's output, for itself and as the next layer's input, and its fp32 log-sum-exp.
        + (wide if narrow == wide else wide + narrow) * query
        + 4 * settings.num_attention_heads / tensor
        # SwiGLU's two halves and its output.
        + wide * 2 * feed_forward / tensor
        + narrow * feed_forward / tensor
    )
    return int(_tokens(settings) * per_token)


def _kept_layer_bytes(settings: RunSettings) -> int:
    """`layer_activation_bytes` under the recomputation of the settings."""
    if settings.recompute == "none":
        return layer_activation_bytes(settings)
    if settings.recompute == "mlp":
        return layer_activation_bytes(settings) - _feed_forward_bytes(settings)
    return _stream_bytes(settings)


def _feed_forward_bytes(settings: RunSettings) -> int:
    """What the feed-forward layers keep of one micro-batch: their norm's output, SwiGLU's halves and its output."""
    wide, narrow = _element_bytes(settings)
    sequence = settings.tensor_parallel if settings.sequence_parallel else 1
    inner = settings.ffn_hidden_size / settings.tensor_parallel
    return int(_tokens(settings) * (narrow * settings.hidden_size / sequence + (2 * wide + narrow) * inner))


def _stream_bytes(settings: RunSettings) -> int:
    """The residual stream of one micro-batch on one rank."""
    sequence = settings.tensor_parallel if settings.sequence_parallel else 1
    return _tokens(settings) * settings.hidden_size * _element_bytes(settings)[0] // sequence


def _element_bytes(settings: RunSettings) -> tuple[int, int]:
    """Bytes of an activation, and of one that a linear layer keeps as its input."""
    if settings.precision in ("fp32", "fp8-emulated"):
        return 4, 4
    return 2, 1 if settings.precision == "fp8" else 2


def _tokens(settings: RunSettings) -> int:
    """Tokens of a micro-batch on one rank."""
    return settings.micro_batch_size * settings.sequence_length // settings.context_parallel


def layers_in_flight(settings: RunSettings, stage: Stage, micro_batches: int) -> float:
    """Layers x micro-batches whose activations a stage holds at its fullest: 1F1B, or interleaved with virtual
    stages (schedules.get_pp_rank_microbatches)."""
    behind = settings.pipeline_parallel - stage.index - 1
    chunks = settings.virtual_pipeline_parallel
    if chunks == 1:
        return stage.layers * min(micro_batches, behind + 1)
    held = min(micro_batches * chunks, 2 * behind + (chunks - 1) * settings.pipeline_parallel + 1)
    return stage.layers / chunks * held


def stage_memory(settings: RunSettings, stage: Stage, data_parallel: int) -> Memory:
    """Bytes on one GPU of a stage, `data_parallel` replicas training the run."""
    replicas = data_parallel * settings.context_parallel
    micro_batches = settings.global_batch_size // data_parallel // settings.micro_batch_size
    in_flight = layers_in_flight(settings, stage, micro_batches)
    stream, whole_layer = _stream_bytes(settings), layer_activation_bytes(settings)
    activations = int(in_flight * _kept_layer_bytes(settings))
    if settings.pipeline_parallel > 1 and stage.layers:
        # The output that was sent on, which the backward pass starts from.
        activations += int(in_flight * settings.virtual_pipeline_parallel / stage.layers * stream)
    if settings.recompute != "none":
        # What one layer computes again is there for a moment.
        activations += whole_layer if settings.recompute == "full" else _feed_forward_bytes(settings)
    logits = 0
    if stage.output:
        activations += 2 * stream
        row = settings.padded_vocab_size // settings.tensor_parallel
        logits = _tokens(settings) * row * (_element_bytes(settings)[0] * 2 + 4)
    return Memory(
        stage=stage.index,
        weights=weight_bytes(settings, stage),
        gradients=GRADIENT_BYTES * buffer_elements(settings, stage, replicas),
        optimizer=optimizer_bytes(settings, stage, replicas),
        activations=activations,
        logits=logits,
        workspace=_workspace_bytes(settings, stage),
    )


def _workspace_bytes(settings: RunSettings, stage: Stage) -> int:
    wide, _ = _element_bytes(settings)
    gathered = _tokens(settings) * settings.hidden_size * wide
    gradients = _tokens(settings) * 3 * settings.ffn_hidden_size // settings.tensor_parallel * wide
    return 2 * gathered + gradients + wide * max(parameter_sizes(settings, stage), default=0)


def worst_rank(settings: RunSettings, data_parallel: int) -> Memory:
    """The fullest GPU of a layout."""
    found = stages(settings)
    # Stages between the first and the last are alike but for the micro-batches in flight, most of them in the second.
    ends = {0, 1, len(found) - 1} & set(range(len(found)))
    return max((stage_memory(settings, found[i], data_parallel) for i in ends), key=lambda memory: memory.total)
