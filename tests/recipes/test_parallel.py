"""The layout planner: plans are legal, fit and are the fastest; what is refused is explained; files are checked."""

from __future__ import annotations

import dataclasses
import shlex

import pytest
from commands import REPOSITORY, run_module

from recipes import layout, memory, pretrain
from recipes.cluster import CLUSTERS, load_cluster
from recipes.cost import CostModel
from recipes.grid import Run, load_grid
from recipes.parallel import main
from recipes.planner import SLICES, legal_layouts, plan_run, plan_within
from recipes.refusals import NoPlanError, Refusals
from tokenizer.cli import UserError

SHIPPED = sorted(CLUSTERS.glob("*.yaml"))
POWERS = [2**i for i in range(3, 12)]


@pytest.fixture(scope="module")
def paper():
    return load_grid("paper")


@pytest.fixture(scope="module")
def a100():
    return load_cluster("dgx-a100")


def check_plan(plan, run):
    """A plan trains the run, is legal by the rules that the training itself applies, and fits."""
    it = plan.settings
    kept = {f.name for f in dataclasses.fields(it)} - layout_fields()
    assert all(getattr(it, name) == getattr(run.settings, name) for name in kept)
    assert layout.data_parallel_size(it, plan.gpus) == plan.data_parallel
    assert layout.model_parallel_size(it) * plan.data_parallel == plan.gpus
    assert it.tensor_parallel <= plan.cluster.gpus_per_node
    assert plan.memory == memory.worst_rank(it, plan.data_parallel)
    assert plan.memory.total <= plan.cluster.usable_bytes
    assert plan.step == CostModel(plan.cluster).step_time(it, plan.data_parallel)
    assert 0 < plan.utilisation() < plan.utilisation(exact=True) < 1


def layout_fields():
    from recipes.settings import LAYOUT_SETTINGS

    return LAYOUT_SETTINGS


@pytest.mark.parametrize(
    ("name", "gpus", "published_days"),
    [("300M-67B", 512, None), ("1.5B-3T", 256, 8), ("6B-3T", 1024, 8), ("32B-2.5T", 2048, 20)],
)
def test_a_plan_is_legal_and_the_fastest_that_fits(paper, a100, name, gpus, published_days):
    """And within 25 % of the days that Du et al. 2024 report (App. H)."""
    run = paper.run(name)
    plan = plan_run(run, a100, gpus)
    check_plan(plan, run)
    if published_days:
        assert plan.days == pytest.approx(published_days, rel=0.25)
    model = CostModel(a100)
    times = [
        model.step_time(settings, replicas).total
        for settings, replicas, memory_ in legal_layouts(run.settings, a100, gpus, Refusals(), SLICES[0])
        if memory_.total <= a100.usable_bytes
    ]
    assert plan.step.total == min(times)
    assert len(times) <= plan.considered


@pytest.mark.parametrize("gpus", [8, 128])
def test_what_the_search_passes_over_unseen_cannot_be_faster(paper, a100, gpus):
    model = CostModel(a100)
    shares = [
        model.least_seconds(settings, replicas) / model.step_time(settings, replicas).total
        for settings, replicas, _ in legal_layouts(paper.run("6B-250B").settings, a100, gpus, Refusals())
    ]
    assert len(shares) > 100 and 0.4 < max(shares) < 1


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["dgx-a100", "dgx-h100"])
def test_every_run_of_the_paper_has_a_plan_wherever_one_exists(paper, cluster):
    """On 8 to 2048 GPUs: on 80 GB each run has a plan. Runs of one size and batch differ in their number of steps."""
    machine = load_cluster(cluster)
    refused = set()
    for run in {(run.settings.size, run.settings.global_batch_size): run for run in paper.runs}.values():
        for gpus in POWERS:
            try:
                check_plan(plan_run(run, machine, gpus), run)
            except NoPlanError as error:
                refused.add((run.name, gpus, str(error)))
    assert not refused


