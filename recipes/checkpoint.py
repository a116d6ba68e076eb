"""Checkpoints on the disk: named, verified, found, and removed when they are no longer needed.

A checkpoint is a NeMo 2.0 directory: `weights/` (a Megatron distributed checkpoint of the model, which any
tensor- and pipeline-parallel layout can load) and `context/` (`model.yaml`, the tokenizer); beside them
`manifest.json`, and `optimizer/` (a distributed checkpoint of what resuming needs more) with a manifest of its
own, so that it can be removed without touching the checkpoint's. What has no valid manifest is not a
checkpoint. `recipes.saving` writes and loads them.

RUN/checkpoints/step_<n> are kept for evaluation; RUN/resume/step_<n> are states of the same form that only
resuming looks at.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizer.cli import UserError
from tokenizer.files import sha256_file, write_text

logger = logging.getLogger(__name__)

SCHEMA = 1
"""Version of the manifest's layout."""

WEIGHTS, OPTIMIZER, CONTEXT, MANIFEST = "weights", "optimizer", "context", "manifest.json"

KEY_PREFIX = "module."
"""NeMo 2.0 names the tensors of a checkpoint after its wrapper of the model."""

CHECKPOINTS, RESUME = "checkpoints", "resume"
"""Directories of a run with the checkpoints to evaluate and with the states to resume from."""

RESUME_STATES = 2
"""Newest states that are kept to resume from: if the last is damaged there is one before it."""

_STEP = re.compile(r"step_(\d+)")
_HASHED_AT_ONCE = 8


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is and which files it is made of. Losses are nats per token."""

    grid: str
    run: str
    size: str
    seed: int
    step: int
    final: bool
    tokens: int
    parameters: int
    parameters_non_embedding: int
    flops_6nd: float
    flops_exact: float
    precision: str
    losses: dict[str, float]
    """`heldout` (weighted over the mixture), `heldout_<language>`, and `train`: the mean training loss over the
    last 1 % of the tokens. States that are only resumed from have the last alone."""
    sequence_length: int
    vocab_size: int
    tokenizer_sha256: str
    data_fingerprint: str
    git_revision: str
    files: tuple[FileEntry, ...] = ()
    """All files but the optimizer's state, which has a manifest of its own."""
    schema: int = SCHEMA
    checksum: str = ""
    """SHA-256 of the manifest without this line; empty in manifests of before it was added."""


@dataclass(frozen=True)
class State:
    """A whole checkpoint with all that training needs to go on from it."""

    directory: Path
    manifest: Manifest


def step_directory(run_directory: Path, step: int, folder: str = CHECKPOINTS) -> Path:
    """Where the checkpoint of `step` lies."""
    return run_directory / folder / f"step_{step}"


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write a checkpoint's manifest, sealed with its own checksum."""
    write_text(directory / MANIFEST, _sealed(dataclasses.asdict(manifest)))


def write_optimizer_manifest(directory: Path, files: Sequence[FileEntry]) -> None:
    """Write the manifest of the checkpoint's optimizer state; paths are relative to the checkpoint."""
    content = {"schema": SCHEMA, "files": [dataclasses.asdict(entry) for entry in files]}
    write_text(directory / OPTIMIZER / MANIFEST, _sealed(content))


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a checkpoint. Raises UserError if there is none or it cannot be read."""
    path = directory / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{directory} is no checkpoint (no {MANIFEST}); give a directory such as RUN/checkpoints/step_100"
        )
    content = _read_sealed(path)
    try:
        files = tuple(FileEntry(**entry) for entry in content.pop("files"))
        return Manifest(**content, files=files)
    except (TypeError, KeyError, AttributeError) as error:
        raise _damaged(path, str(error)) from None


def verify(directory: Path) -> Manifest:
    """Read the manifests and compare every file's size and checksum with them. Raises UserError at a difference."""
    manifest = read_manifest(directory)
    files = list(manifest.files)
    if (directory / OPTIMIZER).exists() and not _lists_optimizer(manifest):
        path = directory / OPTIMIZER / MANIFEST
        try:
            files += [FileEntry(**entry) for entry in _read_sealed(path)["files"]]
        except FileNotFoundError:
            raise UserError(f"{path} is missing; the checkpoint is damaged, use another one") from None
        except (TypeError, KeyError) as error:
            raise _damaged(path, str(error)) from None
    for entry in files:
        path = directory / entry.path
        if not path.is_file():
            raise UserError(f"{path} is missing; the checkpoint is damaged, use another one")
        if (size := path.stat().st_size) != entry.bytes:
            raise UserError(f"{path} has {size} bytes instead of {entry.bytes}; the checkpoint is damaged, use another")
    for entry, digest in zip(files, _digests(directory / entry.path for entry in files), strict=True):
        if digest != entry.sha256:
            path = directory / entry.path
            raise UserError(f"{path} does not match its checksum; the checkpoint is damaged, use another one")
    return manifest


