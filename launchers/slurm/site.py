"""What the launcher needs to know of a cluster's Slurm: the `slurm` part of a cluster file.

Nothing of it reaches a shell as it stands: options and paths are checked, variables and modules quoted.
launchers/clusters/h100.yaml shows all keys; docs/cluster.md explains them.

    load_site("launchers/clusters/h100.yaml").training.time_limit -> "1-00:00:00"
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recipes.cluster import LIKE, SLURM, Cluster, load_cluster, read_cluster_file
from recipes.settings_file import SettingsFile
from tokenizer.cli import UserError

KINDS = ("plain", "pyxis", "apptainer")
"""Environments that a job's programs run in."""


@dataclass
class Processes:
    """Where there are no GPUs to plan for: nodes and processes of every run."""

    nodes: int = 1
    processes_per_node: int = 1


@dataclass
class Training:
    """Beyond nodes and GPUs, which follow from the layout."""

    cpus_per_process: int = 8
    memory: str | None = None
    """Of a node, as sbatch wants it (``64G``); the partition's default if none is given, 0 for all of it."""


@dataclass
class Preparation:
    """The job that makes tokenizer, data and index."""

    partition: str | None = None
    """Its own, where processors are cheaper; the one of the trainings if none is given."""
    cpus: int = 16
    memory: str | None = "64G"
    time_limit: str = "1-00:00:00"


@dataclass
class Evaluation:
    """The jobs that evaluate one checkpoint each; the report takes the same without GPUs."""

    partition: str | None = None
    gpus: int = 1
    cpus: int = 8
    memory: str | None = "128G"
    time_limit: str = "08:00:00"
    at_once: int = 16
    """Evaluations at once at most, so that trainings are not kept waiting."""


@dataclass
class Environment:
    """What the programs of a job run in. The launcher's own part of a job runs in its own environment."""

    kind: str = "plain"
    """One of `KINDS`: the launcher's own environment, an image through Slurm's pyxis, one through Apptainer."""
    image: str | None = None
    """A .sqsh or .sif file, or what pyxis can pull."""
    mounts: list[str] = field(default_factory=list)
    """Directories to see inside beside the checkout, the study, the documents and the benchmarks."""
    python: str | None = None
    """The interpreter; by default the launcher's own, and ``python3`` in an image."""


@dataclass
class Site:
    """One cluster's Slurm."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time_limit: str = "1-00:00:00"
    """Of one segment of a training; a run takes as many as it needs."""
    signal_seconds: int = 300
    """Before the time limit: the training is told to save and makes way for its next segment."""
    nodes: int | None = None
    """Nodes that the grid may fill, for the finish date; all of the partition if none is given."""
    cpu: Processes = field(default_factory=Processes)
    options: dict[str, str] = field(default_factory=dict)
    """Further options of sbatch for every job: constraint, reservation, ..."""
    training: Training = field(default_factory=Training)
    preparation: Preparation = field(default_factory=Preparation)
    evaluation: Evaluation = field(default_factory=Evaluation)
    keeper_seconds: int = 300
    """Time between two looks at what is to be submitted."""
    master_port: int = 29500
    """Where the processes of a run on several nodes meet: this plus the last three digits of the job's number."""
    master_host: str | None = None
    """The first node of the job if none is given."""
    modules: list[str] = field(default_factory=list)
    """Names for `module load`."""
    variables: dict[str, str] = field(default_factory=dict)
    """Environment of the jobs: NCCL's settings."""
    environment: Environment = field(default_factory=Environment)


@dataclass(frozen=True)
class SlurmCluster:
    """A cluster file as the launcher reads it."""

    path: Path
    site: Site
    machine: Cluster | None
    """The planner's numbers; None for a cluster without GPUs."""
    like: Path | None = None
    """The file whose numbers it takes."""


def load_slurm_cluster(path: str | Path) -> SlurmCluster:
    """Read and check a cluster file, or one of the shipped ones by its bare name. UserError with file and line."""
    source = read_cluster_file(path)
    if SLURM not in source.value:
        raise source.error((), f"there is no `{SLURM}:` in it; launchers/clusters/h100.yaml shows what belongs there")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Site), OmegaConf.create(source.mapping((SLURM,))))
        site = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        place = (SLURM, *str(error.full_key or "").split("."))
        message = str(error).strip().splitlines()[0]
        if error.full_key and "not in" in message:
            message = f"unknown key {str(error.full_key)!r}; launchers/clusters/h100.yaml shows all keys"
        raise source.error(place, message) from None
    assert isinstance(site, Site)
    _check(source, site)
    like = None
    if LIKE in source.value:
        like = read_cluster_file(str(source.value[LIKE]), beside=source.path).path.resolve()
    has_machine = like is not None or "gpus_per_node" in source.value
    return SlurmCluster(source.path, site, load_cluster(source.path) if has_machine else None, like)


