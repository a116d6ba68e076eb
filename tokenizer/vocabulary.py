"""The tokenizer: a SentencePiece model with its manifest, and text to ids and back without loss.

SentencePiece writes a space as U+2581 (▁) and cannot tell the two apart afterwards. Here a U+2581 that
stands in the text is encoded as its three UTF-8 bytes, so `decode(encode(text)) == text` for any text that
can be written in UTF-8.

    python -c "from tokenizer import vocabulary; print(vocabulary.load('runs/demo/tokenizer').encode('Hi, 世界'))"
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import sentencepiece

from tokenizer.cli import UserError
from tokenizer.files import sha256_file, write_json

MODEL_FILE = "tokenizer.model"
MANIFEST_FILE = "manifest.json"

UNK_ID, EOD_ID, PAD_ID = 0, 1, 2
UNK_PIECE, EOD_PIECE, PAD_PIECE = "<unk>", "<|endoftext|>", "<|pad|>"

SPACE_MARK = "\u2581"
"""What SentencePiece writes for a space."""

_PROBE = " a  ﬁ\tÅ\u212b １\n世▁b "
"""Comes back only from a model that neither normalises text nor adds or removes spaces."""


@dataclass(frozen=True)
class Manifest:
    """What is known about a tokenizer (`manifest.json` beside the model)."""

    vocab_size: int
    sha256: str
    """Of tokenizer.model."""
    ratio: dict[str, float]
    """Language to its share of the training sample's bytes, as asked."""
    sampled_bytes: dict[str, int]
    """Language to UTF-8 bytes in the training sample."""
    documents: int
    """Documents the sample was drawn from."""
    sentencepiece_version: str
    unk_id: int = UNK_ID
    eod_id: int = EOD_ID
    pad_id: int = PAD_ID
    characters: int = 0
    """Distinct characters with an id of their own; all others are written as bytes."""
    skipped_documents: int = 0
    settings: dict[str, object] = field(default_factory=dict)
    """SentencePiece's training settings."""


class Tokenizer:
    """Text to ids and back. Get one with `load`."""

    def __init__(self, model: bytes, sha256: str) -> None:
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.sha256 = sha256
        self.vocab_size: int = self.processor.vocab_size()
        self.eod_id: int = self.processor.eos_id()
        self.pad_id: int = self.processor.pad_id()
        self._mark_ids = [self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; nothing is added. Text that looks like a special token is text.

        Raises:
            UnicodeEncodeError: the text holds half of a surrogate pair.
        """
        try:
            first, *others = text.split(SPACE_MARK)
            ids = self.processor.encode(first)
            for part in others:
                ids += self._mark_ids
                ids += self.processor.encode(part)
        except RuntimeError:
            text.encode()  # Says what is wrong with the text, where SentencePiece only says that it is no text.
            raise
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text: for thousands of words in half the time. (For few it is slower: SentencePiece
        starts a thread for each batch.)"""
        batch = self.processor.encode(list(texts), num_threads=1)
        return [self.encode(text) if SPACE_MARK in text else ids for text, ids in zip(texts, batch, strict=True)]

    def text_pieces(self) -> dict[str, int]:
        """The pieces that stand for text, with their ids; a space is " ". Bytes and special ids are not among them."""
        pieces = self.processor.id_to_piece(list(range(self.vocab_size)))
        special = (self.processor.is_byte, self.processor.is_control, self.processor.is_unknown)
        return {
            piece.replace(SPACE_MARK, " "): token
            for token, piece in enumerate(pieces)
            if not (piece.startswith("<") and any(is_special(token) for is_special in special))
        }

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`. The document end and padding ids have none; bytes that are no UTF-8 become U+FFFD."""
        return self.processor.decode([int(token) for token in ids])


def load(directory: Path | str) -> Tokenizer:
    """The tokenizer in `directory`.

    Raises:
        UserError: the directory holds no tokenizer, or not the one its manifest names.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    path = directory / MODEL_FILE
    if not path.is_file():
        raise UserError(f"{directory}: no {MODEL_FILE}; train a tokenizer with python -m tokenizer.train")
    digest = sha256_file(path)
    if digest != manifest.sha256:
        raise UserError(
            f"{path}: SHA-256 is {digest[:12]}..., {MANIFEST_FILE} says {manifest.sha256[:12]}...; "
            "the file was damaged or replaced: restore it or train anew"
        )
    tokenizer = Tokenizer(path.read_bytes(), digest)
    found = (tokenizer.vocab_size, tokenizer.eod_id, tokenizer.pad_id)
    expected = (manifest.vocab_size, manifest.eod_id, manifest.pad_id)
    if found != expected:
        raise UserError(
            f"{path}: vocabulary size, eod and pad ids are {found}, {MANIFEST_FILE} says {expected}; train it anew"
        )
    if tokenizer.decode(tokenizer.encode(_PROBE)) != _PROBE:
        raise UserError(
            f"{path}: changes text (spaces or Unicode forms do not come back); "
            "such a model cannot be used, train one with python -m tokenizer.train"
        )
    return tokenizer


def read_manifest(directory: Path) -> Manifest:
    """The manifest of the tokenizer in `directory`.

    Raises:
        UserError: there is none, or it is not a tokenizer's.
    """
    path = directory / MANIFEST_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = {name: content[name] for name in Manifest.__dataclass_fields__ if name in content}
        return Manifest(**known)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{directory}: not a tokenizer (no {MANIFEST_FILE}); "
            f"train one with python -m tokenizer.train --out {directory}"
        ) from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not a tokenizer's manifest ({error}); train the tokenizer anew") from None


def sha256_bytes(model: bytes) -> str:
    """SHA-256 of a serialised model, in hexadecimal."""
    return hashlib.sha256(model).hexdigest()


def save(directory: Path, model: bytes, manifest: Manifest) -> None:
    """Write model and manifest into `directory` (which exists); the manifest comes last."""
    (directory / MODEL_FILE).write_bytes(model)
    write_json(directory / MANIFEST_FILE, asdict(manifest))


def copy(source: Path, target: Path) -> None:
    """Copy a tokenizer's two files into the directory `target` (which exists)."""
    for name in (MODEL_FILE, MANIFEST_FILE):
        shutil.copyfile(source / name, target / name)
