"""Checkpoints that mean harm: refused by what they name, with one line, nothing run, created or taken."""

from __future__ import annotations

import argparse
import collections
import contextlib
import copyreg
import enum
import io
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from emergence_eval import convert, hf_checkpoint, pickles, run, sources
from emergence_eval.torch_dist import Weights
from tokenizer.cli import UserError


@pytest.fixture(scope="module")
def good(tiny_hf, tmp_path_factory) -> Path:
    """A whole NeMo checkpoint."""
    return convert.hf_to_nemo(tiny_hf, tmp_path_factory.mktemp("nemo") / "step_10")


@pytest.fixture
def checkpoint(good, tmp_path) -> Path:
    return shutil.copytree(good, tmp_path / "step_10")


class Call:
    """What a hostile pickle does when Python reads it."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def named(module: str, name: str, *arguments: object) -> bytes:
    """A pickle that calls what it names."""
    body = pickle.dumps(arguments, 2)[2:-1]
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + body + b"R."


def dotted(module: str, name: str, *arguments: object) -> bytes:
    """The same by protocol 4, in which names may be attributes of attributes."""
    body = pickle.dumps(arguments, 2)[2:-1]
    texts = [b"\x8c" + bytes([len(it)]) + it.encode() for it in (module, name)]
    return b"\x80\x04" + b"".join(texts) + b"\x93" + body + b"R."


def hostile(mark: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that would leave `mark`, and what they are refused for."""
    touch = f"touch {mark}"
    return {
        "system": (pickle.dumps(Call(os.system, touch)), r"(posix|nt)\.system"),
        "os": (named("os", "system", touch), r"os\.system"),
        "open": (pickle.dumps(Call(open, str(mark), "w")), r"(io|_io)\.open"),
        "builtin open": (named("builtins", "open", str(mark), "w"), r"builtins\.open"),
        "old builtin": (named("__builtin__", "eval", f"open({str(mark)!r}, 'w')"), r"__builtin__\.eval"),
        "getattr": (named("builtins", "getattr", 1, "real"), r"builtins\.getattr"),
        "process": (named("subprocess", "Popen", ["touch", str(mark)]), r"subprocess\.Popen"),
        "method": (pickle.dumps(Call(Path.touch, mark), 4), r"Path\.touch|builtins\.getattr"),
        "attribute": (dotted("argparse", "Namespace.__init__", 1), r"argparse\.Namespace\.__init__"),
        "globals": (dotted("collections", "OrderedDict.fromkeys", [1]), r"OrderedDict\.fromkeys"),
        "through torch": (
            dotted("torch.distributed.checkpoint.filesystem", "os.system", touch),
            r"filesystem\.os\.system",
        ),
    }


def metadata(checkpoint: Path) -> Path:
    return checkpoint / "weights" / ".metadata"


