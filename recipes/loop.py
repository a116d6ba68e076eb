"""The training loop of a run: from the newest whole state to the last step, saving so that nothing is lost.

Evaluation checkpoints fall on `checkpoint_steps`, states to resume from every `save_every_minutes` and when a
signal stops the run. A loss that must not be trained on stops the run before the weights are touched.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from recipes import checkpoint, distributed, hardware
from recipes.checkpoint import CHECKPOINTS, RESUME, Manifest
from recipes.data import BlendedSamples, consumed, heldout_sets, training_set
from recipes.encoded import EncodedData
from recipes.guard import LOSS_WINDOW, Guard, LossWatch, Stopped, StopSignals
from recipes.journal import Journal, final_train_loss, passed_over_steps, train_losses
from recipes.provenance import git_revision
from recipes.saving import Saver, load
from recipes.settings import RunSettings
from recipes.trainer import StepResult, Trainer
from tokenizer.cli import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A run of a grid, where it lies and what it reads."""

    grid: str
    name: str
    settings: RunSettings
    directory: Path
    data: EncodedData


def resume_point(run: Run) -> tuple[int, Path | None]:
    """The step that the run goes on from, the same on every rank, and its state: 0 and None for a new run."""

    def find() -> int:
        checkpoint.remove_leftovers(run.directory)
        found = checkpoint.latest(run.directory)
        if found is None:
            return 0
        _check_skipped(run, found.manifest.step)
        return 2 * found.manifest.step + (found.directory.parent.name == RESUME)

    step, in_resume = divmod(distributed.from_first_rank(find), 2)
    if not step:
        return 0, None
    return step, checkpoint.step_directory(run.directory, step, RESUME if in_resume else CHECKPOINTS)


def _check_skipped(run: Run, done: int) -> None:
    """UserError if a step is to be skipped that the state to go on from was trained on."""
    passed = passed_over_steps(run.directory, done)
    trained = sorted(step for step in run.settings.skip_steps if step <= done and step not in passed)
    if trained:
        raise UserError(
            f"skip_steps names step {trained[0]}, but {run.directory} goes on from step {done}, whose weights were "
            "trained on it; take it out, or remove the checkpoints and resume states from that step on"
        )


def train_from(run: Run, done: int, state: Path | None, signals: StopSignals) -> None:
    """Train from step `done`, whose state is in `state`, to the last step. Called on all ranks.

    Raises Stopped after a signal, and UserError where a state cannot be saved or a loss not be trained on.
    """
    first_rank = distributed.is_first_rank()
    trainer = Trainer(run.settings)
    if state:
        logger.info("resuming from step %d", done)
        load(state, trainer)
    dataset = training_set(run.data, run.settings)
    heldout = heldout_sets(run.data, run.settings)
    watch = LossWatch(run.settings, train_losses(run.directory, done)[-LOSS_WINDOW:]) if first_rank else None

    def published(manifest: Manifest) -> None:
        checkpoint.remove_old_states(run.directory, run.settings.keep_optimizer_states)
        if manifest.final:
            checkpoint.remove_resume_states(run.directory)

    peak_flops = hardware.peak_flops(run.settings.precision)
    journal = Journal(run.directory, run.name, run.settings, done, peak_flops) if first_rank else None
    saver = Saver(trainer, run.data.tokenizer, background=run.settings.async_save, published=published)
    guard = Guard(run.settings, signals, watch)
    with journal or nullcontext():
        try:
            signals.save_first()
            _Loop(run, trainer, dataset, heldout, journal, saver, guard, watch).run(done)
            saver.finish()
        except (UserError, Stopped):
            # Of all ranks at the same step: what was being written before is still good.
            saver.finish()
            raise
        finally:
            saver.abandon()


