"""Encode documents to Megatron's .bin/.idx: one data set a language and source, some documents held out.

Every core encodes blocks of about a megabyte into shards, which are then merged in the order of the corpus:
the files are the same byte for byte whatever the number of workers. Interrupt it at any moment and run the
same command again: finished shards are kept, and a finished data directory is left alone. Which documents
are held out depends on their text alone. Memory stays flat as the corpus grows. During the merge the shards
and the data sets lie on the disk side by side.

    python -m tokenizer.encode --corpus DIR --tokenizer TOKENIZER --out DATA
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy

from tokenizer import cli, vocabulary
from tokenizer.cli import UserError
from tokenizer.documents import BadDocument, bad_documents_error, find_inputs
from tokenizer.files import atomic_directory, write_json
from tokenizer.fingerprint import digest, input_fingerprint
from tokenizer.indexed import typecode
from tokenizer.merge import merge, publish
from tokenizer.pool import Settings, Shards
from tokenizer.vocabulary import Tokenizer

MANIFEST_FILE = "manifest.json"
INPUTS_FILE = "inputs.json"
TOKENIZER_DIRECTORY = "tokenizer"
WORK_DIRECTORY = ".work"


def _count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tokenizer.encode", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus",
        type=Path,
        required=True,
        help="directory (or one file) of documents: .jsonl, .jsonl.gz, .jsonl.zst and .parquet with text, source, "
        "lang; or directories of .txt files, whose name becomes the source",
    )
    parser.add_argument("--tokenizer", type=Path, required=True, help="directory written by python -m tokenizer.train")
    parser.add_argument("--out", type=Path, required=True, help="directory to write the data sets to")
    parser.add_argument("--language", help="language of documents that name none")
    parser.add_argument(
        "--heldout-fraction",
        type=float,
        default=0.02,
        help="share of the documents kept from training, to measure the loss on (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=int, default=_count_cores(), help="processes (default: one a core, %(default)s)"
    )
    parser.add_argument(
        "--skip-bad-documents",
        action="store_true",
        help="count and list documents that cannot be read instead of stopping at the first",
    )
    return parser


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep a second encoder out of `directory`; the lock ends with the process, however that ends."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"{directory}: another tokenizer.encode is writing here; wait for it or end it") from None
    except OSError:
        pass  # Some network file systems have no locks: then it is left to the user.
    try:
        yield
    finally:
        os.close(descriptor)


def _read_json(path: Path) -> dict[str, object]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _check_out(out: Path, tokenizer: Tokenizer) -> None:
    """UserError if `out` holds something else, or what another tokenizer encoded."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose another --out")
    if not out.is_dir() or not any(out.iterdir()):
        return
    manifest = _read_json(out / MANIFEST_FILE)
    before = manifest.get("tokenizer_sha256")
    if before is None and (out / TOKENIZER_DIRECTORY).is_dir():
        before = vocabulary.read_manifest(out / TOKENIZER_DIRECTORY).sha256
    if before is None and not (out / WORK_DIRECTORY).is_dir():
        raise UserError(f"{out}: is not empty and was not written by this command; choose another --out")
    if before is not None and before != tokenizer.sha256:
        raise UserError(
            f"{out}: holds data of another tokenizer ({str(before)[:12]}..., asked for {tokenizer.sha256[:12]}...); "
            "choose another --out, or remove it to encode anew"
        )


def _is_complete(out: Path, fingerprint: str, item_bytes: int) -> bool:
    """Whether `out` holds all that is asked for, by manifest, fingerprint and file sizes."""
    manifest = _read_json(out / MANIFEST_FILE)
    if not manifest or _read_json(out / INPUTS_FILE).get("fingerprint") != fingerprint:
        return False
    for entry in manifest["datasets"]:
        path = out / f"{entry['prefix']}.bin"
        if not path.is_file() or path.stat().st_size != item_bytes * entry["tokens"]:
            return False
        if not path.with_suffix(".idx").is_file():
            return False
    return True


def _describe(manifest: dict[str, object]) -> str:
    entries = manifest["datasets"]
    lines = []
    for language in sorted({entry["language"] for entry in entries}):
        for split in ("train", "heldout"):
            chosen = [entry for entry in entries if (entry["language"], entry["split"]) == (language, split)]
            documents, tokens, size = (
                sum(entry[name] for entry in chosen) for name in ("documents", "tokens", "bytes")
            )
            if documents:
                lines.append(
                    f"  {language} {split:<8}{len(chosen):>4} sources {documents:>9,} documents {tokens:>13,} tokens "
                    f"{size / 1e6:>9.1f} MB {size / tokens:>5.2f} bytes/token"
                )
    return "\n".join(lines)


