"""Blocks of documents to shards on all cores, so that it can be interrupted at any moment.

One process reads the inputs and hands out blocks; the others parse and encode, and each writes its shard
under a name that says what it was made from. A shard that is there already is not made again.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy
from rich.progress import Progress, TaskID

from tokenizer import cli, vocabulary
from tokenizer.cli import UserError
from tokenizer.documents import BadDocument, Block, Input, bad_documents_error, read_blocks
from tokenizer.files import write_text
from tokenizer.fingerprint import digest, input_fingerprint
from tokenizer.indexed import typecode
from tokenizer.shards import MOST_BAD_LISTED, Header, read_header, write_shard
from tokenizer.words import WordEncoder

FORMAT = 1
"""Raised when shards or data sets of an older version of this program must not be reused."""


@dataclass(frozen=True)
class Settings:
    """What the ids and their split into data sets depend on, besides the documents."""

    tokenizer_sha256: str
    heldout_fraction: float
    language: str | None
    format: int = FORMAT


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
