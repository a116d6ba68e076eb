"""Forward passes over trees of tokens behind a prefix whose keys and values are kept.

A pass reads one row of tokens, whatever it holds: the model's layers know positions only from `position_ids`, and
attention, the one place where tokens meet, is replaced by one that knows which token sees which. It is put together
of two parts, the prefix (the same for all tokens, so that it is one product without copies) and the token's own
segment or row, each normalised on its own and weighted by its share of the whole exponential sum.

Works for every model of transformers that has rotary or learned positions and calls its attention through
`AttentionInterface`; `supports` finds out whether one does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "prefix_shared"
"""Name of the attention: `model.set_attn_implementation(ATTENTION)`. Outside of `read` it is transformers' own."""

KeysValues = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer, [1, groups, positions, head size]."""

SCORES = 2**26
"""Attention scores that are held at a time where there is no kernel that avoids holding them."""


KERNEL_ON = ("cpu",)
"""Devices with a kernel that takes any mask and also returns the exponential sums."""


class Reading(Protocol):
    """What the tokens of a pass see."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attention of [1, heads, tokens, head size] as [1, tokens, heads, head size]."""


_reading: Reading | None = None


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    if _reading is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _reading.attend(module.layer_idx, query, key, value, scale), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


@contextmanager
def _as_read(reading: Reading) -> Iterator[None]:
    global _reading
    _reading = reading
    try:
        yield
    finally:
        _reading = None


def read(
    model: PreTrainedModel, ids: torch.Tensor, positions: torch.Tensor, reading: Reading, keep: torch.Tensor
) -> torch.Tensor:
    """One pass.

    Args:
        ids: token ids [tokens]; positions: of each token in its prompt [tokens].
        keep: indices of the tokens whose logits are wanted.

    Returns:
        Logits [len(keep), vocabulary].
    """
    with torch.inference_mode(), _as_read(reading):
        return model(
            input_ids=ids[None],
            position_ids=positions[None],
            # A mask of four dimensions is taken as it is; the attention above does not look at it.
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device),
            use_cache=False,
            logits_to_keep=keep,
        ).logits[0]


