"""What Megatron-Core needs to run without CUDA, each replacement with its reason, and nothing else.

Megatron-Core names CUDA directly (device strings, streams, its random state, tensor type names). `install`
answers those names with the CPU's equivalents; with a GPU it changes nothing. It must be called before
Megatron-Core builds a model.
"""

from __future__ import annotations

import ctypes
import functools
import types
import warnings
from contextlib import contextmanager
from typing import Any

import torch

_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "arange", "rand", "randn", "empty_like", "zeros_like")


def has_gpu() -> bool:
    """Whether this process trains on a CUDA device."""
    return torch.cuda.is_available()


def device() -> torch.device:
    """The device that this process trains on."""
    return torch.device("cuda", torch.cuda.current_device()) if has_gpu() else torch.device("cpu")


def backend() -> str:
    """The torch.distributed backend for `device`: nccl on a GPU, gloo on a CPU."""
    return "nccl" if has_gpu() else "gloo"


@functools.cache
def install() -> None:
    """Let Megatron-Core run on the CPU when there is no GPU; harmless to call again."""
    # Megatron says at every import that Apex and Transformer Engine are missing: on a CPU they must be.
    warnings.filterwarnings("ignore", module=r"megatron\..*")
    if has_gpu():
        return
    keep_freed_memory()
    _replace_compile()
    _replace_device_queries()
    _replace_factories()
    _replace_type_names()
    _replace_streams()
    _replace_random_state()
    _restore_steps()


def install_for_nemo() -> None:
    """`install`, and what NeMo 2.7 and Lightning need beside it. Must be called before NeMo is imported."""
    install()
    if not has_gpu():
        _replace_moves()
        _leave_loaded_tensors()
        _leave_out_timers()
        _allocate_state_to_load()


