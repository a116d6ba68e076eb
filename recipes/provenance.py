"""Where a number comes from: the revision of this code, the versions of what it runs on, the device."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path

_PACKAGES = ("torch", "megatron-core", "transformer-engine", "sentencepiece", "numpy")


def git_revision() -> str:
    """The checked-out commit, with ``-dirty`` if tracked files differ from it; ``unknown`` outside a checkout."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def versions(packages: tuple[str, ...] = _PACKAGES) -> dict[str, str]:
    """The installed version of each of `packages` that is installed."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
