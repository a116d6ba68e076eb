"""Safetensors directories of Hugging Face models, a tensor at a time: read, and written shard by shard."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emergence_eval.torch_dist import ITEM_BYTES, fill
from tokenizer.cli import UserError
from tokenizer.files import write_json

if TYPE_CHECKING:
    import torch

    from emergence_eval.hf_layout import Group

SHARD_BYTES = 1 << 29
"""A file of weights is not larger, unless one tensor is."""

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_DTYPES = {"F64": "torch.float64", "F32": "torch.float32", "BF16": "torch.bfloat16", "F16": "torch.float16"}

Progress = Callable[[int, int], None]
"""Called with the bytes that are converted and those there are in all."""


def nothing(done: int, total: int) -> None:
    """No progress to be shown."""


def group_bytes(group: Group) -> int:
    """Bytes of a group's tensors. Raises UserError for a type that is none of weights."""
    if group.dtype not in ITEM_BYTES:
        raise UserError(
            f"{next(iter(group.shapes))} is of {group.dtype}; only {', '.join(ITEM_BYTES)} can be converted"
        )
    return sum(math.prod(shape) for shape in group.shapes.values()) * ITEM_BYTES[group.dtype]


def write_shards(directory: Path, groups: Iterable[Group], progress: Progress) -> None:
    """Write tensors as safetensors files. A file is put on the disk while the next one's tensors are read."""
    from safetensors.torch import save_file

    shards: list[list[Group]] = []
    size = 0
    for group in groups:
        if not shards or size + group_bytes(group) > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(group)
        size += group_bytes(group)
    total = sum(group_bytes(group) for shard in shards for group in shard)
    done, weight_map, on_disk = 0, {}, []
    with ThreadPoolExecutor(1) as disk:
        for number, shard in enumerate(shards, 1):
            name = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            tensors: dict[str, torch.Tensor] = {}
            for group in shard:
                tensors |= {key: tensor.contiguous() for key, tensor in group.read().items()}
                done += group_bytes(group)
                progress(done, total)
            save_file(tensors, directory / name, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, name)
            on_disk.append(disk.submit(sync, directory / name))
    for it in on_disk:
        it.result()
    if len(shards) > 1:
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def sync(path: Path) -> None:
    """Have a file on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


class HfTensors:
    """The tensors of a safetensors directory: shapes and types at once, numbers when they are asked for.

    Raises UserError for a directory without them, an index that leads out of it, or a file that is shorter than its
    header says.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._files: dict[str, Path] = {}
        self._places: dict[Path, dict[str, int]] = {}
        for path in weight_files(directory):
            for name, shape, dtype in read_header(path):
                if name in self._files:
                    raise UserError(f"{path} and {self._files[name]} both hold {name[:120]!r}; the model is damaged")
                self._files[name], self.shapes[name], self.dtypes[name] = path, shape, dtype

    def read(self, name: str) -> torch.Tensor:
        """One tensor in its own type on the CPU; read and not mapped, for mapped pages count as memory."""
        import torch

        path = self._files[name]
        dtype = getattr(torch, self.dtypes[name].removeprefix("torch."), None)
        if self.dtypes[name] not in ITEM_BYTES:
            raise UserError(f"{path}: {name} is of {self.dtypes[name]}; only {', '.join(ITEM_BYTES)} can be converted")
        if path not in self._places:
            with path.open("rb") as file:
                # The library has held this header against the file's size.
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
            self._places[path] = {
                key: 8 + length + it["data_offsets"][0] for key, it in header.items() if "dtype" in it
            }
        out = torch.empty(self.shapes[name], dtype=dtype)
        with path.open("rb", buffering=0) as file:
            fill(file, self._places[path][name], out, path)
        return out


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory; empty if there are none. Raises UserError for a bad index."""
    index = directory / INDEX
    if not index.is_file():
        return [directory / SINGLE] if (directory / SINGLE).is_file() else []
    content = read_object(index)
    names = content.get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(it, str) for it in names.values()):
        raise UserError(f"{index} has no weight_map; the model is damaged")
    for name in names.values():
        if name != Path(name).name or not (directory / name).is_file():
            raise UserError(f"{index} names the file {name[:120]!r}, which is not beside it; the model is not whole")
    return [directory / name for name in sorted(set(names.values()))]


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError if the file holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({error}); the model is damaged") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings; the model is damaged")
    return content


def read_header(path: Path) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape and type (torch.bfloat16, or safetensors' name) of each tensor of a safetensors file, whose library
    holds them against the file's size. Raises UserError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118
                it = file.get_slice(name)
                yield name, tuple(it.get_shape()), _DTYPES.get(it.get_dtype(), str(it.get_dtype()))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no whole safetensors file ({error}); copy it again") from None
