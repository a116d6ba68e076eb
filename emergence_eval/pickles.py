"""Pickles of strangers, read without running anything that they name.

A Megatron checkpoint keeps its arguments (`common.pt`) and the table of its tensors (`.metadata`) as pickles,
which may name any function of any module to be called. Here a name is only looked up if it is on a list; every
other one becomes a class whose instances keep what they are given and do nothing.

    python -c "from emergence_eval import pickles; print(pickles.read_common('iter_0000100')['iteration'])"
"""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import types
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizer.cli import UserError

COMMON, METADATA = "common.pt", ".metadata"

Names = Mapping[tuple[str, str], Any]
"""Module and name to what is to stand for it."""

_DTYPES = ("float32", "bfloat16", "float16", "float64", "int64", "int32", "uint8", "bool")

_ARGUMENTS: Names = {
    ("argparse", "Namespace"): argparse.Namespace,
    ("types", "SimpleNamespace"): types.SimpleNamespace,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): tuple,
    **{("torch", name): f"torch.{name}" for name in _DTYPES},
}
"""What arguments and tables need without loading torch; its dtypes become their names."""

_TORCH_METADATA = {
    "torch.distributed.checkpoint.metadata": None,
    "torch.distributed.checkpoint.planner": None,
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "StorageMeta"),
    "torch.serialization": ("_get_layout",),
}
"""Modules whose plain data classes the table of a torch checkpoint is made of, and which of them; None for all."""

_ALIASES = {
    ("megatron.core.dist_checkpointing.strategies.torch", "MCoreMetadata"): (
        "torch.distributed.checkpoint.metadata",
        "Metadata",
    ),
}


class Inert:
    """In place of an object whose class is not looked up: what it was made with, and nothing else."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.arguments, self.options = arguments, options

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items = {**getattr(self, "items", {}), repr(key): value}

    def append(self, value: Any) -> None:
        """Keep a value, as lists do."""
        self.values = [*getattr(self, "values", []), value]

    def extend(self, values: Any) -> None:
        """Keep values, as lists do."""
        self.values = [*getattr(self, "values", []), *values]

    add = append


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BufferedIOBase, find: Callable[[str, str], Any]) -> None:
        super().__init__(stream)
        self._find = find

    def find_class(self, module: str, name: str) -> Any:
        found = self._find(module, name)
        return type(name.rpartition(".")[2] or "Inert", (Inert,), {}) if found is None else found

    def persistent_load(self, pid: Any) -> Any:
        return Inert(pid)


def _load(stream: io.BufferedIOBase, find: Callable[[str, str], Any], path: Path) -> Any:
    try:
        return _Unpickler(stream, find).load()
    except Exception as error:
        # Bytes that are no pickle can fail in any way; none of it is a fault of this program.
        raise UserError(f"{path} is damaged or no part of a checkpoint ({type(error).__name__}: {error})") from None


def _arguments(module: str, name: str) -> Any:
    return _ARGUMENTS.get((module, name))


def read_common(directory: Path) -> dict[str, Any]:
    """What is not a tensor in a distributed checkpoint: `args`, `iteration`, the optimizer's settings...

    Tensors and objects of classes not on the list are `Inert`, dtypes their names ("torch.bfloat16"). Raises
    UserError if there is no such file or it is not what torch.save writes.
    """
    path = directory / COMMON
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (it for it in archive.namelist() if it.endswith("/data.pkl"))
            content = _load(io.BytesIO(archive.read(name)), _arguments, path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; is {directory} a checkpoint?") from None
    except (zipfile.BadZipFile, ValueError) as error:
        raise UserError(f"{path} is no file of torch.save ({error}); the checkpoint is damaged") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no dictionary; the checkpoint is damaged")
    return content


def read_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """The whole shape of every tensor of a distributed checkpoint, by its key, without loading torch."""
    path = directory / METADATA
    try:
        with path.open("rb") as stream:
            content = _load(stream, _arguments, path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; is {directory} a torch_dist checkpoint?") from None
    try:
        entries = content.state["state_dict_metadata"]
        # Entries without a size are bytes, such as Transformer Engine's extra states.
        return {key: tuple(it.state["size"]) for key, it in entries.items() if "size" in getattr(it, "state", {})}
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no table of a checkpoint ({error!r}); the checkpoint is damaged") from None


def read_metadata(directory: Path) -> Any:
    """The table as torch's own `Metadata`, for its reader."""
    import importlib

    def find(module: str, name: str) -> Any:
        module, name = _ALIASES.get((module, name), (module, name))
        if module in _TORCH_METADATA:
            names = _TORCH_METADATA[module]
            found = getattr(importlib.import_module(module), name, None)
            # Of these modules the classes that they define are wanted, not what they import.
            if name in (names or ()) or (names is None and getattr(found, "__module__", None) == module):
                return found
        if module == "torch" and name in (*_DTYPES, "Size", "device"):
            return getattr(importlib.import_module(module), name)
        if module == "collections" and name == "OrderedDict":
            return collections.OrderedDict
        return None

    path = directory / METADATA
    with path.open("rb") as stream:
        return _load(stream, find, path)