@dataclass
class _Loop:
    run_: Run
    trainer: Trainer
    dataset: BlendedSamples
    heldout: dict[str, BlendedSamples]
    journal: Journal | None
    saver: Saver
    guard: Guard
    watch: LossWatch | None

    def run(self, done: int) -> None:
        """All steps after `done`."""
        for step in range(done + 1, self.run_.settings.num_steps + 1):
            self._step(step)
            if self.guard.signal and step < self.run_.settings.num_steps:
                self.saver.finish()
                raise Stopped(
                    self.guard.signal, f"stopped after step {step}, which is saved; the same command goes on from there"
                )

    def _step(self, step: int) -> None:
        settings = self.run_.settings
        result = None
        if step in settings.skip_steps:
            self.guard.agree(None)
            learning_rate = self.trainer.pass_over()
        else:
            result = self._train(step)
            learning_rate = result.learning_rate
        is_checkpoint = step in settings.checkpoint_steps
        losses = _mixture_losses(settings, self.trainer.heldout_losses(self.heldout)) if is_checkpoint else None
        if self.journal:
            self.journal.record(step, result, learning_rate, losses)
        self.saver.poll()
        if is_checkpoint or self.guard.save_is_due or self.guard.signal:
            directory = checkpoint.step_directory(self.run_.directory, step, CHECKPOINTS if is_checkpoint else RESUME)
            self.saver.save(directory, self._manifest(step, losses or {}))
            self.guard.saved()

    def _train(self, step: int) -> StepResult:
        def before_update(loss: float) -> None:
            if not self.guard.agree(loss):
                reason = self.watch.objection(loss) if self.watch else None
                raise self._refusal(step, reason or f"the loss is {loss:.4f}")

        result = self.trainer.step(self.dataset, step, before_update)
        if not math.isfinite(result.grad_norm):
            raise self._refusal(step, f"the gradient norm is {result.grad_norm}")
        if self.watch:
            self.watch.add(result.loss)
        return result

    def _refusal(self, step: int, reason: str) -> UserError:
        batch = self.run_.settings.global_batch_size
        first = (step - 1) * batch
        counts = self.dataset.count_sources(first, first + batch)
        sources = ", ".join(
            f"{count} of {source.language}/{source.source}"
            for source, count in zip(self.dataset.blend.sources, counts, strict=True)
            if count
        )
        skipped = ",".join(map(str, sorted({*self.run_.settings.skip_steps, step})))
        return UserError(
            f"{self.run_.name} stopped at step {step}: {reason}; its batch are samples {first} to {first + batch - 1} "
            f"of the mixture ({sources}); run again with skip_steps=[{skipped}] to pass over it, or with a lower "
            "learning_rate or clip_grad in another --out"
        )

    def _manifest(self, step: int, losses: dict[str, float]) -> Manifest:
        run, settings = self.run_, self.run_.settings
        if self.journal:
            skipped = passed_over_steps(run.directory, step)
            counted = dataclasses.replace(settings, skip_steps=tuple(sorted(skipped)))
            self.journal.record_sources(step, consumed(self.dataset, counted, run.data, step))
            self.journal.sync()
            losses = {**losses, "train": final_train_loss(self.journal.path, step)}
        tokens = step * settings.tokens_per_step
        return Manifest(
            grid=run.grid,
            run=run.name,
            size=settings.size,
            seed=settings.seed,
            step=step,
            final=step == settings.num_steps,
            tokens=tokens,
            parameters=settings.parameters,
            parameters_non_embedding=settings.parameters_non_embedding,
            flops_6nd=settings.flops_6nd(tokens),
            flops_exact=settings.flops_exact(tokens),
            precision=settings.precision,
            losses=losses,
            sequence_length=settings.sequence_length,
            vocab_size=settings.vocab_size,
            tokenizer_sha256=run.data.tokenizer_sha256,
            data_fingerprint=run.data.fingerprint,
            git_revision=git_revision(),
        )


def _mixture_losses(settings: RunSettings, by_language: dict[str, float]) -> dict[str, float]:
    """The losses of the languages and, as `heldout`, their mean over the mixture's tokens."""
    total = sum(settings.languages.values())
    mixture = sum(settings.languages[language] / total * loss for language, loss in by_language.items())
    return {"heldout": mixture, **{f"heldout_{language}": loss for language, loss in by_language.items()}}
