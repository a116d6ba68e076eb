"""Pickles of strangers, read without running anything that they name.

A checkpoint keeps its arguments (`common.pt`), the table of its tensors (`.metadata`) and a few words before each
tensor as pickles, which may name any function of any module to be called. Here no name is ever looked up: each one
stands for a class made for this one file, whose instances keep what they are given and do nothing. Classes of
training programs are read so; what of Python itself no checkpoint needs (os.system, builtins.open) is refused by
its name, as is in a table whatever no table needs. Before a pickle is read its opcodes are gone through: those that
reach round the names (the copyreg registry) or take memory by a number in the file are refused too.

    python -c "from emergence_eval import pickles; print(pickles.read_common('iter_0000100')['iteration'])"
"""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import pickletools
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizer.cli import UserError

COMMON, METADATA = "common.pt", ".metadata"

MOST_BYTES = 1 << 29
"""A pickle larger than this is no table and no arguments."""

_DTYPES = frozenset(
    [
        *("float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"),
        *("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool"),
    ]
)

_REFUSED_OPCODES = frozenset(["EXT1", "EXT2", "EXT4", "INST", "OBJ", "BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER"])
"""Those of the copyreg registry, which hands out what was looked up before, of protocol 0's instances, of buffers."""

_PUTS = frozenset(["PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"])
_GETS = frozenset(["GET", "BINGET", "LONG_BINGET"])
_TUPLES = frozenset(["TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"])
_NESTING = _TUPLES | {"REDUCE", "NEWOBJ", "DUP"}
_LEAF = (0, 1)
_DEEPEST, _MOST_LEAVES = 50, 10_000_000

_STANDARD = frozenset(sys.stdlib_module_names) | {"__builtin__", "copy_reg", "commands", "cPickle"}

_BUILTINS = (
    *("set", "frozenset", "list", "dict", "tuple", "object", "int", "float", "complex", "str", "bytes", "bytearray"),
    *("slice", "range", "bool"),
)
_PATHS = [f"{pure}{kind}Path" for pure in ("", "Pure") for kind in ("", "Posix", "Windows")]

_HARMLESS = frozenset(
    [
        *(("argparse", "Namespace"), ("types", "SimpleNamespace"), ("signal", "Signals"), ("functools", "partial")),
        *(("_codecs", "encode"), ("copyreg", "_reconstructor"), ("copy_reg", "_reconstructor"), ("uuid", "UUID")),
        *(("collections", name) for name in ("OrderedDict", "defaultdict", "deque", "Counter")),
        *(("datetime", name) for name in ("datetime", "date", "timedelta", "timezone")),
        *((module, name) for module in ("pathlib", "pathlib._local") for name in _PATHS),
        *((module, name) for module in ("builtins", "__builtin__") for name in _BUILTINS),
    ]
)
"""What of Python itself arguments may hold; everything else of it is refused."""

_GETATTR = ("builtins", "getattr")

_TABLE_NAMES = frozenset([("torch", "device"), ("torch.serialization", "_get_layout")])
_TABLE_MODULES = ("torch.distributed.", "megatron.core.", "nvidia_resiliency_ext.")


class _Refused(Exception):
    """A pickle names what no checkpoint needs."""


class Inert:
    """In place of an object: what it was made with, and nothing else."""

    state: Any = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.arguments, self.options = arguments, options

    def __setstate__(self, state: Any) -> None:
        # Defined, so that a pickle can set no attribute by name, neither of instances nor of the class.
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries = [*getattr(self, "entries", []), (key, value)]

    def append(self, value: Any) -> None:
        """Keep a value, as lists do."""
        self.values = [*getattr(self, "values", []), value]

    def extend(self, values: Any) -> None:
        """Keep values, as lists do."""
        self.values = [*getattr(self, "values", []), *values]

    add = append

    @property
    def attributes(self) -> dict[str, Any]:
        """What an object of a class without rules of its own would have as attributes."""
        state = self.state[1] if isinstance(self.state, tuple) and len(self.state) == 2 else self.state
        return state if isinstance(state, dict) else {}


