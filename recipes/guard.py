"""What ends a run before its last step without losing it: signals, and losses that must not be trained on.

SIGTERM and SIGUSR1 (Slurm's warning ahead of the time limit) let the step end, save a state to resume from and
leave with exit code 75, "again"; Ctrl-C the same with 130, and a second Ctrl-C at once. Whichever process of the
run is told, all of them stop after the same step: once a step they agree on it, on whether it is time to save,
and on whether the loss can be trained on, by one all-reduce of three numbers.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import FrameType, TracebackType

from recipes.settings import RunSettings
from tokenizer.cli import EXIT_AGAIN, EXIT_INTERRUPTED

LOSS_WINDOW = 20
"""Steps over which the mean is taken that a step's loss is compared with. *Ours*."""

_MIN_LOSSES = 5
"""Losses that there must be for the comparison."""

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

_LOST_PEER = ("closed by peer", "reset by peer", "broken pipe", "timed out waiting", "remote process", "gloo/transport")
"""What gloo says, in a RuntimeError, when a process at the other end is gone."""


class Stopped(BaseException):
    """The run was told to stop, and has nothing left to save.

    No Exception, as KeyboardInterrupt is none: a signal arrives anywhere, and libraries that catch whatever goes wrong
    in them would make something else of it (OmegaConf does).
    """

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.exit_code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_AGAIN


class StopSignals(AbstractContextManager):
    """Notes the signals that stop a run, in the main thread of its process.

    Before `save_first` they raise Stopped where they arrive; after it they are only noted in `number`, 0 if there
    was none. Handlers of before come back at the end.
    """

    def __init__(self) -> None:
        self.number = 0
        self._noting = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # What nohup and shells have set to be ignored stays so.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def save_first(self) -> None:
        """From now on there is something to save."""
        self._noting = True

    def _received(self, number: int, frame: FrameType | None) -> None:
        if self._noting:
            if number == signal.SIGINT == self.number:
                raise KeyboardInterrupt
            self.number = self.number or number
        else:
            raise Stopped(number, f"stopped by {signal.Signals(number).name} before its first step")


class LossWatch:
    """Says which losses must not be trained on.

    Args:
        settings: `max_loss_jump`, in nats.
        losses: Of the steps before, the newest last.
    """

    def __init__(self, settings: RunSettings, losses: Sequence[float]):
        self._max_jump = settings.max_loss_jump
        self._losses: deque[float] = deque(losses, maxlen=LOSS_WINDOW)

    def objection(self, loss: float) -> str | None:
        """Why `loss` stops the run, if it does."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if self._max_jump and len(self._losses) >= _MIN_LOSSES:
            mean = sum(self._losses) / len(self._losses)
            if loss - mean > self._max_jump:
                return (
                    f"the loss is {loss:.4f}, {loss - mean:.4f} nats above the mean of the {len(self._losses)} steps "
                    f"before it (max_loss_jump={self._max_jump:g})"
                )
        return None

    def add(self, loss: float) -> None:
        """Count a step that was trained."""
        self._losses.append(loss)


class Guard:
    """The agreement of a run's processes, once a step. `watch` is the first rank's, which alone knows the clock and
    the losses of before."""

    def __init__(self, settings: RunSettings, signals: StopSignals, watch: LossWatch | None):
        self.signal = 0
        """Number of the signal that stops the run after this step, or 0."""
        self.save_is_due = False
        """Whether `save_every_minutes` have passed since the last state."""
        self._signals = signals
        self._watch = watch
        self._seconds = settings.save_every_minutes * 60
        self._saved = time.monotonic()

    def saved(self) -> None:
        """A state was just saved."""
        self._saved = time.monotonic()

    def agree(self, loss: float | None) -> bool:
        """Agree on this step: whether its loss (None: it has none) may be trained on; sets `signal` and
        `save_is_due`. Called on all ranks."""
        import torch
        import torch.distributed

        from recipes import cpu

        due = objects = False
        if self._watch:
            due = bool(self._seconds) and time.monotonic() - self._saved >= self._seconds
            objects = loss is not None and self._watch.objection(loss) is not None
        said = [self._signals.number, int(due), int(objects)]
        if torch.distributed.get_world_size() > 1:
            numbers = torch.tensor(said, dtype=torch.int32, device=cpu.device())
            torch.distributed.all_reduce(numbers, op=torch.distributed.ReduceOp.MAX)
            said = numbers.tolist()
        self.signal, self.save_is_due = said[0], bool(said[1])
        return not said[2]


def follow_launcher() -> None:
    """Be told by SIGTERM if torchrun's own process dies, however that happens: its processes would train on and hold
    the run's directory, with nobody left to stop them. Linux only."""
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        launcher = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != launcher:
            raise Stopped(signal.SIGTERM, "the launcher is gone before the first step")


_PR_SET_PDEATHSIG = 1


def lost_peer(error: BaseException) -> bool:
    """Whether `error` says that another process of the run is gone."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"DistBackendError", "DistNetworkError", "DistStoreError"}:
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _LOST_PEER)
