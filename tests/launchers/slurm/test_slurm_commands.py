"""What a person does with a study on Slurm: launch twice, cancel, resume; and what is refused before it starts."""

from __future__ import annotations

import time

import pytest
from played_study import PATIENCE, PlayedStudy, runs_named, smoke_with


@pytest.mark.slow
def test_a_rerun_submits_nothing_twice(study):
    """Neither while runs wait, nor while they run, nor with some done."""
    study.behave(held={"small-20480": 7, "small-40960": 7})
    study.launch()
    study.launch()
    study.wait_for_step("small-20480", 7, PATIENCE)
    study.launch()
    assert len(study.jobs("small-20480")) == len(study.jobs("small-40960")) == 1
    study.release()
    study.wait_until_done(PATIENCE)
    starts = study.events("started", kind="train")
    assert len(starts) == 2
    study.check()


@pytest.mark.slow
def test_cancel_and_resume(study):
    study.behave(held={"small-20480": 7, "small-40960": 7})
    study.launch()
    study.wait_for_step("small-20480", 7, PATIENCE)
    study.wait_for_step("small-40960", 7, PATIENCE)
    study.cli("--cancel")
    study.slurm.wait(lambda: not study.jobs(), 60, study.describe)
    time.sleep(3)
    assert not study.jobs(), "the keeper brought back what was cancelled"
    assert {line["state"] for line in study.status()["runs"]} == {"cancelled"}
    study.cli("--resume", "small-20480")
    study.slurm.wait(lambda: study.folder.result("small-20480", 10).is_file(), PATIENCE, study.describe)
    study.slurm.wait(lambda: not study.jobs(), PATIENCE, study.describe)
    assert study.status_of("small-40960")["state"] == "cancelled"
    study.launch()
    study.wait_until_done(PATIENCE)
    study.check()


@pytest.mark.slow
def test_some_runs_first_then_all(study):
    study.launch("--runs", "*-20480")
    study.slurm.wait(lambda: not study.jobs(), PATIENCE, study.describe)
    assert study.status_of("small-20480")["state"] == "finished"
    assert study.step("small-40960") == 0
    study.launch()
    study.wait_until_done(PATIENCE)
    study.check()


def test_a_dry_run_submits_nothing(study):
    printed = study.launch("--dry-run").stdout
    names = {path.name for path in (study.folder.path / "slurm").iterdir()}
    assert {"prepare.sbatch", "train-small-20480.sbatch", "evaluate.sbatch", "report.sbatch", "keeper.sbatch"} <= names
    assert "small-40960" in printed and not study.jobs()


@pytest.mark.slow
def test_without_documents_the_first_job_makes_the_grid_s_world(study):
    study.cli("--cluster", study.cluster_file, "--yes")
    study.wait_until_done(PATIENCE)
    assert study.folder.world_is_done(study.grid.microworld) and study.status()["world_done"]
    prepare, evaluate = (study.folder.path / "slurm" / f"{name}.sbatch" for name in ("prepare", "evaluate"))
    assert f"--corpus {study.folder.world / 'corpus'}" in prepare.read_text()
    assert f"--data {study.folder.world / 'benchmarks'}" in evaluate.read_text()
    # A launch from memory goes on with the same.
    study.cli("--yes")
    assert not study.jobs("prepare")


@pytest.mark.slow
def test_held_after_a_failed_launch(slurm, study):
    """What Slurm holds because it could not start it is let go; what a person holds is not."""
    study.behave(held={"small-20480": 7})
    study.launch()
    study.wait_for_step("small-20480", 7, PATIENCE)
    job = study.job("small-20480")["id"]
    slurm.run("scontrol", "requeuehold", job)
    slurm.wait(lambda: study.folder.result("small-40960", 20).is_file(), PATIENCE, study.describe)
    time.sleep(3)
    (held,) = study.jobs("small-20480")
    assert held["id"] == job and "held" in held["reason"].lower()
    slurm.run("scontrol", "release", job)
    study.wait_until_done(PATIENCE)
    study.check()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["small-20480", "keeper"])
def test_a_node_that_cannot_start_a_job(slurm, study, what):
    """Slurm drains it and holds the job, be it the keeper; it is let go, and runs elsewhere."""
    study.behave(training_seconds=20)
    study.launch()
    waiting = []
    # One that will not start in this moment: a keeper's successor, a training behind the preparation.
    slurm.wait(
        lambda: waiting.extend(j for j in study.jobs(what) if j["reason"] in ("BeginTime", "Dependency")) or waiting, 30
    )
    job = waiting[0]
    broken = slurm.root / "broken" / job["id"]
    broken.touch()
    slurm.wait(lambda: "drain" in slurm.run("sinfo", "--noheader", "--format=%T"), 60, study.describe)
    broken.unlink()
    study.wait_until_done(PATIENCE)
    study.check()


# Refusals, each before anything is submitted.


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"partition": "gpus"}, ("gpus", "main")),
        ({"account": "nobody's account"}, ("account",)),
        ({"partition": "short", "time_limit": "12:00:00"}, ("time",)),
        ({"cpu": {"nodes": 16, "processes_per_node": 1}}, ("node",)),
        ({"training": {"cpus_per_process": 100, "memory": None}}, ("",)),
        ({"environment": {"python": "/no/such/python"}}, ("/no/such/python",)),
        ({"options": {"constraint": "h100"}}, ("feature",)),
        ({"partion": "main"}, ("partion",)),
    ],
    ids=["partition", "account", "time limit", "nodes", "cores", "python", "constraint", "unknown key"],
)
def test_a_wrong_cluster_file_is_refused_in_a_line(slurm, study, changed, words):
    study.set_cluster(**changed)
    said = study.launch(fails=2).stderr.strip()
    assert said.startswith("error: ") and len(said.splitlines()) == 1
    assert all(word in said.lower() for word in words), said
    assert not slurm.queue() and not study.events()


def test_a_name_that_is_a_command_is_refused(slurm, study):
    study.grid_file.write_text(runs_named("a; rm -rf ~"))
    said = study.launch(fails=2).stderr
    assert said.startswith("error: ") and "cannot name a run" in said
    assert not slurm.queue()


def test_paths_with_anything_in_them(slurm, tmp_path):
    directory = tmp_path / """a b 'c' "d" $HOME `e` %j ; & * (f) ü"""
    study = PlayedStudy(slurm, directory, smoke_with([{"size": "small", "tokens": 20480}]))
    study.behave(training_seconds=0.5)
    study.launch()
    study.wait_until_done(PATIENCE)
    study.check()
    assert (study.folder.logs / "train-small-20480.log").read_text()


def test_a_path_that_slurm_misreads_is_refused(slurm, tmp_path):
    r"""In the name of a log, Slurm takes a \ for an escape."""
    study = PlayedStudy(slurm, tmp_path / "a\\b", runs_named("any"))
    said = study.launch(fails=2).stderr
    assert said.startswith("error: ") and "\\" in said
    assert not slurm.queue()


@pytest.mark.slow
def test_a_variable_reaches_the_job_as_it_stands(slurm, study):
    value = """'; touch "$HOME" `id` \\ %j"""
    study.set_cluster(variables={"ODD": value})
    study.behave(held={"small-20480": 7})
    study.launch()
    study.wait_for_step("small-20480", 7, PATIENCE)
    (pid,) = {line["pid"] for line in study.events("started", kind="train", run="small-20480")}
    with open(f"/proc/{pid}/environ", "rb") as file:
        assert f"ODD={value}".encode() in file.read().split(b"\0")
