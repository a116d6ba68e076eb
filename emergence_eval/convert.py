"""Megatron/NeMo weights to a Hugging Face directory that everybody's tools can load, and back.

The model is exactly transformers' Glm architecture: grouped queries, rotary embedding on half of each head,
SwiGLU, RMSNorm; or, with norms of queries and keys (qk_layernorm) and rotary embedding on whole heads, exactly Qwen3
(`emergence_eval.hf_layout`). Tensors are converted one by one in the precision they are kept in: the memory that is
needed is that of some shards of 0.5 GB, whatever the model's size. The tokenizer is converted with the weights. OUT
appears when it is whole, and is not made again as long as what it was made of is the same.

    python -m emergence_eval.convert nemo-to-hf runs/smoke/small-20480/checkpoints/step_10 /tmp/small-hf
    python -m emergence_eval.convert hf-to-nemo /tmp/small-hf /tmp/small-nemo/step_10
    python -m emergence_eval.convert megatron-to-hf gpt/iter_0000100 /tmp/gpt-hf --tokenizer tokenizer
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emergence_eval import hf_files, sources
from emergence_eval.hf_files import Progress
from emergence_eval.hf_layout import hf_groups, pairs_from_halves, split_qkv
from emergence_eval.sources import Source
from emergence_eval.torch_dist import Weights
from recipes.checkpoint import CONTEXT, MANIFEST, WEIGHTS
from tokenizer import cli
from tokenizer.cli import UserError
from tokenizer.files import atomic_directory, write_json

if TYPE_CHECKING:
    import torch

__all__ = ["convert_nemo", "hf_to_nemo", "nemo_to_hf", "pairs_from_halves", "read_weights", "split_qkv", "to_hf"]

RECORD = "conversion.json"
"""File of a conversion that says what it was made of."""

SCHEMA = 1
"""Version of what a conversion holds; an older one is made again."""


def read_weights(directory: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Every tensor of the model in a distributed checkpoint, whole, on the CPU, whatever layout wrote it, by its
    key without `prefix`. For small models: all of it is in memory at once."""
    weights = Weights(directory, prefix, sources.is_model_tensor)
    return {key: weights.read(key) for key in weights.entries}


def convert_nemo(checkpoint: Path, out: Path, tokenizer: Path | None, progress: Progress = hf_files.nothing) -> Path:
    """Convert a checkpoint of this repository, of NeMo or of Megatron-Bridge to a Hugging Face directory at `out`."""
    if (checkpoint / MANIFEST).is_file():
        if tokenizer is not None:
            raise UserError(f"{checkpoint} carries its own tokenizer; leave --tokenizer out")
        source, manifest = sources.open_ours(checkpoint)
        return to_hf(source, out, progress, step=manifest.step)
    source, identity = sources.open_nemo(checkpoint, tokenizer)
    return to_hf(source, out, progress, step=identity.step)


def nemo_to_hf(checkpoint: Path, out: Path, progress: Progress = hf_files.nothing) -> Path:
    """Convert a checkpoint of this repository or of NeMo to a Hugging Face directory (config, safetensors,
    tokenizer) at `out`.

    Raises UserError if `checkpoint` is none or holds another architecture.
    """
    return convert_nemo(checkpoint, out, None, progress)


def to_hf(source: Source, out: Path, progress: Progress = hf_files.nothing, step: int | None = None) -> Path:
    """Convert an opened checkpoint to a Hugging Face directory at `out`, or leave the one that is there if it was
    made of the same. Raises UserError, and leaves nothing, if it cannot be converted."""
    record = {"made_of": sources.fingerprint(source), "to": "hf", "step": step}
    with _made_once(out, {**record, "vocab_multiple": source.model.vocab_multiple}) as directory:
        if directory is None:
            return out
        padding: dict[str, torch.Tensor] = {}
        weights = Weights(source.weights, source.prefix, sources.is_model_tensor)
        try:
            groups = list(hf_groups(weights, source.model, source.tokenizer.vocab_size, padding))
            dtype = groups[0].dtype.removeprefix("torch.")
            hf_files.write_shards(directory, groups, progress)
        except UserError as error:
            raise UserError(f"{source.weights}: {error}") from None
        source.tokenizer.write(directory)
        _write_config(source, dtype, directory)
        _keep_the_rest(source, padding, directory)
    return out


def _write_config(source: Source, dtype: str, directory: Path) -> None:
    from transformers import GlmConfig, Qwen3Config

    model, tokenizer = source.model, source.tokenizer
    rotary = {"rope_type": "default", "rope_theta": float(model.rotary_base)}
    if not model.qk_layernorm:
        rotary["partial_rotary_factor"] = model.rotary_percent
    (Qwen3Config if model.qk_layernorm else GlmConfig)(
        architectures=[f"{model.architecture}ForCausalLM"],
        vocab_size=tokenizer.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_query_groups,
        head_dim=model.kv_channels,
        rope_parameters=rotary,
        rms_norm_eps=model.layernorm_epsilon,
        max_position_embeddings=model.seq_length,
        attention_bias=False,
        tie_word_embeddings=model.tied,
        dtype=dtype,
        bos_token_id=None,
        eos_token_id=tokenizer.eod_id,
        pad_token_id=tokenizer.pad_id,
    ).save_pretrained(directory)