def keep_freed_memory() -> None:
    """Let the C library keep what torch frees, where it is glibc.

    By default it returns large blocks to the kernel, and every activation of every step is paged in anew: half
    the time of the output layer's product.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in _MALLOC_SETTINGS:
            mallopt(parameter, value)


_MALLOC_SETTINGS = ((-4, 0), (-1, 2**31 - 1), (-2, 64 * 2**20))
"""M_MMAP_MAX 0: no block of its own mapping; M_TRIM_THRESHOLD: never shrink; M_TOP_PAD: grow by 64 MB (malloc.h)."""


def _replace_compile() -> None:
    # Megatron-Core compiles its fused kernels where they are defined, which loads the compiler at every start:
    # half of the time to the first step, for kernels that a CPU's layers do not call.
    original = torch.compile

    @functools.wraps(original)
    def compile_when_called(model: Any = None, **options: Any) -> Any:
        if model is None:
            return lambda given: compile_when_called(given, **options)
        if not isinstance(model, types.FunctionType):
            return original(model, **options)
        compiled = functools.cache(lambda: original(model, **options))
        return functools.wraps(model)(lambda *args, **kwargs: compiled()(*args, **kwargs))

    torch.compile = compile_when_called


def _replace_device_queries() -> None:
    # Buffers and parameters are made with device=torch.cuda.current_device().
    torch.cuda.current_device = lambda: torch.device("cpu")
    # The checkpoint writer's process binds itself to rank % device_count.
    torch.cuda.device_count = lambda: 1
    torch.cuda.set_device = lambda device: None
    torch.cuda.synchronize = lambda device=None: None
    # Data that the host sends "to the GPU" are where they should be already.
    torch.Tensor.cuda = lambda self, *args, **kwargs: self


def _replace_factories() -> None:
    # Scalars of the schedule, of gradient clipping and of the optimizers are made with device="cuda".
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))


def _on_cpu(factory: Any) -> Any:
    @functools.wraps(factory)
    def made(*args: Any, **kwargs: Any) -> torch.Tensor:
        place = kwargs.get("device")
        if place is not None and torch.device(place).type == "cuda":
            kwargs["device"] = "cpu"
        return factory(*args, **kwargs)

    return made


def _replace_moves() -> None:
    # NeMo moves modules and batches to "cuda", through memory that is pinned for the copy.
    torch.nn.Module.cuda = lambda self, device=None: self
    torch.Tensor.pin_memory = lambda self, device=None: self
    for owner, name in ((torch.Tensor, "to"), (torch.nn.Module, "to")):
        setattr(owner, name, _to_cpu(getattr(owner, name)))
    for name in _FACTORIES:
        setattr(torch, name, _unpinned(getattr(torch, name)))


def _leave_loaded_tensors() -> None:
    # What NeMo loads it looks through for tensors that lie on another GPU.
    from nemo.lightning.io import pl

    pl._fix_tensors_device = lambda checkpoint: checkpoint


def _leave_out_timers() -> None:
    # The first rank alone gathers the timers of all, of which there are none: nothing to nccl, but gloo waits.
    from nemo.lightning.pytorch.callbacks.progress_printer import ProgressPrinter

    ProgressPrinter.log_megatron_timers = lambda self, timers: None


def _allocate_state_to_load() -> None:
    # The distributed optimizer counts on the state that it is to load; torch's AdamW makes it at its first step.
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    original = DistributedOptimizer.sharded_state_dict

    @functools.wraps(original)
    def sharded_state_dict(self: Any, model: Any, is_loading: bool = False, *args: Any, **kwargs: Any) -> Any:
        if is_loading and not self.optimizer.state:
            rates = [group["lr"] for group in self.optimizer.param_groups]
            for group in self.optimizer.param_groups:
                # At this rate neither the step nor the decay changes a weight.
                group["lr"] = 0.0
            self._init_optimizer_states_with_dummy_values()
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        return original(self, model, is_loading, *args, **kwargs)

    DistributedOptimizer.sharded_state_dict = sharded_state_dict


def _to_cpu(move: Any) -> Any:
    @functools.wraps(move)
    def moved(self: Any, *args: Any, **kwargs: Any) -> Any:
        return move(self, *map(_place, args), **{key: _place(value) for key, value in kwargs.items()})

    return moved


def _place(value: Any) -> Any:
    """The CPU for anything that names a CUDA device, anything else as it is."""
    if isinstance(value, str | torch.device) and torch.device(value).type == "cuda":
        return torch.device("cpu")
    return value


def _unpinned(factory: Any) -> Any:
    @functools.wraps(factory)
    def made(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return factory(*args, **kwargs)

    return made


def _replace_type_names() -> None:
    # The optimizers and gradient clipping tell precisions apart by names such as "torch.cuda.FloatTensor".
    original = torch.Tensor.type

    @functools.wraps(original)
    def type_name(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = original(self, *args, **kwargs)
        return answer.replace("torch.", "torch.cuda.", 1) if isinstance(answer, str) else answer

    torch.Tensor.type = type_name


class _Stream:
    """A stream on a device that runs everything in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_stream(self, stream: _Stream) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


@contextmanager
def _stream_context(stream: Any) -> Any:
    yield


def _replace_streams() -> None:
    # Gradient reduction is put on a stream of its own.
    torch.cuda.Stream = _Stream
    torch.cuda.stream = _stream_context
    torch.cuda.current_stream = torch.cuda.default_stream = lambda device=None: _Stream()


def _restore_steps() -> None:
    # torch's AdamW counts its steps in a tensor for each parameter, the fused optimizers of a GPU in one number.
    # Megatron-Core's distributed optimizer gives all of them the same tensor on loading, then misses it.
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    original = DistributedOptimizer._set_main_param_and_optimizer_states

    @functools.wraps(original)
    def set_states(self: Any, model_param: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
        group, place = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][place]]
        if "step" in state and "step" not in tensors:
            state["step"] = state["step"].clone()
            tensors = {**tensors, "step": state["step"]}
        original(self, model_param, tensors)

    DistributedOptimizer._set_main_param_and_optimizer_states = set_states


def _replace_random_state() -> None:
    # Tensor-parallel regions keep random states of "the GPU", here of the CPU.
    torch.cuda.get_rng_state = torch.cuda.random.get_rng_state = lambda device=None: torch.get_rng_state()
    torch.cuda.set_rng_state = torch.cuda.random.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
    torch.cuda.manual_seed = lambda seed: torch.default_generator.manual_seed(seed) and None

    from megatron.core.tensor_parallel import random

    # The setter reaches into CUDA's generators instead of calling torch.cuda.set_rng_state.
    random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)
