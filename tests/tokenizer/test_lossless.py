"""Any text comes back, and the remembered words give SentencePiece's own ids."""

from __future__ import annotations

import io
from array import array

import pytest
import sentencepiece
from documents_for_tests import CHINESE, ENGLISH, ODD, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer import train, vocabulary
from tokenizer.cli import UserError
from tokenizer.words import WordEncoder, joined_pairs

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
"""Any valid Unicode: hypothesis leaves out halves of surrogate pairs alone."""

MIXED_TEXT = st.lists(st.sampled_from([*ENGLISH, *CHINESE, *ODD, " ", "  ", "\n", "-", "--", "=", "，", "9"])).map(
    "".join
)
"""Text that the models have pieces for, with spaces anywhere: single characters rarely join."""

EDGE_CASES = [
    "",
    " ",
    "  leading and trailing  ",
    "\n",
    "a\nb\r\nc\td",
    "▁",
    "a▁b ▁ c▁",
    "\0",
    "a\0b\1c",
    "<unk> <|endoftext|><|pad|> <s></s> <0x41><0x0A>",
    "👩‍👩‍👧 é e\u0301 \ufeff \u2028 \u2585 \u2047 \ufffd",
    "𠀀𠮷 \U0010ffff",
    "你好，世界。Hello世界",
    *(character * count for character in " -=.aな一" for count in (2, 3, 5, 8, 17, 33, 64)),
]


def check(tokenizer: vocabulary.Tokenizer, encoder: WordEncoder, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert encoder.encode(text) == array("i", ids).tobytes()
    assert not {vocabulary.UNK_ID, vocabulary.EOD_ID, vocabulary.PAD_ID} & set(ids)


@pytest.fixture(scope="module")
def encoder(tokenizer) -> WordEncoder:
    return WordEncoder(tokenizer)


@pytest.mark.parametrize("text", EDGE_CASES, ids=ascii)
def test_edge_cases_come_back(tokenizer, encoder, text):
    check(tokenizer, encoder, text)


@settings(max_examples=300, deadline=None)
@given(text=ANY_TEXT)
def test_any_text_comes_back(tokenizer, encoder, text):
    check(tokenizer, encoder, text)


@settings(max_examples=300, deadline=None)
@given(text=MIXED_TEXT)
def test_text_of_known_pieces_comes_back(tokenizer, encoder, text):
    check(tokenizer, encoder, text)


def test_whole_documents_come_back(tokenizer, encoder):
    for row in rows(100, words=300):
        check(tokenizer, encoder, row["text"])


def test_a_text_longer_than_a_slice(tokenizer, encoder):
    row = next(rows(1, words=2000))["text"]
    text = row * ((1 << 21) // len(row))
    assert encoder.encode(text) == array("i", tokenizer.encode(text)).tobytes()
    unbroken = "a" * ((1 << 20) + 5)
    assert encoder.encode(unbroken) == array("i", tokenizer.encode(unbroken)).tobytes()


def test_half_a_surrogate_pair_is_refused(tokenizer, encoder):
    for text in ("\ud800", "abc \udfff " * 3):
        with pytest.raises(UnicodeEncodeError):
            tokenizer.encode(text)
        with pytest.raises(UnicodeEncodeError):
            encoder.encode(text)


def test_texts_encoded_together_stay_apart(tokenizer, encoder):
    """Nothing is joined across the end of a text, and empty ones keep their place."""
    texts = ["", "the", "the", "", " of", "0", "字", "符串", "é", "", "a\0", "a", "\0", ""]
    expected = [array("i", tokenizer.encode(text)).tobytes() for text in texts]
    assert encoder.encode_all(texts) == expected
    assert encoder.encode_all(texts[:3]) == expected[:3]
    assert encoder.encode_all([""]) == [b""] and encoder.encode_all([]) == []


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(ANY_TEXT | MIXED_TEXT))
def test_any_texts_together(tokenizer, encoder, texts):
    assert encoder.encode_all(texts) == [array("i", tokenizer.encode(text)).tobytes() for text in texts]


def test_few_remembered_words_give_the_same_ids(tokenizer, monkeypatch):
    """16 slots for hundreds of words: slots are fought over, and all is forgotten again and again."""
    monkeypatch.setattr("tokenizer.words._MOST_SLOT_BITS", 4)
    encoder = WordEncoder(tokenizer)
    for row in rows(200, words=20):
        assert encoder.encode(row["text"]) == array("i", tokenizer.encode(row["text"])).tobytes()


@pytest.mark.parametrize(
    "changed",
    [
        {"split_by_whitespace": False},
        {"split_by_unicode_script": False, "split_digits": False},
        {"treat_whitespace_as_suffix": True},
        {"user_defined_symbols": ["<code>", "of the"]},
    ],
    ids=str,
)
def test_exact_for_models_trained_otherwise(changed):
    """What may be cut is read from the vocabulary, not assumed of the training settings."""
    model = io.BytesIO()
    texts = [row["text"] for row in rows(200)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.split("\n") if line),
        model_writer=model,
        vocab_size=800,
        minloglevel=2,
        **{**train.SETTINGS, **changed},
    )
    tokenizer = vocabulary.Tokenizer(model.getvalue(), "")
    encoder = WordEncoder(tokenizer)
    for text in [*texts, "of the <code>x</code> of theof the"]:
        assert encoder.encode(text) == array("i", tokenizer.encode(text)).tobytes()


@pytest.mark.parametrize(
    "changed",
    [{"add_dummy_prefix": True}, {"remove_extra_whitespaces": True}, {"normalization_rule_name": "nfkc"}],
    ids=str,
)
def test_models_that_change_text_are_refused(changed, tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*ENGLISH, *CHINESE]),
        model_writer=model,
        vocab_size=600,
        hard_vocab_limit=False,
        minloglevel=2,
        **{**train.SETTINGS, **changed},
    )
    size = vocabulary.Tokenizer(model.getvalue(), "").vocab_size
    digest = vocabulary.sha256_bytes(model.getvalue())
    vocabulary.save(tmp_path, model.getvalue(), vocabulary.Manifest(size, digest, {}, {}, 0, "0.2.3"))
    with pytest.raises(UserError, match="changes text"):
        vocabulary.load(tmp_path)


def test_no_piece_holds_a_space_after_another_character(tokenizer):
    """What makes looking up words pay: training settings that lose it would be exact, but slow."""
    assert not any(pair[1] == " " != pair[0] for pair in joined_pairs(tokenizer))
    assert not any("\n" in pair for pair in joined_pairs(tokenizer))


def test_real_text_in_both_languages(real_tokenizer_dir, real_texts):
    tokenizer = vocabulary.load(real_tokenizer_dir)
    encoder = WordEncoder(tokenizer)
    for language in ("en", "zh"):
        assert len(real_texts[language]) > 250
        for text in real_texts[language]:
            check(tokenizer, encoder, text)