def _part(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None = None,
    causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention [batch, heads, queries, size] and the logarithm of its exponential sum [batch, heads, queries]."""
    if query.device.type in KERNEL_ON:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=mask, scale=scale
        )
    batch, heads, queries, _ = query.shape
    step = max(1, SCORES // (batch * heads * key.shape[2]))
    outputs, sums = [], []
    for start in range(0, queries, step):
        rows = slice(start, start + step)
        scores = _product(query[:, :, rows], key.transpose(-1, -2)) * scale
        if causal:
            place = torch.arange(start, start + scores.shape[2], device=key.device)
            scores.masked_fill_(torch.arange(key.shape[2], device=key.device) > place[:, None], -torch.inf)
        elif mask is not None:
            scores += mask if mask.shape[2] == 1 else mask[:, :, rows]
        sums.append(scores.logsumexp(-1))
        outputs.append((scores - sums[-1][..., None]).exp_().to(value.dtype) @ value)
    return torch.cat(outputs, 2), torch.cat(sums, 2)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The product in fp32. TF32 holds all digits of bf16 and fp16, so that a GPU's fast units lose none of them."""
    if a.dtype == torch.float32:
        return a @ b
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return a.float() @ b.float()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _merged(a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Attention over the keys of both parts."""
    weight = torch.sigmoid(a[1].float() - b[1].float())[..., None]
    return torch.lerp(b[0].float(), a[0].float(), weight).to(a[0].dtype)


def _to_prefix(query: torch.Tensor, prefix: tuple[torch.Tensor, torch.Tensor], scale: float) -> Any:
    """The prefix's part for [1, heads, tokens, size]: heads of a group stand in for tokens, as nothing is masked."""
    _, heads, tokens, size = query.shape
    key, value = prefix
    groups = key.shape[1]
    output, total = _part(query.reshape(1, groups, heads // groups * tokens, size), key, value, scale)
    return output.reshape(heads, tokens, size), total.reshape(heads, tokens)


class Trees:
    """A pass over segments: each token sees the prefix and its ancestors in its own segment.

    Args:
        parents: of each token of each segment, its parent's index within the segment, -1 for none; the segments
            lie one behind the other.
        prefix: keys and values of the tokens before the segments.
        keep: whether to keep the pass's own keys and values in `kept`.
    """

    def __init__(
        self,
        parents: Sequence[np.ndarray],
        prefix: KeysValues | None,
        device: torch.device,
        dtype: torch.dtype,
        keep: bool = False,
    ) -> None:
        self.prefix = prefix
        self.kept: KeysValues | None = [] if keep else None
        sizes = [len(parent) for parent in parents]
        longest = max(sizes)
        starts = np.cumsum([0, *sizes[:-1]])
        places = np.arange(longest)
        self._shape = (len(sizes), longest)
        self._padded: torch.Tensor | None = None
        if len(sizes) > 1:
            inside = places < np.asarray(sizes)[:, None]
            self._padded = torch.from_numpy(np.where(inside, starts[:, None] + places, 0).reshape(-1)).to(device)
            self._back = torch.from_numpy(np.flatnonzero(inside.reshape(-1))).to(device)
        self._mask: torch.Tensor | None = None
        if any((parent != np.arange(-1, len(parent) - 1)).any() for parent in parents):
            visible = np.zeros((len(sizes), 1, longest, longest), dtype=bool)
            visible[:, 0] = np.eye(longest, dtype=bool)
            for matrix, parent in zip(visible[:, 0], parents, strict=True):
                _ancestors(matrix, parent)
            mask = torch.zeros(visible.shape, dtype=dtype)
            self._mask = mask.masked_fill_(torch.from_numpy(~visible), -torch.inf).to(device)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See `Reading`."""
        if self.kept is not None:
            self.kept.append((key, value))
        own = self._own(query, key, value, scale)
        if self.prefix is None:
            return own[0].transpose(0, 1)[None]
        return _merged(_to_prefix(query, self.prefix[layer], scale), own).transpose(0, 1)[None]

    def _own(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        heads, size = query.shape[1], query.shape[3]
        repeats = heads // key.shape[1]
        if repeats > 1:
            key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        if self._padded is None:
            output, total = _part(query, key, value, scale, self._mask, causal=self._mask is None)
            return output[0], total[0]
        rows, longest = self._shape
        query, key, value = (
            it[0].index_select(1, self._padded).view(heads, rows, longest, size).transpose(0, 1)
            for it in (query, key, value)
        )
        output, total = _part(query, key, value, scale, self._mask, causal=self._mask is None)
        output = output.transpose(0, 1).reshape(heads, rows * longest, size)
        return output.index_select(1, self._back), total.transpose(0, 1).reshape(heads, -1).index_select(1, self._back)


def _ancestors(visible: np.ndarray, parents: np.ndarray) -> None:
    """Fill in which token of a segment sees which: each runs of tokens in a row at once."""
    branches = np.flatnonzero(parents != np.arange(-1, len(parents) - 1))
    for start, end in zip([0, *branches], [*branches, len(parents)], strict=True):
        visible[start:end, start:end] = np.tri(end - start, dtype=bool)
        if start and parents[start] >= 0:
            visible[start:end, :start] = visible[parents[start], :start]


class Rows:
    """Steps of one token a row: each sees the prefix and its own row's earlier tokens.

    Args:
        own: keys and values of each row, [rows, groups, columns, size] a layer, with room for what is to come.
        visible: which columns each row sees [rows, columns].
    """

    def __init__(self, own: KeysValues, visible: torch.Tensor, prefix: KeysValues | None, dtype: torch.dtype) -> None:
        self.own, self.prefix = own, prefix
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        self._mask = mask.masked_fill_(~visible, -torch.inf)[:, None, None]
        self.column = 0
        """Where the tokens of this step are put."""

    def select(self, rows: torch.Tensor) -> None:
        """Go on with some rows only."""
        self.own = [(key[rows], value[rows]) for key, value in self.own]
        self._mask = self._mask[rows]

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See `Reading`."""
        _, heads, rows, size = query.shape
        groups = key.shape[1]
        keys, values = self.own[layer]
        keys[:, :, self.column] = key[0].transpose(0, 1)
        values[:, :, self.column] = value[0].transpose(0, 1)
        end = self.column + 1
        output, total = _part(
            query[0].view(groups, heads // groups, rows, size).permute(2, 0, 1, 3),
            keys[:, :, :end],
            values[:, :, :end],
            scale,
            self._mask[..., :end],
        )
        own = output.permute(1, 2, 0, 3).reshape(heads, rows, size), total.permute(1, 2, 0).reshape(heads, rows)
        if self.prefix is None:
            return own[0].transpose(0, 1)[None]
        return _merged(_to_prefix(query, self.prefix[layer], scale), own).transpose(0, 1)[None]


def extended(prefix: KeysValues | None, more: KeysValues) -> KeysValues:
    """The keys and values of a prefix and of the tokens behind it."""
    if prefix is None:
        return [(key.contiguous(), value.contiguous()) for key, value in more]
    return [
        (torch.cat([key, more_key], 2), torch.cat([value, more_value], 2))
        for (key, value), (more_key, more_value) in zip(prefix, more, strict=True)
    ]


def supports(model: PreTrainedModel, max_length: int) -> bool:
    """Whether the model's logits come out the same in shared passes, tried on a small tree of tokens.

    Models with attention of another kind in some layers (sliding windows shorter than the context, recurrences)
    are not.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if (window and window < max_length) or not kinds <= {"full_attention", "sliding_attention"} or max_length < 8:
        return False
    model.set_attn_implementation(ATTENTION)
    device, dtype = model.device, model.dtype
    ids = torch.arange(7, 14, device=device) % config.vocab_size
    place = torch.arange(7, device=device)
    both = [torch.cat([ids[:5], ids[i:j]]) for i, j in ((5, 6), (6, 7))]
    parents = np.array([-1, 0, 1, 1])
    try:
        with torch.inference_mode():
            plain = torch.stack([model(row[None], use_cache=False).logits[0, -1] for row in both])
        trunk = Trees([np.arange(-1, 2)], None, device, dtype, keep=True)
        read(model, ids[:3], place[:3], trunk, place[:1])
        tree = Trees([parents], extended(None, trunk.kept or []), device, dtype)
        shared = read(model, ids[3:], torch.tensor([3, 4, 5, 5], device=device), tree, place[2:4])
    except (TypeError, AttributeError, RuntimeError, ValueError, IndexError):
        return False
    allowed = 1e-3 if dtype == torch.float32 else 5e-2
    return bool((plain - shared).abs().max() <= allowed * plain.abs().max())
