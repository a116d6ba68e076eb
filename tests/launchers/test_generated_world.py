"""A grid that makes its own documents and benchmarks: what is planned, what is refused, and the whole of it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from launchers import grid as command
from launchers.checks import check_before_start
from launchers.directory import check_sources, choose_inputs, write_sources
from launchers.plan import GridDirectory, Inputs, build_plan
from launchers.states import read_study
from launchers.tried import NOTES
from recipes.grid import load_grid
from tokenizer.cli import UserError


@pytest.fixture
def empty(tmp_path) -> GridDirectory:
    """A grid directory that nobody has worked in."""
    return GridDirectory(tmp_path / "out")


def launch_into(folder: GridDirectory, inputs: Inputs) -> None:
    """What a launch leaves before its first step."""
    folder.logs.mkdir(parents=True, exist_ok=True)
    write_sources(check_sources(inputs, folder), folder)


def write_documents(directory: Path) -> Path:
    directory.mkdir()
    (directory / "a.jsonl").write_text('{"text": "one"}\n')
    return directory


def finish(manifest: Path, value: dict) -> None:
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps(value))


def test_the_world_is_made_first_and_everything_reads_it(smoke, empty):
    plan = build_plan(smoke, empty, choose_inputs(smoke, empty))
    assert plan.phases == ("world", "tokenizer", "encode", "index", "train", "evaluate", "report")
    world, tokenizer, encode, *_ = plan
    assert world.command[1:3] == ("-m", "recipes.microworld")
    assert {str(empty.grid_file), str(empty.world)} < set(world.command)
    for step in (tokenizer, encode):
        assert world.name in step.needs and str(empty.world / "corpus") in step.command
    evaluations = [step for step in plan if step.phase == "evaluate"]
    assert all(str(empty.world / "benchmarks") in step.command for step in evaluations)
    # Done is the world that the grid describes, not another.
    assert not world.done()
    settings = smoke.microworld.identity()
    finish(empty.world / "manifest.json", {"settings": {**settings, "seed": 7}})
    assert not world.done()
    finish(empty.world / "manifest.json", {"settings": settings, "bytes": 1000})
    assert world.done()


def test_documents_and_benchmarks_that_are_given_take_its_place(smoke, empty, tmp_path):
    corpus = write_documents(tmp_path / "corpus")
    given = choose_inputs(smoke, empty, corpus, tmp_path)
    assert given == Inputs(corpus, tmp_path)
    plan = build_plan(smoke, empty, given)
    assert "world" not in plan.phases and str(corpus) in plan.by_name["train the tokenizer"].command
    # A later launch without options goes on with them.
    launch_into(empty, given)
    assert choose_inputs(smoke, empty) == given
    assert read_study(smoke, empty).world_done is None


def test_a_later_launch_goes_on_with_the_world(smoke, empty, tmp_path):
    inputs = choose_inputs(smoke, empty)
    assert inputs.world == smoke.microworld and inputs.given == ()
    launch_into(empty, inputs)
    assert choose_inputs(smoke, empty) == inputs
    finish(empty.tokenizer / "manifest.json", {"sha256": "abc"})
    check_sources(inputs, empty)
    with pytest.raises(UserError, match=r"made from the microworld seed 1, megabytes 1, .* which is not .*corpus with"):
        check_sources(Inputs(write_documents(tmp_path / "corpus"), tmp_path), empty)
    other = dataclasses.replace(inputs, world=dataclasses.replace(smoke.microworld, people=40))
    with pytest.raises(UserError, match=r"people 32, .* which is not .* people 40, .*another --out"):
        check_sources(other, empty)


def test_it_is_checked_before_it_is_made(smoke, empty, tmp_path):
    sources = check_before_start(smoke, smoke.runs, empty, choose_inputs(smoke, empty), jobs=2)
    assert sources == {"microworld": smoke.microworld.identity(), "bytes": 1_000_000}
    path = tmp_path / "grid.yaml"
    path.write_text(smoke.path.read_text().replace("limit: 8", "tasks: [mmlu_texts, word_unscramble]"))
    grid = load_grid(path)
    with pytest.raises(UserError, match="a microworld has no files for word_unscramble; leave it out, or give --corp"):
        check_before_start(grid, grid.runs, empty, choose_inputs(grid, empty), jobs=2)
    assert not empty.path.exists()


def test_a_dry_run_shows_it_and_status_tells_of_it(smoke, empty, capsys):
    arguments = ["--grid", "smoke", "--out", str(empty.path)]
    assert command.main([*arguments, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for word in ("make the world", "python -m recipes.microworld --grid", "world/corpus", "world/benchmarks"):
        assert word in shown
    assert "give --corpus" not in shown
    assert command.main([*arguments, "--status"]) == 0
    assert "world not yet · tokenizer not yet" in capsys.readouterr().out


@pytest.mark.slow
def test_a_launch_without_documents_ends_with_a_report(smoke, environment, repository, tmp_path):
    grid = yaml.safe_load(smoke.path.read_text())
    grid |= {"evaluation": {"tasks": ["hellaswag"], "limit": 4}, "runs": [{"size": "small", "tokens": 20480}]}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    folder = GridDirectory(tmp_path / "out")
    words = ["bash", repository / "launchers" / "slurm_grid.sh", "--grid", tmp_path / "grid.yaml", "--out", folder.path]
    done = subprocess.run(
        [*map(str, words), "--jobs", "1", "--no-open"],
        env=environment,
        text=True,
        capture_output=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    notes = json.loads((folder.logs / NOTES).read_text())
    assert notes["started"] < notes["done_at"] < time.time() + 60
    assert folder.world_is_done(smoke.microworld) and folder.report_page.is_file()
    result = json.loads(folder.result("small-20480", 10).read_text())
    assert set(result["tasks"]) == {"hellaswag"}
