"""lm-evaluation-harness, quietly: a model directory as its language model.

Importing this module takes seconds (torch, transformers, the harness), so that `run.py` does it only when there
is something to evaluate. Models, tokenizers and data come from directories: nothing is looked up on a network.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers

from emergence_eval.scoring import Encodings, HarnessLM, PrefixLM
from emergence_eval.sharding import Processes
from recipes.cpu import keep_freed_memory
from tokenizer.cli import UserError

__all__ = ["BACKENDS", "Encodings", "load_model", "silence"]

BACKENDS = ("ours", "hf", "vllm")
"""Who computes: `PrefixLM`, the harness's own model of transformers, its model of vLLM (a GPU only)."""


def silence() -> None:
    """Keep the harness and transformers from printing anything but errors."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in ("lm_eval", "datasets", "transformers", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lm_eval|transformers|torch)\b")


def load_model(
    directory: Path,
    tokenizer_key: str,
    encodings: Encodings,
    device: str,
    dtype: str,
    batch_size: int,
    backend: str = "ours",
    processes: Processes | None = None,
) -> Any:
    """A causal language model from a Hugging Face directory, through the harness's interface.

    Args:
        tokenizer_key: identifies the tokenizer; `encodings` are kept from one model to the next with the same.
        batch_size: prompts of the whole context length whose positions are held at a time.
        backend: one of `BACKENDS`.
        processes: those that share the work, from `sharding.start`.

    Raises:
        UserError: the backend cannot be had here.
    """
    if backend == "vllm":
        return _vllm(directory, dtype, batch_size, processes)
    encodings.use(tokenizer_key)
    if device == "cpu":
        keep_freed_memory()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, dtype), local_files_only=True, trust_remote_code=False
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    made = PrefixLM if backend == "ours" else HarnessLM
    return made(
        encodings,
        processes,
        pretrained=model.to(device).eval(),
        tokenizer=tokenizer,
        max_length=model.config.get_text_config().max_position_embeddings,
        batch_size=batch_size,
    )


def _vllm(directory: Path, dtype: str, batch_size: int, processes: Processes | None) -> Any:
    """The harness's model of vLLM, which caches prefixes itself."""
    if not torch.cuda.is_available():
        raise UserError("--backend vllm needs a GPU and there is none; use --backend ours")
    if importlib.util.find_spec("vllm") is None:
        raise UserError("--backend vllm needs vLLM, which is not installed (pip install vllm); use --backend ours")
    if processes is not None and processes.count > 1:
        raise UserError("--backend vllm shares out its work itself; start it without torchrun")
    from lm_eval.models.vllm_causallms import VLLM

    config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    return VLLM(
        pretrained=str(directory),
        dtype=dtype,
        batch_size=batch_size,
        max_model_len=config.get_text_config().max_position_embeddings,
        enable_prefix_caching=True,
        trust_remote_code=False,
    )
