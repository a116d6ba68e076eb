"""Checkpoints on the disk: any damage is found, the state before it is used, and nothing is lost by tidying up."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from recipes import checkpoint
from tokenizer.cli import UserError


@pytest.fixture
def run(layout_runs, tmp_path) -> Path:
    """A copy of a complete run with checkpoints at steps 10 and 20."""
    target = tmp_path / "large-40960"
    shutil.copytree(layout_runs["tensor_parallel"], target)
    return target


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_truncate, _flip_a_bit, Path.unlink])
def test_damage_to_any_file_of_the_newest_state_is_found(run, damage, caplog):
    newest, before = (checkpoint.step_directory(run, step) for step in (20, 10))
    whole = run / "whole"
    shutil.copytree(newest, whole)
    names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert len(names) >= 15
    for name in names:
        shutil.rmtree(newest, ignore_errors=True)
        shutil.copytree(whole, newest)
        damage(newest / name)
        caplog.clear()
        found = checkpoint.latest(run)
        assert found.directory == before, f"{name} is damaged, and that was not seen"
        assert name.name in caplog.text and "set aside as step_20.damaged" in caplog.text
        assert not newest.exists()


def test_every_bit_of_the_manifest_counts(run):
    directory = checkpoint.step_directory(run, 20)
    path = directory / "manifest.json"
    whole = path.read_bytes()
    for at in range(0, len(whole), 31):
        for bit in range(8):
            content = bytearray(whole)
            content[at] ^= 1 << bit
            path.write_bytes(content)
            with pytest.raises(UserError):
                checkpoint.verify(directory)
    path.write_bytes(whole)
    assert checkpoint.verify(directory).step == 20


def test_manifest_of_before_checksums_is_read(run):
    directory = checkpoint.step_directory(run, 20)
    manifest = checkpoint.read_manifest(directory)
    content = dataclasses.asdict(manifest)
    del content["checksum"]
    (directory / "manifest.json").write_text(json.dumps(content))
    assert dataclasses.replace(checkpoint.verify(directory), checksum=manifest.checksum) == manifest


def _states(run: Path) -> dict[str, list[str]]:
    return {
        "optimizer": sorted(path.parent.name for path in run.glob("checkpoints/step_*/optimizer")),
        "weights": sorted(path.parent.name for path in run.glob("checkpoints/step_*/weights")),
        "resume": sorted(path.name for path in run.glob("resume/*")),
    }


def _with_more_states(run: Path) -> None:
    for step in (10, 20):
        for more in (30, 40):
            if step == 20:
                shutil.copytree(run / "checkpoints" / "step_20", run / "checkpoints" / f"step_{more}")
        shutil.copytree(run / "checkpoints" / "step_20", run / "resume" / f"step_{step + 5}")
    shutil.copytree(run / "checkpoints" / "step_20", run / "resume" / "step_35")


def test_old_states_go_and_all_weights_stay(run):
    _with_more_states(run)
    manifests = {path: path.read_bytes() for path in run.glob("checkpoints/*/manifest.json")}
    checkpoint.remove_old_states(run, keep_optimizer_states=2)
    assert _states(run) == {
        "optimizer": ["step_30", "step_40"],
        "weights": ["step_10", "step_20", "step_30", "step_40"],
        "resume": ["step_25", "step_35"],
    }
    for path, content in manifests.items():
        # Results of evaluations are filed under the manifest's checksum.
        assert path.read_bytes() == content
        checkpoint.verify(path.parent)
    checkpoint.remove_resume_states(run)
    assert not (run / "resume").exists()


def test_state_whose_optimizer_was_removed_is_no_state_to_resume_from(run):
    shutil.rmtree(run / "checkpoints" / "step_20" / "optimizer")
    assert checkpoint.latest(run).directory == run / "checkpoints" / "step_10"
    assert (run / "checkpoints" / "step_20").is_dir()


def test_newer_state_of_both_places_is_used(run):
    shutil.move(run / "checkpoints" / "step_20", run / "resume" / "step_20")
    assert checkpoint.latest(run).directory == run / "resume" / "step_20"
    _flip_a_bit(next((run / "resume" / "step_20" / "optimizer").glob("*.distcp")))
    assert checkpoint.latest(run).directory == run / "checkpoints" / "step_10"


def test_removal_that_was_killed_is_finished_by_the_next_start(run):
    """Removed directories are renamed first: a kill between leaves a hidden name, never half a checkpoint."""
    (run / "checkpoints" / "step_10" / "optimizer").rename(run / "checkpoints" / "step_10" / ".optimizer.removed")
    (run / "checkpoints" / ".step_15.saving" / "weights").mkdir(parents=True)
    (run / "resume" / ".step_12.removed").mkdir(parents=True)
    (run / ".run.yaml.abcd").touch()
    checkpoint.remove_leftovers(run)
    assert (
        not list(run.rglob("*.removed")) and not list(run.rglob("*.saving")) and not (run / ".run.yaml.abcd").exists()
    )
    assert (run / ".lock").exists()
    assert checkpoint.verify(run / "checkpoints" / "step_10").step == 10


def test_checkpoint_without_manifest_says_what_to_give(tmp_path):
    with pytest.raises(UserError, match="is no checkpoint"):
        checkpoint.read_manifest(tmp_path)
