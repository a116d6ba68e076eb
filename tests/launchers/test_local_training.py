"""A real training under the local executor loses a process to kill -9: it goes on by itself, to the same losses."""

from __future__ import annotations

import os
import shutil
import signal

import psutil
import pytest
from commands import loss_rows

from launchers.local import LocalExecutor, Observer
from launchers.plan import GridDirectory, Inputs, Plan, build_plan
from launchers.records import Record
from recipes.grid import load_grid

RUN = "large-40960"


class KillOnce(Observer):
    """kill -9 of the run's last process, a few steps after its first checkpoint."""

    def __init__(self, folder: GridDirectory) -> None:
        self.killed = 0
        self.restarts: list[str] = []
        self._folder = folder

    def tick(self, executor) -> None:
        table = self._folder.path / RUN / "loss.csv"
        if self.killed or not self._folder.has_checkpoint(RUN, 10) or len(table.read_text().splitlines()) < 13:
            return
        below = psutil.Process(executor.processes[0].popen.pid).children(recursive=True)
        self.killed = max(below, key=lambda it: int(it.environ().get("RANK", -1))).pid
        os.kill(self.killed, signal.SIGKILL)

    def restarted(self, process, message) -> None:
        self.restarts.append(message)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "processes"), [("single", 1), ("tensor_parallel", 2)])
def test_a_killed_process_leaves_the_losses_as_they_are(smoke, smoke_data, layout_runs, tmp_path, layout, processes):
    path = tmp_path / "grid.yaml"
    path.write_text(smoke.path.read_text().replace("defaults:\n", f"defaults:\n  tensor_parallel: {processes}\n"))
    grid, folder = load_grid(path), GridDirectory(tmp_path / "out")
    for name in ("tokenizer", "data"):
        shutil.copytree(smoke_data.parent / name, folder.path / name)
    shutil.copy(path, folder.grid_file)
    plan = build_plan(grid, folder, Inputs(), grid.select(RUN))
    train = plan.by_name[f"train {RUN}"]
    assert train.processes == processes and train.progress() == 0
    before = [step for step in plan if step.phase in ("tokenizer", "encode", "index")]
    observer = KillOnce(folder)
    executor = LocalExecutor(Plan((*before, train)), jobs=processes, observers=[observer])
    assert executor.run().exit_code == 0
    assert observer.killed and len(observer.restarts) == 1 and "SIGKILL" in observer.restarts[0]
    record = Record.of(folder.logs, train.name).history()
    assert [(event.event, event.code) for event in record.events] == [
        ("started", None),
        ("ended", 137),
        ("started", None),
        ("ended", 0),
    ]
    assert [event.progress for event in record.events] == [0, 10, 10, 20]
    assert loss_rows(folder.path / RUN) == loss_rows(layout_runs[layout])
