"""Tensors of a Megatron distributed checkpoint (torch_dist), a slice at a time, whatever layout wrote it.

The table says which box of which tensor lies where. Before a byte of memory is taken for a tensor the table is held
against the files: every part lies within its file, is as long as its box says, and the parts of a tensor fill it
once. Only then are the wanted bytes read, straight into the tensor. Neither the table nor the pickle before each
part runs anything (`emergence_eval.pickles`); torch's own reader would unpickle both.

    python -c "from emergence_eval.torch_dist import Weights; print(Weights('step_10/weights').entries)"
"""

from __future__ import annotations

import io
import math
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emergence_eval import pickles
from tokenizer.cli import UserError

if TYPE_CHECKING:
    import torch

ITEM_BYTES = {"torch.float64": 8, "torch.float32": 4, "torch.bfloat16": 2, "torch.float16": 2}
"""Types of weights and their sizes."""

_STORAGES = {
    "DoubleStorage": "torch.float64",
    "FloatStorage": "torch.float32",
    "BFloat16Storage": "torch.bfloat16",
    "HalfStorage": "torch.float16",
}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """A box of a tensor and where torch.save wrote it."""

    offsets: Shape
    sizes: Shape
    path: Path
    start: int
    """Byte in the file."""
    length: int
    """Bytes in the file, with what torch.save writes around the numbers."""


@dataclass(frozen=True)
class Entry:
    """A tensor as the table describes it; parts are empty where only the shape was asked for."""

    shape: Shape
    dtype: str
    """torch.float32, ..., or another name if it is no type of weights."""
    parts: tuple[Part, ...]


def read_shapes(directory: Path) -> dict[str, Shape]:
    """The whole shape of every tensor of a distributed checkpoint, by its key. Raises UserError."""
    table = pickles.read_table(directory)
    return {key: shape for key, (shape, _, _) in _tensors(table, directory).items()}


def _tensors(table: pickles.Inert, directory: Path) -> dict[str, tuple[Shape, str, list[Any]]]:
    """Shape, type and boxes of each tensor in the table; entries without a size are bytes."""
    found = {}
    try:
        for key, entry in table.attributes["state_dict_metadata"].items():
            it = entry.attributes
            if not key.isprintable():
                raise ValueError("key")
            if "size" in it:
                properties = it["properties"].state
                dtype = properties[0] if isinstance(properties, tuple) else it["properties"].attributes["dtype"]
                found[key] = _shape(it["size"]), str(dtype), list(it["chunks"])
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise _no_table(directory, error) from None
    return found


def _no_table(directory: Path, error: Exception) -> UserError:
    path = directory / pickles.METADATA
    return UserError(f"{path} is no table of a checkpoint ({type(error).__name__}); the checkpoint is damaged")


def _shape(value: Any) -> Shape:
    sizes = tuple(value)
    if not all(type(size) is int and 0 <= size < 1 << 48 for size in sizes) or len(sizes) > 8:
        raise ValueError("sizes")
    return sizes


