"""Evaluates checkpoints on the benchmarks and writes one result file a checkpoint.

    python emergence_eval/run.py --nemo-ckpt runs/smoke/*/checkpoints/step_* --data ../shared/benchmarks
    python emergence_eval/run.py --megatron-ckpt gpt/iter_0000100 --tokenizer tokenizer --loss 2.31 --data benchmarks
    python emergence_eval/run.py --hf-ckpt EleutherAI/pythia-410m@step1000 models/llama-7b --data benchmarks
    python emergence_eval/run.py --watch runs/smoke/large-40960 --data ../shared/benchmarks
    torchrun --nproc-per-node 8 emergence_eval/run.py --nemo-ckpt ... --data ../shared/benchmarks

Each checkpoint is converted to a Hugging Face model and run through lm-evaluation-harness on the tasks of
emergence_eval/tasks. Results go to eval/step_<n>.json (scores) and eval/step_<n>.parquet (scores of every row)
beside the run's checkpoints/. What is already evaluated is skipped, and an interrupted evaluation goes on with
the task where it stopped. Give all checkpoints to one command: data and prompts are prepared once.

Checkpoints that others trained are taken as well, if transformers' Glm or Qwen3 architecture is theirs: with NeMo 2
(--nemo-ckpt), with Megatron-LM or Megatron-Bridge in the format torch_dist (--megatron-ckpt); and any causal language
model in Hugging Face's form as it is (--hf-ckpt). Nothing that comes with a model is run. What such a checkpoint does
not tell, its loss above all, is named in the result file.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emergence_eval import definitions, options, partial, sharding, watch
from emergence_eval.checkpoints import Checkpoint, open_checkpoints
from emergence_eval.definitions import TaskDefinition
from emergence_eval.partial import Asked, Finished
from emergence_eval.readers.files import data_directory
from emergence_eval.results import Environment, Result, write_result
from emergence_eval.sharding import Processes
from recipes.provenance import git_revision
from tokenizer import cli
from tokenizer.cli import UserError

if TYPE_CHECKING:
    from argparse import Namespace

    from rich.progress import Progress, TaskID

    from emergence_eval.fewshot import FittedTask


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
    backend: str
    processes: Processes

    def asked(self, checkpoint: Checkpoint) -> Asked:
        """What older results of the checkpoint must agree in to be kept."""
        return Asked(checkpoint.identity.manifest_sha256, self.limit, self.dtype_of(checkpoint), self.backend)

    def device_name(self) -> str:
        """The device that was asked for, or this process's GPU, or the CPU."""
        return self.device or self.processes.device()

    def dtype_of(self, checkpoint: Checkpoint) -> str:
        """The precision in which a checkpoint is evaluated."""
        if self.dtype != "auto":
            return self.dtype
        if checkpoint.identity.precision in ("fp32", ""):
            return "float32"
        return "float32" if self.device_name() == "cpu" else "bfloat16"


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate checkpoints from the command line."""
    arguments = options.read(argv, __doc__)
    # Read when the libraries are imported.
    os.environ |= {"TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    processes = sharding.start()
    try:
        return _evaluate(arguments, processes)
    except UserError:
        if processes.first:
            raise
        # The first process says it.
        return cli.EXIT_USER_ERROR
    finally:
        sharding.finish()


def _evaluate(arguments: Namespace, processes: Processes) -> int:
    checkpoints: list[Checkpoint] = []
    if arguments.watch is None:
        checkpoints = open_checkpoints(
            arguments.nemo_ckpt,
            arguments.out,
            arguments.megatron_ckpt,
            arguments.tokenizer,
            arguments.loss,
            arguments.hf_ckpt,
        )
    data = data_directory(arguments.data)
    names = arguments.tasks.split(",")
    tasks = definitions.load(names, data)
    for line in definitions.left_out(names, data):
        _say(line, processes)
    job = Job(
        tasks=tasks,
        hashes={task.name: task.task_hash(data) for task in tasks},
        data=data,
        limit=arguments.limit,
        batch_size=arguments.batch_size,
        device=arguments.device,
        dtype=arguments.dtype,
        keep_hf=arguments.keep_hf,
        backend=arguments.backend,
        processes=processes,
    )
    if arguments.watch is not None:
        watch_run(arguments.watch, arguments.out, job)
    elif pending := _pending(checkpoints, job):
        with _bar(processes) as bar:
            evaluate_all([pending], job, bar, bar.add_task("evaluating", total=0, rate=""))
    return 0


def _say(line: str, processes: Processes) -> None:
    if processes.first:
        print(line, flush=True)


def _pending(checkpoints: Sequence[Checkpoint], job: Job) -> list[Checkpoint]:
    """Those that are not evaluated, of which the first process decides."""
    done = job.processes.of_first([_is_done(it, job) for it in checkpoints] if job.processes.first else [])
    for checkpoint, is_done in zip(checkpoints, done, strict=True):
        if is_done:
            _say(f"{checkpoint.output} is up to date", job.processes)
    return [checkpoint for checkpoint, is_done in zip(checkpoints, done, strict=True) if not is_done]


def _is_done(checkpoint: Checkpoint, job: Job) -> bool:
    if not checkpoint.output.is_file():
        return False
    finished = partial.of_result(checkpoint.output, job.asked(checkpoint), job.hashes)
    return finished.keys() >= job.hashes.keys()


def watch_run(run: Path, out: Path | None, job: Job) -> None:
    """Evaluate the checkpoints of a run as they appear, until it ends."""
    with _bar(job.processes) as bar:
        progress = bar.add_task(f"{run.resolve().name}", total=None, rate="")

        def waiting(what: str) -> None:
            bar.update(progress, description=what)

        found = watch.new_checkpoints(run, job.processes, waiting)
        batches = (_pending(open_checkpoints(directories, out), job) for directories in found)
        evaluate_all(batches, job, bar, progress)


def _bar(processes: Processes) -> Progress:
    return cli.progress_bar("{task.fields[rate]}", disable=not processes.first)


def evaluate_all(batches: Iterable[Sequence[Checkpoint]], job: Job, bar: Progress, progress: TaskID) -> None:
    """Evaluate checkpoints one after the other; tasks, data and prompts are shared by all."""
    # Not earlier: models that are named are fetched by now.
    os.environ["HF_HUB_OFFLINE"] = "1"
    from emergence_eval import harness, task_scores

    harness.silence()
    tasks = task_scores.load_tasks(job.tasks, job.data)
    encodings = harness.Encodings()
    total = 0
    for batch in batches:
        total += len(batch) * len(job.tasks)
        bar.update(progress, total=total)
        for checkpoint in batch:
            start = time.monotonic()
            finished = evaluate_checkpoint(checkpoint, job, tasks, encodings, bar, progress)
            scores = ", ".join(
                f"{task.name} {finished[task.name][0].metrics[task.metric].value:.3f}"
                for task in job.tasks
                if task.name in finished
            )
            _say(f"{checkpoint.output}: {scores} ({time.monotonic() - start:.0f} s)", job.processes)


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    job: Job,
    tasks: dict[str, FittedTask],
    encodings: Any,
    bar: Progress,
    progress: TaskID,
) -> Finished:
    """Evaluate one checkpoint on the tasks that it has no scores for, and write its result file."""
    from emergence_eval import task_scores

    first, dtype = job.processes.first, job.dtype_of(checkpoint)
    asked = job.asked(checkpoint)
    finished = partial.finished_tasks(checkpoint.output, asked, job.hashes) if first else {}
    names = job.processes.of_first([task.name for task in job.tasks if task.name not in finished])
    missing = [task for task in job.tasks if task.name in names]
    bar.update(progress, advance=len(job.tasks) - len(missing))
    name = f"{checkpoint.identity.run} step {checkpoint.identity.step}"
    device = job.device_name()
    if missing:
        bar.update(progress, description=f"{name}: converting")
        key = checkpoint.identity.tokenizer_sha256
        with converted(checkpoint, job.keep_hf, job.processes) as directory:
            model = _load(directory, checkpoint, key, encodings, device, dtype, job)
            # Nobody may remove the directory before all have read it.
            job.processes.gather(None)
        for task in missing:
            bar.update(progress, description=f"{name}: {task.name}")
            with _rows_bar(bar, task.name, len(tasks[task.name].eval_docs), job.limit) as report:
                model.progress = report
                hash_of_task = job.hashes[task.name]
                result, rows = task_scores.evaluate_task(model, tasks[task.name], task, hash_of_task, key, job.limit)
            if first:
                partial.save_task(checkpoint.output, asked, task.name, result, rows)
            finished[task.name] = (result, rows)
            bar.advance(progress)
    if first:
        result = Result(
            checkpoint=checkpoint.identity,
            limit=job.limit,
            tasks={name: task for name, (task, _) in finished.items()},
            environment=environment(job.device or device.partition(":")[0], dtype, job.backend),
        )
        write_result(checkpoint.output, result, [row for _, rows in finished.values() for row in rows])
        partial.remove(checkpoint.output)
    return finished


def _load(directory: Path, checkpoint: Checkpoint, key: str, encodings: Any, device: str, dtype: str, job: Job) -> Any:
    """The model. Raises UserError if somebody's model is none that transformers has code for."""
    from emergence_eval import harness

    try:
        return harness.load_model(directory, key, encodings, device, dtype, job.batch_size, job.backend, job.processes)
    except (ValueError, OSError, KeyError, ImportError, AttributeError, RuntimeError) as error:
        if not checkpoint.is_hf:
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{directory}: transformers {importlib.metadata.version('transformers')} cannot load it ({reason}); code "
            "that comes with a model is never run here"
        ) from None


