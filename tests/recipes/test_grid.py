"""Grid files: what they say, and what is refused with file and line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from commands import REPOSITORY, run_module

from recipes import grid
from recipes.microworld.settings import MicroworldSettings
from recipes.settings import parse_count
from tokenizer.cli import UserError

SHIPPED = sorted((REPOSITORY / "recipes" / "grids").glob("*.yaml"))

GRID = """\
name: tiny
tokenizer:
  vocab_size: 512
defaults:
  sequence_length: 64
  global_batch_size: 4
  kv_channels: 16
sizes:
  a: {hidden_size: 32, ffn_hidden_size: 96, num_attention_heads: 2, num_layers: 2}
  b: {hidden_size: 64, ffn_hidden_size: 192, num_attention_heads: 4, num_layers: 2, learning_rate: 1e-3}
runs:
  - {size: [a, b], tokens: [2560, 5.12k], seed: [1, 2]}
  - {size: a, tokens: 2560, name: alone}
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "grid.yaml"
        path.write_text(text)
        return path

    return write


def test_lists_are_swept_and_settings_override_each_other(write):
    tiny = grid.load_grid(write(GRID))
    names = [run.name for run in tiny.runs]
    assert len(names) == 9
    assert names[:3] == ["a-2560-seed1", "a-2560-seed2", "a-5.12k-seed1"]
    assert names[-1] == "alone"
    settings = tiny.run("b-5.12k-seed2").settings
    assert (settings.seed, settings.tokens, settings.learning_rate, settings.vocab_size) == (2, 5120, 1e-3, 512)
    assert settings.num_steps == 20


@pytest.mark.parametrize(
    ("before", "after", "line", "message"),
    [
        ("  sequence_length: 64", "  sequence_lenght: 64", 5, "unknown key 'sequence_lenght'; known are"),
        ("name: tiny", "nmae: tiny", 1, "unknown key 'nmae'"),
        ("name: tiny", "name: a b", 1, "'a b' is no name"),
        ("vocab_size: 512", "vocab_size: many", 3, "vocab_size is 'many'; it must be a whole number above 0"),
        ("  vocab_size: 512", "  ratio: {en: 4}", 2, "tokenizer has no vocab_size; add it"),
        ("size: a,", "size: c,", 13, "there is no size 'c'; sizes has a, b"),
        (
            "2560, 5.12k",
            "2560, 5.2k",
            12,
            "are 20.31 steps of 4 x 64 = 256 tokens; write 5,120 (20 steps)",
        ),
        ("2560, 5.12k", "2560, lots", 12, "'lots' is no count; write 67B, 1.5M or 4096"),
        ("heads: 2, num_layers: 2}", "heads: 3, num_layers: 2}", 12, "3 attention heads do not divide into 2 query"),
        ("num_layers: 2}\n  b", "num_layers: two}\n  b", 12, "num_layers is 'two'; it must be a whole number"),
        ("name: alone", "name: a-2560-seed1", 13, "two runs are called a-2560-seed1"),
        ("name: alone", "name: report", 13, "'report' cannot name a run"),
        ("name: alone", "name: 'a; rm -rf ~'", 13, "cannot name a run"),
        ("  global_batch_size: 4", "  global_batch_size: -4", 12, "global_batch_size is -4; it must be above 0"),
        ("  kv_channels: 16", "  kv_channels: 17", 12, "rotary embedding turns an even number"),
        ("  kv_channels: 16", "  kv_channels: 16\n  qk_layernorm: true", 13, "set rotary_percent: 1.0"),
        ("  kv_channels: 16", "  kv_channels: 16\n  kv_channels: 32", 8, "'kv_channels' stands here twice"),
        ("  kv_channels: 16", "  kv_channels: [16", 8, "this is no YAML"),
        ("  kv_channels: 16", "  precision: fp4", 12, "precision is 'fp4'; choose one of fp32, bf16"),
        ("  kv_channels: 16", "  num_checkpoints: 99", 12, "99 checkpoints do not fit in 10 steps"),
        ("hidden_size: 32, ", "", 12, "missing settings: hidden_size"),
        (
            "tokenizer:",
            "microworld: {megabyte: 1}\ntokenizer:",
            2,
            "unknown key 'megabyte'; known are megabytes, people",
        ),
        ("tokenizer:", "microworld:\n  people: 3\ntokenizer:", 2, "microworld: people is 3; it must be from 16"),
        ("tokenizer:", "microworld: {seed: one}\ntokenizer:", 2, "seed is 'one'; it must be a whole number"),
        ("tokenizer:", "microworld: 4\ntokenizer:", 2, "microworld must be a mapping of settings to values"),
        ("name: alone", "name: world", 13, "'world' cannot name a run"),
    ],
)
def test_a_wrong_grid_is_refused_with_file_line_and_remedy(write, before, after, line, message):
    assert before in GRID
    path = write(GRID.replace(before, after, 1))
    with pytest.raises(UserError) as error:
        grid.load_grid(path)
    assert str(error.value).startswith(f"{path}:{line}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("section", "settings"),
    [
        ("", None),
        ("microworld: {}\n", MicroworldSettings()),
        ("microworld:\n", MicroworldSettings()),
        ("microworld: {megabytes: 0.5, rows: 9}\n", MicroworldSettings(megabytes=0.5, rows=9)),
    ],
)
def test_a_grid_may_have_a_world_of_its_own(write, section, settings):
    assert grid.load_grid(write(GRID + section)).microworld == settings