def write_common(checkpoint: Path, data: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(checkpoint / "weights" / "common.pt", "w", compression) as archive:
        archive.writestr("common/data.pkl", data)


@pytest.mark.parametrize("name", list(hostile(Path("mark"))))
def test_pickles_that_call_are_refused_by_name(checkpoint, tmp_path, name):
    mark = tmp_path / "mark"
    data, message = hostile(mark)[name]
    metadata(checkpoint).write_bytes(data)
    with pytest.raises(UserError, match=rf"\.metadata is refused: it names .*{message}"):
        convert.nemo_to_hf(checkpoint, tmp_path / "hf")
    write_common(checkpoint, data)
    with pytest.raises(UserError, match=rf"common\.pt is refused: it names .*{message}"):
        sources.open_nemo(checkpoint, None)
    assert not mark.exists() and not (tmp_path / "hf").exists()


class OfDebian(pickle.Pickler):
    """Writes enumerations as Python 3.11.0 to 3.11.3 do; Debian 12 has 3.11.2."""

    def reducer_override(self, it: object) -> object:
        return (getattr, (type(it), it.name)) if isinstance(it, enum.Enum) else NotImplemented


def test_a_table_written_by_another_python_is_read(checkpoint):
    expected = pickles.read_table(checkpoint / "weights")
    table = pickle.loads(metadata(checkpoint).read_bytes())
    with metadata(checkpoint).open("wb") as stream:
        OfDebian(stream, 4).dump(table)
    assert b"getattr" in metadata(checkpoint).read_bytes()
    read = pickles.read_table(checkpoint / "weights")
    assert list(read.attributes["state_dict_metadata"]) == list(expected.attributes["state_dict_metadata"])


def test_the_pickles_of_this_test_do_harm(tmp_path):
    for name in ("system", "open", "builtin open", "process", "method"):
        data, _ = hostile(tmp_path / "mark")[name]
        result = pickle.loads(data)
        if isinstance(result, subprocess.Popen):
            result.wait()
        assert (tmp_path / "mark").exists(), name
        (tmp_path / "mark").unlink()


def test_the_command_says_one_line_and_ends_with_2(checkpoint, benchmarks, tmp_path, repository):
    write_common(checkpoint, hostile(tmp_path / "mark")["system"][0])
    before = sorted(tmp_path.rglob("*"))
    command = [sys.executable, "emergence_eval/run.py", "--data", str(benchmarks), "--nemo-ckpt", str(checkpoint)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "posix.system" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x02\x82\xf0.", "EXT1"),
        (b"\x80\x02\x84\xf0\x00\x00\x00.", "EXT4"),
        (b"(S'x'\nios\nsystem\n.", "INST"),
        (b"\x80\x05\x96" + struct.pack("<Q", 4) + b"abcd.", "BYTEARRAY8"),
        (b"\x80\x02Nr\x00\x00\x00\x70.", "numbers an object"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.", "damaged"),
        (b"\x80\x04\x95" + struct.pack("<Q", 1 << 50) + b"N.", "damaged|no table"),
        (b"\x80\x02" + b"(" * 10 + b".", "damaged"),
        (b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.", "tuples in tuples, 51 deep"),
        (b"\x80\x02})" + b"q\x00h\x00h\x00\x87" * 40 + b"Ns.", "tuples in tuples, 1[0-9] deep with"),
        (b"", "damaged"),
    ],
)
def test_opcodes_that_reach_round_the_names_or_take_memory_are_refused(checkpoint, data, message):
    copyreg.add_extension("os", "system", 0xF0)
    copyreg._extension_cache[0xF0] = os.system
    try:
        metadata(checkpoint).write_bytes(data)
        before = peak()
        with pytest.raises(UserError, match=message):
            Weights(checkpoint / "weights")
        assert peak() - before < 64 << 20
    finally:
        copyreg.remove_extension("os", "system", 0xF0)
        copyreg._extension_cache.pop(0xF0, None)


def test_no_pickle_changes_a_class_or_an_object_of_this_process(checkpoint):
    """BUILD with a pair sets attributes by name, of classes too, where nothing forbids it."""
    state = pickle.dumps((None, {"evil": 1}), 2)[2:-1]
    for module, name in (("argparse", "Namespace"), ("collections", "OrderedDict"), ("types", "SimpleNamespace")):
        write_common(checkpoint, b"\x80\x02c" + f"{module}\n{name}\n".encode() + state + b"b.")
        with pytest.raises(UserError):
            pickles.read_common(checkpoint / "weights")
        instance = b"\x80\x02c" + f"{module}\n{name}\n".encode() + b")\x81" + state + b"b."
        write_common(checkpoint, instance)
        with contextlib.suppress(UserError):
            assert not hasattr(pickles.read_common(checkpoint / "weights"), "evil")
    for it in (argparse.Namespace, collections.OrderedDict):
        assert not hasattr(it, "evil")
    persistent = b"\x80\x02}U\x01acos\nsystem\nQs."
    write_common(checkpoint, persistent)
    with pytest.raises(UserError, match=r"os\.system"):
        pickles.read_common(checkpoint / "weights")


def test_classes_of_training_programs_stay_words(checkpoint):
    buffer = io.BytesIO()
    torch.save({"args": argparse.Namespace(a=1, dtype=torch.bfloat16, path=Path("x")), "w": torch.ones(2)}, buffer)
    (checkpoint / "weights" / "common.pt").write_bytes(buffer.getvalue())
    common = pickles.read_common(checkpoint / "weights")
    assert common["args"].a == 1 and common["args"].dtype == "torch.bfloat16"
    assert isinstance(common["w"], pickles.Inert) and isinstance(common["args"].path, pickles.Inert)
    write_common(checkpoint, named("megatron.training.evil", "run", "touch x"))
    with pytest.raises(UserError, match="holds no dictionary"):
        pickles.read_common(checkpoint / "weights")
    metadata(checkpoint).write_bytes(named("torch._utils", "_rebuild_tensor_v2", 1))
    with pytest.raises(UserError, match=r"names torch\._utils\._rebuild_tensor_v2"):
        Weights(checkpoint / "weights")


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def changed(checkpoint: Path, change) -> None:
    """Write the table anew after `change` had its own objects."""
    table = pickle.loads(metadata(checkpoint).read_bytes())
    change(table)
    metadata(checkpoint).write_bytes(pickle.dumps(table))


EMBEDDING = "module.embedding.word_embeddings.weight"


def claim_terabytes(table) -> None:
    entry = table.state_dict_metadata[EMBEDDING]
    entry.size = torch.Size((1 << 36, 32))
    entry.chunks[0].sizes = entry.size


def claim_twice(table) -> None:
    entry = table.state_dict_metadata[EMBEDDING]
    (place,) = [it for key, it in table.storage_data.items() if key.fqn == EMBEDDING]
    (index,) = [key for key in table.storage_data if key.fqn == EMBEDDING]
    chunk, rows = entry.chunks[0], entry.size[0]
    entry.size = torch.Size((1000 * rows, 32))
    entry.chunks = [type(chunk)(torch.Size((n * rows, 0)), chunk.sizes) for n in range(1000)]
    table.storage_data |= {type(index)(EMBEDDING, (n * rows, 0)): place for n in range(1000)}


def place_of(table):
    return next(it for key, it in table.storage_data.items() if key.fqn == EMBEDDING)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (claim_terabytes, "claims 8796093022208 bytes where"),
        (claim_twice, r"claims \d+ bytes of tensors in files of"),
        (lambda table: setattr(place_of(table), "length", 1 << 50), "would end at"),
        (lambda table: setattr(place_of(table), "offset", -5), "no table"),
        (lambda table: setattr(place_of(table), "relative_path", "../../secret"), "names the file '../../secret'"),
        (lambda table: setattr(place_of(table), "relative_path", "/etc/passwd"), "names the file '/etc/passwd'"),
        (lambda table: setattr(place_of(table), "relative_path", "nothing"), "cannot read .*nothing"),
        (lambda table: setattr(place_of(table), "relative_path", "pipe"), "no plain file"),
        (lambda table: setattr(place_of(table), "transform_descriptors", ["zstd"]), "is packed"),
        (lambda table: table.state_dict_metadata[EMBEDDING].chunks.clear(), "do not fill it"),
        (lambda table: table.storage_data.clear(), "no table"),
        (lambda table: setattr(table.state_dict_metadata[EMBEDDING], "size", (-1, 32)), "no table"),
        (lambda table: setattr(table, "state_dict_metadata", 3), "no table"),
    ],
)
def test_a_table_that_claims_what_is_not_there_is_refused_before_memory_is_taken(checkpoint, tmp_path, change, message):
    os.mkfifo(checkpoint / "weights" / "pipe")
    changed(checkpoint, change)
    before = peak()
    with pytest.raises(UserError, match=message):
        Weights(checkpoint / "weights")
    with pytest.raises(UserError):
        convert.to_hf(sources.open_nemo(checkpoint, None)[0], tmp_path / "hf")
    assert peak() - before < 64 << 20
    assert not (tmp_path / "hf").exists()


