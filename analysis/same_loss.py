"""Do models of different sizes score the same at the same pre-training loss? One curve for all against a curve a size.

For each task: how well each account predicts runs that it has not seen, and the largest difference between two sizes at
equal loss with an interval, held against a margin. With `--by decay` checkpoints from the decay phase of their schedule
are compared with the others in the same way. docs/methods.md has the formulae.

    python -m analysis.same_loss results.csv --margin 0.02
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from analysis import bootstrap, curves, homogeneity, mapping, problems, same_loss_fit
from analysis.names import in_order, metric_title, task_title
from tokenizer import cli
from tokenizer.cli import UserError

EQUIVALENT, DIFFERENT, UNDECIDED = "equivalent", "different", "undecided"

MARGIN = 0.02
"""Two points of accuracy: differences up to this count as none, unless another margin is asked for."""


@dataclass(frozen=True)
class SameLoss:
    """One task under one metric. Differences and errors in the metric's units, losses in nats per token; NaN where
    not computed, with the cause in `reason`."""

    task: str
    metric: str
    by: str
    """The column whose groups are compared: size, or decay."""
    verdict: str
    """`EQUIVALENT` or `DIFFERENT` within the margin, or `UNDECIDED`."""
    margin: float
    largest: float
    """Largest difference at equal loss between the curves of two groups; where they are `DIFFERENT`, the largest at a
    loss where both have two runs."""
    largest_low: float
    largest_high: float
    """95 % interval of it, simultaneous over all pairs and losses."""
    bound: float
    """The least margin within which the groups are equivalent at 5 %: every pair at every loss passes two one-sided
    tests, which needs no correction for their number (intersection-union; Berger and Hsu 1996)."""
    at_loss: float
    between: tuple[str, str]
    """The two groups, the better one first."""
    error_one: float
    """Root mean squared error of one curve for all on runs left out."""
    error_each: float
    """The same of a curve for each group, on the same points."""
    gain: float
    """`error_one` minus `error_each`: positive if knowing the group helps."""
    gain_low: float
    gain_high: float
    """95 % interval over draws of runs."""
    run_sd: float
    """Standard deviation between runs of one group at equal loss; NaN if no group has two runs."""
    num_groups: int
    num_runs: int
    num_checkpoints: int
    reason: str
    """In words, why the verdict."""


def compare(
    table: pd.DataFrame,
    *,
    margin: float = MARGIN,
    by: str = "size",
    loss: str = "loss",
    replicates: int = bootstrap.REPLICATES,
    seed: int = 0,
) -> list[SameLoss]:
    """The comparison for each task and metric of a results table, against the column `loss`.

    `margin` is in each metric's own units: 0.02 is two points of accuracy.
    """
    results = []
    for task in in_order(table["task"]):
        for metric, rows in table[table["task"] == task].groupby("metric"):
            results.append(_compare(task, str(metric), rows, margin, by, loss, replicates, seed))
    return results


def as_table(results: Sequence[SameLoss]) -> pd.DataFrame:
    """One row per task and metric."""
    table = pd.DataFrame([asdict(result) for result in results])
    return table.assign(between=[" - ".join(result.between) for result in results])


def sentence(result: SameLoss) -> str:
    """The result in plain words, with its numbers and their intervals."""
    name = f"{task_title(result.task)} ({metric_title(result.metric)})"
    if not np.isfinite(result.largest):
        return f"{name}: undecided: {result.reason}"
    groups = "sizes" if result.by == "size" else f"groups by {result.by}"
    return (
        f"{name}: {groups} are {result.verdict} at equal loss (margin {result.margin:g}): {result.reason}"
        if result.verdict != UNDECIDED
        else f"{name}: undecided (margin {result.margin:g}): {result.reason}"
    )


def _compare(
    task: str, metric: str, rows: pd.DataFrame, margin: float, by: str, loss: str, replicates: int, seed: int
) -> SameLoss:
    points = same_loss_fit.points_of(rows, by, loss)
    counts = (len(points.names), len(np.unique(points.run)), len(points.x))
    reason = problems.incomparable(rows) or _not_computable(points, by) or homogeneity.homogeneous(rows)
    if reason:
        nothing = [float("nan")] * 5
        errors = [float("nan")] * 6
        return SameLoss(task, metric, by, UNDECIDED, margin, *nothing, ("", ""), *errors, *counts, reason)
    basis = curves.Basis.over(points.x)
    design = basis(points.x)
    errors, penalties = same_loss_fit.errors_of(points, design, replicates, seed)
    run_sd, noise_sd, freedom = same_loss_fit.variation_of(points, design, penalties)
    largest = same_loss_fit.largest_difference(
        points, basis, design, penalties, (run_sd, noise_sd, freedom), replicates, seed
    )
    if largest is None:
        things = "sizes" if by == "size" else "groups"
        reason = f"no two {things} have {same_loss_fit.MINIMUM_POINTS} checkpoints each at common losses"
        nothing = [float("nan")] * 5
        undecided = (UNDECIDED, margin, *nothing, ("", ""), *errors, float("nan"), *counts, reason)
        return SameLoss(task, metric, by, *undecided)
    overall, replicated, bound = largest
    verdict, shown, reason = _verdict(overall, replicated, bound, margin, freedom, by)
    found = (shown.value, shown.low, shown.high, bound, shown.at_loss, shown.between)
    known_sd = run_sd if freedom else float("nan")
    return SameLoss(task, metric, by, verdict, margin, *found, *errors, known_sd, *counts, reason)


def _not_computable(points: same_loss_fit.Points, by: str) -> str:
    if len(points.names) < 2:
        if by == "decay":
            which = "from a decay phase" if points.names == ["decay"] else "marked as from a decay phase"
            return f"{'every' if points.names == ['decay'] else 'no'} checkpoint is {which}: nothing to compare"
        return f"one {by} only ({points.names[0]}): nothing to compare it with"
    if not np.isfinite(points.x).all():
        return "the loss is empty at some checkpoints"
    if np.ptp(points.x) == 0:
        return f"the loss is {points.x[0]:g} at every checkpoint"
    if np.ptp(points.y) == 0:
        return f"performance is {abs(points.y[0]):g} at every checkpoint"
    return ""


def _verdict(
    overall: same_loss_fit.Largest,
    replicated: same_loss_fit.Largest,
    bound: float,
    margin: float,
    freedom: int,
    by: str,
) -> tuple[str, same_loss_fit.Largest, str]:
    """The verdict, the difference that is shown with it, and why; arguments as `largest_difference` returns them."""
    different = replicated.low > margin
    shown = replicated if different else overall
    words = (
        f"the largest difference is {shown.value:.3f} [{shown.low:.3f}, {shown.high:.3f}] "
        f"({shown.between[0]} above {shown.between[1]} at loss {shown.at_loss:.2f})"
    )
    if not freedom:
        words += f"; one run a {by}, so that runs and {by}s cannot be told apart and the interval lacks what runs vary"
    words += f"; equivalent within {bound:.3f} and more"
    if bound <= margin:
        return EQUIVALENT, shown, words
    if different:
        return DIFFERENT, shown, words
    if replicated.low > 5e-4:  # what is printed as more than 0.000
        words += ", more than nothing but perhaps less than the margin"
    if freedom and overall.low > margin:
        words += f"; where both have two runs no difference is clear, elsewhere runs and {by}s cannot be told apart"
    return UNDECIDED, shown, words


def main(argv: Sequence[str] | None = None) -> int | None:
    """Print the comparison for each task."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.same_loss", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    mapping.add_options(parser)
    parser.add_argument(
        "--margin",
        type=float,
        default=MARGIN,
        help="difference that counts as none, in units of the metric (%(default)s)",
    )
    parser.add_argument("--by", choices=("size", "decay"), default="size", help="what is compared (%(default)s)")
    mapping.add_replicates(parser)
    mapping.add_out(parser)
    arguments = parser.parse_args(argv)
    if not arguments.margin > 0:
        raise UserError(f"--margin {arguments.margin:g}: give a difference above 0, as 0.02")
    mapping.check_replicates(arguments.replicates)
    table = mapping.load_as_asked(arguments)
    results = compare(table, margin=arguments.margin, by=arguments.by, replicates=arguments.replicates)
    for result in results:
        print(sentence(result))
        if np.isfinite(result.gain):
            interval = f" [{result.gain_low:+.4f}, {result.gain_high:+.4f}]" if np.isfinite(result.gain_low) else ""
            print(
                f"    error on runs left out: one curve {result.error_one:.4f}, a curve a {arguments.by} "
                f"{result.error_each:.4f}, gain {result.gain:+.4f}{interval or ' (too few runs for an interval)'}"
            )
    mapping.write_results(as_table(results), arguments.out)
    return None


if __name__ == "__main__":
    cli.run(main)
