"""A launch on Slurm: everything is checked and shown before anything is submitted.

launch(Request(grid, runs, folder, cluster_file, inputs, ...), console)
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from rich.console import Console
from rich.table import Table

from launchers.checks import check_disk, check_inputs
from launchers.directory import locked, write_grid, write_sources
from launchers.plan import GridDirectory, Inputs
from launchers.slurm import commands
from launchers.slurm.allocation import Allocation, allocate, days_if_empty
from launchers.slurm.reconcile import Reconciler, cancel
from launchers.slurm.sbatch import check_mounts, train_script, write_scripts
from launchers.slurm.site import SlurmCluster, existing_image, load_slurm_cluster, seconds_of
from launchers.slurm.study import Launch, Study, check_names, listed_checkpoints
from launchers.status import format_duration
from recipes.grid import Grid, Run
from recipes.planner import DAYS
from tokenizer.cli import UserError

LOCK_SECONDS = 60.0
"""How long a launch waits for a keeper that is at work in the directory."""


@dataclass(frozen=True)
class Request:
    """What a person asked for."""

    grid: Grid
    runs: tuple[Run, ...]
    folder: GridDirectory
    cluster: str | None
    """Cluster file; that of the last launch if none is given."""
    inputs: Inputs
    days: float = DAYS
    gpus: int | None = None
    dry_run: bool = False
    yes: bool = False


def launch(request: Request, console: Console) -> int:
    """Check, show, ask, submit. UserError for what stands against it."""
    before = Study.read(request.folder) if request.folder.is_on_slurm else None
    cluster = _cluster(request, before)
    sources: dict[str, Any] = {}
    if not request.dry_run:
        sources = check_inputs(request.grid, request.folder, request.inputs)
        check_disk(request.runs, request.folder, sources["bytes"], len(request.runs))
    check_names(request.folder, request.runs, request.inputs.given)
    check_mounts(cluster, (request.folder.path, *request.inputs.given))
    if not request.dry_run:
        _check_environment(cluster)
    allocations = _allocations(request, cluster, before)
    with locked(request.folder, LOCK_SECONDS):
        study = _study(request, cluster, allocations, before)
        study.write_checkpoints()
        write_scripts(study)
        refused = _refusal(study)
        if refused and not request.dry_run:
            raise refused
        _show(request, study, console)
        if request.dry_run:
            if refused:
                console.print(f"Slurm would refuse it: {refused}", highlight=False, soft_wrap=True, markup=False)
            console.print(f"Job scripts: {study.directory}. Nothing was submitted.", highlight=False, soft_wrap=True)
            return 0
        if not request.yes and not _agreed(len(request.runs)):
            console.print("Nothing was submitted.")
            return 0
        write_grid(request.grid, request.folder)
        write_sources(sources, request.folder)
        study.write()
        return submit(study, [run.name for run in request.runs], console)


def submit(study: Study, runs: Sequence[str], console: Console) -> int:
    """Submit what is missing; the steps of `runs` are tried again although they were given up or cancelled."""
    asked = {step.name for step in study.plan if step.run is None or step.run in runs}
    reconciler = Reconciler(study, asked)
    for line in reconciler.submit_missing():
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    live = sum(name != "keeper" for name in reconciler.queue)
    done = sum(step.done() for step in study.plan)
    console.print(
        f"{len(reconciler.submitted)} submitted; {live} steps were in the queue before, {done} of {len(study.plan)} "
        "are done. Watch with --status --watch.",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def resume(folder: GridDirectory, runs: Sequence[Run], console: Console) -> int:
    """Submit runs again that were given up or cancelled."""
    study = Study.read(folder)
    if unknown := [run.name for run in runs if run.name not in study.launch.runs]:
        raise UserError(f"{', '.join(unknown)} was not launched in {folder.path}; launch it with --runs")
    with locked(folder, LOCK_SECONDS):
        return submit(study, [run.name for run in runs], console)


def cancel_study(folder: GridDirectory, runs: Sequence[Run] | None, console: Console) -> int:
    """Cancel the jobs of some runs, or of all and the keeper with them."""
    study = Study.read(folder)
    names = None if runs is None else {run.name for run in runs}
    with locked(folder, LOCK_SECONDS):
        ids = cancel(study, lambda step: names is None or step.run in names)
    console.print(f"Cancelled {len(ids)} jobs. What was saved stays; go on with --resume RUN or a new launch.")
    return 0


def _cluster(request: Request, before: Study | None) -> SlurmCluster:
    if request.cluster is not None:
        return load_slurm_cluster(request.cluster)
    if before is None:
        raise UserError("--cluster is missing; give a cluster file, as launchers/clusters/h100.yaml")
    return before.cluster


def _allocations(request: Request, cluster: SlurmCluster, before: Study | None) -> dict[str, Allocation]:
    """An allocation for each run. Those of the last launch are kept while nothing has changed that they follow from."""
    decided_on = _decided_on(request, cluster)
    kept: Mapping[str, Allocation] = {}
    if before is not None and before.launch.decided_on == decided_on:
        kept = before.launch.allocations
    new = [run for run in request.runs if run.name not in kept]
    found = {item.run: item for item in allocate(new, cluster, request.days, request.gpus)}
    return {**(before.launch.allocations if before else {}), **found}


def _decided_on(request: Request, cluster: SlurmCluster) -> str:
    settings = sorted((run.name, repr(run.settings)) for run in request.grid.runs)
    text = repr((cluster.machine, cluster.site.cpu, request.days, request.gpus, settings))
    return hashlib.sha256(text.encode()).hexdigest()


def _study(
    request: Request,
    cluster: SlurmCluster,
    allocations: Mapping[str, Allocation],
    before: Study | None,
) -> Study:
    known = before.launch.runs if before else ()
    names = tuple(dict.fromkeys([*known, *(run.name for run in request.runs)]))
    inputs = request.inputs
    corpus, benchmarks = (str(path) if path in inputs.given else None for path in (inputs.corpus, inputs.benchmarks))
    launch_ = Launch(corpus, benchmarks, names, allocations, _decided_on(request, cluster))
    return Study(request.folder, request.grid, cluster, launch_)


def _check_environment(cluster: SlurmCluster) -> None:
    """UserError where it can be seen from here that the programs of the jobs will not start."""
    environment = cluster.site.environment
    image = existing_image(environment)
    if environment.kind == "pyxis" and "--container-image" not in commands.call("srun", "--help"):
        raise UserError(f"{cluster.path}: environment.kind is pyxis, but srun here has no --container-image")
    if environment.kind == "plain" and environment.python:
        _check_starts([environment.python, "-c", ""], cluster)
    if environment.kind == "apptainer" and image is not None and shutil.which("apptainer"):
        python = environment.python or "python3"
        _check_starts(["apptainer", "exec", str(image), python, "-c", "import torch, megatron.core"], cluster)


def _check_starts(command: Sequence[str], cluster: SlurmCluster) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        said = done.stderr.strip().splitlines()[-1:] if done.returncode else None
    except (OSError, subprocess.TimeoutExpired) as error:
        said = [str(error)]
    if said is not None:
        raise UserError(f"{cluster.path}: environment: {command[0]} does not start: {' '.join(said)}")


def _refusal(study: Study) -> UserError | None:
    """What Slurm has against the study's jobs, if anything."""
    try:
        _check_slurm(study)
    except UserError as error:
        return error
    return None