def test_a_part_that_is_another_tensor_than_the_table_says_is_refused(checkpoint, tmp_path):
    table = pickle.loads(metadata(checkpoint).read_bytes())
    place = place_of(table)
    path = checkpoint / "weights" / place.relative_path
    data = bytearray(path.read_bytes())
    with pytest.raises(UserError, match=r"parts of .* do not fill it|claims"):
        changed(checkpoint, lambda table: setattr(table.state_dict_metadata[EMBEDDING], "size", torch.Size((390, 32))))
        Weights(checkpoint / "weights")
    metadata(checkpoint).write_bytes(pickle.dumps(table))
    for old, new, message in (
        (b"FloatStorage", b"os\nsystem\n#\n", "damaged|refused"),
        (b"ctorch\nFloatStorage", b"cposix\nsystem\n12345", "posix.system|damaged"),
        (b"PK\x03\x04", b"PK\x03\x05", "beyond its end|damaged"),
        (b"PK\x05\x06", b"PK\x05\x07", "no file of torch.save"),
    ):
        broken = data[:]
        start = broken.index(old, place.offset)
        broken[start : start + len(old)] = new[: len(old)].ljust(len(old))
        path.write_bytes(broken)
        with pytest.raises(UserError, match=message):
            Weights(checkpoint / "weights").read(EMBEDDING)


