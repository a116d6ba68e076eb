"""NeMo's environment, which `bash tests/run.sh -m slow` makes; its tests are skipped where it is not."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from launchers.environment import is_whole

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def nemo_python() -> Path:
    """The interpreter of a whole NeMo environment."""
    venv = Path(os.environ.get("EMERGENCE_NEMO_VENV", REPOSITORY / ".venv-nemo"))
    if not is_whole(venv, hashlib.sha256((REPOSITORY / "pyproject.toml").read_bytes()).hexdigest()):
        pytest.skip(f"needs NeMo's environment, {venv}; bash tests/run.sh -m slow makes it")
    return venv / "bin" / "python"


@pytest.fixture(scope="session")
def in_nemo(nemo_python):
    """``in_nemo(arguments)``: run NeMo's Python with them to the end and give what it said."""

    def run(*arguments: object, fails: bool = False) -> str:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        # A session of its own: Lightning starts the other ranks itself, and they are to go with the first.
        process = subprocess.Popen(
            [nemo_python, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=900)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert (process.returncode != 0) == fails, f"exit code {process.returncode}\n{said}"
        return said

    return run
