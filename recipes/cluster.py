"""Clusters: what the layout planner knows of a machine, read from a file of a dozen numbers.

`launchers/clusters/` holds those of NVIDIA's DGX machines, each number with its source; a file for another machine
has the same keys.

    python -m recipes.parallel --grid paper --cluster dgx-a100
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.settings_file import SettingsFile
from tokenizer.cli import UserError

CLUSTERS = Path(__file__).resolve().parents[1] / "launchers" / "clusters"
"""Where the shipped cluster files lie."""

GIB = 1024**3
"""Bytes of a GiB."""


@dataclass(frozen=True)
class Cluster:
    """Nodes of equal GPUs. Bandwidths are bytes/s a GPU in one direction, rates FLOP/s of dense products."""

    name: str
    """Name of the machine."""
    gpus_per_node: int
    """GPUs that NVLink joins."""
    memory_gib: float
    """Memory of a GPU as the driver reports it."""
    reserved_gib: float
    """Memory that training cannot have: CUDA context, NCCL buffers, fragments."""
    peak_flops: Mapping[str, float]
    """Peak rate by precision; a precision that is missing cannot be planned."""
    gemm_efficiency: Mapping[str, float]
    """Share of the peak that an endlessly large matrix product reaches, by precision."""
    gemm_half_size: float
    """A product's rate is multiplied by x / (x + this) for each of its three dimensions x."""
    attention_efficiency: float
    """Share of the bf16 peak that causal attention's two products reach."""
    memory_bandwidth: float
    """Of a GPU's own memory."""
    memory_efficiency: float
    """Share of it that element-wise kernels reach."""
    nvlink_bandwidth: float
    """Between the GPUs of a node."""
    network_bandwidth: float
    """Between nodes."""
    link_efficiency: float
    """Share of both that collectives on large messages reach."""

    @property
    def usable_bytes(self) -> int:
        """Bytes of a GPU that weights, gradients, optimizer and activations may fill."""
        return int((self.memory_gib - self.reserved_gib) * GIB)

    def rate(self, precision: str) -> float:
        """Peak rate of a precision times its efficiency, FLOP/s. UserError if the machine has none."""
        if precision not in self.peak_flops:
            raise UserError(
                f"{self.name} has no peak rate for precision={precision}; "
                f"plan with precision={' or '.join(self.peak_flops)}, or add it to the cluster file"
            )
        return self.peak_flops[precision] * self.gemm_efficiency[precision]


_FIELDS = {item.name: str(item.type) for item in dataclasses.fields(Cluster)}


LIKE, SLURM = "like", "slurm"
"""Keys beside the numbers: another cluster file whose numbers this one takes where it gives none of its own, and what
the launcher needs to know of the cluster's Slurm (`launchers.slurm.site`)."""


def load_cluster(path: str | Path) -> Cluster:
    """Read a cluster file, or one of the shipped ones by its bare name (``dgx-h100``).

    Raises UserError with file and line for a missing, unknown or senseless number.
    """
    source = read_cluster_file(path)
    values: dict[str, Any] = {}
    if LIKE in source.value:
        other = read_cluster_file(str(source.value[LIKE]), beside=source.path)
        if LIKE in other.value:
            raise source.error((LIKE,), f"{other.path} is like another file itself; name that one")
        values = vars(load_cluster(other.path)) | {"name": source.path.stem}
    for name, kind in _FIELDS.items():
        if name in source.value:
            values[name] = _checked(source, name, kind, source.value[name])
        elif name not in values:
            raise source.error((), f"{name} is missing; give it, or `like: dgx-h100` for that machine's numbers")
    if odd := set(values["peak_flops"]) ^ set(values["gemm_efficiency"]):
        raise source.error(
            ("gemm_efficiency",),
            f"peak_flops and gemm_efficiency must name the same precisions; one alone has {', '.join(sorted(odd))}",
        )
    if values["reserved_gib"] >= values["memory_gib"]:
        raise source.error(("reserved_gib",), "reserved_gib leaves no memory; it must be below memory_gib")
    return Cluster(**values)


def read_cluster_file(path: str | Path, beside: Path | None = None) -> SettingsFile:
    """A cluster file with its lines, its keys checked; a path that is not absolute may start `beside` another file."""
    source = SettingsFile.read(_resolve(path, beside))
    source.check_keys((), {*_FIELDS, LIKE, SLURM})
    return source


def _resolve(path: str | Path, beside: Path | None) -> Path:
    shipped = CLUSTERS / f"{Path(path).name}.yaml"
    path = Path(path)
    if beside is not None and (beside.parent / path).is_file():
        return beside.parent / path
    if path.is_file():
        return path
    if shipped.is_file() and path.name == str(path):
        return shipped
    names = ", ".join(sorted(file.stem for file in CLUSTERS.glob("*.yaml")))
    raise UserError(f"there is no cluster file {path}; give a YAML file or one of the shipped clusters: {names}")


def _checked(source: SettingsFile, name: str, kind: str, value: Any) -> Any:
    if kind == "str":
        return str(value)
    if kind.startswith("Mapping"):
        if not isinstance(value, dict) or not value:
            raise source.error((name,), f"{name} is {value!r}; it must map precisions to numbers, as {{bf16: 0.7}}")
        return {str(key): _number(source, (name, key), "float", item) for key, item in value.items()}
    return _number(source, (name,), kind, value)


def _number(source: SettingsFile, place: tuple, kind: str, value: Any) -> float:
    name = ".".join(map(str, place))
    try:
        # YAML reads 3e12 as text: it wants 3.0e+12.
        number = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0 < number < float("inf") or (kind == "int" and not number.is_integer()):
        raise source.error(
            place, f"{name} is {value!r}; it must be a {'whole ' if kind == 'int' else ''}number above 0"
        )
    if place[0].endswith("efficiency") and number > 1:
        raise source.error(place, f"{name} is {value!r}; it is a share of a peak, at most 1")
    return int(number) if kind == "int" else number
