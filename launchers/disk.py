"""Disk space that a run takes: what each checkpoint keeps, what only the newest have, what is there while it trains.

Every checkpoint keeps its weights. The newest `keep_optimizer_states` keep the optimizer's state as well, without
which training cannot go on from them, and until a run is complete it has the newest `RESUME_STATES` states to resume
from. Counted in the layout of Megatron-Core's distributed checkpoints and compared with what runs have written
(tests/launchers/test_disk.py).

    kept_bytes(run, checkpoints_left=8) + meanwhile_bytes(run, checkpoints_left=8)     # at its fullest moment
"""

from __future__ import annotations

from recipes.checkpoint import RESUME_STATES
from recipes.grid import Run
from recipes.settings import RunSettings

TENSOR_BYTES = 2800
"""A stored tensor's part of the metadata and its frame in the file: 2250 to 3150 measured."""

PIECE_BYTES = 16
"""One piece of the tokenizer, which every checkpoint has a copy of."""

STEP_BYTES = 320
"""One training step in loss.csv and TensorBoard's file, about 280 measured."""


def checkpoint_bytes(settings: RunSettings) -> int:
    """What every checkpoint keeps: weights, in bf16 also where the layers compute in FP8, and the tokenizer."""
    each = 4 if settings.precision == "fp32" else 2
    return each * _parameters(settings) + TENSOR_BYTES * _tensors(settings) + PIECE_BYTES * settings.vocab_size


def optimizer_state_bytes(settings: RunSettings) -> int:
    """What a checkpoint has beside that to be resumed from: AdamW's two moments, and fp32 masters where the weights
    are bf16 or the distributed optimizer is at work."""
    numbers = 2 if settings.precision == "fp32" and not settings.distributed_optimizer else 3
    return numbers * (4 * _parameters(settings) + TENSOR_BYTES * _tensors(settings))


def kept_bytes(run: Run, checkpoints_left: int) -> int:
    """What a run that has `checkpoints_left` checkpoints to write adds to the disk for good, in bytes."""
    settings = run.settings
    total = len(settings.checkpoint_steps)
    keep = settings.keep_optimizer_states or total
    states = min(total, keep) - min(total - checkpoints_left, keep)
    journal = STEP_BYTES * settings.num_steps * checkpoints_left // total
    return checkpoints_left * checkpoint_bytes(settings) + states * optimizer_state_bytes(settings) + journal


def meanwhile_bytes(run: Run, checkpoints_left: int, resume_states: int = 0) -> int:
    """What it takes beside that until it is complete, `resume_states` of which are there already: the states to resume
    from, and the optimizer's state of a checkpoint that is written before an older one's is removed."""
    if not checkpoints_left:
        return 0
    settings = run.settings
    state = optimizer_state_bytes(settings)
    whole = checkpoint_bytes(settings) + state
    overlap = state if 0 < settings.keep_optimizer_states < len(settings.checkpoint_steps) else 0
    return max(0, RESUME_STATES - resume_states) * whole + overlap


def _parameters(settings: RunSettings) -> int:
    """Parameters as they are stored, the padding of both embeddings included."""
    return settings.parameters + 2 * (settings.padded_vocab_size - settings.vocab_size) * settings.hidden_size


def _tensors(settings: RunSettings) -> int:
    """Pieces that the parameters are stored in: six tensors a layer, both embeddings and the last norm."""
    return (6 * settings.num_layers + 3) * settings.tensor_parallel
