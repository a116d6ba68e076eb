"""Cluster files: what is wrong is said with its line; job scripts carry all of one, quoted, for every environment."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from launchers.grid import main
from launchers.records import Record
from launchers.slurm import nodes
from launchers.slurm.allocation import Allocation, days_if_empty
from launchers.slurm.reconcile import ranges
from launchers.slurm.site import load_slurm_cluster, seconds_of
from recipes.cluster import CLUSTERS, load_cluster
from tokenizer.cli import UserError

WITH_SLURM = sorted(path for path in CLUSTERS.glob("*.yaml") if "slurm:" in path.read_text())


@pytest.mark.parametrize("path", WITH_SLURM, ids=lambda path: path.stem)
def test_shipped_files_are_whole(path):
    cluster = load_slurm_cluster(path)
    assert cluster.machine is not None
    assert cluster.machine.peak_flops == load_cluster(f"dgx-{path.stem}").peak_flops
    assert cluster.site.signal_seconds < seconds_of(cluster.site.time_limit)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("like: dgx-h100\n", ":1: there is no `slurm:` in it"),
        ("slurm:\n  partitoin: main\n", ":2: unknown key 'partitoin'"),
        ("slurm:\n  time_limit: 12:00:00\n", """:2: time_limit is '43200'; write it in quotes, as "12:00:00\""""),
        ("slurm:\n  time_limit: soon\n", ":2: time_limit is 'soon'"),
        ("slurm:\n  time_limit: '00:01:00'\n", "signal_seconds is no shorter than time_limit"),
        ("slurm:\n  account: a; rm -rf ~\n", ":2: account is 'a; rm -rf ~'; it must be one word"),
        ("slurm:\n  options:\n    array: 0-9\n", ":3: options.array: the launcher sets it itself"),
        ("slurm:\n  options: {--constraint: x}\n", ":2: options.--constraint: write a long option of sbatch without"),
        ("slurm:\n  variables: {'A B': c}\n", ":2: 'A B' is no name of an environment variable"),
        ("slurm:\n  evaluation: {at_once: 0}\n", ":2: evaluation.at_once is 0; it must be above 0"),
        ("slurm:\n  training: {cpus_per_process: many}\n", ":2: Value 'many' of type 'str'"),
        ("slurm:\n  environment: {kind: docker}\n", ":2: environment.kind is 'docker'; choose plain, pyxis, apptainer"),
        ("slurm:\n  environment: {kind: pyxis}\n", "needs environment.image"),
        ("like: dgx-z9\nslurm: {}\n", "there is no cluster file dgx-z9"),
        ("like: h100\nslurm: {}\n", ":1: .*h100.yaml is like another file itself; name that one"),
        ("like: dgx-h100\nmemory_gib: -1\nslurm: {}\n", ":2: memory_gib is -1"),
    ],
)
def test_mistakes_are_refused_with_their_line(tmp_path, text, said):
    path = tmp_path / "ours.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_slurm_cluster(path)
    assert re.search(re.escape(said).replace(r"\.\*", ".*"), str(error.value)), error.value


def test_a_machine_s_numbers_can_be_given_anew(tmp_path):
    (tmp_path / "theirs.yaml").write_text((CLUSTERS / "dgx-h100.yaml").read_text())
    path = tmp_path / "ours.yaml"
    path.write_text("like: theirs.yaml\nnetwork_bandwidth: 25.0e9\nslurm: {}\n")
    machine = load_slurm_cluster(path).machine
    shipped = load_cluster("dgx-h100")
    assert (machine.name, machine.network_bandwidth) == ("ours", 25e9)
    assert machine.nvlink_bandwidth == shipped.nvlink_bandwidth


def test_times():
    assert seconds_of("1-00:00:00") == 86400
    assert seconds_of("2-12") == 216000
    assert seconds_of("12:00:00") == 43200
    assert seconds_of("10:30") == 630
    assert seconds_of("90") == 5400
    with pytest.raises(ValueError, match="1d"):
        seconds_of("1d")


def test_the_finish_date_packs_nodes():
    def run(name: str, nodes: int, days: float) -> Allocation:
        return Allocation(name, nodes, 8, 8, (), "", days)

    assert days_if_empty([run("a", 4, 2.0), run("b", 2, 3.0), run("c", 2, 1.0)], nodes=4) == 5.0
    assert days_if_empty([run("a", 2, 2.0), run("b", 2, 3.0)], nodes=4) == 3.0
    assert run("a", 16, 9.5).segments("1-00:00:00") == 10
    assert run("a", 16, 9.5).gpu_hours == 16 * 8 * 24 * 9.5


def test_indices_of_an_array():
    assert ranges([7, 0, 1, 2, 5]) == "0-2,5,7"


ENVIRONMENTS = {
    "plain": ("modules: [cuda/13, 'a b']", ["module load cuda/13", "module load 'a b'"]),
    "pyxis": (
        "environment: {kind: pyxis, image: 'nvcr.io#nvidia/pytorch:25.09-py3'}",
        ["--container-image=nvcr.io#nvidia/pytorch:25.09-py3", "--container-mounts=", "python3 -m recipes.launch"],
    ),
    "apptainer": (
        "environment: {kind: apptainer, image: /images/it.sif, mounts: [/scratch], python: /opt/python}",
        ["apptainer exec --nv", ",/scratch", "/images/it.sif /opt/python -m recipes.launch"],
    ),
}


