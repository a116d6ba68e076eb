"""The README's commands are real: each is parsed by the program that it calls."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launchers.grid import _parser

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]

LAUNCHER = ["bash", "launchers/slurm_grid.sh"]
HAS_DRY_RUN = ("recipes.pretrain",)


def commands(document: Path) -> list[str]:
    """Lines of the ```bash fences that call the project, continued lines joined, without comment and prompt."""
    if not document.is_file():
        return []
    found = []
    for block in re.findall(r"^ *```(?:bash|sh|shell)\n(.*?)^ *```", document.read_text(), re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.strip().removeprefix("$ "), comments=True)
            if words[:2] == LAUNCHER or is_python(words):
                found.append(shlex.join(words))
    return found


def is_python(words: list[str]) -> bool:
    if not words or Path(words[0]).name not in ("python", "python3", "python3.11"):
        return False
    return (words[1:2] == ["-m"] and (REPOSITORY / words[2].partition(".")[0]).is_dir()) or words[1].endswith(".py")


CASES = [(document, command) for document in DOCUMENTS for command in commands(document)]


def test_there_is_a_readme_with_the_two_commands():
    if not (REPOSITORY / "README.md").is_file():
        pytest.skip("there is no README yet")
    assert any(command.startswith(shlex.join(LAUNCHER)) for command in commands(REPOSITORY / "README.md"))
    assert "bash tests/run.sh" in (REPOSITORY / "README.md").read_text()


@pytest.mark.parametrize(
    ("document", "command"), CASES, ids=[f"{document.name}: {command}" for document, command in CASES]
)
def test_a_documented_command_is_understood(document, command, environment, shared_if_named):
    """Launches become dry runs; of every other program the arguments are held against its own --help."""
    words = shlex.split(command)
    shared_if_named(words)
    if words[:2] == LAUNCHER:
        if {"--cancel", "--resume", "--collect", "--watch"} & set(words):
            # They act on a study that there is, or go on until somebody ends them.
            _parser().parse_args(words[len(LAUNCHER) :])
            return
        if "--status" not in words and "--dry-run" not in words and "--help" not in words:
            words.append("--dry-run")
        run(words, environment)
        return
    program = [sys.executable, *words[1 : 3 if words[1] == "-m" else 2]]
    if words[1] == "-m" and words[2] in HAS_DRY_RUN:
        options = set(re.findall(r"--[a-z][a-z-]*", run([*program, "--help"], environment)))
        if "--dry-run" in options:
            run([*program, *words[3:], *(["--dry-run"] if "--dry-run" not in words else [])], environment)
            return
    known = set(re.findall(r"--[a-z][a-z0-9-]*", run([*program, "--help"], environment)))
    given = {word.partition("=")[0] for word in words[len(program) :] if re.match(r"--[a-z]", word)}
    assert given <= known, f"{document.name}: {command}: no such option: {', '.join(sorted(given - known))}"


@pytest.fixture
def shared_if_named(request):
    """Skip a command that names ../shared where that folder is absent."""

    def check(words: list[str]) -> None:
        if any(word.startswith("../shared") for word in words):
            request.getfixturevalue("shared")

    return check


def run(words: list[str], environment: dict[str, str]) -> str:
    result = subprocess.run(words, cwd=REPOSITORY, env=environment, text=True, capture_output=True)
    assert result.returncode == 0, f"{shlex.join(words)}: {result.stderr[-2000:]}"
    return result.stdout
