"""Any run of any grid as a NeMo 2.0 recipe: a `run.Partial` of `nemo.collections.llm.pretrain`.

The recipe has the run's shape, layout, precision, optimizer, learning-rate schedule, mixture and checkpoint steps;
started from the same weights it gives the losses of `recipes.pretrain`. Hand it to nemo_run and its executors:

    import nemo_run
    from recipes.nemo import recipe
    nemo_run.run(recipe("paper", "1.5B-67B", data="/data/encoded", out="/runs", devices=8), executor=...)

Or train it on this machine, with or without a GPU; the same command again goes on from the last checkpoint:

    python -m recipes.nemo --grid smoke --run small-20480 --data runs/smoke/data --out runs/smoke-nemo

It needs the [nemo] extra in an environment of its own: pip install -e '.[nemo,dev]' (NeMo 2.7 is built on an older
Megatron-Core than the rest; `bash tests/run.sh -m slow` makes that environment in .venv-nemo).
"""

from __future__ import annotations

import argparse
import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes import encoded, layout, megatron_words, mixture, precision
from recipes.encoded import EncodedData
from recipes.grid import load_grid, override
from recipes.settings import RunSettings
from tokenizer import cli
from tokenizer.cli import UserError

if TYPE_CHECKING:
    import nemo_run

INSTALL = "pip install -e '.[nemo]' in an environment of its own, or bash tests/run.sh -m slow, which makes .venv-nemo"
"""How to get what this module needs."""


def require() -> None:
    """UserError with what to install unless NeMo with its LLM collection is there."""
    missing = [name for name in ("nemo", "nemo_run", "lightning") if importlib.util.find_spec(name) is None]
    if not missing and importlib.util.find_spec("nemo.collections.llm") is None:
        missing = ["nemo.collections.llm, which NeMo 3 has no more,"]
    if missing:
        raise UserError(f"{' and '.join(missing)} cannot be imported; {INSTALL}")


