"""Apex: NVIDIA's is told from the package of that name on PyPI, by distributions installed as pip leaves them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

NVIDIA = {
    "apex/__init__.py": "",
    "apex/optimizers/__init__.py": "from apex.optimizers.fused_adam import FusedAdam\n",
    "apex/optimizers/fused_adam.py": "class FusedAdam: ...\n",
}
PYPI = {"apex/__init__.py": "", "apex/lib/__init__.py": "", "apex/lib/libapex.py": "class RootFactory: ...\n"}


def install(site: Path, files: dict[str, str], version: str, summary: str = "") -> None:
    """What pip writes for a wheel with these files: them, and a dist-info directory that lists them."""
    info = f"apex-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: apex\nVersion: {version}\n" + (f"Summary: {summary}\n" if summary else "")
    files = {
        **files,
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/INSTALLER": "pip\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    for name, content in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(content)


def said(site: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{site}:{REPOSITORY}"}
    done = subprocess.run(
        [sys.executable, "-m", "recipes.apex"], env=environment, text=True, capture_output=True, check=True
    )
    assert done.stdout.count("\n") == 1 and done.stderr == ""
    return done.stdout


def test_without_apex_it_is_said_to_be_optional(tmp_path):
    assert "not installed" in said(tmp_path) and "optional" in said(tmp_path)


def test_the_package_of_that_name_on_pypi_is_recognised_and_named(tmp_path):
    install(tmp_path, PYPI, "0.9.10.dev0", "Pyramid toolkit to add Velruse, Flash Messages")
    message = said(tmp_path)
    assert "apex 0.9.10.dev0 (Pyramid toolkit to add Velruse" in message and "is not NVIDIA's" in message
    assert "pip uninstall apex" in message and "github.com/NVIDIA/apex" in message


@pytest.mark.parametrize("kernels", [False, True])
def test_nvidia_s_is_used_if_its_kernels_are_built(tmp_path, kernels):
    install(tmp_path, {**NVIDIA, **({"amp_C.py": ""} if kernels else {})}, "0.1")
    message = said(tmp_path)
    assert message.startswith("NVIDIA's Apex 0.1")
    assert ("without its kernels (amp_C) and is not used" in message) != kernels


def test_what_is_looked_at_is_not_run(tmp_path):
    install(tmp_path, {**PYPI, "apex/__init__.py": "raise SystemExit('from another age')\n"}, "0.9.10.dev0")
    assert "is not NVIDIA's" in said(tmp_path)