def _check_slurm(study: Study) -> None:
    """UserError where Slurm would refuse a job: partition, account, time limit, nodes that it does not have."""
    _check_partitions(study)
    most = int(commands.config().get("MaxArraySize", "1001"))
    if (count := len(listed_checkpoints(study.checkpoints_file))) > most:
        raise UserError(
            f"{count} checkpoints are more than an array may have here (MaxArraySize {most}); lower num_checkpoints"
        )
    scripts = {item.nodes: train_script(study, item.run) for item in study.launch.allocations.values()}
    others = [study.directory / f"{name}.sbatch" for name in ("prepare", "evaluate", "report", "keeper")]
    for script in (*scripts.values(), *others):
        if refused := commands.refusal(script):
            raise UserError(f"Slurm refuses {script.name}: {refused}; see the cluster file")


def _check_partitions(study: Study) -> None:
    """UserError for a partition that there is not, or one that ends jobs sooner: Slurm lets such jobs wait for ever."""
    site, known = study.cluster.site, commands.partitions()
    default = next((name for name, fields in known.items() if fields.get("Default") == "YES"), "")
    for key, part in (("partition", site), ("preparation", site.preparation), ("evaluation", site.evaluation)):
        name = part.partition or site.partition or default
        if name not in known:
            there = ", ".join(known)
            raise UserError(
                f"{study.cluster.path}: {key}: there is no partition {name or '(default)'}; there are {there}"
            )
        most = known[name].get("MaxTime", "UNLIMITED")
        if most[:1].isdigit() and seconds_of(part.time_limit) > seconds_of(most):
            raise UserError(
                f"{study.cluster.path}: {key}: time_limit {part.time_limit} is above the {most} that partition {name} "
                "allows; lower it"
            )


