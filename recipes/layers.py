"""Layers of the local specification: what takes the place of Transformer Engine's fused kernels on a CPU.

Each is measured against the module that Megatron-Core or torch offers (docs/decisions.md); all give the same
numbers to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule

_CHUNK_ELEMENTS = 2**18
"""Logits worked on at once: 1 MB of fp32, so that they stay in a core's cache."""


class TorchAttention(MegatronModule):
    """Causal attention with grouped queries through torch's fused kernel, which keeps no s x s matrix."""

    def __init__(self, config: TransformerConfig, softmax_scale: float | None = None, **_: object) -> None:
        super().__init__(config=config)
        self.softmax_scale = softmax_scale

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object, **__: object
    ) -> torch.Tensor:
        """[s, b, heads, d] queries and [s, b, groups, d] keys and values to [s, b, heads * d]."""
        # The kernel is slower on Megatron's sequence-first strides than the copies are.
        query, key, value = (tensor.transpose(0, 1).contiguous().transpose(1, 2) for tensor in (query, key, value))
        context = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=self.softmax_scale, enable_gqa=query.size(1) != key.size(1)
        )
        return context.permute(2, 0, 1, 3).flatten(2)


class RMSNorm(torch.nn.Module):
    """RMSNorm (Zhang & Sennrich 2019) with a backward pass of its own: torch differentiates its parts one by one."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size))
        # Tells Megatron-Core to sum this gradient over the tensor-parallel ranks when each has part of a sequence.
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x / rms(x) * weight over the last dimension."""
        return _RMSNorm.apply(x, self.weight, self.eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        inverse_rms = (x.float().square().mean(-1, keepdim=True) + eps).rsqrt()
        ctx.save_for_backward(x, weight, inverse_rms)
        return (x * inverse_rms).to(x.dtype) * weight

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x, weight, inverse_rms = ctx.saved_tensors
        normed = x * inverse_rms
        along = grad * normed
        weight_grad = along.flatten(0, -2).sum(0)
        # d/dx of x/rms(x): the gradient less its part along the normed input.
        projection = (along @ weight.to(along.dtype)).unsqueeze(-1) / x.size(-1)
        x_grad = (grad * weight).sub_(normed.mul_(projection)).mul_(inverse_rms)
        return x_grad.to(x.dtype), weight_grad.to(weight.dtype), None


class SwiGLU(MegatronModule):
    """SwiGLU (Shazeer 2020) whose backward pass writes both halves of its gradient in place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., 2 * f], the gate before the value, to [..., f]."""
        return _SwiGLU.apply(x)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        gate, value = x.chunk(2, dim=-1)
        activated = F.silu(gate)
        ctx.save_for_backward(x, activated)
        return activated * value

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        x, activated = ctx.saved_tensors
        gate, value = x.chunk(2, dim=-1)
        x_grad = torch.empty_like(x)
        gate_grad, value_grad = x_grad.chunk(2, dim=-1)
        torch.mul(grad, activated, out=value_grad)
        torch.ops.aten.silu_backward.grad_input(grad * value, gate, grad_input=gate_grad)
        return x_grad


class LocalGPTModel(GPTModel):
    """GPTModel whose loss, on one tensor-parallel rank, is taken in chunks that fit in a core's cache."""

    def compute_language_model_loss(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of [s, b, vocabulary] logits with [b, s] labels, as [b, s]. The logits are used up."""
        if self.pg_collection.tp.size() > 1:
            return super().compute_language_model_loss(labels, logits)
        return _CrossEntropy.apply(logits, labels.transpose(0, 1)).transpose(0, 1).contiguous()


class _CrossEntropy(torch.autograd.Function):
    """Softmax cross-entropy that leaves its gradient where the logits were."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        rows = logits.detach().flatten(0, 1)
        targets = labels.flatten()
        losses = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
        size = max(1, _CHUNK_ELEMENTS // rows.size(1))
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            index = targets[start : start + size].unsqueeze(1)
            work = part.float()
            work.sub_(work.amax(-1, keepdim=True))
            target = work.gather(1, index)
            total = work.exp_().sum(-1, keepdim=True)
            losses[start : start + size] = (total.log() - target).squeeze(1)
            if ctx.needs_input_grad[0]:
                work.div_(total)
                work.scatter_add_(1, index, torch.full_like(target, -1.0))
                if work.dtype != part.dtype:
                    part.copy_(work)
        ctx.save_for_backward(rows)
        ctx.shape = logits.shape
        return losses.view(labels.shape)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (rows,) = ctx.saved_tensors
        return rows.mul_(grad.flatten().unsqueeze(1)).view(ctx.shape), None