class Weights:
    """The tensors in `directory` whose key begins with `prefix` and that `wanted` says yes to, by their key without
    the prefix.

    Raises UserError if the table is damaged, names what it should not, or claims more than the files hold.
    """

    def __init__(self, directory: Path, prefix: str = "", wanted: Callable[[str], bool] = lambda _: True) -> None:
        self.directory = Path(directory)
        table = pickles.read_table(self.directory)
        tensors = {key: it for key, it in _tensors(table, self.directory).items() if wanted(key)}
        try:
            places = _places(table, set(tensors))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _no_table(self.directory, error) from None
        self._files: dict[str, int] = {}
        self.entries: dict[str, Entry] = {}
        for key, (shape, dtype, chunks) in tensors.items():
            parts = tuple(self._part(key, chunk, places) for chunk in chunks)
            self.entries[key.removeprefix(prefix)] = Entry(shape, dtype, parts)
            self._check(key, Entry(shape, dtype, parts))
        claimed = sum(part.length for entry in self.entries.values() for part in entry.parts)
        if claimed > sum(self._files.values()):
            raise UserError(
                f"{self.directory / pickles.METADATA} claims {claimed} bytes of tensors in files of "
                f"{sum(self._files.values())}; the checkpoint is damaged"
            )

    def _part(self, key: str, chunk: Any, places: dict[tuple[str, Shape], Any]) -> Part:
        try:
            offsets, sizes = _shape(chunk.attributes["offsets"]), _shape(chunk.attributes["sizes"])
            place = places[key, offsets]
            name, start, length = place["relative_path"], place["offset"], place["length"]
            if type(start) is not int or type(length) is not int or min(start, length) < 0:
                raise ValueError("place")
            plain = isinstance(name, str) and name == Path(name).name and name not in ("", ".", "..")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _no_table(self.directory, error) from None
        if place.get("transform_descriptors"):
            raise UserError(
                f"{self.directory}: {key} is packed ({place['transform_descriptors']!r:.60}); save it without"
            )
        if not plain:
            raise UserError(f"{self.directory / pickles.METADATA} names the file {name!r:.120}, which is outside it")
        size = self._size(name)
        if start + length > size:
            raise UserError(
                f"{self.directory / name} has {size} bytes and {key} would end at {start + length}; "
                "the checkpoint is damaged or not whole"
            )
        return Part(offsets, sizes, self.directory / name, start, length)

    def _size(self, name: str) -> int:
        if name not in self._files:
            path = self.directory / name
            try:
                status = path.stat()
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", error)
                raise UserError(f"cannot read {path}: {reason}; the checkpoint is not whole") from None
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{path} is no plain file; the checkpoint is damaged")
            self._files[name] = status.st_size
        return self._files[name]

    def _check(self, key: str, entry: Entry) -> None:
        """The parts fill the tensor once, and each is in the file with all its bytes."""
        item = ITEM_BYTES.get(entry.dtype)
        volume = 0
        for part in entry.parts:
            box = zip(part.offsets, part.sizes, entry.shape, strict=False)
            inside = len(part.offsets) == len(part.sizes) == len(entry.shape)
            inside = inside and all(offset + size <= whole for offset, size, whole in box)
            if not inside:
                raise UserError(f"{self.directory}: a part of {key} lies outside it; the checkpoint is damaged")
            volume += math.prod(part.sizes)
            if item and math.prod(part.sizes) * item > part.length:
                raise UserError(
                    f"{self.directory}: {key} claims {math.prod(part.sizes) * item} bytes where {part.path.name} has "
                    f"{part.length}; the checkpoint is damaged"
                )
        if volume != math.prod(entry.shape) or len({part.offsets for part in entry.parts}) != len(entry.parts):
            raise UserError(
                f"{self.directory}: the parts of {key} do not fill it; the checkpoint is damaged or not whole"
            )

    def read(self, key: str, index: int | None = None) -> torch.Tensor:
        """A tensor, or its `index`-th along the first dimension, in its own type on the CPU. Raises UserError."""
        import torch

        entry = self.entries[key]
        if entry.dtype not in ITEM_BYTES:
            raise UserError(f"{self.directory}: {key} is of {entry.dtype}; only {', '.join(ITEM_BYTES)} can be read")
        low = (0,) * len(entry.shape) if index is None else (index, *(0 for _ in entry.shape[1:]))
        high = entry.shape if index is None else (index + 1, *entry.shape[1:])
        out = torch.empty([b - a for a, b in zip(low, high, strict=True)], dtype=getattr(torch, entry.dtype[6:]))
        try:
            for part in entry.parts:
                start = [max(a, offset) for a, offset in zip(low, part.offsets, strict=True)]
                end = [min(b, offset + size) for b, offset, size in zip(high, part.offsets, part.sizes, strict=True)]
                if all(a < b for a, b in zip(start, end, strict=True)) or not start:
                    target = out[tuple(slice(a - o, b - o) for a, b, o in zip(start, end, low, strict=True))]
                    box = [(a - o, b - o) for a, b, o in zip(start, end, part.offsets, strict=True)]
                    _read_box(part, entry.dtype, box, target)
        except OSError as error:
            raise UserError(f"cannot read the weights in {self.directory}: {error.strerror}") from None
        return out if index is None else out[0]


def _places(table: pickles.Inert, keys: set[str]) -> dict[tuple[str, Shape], dict[str, Any]]:
    """Where the parts of the tensors `keys` lie, by key and offsets."""
    places = {}
    for where, place in table.attributes["storage_data"].items():
        it = where.attributes
        if it["fqn"] in keys:
            places[it["fqn"], _shape(it.get("offset") or ())] = place.attributes
    return places


