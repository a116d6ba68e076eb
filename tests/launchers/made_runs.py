"""The files of runs as trainings and evaluations write them, made by hand."""

from __future__ import annotations

import json
from pathlib import Path

from launchers.plan import GridDirectory
from recipes.grid import Run


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_run(folder: GridDirectory, run: Run, steps: int, checkpoints=(), results=()) -> None:
    """The files of a run as the training and the evaluation write them, in the contracts' format."""
    directory = folder.path / run.name
    directory.mkdir(parents=True)
    rows = ["step,tokens,train_loss,learning_rate,grad_norm,tokens_per_second,mfu,heldout_loss,heldout_loss_en"]
    for step in range(1, steps + 1):
        heldout = f"{6 - step / 10:.4f},{5 - step / 10:.4f}" if step in checkpoints else ","
        rows.append(f"{step},{step * 2048},{7 - step / 10:.4f},1e-3,0.5,{1000 + step},,{heldout}")
    # The last line is still being written.
    (directory / "loss.csv").write_text("\n".join(rows) + f"\n{steps + 1},{(steps + 1) * 2048},6.")
    for step in checkpoints:
        losses = {"heldout": 6 - step / 10, "train": 7 - step / 10}
        write_json(folder.checkpoint(run.name, step) / "manifest.json", {"schema": 1, "step": step, "losses": losses})
    # A directory without a manifest is no checkpoint.
    (directory / "checkpoints" / "step_999").mkdir(parents=True)
    for step in results:
        write_json(folder.result(run.name, step), {"schema": 1, "tasks": {}})
