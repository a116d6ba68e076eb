"""The view of Wei et al. 2022: performance against training FLOPs, parameters or tokens, and the critical scale.

A task is emergent there if it is near chance until a critical scale and well above it afterwards. That is the threshold
of Du et al. 2024 with the logarithm of scale in place of the loss, so the same three accounts are compared in the same
way.

    python -m analysis.critical_scale results.csv --axis flops_6nd
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from analysis import bootstrap, mapping, threshold
from analysis.axes import axis_title
from analysis.names import metric_title, task_title
from analysis.table import primary_metrics
from tokenizer import cli

AXES = ("flops_6nd", "parameters", "tokens")

_POSITION = "minus_log10_scale"


@dataclass(frozen=True)
class CriticalScale:
    """One task under one metric against one axis: FLOPs, parameters or tokens. NaN where not estimated."""

    task: str
    metric: str
    axis: str
    verdict: str
    """`threshold.EMERGENT`, `SMOOTH`, `NOT_REACHED` or `UNDECIDED`."""
    scale: float
    """The critical scale, with the verdict *emergent*: chance below it, above chance and rising beyond."""
    low: float
    high: float
    """95 % interval."""
    above: float
    """With the verdict *not reached*: a critical scale, if there is one, lies above this."""
    scale_low: float
    scale_high: float
    """Least and greatest scale seen."""
    reason: str


def critical(
    table: pd.DataFrame,
    axis: str = "flops_6nd",
    *,
    metrics: dict[str, str] | None = None,
    replicates: int = bootstrap.REPLICATES,
    seed: int = 0,
) -> list[CriticalScale]:
    """The critical scale of each task on an axis of `AXES`, under the metric that `metrics` names (default: the primary
    one). ValueError for another axis."""
    if axis not in AXES:
        raise ValueError(f"axis {axis!r}; one of {', '.join(AXES)}")
    chosen = metrics or primary_metrics(table)
    rows = table[table["metric"] == table["task"].map(chosen)]
    rows = rows[rows[axis] > 0]
    if rows.empty:
        return [_nothing(task, metric, axis, f"{axis} is not known") for task, metric in chosen.items()]
    # Losses fall as scale grows; above 0, like a loss.
    exponent = np.log10(rows[axis].astype(float))
    rows = rows.assign(**{_POSITION: np.ceil(exponent.max()) - exponent})
    top = float(np.ceil(exponent.max()))
    if rows[_POSITION].nunique() == 1:
        reason = f"{axis_title(axis)} are {rows[axis].iloc[0]:.3g} at every checkpoint"
        return [_nothing(task, metric, axis, reason) for task, metric in chosen.items()]
    # One tokenizer or several: scale, unlike loss, compares.
    rows = rows.assign(tokenizer_sha256="", data_fingerprint="")
    found = threshold.thresholds(rows, loss=_POSITION, replicates=replicates, seed=seed)
    return [_of_threshold(result, axis, top) for result in found]


def as_table(results: Sequence[CriticalScale]) -> pd.DataFrame:
    """One row per task."""
    return pd.DataFrame([asdict(result) for result in results])


def sentence(result: CriticalScale) -> str:
    """The result in plain words."""
    name = f"{task_title(result.task)} ({metric_title(result.metric)}) against {axis_title(result.axis)}"
    if result.verdict == threshold.EMERGENT:
        return f"{name}: at chance up to a critical scale of {result.scale:.2e} [{result.low:.2e}, {result.high:.2e}]"
    return f"{name}: {result.verdict}: {result.reason}"


def _of_threshold(result: threshold.Threshold, axis: str, top: float) -> CriticalScale:
    def scale(position: float) -> float:
        return float(10 ** (top - position))

    return CriticalScale(
        result.task,
        result.metric,
        axis,
        result.verdict,
        scale(result.eta),
        scale(result.eta_high),
        scale(result.eta_low),
        scale(result.eta_below),
        scale(result.loss_high),
        scale(result.loss_low),
        _reason(result, axis, scale(result.loss_high), scale(result.loss_low), scale(result.eta_below)),
    )


def _reason(result: threshold.Threshold, axis: str, low: float, high: float, above: float) -> str:
    seen = f"over the {axis_title(axis)} seen ({low:.2e} to {high:.2e})"
    if result.verdict == threshold.SMOOTH:
        return f"improves {seen} without a plateau at chance before"
    if result.verdict == threshold.NOT_REACHED:
        return f"at chance {seen}; a critical scale, if there is one, lies above {above:.2e}"
    if result.verdict == threshold.EMERGENT:
        return f"at chance, then rising, {seen}"
    # The words are about losses, and the axis stands in its place here.
    ceiling = f"1e{np.ceil(np.log10(high)):.0f}"
    return f"{result.reason} (where this says loss, read orders of magnitude of {axis_title(axis)} below {ceiling})"


def _nothing(task: str, metric: str, axis: str, reason: str) -> CriticalScale:
    return CriticalScale(task, metric, axis, threshold.UNDECIDED, *[float("nan")] * 6, reason)


def main(argv: Sequence[str] | None = None) -> int | None:
    """Print the critical scale of each task."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.critical_scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mapping.add_options(parser)
    parser.add_argument("--axis", choices=AXES, action="append", help="may be repeated (default: all three)")
    mapping.add_replicates(parser, 200)
    mapping.add_out(parser)
    arguments = parser.parse_args(argv)
    mapping.check_replicates(arguments.replicates)
    table = mapping.load_as_asked(arguments)
    results = []
    for axis in arguments.axis or AXES:
        of_axis = critical(table, axis, replicates=arguments.replicates)
        results += of_axis
        for result in of_axis:
            print(sentence(result))
    mapping.write_results(as_table(results), arguments.out)
    return None


if __name__ == "__main__":
    cli.run(main)
