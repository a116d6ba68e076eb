"""How long the steps of a plan take, what is left of them, and when all will be done.

Before anything has run, the time of a run is its FLOPs over this machine's rate for matrices of its width
(`launchers.machine`) times the share of that rate that the recipe reaches; once a run of a size has written its
loss.csv, the rate read there takes its place. The constants were measured on two cores of a Xeon with
other work on them (docs/verification.md) and are starting points only.

    bash launchers/slurm_grid.sh --grid recipes/grids/smoke.yaml --dry-run
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from launchers.local import Failure, LocalExecutor, Observer, Process
from launchers.plan import PHASES, PREPARATION, GridDirectory, Plan, Step
from launchers.progress import Progress, read_progress
from recipes.grid import Run
from recipes.settings import RunSettings

TRAINING_EFFICIENCY = 0.65
"""Share of the measured matrix rate that a run's matrix products reach."""

TRAINING_OVERHEAD_PER_TOKEN = 8e-6
"""Seconds a token and layer that no matrix product explains (norms, softmax, cross-entropy, the optimizer), on
a machine of `REFERENCE_MATRIX_RATE`; a slower machine is taken to be slower in this too."""

REFERENCE_MATRIX_RATE = 70e9
"""FLOP/s of one core of the machine where the constants were measured."""

TRAINING_START_SECONDS = 10.0
"""Importing, building the model and the data set of one run."""

CHECKPOINT_SECONDS = 1.0
"""Writing one checkpoint."""

EVALUATION_START_SECONDS = 12.0
"""Importing and reading the benchmarks in one process, whatever the number of its checkpoints."""

EVALUATION_ROW_SECONDS = 0.005
"""One row of one task on a model of no size."""

EVALUATION_ROW_TOKENS = 512
"""Tokens that a row is taken to cost, prompts being as long as the context allows."""

ROWS_PER_TASK = 5000
"""Rows of a task without a limit: the mean over the paper's benchmarks (REFERENCE, section 2)."""

WORLD_START_SECONDS = 2.0
"""Importing what makes a world, and its benchmarks."""

WORLD_BYTES_PER_SECOND = 5e6
"""Bytes of text that are generated in a second."""

TOKENIZER_SECONDS = 20.0
"""Training a tokenizer on its sample, whose size is limited."""

ENCODED_BYTES_PER_SECOND = 3e6
"""Bytes of text that one core encodes in a second."""

TEXT_BYTES_PER_FILE_BYTE = 4.0
"""Text in a compressed corpus, about."""

INDEX_START_SECONDS = 5.0
"""Importing what builds the index of the data."""

INDEXED_SEQUENCES_PER_SECOND = 2e6
"""Sequences of one run that are indexed in a second."""

REPORT_SECONDS = 20.0
"""Statistics, figures and page."""

REFRESH_SECONDS = 5.0
"""Time between two looks at what the runs have written."""

MEMORY_PER_PARAMETER = 16
"""Bytes that training needs for a parameter, without activations: weights, gradients and two moments."""


