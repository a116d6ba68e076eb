"""Reading a grid directory: result files, loss curves, and which runs are finished and evaluated.

Nothing here writes, and a grid that is still being trained can be read at any moment: result files and
checkpoint manifests appear whole or not at all.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from analysis.columns import FRACTIONS
from emergence_eval.results import read_result
from tokenizer.cli import UserError

RESERVED = ("tokenizer", "data", "report", "logs")
"""Folders of a grid directory that are no runs."""

DECAYED = 0.5
"""A checkpoint is from the decay phase of its schedule if its learning rate has fallen below this share of the run's
peak (*ours*). Of a cosine that ends at a tenth of the peak that is the last 46 % of the steps, of one that holds the
peak and decays at the end about the second half of the decay."""

_TASK_FIELDS = ("language", "kind", "prompting", "task_hash", "num_fewshot", "num_fewshot_used_mean")
_TASK_COUNTS = ("truncated_rows", "rows", "rows_available")


@dataclass(frozen=True)
class RunState:
    """How far one run of a grid directory is."""

    run: str
    checkpoints: int
    """Whole checkpoints on disk."""
    evaluated: int
    """Result files."""
    finished: bool
    """Whether the run's last checkpoint exists or is evaluated."""


def run_directories(grid: Path) -> list[Path]:
    """The run directories of a grid directory, by name."""
    return sorted(
        entry
        for entry in grid.iterdir()
        if entry.is_dir()
        and entry.name not in RESERVED
        and not entry.name.startswith(".")
        and any((entry / name).exists() for name in ("run.yaml", "loss.csv", "checkpoints", "eval"))
    )


def read_grid(grid: Path) -> pd.DataFrame:
    """All result files of a grid directory as an unchecked results table.

    Raises UserError when there is none, or when one is not a whole result file.
    """
    paths = [path for run in run_directories(grid) for path in sorted((run / "eval").glob("step_*.json"))]
    if not paths:
        raise UserError(
            f"{grid}: no result file (<run>/eval/step_<n>.json) in it; evaluate a checkpoint first: "
            "python emergence_eval/run.py --nemo-ckpt <run>/checkpoints/step_<n> --data <benchmarks>"
        )
    rows: list[dict[str, Any]] = []
    for path in paths:
        rows.extend(_rows(path))
    if not rows:
        raise UserError(f"{grid}: none of the {len(paths)} result files holds a task; evaluate again")
    table = pd.DataFrame(rows)
    decaying = {run: decay_start(run) for run in {path.parents[1] for path in paths}}
    start = table.pop("directory").map(decaying).astype(float)
    table["decay"] = table["step"] >= start.fillna(math.inf)
    return table


def decay_start(run: Path) -> float | None:
    """The first step at which a run's learning rate is below `DECAYED` of its peak and the peak is behind it; None if
    it never is, or if nothing tells.

    Read from the learning rates that its loss.csv recorded, which know every schedule; else computed from the settings
    in its run.yaml, whose schedule is linear warm-up and a cosine to the minimum at the run's last step.
    """
    return _decay_recorded(run / "loss.csv") or _decay_configured(run / "run.yaml")


def _decay_recorded(path: Path) -> float | None:
    try:
        # A run that is being trained may be caught in the middle of its last line.
        curve = pd.read_csv(path, usecols=["step", "learning_rate"], on_bad_lines="skip")
    except (OSError, ValueError):
        return None
    curve = curve.apply(pd.to_numeric, errors="coerce").dropna().sort_values("step")
    if curve.empty:
        return None
    rate = curve["learning_rate"].to_numpy()
    behind = np.arange(len(rate)) > rate.argmax()
    low = np.flatnonzero(behind & (rate < DECAYED * rate.max()))
    return float(curve["step"].to_numpy()[low[0]]) if len(low) else None


def _decay_configured(path: Path) -> float | None:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))["settings"]
        steps = round(int(settings["tokens"]) / (settings["global_batch_size"] * settings["sequence_length"]))
        warmup = min(settings["warmup_steps"], math.ceil(settings["warmup_ratio"] * steps))
        minimum = float(settings["min_learning_rate_ratio"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return None
    if minimum >= DECAYED:
        return None
    cosine = 2 * (DECAYED - minimum) / (1 - minimum) - 1
    return warmup + (steps - warmup) * math.acos(cosine) / math.pi


def _rows(path: Path) -> list[dict[str, Any]]:
    result = read_result(path)
    checkpoint = asdict(result.checkpoint)
    losses = checkpoint.pop("losses")
    if "heldout" not in losses:
        raise UserError(
            f"{path}: checkpoint: losses: heldout missing; evaluate that checkpoint again, "
            "and give --loss if it does not carry its own"
        )
    common = checkpoint | {"loss": losses["heldout"], "loss_train": losses.get("train")}
    for name, value in losses.items():
        if name.startswith("heldout_"):
            common["loss_" + name.removeprefix("heldout_")] = value
    common |= {f"eval_{name}": value for name, value in asdict(result.environment).items()}
    common |= {"unknown": ", ".join(checkpoint["unknown"]), "directory": path.parents[1]}
    return [
        common
        | {name: getattr(outcome, name) for name in (*_TASK_FIELDS, *_TASK_COUNTS)}
        # The task's chance level is that of its main metric.
        | {"task": task, "metric": metric, "chance": outcome.chance if metric in FRACTIONS else None}
        | {name: value for name, value in asdict(number).items() if value is not None}
        for task, outcome in result.tasks.items()
        for metric, number in outcome.metrics.items()
    ]


def run_states(grid: Path) -> list[RunState]:
    """What each run of a grid directory has done, by name. Checkpoints without a manifest do not count."""
    states = []
    for run in run_directories(grid):
        manifests = sorted((run / "checkpoints").glob("step_*/manifest.json"))
        results = sorted((run / "eval").glob("step_*.json"))
        last = max(manifests, key=lambda path: _step(path.parent), default=None)
        finished = any(_is_final(path, ("checkpoint",)) for path in results)
        if not finished and last is not None:
            finished = _is_final(last, ())
        states.append(RunState(run.name, len(manifests), len(results), finished))
    return states


def _step(path: Path) -> int:
    match = re.fullmatch(r"step_(\d+)", path.stem)
    return int(match.group(1)) if match else -1


def _is_final(path: Path, keys: tuple[str, ...]) -> bool:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        for key in keys:
            value = value[key]
        return bool(value["final"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_loss_curves(grid: Path) -> dict[str, pd.DataFrame]:
    """Run name -> its loss.csv (columns step, tokens, train_loss, heldout_loss, heldout_loss_<language>, ...).

    Runs without a loss.csv, or with none but its header, are left out. Raises UserError for one without the
    columns tokens and train_loss.
    """
    curves = {}
    for run in run_directories(grid):
        path = run / "loss.csv"
        if not path.exists():
            continue
        try:
            # A run that is being trained may be caught in the middle of its last line.
            curve = pd.read_csv(path, on_bad_lines="skip")
        except pd.errors.EmptyDataError:
            continue
        missing = {"tokens", "train_loss"} - set(curve.columns)
        if missing:
            raise UserError(f"{path}: missing column {', '.join(sorted(missing))}; is this a run's loss curve?")
        curve = curve.apply(pd.to_numeric, errors="coerce").dropna(subset=["tokens"])
        if not curve.empty:
            curves[run.name] = curve
    return curves
