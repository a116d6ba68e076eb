"""The job scripts of a study, for a person to read and for Slurm to run. All that comes from a file is quoted here.

write_scripts(study)      # prepare, train-<run>, evaluate, report, keeper: .sbatch files in runs/<grid>/slurm
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from launchers.plan import REPOSITORY
from launchers.slurm.allocation import Allocation
from launchers.slurm.segment import KEEPER, KEEPER_FILE
from launchers.slurm.site import Evaluation, Preparation, SlurmCluster
from launchers.slurm.study import Study
from tokenizer import files
from tokenizer.cli import UserError

EVALUATION_TRIES = 6
"""Starts without progress of one evaluation at most: it has no state to measure progress by."""

WAIT_SECONDS = 120
"""How long the other nodes of a run may go on after the first has ended; then srun ends them."""

KEEPER_TIME = "00:15:00"
"""Time limit of one look."""

LINE_LENGTH = 100
"""Columns of a line in a job script, where its words allow that."""


def write_scripts(study: Study) -> None:
    """Write every job script of the study."""
    directory = study.directory
    for run in study.launch.runs:
        files.write_text(train_script(study, run), train_text(study, run))
    files.write_text(directory / "prepare.sbatch", prepare_text(study))
    files.write_text(directory / "evaluate.sbatch", evaluate_text(study))
    files.write_text(directory / "report.sbatch", report_text(study))
    files.write_text(directory / KEEPER, keeper_text(study))
    keeper = {"name": study.job_name("keeper"), "seconds": study.cluster.site.keeper_seconds}
    files.write_json(directory / KEEPER_FILE, keeper)


def train_script(study: Study, run: str) -> Path:
    """Path of a run's job script."""
    return study.directory / f"train-{run}.sbatch"


def train_text(study: Study, run: str) -> str:
    """The job script that trains a run, segment by segment."""
    site, item = study.cluster.site, study.launch.allocations[run]
    step = study.plan.by_name[f"train {run}"]
    cpus = site.training.cpus_per_process * item.processes_per_node
    options = [
        *(f"--nodes={item.nodes}", "--ntasks-per-node=1", f"--cpus-per-task={cpus}"),
        *([f"--gpus-per-node={item.gpus_per_node}"] if item.gpus_per_node else []),
        *([f"--mem={site.training.memory}"] if site.training.memory else []),
        f"--time={site.time_limit}",
        "--requeue",
        f"--signal=B:USR1@{site.signal_seconds}",
    ]
    launch = ["--nproc-per-node", str(item.processes_per_node)]
    meeting = []
    if item.nodes > 1:
        launch += ["--nnodes", str(item.nodes)]
        meeting = _meeting(site.master_host, site.master_port)
    training = ["--grid", str(study.folder.grid_file), "--run", run, "--out", str(study.folder.path), *item.overrides]
    words = [
        *_srun(study, item.nodes, cpus, f"--wait={WAIT_SECONDS}", "--kill-on-bad-exit=0"),
        *_program(study, gpu=bool(item.gpus_per_node)),
        *("-m", "recipes.launch", *launch),
    ]
    address = ' --master-addr "$master" --master-port "$port"' if item.nodes > 1 else ""
    output = study.folder.checkpoint(run, study.grid.run(run).settings.checkpoint_steps[-1]) / "manifest.json"
    segment = [
        *_segment(study, step.name, step.log),
        *(
            "--done",
            str(output),
            "--run-directory",
            str(study.folder.path / run),
            "--script",
            str(train_script(study, run)),
            "--",
        ),
    ]
    threads = site.training.cpus_per_process if not item.gpus_per_node else 1
    return _lines(
        [f"Trains {run} of {study.grid.name}: {_described(item, site.time_limit)}"],
        _options(study, run, step.log, site.partition, options),
        [
            *_setting(study, {"OMP_NUM_THREADS": str(threads)}),
            *meeting,
            f"exec {_shell(segment)} \\\n    {_shell(words)}{address} \\\n    -- {_shell(training)}",
        ],
    )


def prepare_text(study: Study) -> str:
    """The job script of the steps before the trainings; what is there is not made again."""
    wanted = study.cluster.site.preparation
    log = study.folder.logs / "prepare.log"
    body = list(_setting(study, {"OMP_NUM_THREADS": "1"}))
    for step in study.preparation:
        command = [*_srun(study, 1, wanted.cpus), *_program(study, gpu=False), *step.command[1:]]
        body.append(f"{_shell([*_segment(study, step.name, log), '--'])} \\\n    {_shell(command)}")
    return _lines(
        [f"Before any run of {study.grid.name}: {', '.join(step.name for step in study.preparation)}."],
        _options(study, "prepare", log, wanted.partition or study.cluster.site.partition, _small(wanted)),
        body,
    )


