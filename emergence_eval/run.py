"""Evaluates checkpoints on the benchmarks and writes one result file a checkpoint.

    python emergence_eval/run.py --nemo-ckpt runs/smoke/*/checkpoints/step_* --data ../shared/benchmarks
    python emergence_eval/run.py --megatron-ckpt gpt/iter_0000100 --tokenizer tokenizer --loss 2.31 --data benchmarks

Each checkpoint is converted to a Hugging Face model and run through lm-evaluation-harness on the tasks of
emergence_eval/tasks. Results go to eval/step_<n>.json (scores) and eval/step_<n>.parquet (scores of every row)
beside the run's checkpoints/. What is already evaluated is skipped, and an interrupted evaluation goes on with
the task where it stopped. Give all checkpoints to one command: data and prompts are prepared once.

Checkpoints that others trained are taken as well, if transformers' Glm architecture is theirs: with NeMo 2
(--nemo-ckpt), with Megatron-LM or Megatron-Bridge in the format torch_dist (--megatron-ckpt). What such a
checkpoint does not tell, its loss above all, is named in the result file.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emergence_eval import definitions, partial
from emergence_eval.checkpoints import Checkpoint, open_checkpoints
from emergence_eval.definitions import TaskDefinition
from emergence_eval.partial import Asked, Finished
from emergence_eval.readers.files import data_directory
from emergence_eval.results import Environment, Result, write_result
from recipes.provenance import git_revision
from tokenizer import cli

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from emergence_eval.fewshot import FittedTask
    from emergence_eval.harness import Encodings

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Job:
    """What is done with each checkpoint."""

    tasks: Sequence[TaskDefinition]
    hashes: dict[str, str]
    data: Path
    limit: int | None
    batch_size: int
    device: str | None
    dtype: str
    keep_hf: Path | None

    def asked(self, checkpoint: Checkpoint) -> Asked:
        """What older results of the checkpoint must agree in to be kept."""
        return Asked(checkpoint.identity.manifest_sha256, self.limit, self.dtype)


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate checkpoints from the command line."""
    arguments = _parser().parse_args(argv)
    checkpoints = open_checkpoints(
        arguments.nemo_ckpt, arguments.out, arguments.megatron_ckpt, arguments.tokenizer, arguments.loss
    )
    data = data_directory(arguments.data)
    names = arguments.tasks.split(",")
    tasks = definitions.load(names, data)
    for line in definitions.left_out(names, data):
        print(line)
    job = Job(
        tasks=tasks,
        hashes={task.name: task.task_hash(data) for task in tasks},
        data=data,
        limit=arguments.limit,
        batch_size=arguments.batch_size,
        device=arguments.device,
        dtype=arguments.dtype,
        keep_hf=arguments.keep_hf,
    )
    pending = []
    for checkpoint in checkpoints:
        if _is_done(checkpoint, job):
            print(f"{checkpoint.output} is up to date")
        else:
            pending.append(checkpoint)
    if pending:
        evaluate_all(pending, job)
    return 0


def _is_done(checkpoint: Checkpoint, job: Job) -> bool:
    if not checkpoint.output.is_file():
        return False
    finished = partial.of_result(checkpoint.output, job.asked(checkpoint), job.hashes)
    return finished.keys() >= job.hashes.keys()


def evaluate_all(checkpoints: Sequence[Checkpoint], job: Job) -> None:
    """Evaluate checkpoints one after the other; tasks, data and prompts are shared by all."""
    # Read when the libraries are imported.
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    from emergence_eval import harness

    harness.silence()
    tasks = harness.load_tasks(job.tasks, job.data)
    encodings = harness.Encodings()
    with cli.progress_bar() as bar:
        progress = bar.add_task("evaluating", total=len(checkpoints) * len(job.tasks))
        for checkpoint in checkpoints:
            start = time.monotonic()
            finished = evaluate_checkpoint(checkpoint, job, tasks, encodings, bar, progress)
            scores = ", ".join(
                f"{name} {result.metrics[job_metric(job, name)].value:.3f}"
                for name, (result, _) in finished.items()
                if name in job.hashes
            )
            print(f"{checkpoint.output}: {scores} ({time.monotonic() - start:.0f} s)", flush=True)