def test_an_unknown_grid_names_the_shipped_ones():
    with pytest.raises(UserError, match="realtext, smoke"):
        grid.load_grid("nothing")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_grids_pass_the_real_command_lines(path, tmp_path):
    shown = run_module("recipes.grid", path).stdout
    shipped = grid.load_grid(path)
    assert shipped.name == path.stem
    for run in shipped.runs:
        assert run.name in shown
    last = shipped.runs[-1]
    planned = run_module("recipes.pretrain", "--grid", path, "--run", last.name, "--out", tmp_path, "--dry-run").stdout
    assert f"run {last.name}: " in planned
    assert not list(tmp_path.iterdir())


def test_parameters_are_those_of_the_paper(write):
    """With 2 query groups (3 for 9 heads) and 65,024 pieces: REFERENCE counts 0.35B to 32.0B, the 6B shape being
    ChatGLM2-6B's published 6.24B."""
    shapes = {
        (1152, 3840, 9, 12, 3): 0.35e9,
        (1536, 5120, 12, 12, 2): 0.55e9,
        (2048, 6912, 16, 16, 2): 1.10e9,
        (2048, 6912, 16, 24, 2): 1.51e9,
        (3072, 10240, 24, 24, 2): 3.16e9,
        (4096, 13696, 32, 28, 2): 6.24e9,
        (6656, 22272, 52, 58, 2): 32.0e9,
    }
    for (hidden, ffn, heads, layers, groups), parameters in shapes.items():
        settings = grid.RunSettings(
            size="x",
            tokens=2048 * 1152,
            hidden_size=hidden,
            ffn_hidden_size=ffn,
            num_attention_heads=heads,
            num_layers=layers,
            num_query_groups=groups,
        )
        assert settings.parameters == pytest.approx(parameters, rel=0.01)
        # The exact count exceeds 6ND by the output layer and the attention.
        assert 1.0 < settings.flops_exact(1) / settings.flops_6nd(1) < 2.0


def test_counts():
    assert [parse_count(text) for text in ("67B", "1.5m".upper(), "4096", 8, "2.5T", "250k")] == [
        67_000_000_000,
        1_500_000,
        4096,
        8,
        2_500_000_000_000,
        250_000,
    ]
    for wrong in ("", "B", "-3", "1.2.3M", None, True):
        with pytest.raises(ValueError, match="is no count"):
            parse_count(wrong)


def test_the_seeds_of_micro_repeat_its_large_runs():
    """Equal but for the seed, so that their spread is the spread of the micro grid's runs."""
    micro, seeds = grid.load_grid("micro"), grid.load_grid("micro-seeds")
    for section in ("microworld", "tokenizer", "evaluation"):
        assert getattr(seeds, section) == getattr(micro, section)
    for name in ("391K-6M", "695K-6M", "1.1M-5M"):
        repeated = [run for run in seeds.runs if run.name.startswith(f"{name}-seed")]
        settings = [dataclasses.asdict(run.settings) for run in (micro.run(name), *repeated)]
        assert len({it.pop("seed") for it in settings}) == 3
        assert all(it == settings[0] for it in settings)
    assert len(seeds.runs) == 6


def test_the_search_tries_the_rates_of_micro():
    """Each size as in the micro grid, at half its rate, at its rate and at twice that."""
    micro, search = grid.load_grid("micro"), grid.load_grid("micro-search")
    assert (search.microworld, search.tokenizer) == (micro.microworld, micro.tokenizer)
    used = {run.name.split("-")[0]: run.settings for run in micro.runs}
    tried = {size: [] for size in used}
    for run in search.runs:
        size = run.name.split("-")[0]
        tried[size].append(run.settings.learning_rate)
        changed = ("learning_rate", "tokens", "num_checkpoints")
        same = {name: getattr(used[size], name) for name in changed}
        assert dataclasses.replace(run.settings, **same) == used[size]
    assert tried == {size: [rate / 2, rate, 2 * rate] for size, rate in ((it, used[it].learning_rate) for it in used)}
