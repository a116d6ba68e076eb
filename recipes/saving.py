"""Writing checkpoints while training goes on or waits, and loading them on any layout.

All ranks write their part beside the checkpoint's place; each file is hashed by the process that wrote it. Only
when every rank is done does the first rank write the manifest and rename the directory. In the background the
parts are written by a forked process of each rank, which sees the memory as it was at the fork.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import yaml
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue, AsyncRequest
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from torch.distributed.checkpoint.api import CheckpointException

from recipes.checkpoint import (
    CONTEXT,
    KEY_PREFIX,
    OPTIMIZER,
    WEIGHTS,
    FileEntry,
    Manifest,
    hash_files,
    write_manifest,
    write_optimizer_manifest,
)
from recipes.model_description import model_description
from recipes.settings import format_count
from recipes.trainer import Trainer
from tokenizer.cli import UserError
from tokenizer.files import publish_directory, write_text

_OPTIMIZER_METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}


def model_state(modules: Sequence[torch.nn.Module]) -> dict[str, Any]:
    """The sharded state of this rank's part of the model, under NeMo's names: ``model<i>`` for its i-th chunk."""
    return {f"model{index}": module.sharded_state_dict(prefix=KEY_PREFIX) for index, module in enumerate(modules)}


def load(directory: Path, trainer: Trainer) -> None:
    """Give the trainer, on whatever layout, the state that the checkpoint in `directory` was made of."""
    weights = dist_checkpointing.load(model_state(trainer.modules), str(directory / WEIGHTS))
    for index, module in enumerate(trainer.modules):
        chunk = weights[f"model{index}"]
        module.load_state_dict({key.removeprefix(KEY_PREFIX): value for key, value in chunk.items()})
    if trainer.settings.distributed_optimizer:
        trainer.allocate_optimizer_state()
    state = dist_checkpointing.load(_training_state(trainer, loading=True), str(directory / OPTIMIZER))
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.scheduler.load_state_dict(state["scheduler"])


def _training_state(trainer: Trainer, *, loading: bool) -> dict[str, Any]:
    """What resuming needs beside the weights. There is no dropout, so no random state is used in training."""
    model = model_state(trainer.modules)
    return {
        "optimizer": trainer.optimizer.sharded_state_dict(model, is_loading=loading, metadata=_OPTIMIZER_METADATA),
        "scheduler": trainer.scheduler.state_dict(),
    }


@dataclass
class _Save:
    """A checkpoint that is being written."""

    directory: Path
    aside: Path
    manifest: Manifest
    mailboxes: list[_Mailbox]
    """Entries of the files that this rank writes, once they are written."""


class Saver:
    """Writes the checkpoints of a run, one at a time; every method is called on all ranks.

    Args:
        trainer: Whose state is saved.
        tokenizer: Directory of the tokenizer, which goes into each checkpoint.
        background: Write while training goes on.
        published: Called on the first rank after a checkpoint has appeared under its name.
    """

    def __init__(self, trainer: Trainer, tokenizer: Path, *, background: bool, published: Callable[[Manifest], None]):
        self._trainer = trainer
        self._tokenizer = tokenizer
        self._background = background
        self._published = published
        self._calls = AsyncCallsQueue()
        self._pending: _Save | None = None
        self._first = torch.distributed.get_rank() == 0

    def save(self, directory: Path, manifest: Manifest) -> None:
        """Write the trainer's state as the checkpoint `directory`, after the one before it is whole.

        Raises UserError if it cannot be written; nothing is left of it then, and older checkpoints stay.
        """
        self.finish()
        save = _Save(directory, directory.with_name(f".{directory.name}.saving"), manifest, [])
        with self._all_or_nothing(save):
            if self._first:
                shutil.rmtree(save.aside, ignore_errors=True)
                for name in (WEIGHTS, OPTIMIZER):
                    (save.aside / name).mkdir(parents=True)
            torch.distributed.barrier()
            requests = [
                self._request(save, model_state(self._trainer.modules), WEIGHTS),
                self._request(save, _training_state(self._trainer, loading=False), OPTIMIZER),
            ]
            if self._background:
                for request in requests:
                    self._calls.schedule_async_request(request)
                self._pending = save
            else:
                for request in requests:
                    request.execute_sync()
                self._publish(save)

    def poll(self) -> None:
        """Publish the checkpoint that is being written in the background if all its parts are there."""
        if self._pending:
            self._settle(blocking=False)

    def finish(self) -> None:
        """Wait for the checkpoint that is being written in the background."""
        if self._pending:
            self._settle(blocking=True)

    def abandon(self) -> None:
        """Give the checkpoint that is being written up, without the other ranks."""
        for call in self._calls.async_calls:
            call.async_caller.close(abort=True)
        if self._pending and self._first:
            shutil.rmtree(self._pending.aside, ignore_errors=True)
        self._pending = None

    def _settle(self, *, blocking: bool) -> None:
        save = self._pending
        with self._all_or_nothing(save):
            self._calls.maybe_finalize_async_calls(blocking=blocking)
            if self._calls.get_num_unfinalized_calls() == 0:
                self._pending = None
                self._publish(save)

    def _request(self, save: _Save, state: dict[str, Any], name: str) -> AsyncRequest:
        request = dist_checkpointing.save(state, str(save.aside / name), async_sharded_save=True)
        if request.async_fn is None:
            return request
        mailbox = _Mailbox()
        save.mailboxes.append(mailbox)
        (transforms, _) = request.async_fn.args
        return request._replace(async_fn=_Writing(transforms, save.aside, mailbox))

    def _publish(self, save: _Save) -> None:
        written = [entry for mailbox in save.mailboxes for entry in mailbox.get_nowait()]
        gathered: list[list[FileEntry]] | None = (
            [[] for _ in range(torch.distributed.get_world_size())] if self._first else None
        )
        torch.distributed.gather_object(written, gathered)
        if self._first:
            _write_context(save.aside / CONTEXT, self._trainer, self._tokenizer)
            known = {entry.path: entry for entries in gathered for entry in entries}
            paths = sorted(path for path in save.aside.rglob("*") if path.is_file())
            rest = [path for path in paths if path.relative_to(save.aside).as_posix() not in known]
            known |= {entry.path: entry for entry in hash_files(save.aside, rest)}
            entries = sorted(known.values(), key=lambda entry: entry.path)
            write_optimizer_manifest(save.aside, [it for it in entries if it.path.startswith(f"{OPTIMIZER}/")])
            own = tuple(it for it in entries if not it.path.startswith(f"{OPTIMIZER}/"))
            write_manifest(save.aside, replace(save.manifest, files=own))
            publish_directory(save.aside, save.directory)
            self._published(save.manifest)
        torch.distributed.barrier()

    @contextlib.contextmanager
    def _all_or_nothing(self, save: _Save) -> Iterator[None]:
        """Leave no half-written directory; UserError for what the disk refused."""
        try:
            yield
        except BaseException as error:
            self._pending = None
            for call in self._calls.async_calls:
                call.async_caller.close(abort=True)
            self._calls.async_calls.clear()
            if self._first:
                shutil.rmtree(save.aside, ignore_errors=True)
            if (reason := disk_error(error, save.directory)) is None:
                raise
            raise UserError(
                f"cannot save step {save.manifest.step} in {save.directory.parent}: {reason}; the states before it are "
                "whole: make room, then run the same command again"
            ) from None


def disk_error(error: BaseException, directory: Path) -> str | None:
    """What the file system said, if that is what `error` comes from; on another rank as well as on this one."""
    if isinstance(error, CheckpointException):
        causes = [disk_error(cause, directory) for cause, _ in error.failures.values()]
        # The first rank alone is told the others' causes.
        return next(filter(None, causes), None) if causes else "another process could not write"
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        return f"{error.strerror}" + (f" ({error.filename})" if error.filename else "")
    text = str(error)
    if "results_queue should not be empty" in text:
        return "a process that wrote it was killed (out of memory?)"
    if "inline_container" in text or "PytorchStreamWriter" in text:
        # torch.save does not pass on what the system said.
        free = shutil.disk_usage(next(it for it in (directory, *directory.parents) if it.exists())).free
        return f"a file could not be written to its end, with {format_count(free)} bytes free on the disk"
    if "Worker failure: " in text:
        return text.partition("Worker failure: ")[2].strip().splitlines()[0]
    return None


class _Mailbox:
    """One message from a forked process, of any size, with no process or thread between; in memory if it can be."""

    def __init__(self) -> None:
        in_memory = hasattr(os, "memfd_create")
        self._file = os.fdopen(os.memfd_create("message"), "w+b") if in_memory else tempfile.TemporaryFile()  # noqa: SIM115

    def put(self, message: Any) -> None:
        """Leave the message."""
        pickle.dump(message, self._file)
        self._file.flush()

    def get_nowait(self) -> Any:
        """Take the message. Raises queue.Empty if there is none."""
        self._file.seek(0)
        try:
            return pickle.load(self._file)
        except EOFError:
            raise queue.Empty from None
        finally:
            self._file.close()


# Megatron-Core's writers report through a manager process, which is spawned and imports everything again: seven
# seconds of a run of minutes, and a process left behind if the run is killed. It would also mix up two saves.
filesystem_async._get_write_results_queue = _Mailbox


@dataclass(frozen=True)
class _Writing:
    """What writes a rank's files in place of Megatron-Core's function, which forks a process a file and waits for
    ever if one of them is killed: the same writing in threads, and each file's checksum."""

    transforms: list[Any]
    aside: Path
    mailbox: _Mailbox

    def __call__(self, rank: int, buckets: list[tuple], results: _Mailbox) -> None:
        with ThreadPoolExecutor(len(buckets)) as pool:
            outcomes = list(pool.map(self._write, range(len(buckets)), buckets))
        failures = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if not failures:
            try:
                self.mailbox.put(hash_files(self.aside, [Path(path) for path, _, _ in buckets]))
            except OSError as error:
                failures = [error]
        results.put(failures[0] if failures else dict(enumerate(outcomes)))

    def _write(self, index: int, bucket: tuple) -> list | Exception:
        results: queue.SimpleQueue = queue.SimpleQueue()
        count: queue.Queue = queue.Queue()
        count.put(index)
        FileSystemWriterAsync.write_preloaded_data(self.transforms, index, bucket, results, count, use_fsync=True)
        return results.get()[1]


def _write_context(context: Path, trainer: Trainer, tokenizer: Path) -> None:
    shutil.copytree(tokenizer, context / "tokenizer")
    write_text(context / "model.yaml", yaml.safe_dump(model_description(trainer.settings), sort_keys=False))
