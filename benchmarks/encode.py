"""Encoding speed: tokenizer.encode, plain SentencePiece in the same workers, and Megatron-LM's preprocess_data.py.

All read the same JSON lines with the same SentencePiece model and the same number of workers, in turn, in one
run; the fastest of `--rounds` counts. A tool's start-up (imports, loading the model) is timed with a corpus of
one document and taken off, and given beside the rate: on a large corpus it does not matter, on this one it
would count against Megatron-LM, which imports torch. Processor time (of all processes, start-up taken off as
well) is given too: where other programs run, it is the fairer measure. The ids are compared document by
document.

    python benchmarks/encode.py
    python benchmarks/encode.py --megatron-lm DIR     # a checkout of NVIDIA/Megatron-LM, e.g. tag core_v0.16.1
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy
import sentencepiece

from tokenizer import cli, train, vocabulary
from tokenizer.cli import UserError
from tokenizer.documents import Block, Document, find_inputs, parse_block, read_blocks
from tokenizer.indexed import typecode
from tokenizer.merge import merge
from tokenizer.shards import directory_name, is_held_out, write_shard

REPOSITORY = Path(__file__).resolve().parents[1]
CORPUS = REPOSITORY.parent / "shared" / "corpus"
HELDOUT_FRACTION = 0.02
# Megatron-LM cuts a document at this many characters, wherever that is.
MEGATRON_SLICE = 1_000_000


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock, and of processor time in all processes."""

    seconds: float = float("inf")
    processor: float = float("inf")


@dataclass
class Contender:
    """One way to encode: `encode(corpus file, output directory)`."""

    name: str
    encode: Callable[[Path, Path], None]
    whole: Cost = Cost()
    startup: Cost = Cost()

    def measure(self, corpus: Path, out: Path, best: Cost) -> Cost:
        """Encode `corpus` into the new directory `out`; returns the cost, or what of `best` was less."""
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        self.encode(corpus, out)
        seconds = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Cost(min(seconds, best.seconds), min(processor, best.processor))

    @property
    def net(self) -> Cost:
        """The cost with the start-up taken off."""
        return Cost(self.whole.seconds - self.startup.seconds, self.whole.processor - self.startup.processor)


class PlainEncoder:
    """What `WordEncoder` does, without remembering words."""

    def __init__(self, tokenizer: vocabulary.Tokenizer, code: str) -> None:
        self._tokenizer = tokenizer
        self._code = code

    def encode_all(self, texts: Sequence[str]) -> list[bytes]:
        """Bytes of the ids of each text."""
        return [array(self._code, self._tokenizer.encode(text)).tobytes() for text in texts]


def _start_plain(tokenizer_directory: Path) -> None:
    global _plain
    tokenizer = vocabulary.load(tokenizer_directory)
    code = typecode(tokenizer.vocab_size)
    _plain = (PlainEncoder(tokenizer, code), numpy.array([tokenizer.eod_id], dtype=code).tobytes())


def _encode_plain(block: Block, path: Path) -> None:
    encoder, eod_ids = _plain
    write_shard(block, encoder, eod_ids, HELDOUT_FRACTION, None, path)


def plain(tokenizer_directory: Path, workers: int) -> Callable[[Path, Path], None]:
    """SentencePiece on every document, in the layout of tokenizer.encode: blocks, a pool, shards, a merge."""

    def encode(corpus: Path, out: Path) -> None:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, _start_plain, (tokenizer_directory,)) as executor:
            shards = []
            futures = []
            for block in read_blocks(find_inputs(corpus)[0]):
                shards.append(out / f"{block.index:06d}")
                futures.append(executor.submit(_encode_plain, block, shards[-1]))
            for future in futures:
                future.result()
        vocab_size = vocabulary.read_manifest(tokenizer_directory).vocab_size
        merged = merge(shards, out / "merged", typecode(vocab_size))
        (out / "sha256.json").write_text(json.dumps({item.data_set.prefix: item.hash.hexdigest() for item in merged}))

    return encode