def recipe(
    grid: str | Path,
    run: str,
    *,
    data: str | Path,
    out: str | Path,
    devices: int = 1,
    nodes: int = 1,
    accelerator: str = "gpu",
    initial_weights: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> nemo_run.Partial:
    """The run `run` of `grid` (a file, or the name of a shipped grid) as a NeMo recipe.

    `data` is a directory of `tokenizer.encode`; logs and `checkpoints/step_<n>` go to OUT/RUN. `devices` are the
    processes on each of `nodes`, `accelerator` is "gpu" or "cpu", `overrides` are key=value settings. With
    `initial_weights`, a NeMo checkpoint directory, training starts from those weights.

    Raises UserError where the settings, the data or the layout do not fit, or the [nemo] extra is missing.
    """
    require()
    settings = override(load_grid(grid).run(run).settings, overrides)
    if settings.precision == "fp8-emulated":
        raise UserError("precision=fp8-emulated is recipes.pretrain's own; with NeMo train fp32, bf16 or fp8")
    if settings.skip_steps:
        raise UserError("skip_steps is recipes.pretrain's own; NeMo trains every step, leave it out")
    precision.check_settings(settings)
    layout.data_parallel_size(settings, devices * nodes)
    encoded_data = encoded.read_data(Path(data).absolute())
    encoded.check(encoded_data, settings)
    if initial_weights is not None and not (Path(initial_weights) / "weights").is_dir():
        raise UserError(f"{initial_weights} holds no weights/; give a checkpoint such as RUN/checkpoints/step_100")

    import nemo_run
    from nemo.collections import llm
    from nemo.lightning import AutoResume
    from nemo.lightning.pytorch.strategies.utils import RestoreConfig

    directory = Path(out).absolute() / run
    restore = None
    if initial_weights is not None:
        restore = nemo_run.Config(RestoreConfig, path=str(Path(initial_weights).absolute()), load_artifacts=False)
    return nemo_run.Partial(
        llm.pretrain,
        model=_model(settings, encoded_data, fused=accelerator == "gpu"),
        data=_data(settings, encoded_data, directory),
        trainer=_trainer(settings, encoded_data, devices, nodes, accelerator),
        optim=_optimizer(settings),
        log=_logger(settings, directory),
        resume=nemo_run.Config(
            AutoResume, restore_config=restore, resume_if_exists=True, resume_ignore_no_checkpoint=True
        ),
    )


def _tokenizer(data: EncodedData) -> nemo_run.Config:
    import nemo_run
    from nemo.collections.common.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

    return nemo_run.Config(SentencePieceTokenizer, model_path=str(data.tokenizer / "tokenizer.model"))


def _model(settings: RunSettings, data: EncodedData, *, fused: bool) -> nemo_run.Config:
    import nemo_run
    import torch.nn.functional as F
    from nemo.collections import llm

    config = nemo_run.Config(
        llm.GPTConfig,
        **megatron_words.architecture(settings),
        activation_func=F.silu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=settings.init_std,
        position_embedding_type="rope",
        rotary_percent=settings.rotary_percent,
        rotary_base=settings.rotary_base,
        share_embeddings_and_output_weights=False,
        seq_length=settings.sequence_length,
        make_vocab_size_divisible_by=settings.vocab_multiple,
        vocab_size=settings.padded_vocab_size,
        # Kernels of the GPU; what they compute is the same.
        masked_softmax_fusion=fused,
        bias_activation_fusion=fused,
        cross_entropy_loss_fusion=fused,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        **megatron_words.recomputation(settings),
    )
    return nemo_run.Config(llm.GPTModel, config=config, tokenizer=_tokenizer(data))


def _data(settings: RunSettings, data: EncodedData, directory: Path) -> nemo_run.Config:
    """The training blend of `recipes.data`, sample for sample, and the held-out documents in the same mixture."""
    import nemo_run
    from nemo.collections.llm.gpt.data.pre_training import PreTrainingDataModule

    train = mixture.training_blend(data, settings)
    whole = sum(settings.languages.values())
    heldout: list[str] = []
    for language, ratio in settings.languages.items():
        blend = mixture.heldout_blend(data, settings, language)
        for source, weight in zip(blend.sources, blend.weights, strict=True):
            heldout += [repr(ratio / whole * weight), str(source.prefix)]
    training: list[str] = []
    for source, weight in zip(train.sources, train.weights, strict=True):
        training += [repr(weight), str(source.prefix)]
    return nemo_run.Config(
        PreTrainingDataModule,
        paths={"train": training, "validation": heldout, "test": heldout},
        split=None,
        seq_length=settings.sequence_length,
        tokenizer=_tokenizer(data),
        micro_batch_size=settings.micro_batch_size,
        global_batch_size=settings.global_batch_size,
        num_train_samples=train.samples,
        seed=settings.seed,
        # A worker process would not have what recipes.cpu replaces, and memory-mapped ids need none.
        num_workers=0,
        index_mapping_dir=str(directory / "index"),
    )


def _trainer(settings: RunSettings, data: EncodedData, devices: int, nodes: int, accelerator: str) -> nemo_run.Config:
    import nemo_run
    from megatron.core.distributed import DistributedDataParallelConfig
    from nemo import lightning as nl

    from recipes.nemo_callbacks import StepsFromOne

    dtypes = precision.config(settings)
    strategy = nemo_run.Config(
        nl.MegatronStrategy,
        **megatron_words.parallel_sizes(settings),
        pipeline_dtype=dtypes["pipeline_dtype"],
        ddp=nemo_run.Config(
            DistributedDataParallelConfig,
            grad_reduce_in_fp32=True,
            check_for_nan_in_grad=True,
            use_distributed_optimizer=settings.distributed_optimizer,
            **precision.ddp_config(settings),
        ),
        ckpt_async_save=settings.async_save,
        # Any layout can go on from such a checkpoint.
        ckpt_optim_fully_reshardable=True,
    )
    heldout = sum(data.heldout_samples(language, settings) for language in settings.languages)
    return nemo_run.Config(
        nl.Trainer,
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        max_steps=settings.num_steps,
        strategy=strategy,
        plugins=_precision_plugin(settings),
        callbacks=[nemo_run.Config(StepsFromOne)],
        # Of NeMo's own, to watch a run by: over the mixture, at every n-th step.
        val_check_interval=max(1, settings.num_steps // settings.num_checkpoints),
        limit_val_batches=max(1, heldout // settings.global_batch_size),
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,
    )


def _precision_plugin(settings: RunSettings) -> nemo_run.Config:
    import nemo_run
    from nemo import lightning as nl

    dtypes = precision.config(settings)
    arguments: dict[str, Any] = {
        "precision": "bf16-mixed" if dtypes["bf16"] else "32",
        "params_dtype": dtypes["params_dtype"],
        "pipeline_dtype": dtypes["pipeline_dtype"],
        "grad_reduce_in_fp32": True,
    }
    if settings.precision == "fp8":
        names = ("fp8", "fp8_recipe", "fp8_amax_history_len", "fp8_amax_compute_algo", "first_last_layers_bf16")
        arguments |= {name: dtypes[name] for name in names}
        arguments |= {
            "num_layers_at_start_in_bf16": dtypes["num_layers_at_start_in_bf16"],
            "num_layers_at_end_in_bf16": dtypes["num_layers_at_end_in_bf16"],
            "fp8_param_gather": settings.fp8_params,
            "reuse_grad_buf_for_mxfp8_param_ag": precision.ddp_config(settings)["reuse_grad_buf_for_mxfp8_param_ag"],
        }
    return nemo_run.Config(nl.MegatronMixedPrecision, **arguments)


def _optimizer(settings: RunSettings) -> nemo_run.Config:
    import nemo_run
    from megatron.core.optimizer import OptimizerConfig
    from nemo import lightning as nl

    least = settings.learning_rate * settings.min_learning_rate_ratio
    warmup = min(settings.num_warmup_steps, settings.num_steps - 1)
    return nemo_run.Config(
        nl.MegatronOptimizerModule,
        config=nemo_run.Config(
            OptimizerConfig,
            **megatron_words.optimizer(settings),
            **precision.optimizer_config(settings),
        ),
        # NeMo warms up over one step more than it is told. `StepsFromOne` does the rest.
        lr_scheduler=nemo_run.Config(
            nl.lr_scheduler.CosineAnnealingScheduler,
            max_steps=settings.num_steps,
            warmup_steps=warmup - 1,
            constant_steps=0,
            min_lr=least,
        ),
    )


def _logger(settings: RunSettings, directory: Path) -> nemo_run.Config:
    import nemo_run
    from lightning.pytorch.loggers import TensorBoardLogger
    from nemo import lightning as nl

    from recipes.nemo_callbacks import CheckpointAtSteps

    return nemo_run.Config(
        nl.NeMoLogger,
        explicit_log_dir=str(directory),
        tensorboard=nemo_run.Config(TensorBoardLogger, save_dir="tb", name=""),
        ckpt=nemo_run.Config(
            CheckpointAtSteps, steps=list(settings.checkpoint_steps), dirpath=str(directory / "checkpoints")
        ),
    )


def _processes(arguments: argparse.Namespace) -> int:
    """Processes to start on this machine: as asked, or one a GPU, or the smallest that hold one replica."""
    if arguments.devices:
        return arguments.devices
    settings = override(load_grid(arguments.grid).run(arguments.run).settings, arguments.settings)
    from recipes import cpu

    if cpu.has_gpu():
        import torch

        return torch.cuda.device_count()
    return layout.model_parallel_size(settings)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, then print or train the recipe."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.nemo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--grid", required=True, help="a grid file, or the name of a shipped grid")
    add("--run", required=True, help="the run to train (python -m recipes.grid FILE lists them)")
    add("--data", required=True, type=Path, metavar="DIR", help="data encoded by tokenizer.encode")
    add("--out", required=True, type=Path, metavar="DIR", help="logs and checkpoints go to OUT/RUN")
    add("--devices", type=int, metavar="N", help="processes (default: the GPUs there are, or one replica's ranks)")
    add("--initial-weights", type=Path, metavar="DIR", help="start from the weights of this NeMo checkpoint")
    add("--print", action="store_true", help="print the recipe and train nothing")
    add("settings", nargs="*", metavar="key=value", help="settings that replace the grid's")
    arguments = parser.parse_args(argv)
    require()
    warnings.filterwarnings("ignore")
    from recipes import cpu

    gpu = cpu.has_gpu()
    if not gpu:
        cpu.install_for_nemo()
    partial = recipe(
        arguments.grid,
        arguments.run,
        data=arguments.data,
        out=arguments.out,
        devices=_processes(arguments),
        accelerator="gpu" if gpu else "cpu",
        initial_weights=arguments.initial_weights,
        overrides=arguments.settings,
    )
    if arguments.print:
        print(partial)
        return 0
    import fiddle

    fiddle.build(partial)()
    return 0


if __name__ == "__main__":
    cli.run(main)
