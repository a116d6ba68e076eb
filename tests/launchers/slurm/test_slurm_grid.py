"""A grid on a real Slurm, through everything that happens to jobs in weeks; its programs are stand-ins.

Whatever happens, every run ends complete, each checkpoint is evaluated once, and the losses are those of a grid that
nothing disturbed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time

import pytest
from played_study import PATIENCE, PlayedStudy, runs_named

# Through disturbances: one study, a run for each.


def preempt(slurm, study, run):
    """A job in a higher partition takes the node."""
    node = study.job(run)["nodes"]
    slurm.submit("--partition=high", f"--nodelist={node}", "--exclusive", "--wrap", "sleep 1")


def break_node(slurm, study, run):
    """The node goes down under it."""
    slurm.set_node(study.job(run)["nodes"], "down")


def warn(slurm, study, run):
    """USR1, to the job's steps."""
    slurm.cancel("--signal=USR1", study.job(run)["id"])


def warn_batch(slurm, study, run):
    """USR1 to the batch script, as Slurm does before a time limit."""
    slurm.cancel("--signal=USR1", "--batch", study.job(run)["id"])


def kill_rank(slurm, study, run):
    """kill -9 of the process that trains."""
    pids = [line["pid"] for line in study.events("started", kind="train", run=run)]
    os.kill(pids[-1], signal.SIGKILL)


def kill_script(slurm, study, run):
    """kill -9 of the job's own program, and so of the batch script."""
    (pid,) = [pid for pid in slurm.job_processes("launchers.slurm.segment") if f"train {run}" in command_of(pid)]
    os.kill(pid, signal.SIGKILL)


def leave_alone(slurm, study, run):
    """Nothing happens."""


DISTURBANCES = {
    "preempted": preempt,
    "on-a-broken-node": break_node,
    "warned": warn,
    "warned-by-batch": warn_batch,
    "killed-rank": kill_rank,
    "killed-script": kill_script,
    "alone": leave_alone,
}


def command_of(pid: int) -> str:
    """A process's command line."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@pytest.fixture(scope="module")
def disturbed(cluster, tmp_path_factory):
    """The study after all of it, slurmctld restarted on top, and done."""
    # A node for each, so that one's accident is not another's.
    site = {"training": {"cpus_per_process": 40, "memory": None}}
    study = PlayedStudy(cluster, tmp_path_factory.mktemp("disturbed"), runs_named(*DISTURBANCES), site)
    study.behave(held={name: 7 for name in DISTURBANCES if name != "alone"})
    study.launch()
    for name in DISTURBANCES:
        study.wait_for_step(name, 7, PATIENCE)
    for name, disturb in DISTURBANCES.items():
        disturb(cluster, study, name)
    cluster.stop_slurmctld()
    time.sleep(1)
    cluster.start_slurmctld()
    study.wait_until_done(PATIENCE)
    yield study
    cluster.clear()


def test_every_disturbed_run_ends_as_if_nothing_had_happened(disturbed):
    disturbed.check()
    assert f"{2 * len(DISTURBANCES)} results" in disturbed.folder.report_page.read_text()


@pytest.mark.parametrize("run", DISTURBANCES)
def test_a_disturbed_run_goes_on_where_it_was(disturbed, run):
    """From the state it saved when it was told to stop, or from the checkpoint before."""
    starts = [line["step"] for line in disturbed.events("started", kind="train", run=run)]
    if run == "alone":
        assert starts == [0]
    elif run in ("warned", "warned-by-batch"):
        assert starts == [0, 8]
    else:
        assert starts in ([0, 5], [0, 8])
    line = disturbed.status_of(run)
    assert line["state"] == "finished" and line["restarts"] == len(starts) - 1
    assert line["checkpoints"] == line["checkpoints_evaluated"] == 2


def test_no_job_failed_but_those_that_were_killed(disturbed):
    by_state = {}
    for line in disturbed.slurm.job_history():
        if disturbed.grid.name in line["Name"]:
            by_state.setdefault(line["JobState"], []).append(line["Name"].rpartition("-")[0])
    failed = {name for state, names in by_state.items() if state == "FAILED" for name in names}
    assert failed <= {"smoke-killed-script"}


def test_a_second_launch_submits_nothing(disturbed):
    before = disturbed.slurm.job_history()
    printed = disturbed.launch().stdout
    assert "0 submitted" in printed
    assert not disturbed.jobs() and disturbed.slurm.job_history() == before


def test_scripts_are_clean(disturbed):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    scripts = sorted((disturbed.folder.path / "slurm").glob("*.sbatch"))
    assert len(scripts) == len(DISTURBANCES) + 4
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# On several nodes.


@pytest.mark.slow
@pytest.mark.parametrize("disturb", [preempt, break_node, warn, warn_batch, kill_rank, kill_script])
def test_a_run_on_several_nodes(slurm, tmp_path, disturb):
    site = {"cpu": {"nodes": 2, "processes_per_node": 2}, "training": {"cpus_per_process": 30, "memory": None}}
    study = PlayedStudy(slurm, tmp_path / "study", runs_named("wide", "beside", micro_batch_size=4), site)
    study.behave(held={"wide": 7})
    study.launch()
    study.wait_for_step("wide", 7, PATIENCE)
    if disturb in (preempt, break_node):
        nodes = slurm.run("scontrol", "show", "hostnames", study.job("wide")["nodes"]).split()
        study_of_one_node(study, nodes[1], disturb)
    else:
        disturb(slurm, study, "wide")
    study.wait_until_done(PATIENCE)
    study.check()


def study_of_one_node(study, node, disturb):
    """The accident of a job's second node."""
    if disturb is break_node:
        study.slurm.set_node(node, "down")
    else:
        study.slurm.submit("--partition=high", f"--nodelist={node}", "--exclusive", "--wrap", "sleep 1")