def evaluate_text(study: Study) -> str:
    """The job script of the array that evaluates checkpoints, one a member."""
    wanted = study.cluster.site.evaluation
    step = next(step for step in study.plan if step.phase == "evaluate")
    logs = shlex.quote(str(study.folder.logs))
    segment = (
        f"{_shell([*_launcher(), '-m', 'launchers.slurm.segment', '--slurm', str(study.directory)])} "
        f'--step "evaluate $run step $step" --log "$log" --done "$result" --tries {EVALUATION_TRIES} --'
    )
    command = _shell([*_srun(study, 1, wanted.cpus), *_program(study, gpu=wanted.gpus > 0), *step.command[1:]])
    return _lines(
        [
            f"Evaluates checkpoints of {study.grid.name}: member i of the array takes line i + 1 of checkpoints.tsv.",
            "The keeper submits those that are whole and have no result.",
        ],
        _options(
            study,
            "evaluate",
            study.folder.logs / "evaluate.log",
            wanted.partition or study.cluster.site.partition,
            [*_small(wanted), *([f"--gpus-per-node={wanted.gpus}"] if wanted.gpus else [])],
        ),
        [
            *_setting(study, {"OMP_NUM_THREADS": str(wanted.cpus), "TOKENIZERS_PARALLELISM": "false"}),
            f'line=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {shlex.quote(str(study.checkpoints_file))})',
            "IFS=$'\\t' read -r run step checkpoint result <<<\"$line\"",
            f"log={logs}/evaluate-$run-step_$step.log",
            'exec >>"$log" 2>&1',
            f'exec {segment} \\\n    {command} "$checkpoint"',
        ],
    )


def report_text(study: Study) -> str:
    """The job script that writes the report from the results that there are."""
    wanted = study.cluster.site.evaluation
    step = study.plan.by_name["write the report"]
    command = [*_srun(study, 1, wanted.cpus), *_program(study, gpu=False), *step.command[1:]]
    return _lines(
        [f"Writes the report of {study.grid.name} from the results that there are."],
        _options(study, "report", step.log, wanted.partition or study.cluster.site.partition, _small(wanted)),
        [*_setting(study, {"OMP_NUM_THREADS": "1"}), f"exec {_shell(command)}"],
    )


def keeper_text(study: Study) -> str:
    """The job script that submits what is missing, again and again until nothing is."""
    site = study.cluster.site
    keeper = study.directory / KEEPER
    return _lines(
        [
            f"Looks every {site.keeper_seconds} s what of {study.grid.name} is to be submitted: evaluations,",
            "the report, jobs that have vanished. First it submits the next look, so that the chain goes on.",
        ],
        _options(
            study,
            "keeper",
            study.folder.logs / "keeper.log",
            site.preparation.partition or site.partition,
            ["--ntasks=1", "--cpus-per-task=1", f"--time={KEEPER_TIME}", "--dependency=singleton", "--requeue"],
        ),
        [
            f"next=$(sbatch --parsable --begin=now+{site.keeper_seconds} {shlex.quote(str(keeper))}) || next=",
            *_setting(study, {}),
            f"exec {_shell([*_launcher(), '-m', 'launchers.slurm.keeper', str(study.folder.path)])} \\\n"
            '    --next "${next%%;*}"',
        ],
    )


def _lines(comments: Sequence[str], options: Iterable[str], body: Iterable[str]) -> str:
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *(f"# {line}" for line in comments),
            "# Written by launchers/slurm_grid.sh, which writes it again at every launch.",
            *(f"#SBATCH {option}" for option in options),
            "set -eo pipefail",
            # Until the program below heeds it: a warning must not end a job that is just starting.
            "trap '' USR1",
            *body,
            "",
        ]
    )


def _described(item: Allocation, time_limit: str) -> str:
    words = f"{item.nodes} x {item.processes_per_node} processes (nodes x each), {item.layout}"
    if item.days is None:
        return words
    return f"{words};\n# about {item.days:.1f} days in segments of at most {time_limit}."


