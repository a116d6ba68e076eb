"""What of a study is neither done nor in Slurm's queue is submitted.

The launcher does it when a person asks, the keeper every few minutes; done twice it brings nothing twice.

    Reconciler(study).submit_missing() -> ["train 6B-3T: job 812", ...]
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from pathlib import Path

from launchers.logs import last_error
from launchers.plan import Step
from launchers.records import MOST_FRUITLESS, Event, Record, crash_loop
from launchers.slurm import commands, nodes
from launchers.slurm.commands import Job
from launchers.slurm.sbatch import EVALUATION_TRIES, train_script
from launchers.slurm.segment import KEEPER
from launchers.slurm.study import Study, listed_checkpoints
from tokenizer.cli import UserError


class Reconciler:
    """One look at a study and its queue.

    Args:
        asked: Names of the steps that a person asks for: they are tried again although they were given up or
            cancelled. The keeper asks for none.
        patience: Seconds for which a controller that does not answer is asked again.
    """

    def __init__(self, study: Study, asked: Collection[str] = (), patience: float = 0.0) -> None:
        self.study = study
        self.submitted: list[str] = []
        """What was submitted, in words."""
        self.refused: list[str] = []
        """What Slurm did not take, in words."""
        self._asked = asked
        self._patience = patience
        self._jobs = commands.jobs(study.kinds, patience)

    @cached_property
    def queue(self) -> dict[str, Job]:
        """The live job of each step that has one; the steps of the preparation share theirs."""
        found: dict[str, Job] = {}
        for job in self._jobs:
            what = self.study.kinds.get(job.name)
            if what is None or not job.is_live:
                continue
            if what == "evaluate":
                if job.index is not None and job.index < len(self._checkpoints):
                    run, step = self._checkpoints[job.index]
                    found[f"evaluate {run} step {step}"] = job
            elif what == "prepare":
                found |= {step.name: job for step in self.study.preparation}
            elif what == "report":
                found["write the report"] = job
            elif what in self.study.launch.runs:
                found[f"train {what}"] = job
            else:
                found.setdefault(what, job)
        return found

    def submit_missing(self) -> list[str]:
        """Submit what is missing; what was submitted, in words."""
        self._drop_blocked()
        self._release_held()
        prepared = self._prepare()
        if prepared is not None:
            for run in self.study.runs:
                self._train(run.name, prepared)
        self._evaluate()
        self._report()
        if "keeper" not in self.queue and not self.is_settled():
            self._submit(["keeper"], "keeper", self.study.directory / KEEPER)
        return self.submitted

    def is_settled(self) -> bool:
        """Whether nothing is left that could still be done: all is done, given up or cancelled."""
        if self.submitted or self.refused or set(self.queue) - {"keeper"}:
            return False
        return not any(self._may_start(step) for step in self.study.plan if self._is_possible(step))

    def _is_possible(self, step: Step) -> bool:
        if step.phase == "evaluate":
            return step.ready is not None and step.ready()
        if step.phase == "train":
            return all(self.study.plan.by_name[need].done() for need in step.needs)
        return step.phase != "report"

    def _drop_blocked(self) -> None:
        """Cancel jobs that wait for one that has failed; they are submitted again when there is another to wait for."""
        blocked = [job for job in self._jobs if job.is_live and job.reason == "DependencyNeverSatisfied"]
        commands.cancel([job.job for job in blocked])
        self._jobs = [job for job in self._jobs if job not in blocked]
        self.__dict__.pop("queue", None)

    def _release_held(self) -> None:
        """Let jobs go that Slurm holds because a node could not start them; what a person holds stays held."""
        for job in self._jobs:
            if job.is_held_by_failure:
                commands.release(job.job)
                self.submitted.append(f"{job.name}: job {job.job} was held because its launch had failed; released")

    # The kinds of jobs.

    def _prepare(self) -> str | None:
        """The job that trainings wait for: empty if all is prepared, None if it cannot be prepared."""
        missing = [step for step in self.study.preparation if not step.done()]
        if not missing:
            return ""
        if job := self.queue.get(missing[0].name):
            return job.job
        if not self._may_start(missing[0]):
            return None
        return self._submit([missing[0].name], "prepare", self.study.directory / "prepare.sbatch")

    def _train(self, run: str, prepared: str) -> None:
        step = self.study.plan.by_name[f"train {run}"]
        if step.done() or step.name in self.queue or not self._may_start(step):
            return
        wait = ",".join([*([f"afterok:{prepared}"] if prepared else []), "singleton"])
        self._submit([step.name], step.name, train_script(self.study, run), f"--dependency={wait}")

    def _evaluate(self) -> None:
        """Submit checkpoints that are whole and have no result, as one array, if the throttle leaves room."""
        live = sum(name.startswith("evaluate ") for name in self.queue)
        room = self.study.cluster.site.evaluation.at_once - live
        if room <= 0:
            return
        steps = [self.study.plan.by_name.get(f"evaluate {r} step {n}") for r, n in self._checkpoints]
        ready = [
            index
            for index, step in enumerate(steps)
            if step is not None
            and step.name not in self.queue
            and not step.done()
            and step.ready is not None
            and step.ready()
            and self._may_start(step)
        ]
        if not ready:
            return
        names = ["evaluate {} step {}".format(*self._checkpoints[index]) for index in ready]
        self._submit(
            names,
            f"evaluate {len(ready)} checkpoints",
            self.study.directory / "evaluate.sbatch",
            f"--array={ranges(ready)}%{room}",
            members=ready,
        )

    @cached_property
    def _checkpoints(self) -> list[tuple[str, int]]:
        return listed_checkpoints(self.study.checkpoints_file)

    def _report(self) -> None:
        results = [self.study.folder.result(run, step) for run, step in self._checkpoints]
        step = self.study.plan.by_name["write the report"]
        count = sum(path.is_file() for path in results)
        if step.name in self.queue or step.done() or not count:
            return
        record = self._record(step.name)
        tried = [event for event in record.history().events if event.progress == count]
        if len(tried) >= MOST_FRUITLESS and step.name not in self._asked:
            return
        self._submit([step.name], step.name, self.study.directory / "report.sbatch", progress=count)

    # May it, and how.

    def _may_start(self, step: Step) -> bool:
        """Whether a step that is neither done nor in the queue should be submitted."""
        if step.done():
            return False
        record = self._record(step.name)
        history = record.history()
        if step.name in self._asked:
            if history.gave_up is not None or history.cancelled or history.fruitless(step.progress()):
                record.add("resumed")
            return True
        if history.gave_up is not None or history.cancelled:
            return False
        last = history.last
        if last is None or last.event == "resumed":
            return True
        if self._was_cancelled(last):
            record.add("cancelled", job=last.job, reason="in Slurm, not by the launcher")
            return False
        tries = EVALUATION_TRIES if step.phase == "evaluate" else MOST_FRUITLESS
        lost = max(history.fruitless(step.progress()), history.unstarted)
        words = crash_loop(lost, last.reason or last_error(step.log, 0, code=1), tries)
        if words is not None:
            record.add("gave up", reason=words)
        return words is None

    def _record(self, step: str) -> Record:
        return Record.of(self.study.folder.logs, step)

    def _was_cancelled(self, last: Event) -> bool:
        """Whether a person cancelled the job of a step's last event by Slurm's own means."""
        job_id = last.job.partition(".")[0]
        seen = next((job for job in self._jobs if job.job == job_id), None)
        if seen is not None:
            return seen.state == "CANCELLED"
        # Slurm has forgotten it: one that was told to end and did not come back was cancelled, or so it must seem.
        return last.event == "ended" and last.interrupted

    def _submit(
        self,
        steps: Sequence[str],
        words: str,
        script: Path,
        *options: str,
        members: Sequence[int] = (),
        progress: int = 0,
    ) -> str | None:
        """Submit the job of `steps` (with `members`, of an array's) and note it; its number. The keeper notes what
        Slurm refuses and goes on (None); a person is told (UserError)."""
        try:
            job = nodes.submit_avoiding(self._bad_nodes, script, *options, patience=self._patience)
        except UserError as error:
            if self._asked:
                raise
            for step in steps:
                self._record(step).add("refused", reason=str(error))
            self.refused.append(f"{words}: {error}")
            return None
        for place, step in enumerate(steps):
            self._record(step).add("submitted", job=f"{job}_{members[place]}" if members else job, progress=progress)
        self.submitted.append(f"{words}: job {job}")
        return job

    @cached_property
    def _bad_nodes(self) -> list[str]:
        return nodes.excludable(self.study.folder.logs, self._patience)


def cancel(study: Study, steps: Callable[[Step], bool] = lambda step: True) -> list[str]:
    """Cancel the jobs of a study, or of some of its steps, and note that a person did; ids of the jobs."""
    reconciler = Reconciler(study)
    # First the notes, or the keeper could bring back what was cancelled.
    for step in study.plan:
        wanted = step.phase == "train" or (step.phase == "evaluate" and step.name in reconciler.queue)
        if steps(step) and wanted and not step.done():
            Record.of(study.folder.logs, step.name).add("cancelled")
    names = [step.name for step in study.plan if steps(step)]
    whole = len(names) == len(study.plan)
    ids = {job.job for name, job in reconciler.queue.items() if name in names or whole}
    commands.cancel(sorted(ids))
    return sorted(ids)


def ranges(indices: Sequence[int]) -> str:
    """Indices as sbatch wants them: ``ranges([0, 1, 2, 5]) == "0-2,5"``."""
    parts: list[list[int]] = []
    for index in sorted(indices):
        if parts and index == parts[-1][1] + 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
