"""A real Slurm of eight nodes on this machine, for one test module at a time.

with Slurm() as slurm:
    job = slurm.submit("--wrap", "sleep 5")
    slurm.wait(lambda: slurm.state(job) == "RUNNING", 10)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import pytest

HERE = Path(__file__).resolve().parent

CANNOT = 77
"""Exit code of start_slurm.sh where the machine has no Slurm."""

_FIRST_PORT, _LAST_PORT, _BLOCK = 12000, 16900, 50
_FIELD = re.compile(r"(\w+)=(.*?)(?= \w+=|\s*$)")


class Slurm:
    """The cluster. `pytest.skip` where the machine cannot have one.

    It stops when its process ends, however that happens: start_slurm.sh --hold reads from a pipe that breaks then.
    """

    partitions = ("low", "main", "high", "short")
    """The first three are of rising priority, whoever is in a lower one is requeued; the last allows 10 minutes."""

    def __init__(self, nodes: int = 8):
        self.nodes = tuple(f"node{number}" for number in range(1, nodes + 1))
        # Sockets have short names, shorter than pytest's directories.
        self.root = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.conf = self.root / "slurm.conf"
        self.environment = {**os.environ, "SLURM_CONF": str(self.conf)}
        # None of those that a job has, should these tests run in one.
        for name in [name for name in self.environment if name.startswith(("SLURM_", "SBATCH_"))]:
            if name != "SLURM_CONF":
                del self.environment[name]
        self._lock: TextIO | None = None
        self._holder: subprocess.Popen | None = None

    def __enter__(self) -> Slurm:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if self._holder:
            self._holder.stdin.close()
            try:
                self._holder.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(self._holder.pid, signal.SIGKILL)
                self._holder.wait()
            subprocess.run(["bash", HERE / "stop_slurm.sh", self.root], check=False)
        left = self.processes()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        if self._lock:
            self._lock.close()
        shutil.rmtree(self.root, ignore_errors=True)
        assert not left, f"processes of the cluster that had to be killed: {left}"

    def _start(self) -> None:
        log = self.root / "start.log"
        with open(log, "w") as output:
            self._holder = subprocess.Popen(
                ["bash", HERE / "start_slurm.sh", "--hold", self.root, str(self._free_ports()), str(len(self.nodes))],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                text=True,
                env=self.environment,
                start_new_session=True,
            )
        deadline = time.monotonic() + 500
        while "slurm is up" not in log.read_text():
            if self._holder.poll() is not None:
                said = log.read_text().strip()
                if self._holder.returncode == CANNOT:
                    pytest.skip(said.splitlines()[-1])
                pytest.fail(f"no Slurm: {said}")
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)

    def _free_ports(self) -> int:
        """The first of a block of ports that nobody listens on, and that no other test takes while this one has it."""
        for first in range(_FIRST_PORT, _LAST_PORT, _BLOCK):
            lock = open(f"{tempfile.gettempdir()}/slurm-ports-{first}.lock", "w")  # noqa: SIM115
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for port in range(first, first + len(self.nodes) + 1):
                    with socket.socket() as tried:
                        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                        tried.bind(("127.0.0.1", port))
            except OSError:
                lock.close()
                continue
            self._lock = lock
            return first
        raise AssertionError("there are no free ports for a Slurm")

    # Slurm's commands.

    def run(self, *command: object, check: bool = True) -> str:
        """One of Slurm's commands; what it prints."""
        words = list(map(str, command))
        done = subprocess.run(words, capture_output=True, text=True, env=self.environment, timeout=60)
        assert done.returncode == 0 or not check, f"{' '.join(words)}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, *arguments: object) -> str:
        """`sbatch`; the job's number. Output goes to the cluster's directory."""
        return self.run("sbatch", "--parsable", f"--output={self.root}/%j.out", *arguments)

    def queue(self, *options: object) -> list[dict[str, str]]:
        """`squeue`, a line each member of an array: id, name, state, nodes, reason."""
        text = self.run("squeue", "--noheader", "--array", "--format=%i|%T|%N|%r|%j", *options)
        return [
            dict(zip(("id", "state", "nodes", "reason", "name"), line.split("|", 4), strict=True))
            for line in text.splitlines()
        ]

    def find(self, name: str, *states: str) -> list[dict[str, str]]:
        """The jobs in the queue with `name` in their name, in one of the states, if any are given."""
        return [job for job in self.queue() if name in job["name"] and (not states or job["state"] in states)]

    def state(self, job: str) -> str:
        """A job's state, also for a while after it has ended; "" for an unknown one."""
        return self.run("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}", check=False)

    def cancel(self, *arguments: object) -> None:
        """`scancel`."""
        self.run("scancel", *arguments)

    def set_node(self, node: str, state: str) -> None:
        """`scontrol update`: down, resume, drain, ..."""
        self.run("scontrol", "update", f"nodename={node}", f"state={state}", "reason=test")

    def stop_slurmctld(self, number: int = signal.SIGTERM) -> None:
        """End it by a signal; jobs go on, Slurm's commands do not. After a SIGKILL it forgets some of the last 5 s."""
        pid = int((self.root / "run" / "slurmctld.pid").read_text())
        os.kill(pid, number)
        self.wait(lambda: not Path(f"/proc/{pid}").exists(), 30)

    def start_slurmctld(self) -> None:
        """After `stop_slurmctld`."""
        assert self._holder and self._holder.stdin
        self._holder.stdin.write("slurmctld\n")
        self._holder.stdin.flush()
        self.wait(lambda: "UP" in self.run("scontrol", "ping", check=False), 30)

    def job_history(self) -> list[dict[str, str]]:
        """What has ended, a line each start of a job: JobId, Name, JobState, NodeList, ..."""
        path = self.root / "log" / "jobs"
        return [dict(_FIELD.findall(line)) for line in path.read_text().splitlines()] if path.exists() else []

    def job_processes(self, name: str) -> list[int]:
        """Processes with `name` in their command line, below the jobs of this cluster."""
        found = []
        for pid in self.processes("SLURM_JOB_ID="):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if name in command:
                found.append(pid)
        return found

    def processes(self, variable: str = "") -> list[int]:
        """Processes that have this cluster in their environment, and a variable that begins with `variable`."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                environment = (entry / "environ").read_bytes().split(b"\0")
                is_dead = "\nState:\tZ" in (entry / "status").read_text()
            except OSError:
                continue
            if is_dead or int(entry.name) == os.getpid() or f"SLURM_CONF={self.conf}".encode() not in environment:
                continue
            if any(it.startswith(variable.encode()) for it in environment):
                found.append(int(entry.name))
        return found

    def wait(self, condition: Callable[[], object], seconds: float, what: Callable[[], object] | str = "") -> None:
        """Until `condition` is true; the test fails after `seconds` and says the queue and `what` was waited for."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                told = what() if callable(what) else what
                queue = self.run("squeue", "--array", "--states=all", check=False)
                pytest.fail(f"waited {seconds:.0f} s in vain. {told}\n{queue}")
            time.sleep(0.1)

    def clear(self) -> None:
        """Leave no job, and all nodes as they were."""
        if ids := sorted({job["id"].partition("_")[0] for job in self.queue()}):
            self.run("scancel", *ids, check=False)
            for pid in self.processes("SLURM_JOB_ID="):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.wait(lambda: not self.queue(), 30, "jobs that do not end")
        states = self.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T")
        for node, state in (line.split() for line in states.splitlines()):
            if state.startswith(("down", "drain", "fail")):
                self.set_node(node, "resume")