def test_what_does_not_fit_is_refused_with_the_bytes(paper, a100):
    with pytest.raises(NoPlanError, match=r"32B-2.5T does not fit on 4 GPUs of dgx-a100: .* GiB a GPU \(weights .*\)"):
        plan_run(paper.run("32B-2.5T"), a100, 4)
    # 18 bytes a parameter are 537 GiB, 67 GiB on each of eight GPUs.
    assert plan_run(paper.run("32B-2.5T"), a100, 8).memory.total > 67 * 2**30


def test_what_does_not_divide_is_refused_with_what_would(paper, a100):
    refusals = Refusals()
    list(legal_layouts(paper.run("32B-2.5T").settings, a100, 2048, refusals))
    reasons = [refusal.reason for refusal in refusals.all()]
    assert "8832 sequences do not divide over 256 data-parallel replicas; 192 or 276 would" in reasons
    assert any(reason.startswith("52 attention heads do not divide over tensor_parallel=8") for reason in reasons)
    with pytest.raises(NoPlanError, match="no legal layout on 88 GPUs: 1152 sequences do not divide over"):
        plan_run(paper.run("300M-67B"), a100, 88)
    with pytest.raises(UserError, match="100 GPUs are no whole number of dgx-a100 nodes of 8; give --gpus 96 or 104"):
        plan_run(paper.run("300M-67B"), a100, 100)


def test_uneven_and_virtual_stages_are_among_the_layouts(paper, a100):
    found = [s for s, _, _ in legal_layouts(paper.run("6B-250B").settings, a100, 64, Refusals())]
    assert any(s.first_stage_layers and s.last_stage_layers < s.first_stage_layers for s in found)
    assert any(s.embedding_and_loss_as_layers for s in found)
    assert any(s.virtual_pipeline_parallel > 1 for s in found)
    assert any(s.context_parallel > 1 for s in found)
    assert all(s.sequence_parallel == (s.tensor_parallel > 1) for s in found)


def test_the_model_answers_as_it_should(paper, a100):
    """More of a resource is never slower; a longer pipeline has a longer bubble; virtual stages shorten it."""
    base = paper.run("6B-250B").settings
    fast = {
        name: dataclasses.replace(a100, **{name: 2 * getattr(a100, name)})
        for name in ("memory_bandwidth", "nvlink_bandwidth", "network_bandwidth")
    }
    it = dataclasses.replace(base, tensor_parallel=2, pipeline_parallel=4, distributed_optimizer=True)
    for cluster in fast.values():
        assert CostModel(cluster).step_time(it, 8).total < CostModel(a100).step_time(it, 8).total

    def bubble(**changes):
        step = CostModel(a100).step_time(dataclasses.replace(base, **changes), 8)
        return step.bubble / step.total

    assert bubble() == 0
    assert bubble(pipeline_parallel=2) < bubble(pipeline_parallel=4)
    assert bubble(pipeline_parallel=4, virtual_pipeline_parallel=7) < bubble(pipeline_parallel=4)
    assert CostModel(a100, overlap_gather=True).step_time(it, 8).total < CostModel(a100).step_time(it, 8).total
    for recompute in ("mlp", "full"):
        slower = dataclasses.replace(it, recompute=recompute)
        assert CostModel(a100).step_time(slower, 8).products > CostModel(a100).step_time(it, 8).products


def test_the_number_of_gpus_follows_the_days(paper, a100):
    run = paper.run("300M-67B")
    one = plan_run(run, a100, 8).days
    plan = plan_within(run, a100, days=0.9 * one)
    assert plan.gpus == 16 and plan.days <= 0.9 * one
    smoke = load_grid("smoke").run("large-40960")
    with pytest.raises(NoPlanError, match=r"takes \d+ days on \d+ GPUs of dgx-a100, more than --days 1e-09; raise it"):
        plan_within(smoke, a100, days=1e-9)


