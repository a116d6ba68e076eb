"""What a run is: every setting of one training from scratch to one token budget, checked when it is built.

A grid file (`recipes.grid`) names these settings for many runs; the command line overrides them for one:

    python -m recipes.pretrain --grid recipes/grids/smoke.yaml --run small-41k --out runs/smoke learning_rate=1e-3
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from recipes import layout
from recipes.layout import divisors
from tokenizer.cli import UserError

PRECISIONS = ("fp32", "bf16", "fp8", "fp8-emulated")
"""Training precisions; `recipes.precision` says what each needs of the hardware."""

FP8_RECIPES = ("delayed", "tensorwise", "blockwise", "mxfp8")
"""Scaling recipes of Transformer Engine, by Megatron-Core's names."""

RECOMPUTE = ("none", "mlp", "full")
"""What the backward pass computes again instead of keeping: nothing, the feed-forward layers, or whole layers. Fused
attention keeps nothing that could be computed again."""

LAYOUT_SETTINGS = frozenset(
    {
        "tensor_parallel",
        "pipeline_parallel",
        "virtual_pipeline_parallel",
        "first_stage_layers",
        "last_stage_layers",
        "embedding_and_loss_as_layers",
        "context_parallel",
        "sequence_parallel",
        "distributed_optimizer",
        "micro_batch_size",
        "recompute",
    }
)
"""Settings that spread a run over processes; they do not change what is computed, beyond rounding."""

OPERATION_SETTINGS = frozenset(
    {"save_every_minutes", "async_save", "keep_optimizer_states", "max_loss_jump", "skip_steps"}
)
"""Settings of how a run is kept alive, which a resumed run may change."""

RESERVED_RUN_NAMES = frozenset({"world", "tokenizer", "data", "report", "logs"})
"""Names of the other directories beside the runs in a grid's directory."""

ROUNDING_TOLERANCE = 0.005
"""A token budget may differ from a whole number of steps by this share. *Ours*: the paper prints budgets
such as 67B that are no whole number of its steps (1152 x 2048 tokens)."""

_MAY_BE_ZERO = {
    *("warmup_steps", "warmup_ratio", "weight_decay", "seed", "min_learning_rate_ratio"),
    *("first_stage_layers", "last_stage_layers", "fp8_bf16_layers"),
    *("save_every_minutes", "keep_optimizer_states", "max_loss_jump"),
}