def job_metric(job: Job, name: str) -> str:
    """The metric of one of the job's tasks."""
    return next(task.metric for task in job.tasks if task.name == name)


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    job: Job,
    tasks: dict[str, FittedTask],
    encodings: Encodings,
    bar: Progress,
    progress: TaskID,
) -> Finished:
    """Evaluate one checkpoint on the tasks that it has no scores for, and write its result file."""
    from emergence_eval import harness
    from recipes import cpu

    asked = job.asked(checkpoint)
    finished = partial.finished_tasks(checkpoint.output, asked, job.hashes)
    missing = [task for task in job.tasks if task.name not in finished]
    bar.update(progress, advance=len(job.tasks) - len(missing))
    name = f"{checkpoint.identity.run} step {checkpoint.identity.step}"
    device = job.device or cpu.device().type
    if missing:
        bar.update(progress, description=f"{name}: converting")
        with converted(checkpoint, job.keep_hf) as directory:
            key = checkpoint.identity.tokenizer_sha256
            model = harness.load_model(directory, key, encodings, device, job.dtype, job.batch_size)
        for task in missing:
            bar.update(progress, description=f"{name}: {task.name}")
            result, rows = harness.evaluate_task(model, tasks[task.name], task, job.hashes[task.name], key, job.limit)
            partial.save_task(checkpoint.output, asked, task.name, result, rows)
            finished[task.name] = (result, rows)
            bar.advance(progress)
    result = Result(
        checkpoint=checkpoint.identity,
        limit=job.limit,
        tasks={name: task for name, (task, _) in finished.items()},
        environment=environment(device, job.dtype),
    )
    write_result(checkpoint.output, result, [row for _, rows in finished.values() for row in rows])
    partial.remove(checkpoint.output)
    return finished


@contextmanager
def converted(checkpoint: Checkpoint, keep: Path | None) -> Iterator[Path]:
    """The checkpoint as a Hugging Face directory, removed afterwards unless it is to be kept."""
    from emergence_eval import convert

    def to_hf(out: Path) -> Path:
        return (
            convert.to_hf(checkpoint.source, out)
            if checkpoint.source
            else convert.nemo_to_hf(checkpoint.directory, out)
        )

    if keep is not None:
        yield to_hf(keep / f"{checkpoint.identity.run}-{checkpoint.directory.name}")
        return
    with tempfile.TemporaryDirectory(prefix="emergence-") as temporary:
        yield to_hf(Path(temporary) / "hf")


def environment(device: str, dtype: str) -> Environment:
    """With what the evaluation is made, as it goes into the result file."""
    return Environment(
        git_revision=git_revision(),
        lm_eval=importlib.metadata.version("lm_eval"),
        transformers=importlib.metadata.version("transformers"),
        torch=importlib.metadata.version("torch"),
        device=device,
        dtype=dtype,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python emergence_eval/run.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--nemo-ckpt", type=Path, nargs="+", default=[], metavar="DIR", help="checkpoint directories, ours or NeMo 2's")
    add(
        "--megatron-ckpt",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="iter_<n> directories of Megatron-LM or Megatron-Bridge, or the one above for its latest",
    )
    add(
        "--tokenizer",
        type=Path,
        metavar="DIR",
        help="tokenizer of checkpoints that carry none: of tokenizer.train or Hugging Face's (tokenizer.json)",
    )
    add(
        "--loss",
        metavar="NATS|CSV",
        help="held-out loss of a checkpoint that carries none, in nats per token; for several a CSV file with the "
        "columns step and heldout_loss",
    )
    add("--data", type=Path, required=True, metavar="DIR", help="folder with the benchmarks' official files")
    add(
        "--tasks",
        default=definitions.ALL,
        metavar="A,B",
        help="tasks or groups, e.g. mmlu,ceval or emergence_zh (default: %(default)s, the paper's twelve)",
    )
    add(
        "--limit",
        type=_positive,
        metavar="N",
        help="rows a task: a fixed random sample, the same for every checkpoint (default: all)",
    )
    add(
        "--out",
        type=Path,
        metavar="PATH",
        help="a .json file (one checkpoint) or a folder, for <run>-step_<n>.json "
        "(default: eval/step_<n>.json beside checkpoints/)",
    )
    add("--batch-size", type=_positive, default=8, metavar="N", help="prompts a batch (default: %(default)s)")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: cuda if there is a GPU)")
    add("--dtype", choices=DTYPES, default="float32", help="precision of the weights (default: %(default)s)")
    add("--keep-hf", type=Path, metavar="DIR", help="keep the converted models here (default: a temporary folder)")
    return parser


if __name__ == "__main__":
    cli.run(main)