def ours(tokenizer_directory: Path, workers: int) -> Callable[[Path, Path], None]:
    """The command of this project."""

    def encode(corpus: Path, out: Path) -> None:
        command = [sys.executable, "-m", "tokenizer.encode", "--corpus", str(corpus), "--out", str(out / "data")]
        command += ["--tokenizer", str(tokenizer_directory), "--workers", str(workers)]
        command += ["--heldout-fraction", str(HELDOUT_FRACTION)]
        _run(command, REPOSITORY)

    return encode


def megatron(checkout: Path, tokenizer_directory: Path, workers: int) -> Callable[[Path, Path], None]:
    """Megatron-LM's own tool, as its documentation runs it."""
    tool = checkout / "tools" / "preprocess_data.py"
    if not tool.is_file():
        raise UserError(
            f"{checkout}: no tools/preprocess_data.py; --megatron-lm takes a checkout of NVIDIA/Megatron-LM"
        )

    def encode(corpus: Path, out: Path) -> None:
        command = [
            sys.executable,
            "-W",
            "ignore",
            str(tool),
            "--input",
            str(corpus),
            "--output-prefix",
            str(out / "all"),
        ]
        command += ["--tokenizer-type", "SentencePieceTokenizer", "--append-eod", "--workers", str(workers)]
        command += ["--tokenizer-model", str(tokenizer_directory / vocabulary.MODEL_FILE)]
        _run(command, checkout)

    return encode


