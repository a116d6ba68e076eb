"""The cluster bootstrap over runs: checkpoints of one run are not independent, so whole runs are drawn.

A replicate is a vector of multiplicities, how often each run was drawn; statistics that are sums over
checkpoints then need only the sums of each run, and a thousand replicates are one matrix product.
"""

from __future__ import annotations

import numpy as np

REPLICATES = 1000
"""Replicates behind every interval, unless another number is asked for."""

MINIMUM_RUNS = 3
"""Fewer runs say nothing about how runs differ."""


def multiplicities(num_runs: int, replicates: int, seed: int) -> np.ndarray:
    """How often each run is drawn: integers of shape (replicates, num_runs), rows summing to num_runs."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(num_runs, np.full(num_runs, 1 / num_runs), size=replicates)


def percentile_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The central interval that holds `level` of the finite `values`; (nan, nan) if fewer than 80 % are finite."""
    finite = values[np.isfinite(values)]
    if len(finite) < 0.8 * len(values) or len(finite) == 0:
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)
