"""Apex, if it is there: NVIDIA's fused kernels, or the unrelated package of that name on PyPI.

Megatron-Core uses NVIDIA's Apex for its fused Adam and for gradient clipping where Transformer Engine is missing. It is
built from source (https://github.com/NVIDIA/apex); `pip install apex` installs something else, a toolkit for Pyramid.

    python -m recipes.apex
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tokenizer import cli

_KERNELS = "amp_C"
"""The extension module that NVIDIA's Apex is built for; without it its fused optimizers cannot be made."""


@dataclass(frozen=True)
class Apex:
    """What is installed under the name apex."""

    state: str
    """usable, unbuilt (NVIDIA's, without its kernels), other (another project) or missing."""
    message: str
    """A line for people: what there is and what to do about it."""


def find() -> Apex:
    """Look for Apex without importing any of it."""
    spec = importlib.util.find_spec("apex")
    if spec is None:
        return Apex("missing", "Apex is not installed; it is optional, Transformer Engine has the same kernels")
    version, summary = "of an unknown version", ""
    try:
        found = metadata.metadata("apex")
        version, summary = found["Version"], found.get("Summary") or ""
    except metadata.PackageNotFoundError:
        pass
    places = spec.submodule_search_locations or []
    if not any((Path(place) / "optimizers" / "fused_adam.py").is_file() for place in places):
        what = f" ({summary})" if summary else ""
        return Apex(
            "other",
            f"the installed apex {version}{what} is not NVIDIA's but the package of that name on PyPI; it is not used: "
            "pip uninstall apex, and build https://github.com/NVIDIA/apex if you want its kernels",
        )
    if importlib.util.find_spec(_KERNELS) is None:
        return Apex(
            "unbuilt",
            f"NVIDIA's Apex {version} is installed without its kernels ({_KERNELS}) and is not used; "
            "build it with --cpp_ext --cuda_ext if you want them",
        )
    return Apex("usable", f"NVIDIA's Apex {version} with its kernels")


def main() -> int:
    """Say what is installed under the name apex."""
    print(find().message)
    return 0


if __name__ == "__main__":
    cli.run(main)
