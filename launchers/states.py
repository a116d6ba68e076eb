"""In which state every run of a grid is, and what belongs to all of them: read from what the steps have written, from
the records of their starts and, where there is a scheduler, from its queue.

    read_study(grid, folder, queue).runs[0].state
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launchers.directory import choose_inputs
from launchers.plan import PREPARATION, GridDirectory
from launchers.progress import names_in, read_progress, written_steps
from launchers.queued import QueuedJob
from launchers.records import History
from launchers.tried import Problem, Steps, last_end
from recipes.grid import Grid, Run

_REPORT = {"write the report": "report"}


@dataclass(frozen=True)
class RunStatus:
    """One line of `--status`."""

    run: str
    state: str
    """waiting; queued (by Slurm, `reason` says why); running; requeued (has run, and waits in the queue again);
    stopped (begun, and nobody works on it); cancelled; failed (given up); finished (trained to its end)."""
    step: int
    steps: int
    tokens: int
    tokens_planned: int
    loss: float | None
    heldout_loss: float | None
    tokens_per_second: float | None
    eta_seconds: float | None
    """Time to the end of a running run at its present rate."""
    checkpoints: int
    checkpoints_planned: int
    checkpoints_evaluated: int
    error: str | None = None
    """Last error of a failed run or evaluation."""
    log: str | None = None
    """Where that error, or the reason of a stopped run, stands."""
    mfu: float | None = None
    """Median share of the devices' peak rate over the last steps."""
    restarts: int = 0
    """How often its training was started again."""
    reason: str | None = None
    """Why it is in its state, in words: what it waits for, why it stopped or was given up."""
    job: str | None = None
    """Number of its job in the queue."""
    nodes: str | None = None
    """Where it runs, as the scheduler writes lists of nodes."""


@dataclass(frozen=True)
class Evaluations:
    """How far the evaluation of all checkpoints is, in checkpoints."""

    planned: int
    evaluated: int
    running: int
    queued: int
    waiting: int
    """Whole checkpoints that are neither evaluated nor in anybody's hands."""
    given_up: tuple[Problem, ...]


@dataclass(frozen=True)
class StudyState:
    """All that `--status` tells."""

    grid: str
    path: Path
    runs: tuple[RunStatus, ...]
    evaluations: Evaluations
    shared: tuple[Problem, ...]
    """Steps that every run waits for, or the report, that were given up."""
    world_done: bool | None
    """None where documents and benchmarks are the user's."""
    tokenizer_done: bool
    data_done: bool
    report: Path | None
    """The report's page, if there is one."""
    results_since_report: int
    """Results that the report does not have."""
    launcher_pid: int | None
    """Process id of the launcher on this machine, if one is at work."""
    left_seconds: float | None
    """Time until all steps are done, as the launcher on this machine estimates it."""
    on_slurm: bool
    """Whether the study was launched on Slurm."""
    jobs: Mapping[str, QueuedJob]
    """The queue, by steps."""

    @property
    def eta_seconds(self) -> float | None:
        """Time until all runs are trained at their present rates; None while one that is not finished does not run, for
        nobody knows when it will."""
        unfinished = [run for run in self.runs if run.state != "finished"]
        etas = [run.eta_seconds for run in unfinished if run.state == "running" and run.eta_seconds is not None]
        return max(etas, default=0.0) if len(etas) == len(unfinished) else None

    @property
    def failed(self) -> dict[str, dict[str, str | None]]:
        """Every step that was given up, by its name: run, phase, last error and log."""
        trainings = [
            Problem(f"train {run.run}", run.run, "train", run.reason or "", run.log)
            for run in self.runs
            if run.state == "failed"
        ]
        return {
            it.step: {"run": it.run, "phase": it.phase, "message": it.message, "log": it.log}
            for it in (*trainings, *self.evaluations.given_up, *self.shared)
        }

    @property
    def is_done(self) -> bool:
        """Whether all is trained, evaluated and in the report."""
        trained = all(run.state == "finished" for run in self.runs)
        evaluated = self.evaluations.evaluated == self.evaluations.planned
        return trained and evaluated and self.report is not None and not self.results_since_report


def read_status(grid: Grid, folder: GridDirectory, queue: Mapping[str, QueuedJob] | None = None) -> list[RunStatus]:
    """The state of every run of the grid; arguments as for `read_study`."""
    return list(read_study(grid, folder, queue).runs)


def read_study(grid: Grid, folder: GridDirectory, queue: Mapping[str, QueuedJob] | None = None) -> StudyState:
    """The state of the grid's study in `folder`.

    Args:
        queue: The jobs of the study by the names of their steps (``train 6B-3T``,
            ``evaluate 6B-3T step 4000``); nothing where there is no scheduler.
    """
    steps = Steps(folder, queue or {})
    world = choose_inputs(grid, folder).world
    world_done = None if world is None else folder.world_is_done(world)
    tokenizer_done, data_done = folder.tokenizer_is_done(), folder.data_are_done()
    done = {"world": world_done, "tokenizer": tokenizer_done, "encode": data_done}
    preparation = steps.problems({step: phase for phase, step in PREPARATION.items() if not done.get(phase)})
    waits_for = preparation[0].step + " failed" if preparation else _waits_for(steps, data_done)
    found = [_read_run(run, folder, steps, waits_for) for run in grid.runs]
    page = folder.report_page if folder.report_page.is_file() else None
    newer = _count_newer([path for one in found for path in one.results], page)
    evaluations = [one.evaluations for one in found]
    return StudyState(
        grid=grid.name,
        path=folder.path,
        runs=tuple(one.status for one in found),
        evaluations=Evaluations(
            planned=sum(it.planned for it in evaluations),
            evaluated=sum(it.evaluated for it in evaluations),
            running=sum(it.running for it in evaluations),
            queued=sum(it.queued for it in evaluations),
            waiting=sum(it.waiting for it in evaluations),
            given_up=tuple(problem for it in evaluations for problem in it.given_up),
        ),
        shared=(*preparation, *(steps.problems(_REPORT) if newer else ())),
        world_done=world_done,
        tokenizer_done=tokenizer_done,
        data_done=data_done,
        report=page,
        results_since_report=newer,
        launcher_pid=steps.pid,
        left_seconds=steps.left_seconds,
        on_slurm=bool(steps.queue) or folder.is_on_slurm,
        jobs=steps.queue,
    )