@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_job_scripts_hold_the_environment_and_nothing_unquoted(kind, tmp_path, capsys, monkeypatch):
    """Written without Slurm, so that they can be read anywhere before a cluster is there."""
    # Slurm's commands, where installed, find no cluster.
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.setenv("SECRET_TOKEN", "do-not-write-me-down")
    given, expected = ENVIRONMENTS[kind]
    cluster = tmp_path / "ours.yaml"
    cluster.write_text(
        "like: dgx-h100\nslurm:\n  account: team\n  options: {constraint: 'h100&nvme', exclusive: ''}\n"
        f"  variables: {{NCCL_IB_HCA: '^mlx5_0; $(touch pwned) `touch pwned`'}}\n  {given}\n"
    )
    out = tmp_path / "study"
    arguments = ["--grid", "paper", "--runs", "6B-33B", "--cluster", str(cluster), "--gpus", "16", "--out", str(out)]
    assert main([*arguments, "--dry-run"]) == 0
    assert "Nothing was submitted" in capsys.readouterr().out
    script = (out / "slurm" / "train-6B-33B.sbatch").read_text().replace(" \\\n    ", " ")
    for words in (*expected, "#SBATCH --nodes=2", "#SBATCH --gpus-per-node=8", "#SBATCH --account=team"):
        assert words in script, words
    assert "#SBATCH --constraint=h100&nvme" in script and "#SBATCH --exclusive\n" in script
    assert "export NCCL_IB_HCA='^mlx5_0; $(touch pwned) `touch pwned`'" in script
    assert '--nnodes 2 --master-addr "$master" --master-port "$port"' in script
    scripts = sorted((out / "slurm").glob("*.sbatch"))
    assert len(scripts) == 5
    for path in scripts:
        assert "do-not-write-me-down" not in path.read_text()
        assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
        if shutil.which("shellcheck"):
            # SC2016 is about the hostile value: nothing in it is to be expanded.
            checked = subprocess.run(
                ["shellcheck", "-e", "SC2016", str(path)], capture_output=True, text=True, check=False
            )
            assert checked.returncode == 0, checked.stdout
    assert not list(tmp_path.rglob("pwned"))


def test_containers_refuse_paths_that_they_cannot_mount(tmp_path, capsys):
    cluster = tmp_path / "ours.yaml"
    cluster.write_text("slurm: {environment: {kind: pyxis, image: /images/it.sqsh}}\n")
    arguments = ["--grid", "smoke", "--cluster", str(cluster), "--out", str(tmp_path / "a,b"), "--dry-run"]
    with pytest.raises(UserError, match="has a comma, a colon or a space in it"):
        main(arguments)


def test_a_layout_that_does_not_fit_the_processes_is_refused(tmp_path):
    cluster = tmp_path / "ours.yaml"
    cluster.write_text("slurm: {cpu: {nodes: 3, processes_per_node: 1}}\n")
    with pytest.raises(UserError, match="small-20480 on 3 x 1 processes: 16 sequences do not divide over 3"):
        main(["--grid", "smoke", "--cluster", str(cluster), "--out", str(tmp_path / "out"), "--dry-run"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--slurm", "--dry-run"], "--cluster is missing"),
        (["--watch"], "--watch goes with --status"),
        (["--status", "--watch", "--json"], "--json and --watch exclude one another"),
        (["--cancel"], "no launcher is at work"),
        (["--collect"], "there are no results in"),
        (["--gpus", "0", "--dry-run"], "--gpus is 0"),
        (["--days", "-1", "--dry-run"], "--days is -1"),
        (["--slurm", "--resume", "small-*"], "holds no study on Slurm"),
    ],
)
def test_verbs_say_what_they_miss(tmp_path, arguments, said):
    with pytest.raises(UserError, match=said):
        main(["--grid", "smoke", "--out", str(tmp_path / "out"), *arguments])


def test_nodes_are_left_out_while_they_fail_and_never_too_many(tmp_path):
    nodes.note_failure(tmp_path, ["n1", "n2"], "812.0", "killed by SIGKILL")
    assert nodes.excluded(tmp_path, num_nodes=8) == []
    nodes.note_failure(tmp_path, ["n1"], "812.0", "said twice of one start")
    assert nodes.excluded(tmp_path, num_nodes=8) == []
    nodes.note_failure(tmp_path, ["n1", "n2"], "813.0", "killed by SIGKILL")
    nodes.note_success(tmp_path, ["n2", "n5"], "814.0")
    assert nodes.excluded(tmp_path, num_nodes=8) == ["n1"]
    for node in ("n3", "n4", "n6"):
        for job in ("815.0", "816.0"):
            nodes.note_failure(tmp_path, [node], job, "killed by SIGKILL")
    assert len(nodes.excluded(tmp_path, num_nodes=8)) == 2
    assert nodes.excluded(tmp_path, num_nodes=64) == ["n1", "n3", "n4", "n6"]
    record = Record.of(tmp_path, "nodes")
    record.path.write_text(record.path.read_text().replace('"time": 1', '"time": 0'))
    assert not nodes.has_failures(tmp_path)
