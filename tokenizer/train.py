"""Train the tokenizer: SentencePiece BPE with byte fallback, on a sample of the corpus at a language ratio.

The sample is bounded (`--sample-mb`), so memory does not grow with the corpus: for each MB of the sample it is
about 15 MB where a fifth of the text is Chinese, 40 MB where all is.
It is chosen by content hash: the same documents give the same tokenizer in any order and on any machine.
Ids 0, 1 and 2 are <unk>, <|endoftext|> (ends a document) and <|pad|>.

    python -m tokenizer.train --corpus DIR --out TOKENIZER --vocab-size 65024 --ratio en=4 zh=1
"""

from __future__ import annotations

import argparse
import io
import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy
import sentencepiece

from tokenizer import cli, vocabulary
from tokenizer.cli import UserError
from tokenizer.documents import BadDocument, Input, bad_documents_error, find_inputs, parse_block, read_blocks
from tokenizer.files import atomic_directory, write_json
from tokenizer.fingerprint import input_fingerprint
from tokenizer.sample import Sample

SETTINGS_FILE = "inputs.json"
SMALLEST_VOCABULARY = 300
CHARACTER_COVERAGE = 0.9995
"""Share of each language's characters that get ids of their own; rarer ones are written as bytes."""

SETTINGS: dict[str, object] = {
    "model_type": "bpe",
    "byte_fallback": True,
    # Any text must come back as it was: no Unicode normalisation, every space kept, none added.
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    # No piece holds a space after another character: what `words.WordEncoder` lives on.
    "split_by_whitespace": True,
    "split_by_unicode_script": True,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
    "max_sentence_length": 1 << 20,
    "unk_id": vocabulary.UNK_ID,
    "eos_id": vocabulary.EOD_ID,
    "pad_id": vocabulary.PAD_ID,
    "bos_id": -1,
    "unk_piece": vocabulary.UNK_PIECE,
    "eos_piece": vocabulary.EOD_PIECE,
    "pad_piece": vocabulary.PAD_PIECE,
    # Recorded in the model file: a fixed number keeps the file the same on every machine.
    "num_threads": 16,
}

# SentencePiece drops training lines that hold U+2585 or a tab, and takes U+2581 for a space. Line ends are
# cut away as well, so none of these ever becomes part of a piece: each is encoded as its bytes.
_CUTS = re.compile("[\u2581\u2585\0\t\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]+")


def parse_ratio(items: Sequence[str]) -> dict[str, float]:
    """`["en=4", "zh=1"]` as a dictionary.

    Raises:
        UserError: an item is not of the form language=positive number, or a language stands twice.
    """
    ratio: dict[str, float] = {}
    for item in items:
        language, _, share = item.partition("=")
        try:
            value = float(share)
        except ValueError:
            value = 0
        if not language or not 0 < value < float("inf") or language in ratio:
            raise UserError(f"--ratio {item}: want each language once with a positive share, e.g. --ratio en=4 zh=1")
        ratio[language] = int(value) if value.is_integer() else value
    return ratio


def draw_sample(
    inputs: Sequence[Input], sample: Sample, language: str | None, skip_bad: bool
) -> tuple[dict[str, int], list[BadDocument], int]:
    """Read all inputs into `sample`.

    Returns:
        Documents by language (of all languages), the first bad documents, and how many of those there were.

    Raises:
        UserError: a bad document, unless `skip_bad`.
    """
    documents: dict[str, int] = {}
    bad: list[BadDocument] = []
    num_bad = 0
    read = 0
    started = time.monotonic()
    with cli.progress_bar("{task.fields[rate]}") as progress:
        task = progress.add_task("sampling (MB)", total=sum(item.bytes for item in inputs) / 1e6, rate="")
        for block in (block for item in inputs for block in read_blocks(item)):
            for document in parse_block(block, language):
                if isinstance(document, BadDocument):
                    num_bad += 1
                    bad = [*bad, document][:100]
                    continue
                documents[document.language] = documents.get(document.language, 0) + 1
                sample.add(document.language, document.text)
                read += len(document.utf8)
            if num_bad and not skip_bad:
                raise bad_documents_error(bad, num_bad)
            rate = read / 1e6 / (time.monotonic() - started)
            progress.update(task, advance=block.disk_bytes / 1e6, rate=f"{rate:.0f} MB/s of text")
    return documents, bad, num_bad


