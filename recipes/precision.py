"""The precision of a run: what it needs of the hardware, and what Megatron-Core and Transformer Engine are told.

fp32 and bf16 train anywhere. fp8 multiplies the matrices of the layers' linear modules in FP8 through Transformer
Engine, on a GPU that can; parameters, norms, attention, embeddings and output head stay in bf16, masters and
gradient sums in fp32. fp8-emulated rounds the same operands to the same FP8 values on a CPU (`recipes.emulation`).
What the hardware cannot do is refused before any process group starts:

    python -m recipes.pretrain --grid smoke --run small-20480 --out runs/smoke precision=fp8-emulated fp8_recipe=delayed
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenizer.cli import UserError

if TYPE_CHECKING:
    import torch

    from recipes.settings import RunSettings

MIN_CAPABILITY = {"delayed": (8, 9), "tensorwise": (8, 9), "blockwise": (9, 0), "mxfp8": (10, 0)}
"""Compute capability from which Transformer Engine runs a recipe (transformer_engine/pytorch/quantization.py)."""

MIN_TRANSFORMER_ENGINE = {"delayed": (1, 8), "tensorwise": (2, 2), "blockwise": (2, 3), "mxfp8": (2, 1)}
"""First release with a recipe, as Megatron-Core asks for it (megatron/core/fp8_utils.py, get_fp8_recipe)."""

MIN_CUDA_BLOCKWISE = (12, 9)
"""CUDA whose cuBLAS has block-scaled FP8 products (transformer_engine/pytorch/quantization.py)."""

NO_MXFP8_FROM = (12, 0)
"""Compute capability from which Transformer Engine does not run MXFP8's products (same file)."""


@dataclass(frozen=True)
class Device:
    """What a check must know of the GPU that this process trains on and of the software for it."""

    name: str
    capability: tuple[int, int]
    """Compute capability: 8.0 for an A100, 9.0 for an H100, 10.0 for a B200."""
    cuda: tuple[int, int]
    """CUDA release that torch was built for."""
    transformer_engine: tuple[int, ...] | None
    """Release of Transformer Engine; None if it is not installed."""