def _run(command: Sequence[str], directory: Path) -> None:
    path = os.pathsep.join([str(directory), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, cwd=directory, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    if done.returncode:
        raise UserError(f"{' '.join(command[:4])} ... failed: {done.stderr.strip().splitlines()[-1]}")


def gather(corpus: Path, out: Path, most_mb: float) -> tuple[int, int]:
    """All documents of `corpus` (or the first `most_mb` of each input) as one JSON lines file; returns
    documents and UTF-8 bytes of text."""
    documents = size = 0
    with open(out, "w", encoding="utf-8") as file:
        for item in find_inputs(corpus):
            taken = 0
            for document in (document for block in read_blocks(item) for document in parse_block(block, "und")):
                if not isinstance(document, Document) or not document.text or taken >= most_mb * 1e6:
                    continue
                row = {"text": document.text, "source": document.source, "lang": document.language}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                documents += 1
                taken += len(document.utf8)
            size += taken
    return documents, size


def compare_with_megatron(corpus: Path, data: Path, prefix: Path) -> str:
    """Compare the ids of every document; returns a sentence."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    theirs = IndexedDataset(str(prefix))
    mine: dict[str, IndexedDataset] = {}
    place: Counter[str] = Counter()
    number = 0
    outcome: Counter[str] = Counter()
    for block in read_blocks(find_inputs(corpus)[0]):
        for document in parse_block(block, None):
            split = "heldout" if is_held_out(document.utf8, HELDOUT_FRACTION) else "train"
            key = f"{directory_name(document.language)}/{directory_name(document.source)}/{split}"
            if key not in mine:
                mine[key] = IndexedDataset(str(data / key))
            # Megatron-LM writes a sequence for each million characters.
            count = -(-len(document.text) // MEGATRON_SLICE)
            expected = numpy.concatenate([theirs[number + part] for part in range(count)])
            if numpy.array_equal(mine[key][place[key]], expected):
                outcome["equal"] += 1
            elif vocabulary.SPACE_MARK in document.text:
                outcome["mark"] += 1
            else:
                outcome["different"] += 1
            number += count
            place[key] += 1
    if number != len(theirs) or outcome["different"]:
        raise SystemExit(f"ids differ in {outcome['different']} documents ({number} sequences of {len(theirs)})")
    sentence = f"ids equal Megatron-LM's in {outcome['equal']:,} of {sum(outcome.values()):,} documents"
    if outcome["mark"]:
        sentence += f"; the other {outcome['mark']} hold U+2581, which Megatron-LM (SentencePiece) turns into a space"
    return sentence


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/encode.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, help=f"documents in en and zh (default: {os.path.relpath(CORPUS)})")
    parser.add_argument("--tokenizer", type=Path, help="a trained tokenizer (default: train one on the corpus)")
    parser.add_argument(
        "--vocab-size", type=int, default=65024, help="of the tokenizer to train (default: %(default)s)"
    )
    parser.add_argument(
        "--megatron-lm", type=Path, metavar="DIR", help="a checkout of NVIDIA/Megatron-LM to compare with"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=2, help="times to run each, the fastest counts (default: %(default)s)"
    )
    parser.add_argument("--most-mb", type=float, default=1e6, help="MB to take of each input at most (default: all)")
    arguments = parser.parse_args(argv)
    corpus = arguments.corpus or CORPUS
    if not corpus.exists():
        raise UserError(f"{corpus}: no such directory; pass --corpus DIR with documents in English and Chinese")
    with tempfile.TemporaryDirectory() as name:
        measure(arguments, corpus, Path(name))
    return 0


def measure(arguments: argparse.Namespace, corpus: Path, directory: Path) -> None:
    """Run all contenders in `directory` and print what they did."""
    every, one = directory / "all.jsonl", directory / "one.jsonl"
    documents, size = gather(corpus, every, arguments.most_mb)
    with open(every, "rb") as file:
        one.write_bytes(file.readline())
    tokenizer = arguments.tokenizer
    if tokenizer is None:
        tokenizer = directory / "tokenizer"
        train.main(["--corpus", str(every), "--out", str(tokenizer), "--vocab-size", str(arguments.vocab_size)])
    tokenizer = tokenizer.resolve()
    workers = arguments.workers
    contenders = [
        Contender("tokenizer.encode", ours(tokenizer, workers)),
        Contender("plain SentencePiece, same workers", plain(tokenizer, workers)),
    ]
    if arguments.megatron_lm:
        tool = megatron(arguments.megatron_lm.resolve(), tokenizer, workers)
        contenders.append(Contender("Megatron-LM tools/preprocess_data.py", tool))

    print(
        f"{documents:,} documents, {size / 1e6:.1f} MB of text; {workers} workers; vocabulary "
        f"{vocabulary.read_manifest(tokenizer).vocab_size:,}; Python {platform.python_version()}, "
        f"SentencePiece {sentencepiece.__version__}; {platform.machine()}, {os.cpu_count()} cores",
        flush=True,
    )
    for _ in range(arguments.rounds):
        for index, contender in enumerate(contenders):
            contender.startup = contender.measure(one, directory / f"startup{index}", contender.startup)
            contender.whole = contender.measure(every, directory / f"whole{index}", contender.whole)

    first = contenders[0].net
    print(f"{'':38}{'MB/s':>7}{'seconds':>9}{'start-up':>10}{'CPU s':>8}   tokenizer.encode is")
    for contender in contenders:
        net = contender.net
        print(
            f"{contender.name:38}{size / 1e6 / net.seconds:>7.2f}{net.seconds:>9.1f}{contender.startup.seconds:>10.1f}"
            f"{net.processor:>8.1f}   {net.seconds / first.seconds:.2f} x as fast, "
            f"{net.processor / first.processor:.2f} x by CPU time"
        )

    data = directory / "whole0" / "data"
    entries = json.loads((data / "manifest.json").read_text())["datasets"]
    reference = json.loads((directory / "whole1" / "sha256.json").read_text())
    if reference != {entry["prefix"]: entry["sha256"] for entry in entries}:
        raise SystemExit("ids differ from SentencePiece's")
    print(f"ids equal plain SentencePiece's in all {documents:,} documents ({len(entries)} data sets, by SHA-256)")
    if arguments.megatron_lm:
        print(compare_with_megatron(every, data, directory / "whole2" / "all_text_document"))


if __name__ == "__main__":
    cli.run(main)