def _lines(texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        for line in _CUTS.split(text):
            if line:
                yield line


def choose_characters(texts: dict[str, list[str]], vocab_size: int) -> tuple[int, float]:
    """How many characters get ids of their own, most frequent first: enough for `CHARACTER_COVERAGE` of each
    language, at most a third of the vocabulary. Returned with the share of all characters that they cover."""
    counts = {}
    for language, sampled in texts.items():
        total = numpy.zeros(0x110000, dtype=numpy.int64)
        for text in sampled:
            codes = numpy.frombuffer(_CUTS.sub("", text).encode("utf-32-le"), dtype=numpy.uint32)
            found, times = numpy.unique(codes, return_counts=True)
            total[found] += times
        counts[language] = total
    overall = sum(counts.values())
    order = numpy.argsort(-overall, kind="stable")[: numpy.count_nonzero(overall)]
    wanted = 1
    for total in counts.values():
        covered = numpy.cumsum(total[order])
        wanted = max(wanted, int(numpy.searchsorted(covered, CHARACTER_COVERAGE * covered[-1])) + 1)
    wanted = min(wanted, len(order), vocab_size // 3)
    covered = numpy.cumsum(overall[order])
    # Half a character less than the exact share, so that rounding cannot let another one in.
    return wanted, float((covered[wanted - 1] - 0.5) / covered[-1])


def train_model(texts: dict[str, list[str]], vocab_size: int) -> tuple[bytes, int]:
    """Train on sampled texts by language.

    Returns:
        The serialised SentencePiece model and the number of characters with ids of their own.

    Raises:
        UserError: there is too little text for that many pieces.
    """
    characters, coverage = choose_characters(texts, vocab_size)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines([text for language in sorted(texts) for text in texts[language]]),
            model_writer=model,
            vocab_size=vocab_size,
            character_coverage=coverage,
            minloglevel=2,
            **SETTINGS,
        )
    except (RuntimeError, ValueError) as error:
        size = sum(len(text) for sampled in texts.values() for text in sampled)
        raise UserError(
            f"cannot make {vocab_size} pieces from {size} sampled characters; give a smaller --vocab-size, a larger "
            f"--sample-mb or more text (SentencePiece: {' '.join(str(error).split())})"
        ) from error
    return model.getvalue(), characters


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tokenizer.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus",
        type=Path,
        required=True,
        help="directory (or one file) of documents: .jsonl, .jsonl.gz, .jsonl.zst and .parquet with text, source, "
        "lang; or directories of .txt files",
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write the tokenizer to")
    parser.add_argument(
        "--vocab-size", type=int, default=65024, help="ids, special ones included (default: %(default)s)"
    )
    parser.add_argument(
        "--ratio",
        nargs="+",
        default=["en=4", "zh=1"],
        metavar="LANG=SHARE",
        help="languages and their shares of the sample, by bytes (default: en=4 zh=1); other languages are left out",
    )
    parser.add_argument(
        "--sample-mb", type=float, default=32, help="MB of text to train on, at most (default: %(default)s)"
    )
    parser.add_argument("--language", help="language of documents that name none")
    parser.add_argument(
        "--skip-bad-documents", action="store_true", help="count documents that cannot be read instead of stopping"
    )
    return parser


def _already_trained(out: Path, settings: dict[str, object]) -> bool:
    """Whether `out` holds the very tokenizer that is asked for; UserError if it holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        recorded = json.loads((out / SETTINGS_FILE).read_text(encoding="utf-8"))
        vocabulary.load(out)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{out}: exists and is no finished tokenizer of this command ({error}); remove it or choose another --out"
        ) from error
    changed = [name for name, value in settings.items() if recorded.get(name) != value]
    if changed:
        raise UserError(
            f"{out}: holds a tokenizer trained with another {', '.join(changed)}; "
            "data encoded with it would no longer fit: choose another --out, or remove it"
        )
    return True


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the command. Training again with the same corpus and settings does nothing."""
    arguments = build_parser().parse_args(argv)
    ratio = parse_ratio(arguments.ratio)
    if arguments.vocab_size < SMALLEST_VOCABULARY:
        raise UserError(
            f"--vocab-size {arguments.vocab_size}: 256 bytes and 3 special ids leave no room; "
            f"give at least {SMALLEST_VOCABULARY}"
        )
    if not arguments.sample_mb > 0:
        raise UserError(f"--sample-mb {arguments.sample_mb}: give a positive number")
    inputs = find_inputs(arguments.corpus)
    settings: dict[str, object] = {
        "corpus": [input_fingerprint(item) for item in inputs],
        "vocab_size": arguments.vocab_size,
        "ratio": ratio,
        "sample_mb": arguments.sample_mb,
        "language": arguments.language,
    }
    if _already_trained(arguments.out, settings):
        print(f"{arguments.out}: already trained")
        return 0

    started = time.monotonic()
    sample = Sample(ratio, int(arguments.sample_mb * 1e6))
    documents, bad, num_bad = draw_sample(inputs, sample, arguments.language, arguments.skip_bad_documents)
    missing = [language for language in ratio if not documents.get(language)]
    if missing:
        found = ", ".join(f"{language} ({count} documents)" for language, count in sorted(documents.items()))
        raise UserError(
            f"{arguments.corpus}: no documents in {', '.join(missing)}; found: {found or 'none at all'}; "
            "change --ratio to the languages of the corpus"
        )
    texts, sampled_bytes = sample.texts()
    if not all(sampled_bytes.values()):
        empty = ", ".join(language for language, size in sampled_bytes.items() if not size)
        raise UserError(f"{arguments.corpus}: all documents in {empty} are empty; change --ratio or the corpus")
    model, characters = train_model(texts, arguments.vocab_size)
    with atomic_directory(arguments.out) as directory:
        trained = vocabulary.Manifest(
            vocab_size=arguments.vocab_size,
            sha256=vocabulary.sha256_bytes(model),
            ratio=ratio,
            sampled_bytes=sampled_bytes,
            documents=sum(documents[language] for language in ratio),
            sentencepiece_version=sentencepiece.__version__,
            characters=characters,
            skipped_documents=num_bad,
            settings=SETTINGS,
        )
        write_json(directory / SETTINGS_FILE, settings)
        vocabulary.save(directory, model, trained)
    for document in bad:
        print(f"skipped {document}")
    amounts = ", ".join(f"{size / 1e6:.1f} MB {language}" for language, size in sampled_bytes.items())
    print(
        f"{arguments.out}: {arguments.vocab_size} ids ({characters} single characters) from {amounts}; "
        f"{trained.documents} documents, {num_bad} skipped; {time.monotonic() - started:.0f} s"
    )
    return 0


if __name__ == "__main__":
    cli.run(main)
