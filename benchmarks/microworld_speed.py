"""Speed of the generated world: MB of text a second of processor time, on one core.

Each stream of documents makes its share of the megabytes, the time to build its tables included; *of it tables* is
that time, up to the first document. Then the same world is written to a temporary directory, with JSON, the search
of every document for test items, and the benchmarks.

    python benchmarks/microworld_speed.py --megabytes 20
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from recipes.microworld.documents import SHARES, documents
from recipes.microworld.settings import MicroworldSettings
from recipes.microworld.world import World
from recipes.microworld.writing import LANGUAGE_SHARES, worlds, write_microworld
from tokenizer import cli


def stream_times(world: World, source: str, budget: float) -> tuple[int, float, float]:
    """Bytes of the first documents of a stream that have `budget` bytes, seconds for them, and for the first."""
    started = time.process_time()
    stream = documents(world, source)
    size = len(next(stream).encode())
    first = time.process_time() - started
    while size < budget:
        size += len(next(stream).encode())
    return size, time.process_time() - started, first


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line a stream, one for the mixture and one for writing."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/microworld_speed.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--megabytes", type=float, default=20, help="text to make, 10^6 bytes (default: %(default)s)")
    settings = MicroworldSettings(megabytes=parser.parse_args(argv).megabytes)
    print(f"{'':24} {'MB':>7} {'seconds':>8} {'MB/s':>6}  of it tables")
    total_size, total_seconds, total_first = 0, 0.0, 0.0
    for code, world in worlds(settings).items():
        for source, share in SHARES.items():
            budget = settings.megabytes * 1e6 * LANGUAGE_SHARES[code] * share
            size, seconds, first = stream_times(world, source, budget)
            _line(f"{code} {source}", size, seconds, f"{first:.3f} s")
            total_size, total_seconds, total_first = total_size + size, total_seconds + seconds, total_first + first
    _line("mixture", total_size, total_seconds, f"{total_first:.3f} s")
    with tempfile.TemporaryDirectory() as directory:
        started = time.process_time()
        written = write_microworld(settings, Path(directory) / "world", lambda size: None)
        _line("write_microworld", sum(written.values()), time.process_time() - started, "")
    return 0


def _line(name: str, size: int, seconds: float, note: str) -> None:
    print(f"{name:24} {size / 1e6:7.2f} {seconds:8.3f} {size / 1e6 / seconds:6.1f}  {note}", flush=True)


if __name__ == "__main__":
    cli.run(main)
