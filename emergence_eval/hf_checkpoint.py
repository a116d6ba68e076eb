"""Anybody's Hugging Face causal language model as a checkpoint to evaluate, from a directory or the hub.

What its config.json and the heads of its weight files say is read; nothing of the model's own code ever runs
(trust_remote_code is never given), and weights in pickles (pytorch_model*.bin) are looked through first as those of a
distributed checkpoint are. The network is asked only for a name that is no directory.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emergence_eval import hf_files, pickles
from emergence_eval.results import CheckpointIdentity
from emergence_eval.sources import fingerprint_files
from recipes.settings import format_count
from tokenizer.cli import UserError
from tokenizer.files import sha256_file

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "tokenizer_config.json")

_WANTED_OF_HUB = ["*.json", "*.safetensors", "*.txt", "tokenizer.model", "*.jinja"]
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings|embeddings)\.weight$")
_OUTPUT = re.compile(r"(^|\.)(lm_head|embed_out|output|output_layer)\.weight$")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")
_STEP = re.compile(r"step[_-]?(\d+)")
_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def find(name: str) -> tuple[Path, str]:
    """The directory of a model and what to call it: a directory as it is, else a name on the hub (`org/model` or
    `org/model@revision`), which is fetched. Raises UserError if there is neither."""
    directory = Path(name)
    if directory.is_dir():
        return directory, directory.resolve().name
    repository, _, revision = name.partition("@")
    if directory.exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repository):
        raise UserError(f"--hf-ckpt {name} is no directory; give one with config.json, or a model's name on the hub")
    import huggingface_hub

    try:
        found = huggingface_hub.snapshot_download(repository, revision=revision or None, allow_patterns=_WANTED_OF_HUB)
        if not hf_files.weight_files(Path(found)):
            patterns = [*_WANTED_OF_HUB, "pytorch_model*.bin"]
            found = huggingface_hub.snapshot_download(repository, revision=revision or None, allow_patterns=patterns)
    except UserError:
        raise
    except Exception as error:
        # The hub's client fails in the ways of a network; all of them mean that there is no model here.
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"--hf-ckpt {name} is no directory here and cannot be had from the hub ({type(error).__name__}: {reason}); "
            "fetch it where there is a network and give its directory"
        ) from None
    return Path(found), name.replace("/", "--")


def open_hf(name: str) -> tuple[Path, CheckpointIdentity]:
    """A model's directory and what it says of itself. Raises UserError for what is none."""
    directory, called = find(name)
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory} is no Hugging Face model (no config.json); give a model's directory")
    config = hf_files.read_object(directory / "config.json")
    config = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    shapes = _shapes(directory)
    if not shapes:
        raise UserError(f"{directory} holds no weights (no *.safetensors, no pytorch_model*.bin); fetch it again")
    tokenizer = [path for it in TOKENIZER_FILES if (path := directory / it).is_file()]
    if not tokenizer:
        raise UserError(f"{directory} holds no tokenizer ({', '.join(TOKENIZER_FILES[:3])}); copy the model's there")
    return directory, _identity(directory, called, config, shapes, tokenizer)


def _identity(
    directory: Path, called: str, config: dict[str, Any], shapes: dict[str, tuple[int, ...]], tokenizer: list[Path]
) -> CheckpointIdentity:
    embedding, output = (next((it for it in shapes if kind.search(it)), None) for kind in (_EMBEDDING, _OUTPUT))
    if output and config.get("tie_word_embeddings") and embedding:
        del shapes[output]
        output = None
    counts = {key: math.prod(shape) for key, shape in shapes.items()}
    ends = sum(counts[key] for key in (embedding, output) if key)
    vocabulary = config.get("vocab_size")
    if type(vocabulary) is not int:
        vocabulary = shapes[embedding][0] if embedding and shapes[embedding] else 0
    steps = _STEP.findall(called)
    length = next((it for key in _POSITIONS if type(it := config.get(key)) is int), 0)
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    values = {
        "seed": None,
        "step": int(steps[-1]) if steps else None,
        "final": None,
        "tokens": None,
        "flops_6nd": None,
        "flops_exact": None,
        "precision": _PRECISIONS.get(dtype),
        "sequence_length": length or None,
    }
    unknown = [key for key, value in values.items() if value is None]
    inner = sum(counts.values()) - ends
    stands = {"step": 0, "precision": "", "sequence_length": 0}
    return CheckpointIdentity(
        **{key: stands.get(key) if value is None else value for key, value in values.items()},
        grid="huggingface",
        run=called,
        size=format_count(inner),
        parameters=inner + ends,
        parameters_non_embedding=inner,
        losses={},
        vocab_size=vocabulary,
        tokenizer_sha256=hashlib.sha256("".join(sha256_file(path) for path in tokenizer).encode()).hexdigest(),
        data_fingerprint="",
        git_revision="",
        manifest_sha256=fingerprint_files(directory),
        origin="huggingface",
        unknown=[*unknown, "grid", "losses", "data_fingerprint", "git_revision"],
    )


def _shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    files = hf_files.weight_files(directory)
    if files:
        return {name: shape for path in files for name, shape, _ in hf_files.read_header(path)}
    return dict(it for path in sorted(directory.glob("pytorch_model*.bin")) for it in _of_pickle(path))


def _of_pickle(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes in a file of torch.save that holds tensors and nothing else. Raises UserError for anything
    else, by its name."""
    rebuilt = pickles.inert("Tensor")

    def find_name(module: str, name: str) -> Any:
        if (module, name) in (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter")):
            return rebuilt
        if module == "torch" and name.endswith("Storage"):
            return name
        if (module, name) == ("collections", "OrderedDict"):
            return pickles.ordered()
        return pickles.refuse(module, name)

    try:
        with path.open("rb") as stream:
            data = pickles.stored(stream, "data.pkl", path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    content = pickles.load(data, find_name, path, persistent=lambda pid: pid)
    if not isinstance(content, dict) or not all(type(it) is rebuilt for it in content.values()):
        raise UserError(f"{path} holds other things than tensors; give the model as safetensors")
    room = path.stat().st_size
    for name, tensor in content.items():
        inner = tensor.arguments[0]
        size = tuple((inner if type(inner) is rebuilt else tensor).arguments[2])
        if not all(type(it) is int and it >= 0 for it in size) or math.prod(size) > room:
            raise UserError(f"{path}: {str(name)[:80]!r} claims {size}, more than the file holds; it is damaged")
        yield str(name), size
