"""The data of a run: the mixture, every sample once whatever the layout, what was consumed, and the index on disk."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import REPOSITORY, loss_rows, module_command, pretrain, run_command, run_module

from recipes import encoded, index, mixture
from recipes.grid import load_grid, override
from recipes.settings import RunSettings
from tokenizer.cli import UserError

RUN = "large-40960"
WEIGHTS = ["source_weights.en.web=1", "source_weights.en.books=3"]
LAYOUTS = Path(__file__).with_name("data_layouts.py")


def settings_of(*changes: str) -> RunSettings:
    return override(load_grid("smoke").run(RUN).settings, changes)


def layouts(data: Path) -> dict:
    return json.loads(run_command([sys.executable, str(LAYOUTS), str(data)]).stdout)


@pytest.fixture(scope="module")
def seen(once, smoke_data) -> dict:
    """What `data_layouts.py` found, with the index built in memory."""

    def make(directory: Path) -> None:
        (directory / "seen.json").write_text(json.dumps(layouts(smoke_data)))

    return json.loads((once("data-layouts", make) / "seen.json").read_text())


@pytest.fixture
def data(smoke_data, tmp_path) -> Path:
    """A copy of the data that a test may change."""
    return shutil.copytree(smoke_data, tmp_path / "data")


@pytest.fixture(scope="module")
def built(once, smoke_data) -> Path:
    """Data with the index that the smoke grid needs."""

    def make(directory: Path) -> None:
        # Two training sets, for sizes of the smoke grid differ in nothing that concerns data, and two held-out ones.
        assert "4 built" in build(shutil.copytree(smoke_data, directory / "data"))

    return once("indexed-data", make) / "data"


@pytest.fixture
def indexed(built, tmp_path) -> Path:
    """A copy of the data with their index that a test may change."""
    return shutil.copytree(built, tmp_path / "data")


# The mixture.


def test_without_weights_sources_count_by_their_tokens(smoke_data):
    data = encoded.read_data(smoke_data)
    shares = mixture.source_shares(data, settings_of())
    assert sum(it.share for it in shares) == pytest.approx(1.0)
    for language, ratio in (("en", 0.8), ("zh", 0.2)):
        found = [it for it in shares if it.source.language == language]
        tokens = sum(it.source.tokens for it in found)
        assert [it.share for it in found] == pytest.approx([ratio * it.source.tokens / tokens for it in found])
        # Then no source of a language is seen more often than another.
        assert len({round(it.epochs, 9) for it in found}) == 1


def test_weights_say_how_many_epochs_of_a_source_a_run_sees(smoke_data):
    """As in the paper: books several times over, web pages once or less."""
    data = encoded.read_data(smoke_data)
    shares = {(it.source.language, it.source.source): it for it in mixture.source_shares(data, settings_of(*WEIGHTS))}
    books, web = shares["en", "books"], shares["en", "web"]
    assert (books.share, web.share) == pytest.approx((0.6, 0.2))
    assert books.epochs == pytest.approx(0.6 * 40960 / books.source.tokens)
    assert books.epochs > 1.5 and web.epochs < 0.5
    # Chinese has no weights of its own.
    assert shares["zh", "web"].epochs == pytest.approx(shares["zh", "books"].epochs)


def test_dry_run_and_log_name_sources_and_epochs(smoke_data, layout_runs, tmp_path):
    arguments = ["--grid", "smoke", "--run", RUN, "--out", tmp_path, "--data", smoke_data]
    shown = run_module("recipes.pretrain", *arguments, "--dry-run", *WEIGHTS).stdout
    assert re.search(r"en/books +60\.00% +24\.6K tokens of +1\d\.\dK +1\.[5-9]\d* epochs", shown)
    assert re.search(r"zh/web .* 0\.\d+ epochs", (layout_runs["single"] / "train.log").read_text())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (["source_weights.en.web=1"], "source_weights.en leaves out 'books' of"),
        ([*WEIGHTS, "source_weights.en.code=1"], "source_weights.en names 'code', which"),
        (["source_weights.fr.web=1"], "source_weights names the language 'fr', languages does not"),
    ],
)
def test_weights_and_data_name_the_same_sources(smoke_data, weights, said):
    with pytest.raises(UserError, match=said):
        encoded.check(encoded.read_data(smoke_data), settings_of(*weights))


# Every sample once.


def test_every_layout_gets_every_sample_of_a_step_once(seen):
    assert seen["distinct"] == seen["samples"] >= 320
    for layout, steps in seen["layouts"].items():
        for step, samples in enumerate(steps):
            assert samples == list(range(16 * step, 16 * (step + 1))), f"{layout}, step {step + 1}"


def test_consumed_tokens_are_those_of_the_samples(seen):
    """Counted by looking at each sample, without the two skipped steps, at one step after another, forth and back."""
    assert seen["consumed"] == seen["counted"]
    totals = {int(step): sum(tokens for *_, tokens in rows) for step, rows in seen["consumed"].items()}
    assert totals == {1: 2048, 3: 2 * 2048, 9: 7 * 2048, 20: 18 * 2048}


def test_weights_are_what_is_consumed(seen):
    tokens = {(language, source): count for language, source, count in seen["weighted"]}
    assert tokens["en", "books"] / 40960 == pytest.approx(0.6, abs=0.01)
    assert tokens["en", "web"] / 40960 == pytest.approx(0.2, abs=0.01)


@pytest.mark.slow
def test_a_run_goes_on_exactly_with_another_number_of_replicas(layout_runs, smoke_data, tmp_path):
    """10 steps on two data-parallel processes, 10 on one with a smaller micro-batch: the losses of one process."""
    pretrain(RUN, tmp_path, smoke_data, "micro_batch_size=4", processes=2)
    run = tmp_path / RUN
    for row, expected in zip(loss_rows(run), loss_rows(layout_runs["single"]), strict=True):
        assert float(row["train_loss"]) == pytest.approx(float(expected["train_loss"]), rel=1e-5)
    shutil.rmtree(run / "checkpoints" / "step_20")
    done = pretrain(RUN, tmp_path, smoke_data, "micro_batch_size=2")
    assert "resuming from step 10" in done.stdout
    for row, expected in zip(loss_rows(run), loss_rows(layout_runs["single"]), strict=True):
        assert float(row["train_loss"]) == pytest.approx(float(expected["train_loss"]), rel=1e-5)
        assert float(row["heldout_loss"] or 0) == pytest.approx(float(expected["heldout_loss"] or 0), rel=1e-5)


# The index on disk.


def build(data: Path, *arguments: object) -> str:
    return run_module("recipes.index_cache", "--grid", "smoke", "--data", data, *arguments).stdout


def listing(directory: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and time."""
    return {
        str(path.relative_to(directory)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in directory.rglob("*")
        if path.name != ".lock"
    }


def test_index_is_built_once_only_read_and_goes_where_the_data_go(seen, indexed, tmp_path):
    before = listing(indexed)
    assert re.search("0 built in .* 3 already there", build(indexed, "--runs", "*-40960", "--runs", RUN))
    assert listing(indexed) == before
    moved = indexed.rename(tmp_path / "elsewhere")
    assert index.is_built(encoded.read_data(moved), settings_of())
    assert layouts(moved) == seen
    assert listing(moved) == before


def test_other_settings_and_other_data_have_another_index(smoke_data):
    data = encoded.read_data(smoke_data)
    changes = ([], ["seed=3"], ["tokens=20480"], ["sequence_length=64"], ["languages.en=3"], WEIGHTS)
    keys = {mixture.training_blend(data, settings_of(*change)).key(data) for change in changes}
    assert len(keys) == len(changes)
    same = ["learning_rate=1e-2", "hidden_size=128", "micro_batch_size=2", "global_batch_size=8"]
    assert mixture.training_blend(data, settings_of(*same)).key(data) in keys


def test_a_damaged_index_is_not_read_and_one_of_other_data_removed(indexed):
    encoded_data = encoded.read_data(indexed)
    blend = mixture.training_blend(encoded_data, settings_of())
    directory = index.find(encoded_data, blend)
    victim = next(directory.glob("*shuffle_index.npy"))
    victim.write_bytes(victim.read_bytes()[:-4])
    assert index.find(encoded_data, blend) is None
    other = directory.parent / ("0" * 32)
    shutil.copytree(directory, other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "data_fingerprint": "of another corpus"}))
    assert "1 built" in build(indexed, "--runs", RUN)
    assert index.find(encoded_data, blend) == directory
    assert not other.exists()


def test_killed_while_building_and_built_by_two_at_once(data):
    """A budget of a hundred million tokens, so that building takes long enough to be caught at it."""
    root = data / "index"
    command = module_command(
        "recipes.index_cache", "--grid", "smoke", "--data", data, "--runs", RUN, f"tokens={128 * 16 * 50_000}"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(root.glob(".*/*.npy")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wanted = index.blends(encoded.read_data(data), settings_of(f"tokens={128 * 16 * 50_000}"))
    assert not any(index.find(encoded.read_data(data), blend) for blend in wanted)
    assert [path for path in root.iterdir() if path.name != ".lock"], "nothing was left to be removed"

    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    counts = [re.search(r"(\d) built in .* (\d) already there", text).groups() for text in said]
    assert sorted(counts) == [("0", "3"), ("3", "0")]
    assert all(index.find(encoded.read_data(data), blend) for blend in wanted)
    assert not [path for path in root.glob(".*") if path.is_dir()]
