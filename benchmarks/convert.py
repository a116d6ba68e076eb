"""Conversion of a checkpoint there and back: MB/s beside `cp` of the same bytes, and memory above the start.

A NeMo checkpoint of one of the paper's shapes with random bf16 weights is written part by part, copied with `cp`,
converted to a Hugging Face directory and back, each step to the disk (fsync) and in a process of its own; the pages
of what is read are put out of the file cache before each step where the system allows it. Then every tensor of the
checkpoint is compared with the one that came back, bit by bit. The ratios are what the program is held against: at
least 0.5 of `cp`, at most 2 GB above the largest tensor.

    python benchmarks/convert.py --shape 1.5B --work DIR --json convert.json

needs three times the checkpoint's size on the disk (1.5B: 3 GB each, 6B: 12.5 GB each); what it wrote is removed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from recipes.grid import load_grid
from recipes.provenance import git_revision
from tokenizer import cli
from tokenizer.cli import UserError
from tokenizer.files import write_json

SHAPES = ("tiny", "300M", "1.5B", "3B", "6B")
"""Sizes of recipes/grids/paper.yaml; tiny tries the program."""


def make(shape: str, out: Path) -> None:
    """A NeMo directory of a shape with random weights, a part in memory at a time."""
    import torch
    from tokenizers import Tokenizer, models

    from emergence_eval import nemo_writer
    from emergence_eval.description import ModelDescription
    from emergence_eval.hf_layout import EMBEDDING, OUTPUT, hf_shapes

    grid, name = ("smoke", "large") if shape == "tiny" else ("paper", shape)
    settings = next(run.settings for run in load_grid(grid).runs if run.settings.size == name)
    names = ModelDescription.__dataclass_fields__
    values = {key: getattr(settings, key) for key in names if hasattr(settings, key)}
    model = ModelDescription(**values, seq_length=settings.sequence_length, dtype="bfloat16")
    vocab = settings.vocab_size - 5
    context = out / "context"
    out.mkdir(parents=True)
    rows = -vocab % model.vocab_multiple
    noise = torch.randint(-(2**15), 2**15, (1 << 22,), dtype=torch.int16, generator=torch.Generator().manual_seed(7))

    class Random:
        """A model directory whose tensors are made when they are read: the same noise, each moved by its number."""

        shapes = hf_shapes(model, vocab)
        dtypes = dict.fromkeys(shapes, "torch.bfloat16")
        number = 0

        def read(self, name: str) -> torch.Tensor:
            self.number += 1
            size = math.prod(self.shapes[name])
            bits = (noise + self.number).repeat(-(-size // len(noise)))[:size].view(self.shapes[name])
            # Without the exponents of infinity and NaN, which are equal to nothing.
            return (bits & ~0x4000).view(torch.bfloat16)

    padding = {key: torch.ones(rows, model.hidden_size, dtype=torch.bfloat16) for key in (EMBEDDING, OUTPUT)}
    opened = nemo_writer.HfModel(Random(), model, vocab, padding)
    nemo_writer.write_context(out, context, opened)
    special = ["<unk>", "<|endoftext|>", "<|pad|>"]
    pieces = special + [f"piece{number}" for number in range(vocab - len(special))]
    Tokenizer(models.BPE({it: number for number, it in enumerate(pieces)}, [])).save(
        str(context / "tokenizer" / "tokenizer.json")
    )
    write_json(context / "tokenizer" / "tokenizer_config.json", {"eos_token": special[1], "pad_token": special[2]})
    nemo_writer.write_weights(opened, out / "weights", 1, lambda done, total: None)


def peak_above_start(work: Path, verb: str, source: Path, out: Path) -> None:
    """Convert, and write seconds and the peak of resident memory above what the imports need, as JSON."""
    import transformers  # noqa: F401

    from emergence_eval import convert, nemo_writer  # noqa: F401

    def resident(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

    start, anonymous, stop = resident("VmRSS"), [resident("RssAnon")], threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            anonymous.append(resident("RssAnon"))

    threading.Thread(target=watch, daemon=True).start()
    began = time.perf_counter()
    (convert.hf_to_nemo if verb == "hf-to-nemo" else convert.nemo_to_hf)(source, out)
    seconds = time.perf_counter() - began
    stop.set()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    write_json(
        work / "step.json", {"seconds": seconds, "peak": peak - start, "anonymous": max(anonymous) - anonymous[0]}
    )


def forget(directory: Path) -> None:
    """Put a directory's pages out of the file cache."""
    for path in directory.rglob("*"):
        if path.is_file() and hasattr(os, "posix_fadvise"):
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copied(source: Path, out: Path) -> float:
    """Seconds of `cp -r` and of having it on the disk."""
    forget(source)
    began = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(out)], check=True)
    for path in out.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    return time.perf_counter() - began