def _keep_the_rest(source: Source, padding: dict[str, torch.Tensor], directory: Path) -> None:
    """What the way back needs and Hugging Face has no place for."""
    from safetensors.torch import save_file

    from emergence_eval import nemo_writer

    side = directory / nemo_writer.SIDE
    side.mkdir()
    if padding:
        save_file(padding, side / nemo_writer.PADDING)
    if source.tokenizer.kind != "huggingface":
        names = ("tokenizer.model", "manifest.json") if source.tokenizer.kind == "ours" else ("tokenizer.model",)
        (side / "tokenizer").mkdir()
        for name in names:
            shutil.copyfile(source.tokenizer.path / name, side / "tokenizer" / name)


def hf_to_nemo(source: Path, out: Path, progress: Progress = hf_files.nothing) -> Path:
    """Convert a Hugging Face Glm or Qwen3 directory to a NeMo 2.0 one (`weights/`, `context/`) at `out`, which
    --nemo-ckpt and Megatron-Core read. Raises UserError, and leaves nothing, if it cannot be converted."""
    if not (source / "config.json").is_file():
        raise UserError(f"{source} is no Hugging Face model (no config.json); give a directory with safetensors")
    from emergence_eval import nemo_writer

    step = hf_files.read_object(source / RECORD).get("step") if (source / RECORD).is_file() else None
    opened = nemo_writer.open_model(source)
    with _made_once(out, {"made_of": sources.fingerprint_files(source), "to": "nemo"}) as directory:
        if directory is None:
            return out
        nemo_writer.write_context(source, directory / CONTEXT, opened)
        nemo_writer.write_weights(opened, directory / WEIGHTS, step if type(step) is int else None, progress)
    return out


@contextmanager
def _made_once(out: Path, record: dict[str, Any]) -> Iterator[Path | None]:
    """A directory to fill that becomes `out`, or None if `out` was made of the same and is whole. Raises UserError
    if `out` is something else, which is not ours to replace."""
    record = {"schema": SCHEMA, **record}
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if not (out / RECORD).is_file():
            raise UserError(f"{out} exists and is no conversion of this program; remove it or give another place")
        found = hf_files.read_object(out / RECORD)
        files = found.pop("files", None)
        if found == record and files == _sizes(out):
            yield None
            return
    with atomic_directory(out) as directory:
        yield directory
        write_json(directory / RECORD, {**record, "files": _sizes(directory)})


def _sizes(directory: Path) -> dict[str, int]:
    paths = (path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != RECORD)
    return {path.relative_to(directory).as_posix(): path.stat().st_size for path in paths}


def with_bar(what: str, work: Callable[[Progress], Path]) -> Path:
    """Do the work under a bar with MB, MB/s and the time that is left."""
    with cli.progress_bar("MB", "{task.fields[rate]}") as bar:
        task = bar.add_task(what, total=None, rate="")

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done // 10**6, total=total // 10**6)
            elapsed = bar.tasks[0].elapsed
            bar.update(task, rate=f"{done / 1e6 / elapsed:,.0f} MB/s" if elapsed else "")

        return work(progress)


def main(argv: Sequence[str] | None = None) -> int:
    """Convert a checkpoint from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m emergence_eval.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, what, example in (
        ("nemo-to-hf", "a NeMo 2.0 checkpoint directory to a Hugging Face one", "RUN/checkpoints/step_<n>"),
        ("megatron-to-hf", "a Megatron-LM or Megatron-Bridge checkpoint to a Hugging Face directory", "RUN/iter_<n>"),
        ("hf-to-nemo", "a Hugging Face directory of the Glm or Qwen3 architecture to a NeMo 2.0 one", "a directory"),
    ):
        verb = verbs.add_parser(name, help=what)
        verb.add_argument("checkpoint", type=Path, help=f"the checkpoint, {example}")
        verb.add_argument("out", type=Path, help="the directory to write")
        if name != "hf-to-nemo":
            verb.add_argument("--tokenizer", type=Path, metavar="DIR", help="its tokenizer, if it does not carry one")
    arguments = parser.parse_args(argv)
    checkpoint, out = arguments.checkpoint, arguments.out

    def work(progress: Progress) -> Path:
        if arguments.verb == "hf-to-nemo":
            return hf_to_nemo(checkpoint, out, progress)
        if arguments.verb == "megatron-to-hf":
            source, identity = sources.open_megatron(checkpoint, arguments.tokenizer)
            return to_hf(source, out, progress, step=identity.step)
        return convert_nemo(checkpoint, out, arguments.tokenizer, progress)

    print(with_bar(f"{checkpoint.name} to {out.name}", work))
    return 0


if __name__ == "__main__":
    cli.run(main)
