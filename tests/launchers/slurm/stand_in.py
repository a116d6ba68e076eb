"""Takes the place of python in the jobs of a test: plays back trainings and evaluations that nobody has computed.

A training writes the files of a real one, in a few seconds, and answers signals, kills and restarts as a real one;
what stands in its files depends on the step alone. A command that has no stand-in goes to the real interpreter.
DIRECTORY holds `recording.json` (what there is to play: `recording.py`), `behaviour.json` (how: `Behaviour`) and
`events.jsonl`, a line for everything that happened. Standard library only: it starts in some 20 ms.

    python -E -s -S stand_in.py DIRECTORY -m recipes.launch --nproc-per-node 2 -- --grid G --run R --out O
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import signal
import sys
import time
import zlib
from collections.abc import Collection
from pathlib import Path

from stand_in_peers import LostPeer, Peers

AGAIN, MISTAKE, UNAVAILABLE = 75, 2, 69


class Behaviour:
    """What a test may ask for; by default nothing goes wrong."""

    training_seconds: float = 2.0
    """Of a whole training that nothing interrupts."""
    evaluation_seconds: float = 0.1
    deaths: dict[str, float] = {}  # noqa: RUF012
    """Probability that a start kills itself at some moment: `train`, `evaluate`, `report`, ..."""
    crashing: Collection[str] = ()
    """Runs whose every start ends with a traceback before its first step."""
    refusals: dict[str, str] = {}  # noqa: RUF012
    """Runs that the user must mend, and what is said of them."""
    bad_nodes: Collection[str] = ()
    """Nodes on which every training is killed after its first step."""
    held: dict[str, int] = {}  # noqa: RUF012
    """Runs that stay at a step in their first start, until they are interrupted or `release` is there."""

    def __init__(self, **asked: object):
        for name, value in asked.items():
            getattr(self, name)
            setattr(self, name, value)


class StandIn:
    """One start of a command."""

    def __init__(self, directory: Path, kind: str):
        self.directory, self.kind = directory, kind
        self.recording = json.loads((directory / "recording.json").read_text())
        self.behaviour = Behaviour(**json.loads((directory / "behaviour.json").read_text()))

    def note(self, event: str, **fields: object) -> None:
        """Add a line to the events."""
        job = os.environ.get("SLURM_ARRAY_JOB_ID")
        line = {
            "event": event,
            "kind": self.kind,
            "time": time.time(),
            "pid": os.getpid(),
            "job": f"{job}_{os.environ['SLURM_ARRAY_TASK_ID']}" if job else os.environ.get("SLURM_JOB_ID", ""),
            "restart": int(os.environ.get("SLURM_RESTART_COUNT") or 0),
            "node": os.environ.get("SLURMD_NODENAME", ""),
            **fields,
        }
        with open(self.directory / "events.jsonl", "ab", buffering=0) as file:
            file.write(f"{json.dumps(line)}\n".encode())

    def moment_of_death(self, seconds: float) -> float:
        """When this start is to kill itself, seconds from now; never in most cases."""
        dies = chance() < self.behaviour.deaths.get(self.kind, 0.0)
        return chance() * seconds if dies else math.inf

    def die(self, **fields: object) -> None:
        """What a machine that runs out of memory does to a process."""
        self.note("died", **fields)
        os.kill(os.getpid(), signal.SIGKILL)

    def work(self, seconds: float, **fields: object) -> None:
        """Let time pass, and perhaps die."""
        end = self.moment_of_death(seconds)
        time.sleep(min(seconds, end))
        if end < seconds:
            self.die(**fields)


def main(arguments: list[str]) -> int:
    """Find out what is asked for, and play it."""
    directory, words = Path(arguments[0]), arguments[1:]
    options = []
    while words and words[0].startswith("-") and words[0] not in ("-m", "-c"):
        options.append(words.pop(0))
    name = words[1] if words[:1] == ["-m"] else "/".join(words[0].split("/")[-2:]) if words else ""
    if name not in PLAYED:
        real = json.loads((directory / "recording.json").read_text())["python"]
        os.execv(real, [real, *options, *words])
    kind, play = PLAYED[name]
    try:
        return play(StandIn(directory, kind), words[2:] if words[0] == "-m" else words[1:])
    except Mistake as mistake:
        print(f"error: {mistake}", file=sys.stderr, flush=True)
        return MISTAKE


class Mistake(Exception):
    """What a user can mend."""


def chance() -> float:
    """A random number from 0 to 1; the module `random` takes as long to load as all the rest."""
    return int.from_bytes(os.urandom(4), "little") / 2**32


def value_of(arguments: list[str], name: str) -> str:
    """The value of an option."""
    return arguments[arguments.index(name) + 1]


def write(path: Path, value: object) -> None:
    """Write JSON (a string as it is), so that a kill leaves all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    aside.write_text(value if isinstance(value, str) else json.dumps(value, indent=2))
    aside.replace(path)


# Trainings.


