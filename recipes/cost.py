"""Time of a training step on a cluster, part by part: an explicit model with a dozen constants.

Matrix products run at the peak rate times an efficiency that falls with small dimensions, element-wise kernels at the
memory's bandwidth, collectives at that of NVLink or the network; docs/planner.md has the equations, what is
assumed, and how far it is from published measurements.

    python -m recipes.parallel --grid paper --cluster dgx-a100 --run 6B-3T --gpus 1024
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from recipes.cluster import Cluster
from recipes.memory import Stage, parameter_count, stages
from recipes.settings import RunSettings

LAUNCH_SECONDS = 150e-6
"""*Ours*: what the host needs to launch the forward pass of one layer (some 30 kernels); a layer is never faster."""

SLICE_SECONDS = 60e-6
"""*Ours*: what the host needs beyond that for each further slice of the keys under context parallelism."""

MESSAGE_SECONDS = 10e-6
"""*Ours*: latency of one collective or one send."""

STEP_SECONDS = 10e-3
"""*Ours*: what a step needs whatever its size: the batch, the gradient norm, the loss, logging."""

BUCKETS = 8
"""*Ours*: parts that overlapping collectives come in; the last one has nothing left to hide behind."""

BACKWARD_ATTENTION = 2.5
"""Products of attention's backward pass to those of its forward pass: five to two (Dao 2023, §3.1)."""

OPTIMIZER_BYTES = 30
"""Bytes that AdamW moves a parameter: reads gradient, master, two moments (16); writes three and the weight (14)."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step, by what they are spent on; the slowest stage's, and the bubble for the others."""

    products: float
    """Matrix products of layers and output layer, attention, recomputation."""
    elementwise: float
    """Norms, rotary embedding, SwiGLU, residuals, loss; and waiting for the host to launch kernels."""
    tensor_parallel: float
    """All-reduces, or their halves with sequence parallelism, inside the layers."""
    context_parallel: float
    """Keys and values passed around."""
    pipeline: float
    """Activations sent between stages."""
    bubble: float
    """Filling and draining the pipeline, and waiting for its slowest stage."""
    data_parallel: float
    """Gradients reduced and weights gathered, as far as no computation hides them."""
    optimizer: float
    """The update, bound by memory bandwidth."""
    fixed: float
    """`STEP_SECONDS`."""

    @property
    def total(self) -> float:
        """The whole step."""
        return sum(seconds for _, seconds in self.items())

    def items(self) -> Iterator[tuple[str, float]]:
        """Name and seconds of each part."""
        for name in self.__dataclass_fields__:
            yield name.replace("_", " "), getattr(self, name)


class _Parts(NamedTuple):
    """Seconds of one micro-batch through something, forward and backward, by what they are spent on."""

    products: float = 0.0
    elementwise: float = 0.0
    tensor: float = 0.0
    context: float = 0.0
    forward: float = 0.0
    """The forward pass's share of the sum, which the weights' gathering can hide behind."""

    @property
    def total(self) -> float:
        return self.products + self.elementwise + self.tensor + self.context

    def times(self, count: float) -> _Parts:
        return _Parts(*(count * part for part in self))

    def plus(self, other: _Parts) -> _Parts:
        return _Parts(*(a + b for a, b in zip(self, other, strict=True)))