def _read_box(part: Part, dtype: str, box: Sequence[tuple[int, int]], target: torch.Tensor) -> None:
    """Fill `target` with the box (from, to in each dimension) of a part."""
    import torch

    with part.path.open("rb", buffering=0) as file:
        begin, strides, offset, elements = _header(file, part, dtype)
        item = ITEM_BYTES[dtype]
        plain = strides == _plain_strides(part.sizes) and offset == 0
        rows = box[0] if plain and box else (0, part.sizes[0] if part.sizes else 1)
        row = math.prod(part.sizes[1:])
        whole_rows = plain and all(bounds == (0, size) for bounds, size in zip(box[1:], part.sizes[1:], strict=True))
        if plain:
            begin, count = begin + rows[0] * row * item, (rows[1] - rows[0]) * row
        else:
            count = elements
        if whole_rows and target.is_contiguous():
            fill(file, begin, target, part.path)
            return
        buffer = torch.empty(count, dtype=target.dtype)
        fill(file, begin, buffer, part.path)
        rest = part.sizes[1:] if plain else part.sizes
        source = buffer.view(rows[1] - rows[0], *rest) if plain else buffer.as_strided(part.sizes, strides, offset)
        first = slice(None) if plain else slice(*box[0])
        target.copy_(source[(first, *(slice(*bounds) for bounds in box[1:]))])


def _plain_strides(sizes: Shape) -> Shape:
    return tuple(math.prod(sizes[axis + 1 :]) for axis in range(len(sizes)))


def fill(file: io.FileIO, begin: int, tensor: torch.Tensor, path: Path) -> None:
    """Read a contiguous tensor's bytes from an unbuffered file. Raises UserError if it is too short."""
    import torch

    if not tensor.numel():
        return
    view = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
    file.seek(begin)
    while len(view):
        if not (read := file.readinto(view)):
            raise UserError(f"{path} ends in the middle of a tensor; the checkpoint is damaged")
        view = view[read:]


def _header(file: io.FileIO, part: Part, dtype: str) -> tuple[int, Shape, int, int]:
    """Byte in the file where a part's numbers begin, their strides, the first one's place, how many there are."""
    view = _View(file, part.start, part.length)
    found = pickles.members(view, part.path)
    data = pickles.stored(view, "data.pkl", part.path, found)
    size, strides, offset, storage = _tensor_of(data, part, dtype)
    member = next((it for it in found if it.filename.partition("/")[2] == f"data/{storage}"), None)
    if any(it.filename.endswith("/byteorder") for it in found):
        order = pickles.stored(view, "byteorder", part.path, found)
        if order != b"little":
            raise UserError(f"{part.path} was written on a machine of another byte order; only little can be read")
    elements = member.file_size // ITEM_BYTES[dtype] if member else 0
    last = offset + sum((n - 1) * stride for n, stride in zip(size, strides, strict=True) if n)
    if size != part.sizes or member is None or min((*strides, offset, 0)) < 0 or last >= max(elements, 1):
        raise UserError(f"{part.path}: a tensor of {size} where the table says {part.sizes}; the checkpoint is damaged")
    return part.start + pickles.start_of(view, member, part.path), strides, offset, elements


def _tensor_of(data: bytes, part: Part, dtype: str) -> tuple[Shape, Shape, int, str]:
    """Sizes, strides, offset and the storage's name of the tensor that torch.save's pickle describes."""

    def find(module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return rebuilt
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return pickles.inert(name)
        return pickles.refuse(module, name)

    rebuilt = pickles.inert("Tensor")
    content = pickles.load(data, find, part.path, persistent=lambda pid: pid)
    try:
        if type(content) is not rebuilt:
            raise TypeError("no tensor")
        (kind, stored_dtype, name, _, _), offset, size, strides = content.arguments[:4]
        if kind != "storage" or stored_dtype != dtype or type(offset) is not int:
            raise TypeError(f"{stored_dtype} where the table says {dtype}")
        return _shape(size), _shape(strides), offset, str(name)
    except (TypeError, ValueError) as error:
        raise UserError(f"{part.path} holds no plain tensor ({error}); the checkpoint is damaged") from None


class _View(io.RawIOBase):
    """A range of a file as a file."""

    def __init__(self, file: io.FileIO, start: int, length: int) -> None:
        self._file, self._start, self._length, self._place = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise ValueError("a place before the beginning")
        self._place = base + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self._length - self._place)]
        self._file.seek(self._start + self._place)
        read = self._file.readinto(view) if len(view) else 0
        self._place += read or 0
        return read or 0


def total_bytes(weights: Weights, keys: Iterable[str]) -> int:
    """Bytes of the tensors `keys`."""
    return sum(math.prod(weights.entries[key].shape) * ITEM_BYTES.get(weights.entries[key].dtype, 0) for key in keys)
