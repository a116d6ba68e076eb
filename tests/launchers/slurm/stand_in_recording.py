"""What a grid's stand-ins play back: the facts of its runs, without anything that was computed.

record(load_grid("paper"), directory)      # directory/python then takes the place of python
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from shlex import quote
from typing import Any

from stand_in import Behaviour, write_data

from recipes import encoded, index
from recipes.grid import Grid, Run
from recipes.journal import COLUMNS
from tokenizer.indexed import index_bytes, typecode

HERE = Path(__file__).resolve().parent

_MODEL = "a tokenizer that nobody has trained"
_MODEL_SHA256 = hashlib.sha256(_MODEL.encode()).hexdigest()


def record(grid: Grid, directory: Path) -> Path:
    """Write the recording of `grid`, and the program that plays it: DIRECTORY/python, which is returned."""
    directory.mkdir(parents=True, exist_ok=True)
    data, files = _data(grid)
    recording = {
        "python": sys.executable,
        "tokenizer_model": _MODEL,
        "tokenizer_sha256": _MODEL_SHA256,
        "data": data,
        "data_files": files,
        "runs": {run.name: _recorded(grid, run) for run in grid.runs},
    }
    recording["index_keys"] = _index_keys(grid, recording)
    (directory / "recording.json").write_text(json.dumps(recording))
    behave(directory)
    program = directory / "python"
    words = [sys.executable, "-E", "-s", "-S", str(HERE / "stand_in.py"), str(directory)]
    program.write_text(f'#!/bin/sh\nexec {" ".join(map(quote, words))} "$@"\n')
    program.chmod(0o755)
    return program


def behave(directory: Path, **behaviour: Any) -> None:
    """Say how it goes from now on; `behaviour` are the fields of `Behaviour`."""
    aside = directory / ".behaviour.json"
    aside.write_text(json.dumps(vars(Behaviour(**behaviour))))
    aside.replace(directory / "behaviour.json")


def _recorded(grid: Grid, run: Run) -> dict[str, Any]:
    settings = run.settings
    return {
        "num_steps": settings.num_steps,
        "tokens_per_step": settings.tokens_per_step,
        "checkpoint_steps": settings.checkpoint_steps,
        "languages": list(settings.languages),
        "header": ",".join([*COLUMNS, *(f"heldout_loss_{language}" for language in settings.languages)]),
        "flops_6nd_per_token": settings.flops_6nd(1),
        "flops_exact_per_token": settings.flops_exact(1),
        "manifest": {
            "grid": grid.name,
            "run": run.name,
            "size": settings.size,
            "seed": settings.seed,
            "parameters": settings.parameters,
            "parameters_non_embedding": settings.parameters_non_embedding,
            "precision": settings.precision,
            "sequence_length": settings.sequence_length,
            "vocab_size": settings.vocab_size,
            "tokenizer_sha256": _MODEL_SHA256,
            "data_fingerprint": "",
            "git_revision": "",
            "files": [],
            "schema": 1,
            "checksum": "",
        },
    }


def _data(grid: Grid) -> tuple[dict[str, Any], dict[str, int]]:
    """The manifest of data that fit every run of the grid, and the sizes of their files."""
    documents, vocabulary = 10, grid.tokenizer.vocab_size
    item_bytes = 2 if typecode(vocabulary) == "H" else 4
    sources: dict[str, set[str]] = {}
    for run in grid.runs:
        for language in run.settings.languages:
            sources.setdefault(language, set()).update(run.settings.source_weights.get(language, ["web"]))
    tokens = 8 * max(run.settings.sequence_length for run in grid.runs)
    datasets, files = [], {}
    for language, names in sources.items():
        for name in sorted(names):
            for split in ("train", "heldout"):
                prefix = f"{language}-{name}-{split}"
                datasets.append(
                    {
                        "language": language,
                        "source": name,
                        "split": split,
                        "prefix": prefix,
                        "documents": documents,
                        "tokens": tokens,
                        "sha256": hashlib.sha256(prefix.encode()).hexdigest(),
                    }
                )
                files |= {f"{prefix}.bin": item_bytes * tokens, f"{prefix}.idx": index_bytes(documents)}
    manifest = {
        "datasets": datasets,
        "vocab_size": vocabulary,
        "eod_id": 2,
        "pad_id": 0,
        "tokenizer_sha256": _MODEL_SHA256,
    }
    return manifest, files


def _index_keys(grid: Grid, recording: dict[str, Any]) -> list[str]:
    with tempfile.TemporaryDirectory() as directory:
        write_data(recording, Path(directory))
        data = encoded.read_data(Path(directory))
        for run in grid.runs:
            encoded.check(data, run.settings)
        return sorted({blend.key(data) for run in grid.runs for blend in index.blends(data, run.settings)})