_CHOICES = {
    "precision": PRECISIONS,
    "fp8_recipe": FP8_RECIPES,
    "fp8_format": ("hybrid", "e4m3"),
    "recompute": RECOMPUTE,
}

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
    qk_layernorm: bool = False
    """RMSNorm over each head of queries and of keys (Dehghani et al. 2023, section 2; the norm of Qwen 3): attention
    is neither too flat nor too sharp whatever the width. Wants `rotary_percent` 1. Not in the paper's models."""
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
    """fp32, bf16, fp8 (Transformer Engine, on a GPU) or fp8-emulated (rounded to FP8 values, on a CPU)."""
    fp8_recipe: str = "tensorwise"
    """How FP8 values are scaled: delayed, tensorwise (per-tensor current), blockwise or mxfp8."""
    fp8_format: str = "hybrid"
    """hybrid (E4M3 forward, E5M2 for gradients) or e4m3 (all)."""
    fp8_amax_history: int = 1024
    """Steps (in Transformer Engine: micro-batches) whose largest values set the scale of the delayed recipe."""
    fp8_bf16_layers: int = 0
    """Layers at each end of the stack that stay in bf16."""
    fp8_params: bool = False
    """Keep the weights in FP8 as well, with fp32 masters in the optimizer."""

    num_checkpoints: int = 1
    """Checkpoints of the run, evenly spaced; the last is the final one."""
    heldout_sequences: int = 128
    """Held-out sequences a language whose mean loss is taken at each checkpoint."""
    languages: dict[str, float] = field(default_factory=lambda: {"en": 4.0, "zh": 1.0})
    """Mixture of languages in tokens, as weights (the paper's 4:1)."""
    source_weights: dict[str, dict[str, float]] = field(default_factory=dict)
    """Mixture of the sources within a language in tokens, as weights; a language that is not named takes its
    sources in proportion to their tokens."""

    tensor_parallel: int = 1
    """Ranks that share each layer."""
    pipeline_parallel: int = 1
    """Ranks that share the stack of layers."""
    virtual_pipeline_parallel: int = 1
    """Chunks of layers a pipeline rank holds (the interleaved schedule of Narayanan et al. 2021, §2.2)."""
    first_stage_layers: int = 0
    """Layers of the first pipeline stage; 0 for as many as the others."""
    last_stage_layers: int = 0
    """Layers of the last pipeline stage; 0 for as many as the others."""
    embedding_and_loss_as_layers: bool = False
    """Count the embedding and the output layer as one layer each when the stack is cut into stages."""
    context_parallel: int = 1
    """Ranks that share each sequence."""
    sequence_parallel: bool = False
    """Share the activations between the tensor-parallel layers along the sequence (Korthikanti et al. 2022)."""
    distributed_optimizer: bool = False
    """Shard the optimizer's state over the data-parallel replicas."""
    recompute: str = "none"
    """Activations computed again in the backward pass: none, mlp (feed-forward layers) or full (whole layers)."""

    save_every_minutes: float = 10.0
    """Longest time between two states that a run can resume from; 0 for those at the checkpoints alone."""
    async_save: bool = False
    """Write checkpoints while training goes on."""
    keep_optimizer_states: int = 2
    """Newest checkpoints that keep their optimizer state; 0 for all."""
    max_loss_jump: float = 0.0
    """Stop when a step's loss is this many nats above the mean of the steps before it; 0 for never. A loss that
    is not finite always stops the run."""
    skip_steps: tuple[int, ...] = ()
    """Steps whose batch is passed over without an update."""

    def __post_init__(self) -> None:
        self._check_positive()
        self._check_shape()
        self._check_schedule()
        layout.check(self)

    def _check_positive(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if value < 0 or (value == 0 and name not in _MAY_BE_ZERO) or not math.isfinite(value):
                raise UserError(f"{name} is {value}; it must be {'at least' if name in _MAY_BE_ZERO else 'above'} 0")
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise UserError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
        if not self.languages or any(weight <= 0 for weight in self.languages.values()):
            raise UserError(f"languages is {dict(self.languages)}; give each language a weight above 0, as en: 4")
        for language, weights in self.source_weights.items():
            if language not in self.languages:
                raise UserError(f"source_weights names the language {language!r}, languages does not; add it there")
            if not weights or any(weight <= 0 for weight in weights.values()):
                raise UserError(f"source_weights.{language} is {weights}; give each source a weight above 0")

    def _check_shape(self) -> None:
        heads, groups = self.num_attention_heads, self.num_query_groups
        if heads % groups:
            raise UserError(
                f"{heads} attention heads do not divide into {groups} query groups; "
                f"{divisors(heads)} query groups would"
            )
        if (rotary := self.kv_channels * self.rotary_percent) % 2:
            raise UserError(
                f"rotary_percent {self.rotary_percent} of kv_channels {self.kv_channels} is {rotary:g} dimensions; "
                "rotary embedding turns an even number of them"
            )
        if self.qk_layernorm and self.rotary_percent != 1:
            raise UserError(
                f"qk_layernorm with rotary_percent {self.rotary_percent} is no architecture that evaluation can "
                "convert (Qwen 3 turns whole heads); set rotary_percent: 1.0"
            )

    def _check_schedule(self) -> None:
        if self.global_batch_size % self.micro_batch_size:
            raise UserError(
                f"global_batch_size {self.global_batch_size} is no multiple of micro_batch_size "
                f"{self.micro_batch_size}; {divisors(self.global_batch_size)} would divide it"
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
        if outside := [step for step in self.skip_steps if not 1 <= step <= self.num_steps]:
            raise UserError(f"skip_steps names step {outside[0]}; the run has steps 1 to {self.num_steps}")
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
        return self.num_layers * (attention + feed_forward) + self._parameters_norms

    @property
    def _parameters_norms(self) -> int:
        a_layer = 2 * self.hidden_size + (2 * self.kv_channels if self.qk_layernorm else 0)
        return self.num_layers * a_layer + self.hidden_size

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
        matrices = self.parameters_non_embedding - self._parameters_norms + self.vocab_size * self.hidden_size
        query = self.num_attention_heads * self.kv_channels
        attention = self.num_layers * 2 * query * (self.sequence_length + 1) / 2
        return 6.0 * (matrices + attention) * tokens