def test_packed_archives_are_not_unpacked(checkpoint):
    """A few kilobytes that become gigabytes."""
    write_common(checkpoint, b"\x80\x02" + bytes(1 << 26), zipfile.ZIP_DEFLATED)
    before = peak()
    with pytest.raises(UserError, match=r"says 67108866 bytes and is packed into \d{5}"):
        pickles.read_common(checkpoint / "weights")
    assert peak() - before < 32 << 20


def test_a_manifest_that_leads_out_or_says_other_sizes_is_refused(layout_free_manifest, tmp_path):
    directory, write = layout_free_manifest
    for path, size, message in (
        ("../../secret", 1, "outside the checkpoint"),
        ("/etc/passwd", 1, "outside the checkpoint"),
        ("weights/common.pt", 1 << 50, "bytes instead of"),
        ("weights/more", 1, "is missing"),
    ):
        write(path, size)
        with pytest.raises(UserError, match=message):
            convert.nemo_to_hf(directory, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


@pytest.fixture
def layout_free_manifest(checkpoint):
    """A checkpoint with a manifest of ours, and what writes one with a file more."""
    import dataclasses

    from recipes.checkpoint import FileEntry, Manifest, write_manifest

    values = dict.fromkeys((field.name for field in dataclasses.fields(Manifest)), 1)
    values |= dict.fromkeys(("grid", "run", "size", "precision", "tokenizer_sha256", "data_fingerprint"), "x")
    values |= {"git_revision": "x", "losses": {}, "schema": 1, "checksum": ""}

    def write(path: str, size: int) -> None:
        write_manifest(checkpoint, Manifest(**{**values, "files": (FileEntry(path, size, "0"),)}))

    return checkpoint, write


@pytest.mark.parametrize("name", ["../../outside", "/tmp/absolute-e3", "link/inside"])
def test_archives_of_nemo_1_are_named_and_never_opened(benchmarks, tmp_path, name):
    archive = tmp_path / "folder" / "model.nemo"
    archive.parent.mkdir()
    with tarfile.open(archive, "w") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(link)
        member = tarfile.TarInfo(name)
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"archive of NeMo 1; .*convert_nemo1_to_nemo2\.py --input_path"):
        run.main(["--data", str(benchmarks), "--nemo-ckpt", str(archive)])
    with pytest.raises(UserError, match="archive of NeMo 1"):
        convert.main(["nemo-to-hf", str(archive), str(tmp_path / "hf")])
    assert sorted(tmp_path.rglob("*")) == before
    extracted = tmp_path / "extracted"
    extracted.mkdir()
    (extracted / "model_config.yaml").touch()
    with pytest.raises(UserError, match="archive of NeMo 1"):
        sources.open_nemo(extracted, None)


def test_weights_of_a_model_in_pickles_are_looked_through_first(tiny_hf, tmp_path):
    model = shutil.copytree(tiny_hf, tmp_path / "model")
    from safetensors.torch import load_file

    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save(weights, model / "pytorch_model.bin")
    _, identity = hf_checkpoint.open_hf(str(model))
    assert identity.parameters == sum(it.numel() for it in weights.values())
    with zipfile.ZipFile(model / "pytorch_model.bin", "w") as archive:
        archive.writestr("x/data.pkl", hostile(tmp_path / "mark")["system"][0])
    with pytest.raises(UserError, match=r"names posix\.system"):
        hf_checkpoint.open_hf(str(model))
    assert not (tmp_path / "mark").exists()


def test_an_index_that_leads_out_is_refused(tiny_hf, tmp_path):
    model = shutil.copytree(tiny_hf, tmp_path / "model")
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    with pytest.raises(UserError, match="is not beside it"):
        convert.hf_to_nemo(model, tmp_path / "nemo")
    (model / "model.safetensors.index.json").unlink()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(UserError, match="no whole safetensors file"):
        convert.hf_to_nemo(model, tmp_path / "nemo")
    assert not (tmp_path / "nemo").exists()
