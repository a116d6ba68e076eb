"""Seconds for the suite's log-likelihoods and texts: our scoring beside lm-evaluation-harness's own `hf` model.

Both answer the same requests with the same network (a Glm as the converter writes it, random weights, a context of
2048), in turn, task by task, in one process: the same rows, prompts and batch size. Rows are the first of each task,
so that as many of them share a subject or a passage as in a whole evaluation (`--sampled` takes a random sample
instead, which shares less). Prints seconds and their ratio, and where the answers differ.

    python benchmarks/eval_speed.py --data ../shared/benchmarks --corpus ../shared/corpus --limit 48
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHAPE = {
    "hidden_size": 384,
    "intermediate_size": 1296,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "partial_rotary_factor": 0.5,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": None,
}
VOCAB_SIZE = 16384
EXPECTED = {"mmlu": 5.0, "ceval": 5.0, "suite": 3.0}


@dataclass
class Measured:
    """Both sides of one task."""

    requests: int
    rows: int
    available: int
    """Rows of the whole task."""
    ours: float
    theirs: float
    """Seconds."""
    our_work: float
    their_work: float
    """Seconds of processor time, which other programs on the machine change less."""
    predictions: int
    """Rows whose predicted option, or text, differs."""
    difference: float
    """Largest difference of two log-likelihoods, in nats."""
    greedy: int
    """Requests of which only one side says that they are the greedy continuation."""


def main() -> None:
    arguments = _arguments()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer = arguments.tokenizer or _train_tokenizer(arguments.corpus, Path(temporary))
        directory = _model(tokenizer, Path(temporary) / "hf")
        measured = _measure(arguments, directory)
    sums = (sum(getattr(it, side) for it in measured.values()) for side in ("ours", "theirs", "our_work", "their_work"))
    ours, theirs, our_work, their_work = sums
    _line("suite", sum(it.rows for it in measured.values()), ours, theirs, our_work, their_work, "")
    whole = [sum(getattr(it, side) / it.rows * it.available for it in measured.values()) for side in ("ours", "theirs")]
    print(
        f"each task at its {sum(it.available for it in measured.values())} rows: {whole[1] / whole[0]:.1f} times faster"
    )
    for name, ratio in EXPECTED.items():
        if name == "suite" or name in measured:
            found = theirs / ours if name == "suite" else measured[name].theirs / measured[name].ours
            print(f"{name}: {found:.1f} times faster, expected at least {ratio:g}")
    differing = [name for name, it in measured.items() if it.predictions or it.greedy or it.difference > 1e-3]
    print(f"answers differ in: {', '.join(differing)}" if differing else "the same answers on every row")


def _measure(arguments: argparse.Namespace, directory: Path) -> dict[str, Measured]:
    import torch

    from emergence_eval import definitions, harness, task_scores
    from emergence_eval.fewshot import Window
    from emergence_eval.task_scores import sample_rows

    torch.set_num_threads(arguments.threads)
    harness.silence()
    names = arguments.tasks.split(",")
    wanted = definitions.load(names, arguments.data)
    for line in definitions.left_out(names, arguments.data):
        print(line, flush=True)
    tasks = task_scores.load_tasks(wanted, arguments.data)

    def load(backend: str) -> Any:
        return harness.load_model(
            directory, "", harness.Encodings(), arguments.device, arguments.dtype, arguments.batch_size, backend
        )

    ours, theirs = load("ours"), load("hf")
    parameters = sum(it.numel() for it in ours.model.parameters())
    print(f"{parameters:,} parameters, {torch.get_num_threads()} threads, batch size {arguments.batch_size}")
    measured = {}
    for definition in wanted:
        task = tasks[definition.name]
        task.window = Window(ours.tok_encode, ours._encode_pair, ours.max_length, "benchmark")
        task.config.num_fewshot = definition.num_fewshot
        available = len(task.eval_docs)
        rows = list(range(available))[: arguments.limit]
        if arguments.sampled:
            rows = sample_rows(definition.name, available, arguments.limit)
        task.build_all_requests(samples=rows)
        kind = "generate_until" if task.OUTPUT_TYPE == "generate_until" else "loglikelihood"
        requests = {model: copy.deepcopy(task.instances) for model in (ours, theirs)}
        for model in (ours, theirs):
            # Neither side has seen the texts.
            model._encodings = harness.Encodings()
        sides = [_timed(model, kind, requests[model]) for model in (ours, theirs)]
        it = _compared(kind, [request.doc_id for request in task.instances], available, *sides)
        measured[definition.name] = it
        what = "texts" if kind == "generate_until" else f"predictions, log-likelihoods by {it.difference:.0e} at most"
        note = f"differ: {it.predictions} {what}"
        _line(definition.name, it.rows, it.ours, it.theirs, it.our_work, it.their_work, note)
    return measured


Side = tuple[list[Any], float, float]
"""Answers, seconds, seconds of processor time."""


def _timed(model: Any, kind: str, requests: Sequence[Any]) -> Side:
    start, work = time.monotonic(), time.process_time()
    answers = getattr(model, kind)(requests)
    return answers, time.monotonic() - start, time.process_time() - work


def _compared(kind: str, rows: Sequence[int], available: int, ours: Side, theirs: Side) -> Measured:
    pairs = list(zip(ours[0], theirs[0], strict=True))
    measured = Measured(len(rows), len(set(rows)), available, ours[1], theirs[1], ours[2], theirs[2], 0, 0.0, 0)
    if kind == "generate_until":
        measured.predictions = sum(a != b for a, b in pairs)
        return measured
    a, b = (_predictions(rows, side[0]) for side in (ours, theirs))
    measured.predictions = sum(a[row] != b[row] for row in a)
    measured.difference = max(abs(a[0] - b[0]) for a, b in pairs)
    measured.greedy = sum(a[1] != b[1] for a, b in pairs)
    return measured


def _predictions(rows: Sequence[int], answers: Sequence[tuple[float, bool]]) -> dict[int, int]:
    by_row: dict[int, list[float]] = {}
    for row, (value, _) in zip(rows, answers, strict=True):
        by_row.setdefault(row, []).append(value)
    return {row: values.index(max(values)) for row, values in by_row.items()}


def _line(name: str, rows: int, ours: float, theirs: float, our_work: float, their_work: float, note: str) -> None:
    print(
        f"{name:12} {rows:4} rows  ours {ours:6.1f} s  hf {theirs:6.1f} s  ratio {theirs / ours:5.1f}  "
        f"(processor time {their_work / our_work:5.1f})  {note}",
        flush=True,
    )


def _train_tokenizer(corpus: Path, out: Path) -> Path:
    from tokenizer import train

    train.main(["--corpus", str(corpus), "--out", str(out / "tokenizer"), "--vocab-size", str(VOCAB_SIZE)])
    return out / "tokenizer"


def _model(tokenizer: Path, out: Path) -> Path:
    import torch
    from transformers import GlmConfig, GlmForCausalLM

    from emergence_eval.hf_tokenizer import write_hf_tokenizer
    from tokenizer import vocabulary

    made = vocabulary.load(tokenizer)
    torch.manual_seed(0)
    config = GlmConfig(**SHAPE, vocab_size=made.vocab_size, eos_token_id=made.eod_id, pad_token_id=made.pad_id)
    GlmForCausalLM(config).save_pretrained(out)
    write_hf_tokenizer(tokenizer, out)
    return out


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the benchmarks' official files")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--tokenizer", type=Path, help="directory of tokenizer.train")
    given.add_argument("--corpus", type=Path, help="documents to train a tokenizer on")
    parser.add_argument("--tasks", default="emergence")
    parser.add_argument("--limit", type=int, default=48, help="rows a task")
    parser.add_argument("--sampled", action="store_true", help="a random sample of the rows, not the first ones")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    return parser.parse_args()


if __name__ == "__main__":
    main()