class Training:
    """A run as recorded, and where it lies."""

    def __init__(self, stand_in: StandIn, run: str, out: Path):
        if run not in stand_in.recording["runs"]:
            raise Mistake(f"there is no run {run!r}")
        self.recorded = stand_in.recording["runs"][run]
        self.run, self.directory = run, out / run
        self.stop_signal = 0
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: object) -> None:
        self.stop_signal = number

    @property
    def steps(self) -> list[int]:
        """The steps that are played: of a long run some forty and every checkpoint."""
        last, checkpoints = self.recorded["num_steps"], self.recorded["checkpoint_steps"]
        stride = max(1, last // 40)
        return sorted({*range(stride, last + 1, stride), *checkpoints, last})

    def newest(self) -> int:
        """The newest step that is saved whole; 0 if there is none."""
        saved = [path.parent for path in self.directory.glob("*/step_*/manifest.json")]
        return max((int(path.name.removeprefix("step_")) for path in saved), default=0)

    def losses(self, step: int) -> dict[str, float]:
        """Pure functions of the step."""
        loss = 2.0 + 6.0 / math.sqrt(1.0 + 40.0 * step / self.recorded["num_steps"])
        noise = zlib.crc32(f"{self.run} {step}".encode()) / 2**32 - 0.5
        heldout = {f"heldout_{language}": loss + 0.05 for language in self.recorded["languages"]}
        return {"train": loss + 0.02 * noise, "heldout": loss + 0.05, **heldout}

    def row(self, step: int) -> str:
        """A row of loss.csv as `recipes.journal` writes it."""
        losses = self.losses(step)
        is_checkpoint = step in self.recorded["checkpoint_steps"]
        heldout = [f"{losses[name]:.7f}" if is_checkpoint else "" for name in losses if name != "train"]
        tokens = step * self.recorded["tokens_per_step"]
        rate = (0.9 + 0.2 * chance()) * 1e4
        return ",".join(
            [str(step), str(tokens), f"{losses['train']:.7f}", "1.000000e-03", "0.500000", f"{rate:.1f}", "", *heldout]
        )

    def keep_rows(self, done: int) -> None:
        """Leave the header and the rows up to the step `done`."""
        path = self.directory / "loss.csv"
        rows = path.read_text().splitlines()[1:] if path.is_file() else []
        kept = [row for row in rows if row.partition(",")[0].isdigit() and int(row.partition(",")[0]) <= done]
        write(path, "\n".join([self.recorded["header"], *kept, ""]))

    def save(self, step: int, folder: str) -> None:
        """A checkpoint or a state to resume from: some bytes, a moment, then the manifest."""
        directory = self.directory / folder / f"step_{step}"
        if (directory / "manifest.json").is_file():
            return
        weights = directory / "weights" / "common.pt"
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.write_bytes(b"\0" * 4096)
        time.sleep(0.02)
        losses = self.losses(step)
        if folder == "resume":
            losses = {"train": losses["train"]}
        tokens = step * self.recorded["tokens_per_step"]
        counted = {"step": step, "final": step == self.recorded["num_steps"], "tokens": tokens, "losses": losses}
        flops = {name: tokens * self.recorded[f"{name}_per_token"] for name in ("flops_6nd", "flops_exact")}
        write(directory / "manifest.json", {**self.recorded["manifest"], **counted, **flops})

    def remove_old_states(self, final: bool) -> None:
        """The two newest states to resume from stay, and none when the run is complete."""
        states = sorted(self.directory.glob("resume/step_*"), key=lambda path: int(path.name.removeprefix("step_")))
        for path in states if final else states[:-2]:
            shutil.rmtree(path)


def train(stand_in: StandIn, arguments: list[str]) -> int:
    """`recipes.launch` and `recipes.pretrain` on one node of a run, or on its only one."""
    at = arguments.index("--") if "--" in arguments else 0
    options, own = arguments[:at], arguments[at:]
    run, out = value_of(own, "--run"), Path(value_of(own, "--out"))
    if not (out / "data" / "manifest.json").is_file():
        raise Mistake(f"{out / 'data'} holds no finished data set (no manifest.json)")
    training = Training(stand_in, run, out)
    stand_in.note("started", run=run, step=training.newest(), arguments=arguments)
    if run in stand_in.behaviour.refusals:
        raise Mistake(stand_in.behaviour.refusals[run])
    if run in stand_in.behaviour.crashing:
        print("Traceback (most recent call last):\nRuntimeError: made to crash", file=sys.stderr)
        return 1
    with Peers(options) as peers:
        try:
            if not peers.is_first:
                return peers.follow(lambda: training.stop_signal)
            code = lead(stand_in, training, peers)
        except LostPeer as error:
            stand_in.note("lost a peer", run=run)
            print(f"error: another process of the run is gone ({error})", file=sys.stderr, flush=True)
            return UNAVAILABLE
        peers.end(code)
        return code


def lead(stand_in: StandIn, training: Training, peers: Peers) -> int:
    """Play the run from its newest state; its exit code."""
    training.directory.mkdir(parents=True, exist_ok=True)
    with open(training.directory / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stand_in.note("locked out", run=training.run)
            raise Mistake(f"another process trains {training.directory} now; wait for it or stop it") from None
        behaviour, run = stand_in.behaviour, training.run
        done = training.newest()
        steps = [step for step in training.steps if step > done]
        first = not (training.directory / ".begun").exists()
        (training.directory / ".begun").touch()
        training.keep_rows(done)
        pause = behaviour.training_seconds / len(training.steps)
        death = time.monotonic() + stand_in.moment_of_death(pause * max(1, len(steps)))
        with open(training.directory / "loss.csv", "a") as rows, open(training.directory / "train.log", "a") as log:
            for count, step in enumerate(steps, 1):
                time.sleep(pause)
                rows.write(f"{training.row(step)}\n")
                rows.flush()
                log.write(f"step {step}/{training.steps[-1]}\n")
                log.flush()
                is_checkpoint = step in training.recorded["checkpoint_steps"]
                stopped = peers.stopped() or bool(training.stop_signal)
                if is_checkpoint or stopped or count % 5 == 0:
                    training.save(step, "checkpoints" if is_checkpoint else "resume")
                    training.remove_old_states(step == training.steps[-1])
                if stopped and step != training.steps[-1]:
                    stand_in.note("stopped", run=run, step=step)
                    return AGAIN
                while first and behaviour.held.get(run) == step and not (stand_in.directory / "release").exists():
                    if training.stop_signal or peers.stopped():
                        training.stop_signal = training.stop_signal or signal.SIGUSR1
                        break
                    time.sleep(0.02)
                if time.monotonic() > death or os.environ.get("SLURMD_NODENAME") in behaviour.bad_nodes:
                    stand_in.die(run=run, step=step)
        stand_in.note("trained", run=run)
        return 0


# What comes before and after.


def evaluate(stand_in: StandIn, arguments: list[str]) -> int:
    """`emergence_eval/run.py`: a result file for each checkpoint."""
    for word in arguments[arguments.index("--nemo-ckpt") + 1 :]:
        if word.startswith("--"):
            break
        checkpoint = Path(word)
        manifest, run = checkpoint / "manifest.json", checkpoint.parent.parent.name
        where = {"run": run, "step": int(checkpoint.name.removeprefix("step_"))}
        stand_in.note("started", **where)
        if not manifest.is_file():
            stand_in.note("refused", **where)
            raise Mistake(f"{checkpoint} is no checkpoint (no manifest.json)")
        result = checkpoint.parent.parent / "eval" / f"{checkpoint.name}.json"
        if result.is_file():
            stand_in.note("repeated", **where)
            continue
        stand_in.work(stand_in.behaviour.evaluation_seconds, **where)
        identity = {**json.loads(manifest.read_text()), "manifest_sha256": "0" * 64}
        write(result, {"schema": 1, "checkpoint": identity, "limit": None, "tasks": {}, "environment": {}})
        stand_in.note("evaluated", **where)
    return 0


def train_tokenizer(stand_in: StandIn, arguments: list[str]) -> int:
    """`tokenizer.train`."""
    stand_in.note("started")
    stand_in.work(0.05)
    out = Path(value_of(arguments, "--out"))
    write(out / "tokenizer.model", stand_in.recording["tokenizer_model"])
    write(out / "manifest.json", {"sha256": stand_in.recording["tokenizer_sha256"]})
    return 0


def encode(stand_in: StandIn, arguments: list[str]) -> int:
    """`tokenizer.encode`: files of the sizes that the manifest says, full of zeros."""
    stand_in.note("started")
    stand_in.work(0.05)
    write_data(stand_in.recording, Path(value_of(arguments, "--out")))
    return 0


def write_data(recording: dict, out: Path) -> None:
    """The data that are recorded."""
    write(out / "tokenizer" / "tokenizer.model", recording["tokenizer_model"])
    for path, size in recording["data_files"].items():
        with open(out / path, "wb") as file:
            file.truncate(size)
    write(out / "manifest.json", recording["data"])


def index_data(stand_in: StandIn, arguments: list[str]) -> int:
    """`recipes.index_cache`."""
    stand_in.note("started")
    stand_in.work(0.05)
    for key in stand_in.recording["index_keys"]:
        directory = Path(value_of(arguments, "--data")) / "index" / key
        write(directory / "samples", "played")
        write(directory / "manifest.json", {"files": [{"path": "samples", "bytes": 6}]})
    return 0


def report(stand_in: StandIn, arguments: list[str]) -> int:
    """`analysis.report`: a page that says how many results there were."""
    folder = Path(next(word for word in arguments if not word.startswith("-")))
    stand_in.note("started")
    results = len(list(folder.glob("*/eval/step_*.json")))
    if not results:
        raise Mistake(f"{folder} has no results")
    stand_in.work(0.05)
    write(folder / "report" / "index.html", f"<title>{results} results</title>")
    stand_in.note("reported", results=results)
    return 0


PLAYED = {
    "recipes.launch": ("train", train),
    "recipes.pretrain": ("train", train),
    "emergence_eval/run.py": ("evaluate", evaluate),
    "emergence_eval.run": ("evaluate", evaluate),
    "tokenizer.train": ("tokenizer", train_tokenizer),
    "tokenizer.encode": ("encode", encode),
    "recipes.index_cache": ("index", index_data),
    "analysis.report": ("report", report),
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