def local_device() -> Device | None:
    """The GPU of this process; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    index = min(int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count() - 1)
    properties = torch.cuda.get_device_properties(index)
    return Device(
        properties.name,
        (properties.major, properties.minor),
        _release(torch.version.cuda or "0.0")[:2],
        _transformer_engine(),
    )


def _transformer_engine() -> tuple[int, ...] | None:
    try:
        return _release(importlib.metadata.version("transformer-engine"))
    except importlib.metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[int, ...]:
    """``"2.4.0+cu12"`` as ``(2, 4, 0)``."""
    numbers = []
    for part in version.partition("+")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return (*numbers, 0, 0)[: max(2, len(numbers))]


def is_bf16(settings: RunSettings) -> bool:
    """Whether parameters and activations are bf16: in every precision but fp32."""
    return settings.precision != "fp32"


def is_fp8_layer(settings: RunSettings, layer: int) -> bool:
    """Whether the linear modules of `layer` (from 0, over all pipeline stages) multiply FP8 values."""
    kept = settings.fp8_bf16_layers
    return settings.precision.startswith("fp8") and kept <= layer < settings.num_layers - kept


def check(settings: RunSettings) -> None:
    """UserError unless this process's hardware and software can train at the settings' precision."""
    check_settings(settings)
    check_device(settings, local_device())


def check_settings(settings: RunSettings) -> None:
    """UserError where settings of the precision contradict each other, on whatever hardware."""
    if not settings.precision.startswith("fp8"):
        for name in ("fp8_params", "fp8_bf16_layers"):
            if value := getattr(settings, name):
                raise UserError(
                    f"{name}={value} needs precision=fp8 or fp8-emulated, not {settings.precision}; leave it out"
                )
        return
    kept = settings.fp8_bf16_layers
    if kept and settings.fp8_recipe == "delayed":
        raise UserError(
            f"fp8_bf16_layers={kept} does not go with fp8_recipe=delayed, whose history Megatron-Core keeps for all "
            "layers at once; set fp8_recipe=tensorwise, or fp8_bf16_layers=0"
        )
    if 2 * kept >= settings.num_layers:
        raise UserError(
            f"fp8_bf16_layers={kept} at each end leaves none of {settings.num_layers} layers in FP8; set precision="
            f"bf16, or fp8_bf16_layers to at most {(settings.num_layers - 1) // 2}"
        )
    if kept > (most := settings.num_layers // settings.pipeline_parallel):
        raise UserError(
            f"fp8_bf16_layers={kept} is more than the {most} layers of a pipeline stage, as Megatron-Core wants them; "
            f"set fp8_bf16_layers to at most {most}, or lower pipeline_parallel"
        )
    if not settings.fp8_params:
        return
    if settings.precision == "fp8-emulated":
        raise UserError(
            "fp8_params saves memory on a GPU and changes no value that fp8-emulated computes; leave it out"
        )
    if not settings.distributed_optimizer:
        raise UserError(
            "fp8_params keeps the masters of the FP8 weights in the distributed optimizer; set "
            "distributed_optimizer=true, or leave fp8_params out"
        )


def check_device(settings: RunSettings, device: Device | None) -> None:
    """UserError unless `device` (None: a CPU) can train at the settings' precision."""
    precision = settings.precision
    if device is None:
        if precision == "fp8":
            raise UserError(
                "precision=fp8 needs a GPU of compute capability 8.9 or above and this machine has none; "
                f"precision=fp8-emulated fp8_recipe={settings.fp8_recipe} rounds to the same values on a CPU, "
                "precision=bf16 trains without them"
            )
        return
    what = f"{device.name} (compute capability {_dotted(device.capability)})"
    if precision == "fp8-emulated":
        fitting = _fitting_recipes(device)
        instead = f"precision=fp8 fp8_recipe={fitting[0]}" if fitting else "precision=bf16"
        raise UserError(
            f"precision=fp8-emulated runs on a CPU and this process would train on {what}; set {instead}, or hide "
            "the GPU with CUDA_VISIBLE_DEVICES="
        )
    if device.transformer_engine is None:
        raise UserError(
            f"this process would train on {what}, where the layers are Transformer Engine's, which is not installed; "
            "pip install 'transformer-engine[pytorch]', or train on the CPU with CUDA_VISIBLE_DEVICES="
        )
    if precision != "fp32" and device.capability < (8, 0):
        raise UserError(f"precision={precision} needs compute capability 8.0 and {what} is below; set precision=fp32")
    if precision == "fp8":
        _check_recipe(settings, device, what)
        _check_sizes(settings)


def _check_recipe(settings: RunSettings, device: Device, what: str) -> None:
    recipe = settings.fp8_recipe
    reason = _unfit(recipe, device)
    if reason is None:
        return
    fitting = _fitting_recipes(device)
    instead = " or ".join(f"fp8_recipe={it}" for it in fitting) if fitting else "precision=bf16"
    raise UserError(f"fp8_recipe={recipe} {reason}, and this is {what}; set {instead}")


def _fitting_recipes(device: Device) -> list[str]:
    """Recipes that the device can run, the one to prefer first."""
    return [recipe for recipe in ("tensorwise", "blockwise", "mxfp8", "delayed") if _unfit(recipe, device) is None]


def _unfit(recipe: str, device: Device) -> str | None:
    """Why the device cannot run an FP8 recipe; None if it can."""
    if device.capability < (least := MIN_CAPABILITY[recipe]):
        return f"needs compute capability {_dotted(least)}"
    if recipe == "mxfp8" and device.capability >= NO_MXFP8_FROM:
        return f"is not in Transformer Engine for compute capability {_dotted(NO_MXFP8_FROM)} and above"
    if recipe == "blockwise" and device.cuda < MIN_CUDA_BLOCKWISE:
        return f"needs torch built for CUDA {_dotted(MIN_CUDA_BLOCKWISE)}, not {_dotted(device.cuda)}"
    installed = device.transformer_engine or (0,)
    if installed < (least := MIN_TRANSFORMER_ENGINE[recipe]):
        return f"needs Transformer Engine {_dotted(least)}, not {_dotted(installed)}"
    return None