def converted(work: Path, verb: str, source: Path, out: Path) -> dict[str, float]:
    """A conversion in a process of its own."""
    forget(source)
    subprocess.run([sys.executable, __file__, "--one", verb, str(source), str(out), "--work", str(work)], check=True)
    return json.loads((work / "step.json").read_text())


def same(first: Path, second: Path) -> int:
    """Tensors compared bit by bit, a layer at a time. Raises UserError at a difference."""
    import torch

    from emergence_eval.torch_dist import Weights

    one, other = Weights(first / "weights"), Weights(second / "weights")
    if one.entries.keys() != other.entries.keys():
        raise UserError("the tensors have other names after the round trip")
    for key, entry in one.entries.items():
        stacked = key.startswith("module.decoder.layers.")
        for index in range(entry.shape[0]) if stacked else [None]:
            if not torch.equal(*(it.read(key, index).view(torch.int16) for it in (one, other))):
                raise UserError(f"{key} has other bits after the round trip")
    return len(one.entries)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1.5B", help="of the paper's grid (default: %(default)s)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where to write (default: a temporary folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one:
        verb, source, out = arguments.one
        peak_above_start(arguments.work, verb, Path(source), Path(out))
        return 0
    settings = next((r.settings for r in load_grid("paper").runs if r.settings.size == arguments.shape), None)
    needed = 3.1 * 2 * settings.parameters if settings else 0
    parent = arguments.work or Path(tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(parent).free) < needed:
        raise UserError(f"{parent} has {free / 1e9:.0f} GB free, {needed / 1e9:.0f} are needed; give another --work")
    with tempfile.TemporaryDirectory(prefix="convert-", dir=parent) as temporary:
        figures = measure(arguments.shape, Path(temporary))
    if arguments.json:
        write_json(arguments.json, figures)
    return 0


def measure(shape: str, work: Path) -> dict[str, object]:
    """All steps of one shape, printed as they come."""
    nemo, hf, back, copy = (work / name for name in ("nemo", "hf", "back", "copy"))
    make(shape, nemo)
    files = [path for path in nemo.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"{shape}: {size / 1e9:.2f} GB, revision {git_revision()}, {os.cpu_count()} cores", flush=True)
    figures: dict[str, object] = {"shape": shape, "bytes": size}
    for number in range(2):
        seconds = copied(nemo, copy)
        shutil.rmtree(copy)
        figures[f"cp_{number}"] = size / 1e6 / seconds
        print(f"  cp          {size / 1e6 / seconds:7.0f} MB/s", flush=True)
    best = max(value for key, value in figures.items() if key.startswith("cp_"))
    for verb, source, out in (("nemo-to-hf", nemo, hf), ("hf-to-nemo", hf, back)):
        it = converted(work, verb, source, out)
        rate = size / 1e6 / it["seconds"]
        figures[verb] = {**it, "rate": rate, "ratio": rate / best}
        print(
            f"  {verb}  {rate:7.0f} MB/s, {rate / best:.2f} of cp; peak {it['peak'] / 1e6:,.0f} MB above the start, "
            f"{it['anonymous'] / 1e6:,.0f} without file pages",
            flush=True,
        )
    print(f"  round trip  {same(nemo, back)} tensors, every bit the same", flush=True)
    return figures


if __name__ == "__main__":
    cli.run(main)
