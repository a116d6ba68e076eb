"""The command line of `emergence_eval/run.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from emergence_eval import definitions
from tokenizer.cli import UserError

DTYPES = ("auto", "float32", "bfloat16", "float16")

BACKENDS = ("ours", "hf", "vllm")
"""Those of `emergence_eval.harness`, which takes seconds to import."""


def read(argv: Sequence[str] | None, description: str) -> argparse.Namespace:
    """The options that are given. Raises UserError for those that exclude each other."""
    arguments = _parser(description).parse_args(argv)
    if arguments.watch is not None:
        for option in ("nemo_ckpt", "megatron_ckpt", "hf_ckpt", "tokenizer", "loss"):
            if getattr(arguments, option):
                raise UserError(
                    f"--watch takes the checkpoints of its run alone; leave --{option.replace('_', '-')} out"
                )
        if arguments.out is not None and arguments.out.suffix == ".json":
            raise UserError(f"--out {arguments.out} names one file for the checkpoints of a run; give a directory")
    return arguments


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python emergence_eval/run.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("what is evaluated").add_argument
    add(
        "--nemo-ckpt",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="checkpoint directories of this repository, of NeMo 2 or of Megatron-Bridge",
    )
    add(
        "--megatron-ckpt",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="iter_<n> directories of Megatron-LM or Megatron-Bridge, or the one above for its latest",
    )
    add(
        "--hf-ckpt",
        nargs="+",
        default=[],
        metavar="DIR|NAME",
        help="causal language models in Hugging Face's form: directories, or names on the hub (org/model, "
        "org/model@revision) where there is a network",
    )
    add(
        "--watch",
        type=Path,
        metavar="RUN_DIR",
        help="each checkpoint of a training run as it appears, until the run's last one is evaluated or Ctrl-C",
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
    add = parser.add_argument_group("on what").add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="folder with the benchmarks' official files")
    add(
        "--tasks",
        default=definitions.ALL,
        metavar="A,B",
        help="tasks or groups, e.g. mmlu,ceval or emergence_zh (default: %(default)s, all)",
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
    add = parser.add_argument_group("with what").add_argument
    add("--batch-size", type=_positive, default=8, metavar="N", help="prompts a batch (default: %(default)s)")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: cuda if there is a GPU, one a process)")
    add(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="precision of the weights (default: %(default)s: bfloat16 on a GPU, float32 on a CPU and for fp32 runs)",
    )
    add("--backend", choices=BACKENDS, default="ours", help="ours, the harness's own, or vLLM (default: %(default)s)")
    add("--keep-hf", type=Path, metavar="DIR", help="keep the converted models here (default: a temporary folder)")
    return parser
