"""Training the tokenizer: reproducible, at the ratio asked for, with errors that help."""

from __future__ import annotations

import json
import random
import shutil

import pytest
from documents_for_tests import rows, text, write_jsonl

from tokenizer import train, vocabulary
from tokenizer.sample import Sample


def run(corpus, out, *arguments):
    train.main(["--corpus", str(corpus), "--out", str(out), "--vocab-size", "700", *arguments])
    return json.loads((out / "manifest.json").read_text())


def test_manifest_says_what_the_tokenizer_is(tokenizer_dir, corpus):
    manifest = json.loads((tokenizer_dir / "manifest.json").read_text())
    tokenizer = vocabulary.load(tokenizer_dir)
    assert manifest["vocab_size"] == tokenizer.vocab_size == 1000
    assert (manifest["unk_id"], manifest["eod_id"], manifest["pad_id"]) == (0, 1, 2)
    assert manifest["sha256"] == tokenizer.sha256
    assert manifest["ratio"] == {"en": 4, "zh": 1}
    assert manifest["documents"] == 400
    assert [tokenizer.processor.id_to_piece(token) for token in range(3)] == ["<unk>", "<|endoftext|>", "<|pad|>"]


def test_order_and_files_do_not_matter(corpus, tmp_path):
    documents = list(rows(400))
    random.Random(1).shuffle(documents)
    write_jsonl(tmp_path / "b" / "one.jsonl", documents[:150])
    write_jsonl(tmp_path / "b" / "two.jsonl", documents[150:])
    first = run(corpus, tmp_path / "first", "--sample-mb", "0.05")
    second = run(tmp_path / "b", tmp_path / "second", "--sample-mb", "0.05")
    assert first == second


@pytest.mark.parametrize("ratio", [{"en": 4, "zh": 1}, {"en": 1, "zh": 1}, {"zh": 1}])
def test_sample_holds_the_ratio(corpus, tmp_path, ratio):
    items = [f"{language}={share}" for language, share in ratio.items()]
    sampled = run(corpus, tmp_path / "t", "--sample-mb", "0.04", "--ratio", *items)["sampled_bytes"]
    for language, share in ratio.items():
        assert sampled[language] == pytest.approx(40_000 * share / sum(ratio.values()), rel=0.05)


def test_a_scarce_language_shrinks_the_others():
    sample = Sample({"en": 1, "zh": 1}, 40_000)
    for number in range(100):
        sample.add("en", text("en", number, 100))
    sample.add("zh", text("zh", 0, 1000))
    texts, sizes = sample.texts()
    assert sizes["zh"] < 20_000
    assert sizes["en"] == pytest.approx(sizes["zh"], rel=0.15)
    assert sum(len(piece.encode()) for piece in texts["en"]) == sizes["en"]


def test_sample_stays_bounded_and_ignores_copies():
    sample = Sample({"en": 1}, 30_000)
    for number in range(300):
        sample.add("en", text("en", number % 100, 100))
        sample.add("fr", "ignoré")
        assert sum(size for _, size, _ in sample._heaps["en"]) <= 30_000 + 16_384
    texts, _ = sample.texts()
    assert len(set(texts["en"])) == len(texts["en"])


def test_training_again_does_nothing(corpus, tmp_path, capsys):
    out = tmp_path / "t"
    run(corpus, out)
    before = (out / "tokenizer.model").stat().st_mtime_ns
    run(corpus, out)
    assert "already trained" in capsys.readouterr().out
    assert (out / "tokenizer.model").stat().st_mtime_ns == before


def test_user_errors(corpus, tokenizer_dir, tmp_path, fails):
    def error(*arguments):
        return fails(train, "--corpus", corpus, "--out", tmp_path / "t", *arguments)

    assert "--ratio en: want each language once" in error("--ratio", "en")
    assert "--ratio en=-1" in error("--ratio", "en=-1")
    assert "--ratio zh=nan" in error("--ratio", "zh=nan")
    assert "give at least 300" in error("--vocab-size", "200")
    assert "positive number" in error("--sample-mb", "0")
    assert "no documents in fr; found: en (300 documents), zh (100 documents)" in error("--ratio", "en=1", "fr=1")
    assert "cannot make 60000 pieces" in error("--vocab-size", "60000")
    assert "no such file or directory" in fails(train, "--corpus", tmp_path / "nowhere", "--out", tmp_path / "t")
    assert not (tmp_path / "t").exists()
    # The directory holds a tokenizer of 1,000 ids.
    assert "trained with another vocab_size" in fails(
        train, "--corpus", corpus, "--out", tokenizer_dir, "--vocab-size", "700"
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").touch()
    assert "no finished tokenizer" in fails(train, "--corpus", corpus, "--out", tmp_path / "full")


def test_bad_documents_stop_or_are_counted(tmp_path, fails):
    corpus = tmp_path / "corpus"
    write_jsonl(corpus / "all.jsonl", rows(400))
    with open(corpus / "all.jsonl", "a") as file:
        file.write('{"text": 3}\n')
    message = fails(train, "--corpus", corpus, "--out", tmp_path / "t", "--vocab-size", "700")
    assert "all.jsonl:401: field 'text' is not a string but int; mend it or pass --skip-bad-documents" in message
    manifest = run(corpus, tmp_path / "t", "--skip-bad-documents")
    assert (manifest["documents"], manifest["skipped_documents"]) == (400, 1)


def test_damaged_tokenizers_are_refused(tokenizer_dir, tmp_path):
    def check(match, damage):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(tokenizer_dir, copy)
        damage(copy)
        with pytest.raises(vocabulary.UserError, match=match):
            vocabulary.load(copy)

    check("not a tokenizer", lambda copy: (copy / "manifest.json").unlink())
    check("no tokenizer.model", lambda copy: (copy / "tokenizer.model").unlink())
    check("damaged or replaced", lambda copy: (copy / "tokenizer.model").write_bytes(b"x"))
    check("not a tokenizer's manifest", lambda copy: (copy / "manifest.json").write_text("{}"))
    check("not a tokenizer's manifest", lambda copy: (copy / "manifest.json").write_text("[1, 2"))