def _check_sizes(settings: RunSettings) -> None:
    """UserError unless every operand of the layers' products has sides that FP8 kernels take.

    cuBLAS wants multiples of 16 of every side (an operand is the inner side of one of the three products), MXFP8
    whole blocks of 32 (transformer_engine/pytorch/csrc/quantizer.cpp).
    """
    multiple = 32 if settings.fp8_recipe == "mxfp8" else 16
    tensor = settings.tensor_parallel
    query = settings.num_attention_heads * settings.kv_channels
    groups = settings.num_query_groups * settings.kv_channels
    tokens = settings.sequence_length * settings.micro_batch_size // settings.context_parallel
    sides = (
        ("hidden_size", settings.hidden_size, 1),
        ("rows of queries, keys and values", query + 2 * groups, tensor),
        ("num_attention_heads x kv_channels", query, tensor),
        ("ffn_hidden_size", settings.ffn_hidden_size, tensor),
        ("tokens of a micro-batch", tokens, tensor if settings.sequence_parallel else 1),
    )
    for name, size, parts in sides:
        if size % (multiple * parts):
            over = f" over {parts} tensor-parallel ranks" if parts > 1 else ""
            raise UserError(
                f"{name}: {size}{over} is no multiple of {multiple}, as the FP8 products of fp8_recipe="
                f"{settings.fp8_recipe} want; {size - size % (multiple * parts)} or "
                f"{size + -size % (multiple * parts)} would do, or precision=bf16"
            )


def _dotted(release: tuple[int, ...]) -> str:
    return ".".join(map(str, release[:2]))


def config(settings: RunSettings) -> dict[str, Any]:
    """Megatron-Core's TransformerConfig arguments of the settings' precision."""
    import torch

    bf16 = is_bf16(settings)
    dtype = torch.bfloat16 if bf16 else torch.float32
    arguments: dict[str, Any] = {"bf16": bf16, "params_dtype": dtype, "pipeline_dtype": dtype}
    if settings.precision != "fp8":
        return arguments
    kept = settings.fp8_bf16_layers
    return arguments | {
        "fp8": settings.fp8_format,
        "fp8_recipe": settings.fp8_recipe,
        "fp8_param": settings.fp8_params,
        # Transformer Engine's defaults. Megatron-Core's are a history of one step.
        "fp8_amax_history_len": settings.fp8_amax_history,
        "fp8_amax_compute_algo": "max",
        "first_last_layers_bf16": kept > 0,
        "num_layers_at_start_in_bf16": kept,
        "num_layers_at_end_in_bf16": kept,
    }


def optimizer_config(settings: RunSettings) -> dict[str, Any]:
    """Megatron-Core's OptimizerConfig arguments of the settings' precision."""
    import torch

    arguments: dict[str, Any] = {
        "bf16": is_bf16(settings),
        "params_dtype": torch.bfloat16 if is_bf16(settings) else torch.float32,
    }
    if settings.precision == "fp8":
        arguments["fp8_recipe"] = settings.fp8_recipe
        arguments["reuse_grad_buf_for_mxfp8_param_ag"] = _reuses_gradients(settings)
    return arguments


def ddp_config(settings: RunSettings) -> dict[str, Any]:
    """Megatron-Core's DistributedDataParallelConfig arguments of the settings' precision."""
    if settings.precision != "fp8":
        return {}
    return {
        "fp8_param_gather": settings.fp8_params,
        "reuse_grad_buf_for_mxfp8_param_ag": _reuses_gradients(settings),
    }


def _reuses_gradients(settings: RunSettings) -> bool:
    # MXFP8 weights cannot be moved into one buffer; Megatron-Core gathers them through that of the gradients.
    return settings.fp8_params and settings.fp8_recipe == "mxfp8"


@contextmanager
def plain_weights(model: torch.nn.Module) -> Iterator[None]:
    """Let the block write weights that Transformer Engine keeps in FP8 as if they were plain bf16 ones.

    They are rounded when it ends, and the optimizer's masters start from the values before rounding: from what
    Transformer Engine calls the parameter's high-precision initial value. Without FP8 weights nothing happens.
    """
    import torch

    held = [
        (module, name, weight)
        for module in model.modules()
        for name, weight in module._parameters.items()
        if hasattr(weight, "get_high_precision_init_val")
    ]
    for module, name, weight in held:
        plain = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
        module._parameters[name] = torch.nn.Parameter(plain)
    yield
    for module, name, weight in held:
        plain = module._parameters[name].detach()
        module._parameters[name] = weight
        with torch.no_grad():
            weight.copy_(plain)
        _start_masters_from(weight, plain.cpu())


def _start_masters_from(weight: torch.nn.Parameter, values: torch.Tensor) -> None:
    kept = [values]
    weight.get_high_precision_init_val = lambda: kept[0]
    weight.clear_high_precision_init_val = kept.clear