class CostModel:
    """Step times of one run's layouts on one cluster; what layouts share is computed once."""

    def __init__(self, cluster: Cluster, overlap_gather: bool = False) -> None:
        """`overlap_gather`: whether the distributed optimizer's weights are gathered beside the forward pass.
        Megatron-Core can, `recipes.trainer` asks it to hide the gradients' reduction alone."""
        self.cluster = cluster
        self.overlap_gather = overlap_gather
        self._nvlink = cluster.nvlink_bandwidth * cluster.link_efficiency
        self._network = cluster.network_bandwidth * cluster.link_efficiency
        self._memory = cluster.memory_bandwidth * cluster.memory_efficiency
        self._cache: dict[tuple, tuple[_Parts, _Parts]] = {}

    def step_time(self, settings: RunSettings, data_parallel: int) -> StepTime:
        """Time of a step with `data_parallel` replicas. The layout must be legal (`recipes.layout`)."""
        layer, output = self._parts(settings)
        micro_batches = settings.global_batch_size // data_parallel // settings.micro_batch_size
        loads = [
            (stage, layer.times(stage.layers).plus(output if stage.output else _Parts())) for stage in _kinds(settings)
        ]
        _, slowest = max(loads, key=lambda load: load[1].total)
        all_stages = settings.num_layers * layer.total + output.total
        bubble = (all_stages - slowest.total) / settings.virtual_pipeline_parallel
        send = self._send_seconds(settings)
        chunks = settings.virtual_pipeline_parallel
        # With virtual stages sends run beside the computation, but for those that fill the pipeline.
        sends = (micro_batches if chunks == 1 else 0) + (settings.pipeline_parallel - 1) / chunks
        shown = max((load[0] for load in loads), key=lambda stage: parameter_count(settings, stage))
        work = slowest.times(micro_batches)
        return StepTime(
            products=work.products,
            elementwise=work.elementwise,
            tensor_parallel=work.tensor,
            context_parallel=work.context,
            pipeline=send * sends,
            bubble=bubble,
            data_parallel=self._data_parallel_seconds(settings, shown, slowest, data_parallel),
            optimizer=self._optimizer_seconds(settings, shown, data_parallel),
            fixed=STEP_SECONDS,
        )

    def least_seconds(self, settings: RunSettings, data_parallel: int) -> float:
        """A lower bound of `step_time` that is cheap to ask for: as if all stages were equally slow, with nothing sent
        between stages or replicas, and no update."""
        layer, output = self._parts(settings)
        micro_batches = settings.global_batch_size // data_parallel // settings.micro_batch_size
        all_stages = settings.num_layers * layer.total + output.total
        stage = all_stages / settings.pipeline_parallel
        return micro_batches * stage + (all_stages - stage) / settings.virtual_pipeline_parallel

    def _parts(self, settings: RunSettings) -> tuple[_Parts, _Parts]:
        """One micro-batch through one layer, and through the output layer and the loss."""
        it = settings
        key = (it.tensor_parallel, it.context_parallel, it.micro_batch_size, it.sequence_parallel, it.recompute)
        if key not in self._cache:
            self._cache[key] = self._layer(settings), self._output(settings)
        return self._cache[key]

    def _product(self, rows: float, columns: float, inner: float, precision: str) -> float:
        """Seconds of a matrix product [rows, inner] x [inner, columns]."""
        half = self.cluster.gemm_half_size
        share = rows / (rows + half) * columns / (columns + half) * inner / (inner + half)
        return 2 * rows * columns * inner / (self.cluster.rate(precision) * share)

    def _layer(self, settings: RunSettings) -> _Parts:
        it, tensor, tokens = settings, settings.tensor_parallel, _tokens(settings)
        query = it.num_attention_heads * it.kv_channels / tensor
        key_value = it.num_query_groups / tensor * it.kv_channels
        feed_forward = it.ffn_hidden_size / tensor
        shapes = [
            (query + 2 * key_value, it.hidden_size),
            (it.hidden_size, query),
            (2 * feed_forward, it.hidden_size),
            (it.hidden_size, feed_forward),
        ]
        linear = sum(self._product(tokens, columns, inner, it.precision) for columns, inner in shapes)
        if it.precision == "fp8" and it.fp8_bf16_layers:
            share = min(1.0, 2 * it.fp8_bf16_layers / it.num_layers)
            in_bf16 = sum(self._product(tokens, columns, inner, "bf16") for columns, inner in shapes)
            linear = (1 - share) * linear + share * in_bf16
        attention = self._attention(it, tokens * query)

        wide = 4 if it.precision == "fp32" else 2
        sequence = tensor if it.sequence_parallel else 1
        # Elements read and written: two norms (in, out), two residual sums (two in, one out), rotary, SwiGLU.
        moved = tokens * (10 * it.hidden_size / sequence + 2 * (query + 2 * key_value) + 3 * feed_forward)
        elementwise = wide * moved / self._memory
        casts = 0.0
        if it.precision == "fp8":
            # Inputs forward, gradients backward: two bytes read, an FP8 value and its transpose written.
            inputs, gradients = (sum(shape[side] for shape in shapes) for side in (1, 0))
            casts = 4 * tokens * (inputs + gradients) / self._memory

        if it.context_parallel > 1:
            # Partial results are rescaled in fp32 and added up, once for each slice of the keys.
            elementwise += 12 * it.context_parallel * tokens * query / self._memory

        passed = self._ring(tokens * it.hidden_size * wide, tensor, self._nvlink)
        # With fewer query groups than ranks, Megatron-Core gathers the whole projection on each.
        whole = tokens * (query + 2 * key_value) * tensor * wide
        gathered = self._ring(whole, tensor, self._nvlink) if it.num_query_groups < tensor else 0.0
        context = self._context_seconds(it, tokens * 2 * max(key_value, it.kv_channels) * wide)
        forward = _Parts(linear + attention, elementwise + casts / 2, 4 * passed + gathered, context)
        # With sequence parallelism the two column-parallel layers' inputs are gathered again.
        backward = _Parts(
            2 * linear + BACKWARD_ATTENTION * attention,
            2 * elementwise + casts / 2,
            (6 if it.sequence_parallel else 4) * passed + gathered,
            2 * context,
        )
        launch = LAUNCH_SECONDS + SLICE_SECONDS * (it.context_parallel - 1)
        forward = _at_least(forward, launch)
        backward = _at_least(backward, launch)
        if it.recompute == "full":
            backward = backward.plus(forward)
        if it.recompute == "mlp":
            again = sum(self._product(tokens, columns, inner, it.precision) for columns, inner in shapes[2:])
            moved = tokens * (2 * it.hidden_size / sequence + 3 * feed_forward)
            backward = backward.plus(_Parts(again, wide * moved / self._memory, 2 * passed))
        return forward.plus(backward)._replace(forward=forward.total)

    def _attention(self, settings: RunSettings, queries: float) -> float:
        """Seconds of causal attention's two products forward, `queries` being tokens x channels of a rank."""
        precision = "fp32" if settings.precision == "fp32" else "bf16"
        context = (settings.sequence_length + 1) / 2
        # Attention's kernels lose as products do where context parallelism cuts the sequence short.
        half = 2 * self.cluster.gemm_half_size
        short = (1 + half * settings.context_parallel / settings.sequence_length) / (
            1 + half / settings.sequence_length
        )
        return 4 * queries * context * short / (self.cluster.peak_flops[precision] * self.cluster.attention_efficiency)

    def _output(self, settings: RunSettings) -> _Parts:
        """The output layer, in bf16 whatever the layers are in, and the cross-entropy on fp32 logits."""
        it, tokens = settings, _tokens(settings)
        rows = it.padded_vocab_size / it.tensor_parallel
        product = self._product(tokens, rows, it.hidden_size, "fp32" if it.precision == "fp32" else "bf16")
        # Logits written, read as fp32, the softmax and the gradient written, the gradient read twice.
        elementwise = 16 * tokens * rows / self._memory
        passed = self._ring(tokens * it.hidden_size * 2, it.tensor_parallel, self._nvlink)
        return _Parts(3 * product, elementwise, 3 * passed)._replace(forward=product)

    def _ring(self, size: float, ranks: float, bandwidth: float) -> float:
        """An all-gather or a reduce-scatter of `size` bytes over `ranks`; an all-reduce takes two."""
        return 0.0 if ranks == 1 else size * (ranks - 1) / ranks / bandwidth + MESSAGE_SECONDS

    def _context_seconds(self, settings: RunSettings, key_values: float) -> float:
        ranks = settings.context_parallel
        if ranks == 1:
            return 0.0
        inside = settings.tensor_parallel * ranks <= self.cluster.gpus_per_node
        return (ranks - 1) * (key_values / (self._nvlink if inside else self._network) + MESSAGE_SECONDS)

    def _send_seconds(self, settings: RunSettings) -> float:
        """Exposed sends of one micro-batch between two stages, there and back, for all its chunks of layers."""
        if settings.pipeline_parallel == 1:
            return 0.0
        sequence = settings.tensor_parallel if settings.sequence_parallel else 1
        size = _tokens(settings) * settings.hidden_size * (4 if settings.precision == "fp32" else 2) / sequence
        # Megatron-Core places pipeline ranks furthest apart: on other nodes as soon as there are any.
        return 2 * settings.virtual_pipeline_parallel * (size / self._network + MESSAGE_SECONDS)

    def _data_parallel_seconds(self, settings: RunSettings, stage: Stage, work: _Parts, data_parallel: int) -> float:
        """What is left of the gradients' reduction behind the last micro-batch's backward pass, and the weights'
        gathering; with `overlap_gather` what is left of that behind the first one's forward pass."""
        ranks = data_parallel * settings.context_parallel
        if ranks == 1:
            return 0.0
        in_node = max(1, min(ranks, self.cluster.gpus_per_node // settings.tensor_parallel))
        # Each GPU has its own adapter, so that a ring over nodes has as many as it has members in a node.
        bandwidth = self._nvlink if in_node == ranks else min(self._nvlink, in_node * self._network)
        elements = parameter_count(settings, stage)
        reduce, gather = self._ring(4 * elements, ranks, bandwidth), self._ring(2 * elements, ranks, bandwidth)
        if settings.precision == "fp32":
            gather *= 2
        if not settings.distributed_optimizer:
            reduce, gather = 2 * reduce, 0.0
        if self.overlap_gather:
            gather = max(gather / BUCKETS, gather - work.forward)
        return max(reduce / BUCKETS, reduce - (work.total - work.forward)) + gather

    def _optimizer_seconds(self, settings: RunSettings, stage: Stage, data_parallel: int) -> float:
        elements = parameter_count(settings, stage)
        shard = elements
        if settings.distributed_optimizer:
            shard = elements / (data_parallel * settings.context_parallel)
        # The whole gradient buffer is set to zero, and scaled; the shard is read once more for its norm.
        return (OPTIMIZER_BYTES * shard + 4 * shard + 12 * elements) / self._memory


def _at_least(parts: _Parts, seconds: float) -> _Parts:
    """The host cannot launch a layer's kernels any faster: the time it lacks counts as element-wise."""
    return parts._replace(elementwise=parts.elementwise + max(0.0, seconds - parts.total))


def _tokens(settings: RunSettings) -> float:
    return settings.micro_batch_size * settings.sequence_length / settings.context_parallel


def _kinds(settings: RunSettings) -> list[Stage]:
    """The first, a middle and the last stage: all that differ."""
    found = stages(settings)
    return [found[i] for i in sorted({0, len(found) // 2, len(found) - 1})]
