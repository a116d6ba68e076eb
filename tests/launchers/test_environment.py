"""The set-up of the environment, with a project of no dependencies that installs without a network."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from launchers import environment
from launchers.environment import STAMP, UNFINISHED, set_up

REPOSITORY = Path(__file__).resolve().parents[2]

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "tiny"
version = "1.0"
optional-dependencies = {default = [], nemo = [], dev = []}
"""

BACKEND = """
import zipfile
def build_editable(directory, settings=None, metadata=None):
    name = "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(f"{directory}/{name}", "w") as wheel:
        wheel.writestr("tiny.py", "")
        wheel.writestr("tiny-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0\\nProvides-Extra: default\\n"
            "Provides-Extra: nemo\\nProvides-Extra: dev\\n")
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    return name
build_wheel = build_editable
"""


@pytest.fixture
def project(tmp_path) -> Path:
    root = tmp_path / "a project"
    root.mkdir()
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "backend.py").write_text(BACKEND)
    return root


def has_tiny(venv: Path) -> bool:
    return subprocess.run([venv / "bin" / "python", "-c", "import tiny"], stderr=subprocess.DEVNULL).returncode == 0


@pytest.mark.slow
def test_set_up_once_then_again_only_when_it_must(project, tmp_path, capfd):
    venv = tmp_path / "venv"
    # Two at once: one works, the other waits for it.
    threads = [threading.Thread(target=set_up, args=(project, venv)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = capfd.readouterr().err
    assert said.count("Setting up") == said.count("Set up in") == 1
    assert "about 3 minutes and 2.2 GB" in said and "setup.log" in said
    assert "another set-up" in said and "waiting for it" in said
    assert has_tiny(venv) and not (venv / UNFINISHED).exists()

    set_up(project, venv)
    assert capfd.readouterr().err == ""

    # Other requirements: installed into what is there.
    (venv / "kept").touch()
    (project / "pyproject.toml").write_text(PYPROJECT + "# changed\n")
    set_up(project, venv)
    said = capfd.readouterr().err
    assert "Bringing" in said and "Set up in" in said
    assert (venv / "kept").exists()

    # Interrupted: from nothing.
    (venv / STAMP).unlink()
    (venv / UNFINISHED).touch()
    set_up(project, venv)
    assert has_tiny(venv) and not (venv / "kept").exists()
    assert (venv / STAMP).exists() and not (venv / UNFINISHED).exists()


@pytest.mark.slow
def test_a_failing_pip_is_one_line_and_leaves_no_stamp(project, tmp_path, capfd):
    (project / "backend.py").write_text("def build_editable(*arguments): raise RuntimeError('no compiler')\n")
    venv = tmp_path / "venv"
    with pytest.raises(SystemExit) as leave:
        set_up(project, venv)
    assert leave.value.code == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: -m pip install failed") and str(venv / "setup.log") in error
    assert not (venv / STAMP).exists() and (venv / UNFINISHED).exists()


def test_the_progress_of_a_set_up_is_what_pip_does_and_not_what_it_warns_of():
    log = "Collecting torch\n  Downloading torch.whl (90 MB)\nWARNING: Location 'x' is ignored\n"
    assert environment.last_step(log) == "Downloading torch.whl (90 MB)"
    log += "Installing collected packages: sympy, torch\n    Successfully uninstalled setuptools-66.1.1\n"
    assert environment.last_step(log).startswith("Installing collected packages")
    assert environment.last_step("") == ""


def said_when_refused(capfd, root: Path, venv: Path) -> str:
    with pytest.raises(SystemExit) as leave:
        set_up(root, venv)
    assert leave.value.code == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("kind", ["default", "nemo"])
def test_each_environment_gets_the_packages_of_its_extra(kind, project, tmp_path, monkeypatch, capfd):
    commands = []
    monkeypatch.setattr(environment, "_run", lambda command, *_: commands.append(command))
    environment.main([str(project), str(tmp_path / "venv"), kind])
    assert commands[-1][-1] == f"{project.resolve()}[{kind},dev]"
    assert environment.KINDS[kind].cost in capfd.readouterr().err


@pytest.mark.parametrize("name", ["datasets", "megatron-core", "numpy", "pandas", "pyarrow", "transformers"])
def test_the_default_environment_has_the_releases_that_its_extra_pins(name):
    """The dependencies are ranges, for NeMo's sake; numbers and file formats are those of these releases."""
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pins = {pin.name: pin.specifier for pin in map(Requirement, extras["default"])}
    assert metadata.version(name) in pins[name]


def test_a_directory_of_other_things_is_left_alone(project, tmp_path, capfd):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    assert "holds something else than a Python environment" in said_when_refused(capfd, project, tmp_path / "home")
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["thesis.tex"]


def test_too_small_a_disk_is_said_with_numbers(project, tmp_path, capfd, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100 * 2**20)
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: usage)
    assert "100 MiB are free for" in said_when_refused(capfd, project, tmp_path / "venv")


def test_a_place_that_cannot_be_written_is_said(project, tmp_path, capfd):
    (tmp_path / "file").touch()
    assert "set EMERGENCE_VENV" in said_when_refused(capfd, project, tmp_path / "file" / "venv")


def test_without_python_3_11_the_remedy_is_named(tmp_path):
    """With a PATH that has nothing but what the script itself calls."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "dirname", "sha256sum", "cat"):
        (programs / name).symlink_to(shutil.which(name))
    other = programs / "python3"
    other.write_text("#!/bin/sh\nexit 1\n")
    other.chmod(0o755)
    result = subprocess.run(
        [programs / "bash", REPOSITORY / "launchers" / "slurm_grid.sh", "--grid", "smoke"],
        env={"PATH": str(programs), "EMERGENCE_VENV": str(tmp_path / "venv")},
        text=True,
        capture_output=True,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: there is no Python 3.11") and "apt-get install python3.11" in result.stderr
    assert result.stderr.count("\n") == 1


def test_it_needs_nothing_but_the_standard_library():
    code = "import sys; sys.path.insert(0, sys.argv[1]); import environment"
    subprocess.run([sys.executable, "-I", "-S", "-c", code, str(REPOSITORY / "launchers")], check=True)
