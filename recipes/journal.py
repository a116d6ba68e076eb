"""What a run tells while it trains: `loss.csv`, `sources.csv`, TensorBoard, `train.log` and a progress bar.

Every step is a row of `loss.csv`; a step that was passed over has neither loss nor gradient norm. `sources.csv`
has the tokens that were trained on of each source, up to every state that was saved. A run that resumes from a
state drops the rows after it, so that the files read as if the run had never been interrupted.
"""

from __future__ import annotations

import contextlib
import csv
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from recipes.data import SourceTokens
from recipes.settings import RunSettings, format_count
from recipes.trainer import StepResult
from tokenizer.cli import UserError, progress_bar
from tokenizer.files import write_text

logger = logging.getLogger(__name__)

COLUMNS = ("step", "tokens", "train_loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu", "heldout_loss")
"""Columns of loss.csv, before one `heldout_loss_<language>` for each language."""

SOURCE_COLUMNS = ("step", "language", "source", "tokens")
"""Columns of sources.csv; tokens are counted from the first step."""

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
        _keep_rows(directory / "sources.csv", first_step, SOURCE_COLUMNS)
        self._file = self.path.open("a", encoding="utf-8", newline="")
        self._sources = (directory / "sources.csv").open("a", encoding="utf-8", newline="")
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
        # A full disk is told once.
        with contextlib.suppress(OSError) if error else contextlib.nullcontext():
            self._file.close()
            self._sources.close()
            self._tensorboard.close()

    def record(
        self, step: int, result: StepResult | None, learning_rate: float, heldout: dict[str, float] | None
    ) -> None:
        """Add a step, with no `result` if it was passed over; `heldout` maps `heldout` and `heldout_<language>` to
        losses, where they were taken."""
        rate = self._rate(result.seconds) if result else None
        mfu = self._mfu(rate) if rate else None
        row = [
            step,
            step * self.settings.tokens_per_step,
            f"{result.loss:.7f}" if result else "",
            f"{learning_rate:.6e}",
            f"{result.grad_norm:.6f}" if result else "",
            "" if rate is None else f"{rate:.1f}",
            "" if mfu is None else f"{mfu:.4f}",
            *(_format_heldout(heldout, name) for name in ("heldout", *(f"heldout_{it}" for it in self.languages))),
        ]
        csv.writer(self._file, lineterminator="\n").writerow(row)
        self._file.flush()
        scalars = {"train/learning_rate": learning_rate}
        scalars |= {f"heldout/{name}": value for name, value in (heldout or {}).items()}
        if result and rate:
            scalars |= {"train/loss": result.loss, "train/grad_norm": result.grad_norm}
            scalars |= {"train/tokens_per_second": rate}
            self._show(step, result.loss, rate, heldout)
        else:
            logger.info("step %d passed over, as skip_steps says", step)
        for name, value in scalars.items():
            self._tensorboard.add_scalar(name, value, step)

    def record_sources(self, step: int, sources: Sequence[SourceTokens]) -> None:
        """Add the tokens of each source up to `step`."""
        rows = [(step, it.language, it.source, it.tokens) for it in sources]
        csv.writer(self._sources, lineterminator="\n").writerows(rows)
        self._sources.flush()

    def sync(self) -> None:
        """Put the rows on the disk: a checkpoint must not be newer than its log."""
        os.fsync(self._file.fileno())
        os.fsync(self._sources.fileno())

    def _rate(self, seconds: float) -> float:
        """Tokens a second over the last steps."""
        self._recent = [*self._recent[-9:], seconds]
        return len(self._recent) * self.settings.tokens_per_step / sum(self._recent)

    def _mfu(self, rate: float) -> float | None:
        """Share of the devices' peak rate that the model's exact FLOPs use."""
        if self._peak_flops is None:
            return None
        return rate * self.settings.flops_exact(1) / self._peak_flops

    def _show(self, step: int, loss: float, rate: float, heldout: dict[str, float] | None) -> None:
        state = f"loss {loss:.3f}  {format_count(rate)} tokens/s"
        self._bar.update(self._task, completed=step, state=state)
        now = time.monotonic()
        if heldout or step == self.settings.num_steps or now - self._last_logged > _LOG_EVERY_SECONDS:
            self._last_logged = now
            left = (self.settings.num_steps - step) * self.settings.tokens_per_step / rate
            told = f"  held-out {heldout['heldout']:.4f}" if heldout else ""
            logger.info("step %d/%d  %s%s  %.0f s left", step, self.settings.num_steps, state, told, left)


def final_train_loss(path: Path, step: int) -> float:
    """Mean training loss over the last 1 % of the tokens up to `step`, at least one step (Du et al. plot a
    checkpoint's training loss; the window is *ours*). Steps that were passed over do not count; if there are no
    others in the window, the last one before it does."""
    losses = [(at, loss) for at, loss in _read_losses(path, step) if loss is not None]
    window = max(1, round(0.01 * step))
    last = [loss for at, loss in losses if at > step - window] or [loss for _, loss in losses[-1:]]
    if not last:
        raise UserError(f"all {step} steps are in skip_steps; leave one to train on")
    return sum(last) / len(last)


def train_losses(run_directory: Path, last_step: int) -> list[float]:
    """The training losses of the run up to `last_step`, of the steps that were not passed over."""
    return [loss for _, loss in _read_losses(run_directory / "loss.csv", last_step) if loss is not None]


def passed_over_steps(run_directory: Path, last_step: int) -> set[int]:
    """The steps up to `last_step` that the run passed over."""
    return {step for step, loss in _read_losses(run_directory / "loss.csv", last_step) if loss is None}


def _read_losses(path: Path, last_step: int) -> list[tuple[int, float | None]]:
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["step"].isdigit() and int(row["step"]) <= last_step]
    return [(int(row["step"]), float(row["train_loss"]) if row["train_loss"] else None) for row in rows]


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