@contextmanager
def _rows_bar(bar: Progress, name: str, available: int, limit: int | None) -> Iterator[Any]:
    """A bar of its own for a task's rows, with rows/s; yields what the model reports its requests to."""
    rows = min(available, limit or available)
    line = bar.add_task(f"  {name}: rows", total=rows, rate="")
    start = time.monotonic()

    def report(done: int, of: int) -> None:
        share = done * rows // max(of, 1)
        elapsed = time.monotonic() - start
        bar.update(line, completed=share, rate=f"{share / elapsed:.1f} rows/s" if elapsed and share else "")

    try:
        yield report
    finally:
        bar.remove_task(line)


@contextmanager
def converted(checkpoint: Checkpoint, keep: Path | None, processes: Processes) -> Iterator[Path]:
    """The checkpoint as a Hugging Face directory, which the first process makes; removed afterwards unless it is to
    be kept. Raises UserError on all processes if it cannot be made."""
    if checkpoint.is_hf:
        yield checkpoint.directory
        return
    if keep is None and processes.count > int(os.environ.get("LOCAL_WORLD_SIZE", processes.count)):
        raise UserError("on several machines the converted model must lie where all see it; give --keep-hf DIR")
    with tempfile.TemporaryDirectory(prefix="emergence-") as temporary:
        out = (
            Path(temporary) / "hf" if keep is None else keep / f"{checkpoint.identity.run}-{checkpoint.directory.name}"
        )
        made: Path | UserError | None = None
        if processes.first:
            try:
                made = _convert(checkpoint, out)
            except UserError as error:
                made = error
        made = processes.of_first(made)
        if isinstance(made, UserError):
            raise made
        yield made


def _convert(checkpoint: Checkpoint, out: Path) -> Path:
    from emergence_eval import convert

    if checkpoint.source is None:
        return convert.nemo_to_hf(checkpoint.directory, out)
    return convert.to_hf(checkpoint.source, out)


def environment(device: str, dtype: str, backend: str) -> Environment:
    """With what the evaluation is made, as it goes into the result file."""
    return Environment(
        git_revision=git_revision(),
        lm_eval=importlib.metadata.version("lm_eval"),
        transformers=importlib.metadata.version("transformers"),
        torch=importlib.metadata.version("torch"),
        device=device,
        dtype=dtype,
        backend=backend,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


if __name__ == "__main__":
    cli.run(main)
