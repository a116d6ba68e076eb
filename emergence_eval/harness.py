"""lm-evaluation-harness, quietly: a model directory as its language model.

Importing this module takes seconds (torch, transformers, the harness), so that `run.py` does it only when there
is something to evaluate. Models, tokenizers and data come from directories: nothing is looked up on a network.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from emergence_eval.generation import ATTENTION, greedy
from emergence_eval.task_scores import evaluate_task, load_tasks, sample_rows
from recipes.cpu import keep_freed_memory

__all__ = ["CachedHFLM", "Encodings", "evaluate_task", "load_model", "load_tasks", "sample_rows", "silence"]

Request = tuple[tuple[str, str], list[int], list[int]]
"""Context and continuation as text, the context's token ids, the continuation's token ids."""

GENERATION_BATCHES = 4
"""Scoring batches in a generation batch: one position a step leaves the processor idle in a small one."""

CACHED_CHARACTERS = 100_000_000
"""Text whose token ids are kept from one checkpoint to the next, at most."""


def silence() -> None:
    """Keep the harness and transformers from printing anything but errors."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in ("lm_eval", "datasets", "transformers", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lm_eval|transformers|torch)\b")


class Encodings:
    """Token ids of texts that were encoded before; checkpoints of one grid share their tokenizer."""

    def __init__(self) -> None:
        self._key: str | None = None
        self._ids: dict[str, list[int]] = {}
        self._characters = 0

    def use(self, key: str) -> None:
        """Forget what another tokenizer encoded."""
        if key != self._key:
            self._key, self._ids, self._characters = key, {}, 0

    def get(self, text: str) -> list[int] | None:
        """The ids of `text`, if they are known."""
        return self._ids.get(text)

    def put(self, text: str, ids: list[int]) -> None:
        """Remember the ids of `text`."""
        self._characters += len(text)
        if self._characters > CACHED_CHARACTERS:
            self._ids, self._characters = {}, len(text)
        self._ids[text] = ids


class CachedHFLM(HFLM):
    """The harness's Hugging Face model that encodes each text once for all checkpoints."""

    def __init__(self, encodings: Encodings, **options: Any) -> None:
        self._encodings = encodings
        super().__init__(**options)

    def tok_encode(self, string: str, *arguments: Any, **options: Any) -> list[int]:
        """Token ids of a text, remembered where the harness passes no options."""
        if arguments or options:
            return super().tok_encode(string, *arguments, **options)
        ids = self._encodings.get(string)
        if ids is None:
            ids = super().tok_encode(string)
            self._encodings.put(string, ids)
        return ids

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        context_ids, continuation_ids = super()._encode_pair(context, continuation)
        if not continuation_ids:
            # A merge across the joint left nothing to score: encode the two parts on their own.
            continuation_ids = self.tok_encode(continuation, add_special_tokens=False)
        return context_ids, continuation_ids

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-probability of each continuation and whether it is the greedy one."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: list[Request], *_: Any, **__: Any) -> list[tuple[float, bool]]:
        """The harness's scoring, a batch at a time, with the output layer applied only to the last positions
        of a batch: those that some request of it scores."""
        # A text longer than the whole context (a tiny model's) is scored as far as the model sees it.
        requests = [(texts, context, ids[-self.max_length :]) for texts, context, ids in requests]
        order = sorted(
            range(len(requests)), key=lambda i: (-len(requests[i][1]) - len(requests[i][2]), requests[i][1:])
        )
        answers: dict[int, tuple[float, bool]] = {}
        batch: list[int] = []
        prompts: set[tuple[int, ...]] = set()
        for index in order:
            _, context, continuation = requests[index]
            # Options of one token share their forward pass, which the harness sees only within a batch.
            prompt = tuple(context + continuation[:-1])
            if prompt not in prompts and len(prompts) == self.batch_size:
                self._score_batch(requests, batch, answers)
                batch, prompts = [], set()
            batch.append(index)
            prompts.add(prompt)
        self._score_batch(requests, batch, answers)
        return [answers[i] for i in range(len(requests))]

    def _score_batch(self, requests: list[Request], batch: list[int], answers: dict[int, tuple[float, bool]]) -> None:
        lengths = [min(len(requests[i][1]) + len(requests[i][2]) - 1, self.max_length) for i in batch]
        # Rows are padded on the right, so that a shorter row's scored positions lie further from the end.
        padding = [max(lengths) - length for length in lengths]
        self._scored_positions = max(p + len(requests[i][2]) for i, p in zip(batch, padding, strict=True))
        scores = super()._loglikelihood_tokens([requests[i] for i in batch], disable_tqdm=True)
        answers.update(zip(batch, scores, strict=True))

    def _model_call(self, inps: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        with torch.inference_mode():
            return self.model(inps, logits_to_keep=self._scored_positions, use_cache=False).logits

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Greedy continuations up to a stop sequence."""
        scoring, self.batch_size_per_gpu = self.batch_size_per_gpu, self.batch_size_per_gpu * GENERATION_BATCHES
        try:
            return super().generate_until(requests, disable_tqdm=True)
        finally:
            self.batch_size_per_gpu = scoring

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any) -> torch.Tensor:
        mask = options.get("attention_mask")
        mask = torch.ones_like(context) if mask is None else mask
        return greedy(self.model, self.tokenizer, context, mask, max_length, stop)


def load_model(
    directory: Path, tokenizer_key: str, encodings: Encodings, device: str, dtype: str, batch_size: int
) -> CachedHFLM:
    """A causal language model from a Hugging Face directory, through the harness's interface."""
    encodings.use(tokenizer_key)
    if device == "cpu":
        keep_freed_memory()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, dtype), local_files_only=True
    )
    model.set_attn_implementation(ATTENTION)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    return CachedHFLM(
        encodings,
        pretrained=model.to(device),
        tokenizer=tokenizer,
        max_length=model.config.max_position_embeddings,
        batch_size=batch_size,
    )
