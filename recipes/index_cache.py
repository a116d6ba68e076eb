"""Build the index of the data that the runs of a grid read, once, before any of them starts.

Megatron-Core draws samples through an index: the documents in their shuffled order, where in them each
sample starts, the order of the samples, and which source each comes from, some 22 bytes a sequence. A run
without one builds it in memory, in every process and at every start. This command builds it once into
DATA/index, for every run of the grid that needs another one; the runs then map it into memory and never
write to it. Each index is written aside and renamed when whole; run the command again after an interruption,
or several times at once, and what is finished is left alone. The data directory may be moved or copied with
its index.

    python -m recipes.index_cache --grid recipes/grids/smoke.yaml --data runs/smoke/data
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from recipes import encoded
from recipes.encoded import EncodedData
from recipes.grid import load_grid, override
from recipes.index import DIRECTORY, MANIFEST, blends, find, is_whole
from recipes.mixture import Blend
from tokenizer import cli
from tokenizer.cli import UserError
from tokenizer.files import write_json

BYTES_PER_SEQUENCE = 22
"""Size of an index: two places of 4 bytes where a sample starts, 4 for its turn in the source, 2 for the source and 8
for its turn there; the order of the documents, 4 bytes each and epoch, comes on top."""


def build(data: EncodedData, wanted: Sequence[Blend]) -> tuple[int, int]:
    """Build the indices that are missing; the numbers of those built and of those that were there.

    One process builds at a time, others wait for it and find its work done. Raises UserError where the data
    directory cannot be written to.
    """
    by_key = {blend.key(data): blend for blend in wanted}
    missing = {key: blend for key, blend in by_key.items() if not find(data, blend)}
    if not missing:
        return 0, len(by_key)
    root = data.directory / DIRECTORY
    built = 0
    try:
        with _locked(root) as alone:
            if alone:
                _remove_leftovers(root, data)
            missing = {key: blend for key, blend in missing.items() if not find(data, blend)}
            with cli.progress_bar("{task.description}") as progress, _one_process():
                # Each sample is placed twice: in its source, and in the blend.
                task = progress.add_task("", total=2 * sum(blend.samples for blend in missing.values()))
                done = 0
                for key, blend in missing.items():
                    progress.update(task, description=f"{blend.split} sequences")
                    _build_one(root / key, data, blend, partial(progress.advance, task))
                    built += 1
                    done += 2 * blend.samples
                    progress.update(task, completed=done)
    except OSError as error:
        said = error.strerror or str(error)
        raise UserError(
            f"cannot write the index of the data to {root}: {said}; free space or make it writable, or train "
            "without: each run then builds its own in memory"
        ) from None
    return built, len(by_key) - built


def _build_one(directory: Path, data: EncodedData, blend: Blend, advance: Callable[[int], None]) -> None:
    """Write one index aside and rename it when it is whole."""
    from recipes.data import write_index

    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        write_index(data, blend, temporary, advance)
        files = sorted(path for path in temporary.iterdir())
        for path in files:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        content = {
            "data_fingerprint": data.fingerprint,
            "split": blend.split,
            "samples": blend.samples,
            "sequence_length": blend.sequence_length,
            "seed": blend.seed,
            "sources": {f"{it.language}/{it.source}": w for it, w in zip(blend.sources, blend.weights, strict=True)},
            "files": [{"path": path.name, "bytes": path.stat().st_size} for path in files],
        }
        write_json(temporary / MANIFEST, content)
        temporary.chmod(0o755)
        if not is_whole(directory):
            shutil.rmtree(directory, ignore_errors=True)
            temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_leftovers(root: Path, data: EncodedData) -> None:
    """Remove what killed processes left, and the indices of data that were here before."""
    for directory in root.iterdir():
        if not directory.is_dir():
            continue
        try:
            content = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
            stale = content["data_fingerprint"] != data.fingerprint
        except (OSError, ValueError, KeyError, TypeError):
            stale = True
        if stale or directory.name.startswith("."):
            shutil.rmtree(directory)


@contextmanager
def _locked(root: Path) -> Iterator[bool]:
    """Wait for the lock of the index directory, which ends with the process; whether the file system has locks."""
    root.mkdir(exist_ok=True)
    lock = os.open(root / ".lock", os.O_CREAT | os.O_RDWR, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process builds the index in {root}; waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            # Some network file systems have no locks. Two processes then build the same, and the renaming decides.
            yield False
            return
        yield True
    finally:
        os.close(lock)


@contextmanager
def _one_process() -> Iterator[None]:
    """A process group of this process alone, in memory: Megatron-Core asks for a rank."""
    from recipes import cpu

    cpu.install()
    import torch.distributed

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.index_cache", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--grid", required=True, help="a grid file, or the name of a shipped grid")
    parser.add_argument("--data", required=True, type=Path, help="data encoded by tokenizer.encode")
    parser.add_argument(
        "--runs", action="append", metavar="PATTERN", help="shell pattern of run names, may be repeated (default: all)"
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings that replace the grid's")
    arguments = parser.parse_args(argv)
    grid = load_grid(arguments.grid)
    data = encoded.read_data(arguments.data)
    wanted = []
    for run in grid.select(*(arguments.runs or ())):
        settings = override(run.settings, arguments.settings)
        encoded.check(data, settings)
        wanted += blends(data, settings)
    started = time.monotonic()
    built, there = build(data, wanted)
    size = sum(path.stat().st_size for path in (data.directory / DIRECTORY).glob("*/*"))
    print(
        f"{data.directory / DIRECTORY}: {built} built in {time.monotonic() - started:.1f} s, {there} already there, "
        f"{size / 1e6:,.1f} MB in all"
    )
    return 0


if __name__ == "__main__":
    cli.run(main)