def seconds_of(limit: str) -> int:
    """Slurm's time (``D-HH:MM:SS``, ``HH:MM:SS``, ``MM:SS`` or minutes) in seconds; ValueError for anything else."""
    days, dash, rest = limit.rpartition("-")
    if not re.fullmatch(r"\d+(:\d+){0,2}", rest) or (dash and not days.isdigit()):
        raise ValueError(limit)
    numbers = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
        return int(days) * 86400 + hours * 3600 + minutes * 60 + seconds
    if len(numbers) == 1:
        return 60 * numbers[0]
    return sum(number * 60**power for power, number in enumerate(reversed(numbers)))


_WORD = re.compile(r"[\w.,:/@%+=*\[\]()|&!-]+")
_OPTION = re.compile(r"[a-z][a-z-]*")
_VARIABLE = re.compile(r"[A-Za-z_]\w*")
_OURS = frozenset(
    {
        "job-name",
        "output",
        "error",
        "open-mode",
        "requeue",
        "no-requeue",
        "signal",
        "dependency",
        "array",
        "nodes",
        "ntasks",
        "ntasks-per-node",
        "time",
        "chdir",
        "begin",
        "export",
        "wrap",
        "parsable",
        "gpus-per-node",
        "cpus-per-task",
        "mem",
        "partition",
        "account",
        "qos",
        "exclude",
    }
)


def _check(source: SettingsFile, site: Site) -> None:
    for place, value in _leaves(site, (SLURM,)):
        name = str(place[-1])
        if isinstance(value, str) and ("\n" in value or "\0" in value):
            raise source.error(place, f"{'.'.join(place[1:])} has a line break in it")
        if name == "time_limit":
            _check_time(source, place, value)
        elif name in ("partition", "account", "qos", "memory", "master_host") and value is not None:
            _check_word(source, place, value)
        elif isinstance(value, int) and value < (name in ("nodes", "processes_per_node", "cpus", "at_once")):
            raise source.error(place, f"{'.'.join(place[1:])} is {value}; it must be above 0")
    for option, value in site.options.items():
        if not _OPTION.fullmatch(option) or option in _OURS:
            why = "the launcher sets it itself" if option in _OURS else "write a long option of sbatch without the --"
            raise source.error((SLURM, "options", option), f"options.{option}: {why}")
        if value:
            _check_word(source, (SLURM, "options", option), value)
    for variable in site.variables:
        if not _VARIABLE.fullmatch(variable):
            raise source.error((SLURM, "variables", variable), f"{variable!r} is no name of an environment variable")
    environment = site.environment
    place = (SLURM, "environment")
    if environment.kind not in KINDS:
        raise source.error((*place, "kind"), f"environment.kind is {environment.kind!r}; choose {', '.join(KINDS)}")
    if environment.kind != "plain" and not environment.image:
        raise source.error(place, f"environment.kind is {environment.kind}, which needs environment.image")
    if site.signal_seconds >= seconds_of(site.time_limit):
        raise source.error((SLURM, "signal_seconds"), "signal_seconds is no shorter than time_limit; lower it")


def _leaves(value: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for item in dataclasses.fields(value):
        inner = getattr(value, item.name)
        if dataclasses.is_dataclass(inner):
            yield from _leaves(inner, (*place, item.name))
        else:
            yield (*place, item.name), inner


def _check_time(source: SettingsFile, place: tuple[str, ...], value: str) -> None:
    try:
        seconds = seconds_of(value)
    except ValueError:
        seconds = 0
    # YAML reads 12:00:00 without quotes as the number 43200.
    if not seconds or (value.isdigit() and int(value) >= 3600):
        raise source.error(place, f'{place[-1]} is {value!r}; write it in quotes, as "12:00:00" or "1-00:00:00"')


def _check_word(source: SettingsFile, place: tuple[str, ...], value: str) -> None:
    if not _WORD.fullmatch(value):
        raise source.error(place, f"{place[-1]} is {value!r}; it must be one word without quotes")


def existing_image(environment: Environment) -> Path | None:
    """The image's file, if the image is one; UserError if that is not there."""
    image = environment.image
    if image is None or "://" in image or "#" in image or not image.startswith(("/", "./", "../", "~")):
        return None
    path = Path(image).expanduser()
    if not path.exists():
        raise UserError(f"the image {path} does not exist; give environment.image of the cluster file another")
    return path
