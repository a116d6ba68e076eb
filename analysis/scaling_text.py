"""The scaling law and what a threshold takes, in sentences; and GPU-hours from a cluster's plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.scaling_law import Estimate, ScalingLaw
from tokenizer.cli import UserError

if TYPE_CHECKING:
    from recipes.cluster import Cluster

SIGNIFICANT_DIGITS = 3

_SUFFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class ClusterRate:
    """FLOP/s that training reaches on one GPU, waiting included, and in words where the number comes from."""

    flops_per_second: float
    origin: str


def count(number: float) -> str:
    """6.2e9 as 6.2B, beyond a thousand T in powers of ten; infinity as `no limit`."""
    if np.isnan(number):
        return "unknown"
    if np.isinf(number):
        return "no limit"
    factor, suffix = next(((f, s) for f, s in _SUFFIXES if number >= f), (1.0, ""))
    if number >= 1e15:
        return f"{number:.{SIGNIFICANT_DIGITS - 1}e}"
    return f"{number / factor:.{SIGNIFICANT_DIGITS}g}{suffix}"


def quantity(estimate: Estimate, unit: str, *, power_of_ten: bool = False) -> str:
    """An estimate with its interval and unit; what no draw reaches is said to be out of reach."""
    show = (lambda x: "no limit" if np.isinf(x) else f"{x:.2e}") if power_of_ten else count
    if np.isinf(estimate.value):
        if np.isinf(estimate.low):
            return f"out of reach at any number of {unit}"
        return f"out of reach at any number of {unit} by the fit, from {show(estimate.low)} within the interval"
    interval = f"[{show(estimate.low)}, {show(estimate.high)}]" if not np.isnan(estimate.low) else "(no interval)"
    share = f", reached in {100 * estimate.reached:.0f} % of the draws" if estimate.reached < 1 else ""
    return f"{show(estimate.value)} {interval} {unit}{share}"


def law_lines(law: ScalingLaw) -> list[str]:
    """The fit, or why there is none."""
    if law.reason:
        return [f"scaling law: not fitted: {law.reason}"]
    used = f"{law.num_points} checkpoints of {law.num_runs} runs"
    if law.num_left_out:
        used += f", the last of each run ({law.num_left_out} earlier ones left out; --points all takes them)"
    numbers = ", ".join(
        f"{name} = {e.value:.4g} [{e.low:.4g}, {e.high:.4g}]"
        for name, e in (
            ("E", law.irreducible),
            ("A", law.a),
            ("alpha", law.alpha),
            ("B", law.b),
            ("beta", law.beta),
        )
    )
    return [
        f"L(N, D) = E + A/N^alpha + B/D^beta on {used}; N is {law.parameters.replace('_', ' ')}",
        f"    {numbers}",
        f"    residual of log L {100 * law.error:.2f} %; seen: N {count(law.size_range[0])} to "
        f"{count(law.size_range[1])}, D {count(law.token_range[0])} to {count(law.token_range[1])}; beyond that it is "
        "extrapolation",
    ]


def eta_lines(
    law: ScalingLaw, eta: float, draws: float | np.ndarray, tokens: float, size: float, rate: ClusterRate | None
) -> list[str]:
    """What a loss of `eta` takes; `draws` is eta itself, or one value a draw."""
    best = law.flops_for(draws)
    lines = [
        f"a loss of {eta:g} takes",
        f"    at {count(tokens)} tokens: {quantity(law.size_for(draws, tokens), 'parameters')} (Eq. 5)",
        f"    with {count(size)} parameters: {quantity(law.tokens_for(draws, size), 'tokens')}",
        f"    with the least compute: {quantity(best.flops, 'FLOPs', power_of_ten=True)}, "
        f"{quantity(best.parameters, 'parameters')}, {quantity(best.tokens, 'tokens')}",
    ]
    if rate is not None:
        hours = scaled(best.flops, 1 / rate.flops_per_second / 3600)
        lines.append(f"    {quantity(hours, 'GPU-hours')} ({rate.origin})")
    return lines


def scaled(estimate: Estimate, factor: float) -> Estimate:
    """An estimate in another unit."""
    return Estimate(estimate.value * factor, estimate.low * factor, estimate.high * factor, estimate.reached)


def machine_of(cluster: str | None, mfu: float | None) -> Cluster | None:
    """The cluster of that name or file, None without one. UserError for one that cannot be read or a bad share."""
    if mfu is not None and not 0 < mfu <= 1:
        raise UserError(f"--mfu {mfu:g}: give a share of the peak rate, as 0.45")
    if cluster is None:
        return None
    try:
        # Only here, as nothing else in `analysis` needs the room of the trainings.
        from recipes.cluster import load_cluster
    except ImportError as error:
        raise UserError(f"--cluster needs the planner of recipes ({error}); leave it out to get FLOPs") from None
    return load_cluster(cluster)


def cluster_rate(machine: Cluster | None, mfu: float | None, parameters: float) -> ClusterRate | None:
    """What one GPU does: the peak of its cluster's file times `mfu`, or times what the planner finds for the run of the
    paper's grid that is nearest to `parameters`, lost time included. None without a cluster."""
    if machine is None:
        return None
    if mfu is not None:
        peak = max(machine.peak_flops.values())
        return ClusterRate(peak * mfu, f"{machine.name}, {100 * mfu:.0f} % of {peak:.3g} FLOP/s as given")
    from recipes.grid import load_grid
    from recipes.planner import Planner

    nearest = min(load_grid("paper").runs, key=lambda run: abs(np.log(run.settings.parameters / parameters)))
    plan = Planner(machine).within(nearest)
    share = plan.utilisation() * plan.goodput
    peak = machine.peak_flops[plan.settings.precision]
    origin = (
        f"{machine.name}: {100 * share:.0f} % of {peak:.3g} FLOP/s, lost time included, as planned for the paper's "
        f"{nearest.name} on {plan.gpus} GPUs"
    )
    return ClusterRate(peak * share, origin)
