"""Greedy decoding of many rows behind one prefix, which is read and kept once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from emergence_eval.shared_attention import KeysValues, Rows, Trees, read

KEPT_ROWS = 0.75
"""Finished rows are taken out when fewer than this share of the rows still go on: taking out copies the others."""


class Stops:
    """Tells when a row's text is complete.

    Args:
        strings: stop sequences.
        eos: token ids that end a text.
    """

    def __init__(self, tokenizer: Any, strings: Sequence[str], eos: Sequence[int]) -> None:
        self._tokenizer, self._eos = tokenizer, frozenset(eos)
        self._strings = [string for string in strings if string]
        # A token is a byte at least, so that no stop sequence spans more tokens than it has bytes.
        self._window = 2 + max((len(string.encode()) for string in self._strings), default=0)

    def __call__(self, rows: Sequence[list[int]]) -> list[bool]:
        """Whether each row of generated ids is complete; to be asked after every token."""
        tails = self._tokenizer.batch_decode([ids[-self._window :] for ids in rows])
        return [
            ids[-1] in self._eos or (self._stopped(tail) and self._stopped(self._tokenizer.decode(ids)))
            for ids, tail in zip(rows, tails, strict=True)
        ]

    def _stopped(self, text: str) -> bool:
        return any(string in text for string in self._strings)


def generate(
    model: PreTrainedModel,
    prefix: KeysValues | None,
    depth: int,
    prompts: Sequence[np.ndarray],
    room: int,
    complete: Callable[[Sequence[list[int]]], list[bool]],
    pass_tokens: int,
) -> list[list[int]]:
    """Continue each prompt with the likeliest tokens until it is complete.

    Args:
        prefix: keys and values of the first `depth` tokens, which all prompts share.
        prompts: token ids from `depth` on, at least one each.
        room: tokens to generate at most.
        complete: which rows of generated ids are complete.
        pass_tokens: prompt tokens that are read in one pass, at most.

    Returns:
        The generated ids of each prompt, those that made it complete included.
    """
    device = model.device
    lengths = np.array([len(prompt) for prompt in prompts])
    columns = int(lengths.max())
    own, last = _read_prompts(model, prefix, depth, prompts, columns + room, pass_tokens)
    visible = torch.ones(len(prompts), columns + room, dtype=torch.bool)
    for row, length in enumerate(lengths):
        visible[row, length:columns] = False
    steps = Rows(own, visible.to(device), prefix, model.dtype)
    del own
    generated: list[list[int]] = [[] for _ in prompts]
    rows, going = np.arange(len(prompts)), np.ones(len(prompts), dtype=bool)
    for step in range(room):
        tokens = last.argmax(-1)
        for row, token, goes in zip(rows, tokens.tolist(), going, strict=True):
            if goes:
                generated[row].append(token)
        going[going] = ~np.array(complete([generated[row] for row in rows[going]]))
        if not going.any() or step + 1 == room:
            break
        if going.sum() < KEPT_ROWS * len(rows):
            kept = torch.from_numpy(np.flatnonzero(going)).to(device)
            steps.select(kept)
            rows, tokens, going = rows[going], tokens[kept], going[going]
        steps.column = columns + step
        positions = torch.from_numpy(depth + lengths[rows] + step).to(device)
        last = read(model, tokens, positions, steps, torch.arange(len(rows), device=device))
    return generated


def _read_prompts(
    model: PreTrainedModel,
    prefix: KeysValues | None,
    depth: int,
    prompts: Sequence[np.ndarray],
    columns: int,
    pass_tokens: int,
) -> tuple[KeysValues, torch.Tensor]:
    """Keys and values of each prompt, [prompts, groups, columns, size] a layer, and the logits behind each."""
    device = model.device
    own: KeysValues = []
    last = []
    start = 0
    while start < len(prompts):
        end, tokens = start + 1, len(prompts[start])
        while end < len(prompts) and tokens + len(prompts[end]) <= pass_tokens:
            tokens += len(prompts[end])
            end += 1
        sizes = [len(prompt) for prompt in prompts[start:end]]
        reading = Trees([np.arange(-1, n - 1) for n in sizes], prefix, device, model.dtype, keep=True)
        ids = torch.from_numpy(np.concatenate(prompts[start:end]).astype(np.int64)).to(device)
        positions = torch.from_numpy(np.concatenate([np.arange(depth, depth + n) for n in sizes])).to(device)
        last.append(read(model, ids, positions, reading, torch.from_numpy(np.cumsum(sizes) - 1).to(device)))
        if not own:
            own = [
                tuple(it.new_zeros(len(prompts), it.shape[1], columns, it.shape[3]) for it in pair)
                for pair in reading.kept or []
            ]
        places = np.cumsum([0, *sizes])
        for pair, kept in zip(own, reading.kept or [], strict=True):
            for to, of in zip(pair, kept, strict=True):
                for row, (first, size) in enumerate(zip(places, sizes, strict=False), start):
                    to[row, :, :size] = of[0, :, first : first + size]
        start = end
    return own, torch.cat(last)
