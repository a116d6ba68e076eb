"""Wrong inputs of every kind: each is answered with one line that names cause and remedy, exit code 2 and no
traceback, leaves no process behind and changes no file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import REPOSITORY
from marked_processes import MARK, assert_one_line, environment, module

RUN = "large-40960"
GRID = """\
name: tiny
tokenizer:
  vocab_size: 1024
defaults:
  sequence_length: 64
  global_batch_size: 4
  kv_channels: 16
  languages: {en: 4, zh: 1}
sizes:
  a: {hidden_size: 32, ffn_hidden_size: 96, num_attention_heads: 2, num_layers: 2}
runs:
  - {size: a, tokens: 2560, name: alone}
  - {size: a, tokens: [5120, 10240]}
"""


@dataclass
class Place:
    """A directory for one case, with copies of good inputs to spoil."""

    root: Path
    smoke_data: Path
    trained: Path

    @property
    def out(self) -> Path:
        return self.root / "out"

    def data(self) -> Path:
        return shutil.copytree(self.smoke_data, self.root / "data", dirs_exist_ok=True)

    def run(self) -> Path:
        """A trained run."""
        return shutil.copytree(self.trained, self.out / RUN, dirs_exist_ok=True)

    def grid(self, before: str, after: str) -> list[str]:
        """Training with a grid file that has one mistake."""
        assert before in GRID
        path = self.root / "grid.yaml"
        path.write_text(GRID.replace(before, after, 1))
        return self.pretrain(grid=path, run="alone")

    def cluster(self, before: str, after: str) -> list[str]:
        """Planning with a cluster file that has one mistake."""
        text = (REPOSITORY / "launchers" / "clusters" / "dgx-a100.yaml").read_text()
        assert before in text
        path = self.root / "cluster.yaml"
        path.write_text(text.replace(before, after, 1))
        return module("recipes.parallel", "--grid", "smoke", "--cluster", path)

    def pretrain(
        self,
        *settings: str,
        grid: Path | str = "smoke",
        run: str = RUN,
        data: Path | None = None,
        out: Path | None = None,
    ) -> list[str]:
        arguments = ["--grid", grid, "--run", run, "--out", out or self.out, "--data", data or self.smoke_data]
        return module("recipes.pretrain", *arguments, *settings)


def changed(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


# What is done wrong: each gives the command.


def no_grid(place: Place) -> list[str]:
    return place.pretrain(grid=place.root / "nowhere.yaml")


def grid_that_is_no_text(place: Place) -> list[str]:
    (place.root / "grid.yaml").write_bytes(b"\xff\xfe\x00name")
    return place.pretrain(grid=place.root / "grid.yaml")


def no_data(place: Place) -> list[str]:
    return place.pretrain(data=place.root / "nowhere")


def unfinished_data(place: Place) -> list[str]:
    data = place.data()
    (data / "manifest.json").rename(data / "manifest.old")
    return place.pretrain(data=data)


def damaged_data_manifest(place: Place) -> list[str]:
    data = place.data()
    changed(data / "manifest.json", lambda content: content[: len(content) // 2])
    return place.pretrain(data=data)


def incomplete_data_manifest(place: Place) -> list[str]:
    data = place.data()
    manifest = json.loads((data / "manifest.json").read_text())
    del manifest["datasets"][0]["tokens"]
    (data / "manifest.json").write_text(json.dumps(manifest))
    return place.pretrain(data=data)


def tokenizer_of_other_data(place: Place) -> list[str]:
    data = place.data()
    changed(data / "tokenizer" / "tokenizer.model", lambda content: content[:-1] + b"!")
    return place.pretrain(data=data)


def data_without_tokenizer(place: Place) -> list[str]:
    data = place.data()
    (data / "tokenizer" / "tokenizer.model").unlink()
    return place.pretrain(data=data)


def missing_documents(place: Place) -> list[str]:
    data = place.data()
    (data / "en" / "web" / "train.bin").unlink()
    return place.pretrain(data=data)


def truncated_documents(place: Place) -> list[str]:
    data = place.data()
    changed(data / "zh" / "books" / "train.bin", lambda content: content[:-2])
    return place.pretrain(data=data)


def truncated_heldout_documents(place: Place) -> list[str]:
    data = place.data()
    changed(data / "en" / "web" / "heldout.idx", lambda content: content[: len(content) // 2])
    return place.pretrain(data=data)


def other_runs_directory(place: Place) -> list[str]:
    place.run()
    return place.pretrain("hidden_size=96", "num_attention_heads=6")


def directory_of_a_run_on_other_data(place: Place) -> list[str]:
    place.run()
    data = place.data()
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["datasets"][0]["sha256"] = "0" * 64
    (data / "manifest.json").write_text(json.dumps(manifest))
    return place.pretrain(data=data)


def damaged_run_file(place: Place) -> list[str]:
    changed(place.run() / "run.yaml", lambda content: content[:200])
    return place.pretrain()


def out_below_a_file(place: Place) -> list[str]:
    (place.root / "file").write_text("")
    return place.pretrain(out=place.root / "file")


def out_where_nothing_can_be_written(place: Place) -> list[str]:
    # The tests may run as root, whom a directory's mode does not stop.
    return place.pretrain(out=Path("/proc/nowhere"))


def run_is_a_file(place: Place) -> list[str]:
    place.out.mkdir()
    (place.out / RUN).write_text("")
    return place.pretrain()


def evaluate(place: Place, checkpoint: Path) -> list[str]:
    arguments = ["--nemo-ckpt", checkpoint, "--data", place.root, "--out", place.out]
    return [sys.executable, str(REPOSITORY / "emergence_eval" / "run.py"), *map(str, arguments)]


def checkpoint_with_damaged_manifest(place: Place) -> list[str]:
    checkpoint = place.run() / "checkpoints" / "step_20"
    changed(checkpoint / "manifest.json", lambda content: content.replace(b'"step": 20', b'"step": 21'))
    return evaluate(place, checkpoint)


def checkpoint_that_is_none(place: Place) -> list[str]:
    return evaluate(place, place.run() / "checkpoints")


def index_in_the_way(place: Place) -> list[str]:
    data = place.data()
    (data / "index").write_text("")
    return module("recipes.index_cache", "--grid", "smoke", "--data", data)


def without_dashes(place: Place) -> list[str]:
    return module("recipes.launch", "--nproc-per-node", 2, "--grid", "smoke")


HEADS = "num_attention_heads: 2"
CASES: dict[str, tuple[Callable[[Place], list[str]], str]] = {
    # The grid file: with its line.
    "grid: none": (no_grid, r"there is no grid file .*nowhere\.yaml; give a YAML file or one of .*smoke"),
    "grid: no text": (grid_that_is_no_text, r"grid\.yaml:1: this is no text in UTF-8 .*; save it as UTF-8"),
    "grid: no YAML": (lambda it: it.grid("{en: 4, zh", "{en: 4, [zh"), r"grid\.yaml:\d+: this is no YAML"),
    "grid: unknown key": (
        lambda it: it.grid("global_batch", "globl_batch"),
        r":6: unknown key .*; known are .*global_",
    ),
    "grid: key twice": (lambda it: it.grid("name: tiny", "name: tiny\nname: b"), r":2: 'name' stands here twice; keep"),
    "grid: heads and groups": (lambda it: it.grid(HEADS, "num_attention_heads: 3"), r"3 attention heads .* 1 or 3 .*"),
    "grid: no whole steps": (lambda it: it.grid("2560", "2700"), r":12: .* 10\.55 steps of 4 x 64 .*write 2,560 \(10"),
    "grid: same name twice": (lambda it: it.grid("10240]", "5120]"), r":13: two runs are called a-5120; give one"),
    "grid: unknown size": (lambda it: it.grid("size: a,", "size: b,"), r":12: there is no size 'b'; sizes has a"),
    "grid: no size": (lambda it: it.grid("{size: a, ", "{"), r":12: this run names no size; add one of a"),
    "grid: empty sweep": (lambda it: it.grid("[5120, 10240]", "[]"), r":13: tokens is an empty list.*; give it values"),
    "grid: sweep in a sweep": (
        lambda it: it.grid("[5120,", "[[5120],"),
        r":13: .*5120.*cannot name a run; use letters",
    ),
    "grid: run is no mapping": (
        lambda it: it.grid("- {size: a, tokens: 2560, name: alone}", "- a"),
        r":12: .*a mapping",
    ),
    "grid: unknown run": (lambda it: it.pretrain(run="huge"), r"has no run 'huge'; it has small-20480"),
    # Settings on the command line.
    "setting: unknown": (lambda it: it.pretrain("colour=red"), r"no setting 'colour'; the settings are .*seed"),
    "setting: no assignment": (lambda it: it.pretrain("seed"), r"'seed' is no setting; write key=value"),
    "setting: ill-typed": (
        lambda it: it.pretrain("learning_rate=fast"),
        r"learning_rate is 'fast'; it must be a number",
    ),
    "setting: out of range": (
        lambda it: it.pretrain("learning_rate=-1"),
        r"learning_rate is -1\.0; it must be above 0",
    ),
    "setting: skipped step": (lambda it: it.pretrain("skip_steps=[99]"), r"skip_steps names step 99; .* steps 1 to 20"),
    "setting: processes": (
        lambda it: it.pretrain("tensor_parallel=2"),
        r"1 processes do not divide.*; start them with",
    ),
    "setting: tensor parallel": (lambda it: it.pretrain("tensor_parallel=3"), r"do not divide over .*=3; 1 or 2 would"),
    "setting: pipeline": (lambda it: it.pretrain("pipeline_parallel=3"), r"4 layers do not divide .*; 1, 2 or 4 would"),
    "setting: precision": (lambda it: it.pretrain("precision=fp8"), r"fp8 needs a GPU .*; precision=fp8-emulated"),
    "setting: unknown precision": (lambda it: it.pretrain("precision=fp4"), r"'fp4'; choose one of fp32, bf16, fp8"),
    # The cluster file of the planner: with its line.
    "cluster: none": (
        lambda it: module("recipes.parallel", "--grid", "smoke", "--cluster", "abacus"),
        r"there is no cluster file abacus; give a YAML file or .*dgx-a100",
    ),
    "cluster: unknown key": (
        lambda it: it.cluster("gpus_per_node", "gpus"),
        r"\.yaml:\d+: unknown key 'gpus'; known are",
    ),
    "cluster: missing key": (
        lambda it: it.cluster("link_efficiency: 0.80", ""),
        r"link_efficiency is missing; give it, or `like: dgx-h100`",
    ),
    "cluster: ill-typed": (
        lambda it: it.cluster("memory_gib: 79.1", "memory_gib: much"),
        r"'much'; it must be a number",
    ),
    # The data.
    "data: none": (no_data, r"nowhere holds no finished data set .*; make it with python -m tokenizer\.encode"),
    "data: unfinished": (unfinished_data, r"holds no finished data set \(no manifest\.json\); make it"),
    "data: damaged manifest": (
        damaged_data_manifest,
        r"manifest\.json is damaged .*; delete it and run tokenizer\.encode",
    ),
    "data: incomplete manifest": (incomplete_data_manifest, r"is damaged \(KeyError\('tokens'\)\); delete it"),
    "data: language": (
        lambda it: it.pretrain("languages.fr=1"),
        r"no train documents in language 'fr' .*; encode some",
    ),
    "data: vocabulary": (lambda it: it.pretrain("vocab_size=2048"), r"encoded with 1024 pieces, .* 2048; encode with"),
    "data: tokenizer": (tokenizer_of_other_data, r"is not the tokenizer that encoded the data .*; put that one back"),
    "data: no tokenizer": (data_without_tokenizer, r"tokenizer\.model is missing; copy the tokenizer there again"),
    "data: no documents": (missing_documents, r"web/train\.bin is missing, .* bytes; copy it again, or delete"),
    "data: truncated documents": (truncated_documents, r"books/train\.bin has [\d,]+ bytes, .* are [\d,]+ bytes; copy"),
    "data: truncated index": (
        truncated_heldout_documents,
        r"web/heldout\.idx has [\d,]+ bytes, .* bytes; copy it again",
    ),
    "data: too few documents": (
        lambda it: it.pretrain("sequence_length=50000", "tokens=1.6M"),
        r"are \d+ tokens, less than one sequence of 50000; encode more",
    ),
    "data: unknown source": (
        lambda it: it.pretrain("source_weights={en: {web: 4, code: 1}}"),
        r"source_weights\.en names 'code', which .* lacks \(it has books, web\); encode that source",
    ),
    "data: source without weight": (
        lambda it: it.pretrain("source_weights={en: {web: 4}}"),
        r"source_weights\.en leaves out 'books' .*; give it a weight",
    ),
    "data: index in the way": (index_in_the_way, r"cannot write the index of the data to .*; free space or make it"),
    # Where the run is written, and checkpoints.
    "out: another run's": (other_runs_directory, r"was trained with hidden_size=64, now it is 96; give another --out"),
    "out: of other data": (directory_of_a_run_on_other_data, r"was trained with data_fingerprint=.*; give another"),
    "out: damaged run.yaml": (damaged_run_file, r"run\.yaml is damaged, .*; give another --out, or delete"),
    "out: below a file": (out_below_a_file, r"cannot write to .*: Not a directory; choose another --out"),
    "out: not writable": (out_where_nothing_can_be_written, r"cannot write to /proc/nowhere.*; choose another --out"),
    "out: run is a file": (run_is_a_file, r"cannot write to .*: File exists; choose another --out"),
    "checkpoint: damaged": (checkpoint_with_damaged_manifest, r"manifest\.json is damaged .*; use another checkpoint"),
    "checkpoint: none": (checkpoint_that_is_none, r"is no checkpoint \(no manifest\.json, nor NeMo's "),
    "launch: no --": (without_dashes, r"there is no -- between torchrun's options and the run's: --nproc"),
}


def listing(root: Path) -> dict[str, bytes]:
    """Every file and directory below with its content; the lock of a run's directory is no state."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else b"(directory)"
        for path in root.rglob("*")
        if path.name != ".lock"
    }


@pytest.fixture
def place(tmp_path, smoke_data, layout_runs) -> Place:
    return Place(tmp_path, smoke_data, layout_runs["single"])


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_input_is_one_line_and_changes_nothing(place, mark, case):
    make, said = CASES[case]
    command = make(place)
    before = listing(place.root)
    done = subprocess.run(command, capture_output=True, text=True, env=environment(**{MARK: mark}), timeout=120)
    assert_one_line(done, said)
    assert "Traceback" not in done.stdout
    assert listing(place.root) == before
