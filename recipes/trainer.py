"""One run's model, optimizer and schedule, and the two things done with them: a training step, and a held-out loss.

Everything that computes is Megatron-Core's: its DistributedDataParallel, optimizer, learning-rate schedule and
pipeline schedules.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func

from recipes import cpu, data, emulation, megatron_words, precision
from recipes.model import build_model
from recipes.settings import RunSettings


@dataclass(frozen=True)
class StepResult:
    """What a training step tells of itself."""

    loss: float
    """Mean loss of the global batch, nats per token."""
    grad_norm: float
    """Gradient norm before clipping."""
    learning_rate: float
    """Learning rate of the step."""
    seconds: float
    """Wall-clock time of the step."""


class Trainer:
    """A run's model with all that is needed to train it, on this rank's part of the layout."""

    def __init__(self, settings: RunSettings):
        self.settings = settings
        self.modules = build_model(settings)
        config = self.modules[0].config
        ddp = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=parallel_state.get_data_parallel_world_size() > 1,
            use_distributed_optimizer=settings.distributed_optimizer,
            **precision.ddp_config(settings),
        )
        self.models = [
            DistributedDataParallel(config, ddp, module, disable_bucketing=index > 0)
            for index, module in enumerate(self.modules)
        ]
        self.optimizer = get_megatron_optimizer(_optimizer_config(settings), self.models)
        for group in self.optimizer.param_groups:
            if "fused" in group:
                # torch's AdamW, which stands in where there is no fused one: in one pass over each tensor.
                group["fused"] = True
        self.scheduler = _scheduler(self.optimizer, settings)
        config.finalize_model_grads_func = finalize_model_grads
        if ddp.overlap_grad_reduce:
            # Gradients are reduced during the backward pass of the step's last micro-batch alone.
            no_sync = [model.no_sync for model in self.models]
            config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
            config.grad_sync_func = [model.start_grad_sync for model in self.models] if len(self.models) > 1 else None
        self._schedule = get_forward_backward_func()

    def step(
        self,
        dataset: torch.utils.data.Dataset,
        step: int,
        before_update: Callable[[float], None] = lambda loss: None,
    ) -> StepResult:
        """Train on the global batch of `step` (counted from 1).

        `before_update` gets the loss on every rank while the weights are still those before the step; what it
        raises leaves them so.
        """
        started = time.monotonic()
        settings = self.settings
        for model in self.models:
            model.train()
            model.zero_grad_buffer()
            emulation.next_step(model)
        self.optimizer.zero_grad()
        first = (step - 1) * settings.global_batch_size
        loss = self._run(dataset, first, settings.global_batch_size, forward_only=False)
        before_update(loss)
        # Before the optimizer, so that the first step trains and the last one has the final learning rate.
        self.scheduler.step(1)
        _, grad_norm, _ = self.optimizer.step()
        learning_rate = float(self.optimizer.param_groups[0]["lr"])
        return StepResult(loss, float(grad_norm or 0.0), learning_rate, time.monotonic() - started)

    def allocate_optimizer_state(self) -> None:
        """Let the optimizer make its state, as loading it wants; changes no weight before the schedule's first step.

        torch's AdamW makes it at its first step, and Megatron-Core's distributed optimizer counts on it before.
        """
        for optimizer in getattr(self.optimizer, "chained_optimizers", [self.optimizer]):
            inner = optimizer.optimizer
            for group in inner.param_groups:
                # A decay by a learning rate of 0.
                assert group["lr"] == 0.0
                for parameter in group["params"]:
                    parameter.grad = torch.zeros_like(parameter)
            inner.step()
            inner.zero_grad()

    def pass_over(self) -> float:
        """Count a step without a batch or an update; its learning rate."""
        self.scheduler.step(1)
        return float(self.optimizer.param_groups[0]["lr"])

    @torch.no_grad()
    def heldout_losses(self, heldout: dict[str, torch.utils.data.Dataset]) -> dict[str, float]:
        """Mean loss of each language's held-out sample, nats per token."""
        for model in self.models:
            model.eval()
        return {language: self._heldout_loss(dataset) for language, dataset in heldout.items()}

    def _heldout_loss(self, dataset: torch.utils.data.Dataset) -> float:
        settings = self.settings
        group = settings.micro_batch_size * parallel_state.get_data_parallel_world_size()
        if settings.virtual_pipeline_parallel > 1:
            # The interleaved schedule goes round its stages with whole groups of micro-batches.
            group *= settings.pipeline_parallel
        return self._run(dataset, 0, math.ceil(len(dataset) / group) * group, forward_only=True)

    def _run(self, dataset: torch.utils.data.Dataset, first: int, count: int, *, forward_only: bool) -> float:
        """Mean loss over samples, through the pipeline schedule of the layout; the same on every rank."""
        settings = self.settings
        size = settings.micro_batch_size
        batches = [data.micro_batches(dataset, first, count, size) for _ in self.models]
        losses = self._schedule(
            forward_step_func=_forward_step,
            data_iterator=batches if len(batches) > 1 else batches[0],
            model=self.models,
            num_microbatches=count // (size * parallel_state.get_data_parallel_world_size()),
            seq_length=settings.sequence_length,
            micro_batch_size=size,
            forward_only=forward_only,
        )
        return _mean_over_ranks(losses)


def _forward_step(batches: Iterator[dict[str, torch.Tensor]], model: torch.nn.Module):
    batch = next(batches)
    # On a CPU the attention is causal by itself; Transformer Engine's too.
    output = model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])

    def loss_function(per_token: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        mask = batch["loss_mask"].view(-1)
        total = torch.sum(per_token.float().view(-1) * mask)
        tokens = mask.sum()
        # Megatron-Core multiplies by the ranks that share a sequence, for it wants the mean over all of them.
        shared = tokens.clamp(min=1) * parallel_state.get_context_parallel_world_size()
        return total / shared, {"total": total.detach().double(), "tokens": tokens.double()}

    return output, loss_function


def _mean_over_ranks(losses: list[dict[str, torch.Tensor]]) -> float:
    """The mean loss a token over micro-batches and replicas, from the last pipeline stage to every rank."""
    sums = torch.zeros(2, dtype=torch.float64, device=cpu.device())
    for entry in losses:
        sums += torch.stack([entry["total"], entry["tokens"]])
    if parallel_state.get_data_parallel_world_size(with_context_parallel=True) > 1:
        torch.distributed.all_reduce(sums, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        torch.distributed.broadcast(
            sums,
            parallel_state.get_pipeline_model_parallel_last_rank(),
            group=parallel_state.get_pipeline_model_parallel_group(),
        )
    return (sums[0] / sums[1]).item()


def _optimizer_config(settings: RunSettings) -> OptimizerConfig:
    return OptimizerConfig(**megatron_words.optimizer(settings), **precision.optimizer_config(settings))


def _scheduler(optimizer: torch.optim.Optimizer, settings: RunSettings) -> OptimizerParamScheduler:
    """Linear warm-up, then a cosine to the final learning rate at the last step, in steps."""
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=settings.learning_rate,
        min_lr=settings.learning_rate * settings.min_learning_rate_ratio,
        lr_warmup_steps=min(settings.num_warmup_steps, settings.num_steps - 1),
        lr_decay_steps=settings.num_steps,
        lr_decay_style="cosine",
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=settings.num_steps,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=True,
        override_opt_param_scheduler=False,
    )
