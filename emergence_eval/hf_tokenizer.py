"""The tokenizer as Hugging Face files, with the same ids as SentencePiece for any text.

The usual conversion keeps SentencePiece's ▁ for a space, and then a ▁ in the text becomes a space. Here the
pieces are written with real spaces instead, so no text needs changing before BPE: a ▁ is a character
without a piece and becomes its three bytes, as `tokenizer.vocabulary.Tokenizer` does it. Text that looks like
a special token ("<|endoftext|>") is encoded as text, and nothing is added at either end.

SentencePiece joins, among all neighbours whose union is a piece, those with the highest score, the leftmost
first. Hugging Face's BPE wants a list of pairs instead: each piece gives as many pairs as there are ways to
split it into two pieces, in order of score.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from tokenizer import vocabulary
from tokenizer.files import write_json, write_text
from tokenizer.vocabulary import EOD_PIECE, PAD_PIECE, UNK_PIECE, Tokenizer
from tokenizer.words import joined_pairs

SPECIAL_TOKENS = {"eos_token": EOD_PIECE, "pad_token": PAD_PIECE, "unk_token": UNK_PIECE}


def write_hf_tokenizer(tokenizer_dir: Path, out: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json into `out`, for
    `transformers.AutoTokenizer.from_pretrained(out)`.

    Raises:
        UserError: `tokenizer_dir` holds no tokenizer.
    """
    tokenizer = vocabulary.load(tokenizer_dir)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "tokenizer.json", build_backend(tokenizer).to_str(pretty=False))
    write_json(out / "special_tokens_map.json", SPECIAL_TOKENS)
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **SPECIAL_TOKENS,
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,
            "model_max_length": int(1e30),
            "model_input_names": ["input_ids", "attention_mask"],
        },
    )


def build_backend(tokenizer: Tokenizer) -> Backend:
    """The tokenizer in the `tokenizers` library."""
    ids = _piece_ids(tokenizer)
    backend = Backend(
        models.BPE(vocab=ids, merges=list(_merges(tokenizer)), unk_token=UNK_PIECE, byte_fallback=True, fuse_unk=False)
    )
    if not any(pair[1] == " " != pair[0] for pair in joined_pairs(tokenizer)):
        # Changes no id, since nothing is joined across these places; short pieces of text are merely faster.
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(" *[^ ]+| +"), behavior="isolated")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(
        [AddedToken(piece, special=True, normalized=False) for piece in (UNK_PIECE, EOD_PIECE, PAD_PIECE)]
    )
    backend.encode_special_tokens = True
    return backend


def _piece_ids(tokenizer: Tokenizer) -> dict[str, int]:
    texts = tokenizer.text_pieces()
    text_ids = set(texts.values())
    special = {tokenizer.processor.id_to_piece(token): token for token in set(range(tokenizer.vocab_size)) - text_ids}
    return {**special, **texts}


def _merges(tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """Pairs of pieces whose union is a piece, the first to be joined first."""
    pieces = {piece: tokenizer.processor.get_score(token) for piece, token in tokenizer.text_pieces().items()}
    for piece in sorted((piece for piece in pieces if len(piece) > 1), key=lambda piece: -pieces[piece]):
        for place in range(1, len(piece)):
            left, right = piece[:place], piece[place:]
            if left in pieces and right in pieces:
                yield left, right
