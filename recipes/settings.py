"""What a run is: every setting of one training from scratch to one token budget, checked when it is built.

A grid file (`recipes.grid`) names these settings for many runs; the command line overrides them for one:

    python -m recipes.pretrain --grid recipes/grids/smoke.yaml --run small-41k --out runs/smoke learning_rate=1e-3
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from tokenizer.cli import UserError

PRECISIONS = ("fp32", "bf16")
"""Training precisions that `recipes.model` can build."""

RESERVED_RUN_NAMES = frozenset({"tokenizer", "data", "report", "logs"})
"""Names of the other directories beside the runs in a grid's directory."""

ROUNDING_TOLERANCE = 0.005
"""A token budget may differ from a whole number of steps by this share. *Ours*: the paper prints budgets
such as 67B that are no whole number of its steps (1152 x 2048 tokens)."""

_MAGNITUDES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def parse_count(text: str | int | float) -> int:
    """A count such as ``"67B"``, ``"1.5M"``, ``"250k"`` or ``4096`` as an integer.

    Raises ValueError for anything else.
    """
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise ValueError(f"{text!r} is no count; write 67B, 1.5M or 4096")
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?)\s*([kKMBT]?)", str(text).replace("_", ""))
    if match is None:
        raise ValueError(f"{text!r} is no count; write 67B, 1.5M or 4096")
    value = float(match[1]) * _MAGNITUDES[match[2].upper()]
    return round(value)


def format_count(count: float) -> str:
    """A count in the shortest form with three digits: ``format_count(66_900_000) == "66.9M"``."""
    for suffix in ("T", "B", "M", "K"):
        if count >= _MAGNITUDES[suffix]:
            return f"{count / _MAGNITUDES[suffix]:.3g}{suffix}"
    return f"{count:.3g}"


