"""What a run tells while it trains: `loss.csv`, TensorBoard, `train.log` and a progress bar.

Every step is a row of `loss.csv`. A run that resumes from a checkpoint drops the rows after it, so that the
file reads as if the run had never been interrupted.
"""

from __future__ import annotations

import csv
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from recipes.settings import RunSettings, format_count
from recipes.trainer import StepResult
from tokenizer.cli import progress_bar
from tokenizer.files import write_text

logger = logging.getLogger(__name__)

COLUMNS = ("step", "tokens", "train_loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu", "heldout_loss")
"""Columns of loss.csv, before one `heldout_loss_<language>` for each language."""

_LOG_EVERY_SECONDS = 30.0


class Journal:
    """The files and the bar of one run, on the rank that writes them."""

    def __init__(self, directory: Path, run: str, settings: RunSettings, first_step: int, peak_flops: float | None):
        from torch.utils.tensorboard import SummaryWriter

        self.path = directory / "loss.csv"
        self.settings = settings
        self.languages = tuple(settings.languages)
        self._peak_flops = peak_flops
        _keep_rows(self.path, first_step, [*COLUMNS, *(f"heldout_loss_{language}" for language in self.languages)])
        self._file = self.path.open("a", encoding="utf-8", newline="")
        self._tensorboard = SummaryWriter(str(directory / "tb"), purge_step=first_step + 1)
        self._bar = progress_bar("{task.fields[state]}")
        self._task = self._bar.add_task(run, total=settings.num_steps, completed=first_step, state="")
        self._recent: list[float] = []
        self._last_logged = 0.0

    def __enter__(self) -> Journal:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        self._file.close()
        self._tensorboard.close()

    def record(self, step: int, result: StepResult, heldout: dict[str, float] | None) -> None:
        """Add a step; `heldout` maps `heldout` and `heldout_<language>` to losses, where they were taken."""
        tokens = step * self.settings.tokens_per_step
        rate = self._rate(result.seconds)
        mfu = self._mfu(rate)
        row = [
            step,
            tokens,
            f"{result.loss:.7f}",
            f"{result.learning_rate:.6e}",
            f"{result.grad_norm:.6f}",
            f"{rate:.1f}",
            "" if mfu is None else f"{mfu:.4f}",
            *(_format_heldout(heldout, name) for name in ("heldout", *(f"heldout_{it}" for it in self.languages))),
        ]
        csv.writer(self._file, lineterminator="\n").writerow(row)
        self._file.flush()
        self._show(step, result, rate, heldout)

    def sync(self) -> None:
        """Put the rows on the disk: a checkpoint must not be newer than its log."""
        os.fsync(self._file.fileno())

    def _rate(self, seconds: float) -> float:
        """Tokens a second over the last steps."""
        self._recent = [*self._recent[-9:], seconds]
        return len(self._recent) * self.settings.tokens_per_step / sum(self._recent)

    def _mfu(self, rate: float) -> float | None:
        """Share of the devices' peak rate that the model's exact FLOPs use."""
        if self._peak_flops is None:
            return None
        return rate * self.settings.flops_exact(1) / self._peak_flops

    def _show(self, step: int, result: StepResult, rate: float, heldout: dict[str, float] | None) -> None:
        scalars = {"train/loss": result.loss, "train/learning_rate": result.learning_rate}
        scalars |= {"train/grad_norm": result.grad_norm, "train/tokens_per_second": rate}
        scalars |= {f"heldout/{name}": value for name, value in (heldout or {}).items()}
        for name, value in scalars.items():
            self._tensorboard.add_scalar(name, value, step)
        state = f"loss {result.loss:.3f}  {format_count(rate)} tokens/s"
        self._bar.update(self._task, completed=step, state=state)
        now = time.monotonic()
        if heldout or step == self.settings.num_steps or now - self._last_logged > _LOG_EVERY_SECONDS:
            self._last_logged = now
            left = (self.settings.num_steps - step) * self.settings.tokens_per_step / rate
            told = f"  held-out {heldout['heldout']:.4f}" if heldout else ""
            logger.info("step %d/%d  %s%s  %.0f s left", step, self.settings.num_steps, state, told, left)


def final_train_loss(path: Path, step: int) -> float:
    """Mean training loss over the last 1 % of the tokens up to `step`, at least one step (Du et al. plot a
    checkpoint's training loss; the window is *ours*)."""
    window = max(1, round(0.01 * step))
    with open(path, encoding="utf-8", newline="") as file:
        losses = [float(row["train_loss"]) for row in csv.DictReader(file) if int(row["step"]) > step - window]
    return sum(losses) / len(losses)


def _format_heldout(heldout: dict[str, float] | None, name: str) -> str:
    return "" if heldout is None else f"{heldout[name]:.7f}"


def _keep_rows(path: Path, last_step: int, header: Sequence[str]) -> None:
    """Leave the header and the whole rows up to `last_step` in the file."""
    kept = [",".join(header)]
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines()[1:]:
            step = line.partition(",")[0]
            if step.isdigit() and int(step) <= last_step and line.count(",") == len(header) - 1:
                kept.append(line)
    write_text(path, "\n".join(kept) + "\n")