def test_the_command_it_prints_is_one_that_trains(paper, a100, capsys):
    plan = plan_run(paper.run("32B-2.5T"), a100, 2048)
    words = shlex.split(plan.command("paper", "runs/paper"))
    assert words[:5] == ["torchrun", "--nproc-per-node", "8", "--nnodes", "256"]
    assert pretrain.main([*words[words.index("recipes.pretrain") + 1 :], "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"tensor {plan.settings.tensor_parallel} x pipeline {plan.settings.pipeline_parallel}" in shown


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_clusters_pass_the_real_command_line(path, capsys):
    arguments = ["--grid", "smoke", "--cluster", path.stem, "--gpus", "1", "--run", "large-*"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "large-20480" in shown and "GPU-hours" in shown
    assert load_cluster(path).name == path.stem
    numbers = [line for line in path.read_text().splitlines() if ": " in line and not line.lstrip().startswith("#")]
    named = [line for line in numbers if not line.startswith(("name:", "like:", "gpus_per_node:", " "))]
    assert all("#" in line for line in named), "each number has its source"


def test_the_command_explains(capsys):
    arguments = ["--grid", "paper", "--cluster", "dgx-a100", "--gpus", "96", "--run", "1B-33B", "--explain"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    for words in ("optimizer", "bubble", "torchrun", "recipes.pretrain --grid paper", "Refused for 1B-33B"):
        assert words in shown


CLUSTER = (CLUSTERS / "dgx-h100.yaml").read_text()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("gpus_per_node: 8", "gpus_per_node: 8.5", "gpus_per_node is 8.5; it must be a whole number above 0"),
        ("gpus_per_node: 8", "gpus_per_nod: 8", "unknown key 'gpus_per_nod'"),
        ("name: dgx-h100", "", "name is missing"),
        ("  fp8: 1979.0e12", "  fp8: fast", "peak_flops.fp8 is 'fast'; it must be a number above 0"),
        ("  fp8: 1979.0e12", "", "must name the same precisions"),
        ("reserved_gib: 6.0", "reserved_gib: 90", "reserved_gib leaves no memory"),
        ("link_efficiency: 0.80", "link_efficiency: 80", "link_efficiency is 80; it is a share of a peak, at most 1"),
    ],
)
def test_a_wrong_cluster_file_is_refused_with_its_line(tmp_path, before, after, message):
    assert before in CLUSTER
    path = tmp_path / "cluster.yaml"
    path.write_text(CLUSTER.replace(before, after, 1))
    with pytest.raises(UserError) as error:
        load_cluster(path)
    assert str(error.value).startswith(f"{path}:") and message in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--cluster", "dgx-z9"],
            "there is no cluster file dgx-z9; give a YAML file or one of the shipped clusters: a100, b200, dgx-a100",
        ),
        (["--run", "70B"], "paper.yaml matches '70B'; the runs are 1.5B-3T, "),
        (["--gpus", "12"], "12 GPUs are no whole number of dgx-a100 nodes of 8; give --gpus 8 or 16"),
        (["--goodput", "2"], "--goodput is 2.0; it is a share"),
        (["--gpus", "4", "--run", "32B-2.5T"], "32B-2.5T does not fit on 4 GPUs"),
        (
            ["precision=fp8", "--gpus", "8"],
            "dgx-a100 has no peak rate for precision=fp8; plan with precision=bf16 or fp32",
        ),
    ],
)
def test_mistakes_on_the_command_line(arguments, message):
    given = ["--grid", "paper", *([] if "--cluster" in arguments else ["--cluster", "dgx-a100"]), *arguments]
    with pytest.raises(UserError) as error:
        main(given)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_it_starts_without_loading_torch():
    shown = run_module("recipes.parallel", "--grid", "smoke", "--cluster", "dgx-a100", "--gpus", 1).stdout
    assert "one after another" in shown
    source = "import sys, recipes.parallel; sys.exit('torch' in sys.modules)"
    import subprocess
    import sys

    assert subprocess.run([sys.executable, "-c", source], cwd=REPOSITORY).returncode == 0


def test_a_plan_takes_any_run(a100):
    grid = load_grid("smoke")
    run = Run("x", dataclasses.replace(grid.runs[0].settings, precision="bf16"))
    assert plan_run(run, a100, 1).data_parallel == 1