def _options(study: Study, what: str, log: Path, partition: str | None, wanted: Sequence[str]) -> list[str]:
    """Options of sbatch, quoted as Slurm reads them."""
    site = study.cluster.site
    options = [f"--job-name={study.job_name(what)}", f"--output={str(log).replace('%', '%%')}", "--open-mode=append"]
    for name, value in (("partition", partition), ("account", site.account), ("qos", site.qos)):
        options += [f"--{name}={value}"] if value else []
    options += wanted
    options += [f"--{name}={value}" if value else f"--{name}" for name, value in site.options.items()]
    return [_sbatch_quoted(option) for option in options]


def _sbatch_quoted(option: str) -> str:
    if re.fullmatch(r"[\w./:,@%+=*\[\]()|&!-]+", option):
        return option
    name, _, value = option.partition("=")
    escaped = re.sub(r'(["\\])', r"\\\1", value)
    return f'{name}="{escaped}"'


def _small(wanted: Preparation | Evaluation) -> list[str]:
    memory = [f"--mem={wanted.memory}"] if wanted.memory else []
    return ["--ntasks=1", f"--cpus-per-task={wanted.cpus}", *memory, f"--time={wanted.time_limit}", "--requeue"]


def _setting(study: Study, variables: dict[str, str]) -> Iterable[str]:
    """Modules, variables and directory of a job."""
    site = study.cluster.site
    for module in site.modules:
        yield f"module load {shlex.quote(module)}"
    for name, value in {**variables, **site.variables}.items():
        yield f"export {name}={shlex.quote(value)}"
    yield f"export PYTHONPATH={shlex.quote(str(REPOSITORY))}${{PYTHONPATH:+:$PYTHONPATH}}"
    yield f"cd {shlex.quote(str(REPOSITORY))}"


def _meeting(host: str | None, port: int) -> list[str]:
    master = shlex.quote(host) if host else '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
    return [f"master={master}", f"port=$(({port} + SLURM_JOB_ID % 1000))"]


def _launcher() -> list[str]:
    return [sys.executable, "-P"]


def _segment(study: Study, step: str, log: Path) -> list[str]:
    words = [*_launcher(), "-m", "launchers.slurm.segment", "--slurm", str(study.directory)]
    return [*words, "--step", step, "--log", str(log)]


def _srun(study: Study, nodes: int, cpus: int, *options: str) -> list[str]:
    environment = study.cluster.site.environment
    words = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", f"--cpus-per-task={cpus}", *options]
    if environment.kind == "pyxis":
        mounts = ",".join(f"{path}:{path}" for path in _mounts(study))
        words += [f"--container-image={environment.image}", f"--container-mounts={mounts}"]
        words += [f"--container-workdir={REPOSITORY}"]
    return words


def _program(study: Study, gpu: bool) -> list[str]:
    """What stands before the arguments of Python inside a job."""
    environment = study.cluster.site.environment
    if environment.kind == "apptainer":
        assert environment.image is not None
        binds = ",".join(_mounts(study))
        words = ["apptainer", "exec", *(["--nv"] if gpu else []), "--bind", binds, "--pwd", str(REPOSITORY)]
        return [*words, environment.image, environment.python or "python3"]
    return [environment.python or ("python3" if environment.kind == "pyxis" else sys.executable)]


def _mounts(study: Study) -> list[str]:
    """Directories that a container must see."""
    paths = [str(path) for path in (REPOSITORY, study.folder.path, *study.inputs.given)]
    paths += study.cluster.site.environment.mounts
    return list(dict.fromkeys(paths))


def check_mounts(cluster: SlurmCluster, paths: Sequence[Path]) -> None:
    """UserError for a path that a container's option for mounts cannot hold."""
    if cluster.site.environment.kind == "plain":
        return
    for path in (*map(str, paths), *cluster.site.environment.mounts):
        if set(path) & set(",: "):
            raise UserError(f"the path {path!r} has a comma, a colon or a space in it, which no container can mount")


def _shell(words: Sequence[str]) -> str:
    """Words quoted for bash; long lines are broken before an option or a program."""
    lines = [""]
    for place, word in enumerate(words):
        quoted = shlex.quote(word)
        breaks = word.startswith("-") or words[place - 1] == "--"
        if lines[-1] and breaks and len(lines[-1]) + len(quoted) > LINE_LENGTH:
            lines.append("")
        lines[-1] += f" {quoted}" if lines[-1] else quoted
    return " \\\n    ".join(lines)
