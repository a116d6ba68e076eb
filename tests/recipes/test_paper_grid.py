"""The paper's grid against its own numbers: REFERENCE §1, that is Tables 4 and 5 of Du et al. 2024."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from commands import REPOSITORY, run_module

from recipes.grid import Grid, load_grid

# size: tokens (B), hidden, FFN hidden, heads, layers, batch, peak learning rate, parameters (B)
LARGE = {
    "1.5B": (3000, 2048, 6912, 16, 24, 1344, 5e-4, 1.51),
    "6B": (3000, 4096, 13696, 32, 28, 4224, 4e-4, 6.24),
    "32B": (2500, 6656, 22272, 52, 58, 8832, 3e-4, 32.0),
}
SMALL = {
    "300M": ((67, 125, 250, 500), 1152, 3840, 9, 12, 2.8e-3, 0.35),
    "540M": ((33, 66, 125, 250, 500), 1536, 5120, 12, 12, 2e-3, 0.55),
    "1B": ((33, 67, 125, 250, 500), 2048, 6912, 16, 16, 1.5e-3, 1.10),
    "1.5B": ((67, 100, 125, 250, 375, 500), 2048, 6912, 16, 24, 1e-3, 1.51),
    "3B": ((67, 125, 250, 500), 3072, 10240, 24, 24, 7e-4, 3.16),
    "6B": ((33, 67, 125, 250), 4096, 13696, 32, 28, 4e-4, 6.24),
}


@pytest.fixture(scope="module")
def paper() -> Grid:
    return load_grid("paper")


def expected_runs() -> set[tuple]:
    large = {(size, *values[:-1]) for size, values in LARGE.items()}
    small = {(size, t, *shape, 1152, rate) for size, (tokens, *shape, rate, _) in SMALL.items() for t in tokens}
    return large | small


def test_the_runs_are_those_of_the_tables(paper):
    found = {
        (
            it.size,
            round(it.tokens / 1e9),
            it.hidden_size,
            it.ffn_hidden_size,
            it.num_attention_heads,
            it.num_layers,
            it.global_batch_size,
            it.learning_rate,
        )
        for it in (run.settings for run in paper.runs)
    }
    assert len(paper.runs) == 31
    assert found == expected_runs()
    assert {"1.5B-3T", "6B-3T", "32B-2.5T", "300M-67B"} <= {run.name for run in paper.runs}


def test_all_runs_share_what_the_paper_fixes(paper):
    for run in paper.runs:
        it = run.settings
        assert (it.sequence_length, it.kv_channels, it.adam_beta1, it.adam_beta2) == (2048, 128, 0.9, 0.95)
        assert it.rotary_percent == 0.5
        assert it.languages == {"en": 4.0, "zh": 1.0}
        assert sum(it.source_weights["en"].values()) == pytest.approx(100.0, abs=0.5)
        assert it.num_query_groups == (3 if it.size == "300M" else 2)
        parameters = (LARGE | SMALL)[it.size][-1]
        assert it.parameters / 1e9 == pytest.approx(parameters, rel=0.01)


def test_the_large_runs_keep_a_checkpoint_about_every_43b_tokens(paper):
    for size, (tokens, *_) in LARGE.items():
        run = next(r for r in paper.runs if r.settings.size == size and r.settings.tokens == tokens * 10**9)
        steps = (0, *run.settings.checkpoint_steps)
        intervals = [(b - a) * run.settings.tokens_per_step / 1e9 for a, b in itertools.pairwise(steps)]
        assert min(intervals) > 42 and max(intervals) < 44
    small = Counter(len(run.settings.checkpoint_steps) for run in paper.runs if run.settings.tokens < 1e12)
    assert len(small) == 1


def test_no_layout_stands_in_the_file(paper):
    """A laptop's user reads the same file; the planner gives the layout."""
    text = (REPOSITORY / "recipes" / "grids" / "paper.yaml").read_text()
    assert "parallel" not in text.replace("recipes.parallel", "")
    assert all(run.settings.tensor_parallel == run.settings.pipeline_parallel == 1 for run in paper.runs)


def test_the_table_ends_with_sums(paper):
    shown = run_module("recipes.grid", "paper").stdout
    together = next(line for line in shown.splitlines() if "together" in line)
    steps = sum(run.settings.num_steps for run in paper.runs)
    checkpoints = sum(len(run.settings.checkpoint_steps) for run in paper.runs)
    assert f"{steps:,}" in together and f" {checkpoints:,} " in together