class Estimator(Observer):
    """Times of steps, corrected by what is measured as they run.

    Args:
        runs: The runs of the plan.
        folder: Where they write.
        matrix_rates: FLOP/s of one core by the runs' `hidden_size`.
        num_tasks: Tasks that each checkpoint is evaluated on.
        limit: Rows a task; None for all.
        corpus_bytes: Size of the documents on disk; None if not known.
        jobs: Processes side by side.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        folder: GridDirectory,
        matrix_rates: Mapping[int, float],
        num_tasks: int,
        limit: int | None,
        corpus_bytes: int | None,
        jobs: int,
    ) -> None:
        self._runs = {run.name: run for run in runs}
        self._folder = folder
        self._matrix_rates = matrix_rates
        self._rows = num_tasks * (limit or ROWS_PER_TASK)
        self._corpus_bytes = corpus_bytes
        self._jobs = jobs
        self._evaluation_ratios: dict[str, float] = {}
        """Measured over expected time of an evaluation, by the run's size."""
        self._running: dict[str, float] = {}
        self._refreshed = 0.0
        self.progress: dict[str, Progress] = {}
        self.refresh()

    @property
    def measured_sizes(self) -> tuple[str, ...]:
        """Sizes whose speed was read from their runs."""
        return tuple(sorted(self._token_rates))

    def refresh(self) -> None:
        """Read again how far and how fast the runs are."""
        self.progress = {name: read_progress(run, self._folder) for name, run in self._runs.items()}
        rates: dict[str, list[float]] = {}
        for name, progress in self.progress.items():
            if progress.tokens_per_second:
                rates.setdefault(self._runs[name].settings.size, []).append(progress.tokens_per_second)
        self._token_rates = {size: sum(values) / len(values) for size, values in rates.items()}
        shapes = {run.settings.size: run.settings for run in self._runs.values()}
        self._rate_ratio = _mean([rate / self._expected_rate(shapes[size]) for size, rate in self._token_rates.items()])
        self._refreshed = time.monotonic()

    def num_steps(self, run: str) -> int:
        """Steps of the run of that name."""
        return self._runs[run].settings.num_steps

    def tokens_per_second(self, settings: RunSettings) -> float:
        """Training speed of one process, measured where a run of that size has run, else as far off as others."""
        if settings.size in self._token_rates:
            return self._token_rates[settings.size]
        return self._rate_ratio * self._expected_rate(settings)

    def _expected_rate(self, settings: RunSettings) -> float:
        """Tokens a second before any run has told."""
        rate = self._matrix_rates[settings.hidden_size]
        overhead = TRAINING_OVERHEAD_PER_TOKEN * settings.num_layers * REFERENCE_MATRIX_RATE / rate
        return 1.0 / (settings.flops_exact(1) / (TRAINING_EFFICIENCY * rate) + overhead)

    def seconds(self, step: Step) -> float:
        """Estimate for the whole of a step by itself, without starting a process for an evaluation."""
        if step.phase == "world":
            return WORLD_START_SECONDS + (self._corpus_bytes or 0) / WORLD_BYTES_PER_SECOND
        if step.phase == "tokenizer":
            return TOKENIZER_SECONDS
        if step.phase == "encode":
            text = (self._corpus_bytes or 0) * TEXT_BYTES_PER_FILE_BYTE
            return 5.0 + text / ENCODED_BYTES_PER_SECOND / self._jobs
        if step.phase == "index":
            sequences = sum(run.settings.num_steps * run.settings.global_batch_size for run in self._runs.values())
            return INDEX_START_SECONDS + sequences / INDEXED_SEQUENCES_PER_SECOND
        if step.phase == "report" or step.run is None:
            return REPORT_SECONDS
        settings = self._runs[step.run].settings
        if step.phase == "train":
            return TRAINING_START_SECONDS + self._training(settings, settings.num_steps * settings.tokens_per_step)
        mean = _mean(list(self._evaluation_ratios.values()))
        return self._evaluation_ratios.get(settings.size, mean) * self._expected_evaluation(settings)

    def _expected_evaluation(self, settings: RunSettings) -> float:
        """Seconds of an evaluation before any has told."""
        rate = TRAINING_EFFICIENCY * self._matrix_rates[settings.hidden_size]
        tokens = min(EVALUATION_ROW_TOKENS, settings.sequence_length)
        return self._rows * (EVALUATION_ROW_SECONDS + settings.flops_exact(tokens) / 3 / rate)

    def _training(self, settings: RunSettings, tokens: float) -> float:
        """Seconds for `tokens` of a run with the held-out losses and checkpoints that fall into them."""
        checkpoints = len(settings.checkpoint_steps)
        heldout = settings.heldout_sequences * len(settings.languages) * settings.sequence_length
        share = tokens / (settings.num_steps * settings.tokens_per_step)
        # A forward pass is a third of the work of a training step.
        tokens_of_work = tokens + share * checkpoints * heldout / 3
        return tokens_of_work / self.tokens_per_second(settings) + share * checkpoints * CHECKPOINT_SECONDS

    def left(self, step: Step) -> float:
        """What is left of `seconds`, given what is on disk and how long the step has run."""
        if step.done():
            return 0.0
        if step.phase == "train" and step.run is not None:
            settings = self._runs[step.run].settings
            tokens = settings.num_steps * settings.tokens_per_step - self.progress[step.run].tokens
            start = TRAINING_START_SECONDS
            if step.name in self._running:
                start = max(0.0, start - (time.monotonic() - self._running[step.name]))
            return start + self._training(settings, max(0, tokens))
        whole = self.seconds(step)
        if step.name in self._running and not step.items:
            # A step that takes longer than was thought is taken to be nearly done.
            return max(0.1 * whole, whole - (time.monotonic() - self._running[step.name]))
        return whole

    def started(self, process: Process) -> None:
        """Note when each step began."""
        self._running |= {step.name: time.monotonic() for step in process.steps}

    def ended(self, process: Process, failures: Sequence[Failure]) -> None:
        """Learn from an evaluation how long one takes."""
        for step in process.steps:
            self._running.pop(step.name, None)
        if process.steps[0].phase == "evaluate" and not failures:
            taken = max(0.0, time.time() - process.started - EVALUATION_START_SECONDS)
            settings = [self._runs[step.run].settings for step in process.steps if step.run]
            expected = sum(map(self._expected_evaluation, settings))
            ratio = max(taken, 0.1) / max(expected, 1e-9)
            self._evaluation_ratios |= dict.fromkeys({it.size for it in settings}, ratio)
        self.refresh()

    def tick(self, executor: LocalExecutor) -> None:
        """Read the runs' progress from time to time."""
        if time.monotonic() - self._refreshed > REFRESH_SECONDS:
            self.refresh()


def _mean(ratios: Sequence[float]) -> float:
    """The geometric mean; 1 of none."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else 1.0


def phase_seconds(plan: Plan, seconds: Callable[[Step], float], jobs: int) -> dict[str, float]:
    """Wall time of each phase if they came one after the other on `jobs` cores."""
    result = {}
    for phase in plan.phases:
        times = [seconds(step) for step in plan if step.phase == phase]
        result[phase] = makespan(_with_starts(phase, times, jobs), jobs)
    return result


def total_seconds(plan: Plan, seconds: Callable[[Step], float], jobs: int) -> float:
    """Wall time of the whole plan on `jobs` cores: evaluations fill the cores that training leaves free."""
    by_phase = {phase: [seconds(step) for step in plan if step.phase == phase] for phase in PHASES}
    before = sum(sum(by_phase[phase]) for phase in PREPARATION)
    training = sorted(by_phase["train"], reverse=True)
    evaluations = _with_starts("evaluate", by_phase["evaluate"], jobs)
    return before + makespan([*training, *evaluations], jobs) + sum(by_phase["report"])


def makespan(times: Iterable[float], jobs: int) -> float:
    """When the last of `times` ends if each starts, in this order, on the first core that is free."""
    ends = [0.0] * jobs
    for seconds in times:
        heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends)


def _with_starts(phase: str, times: Sequence[float], jobs: int) -> list[float]:
    """The times of a phase, longest first, and those of starting the processes that share the evaluations."""
    times = sorted((seconds for seconds in times if seconds > 0), reverse=True)
    if phase != "evaluate" or not times:
        return times
    processes = min(len(times), 3 * jobs)
    return [*times, *[EVALUATION_START_SECONDS] * processes]
