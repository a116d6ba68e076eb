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
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy
from rich.progress import Progress, TaskID

from tokenizer import cli, vocabulary
from tokenizer.cli import UserError
from tokenizer.documents import BadDocument, Block, Input, bad_documents_error, find_inputs, read_blocks
from tokenizer.files import atomic_directory, write_json, write_text
from tokenizer.fingerprint import digest, input_fingerprint
from tokenizer.indexed import typecode
from tokenizer.merge import merge, publish
from tokenizer.shards import MOST_BAD_LISTED, Header, read_header, write_shard
from tokenizer.vocabulary import Tokenizer
from tokenizer.words import WordEncoder

MANIFEST_FILE = "manifest.json"
INPUTS_FILE = "inputs.json"
TOKENIZER_DIRECTORY = "tokenizer"
WORK_DIRECTORY = ".work"
_FORMAT = 1
"""Raised when shards or data sets of an older version of this program must not be reused."""


@dataclass(frozen=True)
class Settings:
    """What the ids and their split into data sets depend on, besides the documents."""

    tokenizer_sha256: str
    heldout_fraction: float
    language: str | None
    format: int = _FORMAT


class Shards:
    """Encodes the blocks of a corpus into shards, in this process or in a pool, skipping finished ones."""

    def __init__(self, directory: Path, tokenizer_directory: Path, settings: Settings, workers: int) -> None:
        self.paths: list[Path] = []
        """Of all shards, in the order of the corpus."""
        self.bad: list[BadDocument] = []
        self.num_bad = 0
        self.num_empty = 0
        self.num_kept = 0
        """Shards that an interrupted run had finished."""
        self._directory = directory
        self._settings = settings
        self._workers = workers
        self._worker_arguments = (tokenizer_directory, settings, workers)
        self._headers: dict[Path, Header] = {}
        self._encoded_bytes = 0
        self._started = time.monotonic()

    def run(self, inputs: Sequence[Input], skip_bad: bool) -> None:
        """Encode all of `inputs`.

        Raises:
            UserError: a document is bad, unless `skip_bad`; a file is; a worker was killed.
        """
        executor: ProcessPoolExecutor | None = None
        if self._workers == 1:
            _start_worker(*self._worker_arguments)
        else:
            # Spawned, not forked: a worker must not inherit the lock, nor threads of the progress bar.
            executor = ProcessPoolExecutor(
                self._workers, multiprocessing.get_context("spawn"), _start_pool_worker, self._worker_arguments
            )
        try:
            with cli.progress_bar("{task.fields[rate]}") as progress:
                total = sum(item.bytes for item in inputs)
                task = progress.add_task("encoding (MB)", total=total / 1e6, rate="")
                self._encode_all(inputs, skip_bad, executor, progress, task)
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed (out of memory?); run the same command again with fewer --workers, "
                "finished shards are kept"
            ) from error
        finally:
            if executor is not None:
                executor.shutdown(wait=False, cancel_futures=True)

    def _encode_all(
        self,
        inputs: Sequence[Input],
        skip_bad: bool,
        executor: ProcessPoolExecutor | None,
        progress: Progress,
        task: TaskID,
    ) -> None:
        pending: dict[Future[Header], tuple[Path, int]] = {}

        def collect(done: Sequence[Future[Header]]) -> None:
            for future in done:
                path, disk_bytes = pending.pop(future)
                self._finish(path, future.result(), disk_bytes, progress, task)

        for block_path, block, disk_bytes in self._unfinished(inputs):
            if block is None:
                self.num_kept += 1
                self._finish(block_path, read_header(block_path), disk_bytes, progress, task)
            elif executor is None:
                self._finish(block_path, _encode_block(block, block_path), disk_bytes, progress, task)
            else:
                pending[executor.submit(_encode_block, block, block_path)] = (block_path, disk_bytes)
                if len(pending) >= 2 * self._workers:
                    collect(list(wait(pending, return_when=FIRST_COMPLETED).done))
            if self.num_bad and not skip_bad:
                break
        # All earlier blocks are waited for, so that the error names the first bad document of the corpus.
        while pending:
            collect(list(wait(pending, return_when=FIRST_COMPLETED).done))
        for path in self.paths:
            self.bad += self._headers[path].bad[: MOST_BAD_LISTED - len(self.bad)]
        if self.num_bad and not skip_bad:
            raise bad_documents_error(self.bad, self.num_bad)

    def _unfinished(self, inputs: Sequence[Input]) -> Iterator[tuple[Path, Block | None, int]]:
        """Each shard's path with its block, or with None where the shard is there already."""
        for item in inputs:
            directory = self._directory / digest([asdict(self._settings), input_fingerprint(item)])[:32]
            directory.mkdir(parents=True, exist_ok=True)
            blocks_file = directory / "blocks"
            if blocks_file.exists():
                count = int(blocks_file.read_text())
                paths = [directory / f"{index:06d}" for index in range(count)]
                if all(path.exists() for path in paths):
                    for path in paths:
                        self.paths.append(path)
                        yield path, None, item.bytes // count
                    continue
            count = 0
            for block in read_blocks(item):
                path = directory / f"{block.index:06d}"
                count += 1
                self.paths.append(path)
                yield path, None if path.exists() else block, block.disk_bytes
            write_text(blocks_file, str(count))

    def _finish(self, path: Path, header: Header, disk_bytes: int, progress: Progress, task: TaskID) -> None:
        self._headers[path] = Header([], header.bad, header.num_bad, header.num_empty)
        self.num_bad += header.num_bad
        self.num_empty += header.num_empty
        self._encoded_bytes += sum(part.bytes for part in header.parts)
        rate = self._encoded_bytes / 1e6 / (time.monotonic() - self._started)
        progress.update(task, advance=disk_bytes / 1e6, rate=f"{rate:.1f} MB/s of text")


_worker: tuple[WordEncoder, bytes, Settings] | None = None


def _start_worker(tokenizer_directory: Path, settings: Settings, workers: int) -> None:
    global _worker
    tokenizer = vocabulary.load(tokenizer_directory)
    code = typecode(tokenizer.vocab_size)
    eod_ids = numpy.array([tokenizer.eod_id], dtype=code).tobytes()
    _worker = (WordEncoder(tokenizer, code, processes=workers), eod_ids, settings)


def _start_pool_worker(tokenizer_directory: Path, settings: Settings, workers: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def leave_with_parent() -> None:
        parent.join()
        os._exit(1)

    # A parent that is killed outright cannot stop its workers.
    threading.Thread(target=leave_with_parent, daemon=True).start()
    _start_worker(tokenizer_directory, settings, workers)


def _encode_block(block: Block, path: Path) -> Header:
    encoder, eod_ids, settings = _worker
    return write_shard(block, encoder, eod_ids, settings.heldout_fraction, settings.language, path)


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
                f"{arguments.corpus}: no text in {len(inputs)} inputs ({shards.num_bad} bad and {shards.num_empty} empty "
                "documents); give a --corpus with documents"
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
