"""The tokenizer of a checkpoint that is not ours: found in its directory or given, and as Hugging Face files.

Three kinds are taken: a directory of `tokenizer.train`, one with Hugging Face's tokenizer.json, and one with a
SentencePiece model made as `tokenizer.train` makes it (what NeMo keeps of a run trained on our data).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizer import vocabulary
from tokenizer.cli import UserError
from tokenizer.files import sha256_file
from tokenizer.vocabulary import EOD_ID, EOD_PIECE, MANIFEST_FILE, MODEL_FILE, PAD_ID, PAD_PIECE, UNK_ID, UNK_PIECE

HF_FILE = "tokenizer.json"
_HF_FILES = (HF_FILE, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")


@dataclass(frozen=True)
class FoundTokenizer:
    """A tokenizer and where it lies."""

    path: Path
    kind: str
    """ours, sentencepiece or huggingface."""
    vocab_size: int
    eod_id: int
    """Ends a document."""
    pad_id: int
    sha256: str
    """Of the file that says what the pieces are."""

    def write(self, out: Path) -> None:
        """Write the tokenizer as Hugging Face files into the directory `out`."""
        if self.kind == "huggingface":
            for name in _HF_FILES:
                if (self.path / name).is_file():
                    shutil.copyfile(self.path / name, out / name)
            return
        from emergence_eval.hf_tokenizer import write_hf_tokenizer

        with _as_ours(self.path) if self.kind == "sentencepiece" else _as_it_is(self.path) as directory:
            write_hf_tokenizer(directory, out)


def find_tokenizer(given: Path | None, places: Sequence[Path], checkpoint: Path) -> FoundTokenizer:
    """The tokenizer in the directory `given`, else in the first of `places` that holds one.

    Raises UserError if there is none, or it cannot be used.
    """
    for place in [given] if given else places:
        if (found := _recognise(place)) is not None:
            return found
    if given:
        raise UserError(
            f"--tokenizer {given} holds none (no {HF_FILE}, no {MODEL_FILE}); "
            "give a directory of tokenizer.train or of a Hugging Face tokenizer"
        )
    raise UserError(f"{checkpoint} carries no tokenizer; give the one that it was trained with: --tokenizer DIR")


def _recognise(directory: Path) -> FoundTokenizer | None:
    if (directory / MODEL_FILE).is_file() and (directory / MANIFEST_FILE).is_file():
        return _ours("ours", directory, directory)
    if (directory / HF_FILE).is_file():
        return _hugging_face(directory)
    if (directory / MODEL_FILE).is_file():
        with _as_ours(directory) as temporary:
            return _ours("sentencepiece", directory, temporary)
    return None


def _ours(kind: str, path: Path, directory: Path) -> FoundTokenizer:
    it = vocabulary.load(directory)
    return FoundTokenizer(path, kind, it.vocab_size, it.eod_id, it.pad_id, it.sha256)


@contextmanager
def _as_it_is(directory: Path) -> Iterator[Path]:
    yield directory


@contextmanager
def _as_ours(directory: Path) -> Iterator[Path]:
    """The SentencePiece model in `directory` as a directory of `tokenizer.train`, which says what made it."""
    import sentencepiece

    path = directory / MODEL_FILE
    model = path.read_bytes()
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError:
        raise UserError(f"{path} is no SentencePiece model; give the tokenizer with --tokenizer DIR") from None
    special = [processor.id_to_piece(token) for token in (UNK_ID, EOD_ID, PAD_ID) if token < processor.vocab_size()]
    if special != [UNK_PIECE, EOD_PIECE, PAD_PIECE]:
        raise UserError(
            f"{path}: its first pieces are {', '.join(special)}; of SentencePiece models only those of tokenizer.train "
            f"are converted without loss, so give this one's Hugging Face form with --tokenizer DIR ({HF_FILE})"
        )
    manifest = vocabulary.Manifest(
        vocab_size=processor.vocab_size(),
        sha256=vocabulary.sha256_bytes(model),
        ratio={},
        sampled_bytes={},
        documents=0,
        sentencepiece_version=importlib.metadata.version("sentencepiece"),
    )
    with tempfile.TemporaryDirectory(prefix="emergence-") as temporary:
        vocabulary.save(Path(temporary), model, manifest)
        yield Path(temporary)


def _hugging_face(directory: Path) -> FoundTokenizer:
    from tokenizers import Tokenizer

    path = directory / HF_FILE
    try:
        backend = Tokenizer.from_file(str(path))
        settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    except Exception as error:  # What `tokenizers` raises for a file that it cannot read is a bare Exception.
        raise UserError(f"{directory} holds no readable Hugging Face tokenizer ({error}); copy it again") from None
    eod = _token_id(backend, settings.get("eos_token"))
    if eod is None:
        raise UserError(f"{directory}: tokenizer_config.json names no eos_token that {HF_FILE} has; add it there")
    pad = _token_id(backend, settings.get("pad_token"))
    size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
    digest = hashlib.sha256(sha256_file(path).encode() + json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return FoundTokenizer(directory, "huggingface", size, eod, eod if pad is None else pad, digest)


def _token_id(backend: Any, token: Any) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    return backend.token_to_id(text) if isinstance(text, str) else None
