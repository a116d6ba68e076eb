"""The GPUs that this machine has for the steps of a plan, found without loading torch.

python -m launchers.devices          (prints one a line, as CUDA_VISIBLE_DEVICES takes them)
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from tokenizer import cli
from tokenizer.cli import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Variable by which a process is given GPUs."""

ANSWER_SECONDS = 60.0
"""Time that nvidia-smi has to answer; it takes some seconds where the driver is not kept loaded."""

_GPU = re.compile(r"GPU \d+: .*\(UUID: (GPU-[\w-]+)\)")
_SLICE = re.compile(r"\s+MIG .*\(UUID: (MIG-[\w/-]+)\)")


def find_gpus(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The GPUs that processes may be given, one name each for CUDA_VISIBLE_DEVICES; none where there is no nvidia-smi
    or no driver. Where the variable is set, only those of it. A GPU that is cut into MIG slices counts as these.

    Raises UserError if nvidia-smi does not answer.
    """
    if VISIBLE in environment:
        entries = [entry.strip() for entry in environment[VISIBLE].split(",")]
        return tuple(_known(entries, _listed(environment))) if any(entries) else ()
    return tuple(name for gpu, slices in _listed(environment) for name in slices or [gpu])


def num_jobs(gpus: Sequence[str]) -> int:
    """Processes to run side by side: one a GPU, or one a core where there are none."""
    return len(gpus) or len(os.sched_getaffinity(0))


def _listed(environment: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Each GPU with its MIG slices."""
    try:
        said = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, env=dict(environment), timeout=ANSWER_SECONDS
        )
    except OSError:
        return []
    except subprocess.TimeoutExpired:
        raise UserError(
            f"nvidia-smi -L gave no answer in {ANSWER_SECONDS:.0f} s; see to its driver, or set {VISIBLE}= to use none"
        ) from None
    found: list[tuple[str, list[str]]] = []
    for line in said.stdout.splitlines() if said.returncode == 0 else ():
        if match := _GPU.match(line):
            found.append((match[1], []))
        elif found and (match := _SLICE.match(line)):
            found[-1][1].append(match[1])
    return found


def _known(entries: Sequence[str], listed: Sequence[tuple[str, list[str]]]) -> Iterator[str]:
    """The entries that CUDA would take: up to the first that names no GPU."""
    names = [name for gpu, slices in listed for name in (gpu, *slices)]
    for entry in entries:
        known = int(entry) < len(listed) if entry.isdigit() else any(entry and it.startswith(entry) for it in names)
        if not known:
            return
        yield entry


def main() -> int:
    """Print the GPUs."""
    print("\n".join(find_gpus()) or "no GPUs")
    return 0


if __name__ == "__main__":
    cli.run(main)