def encode(arguments: argparse.Namespace) -> int:
    """Encode as the parsed command line says."""
    if not 0 <= arguments.heldout_fraction < 1:
        raise UserError(f"--heldout-fraction {arguments.heldout_fraction}: give a number from 0 to below 1")
    if arguments.workers < 1:
        raise UserError(f"--workers {arguments.workers}: give at least 1")
    out: Path = arguments.out
    inputs = find_inputs(arguments.corpus)
    tokenizer = vocabulary.load(arguments.tokenizer)
    code = typecode(tokenizer.vocab_size)
    settings = Settings(tokenizer.sha256, arguments.heldout_fraction, arguments.language)
    fingerprints = {item.name: input_fingerprint(item) for item in inputs}
    fingerprint = digest([asdict(settings), fingerprints])
    _check_out(out, tokenizer)
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        if _is_complete(out, fingerprint, numpy.dtype(code).itemsize):
            manifest = _read_json(out / MANIFEST_FILE)
            if manifest["skipped_documents"] and not arguments.skip_bad_documents:
                bad = [BadDocument(**document) for document in manifest["skipped"]]
                raise bad_documents_error(bad, manifest["skipped_documents"])
            shutil.rmtree(out / WORK_DIRECTORY, ignore_errors=True)
            print(f"{out}: already encoded\n{_describe(manifest)}")
            return 0

        started = time.monotonic()
        work = out / WORK_DIRECTORY
        work.mkdir(exist_ok=True)
        if not (out / TOKENIZER_DIRECTORY).is_dir():
            with atomic_directory(out / TOKENIZER_DIRECTORY) as directory:
                vocabulary.copy(arguments.tokenizer, directory)
        shards = Shards(work / "shards", out / TOKENIZER_DIRECTORY, settings, arguments.workers)
        shards.run(inputs, arguments.skip_bad_documents)
        merged = merge(shards.paths, work / "merged", code)
        if not merged:
            raise UserError(
                f"{arguments.corpus}: no text in {len(inputs)} inputs ({shards.num_bad} bad and {shards.num_empty} "
                "empty documents); give a --corpus with documents"
            )
        manifest = {
            "tokenizer_sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "eod_id": tokenizer.eod_id,
            "pad_id": tokenizer.pad_id,
            "heldout_fraction": arguments.heldout_fraction,
            "documents": sum(item.documents for item in merged),
            "tokens": sum(item.tokens for item in merged),
            "bytes": sum(item.bytes for item in merged),
            "datasets": [item.entry() for item in merged],
            "skipped_documents": shards.num_bad,
            "skipped": [asdict(document) for document in shards.bad],
            "empty_documents": shards.num_empty,
        }
        # From here to the new manifest the directory is unfinished, whatever it was before.
        (out / MANIFEST_FILE).unlink(missing_ok=True)
        publish(merged, work / "merged", out)
        write_json(
            out / INPUTS_FILE, {"fingerprint": fingerprint, "settings": asdict(settings), "inputs": fingerprints}
        )
        write_json(out / MANIFEST_FILE, manifest)
        shutil.rmtree(work)
    seconds = time.monotonic() - started
    for document in shards.bad:
        print(f"skipped {document}")
    if shards.num_bad:
        print(f"{shards.num_bad} bad documents skipped; they are counted in {out / MANIFEST_FILE}")
    print(
        f"{out}: {manifest['documents']:,} documents, {manifest['tokens']:,} tokens in {seconds:.1f} s "
        f"({manifest['bytes'] / 1e6 / seconds:.1f} MB/s, {len(shards.paths)} shards, {shards.num_kept} of them kept)"
    )
    print(_describe(manifest))
    return 0


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the command."""
    arguments = build_parser().parse_args(argv)
    try:
        return encode(arguments)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EMFILE):
            raise
        place = error.filename or arguments.out
        raise UserError(f"{place}: {error.strerror}; mend that and run again, finished shards are kept") from error


if __name__ == "__main__":
    cli.run(main)