@dataclass(frozen=True)
class RunSettings:
    """Settings of one run. The defaults are the paper's (App. A.2) where it reports a value, and *ours* where
    the docstring of a field says so. Raises UserError when a combination cannot be trained."""

    size: str
    """Name of the shape, as in the paper's tables: 300M, 1.5B, ..."""
    tokens: int
    """Training tokens: the budget at whose end the learning rate reaches its minimum."""

    hidden_size: int
    """Width of the residual stream."""
    ffn_hidden_size: int
    """Width of the feed-forward layer (each of SwiGLU's two halves)."""
    num_attention_heads: int
    """Query heads a layer."""
    num_layers: int
    """Transformer layers."""
    num_query_groups: int = 2
    """Key/value heads a layer (grouped-query attention). *Ours*: 2, not reported."""
    kv_channels: int = 128
    """Size of one attention head (App. A.2)."""
    rotary_percent: float = 0.5
    """Share of each head's dimensions that rotary embedding turns."""
    rotary_base: int = 10000
    """Base of the rotary frequencies. *Ours*: not reported."""
    layernorm_epsilon: float = 1e-5
    """RMSNorm's epsilon. *Ours*: not reported."""
    init_std: float = 0.02
    """Standard deviation of the initial weights; output projections get it divided by sqrt(2 layers).
    *Ours*: not reported."""
    vocab_size: int = 65024
    """Size of the tokenizer's vocabulary. *Ours*: the paper says about 65k."""
    vocab_multiple: int = 128
    """The embedding is padded to a multiple of this; independent of the layout, so that checkpoints are too."""

    sequence_length: int = 2048
    """Tokens a sequence."""
    global_batch_size: int = 1152
    """Sequences a step, over all data-parallel replicas."""
    micro_batch_size: int = 1
    """Sequences a replica takes through the model at once."""

    learning_rate: float = 4e-4
    """Peak learning rate."""
    min_learning_rate_ratio: float = 0.1
    """Final learning rate as a share of the peak. *Ours*: not reported."""
    warmup_steps: int = 2000
    """Steps of linear warm-up, at most `warmup_ratio` of the run. *Ours*: not reported."""
    warmup_ratio: float = 0.01
    """Upper bound of the warm-up as a share of the run. *Ours*: not reported."""
    adam_beta1: float = 0.9
    """AdamW's first decay rate."""
    adam_beta2: float = 0.95
    """AdamW's second decay rate."""
    adam_epsilon: float = 1e-8
    """AdamW's epsilon. *Ours*: not reported."""
    weight_decay: float = 0.1
    """AdamW's decoupled weight decay (not on norms). *Ours*: not reported."""
    clip_grad: float = 1.0
    """Largest gradient norm. *Ours*: not reported."""
    seed: int = 1234
    """Seed of the weights and of the order of the data."""
    precision: str = "fp32"
    """fp32 or bf16."""

    num_checkpoints: int = 1
    """Checkpoints of the run, evenly spaced; the last is the final one."""
    heldout_sequences: int = 128
    """Held-out sequences a language whose mean loss is taken at each checkpoint."""
    languages: dict[str, float] = field(default_factory=lambda: {"en": 4.0, "zh": 1.0})
    """Mixture of languages in tokens, as weights (the paper's 4:1)."""

    tensor_parallel: int = 1
    """Ranks that share each layer."""
    pipeline_parallel: int = 1
    """Ranks that share the stack of layers."""
    distributed_optimizer: bool = False
    """Shard the optimizer's state over the data-parallel replicas."""

    def __post_init__(self) -> None:
        self._check_positive()
        self._check_shape()
        self._check_schedule()

    def _check_positive(self) -> None:
        may_be_zero = {"warmup_steps", "warmup_ratio", "weight_decay", "seed", "min_learning_rate_ratio"}
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if value < 0 or (value == 0 and name not in may_be_zero) or not math.isfinite(value):
                raise UserError(f"{name} is {value}; it must be {'at least' if name in may_be_zero else 'above'} 0")
        if self.precision not in PRECISIONS:
            raise UserError(f"precision is {self.precision!r}; choose one of {', '.join(PRECISIONS)}")
        if not self.languages or any(weight <= 0 for weight in self.languages.values()):
            raise UserError(f"languages is {dict(self.languages)}; give each language a weight above 0, as en: 4")

    def _check_shape(self) -> None:
        heads, groups, tensor = self.num_attention_heads, self.num_query_groups, self.tensor_parallel
        if heads % groups:
            raise UserError(
                f"{heads} attention heads do not divide into {groups} query groups; "
                f"{_divisors(heads)} query groups would"
            )
        if (rotary := self.kv_channels * self.rotary_percent) % 2:
            raise UserError(
                f"rotary_percent {self.rotary_percent} of kv_channels {self.kv_channels} is {rotary:g} dimensions; "
                "rotary embedding turns an even number of them"
            )
        for value, what in (
            (groups, "query groups"),
            (heads, "attention heads"),
            (self.ffn_hidden_size, "feed-forward channels"),
            (self.padded_vocab_size, "rows of the padded vocabulary"),
        ):
            if value % tensor:
                raise UserError(f"{value} {what} do not divide over tensor_parallel={tensor}; {_divisors(value)} would")
        if self.num_layers % self.pipeline_parallel:
            raise UserError(
                f"{self.num_layers} layers do not divide over pipeline_parallel={self.pipeline_parallel}; "
                f"{_divisors(self.num_layers)} would"
            )

    def _check_schedule(self) -> None:
        if self.global_batch_size % self.micro_batch_size:
            raise UserError(
                f"global_batch_size {self.global_batch_size} is no multiple of micro_batch_size "
                f"{self.micro_batch_size}; {_divisors(self.global_batch_size)} would divide it"
            )
        whole = self.num_steps * self.tokens_per_step
        if abs(whole - self.tokens) > ROUNDING_TOLERANCE * self.tokens:
            low = self.tokens // self.tokens_per_step
            near = " or ".join(f"{n * self.tokens_per_step:,} ({n} steps)" for n in (low, low + 1) if n)
            raise UserError(
                f"{self.tokens:,} tokens are {self.tokens / self.tokens_per_step:.2f} steps of "
                f"{self.global_batch_size} x {self.sequence_length} = {self.tokens_per_step:,} tokens; "
                f"write {near}, or change the batch"
            )
        if self.num_checkpoints > self.num_steps:
            raise UserError(
                f"{self.num_checkpoints} checkpoints do not fit in {self.num_steps} steps; "
                "lower num_checkpoints or raise tokens"
            )

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding: `vocab_size` rounded up to `vocab_multiple`."""
        return math.ceil(self.vocab_size / self.vocab_multiple) * self.vocab_multiple

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one global batch."""
        return self.global_batch_size * self.sequence_length

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run: the token budget in whole steps."""
        return max(1, round(self.tokens / self.tokens_per_step))

    @property
    def num_warmup_steps(self) -> int:
        """Steps of warm-up: `warmup_steps`, at most `warmup_ratio` of the run."""
        return min(self.warmup_steps, math.ceil(self.warmup_ratio * self.num_steps))

    @property
    def checkpoint_steps(self) -> tuple[int, ...]:
        """Steps after which a checkpoint is written, evenly spaced, the last being the last step."""
        return tuple(
            sorted({round(self.num_steps * i / self.num_checkpoints) for i in range(1, self.num_checkpoints + 1)})
        )

    @property
    def parameters_non_embedding(self) -> int:
        """Parameters of the layers and the final norm, without both embeddings."""
        query = self.num_attention_heads * self.kv_channels
        key_value = 2 * self.num_query_groups * self.kv_channels
        attention = self.hidden_size * (query + key_value) + query * self.hidden_size
        feed_forward = 3 * self.hidden_size * self.ffn_hidden_size
        norms = 2 * self.hidden_size
        return self.num_layers * (attention + feed_forward + norms) + self.hidden_size

    @property
    def parameters(self) -> int:
        """All parameters; the embeddings (input and output, untied) counted without padding."""
        return self.parameters_non_embedding + 2 * self.vocab_size * self.hidden_size

    def flops_6nd(self, tokens: int) -> float:
        """6·N·D, N without embeddings (Kaplan et al. 2020, §2.1): the field's estimate of training FLOPs."""
        return 6.0 * self.parameters_non_embedding * tokens

    def flops_exact(self, tokens: int) -> float:
        """Training FLOPs of all matrix products over `tokens` tokens, a multiply-add counting two and the
        backward pass twice the forward: the layers, the output layer, and causal attention's QKᵀ and AV,
        whose mean context is (s+1)/2 (as PaLM, Chowdhery et al. 2022, App. B, but causal)."""
        norms = self.num_layers * 2 * self.hidden_size + self.hidden_size
        matrices = self.parameters_non_embedding - norms + self.vocab_size * self.hidden_size
        query = self.num_attention_heads * self.kv_channels
        attention = self.num_layers * 2 * query * (self.sequence_length + 1) / 2
        return 6.0 * (matrices + attention) * tokens


def _divisors(number: int) -> str:
    divisors = [str(d) for d in range(1, min(number, 128) + 1) if number % d == 0]
    return " or ".join(filter(None, [", ".join(divisors[:-1]), divisors[-1]]))