class _Member(Inert):
    """A member of an enumeration as Python 3.11.0 to 3.11.3 (Debian 12) write it: ``getattr(class, "name")``."""

    def __init__(self, *arguments: Any) -> None:
        match arguments:
            case (type() as kind, str()) if issubclass(kind, Inert):
                super().__init__(*arguments)
            case _:
                refuse(*_GETATTR)


class _Namespace(argparse.Namespace):
    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise _Refused("arguments that are no dictionary")
        vars(self).update(state)


class _Ordered(collections.OrderedDict):
    def __setstate__(self, state: Any) -> None:
        """Attributes of a dictionary are nothing that is read."""


Find = Callable[[str, str], Any]
"""What is to stand for a module's name: a class of this file, or a plain value."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, find: Find, persistent: Callable[[Any], Any]) -> None:
        super().__init__(stream)
        self._find, self._persistent = find, persistent

    def find_class(self, module: str, name: str) -> Any:
        return self._find(module, name)

    def persistent_load(self, pid: Any) -> Any:
        return self._persistent(pid)


def inert(name: str) -> type[Inert]:
    """A class of its own that does nothing."""
    return type("".join(it for it in name.rpartition(".")[2] if it.isidentifier()) or "Inert", (Inert,), {})


def ordered() -> type[dict]:
    """A class of its own for ordered dictionaries."""
    return type("OrderedDict", (_Ordered,), {})


def refuse(module: str, name: str) -> None:
    """Raise the error that names what a pickle wants."""
    raise _Refused(f"it names {module}.{name}")


def load(data: bytes, find: Find, where: Path | str, persistent: Callable[[Any], Any] = Inert) -> Any:
    """The object that a pickle describes, with `find` in place of looking names up. Raises UserError."""
    try:
        _check_opcodes(data)
        return _Unpickler(io.BytesIO(data), find, persistent).load()
    except _Refused as error:
        reason = "".join(it if it.isprintable() else "?" for it in str(error))[:200]
        raise UserError(
            f"{where} is refused: {reason}, which no checkpoint needs; whoever made it may mean harm, and nothing of "
            "it was run"
        ) from None
    except Exception as error:
        # Bytes that are no pickle can fail in any way; none of it is a fault of this program.
        text = "".join(it if it.isprintable() else " " for it in str(error))[:200]
        raise UserError(f"{where} is damaged or no part of a checkpoint ({type(error).__name__}: {text})") from None


def _check_opcodes(data: bytes) -> None:
    """Refuse opcodes that no checkpoint needs; lengths beyond the end make pickletools fail.

    Tuples are followed, for Python takes the hash of a key by recursion without a limit: one that is very deep ends
    the process, one that holds the same tuple many times over takes for ever.
    """
    stack: list[tuple[int, int] | None] = []
    memo: dict[int, tuple[int, int] | None] = {}
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in _REFUSED_OPCODES:
            raise _Refused(f"it has the opcode {name}")
        if name in _PUTS:
            place = len(memo) if name == "MEMOIZE" else argument
            # The memo is an array: a single large index takes its memory.
            if place > len(data):
                raise _Refused(f"it numbers an object {place}")
            memo[place] = stack[-1]
            continue
        if name in _GETS:
            stack.append(memo[argument])
            continue
        before = opcode.stack_before
        taken = []
        if pickletools.markobject in before:
            while (it := stack.pop()) is not None:
                taken.append(it)
            fixed = before.index(pickletools.markobject)
        else:
            fixed = len(before)
        taken += [stack.pop() or _LEAF for _ in range(fixed)]
        if not opcode.stack_after:
            continue
        made = _LEAF
        if name in _NESTING and taken:
            made = max(depth for depth, _ in taken) + (name in _TUPLES), sum(size for _, size in taken) + 1
            if made[0] > _DEEPEST or made[1] > _MOST_LEAVES:
                raise _Refused(f"it has tuples in tuples, {made[0]} deep with {made[1]} parts")
        stack += [None] if name == "MARK" else [made] * len(opcode.stack_after)


def _of_arguments(module: str, name: str) -> Any:
    if module == "torch" and name in _DTYPES:
        return f"torch.{name}"
    if "." in name:
        # An attribute of a class: what torch.save writes never names one.
        refuse(module, name)
    if (module, name) == _GETATTR:
        return type("Member", (_Member,), {})
    if (module, name) == ("torch", "Size"):
        return tuple
    if (module, name) in (("argparse", "Namespace"), ("types", "SimpleNamespace")):
        return type("Namespace", (_Namespace,), {})
    if (module, name) == ("collections", "OrderedDict"):
        return ordered()
    if module.partition(".")[0] in _STANDARD and (module, name) not in _HARMLESS:
        refuse(module, name)
    return inert(name)


def _of_table(module: str, name: str) -> Any:
    if (module.startswith(_TABLE_MODULES) and "." not in name) or (module, name) in _TABLE_NAMES:
        return inert(name)
    of_torch = module == "torch" and (name in _DTYPES or name == "Size")
    if of_torch or (module, name) in _HARMLESS or (module, name) == _GETATTR:
        return _of_arguments(module, name)
    return refuse(module, name)


def read_common(directory: Path) -> dict[str, Any]:
    """What is not a tensor in a distributed checkpoint: `args`, `iteration`, the optimizer's settings...

    Tensors and objects of classes not on the list are `Inert`, dtypes their names ("torch.bfloat16"). Raises
    UserError if there is no such file, it is not what torch.save writes, or it names what no checkpoint needs.
    """
    path = directory / COMMON
    try:
        with path.open("rb") as stream:
            data = stored(stream, "data.pkl", path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; is {directory} a checkpoint?") from None
    content = load(data, _of_arguments, path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no dictionary; the checkpoint is damaged")
    return content


def members(stream: Any, where: Path | str) -> list[zipfile.ZipInfo]:
    """What an archive of torch.save holds, which must be stored without compression. Raises UserError."""
    try:
        with zipfile.ZipFile(stream) as archive:
            found = archive.infolist()
    except OSError:
        raise
    except Exception as error:
        raise UserError(f"{where} is no file of torch.save ({error}); the checkpoint is damaged") from None
    for it in found:
        if it.compress_type != zipfile.ZIP_STORED or it.file_size != it.compress_size or it.flag_bits & 1:
            raise UserError(
                f"{where}: its member {it.filename[:60]!r} says {it.file_size} bytes and is packed into "
                f"{it.compress_size}; torch.save does not pack, so it is not read"
            )
    return found


def stored(stream: Any, name: str, where: Path | str, found: list[zipfile.ZipInfo] | None = None) -> bytes:
    """The one small member called `name` in the folder of an archive of torch.save."""
    wanted = [it for it in found or members(stream, where) if it.filename.partition("/")[2] == name]
    if len(wanted) != 1:
        raise UserError(f"{where} is no file of torch.save ({len(wanted)} members {name}); the checkpoint is damaged")
    if wanted[0].file_size > MOST_BYTES:
        raise UserError(f"{where}: {name} has {wanted[0].file_size} bytes; no checkpoint's has that many")
    stream.seek(start_of(stream, wanted[0], where))
    return stream.read(wanted[0].file_size)


def start_of(stream: Any, member: zipfile.ZipInfo, where: Path | str) -> int:
    """Where a member's bytes begin in an archive, checked to lie in it whole."""
    stream.seek(member.header_offset)
    header = stream.read(30)
    start = (
        member.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    )
    end = stream.seek(0, io.SEEK_END)
    if len(header) < 30 or header[:4] != b"PK\x03\x04" or start + member.file_size > end:
        raise UserError(f"{where}: {member.filename[:60]!r} reaches beyond its end; the checkpoint is damaged")
    return start


def read_table(directory: Path) -> Any:
    """The table of a distributed checkpoint's tensors, an `Inert` with torch's `Metadata` as its attributes."""
    path = directory / METADATA
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path} has {path.stat().st_size} bytes; no checkpoint's table has that many")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; is {directory} a torch_dist checkpoint?") from None
    content = load(data, _of_table, path)
    if not isinstance(content, Inert) or not isinstance(content.attributes.get("state_dict_metadata"), dict):
        raise UserError(f"{path} is no table of a checkpoint; the checkpoint is damaged")
    return content