def _waits_for(steps: Steps, data_done: bool) -> str:
    """What a run that nobody has begun waits for."""
    if not any(job.is_running or job.is_waiting for job in steps.queue.values()) and steps.pid is None:
        return "nobody works on this study"
    return "for its turn" if data_done else "for the data"


def _count_newer(results: Sequence[Path], page: Path | None) -> int:
    if page is None:
        return len(results)
    written = page.stat().st_mtime
    return sum(path.stat().st_mtime > written for path in results)


@dataclass(frozen=True)
class _Found:
    """What was found of one run."""

    status: RunStatus
    evaluations: Evaluations
    results: tuple[Path, ...]


def _read_run(run: Run, folder: GridDirectory, steps: Steps, waits_for: str) -> _Found:
    settings = run.settings
    planned = settings.checkpoint_steps
    written = written_steps(run, folder)
    progress = read_progress(run, folder, written)
    evaluated = _evaluated_steps(run, folder, planned)
    evaluations = _evaluations(run, [step for step in written if step not in evaluated], steps, len(evaluated))
    name = f"train {run.name}"
    history, job = steps.history(name), steps.job(name)
    finished = bool(written) and written[-1] == planned[-1]
    begun = bool(progress.step or written or history.starts)
    state, reason = ("finished", None) if finished else _state(name, steps, history, begun, waits_for)
    given_up = evaluations.given_up
    log = steps.log(name, f"train-{run.name}.log") if state in ("failed", "stopped") else None
    error = reason if state == "failed" else given_up[-1].message if given_up else None
    tokens_planned = settings.num_steps * settings.tokens_per_step
    rate = progress.tokens_per_second
    status = RunStatus(
        run=run.name,
        state=state,
        step=settings.num_steps if finished else progress.step,
        steps=settings.num_steps,
        tokens=tokens_planned if finished else progress.tokens,
        tokens_planned=tokens_planned,
        loss=progress.loss,
        heldout_loss=progress.heldout_loss,
        tokens_per_second=rate,
        eta_seconds=(tokens_planned - progress.tokens) / rate if state == "running" and rate else None,
        checkpoints=len(written),
        checkpoints_planned=len(planned),
        checkpoints_evaluated=len(evaluated),
        error=error,
        log=log or (given_up[-1].log if given_up else None),
        mfu=progress.mfu,
        restarts=history.restarts,
        reason=reason,
        job=job.job if job else None,
        nodes=(job.nodes or None) if job else None,
    )
    results = tuple(folder.result(run.name, step) for step in sorted(evaluated))
    return _Found(status, evaluations, results)


def _state(step: str, steps: Steps, history: History, begun: bool, waits_for: str | None) -> tuple[str, str | None]:
    """State of a training that is not finished, and why."""
    job = steps.job(step)
    if (reason := steps.given_up(step, history)) is not None:
        return "failed", reason
    if history.cancelled and not (job and history.last and history.last.event != "cancelled"):
        return "cancelled", next((it.reason for it in reversed(history.events) if it.event == "cancelled"), "") or None
    if steps.is_running(step):
        return "running", None
    if job:
        state = "requeued" if job.is_requeued or history.starts else "queued"
        ended = last_end(history) if state == "requeued" else None
        return state, "; ".join(filter(None, (job.why, ended))) or None
    last = history.last
    refused = last.reason if last is not None and last.event == "refused" else None
    if begun:
        return "stopped", refused or last_end(history)
    return "waiting", refused or waits_for


def _evaluated_steps(run: Run, folder: GridDirectory, planned: Sequence[int]) -> frozenset[int]:
    there = names_in(folder.result(run.name, 0).parent)
    return frozenset(step for step in planned if folder.result(run.name, step).name in there)


def _evaluations(run: Run, missing: Sequence[int], steps: Steps, evaluated: int) -> Evaluations:
    """The run's evaluations, `missing` being the steps of its whole checkpoints that have no result."""
    running = queued = 0
    given_up = []
    for step in missing:
        name = f"evaluate {run.name} step {step}"
        if steps.is_running(name):
            running += 1
        elif steps.job(name):
            queued += 1
        elif (reason := steps.given_up(name)) is not None:
            log = steps.log(name, f"evaluate-{run.name}-step_{step}.log")
            given_up.append(Problem(name, run.name, "evaluate", reason, log))
    return Evaluations(
        planned=len(run.settings.checkpoint_steps),
        evaluated=evaluated,
        running=running,
        queued=queued,
        waiting=len(missing) - running - queued - len(given_up),
        given_up=tuple(given_up),
    )
