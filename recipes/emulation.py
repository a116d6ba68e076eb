"""FP8 training without FP8 hardware: the layers' linear modules with operands rounded to E4M3 and E5M2.

Each of a linear module's three products (output, gradient of the input, gradient of the weight) takes operands that
have the values of Transformer Engine's: scaled by the recipe, rounded to torch's float8 types, and multiplied with
sums in fp32. What Transformer Engine leaves in bf16 (embeddings, norms, attention, output head) stays so.

The recipes, after transformer_engine/common/recipe and Micikevicius et al. 2022 (arXiv 2209.05433):

- delayed: one scale a tensor, from the largest values of the steps before; new values above it saturate.
- tensorwise: one scale a tensor, from its own largest value.
- blockwise: a power of two for 1 x 128 values of activations and gradients and 128 x 128 of weights
  (DeepSeek-AI 2024, arXiv 2412.19437, §3.3).
- mxfp8: a power of two for 32 values (OCP Microscaling Formats 1.0).

    python -m recipes.pretrain --grid smoke --run small-20480 --out runs/smoke precision=fp8-emulated fp8_recipe=mxfp8
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer import ModuleSpec

from recipes import precision
from recipes.settings import RunSettings

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2

LARGEST = {dtype: torch.finfo(dtype).max for dtype in (E4M3, E5M2)}
"""Largest finite values: 448 and 57344."""

_VALUES = {dtype: torch.arange(256, dtype=torch.uint8).view(dtype).float() for dtype in (E4M3, E5M2)}
"""The value of each bit pattern: on a CPU a table is four times faster than torch's conversion."""

_EXPONENT_BITS = -(2**23)
"""Sign and exponent of an fp32 value: 0xFF800000."""


@dataclass(frozen=True)
class Quantized:
    """A matrix of FP8 values with the inverse of their scales."""

    data: torch.Tensor
    """[rows, columns], or with blocks [blocks down, rows a block, blocks across, columns a block], padded."""
    scale_inverse: torch.Tensor
    """fp32, of a shape that `data` broadcasts to."""
    shape: torch.Size
    """[rows, columns] of the matrix."""

    def dequantize(self) -> torch.Tensor:
        """The matrix that the FP8 values stand for, fp32."""
        patterns = self.data.view(torch.uint8).flatten().int()
        values = _VALUES[self.data.dtype].index_select(0, patterns).view(self.data.shape).mul_(self.scale_inverse)
        if values.dim() == 2:
            return values
        return values.flatten(2, 3).flatten(0, 1)[: self.shape[0], : self.shape[1]]