def hash_files(directory: Path, paths: Iterable[Path]) -> list[FileEntry]:
    """Entries of files below `directory`, several hashed at once."""
    paths = list(paths)
    return [
        FileEntry(path.relative_to(directory).as_posix(), path.stat().st_size, digest)
        for path, digest in zip(paths, _digests(paths), strict=True)
    ]


def _digests(paths: Iterable[Path]) -> list[str]:
    # Threads: hashing leaves Python's lock.
    with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
        return list(pool.map(sha256_file, paths))


def _sealed(content: dict[str, Any]) -> str:
    """`content` as JSON with the checksum of all that stands before it. NaN is refused (ValueError)."""

    def text(value: dict[str, Any]) -> str:
        return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    body = {key: value for key, value in content.items() if key != "checksum"}
    return text({**body, "checksum": hashlib.sha256(text(body).encode()).hexdigest()})


def _read_sealed(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode()
        content = json.loads(text)
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(content, dict):
        raise _damaged(path, "no JSON object")
    if content.get("checksum") and _sealed(content) != text:
        raise _damaged(path, "its checksum differs")
    if content.get("schema") != SCHEMA:
        raise UserError(f"{path} has schema {content.get('schema')!r}; this version reads {SCHEMA}")
    return content


def _damaged(path: Path, how: str) -> UserError:
    return UserError(f"{path} is damaged ({how}); use another checkpoint of the run")


def list_steps(run_directory: Path) -> list[int]:
    """Steps of the run that have a checkpoint with a manifest, ascending."""
    return [step for step, path in _directories(run_directory, CHECKPOINTS) if (path / MANIFEST).is_file()]


def newest_saved_step(run_directory: Path) -> int:
    """The newest step with a state to go on from, checkpoint or not; 0 if there is none. It is not verified."""
    found = [item for folder in (CHECKPOINTS, RESUME) for item in _directories(run_directory, folder)]
    return max((step for step, path in found if (path / MANIFEST).is_file()), default=0)


def is_started(run_directory: Path) -> bool:
    """Whether the run has saved anything."""
    return any(_directories(run_directory, folder) for folder in (CHECKPOINTS, RESUME))


def latest(run_directory: Path) -> State | None:
    """The newest whole state to resume from; damaged newer ones are set aside as `step_<n>.damaged`."""
    found = [
        (step, folder == CHECKPOINTS, path)
        for folder in (CHECKPOINTS, RESUME)
        for step, path in _directories(run_directory, folder)
    ]
    for _, _, directory in sorted(found, reverse=True):
        try:
            if not (directory / MANIFEST).is_file():
                raise UserError(f"{directory / MANIFEST} is missing; the checkpoint is damaged")
            if not (directory / OPTIMIZER).exists() and not _lists_optimizer(read_manifest(directory)):
                continue
            return State(directory, verify(directory))
        except UserError as error:
            aside = directory.with_name(f"{directory.name}.damaged")
            logger.warning("%s; set aside as %s", error, aside.name)
            shutil.rmtree(aside, ignore_errors=True)
            directory.rename(aside)
    return None


def remove_leftovers(run_directory: Path) -> None:
    """Remove what a killed run left half-written or half-removed."""
    for folder in (CHECKPOINTS, RESUME):
        for pattern in (".step_*", f"step_*/.{OPTIMIZER}.*"):
            for path in (run_directory / folder).glob(pattern):
                shutil.rmtree(path, ignore_errors=True)
    for path in run_directory.glob(".*.*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            # A temporary file of tokenizer.files.atomic_path.
            path.unlink(missing_ok=True)


def remove_old_states(run_directory: Path, keep_optimizer_states: int) -> None:
    """Leave the optimizer's state to the newest checkpoints only, and the newest states in RUN/resume.

    Checkpoints stay as they are otherwise, their manifests to the last bit; all keep their state if
    `keep_optimizer_states` is 0.
    """
    checkpoints = _directories(run_directory, CHECKPOINTS)
    if keep_optimizer_states:
        for _, directory in checkpoints[:-keep_optimizer_states]:
            # In older checkpoints the one manifest lists the optimizer's files as well.
            if (directory / OPTIMIZER / MANIFEST).is_file():
                _discard(directory / OPTIMIZER)
    for _, directory in _directories(run_directory, RESUME)[:-RESUME_STATES]:
        _discard(directory)


def remove_resume_states(run_directory: Path) -> None:
    """Remove RUN/resume, when the run is complete."""
    if (run_directory / RESUME).is_dir():
        _discard(run_directory / RESUME)


def _discard(directory: Path) -> None:
    """Remove a directory so that a kill in the middle leaves nothing that looks damaged."""
    hidden = directory.with_name(f".{directory.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    directory.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _directories(run_directory: Path, folder: str) -> list[tuple[int, Path]]:
    """The steps with a directory in `folder`, ascending, whole or not."""
    found = (run_directory / folder).glob("step_*")
    return sorted((int(match[1]), path) for path in found if (match := _STEP.fullmatch(path.name)) and path.is_dir())


def _lists_optimizer(manifest: Manifest) -> bool:
    return any(entry.path.startswith(f"{OPTIMIZER}/") for entry in manifest.files)
