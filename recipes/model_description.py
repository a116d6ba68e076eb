"""A run's model in the words of NeMo 2.0: `context/model.yaml` of a checkpoint."""

from __future__ import annotations

from typing import Any

from recipes.megatron_words import architecture
from recipes.precision import is_bf16
from recipes.settings import RunSettings


def model_description(settings: RunSettings) -> dict[str, Any]:
    """The model as NeMo 2.0's `context/model.yaml` describes it."""
    return {
        "_target_": "nemo.collections.llm.gpt.model.base.GPTModel",
        "config": {
            "_target_": "nemo.collections.llm.gpt.model.base.GPTConfig",
            **architecture(settings),
            "activation_func": {"_target_": "torch.nn.functional.silu", "_call_": False},
            "position_embedding_type": "rope",
            "rotary_percent": settings.rotary_percent,
            "rotary_base": settings.rotary_base,
            "rotary_interleaved": False,
            "share_embeddings_and_output_weights": False,
            "seq_length": settings.sequence_length,
            "make_vocab_size_divisible_by": settings.vocab_multiple,
            "vocab_size": settings.padded_vocab_size,
            "bf16": is_bf16(settings),
            "params_dtype": {
                "_target_": "torch.bfloat16" if is_bf16(settings) else "torch.float32",
                "_call_": False,
            },
        },
        "tokenizer": {
            "_target_": "nemo.collections.common.tokenizers.sentencepiece_tokenizer.SentencePieceTokenizer",
            "model_path": "tokenizer/tokenizer.model",
        },
    }