def saturate(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`x` rounded to the nearest FP8 value, ties to even, and to the largest one beyond it. NaN stays NaN."""
    largest = LARGEST[dtype]
    return x.clamp(-largest, largest).to(dtype)


def scale_of(amax: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The factor that brings `amax` to the largest FP8 value; 1 where there is nothing finite to scale.

    As compute_scale_from_amax in transformer_engine/common/recipe/recipe_common.cuh.
    """
    scale = (LARGEST[dtype] / amax).clamp(max=torch.finfo(torch.float32).max)
    return torch.where(torch.isfinite(amax) & (amax > 0), scale, torch.ones_like(scale))


def power_of_two_scale(amax: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`scale_of` rounded down to a power of two, by dropping its mantissa as Transformer Engine does."""
    return (scale_of(amax, dtype).view(torch.int32) & _EXPONENT_BITS).view(torch.float32)


def microscaling_scale(amax: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The inverse of the E8M0 value (2^-127 to 2^127) next above amax / largest, as MXFP8 stores it."""
    mantissa, exponent = torch.frexp(amax * (1.0 / LARGEST[dtype]))
    exponent = torch.where(mantissa > 0.5, exponent, exponent - 1).clamp(-127, 127)
    scale = torch.ldexp(torch.ones_like(amax), -exponent)
    return torch.where(torch.isfinite(amax) & (amax > 0), scale, torch.ones_like(scale))


ScaleRule = Callable[[torch.Tensor, torch.dtype], torch.Tensor]


def quantize(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> Quantized:
    """A matrix with one scale (a tensor with one element)."""
    return Quantized(saturate(x.float() * scale, dtype), scale.reciprocal(), x.shape)


def quantize_blocks(x: torch.Tensor, block: tuple[int, int], dtype: torch.dtype, rule: ScaleRule) -> Quantized:
    """A matrix with one scale for each `block` of [rows, columns]; the last blocks may be partly filled."""
    rows, columns = x.shape
    down, across = -(-rows // block[0]), -(-columns // block[1])
    padding = (0, across * block[1] - columns, 0, down * block[0] - rows)
    blocks = torch.nn.functional.pad(x.float(), padding).view(down, block[0], across, block[1])
    scale = rule(blocks.abs().amax((1, 3), keepdim=True), dtype)
    return Quantized(saturate(blocks * scale, dtype), scale.reciprocal(), x.shape)


Pair = tuple[Quantized, Quantized | None]
"""A matrix quantised for the product over its columns and, in training, for that over its rows."""


class Scaling(Protocol):
    """How the operands of one linear module are quantised."""

    def operand(self, which: int, x: torch.Tensor, *, training: bool) -> Pair:
        """Quantise a matrix: the input (0) or the gradient of the output (2), both [tokens, channels], or the
        weight (1), [output channels, input channels]."""


INPUT, WEIGHT, GRADIENT = range(3)


def _dtypes(settings: RunSettings) -> tuple[torch.dtype, torch.dtype, torch.dtype]:
    """FP8 types of input, weight and gradient."""
    return (E4M3, E4M3, E5M2 if settings.fp8_format == "hybrid" else E4M3)


class CurrentScaling:
    """Per-tensor scales from the tensor itself.

    The largest value is taken over the tensor- and context-parallel ranks, so that a layout does not change what is
    computed. Transformer Engine does so for tensors that are shared along the sequence; of the others each rank
    scales its part by itself.
    """

    def __init__(self, settings: RunSettings):
        self._dtypes = _dtypes(settings)

    def operand(self, which: int, x: torch.Tensor, *, training: bool) -> Pair:
        """See `Scaling`."""
        dtype = self._dtypes[which]
        both = quantize(x, scale_of(_amax(x, replicas=False), dtype), dtype)
        return both, both


class DelayedScaling:
    """Per-tensor scales from the largest values of the steps before (transformer_engine, DelayedScaling).

    Largest values are taken over all ranks that hold a part of the tensor or of its batch, as Transformer Engine
    does. It moves its history on after each micro-batch; here it moves on after each step, so that the number of
    micro-batches and of replicas does not change what is computed. With one micro-batch a step there is no
    difference. Held-out losses leave the history alone.
    """

    def __init__(self, settings: RunSettings):
        self._dtypes = _dtypes(settings)
        self._largest = torch.tensor([LARGEST[dtype] for dtype in self._dtypes])
        # Row 0 is the step that is under way.
        self._history = torch.zeros(settings.fp8_amax_history, 3)
        self._scales = torch.ones(3)

    def operand(self, which: int, x: torch.Tensor, *, training: bool) -> Pair:
        """See `Scaling`."""
        if training:
            seen = self._history[0, which]
            torch.maximum(seen, _amax(x, replicas=True), out=seen)
        both = quantize(x, self._scales[which], self._dtypes[which])
        return both, both

    def next_step(self) -> None:
        """Take new scales from the history and open its next row."""
        amax = self._history.amax(0)
        scales = (self._largest / amax).clamp(max=torch.finfo(torch.float32).max)
        self._scales = torch.where(torch.isfinite(amax) & (amax > 0), scales, self._scales)
        self._history = self._history.roll(-1, 0)
        self._history[0] = 0.0

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must hold."""
        return {"amax_history": self._history.clone(), "scale": self._scales.clone()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from `state`."""
        self._history, self._scales = state["amax_history"].clone(), state["scale"].clone()


class BlockScaling:
    """Scales of blocks. Operands that are multiplied along their rows are quantised anew in that direction, from
    the values before rounding, as Transformer Engine does."""

    def __init__(self, settings: RunSettings, size: int, rule: ScaleRule, *, square_weights: bool):
        self._dtypes = _dtypes(settings)
        self._size = size
        self._rule = rule
        self._square_weights = square_weights

    def operand(self, which: int, x: torch.Tensor, *, training: bool) -> Pair:
        """See `Scaling`."""
        dtype, size = self._dtypes[which], self._size
        if which == WEIGHT and self._square_weights:
            both = quantize_blocks(x, (size, size), dtype, self._rule)
            return both, both
        along = quantize_blocks(x, (1, size), dtype, self._rule)
        return along, quantize_blocks(x, (size, 1), dtype, self._rule) if training else None


def scaling(settings: RunSettings) -> Scaling:
    """The scaling of one linear module by the settings' recipe."""
    if settings.fp8_recipe == "delayed":
        return DelayedScaling(settings)
    if settings.fp8_recipe == "blockwise":
        return BlockScaling(settings, 128, power_of_two_scale, square_weights=True)
    if settings.fp8_recipe == "mxfp8":
        return BlockScaling(settings, 32, microscaling_scale, square_weights=False)
    return CurrentScaling(settings)


def _amax(x: torch.Tensor, *, replicas: bool) -> torch.Tensor:
    """The largest absolute value, fp32, over the ranks that share the tensor and, if asked, over the replicas."""
    smallest, largest = torch.aminmax(x.detach())
    amax = torch.maximum(-smallest, largest).float()
    if not parallel_state.model_parallel_is_initialized():
        return amax
    # The groups that Megatron-Core gives Transformer Engine.
    group = parallel_state.get_amax_reduction_group(with_context_parallel=True, tp_only_amax_red=not replicas)
    if group.size() > 1:
        torch.distributed.all_reduce(amax, op=torch.distributed.ReduceOp.MAX, group=group)
    return amax


class _Product(torch.autograd.Function):
    """x wᵀ with x [..., input channels] and w [output channels, input channels]."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, how: Scaling, training: bool) -> torch.Tensor:
        along, ctx.input = how.operand(INPUT, x.flatten(0, -2), training=training)
        weights, ctx.weight = how.operand(WEIGHT, weight, training=training)
        ctx.how = how
        y = along.dequantize() @ weights.dequantize().t()
        return y.to(x.dtype).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        along, down = ctx.how.operand(GRADIENT, grad.flatten(0, -2), training=True)
        x_grad = (along.dequantize() @ ctx.weight.dequantize()).to(grad.dtype)
        weight_grad = (down.dequantize().t() @ ctx.input.dequantize()).to(grad.dtype)
        return x_grad.view(*grad.shape[:-1], -1), weight_grad, None, None


class _Emulated:
    """What the column- and the row-parallel module have in common."""

    def __init__(self, *arguments: Any, settings: RunSettings, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.scaling = scaling(settings)

    def _forward_impl(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        allreduce_dgrad: bool = False,
        sequence_parallel: bool = False,
        **_: Any,
    ) -> torch.Tensor:
        if sequence_parallel:
            input = gather_from_sequence_parallel_region(input, tensor_parallel_output_grad=True, group=self.tp_group)
        elif allreduce_dgrad:
            input = copy_to_tensor_model_parallel_region(input, group=self.tp_group)
        output = _Product.apply(input, weight, self.scaling, self.training)
        return output if bias is None else output + bias

    def get_extra_state(self) -> dict[str, torch.Tensor] | None:
        """The delayed recipe's history, as Transformer Engine's modules keep it in a checkpoint."""
        return self.scaling.state() if isinstance(self.scaling, DelayedScaling) else None

    def set_extra_state(self, state: dict[str, torch.Tensor] | None) -> None:
        """Go on from a checkpoint's history."""
        if state is not None and isinstance(self.scaling, DelayedScaling):
            self.scaling.load(state)


class Fp8ColumnParallelLinear(_Emulated, ColumnParallelLinear):
    """Megatron-Core's ColumnParallelLinear with FP8 operands."""


class Fp8RowParallelLinear(_Emulated, RowParallelLinear):
    """Megatron-Core's RowParallelLinear with FP8 operands."""


def layer_specs(spec: ModuleSpec, settings: RunSettings, first: int, count: int) -> list[ModuleSpec]:
    """`spec` for each of `count` layers from `first` on, with FP8 operands in those that are not kept in bf16."""
    emulated = copy.deepcopy(spec)
    attention, mlp = emulated.submodules.self_attention.submodules, emulated.submodules.mlp.submodules
    attention.linear_qkv = mlp.linear_fc1 = ModuleSpec(Fp8ColumnParallelLinear, params={"settings": settings})
    attention.linear_proj = mlp.linear_fc2 = ModuleSpec(Fp8RowParallelLinear, params={"settings": settings})
    return [emulated if precision.is_fp8_layer(settings, first + index) else spec for index in range(count)]


def next_step(model: torch.nn.Module) -> None:
    """Tell the model's modules that a training step begins."""
    for module in model.modules():
        if isinstance(module, _Emulated) and isinstance(module.scaling, DelayedScaling):
            module.scaling.next_step()
