"""The Hugging Face files give the ids of our own tokenizer, for any text."""

from __future__ import annotations

import pytest
from documents_for_tests import rows
from hypothesis import given, settings
from test_lossless import ANY_TEXT, EDGE_CASES, MIXED_TEXT
from transformers import AutoTokenizer, GlmConfig

from emergence_eval.hf_tokenizer import write_hf_tokenizer
from tokenizer import vocabulary


@pytest.fixture(scope="module")
def converted(tokenizer_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("hf")
    write_hf_tokenizer(tokenizer_dir, out)
    GlmConfig(vocab_size=1000, hidden_size=8, num_hidden_layers=1, pad_token_id=2).save_pretrained(out)
    return AutoTokenizer.from_pretrained(out)


def check(tokenizer, converted, text):
    ids = tokenizer.encode(text)
    assert converted(text)["input_ids"] == ids
    assert converted.encode(text, add_special_tokens=False) == ids
    assert converted.decode(ids) == text


@pytest.mark.parametrize("text", EDGE_CASES, ids=ascii)
def test_edge_cases(tokenizer, converted, text):
    check(tokenizer, converted, text)


@settings(max_examples=300, deadline=None)
@given(text=ANY_TEXT)
def test_any_text(tokenizer, converted, text):
    check(tokenizer, converted, text)


@settings(max_examples=300, deadline=None)
@given(text=MIXED_TEXT)
def test_text_of_known_pieces(tokenizer, converted, text):
    check(tokenizer, converted, text)


def test_documents(tokenizer, converted):
    for row in rows(100, words=300):
        check(tokenizer, converted, row["text"])


def test_special_tokens(tokenizer, converted):
    assert (converted.eos_token, converted.eos_token_id) == ("<|endoftext|>", tokenizer.eod_id)
    assert (converted.pad_token, converted.pad_token_id) == ("<|pad|>", tokenizer.pad_id)
    assert converted.bos_token is None
    assert len(converted) == tokenizer.vocab_size
    assert converted.decode([tokenizer.eod_id, tokenizer.pad_id], skip_special_tokens=True) == ""


def test_padding_a_batch(tokenizer, converted):
    batch = converted(["one", "one two three"], padding=True)
    longest = len(tokenizer.encode("one two three"))
    assert [len(ids) for ids in batch["input_ids"]] == [longest, longest]
    assert tokenizer.pad_id in batch["input_ids"][0]


def test_saving_again_keeps_the_ids(tokenizer, converted, tmp_path):
    converted.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in EDGE_CASES:
        check(tokenizer, again, text)


def test_real_text_in_both_languages(real_tokenizer_dir, real_texts, tmp_path):
    write_hf_tokenizer(real_tokenizer_dir, tmp_path)
    tokenizer = vocabulary.load(real_tokenizer_dir)
    converted = AutoTokenizer.from_pretrained(tmp_path)
    for texts in real_texts.values():
        for text in texts:
            assert converted(text)["input_ids"] == tokenizer.encode(text)