@pytest.mark.slow
def test_a_time_limit(slurm, tmp_path):
    """Of a minute, with Slurm's own warning: the run takes several segments."""
    site = {"time_limit": "00:01:00", "signal_seconds": 20}
    study = PlayedStudy(slurm, tmp_path / "study", runs_named("long"), site)
    study.behave(training_seconds=100)
    study.launch()
    study.wait_until_done(300)
    study.check()
    stopped = study.events("stopped", run="long")
    assert stopped, "the time limit was never met"
    starts = [line["step"] for line in study.events("started", kind="train", run="long")]
    assert starts == [0, *(line["step"] for line in stopped)]
    assert not [line for line in slurm.job_history() if line["JobState"] == "TIMEOUT"]


@pytest.mark.slow
def test_slurmctld_is_killed(slurm, study):
    """It comes back with the state of some seconds before: jobs that have ended since seem to run."""
    study.behave(training_seconds=20)
    study.launch()
    study.wait_for_step("small-20480", 7, PATIENCE)
    slurm.stop_slurmctld(signal.SIGKILL)
    time.sleep(3)
    slurm.start_slurmctld()
    # What an operator does, or Slurm itself within half an hour: each node tells which jobs it has.
    slurm.wait(lambda: slurm.run("scontrol", "reconfigure", check=False) or study.is_done(), 300, study.describe)
    study.check()


# What does not end by itself.


@pytest.mark.slow
def test_a_crash_loop_is_given_up_with_its_reason(slurm, tmp_path):
    study = PlayedStudy(slurm, tmp_path / "study", runs_named("crashing", "sound"))
    study.behave(crashing=["crashing"], training_seconds=0.5)
    study.launch()
    slurm.wait(lambda: not study.jobs(), PATIENCE, study.describe)
    assert len(study.events("started", kind="train", run="crashing")) == 3
    line = study.status_of("crashing")
    assert line["state"] == "failed" and "made to crash" in line["reason"] and "3 starts" in line["reason"]
    sound = study.status_of("sound")
    assert sound["state"] == "finished" and sound["checkpoints_evaluated"] == 2
    assert "2 results" in study.folder.report_page.read_text()
    # A person mends it and asks again.
    study.behave()
    study.cli("--resume", "crashing")
    study.wait_until_done(PATIENCE)
    study.check()


@pytest.mark.slow
def test_a_mistake_is_given_up_and_a_rerun_tries_again(slurm, tmp_path):
    study = PlayedStudy(slurm, tmp_path / "study", runs_named("wrong"))
    study.behave(refusals={"wrong": "the loss is nan; skip_steps=[3]"})
    study.launch()
    slurm.wait(lambda: not study.jobs(), PATIENCE, study.describe)
    # Twice, for what looks like one may be a process of the last start that still holds the run.
    assert len(study.events("started", kind="train")) == 2
    line = study.status_of("wrong")
    assert line["state"] == "failed" and "skip_steps=[3]" in line["reason"]
    study.behave()
    study.launch()
    study.wait_until_done(PATIENCE)
    study.check()


@pytest.mark.slow
def test_a_node_that_failed_twice_is_left_out(slurm, tmp_path):
    study = PlayedStudy(slurm, tmp_path / "study", runs_named("moving"))
    study.behave(bad_nodes=["node1"])
    study.launch()
    study.wait_until_done(PATIENCE)
    nodes = [line["node"] for line in study.events("started", kind="train")]
    assert nodes.count("node1") == 2 and nodes[-1] != "node1"
    study.check()


# The paper's grid.


@pytest.mark.slow
def test_the_paper_grid_with_a_fifth_of_its_jobs_killed(slurm, tmp_path, repository):
    text = (repository / "recipes" / "grids" / "paper.yaml").read_text()
    text = text.replace("limit: null ", "tasks: [hellaswag]\n  limit: null ")
    site = {
        "training": {"cpus_per_process": 1, "memory": None},
        "evaluation": {"gpus": 0, "cpus": 1, "memory": None, "time_limit": "00:10:00", "at_once": 16},
        "keeper_seconds": 2,
    }
    study = PlayedStudy(slurm, tmp_path / "study", text, site, top={"like": "dgx-h100"}, room=True)
    study.behave(
        training_seconds=2.0, deaths=dict.fromkeys(("train", "evaluate", "tokenizer", "encode", "index", "report"), 0.2)
    )
    started = time.monotonic()
    study.launch("--days", "365")
    answered = time.monotonic() - started
    killed = []

    def is_done_although_scripts_are_killed() -> bool:
        """Every other second the program of a job, whichever it is, is killed as well, once there are many."""
        if time.monotonic() - started > 2 * len(killed) and study.events("trained"):
            programs = [pid for pid in slurm.job_processes("-m launchers.") if len(killed) < 60]
            for pid in random.sample(programs, min(1, len(programs))):
                killed.append(command_of(pid))
                os.kill(pid, signal.SIGKILL)
        return study.is_done()

    slurm.wait(is_done_although_scripts_are_killed, 600 - answered, study.describe)
    print(f"the launch answered after {answered:.1f} s, all was done after {time.monotonic() - started:.0f} s")
    print(
        f"{len(study.events('started'))} starts, {len(study.events('died'))} of them killed, and {len(killed)} scripts"
    )
    assert len(study.grid.runs) == 31 and len(study.checkpoints()) == 422
    study.check()
    status = json.loads(study.cli("--status", "--json").stdout)
    assert all(line["state"] == "finished" for line in status["runs"])
