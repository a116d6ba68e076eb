"""The layout of a run over its processes, checked before anything starts: tensor x pipeline x context x data
parallel ranks, by Megatron-Core's rules and by those that it forgets to check.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tokenizer.cli import UserError

if TYPE_CHECKING:
    from recipes.settings import RunSettings


def divisors(number: int, largest: int = 128) -> str:
    """The divisors of `number` up to `largest`, in words: ``divisors(6) == "1, 2, 3 or 6"``."""
    found = [str(d) for d in range(1, min(number, largest) + 1) if number % d == 0]
    return " or ".join(filter(None, [", ".join(found[:-1]), found[-1]]))


def world_size() -> int:
    """Processes of this run, as torchrun says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process among those of its run, as torchrun says; the first writes the run's files."""
    return int(os.environ.get("RANK", "0"))


def model_parallel_size(settings: RunSettings) -> int:
    """Ranks that hold one replica of the model."""
    return settings.tensor_parallel * settings.pipeline_parallel * settings.context_parallel


def check(settings: RunSettings) -> None:
    """UserError unless the model can be cut as the settings say, on however many replicas."""
    _check_tensor(settings)
    _check_pipeline(settings)
    if (context := settings.context_parallel) > 1 and settings.sequence_length % (2 * context):
        raise UserError(
            f"sequence_length {settings.sequence_length} is no multiple of 2 x context_parallel={context}; causal "
            "attention is shared in pairs of slices"
        )


def _check_tensor(settings: RunSettings) -> None:
    tensor = settings.tensor_parallel
    groups = settings.num_query_groups
    if groups % tensor and tensor % groups:
        # With fewer groups than ranks, each group's keys and values are computed by several ranks.
        raise UserError(
            f"{groups} query groups do not divide over tensor_parallel={tensor}; {divisors(groups)} would, "
            f"and multiples of {groups}"
        )
    for value, what in (
        (settings.num_attention_heads, "attention heads"),
        (settings.ffn_hidden_size, "feed-forward channels"),
        (settings.padded_vocab_size, "rows of the padded vocabulary"),
    ):
        if value % tensor:
            raise UserError(f"{value} {what} do not divide over tensor_parallel={tensor}; {divisors(value)} would")
    if settings.sequence_parallel and tensor == 1:
        raise UserError("sequence_parallel shares activations over tensor-parallel ranks; set tensor_parallel above 1")
    share = tensor * settings.context_parallel
    if settings.sequence_parallel and settings.sequence_length % share:
        raise UserError(
            f"sequence_length {settings.sequence_length} does not divide over {share} ranks with sequence_parallel; "
            f"{divisors(settings.sequence_length)} would"
        )


def _check_pipeline(settings: RunSettings) -> None:
    stages, chunks = settings.pipeline_parallel, settings.virtual_pipeline_parallel
    uneven = settings.first_stage_layers or settings.last_stage_layers
    if stages == 1 and (chunks > 1 or uneven or settings.embedding_and_loss_as_layers):
        raise UserError(
            "virtual_pipeline_parallel, first_stage_layers, last_stage_layers and embedding_and_loss_as_layers cut "
            "a pipeline; set pipeline_parallel above 1"
        )
    if uneven and settings.embedding_and_loss_as_layers:
        raise UserError("first_stage_layers and last_stage_layers exclude embedding_and_loss_as_layers; keep one way")
    layers, parts = settings.num_layers, stages
    for given in (settings.first_stage_layers, settings.last_stage_layers):
        if given:
            layers, parts = layers - given, parts - 1
    if settings.embedding_and_loss_as_layers:
        layers += 2
    what = f"{layers} layers" if layers == settings.num_layers else f"{layers} layers, of {settings.num_layers},"
    if layers < parts or (parts == 0 and layers) or (parts and layers % parts):
        fitting = f"{divisors(layers)} would" if layers > 0 and parts else "change first_stage_layers"
        raise UserError(f"{what} do not divide over {parts} stages of pipeline_parallel={stages}; {fitting}")
    each = {layers // parts} if parts else set()
    for count in each | ({settings.first_stage_layers, settings.last_stage_layers} - {0}):
        if count % chunks:
            raise UserError(
                f"a stage's {count} layers do not divide into virtual_pipeline_parallel={chunks} chunks; "
                f"{divisors(count)} would"
            )


def data_parallel_size(settings: RunSettings, processes: int | None = None) -> int:
    """Replicas of the model over `processes` (by default this run's). UserError if the layout does not fit them."""
    processes = world_size() if processes is None else processes
    model_parallel = model_parallel_size(settings)
    replicas, rest = divmod(processes, model_parallel)
    if rest or not replicas:
        parts = f"tensor_parallel={settings.tensor_parallel} x pipeline_parallel={settings.pipeline_parallel}"
        if settings.context_parallel > 1:
            parts += f" x context_parallel={settings.context_parallel}"
        raise UserError(
            f"{processes} processes do not divide into {parts} = {model_parallel}; "
            f"start them with torchrun --nproc-per-node {model_parallel} or a multiple"
        )
    batch, micro = settings.global_batch_size, settings.micro_batch_size
    if batch % replicas:
        below = max(d for d in range(1, replicas) if batch % d == 0)
        above = next(d for d in range(replicas + 1, batch + 1) if batch % d == 0) if replicas < batch else None
        fitting = f"{below} or {above} would" if above else f"{below} would"
        raise UserError(f"{batch} sequences do not divide over {replicas} data-parallel replicas; {fitting}")
    if (batch // replicas) % micro:
        raise UserError(
            f"{batch // replicas} sequences a replica are no multiple of micro_batch_size {micro}; "
            f"{divisors(batch // replicas)} would divide them"
        )
    micro_batches = batch // replicas // micro
    if settings.virtual_pipeline_parallel > 1 and micro_batches % settings.pipeline_parallel:
        raise UserError(
            f"{micro_batches} micro-batches a step are no multiple of pipeline_parallel={settings.pipeline_parallel}, "
            "as virtual pipeline stages want; change micro_batch_size or the number of processes"
        )
    return replicas