def _show(request: Request, study: Study, console: Console) -> None:
    """The plan: each run with nodes, layout, segments and cost; when all would be done."""
    site, chosen = study.cluster.site, [study.launch.allocations[run.name] for run in request.runs]
    modelled = study.cluster.machine is not None
    table = Table(title=f"{study.grid.name} on {study.cluster.path.stem}, in {study.folder.path}", title_justify="left")
    for heading in ("run", "nodes", "layout", "checkpoints", "days", "segments", "GPU-hours"):
        table.add_column(heading, justify="left" if heading in ("run", "layout") else "right")
    for run, item in zip(request.runs, chosen, strict=True):
        known = item.days is not None
        table.add_row(
            item.run,
            f"{item.nodes} x {item.processes_per_node}",
            item.layout,
            str(len(run.settings.checkpoint_steps)),
            f"{item.days:.2f}" if known else "",
            str(item.segments(site.time_limit)) if known else "",
            f"{item.gpu_hours:,.0f}" if known else "",
        )
    if modelled:
        hours = sum(item.gpu_hours for item in chosen)
        table.add_section()
        table.add_row(
            "together", "", "", "", "", str(sum(i.segments(site.time_limit) for i in chosen)), f"{hours:,.0f}"
        )
    console.print(table)
    for line in _sentences(request, study, chosen):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _sentences(request: Request, study: Study, chosen: Sequence[Allocation]) -> list[str]:
    site = study.cluster.site
    minutes = max((run.settings.save_every_minutes for run in request.runs), default=0.0)
    lines = [
        f"A job that dies without a warning loses at most {minutes:g} minutes of training and its start; one that is "
        f"warned ({site.signal_seconds} s before its time limit, or by preemption) loses its start alone."
        if minutes
        else "A job that dies without a warning goes on from its last checkpoint (save_every_minutes is 0).",
        f"Evaluations: {sum(len(run.settings.checkpoint_steps) for run in request.runs)} jobs, "
        f"{site.evaluation.at_once} at once at most; looked after every {format_duration(site.keeper_seconds)}.",
    ]
    nodes = site.nodes or _partition_nodes(site.partition)
    if study.cluster.machine is not None and nodes:
        too_large = [item.run for item in chosen if item.nodes > nodes]
        if too_large:
            lines.append(f"{', '.join(too_large)} want more than the {nodes} nodes that there are.")
        else:
            days = days_if_empty(chosen, nodes)
            end = datetime.now().astimezone() + timedelta(days=days)
            lines.append(f"On {nodes} nodes with an empty queue all runs end in {days:.1f} days, {end:%Y-%m-%d %H:%M}.")
    return lines


def _partition_nodes(name: str | None) -> int:
    try:
        known = commands.partitions()
    except UserError:
        return 0
    chosen = known.get(name or "") or next((p for p in known.values() if p.get("Default") == "YES"), {})
    return int(chosen.get("TotalNodes", 0))


def _agreed(count: int) -> bool:
    if not sys.stdin.isatty():
        raise UserError("nobody is there to ask; give --yes to submit, or --dry-run to look only")
    return input(f"Submit the jobs of {count} run{'s' if count > 1 else ''}? [y/N] ").strip().lower() in ("y", "yes")
