"""What a value of the results table is worth: its sampling variance, and how far knowing nothing may lie from chance.

`fit_data` puts one task under one metric into the arrays that threshold inference works on.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import optimize

from analysis.columns import GUESS_RATE
from analysis.table import FRACTIONS, run_ids
from analysis.threshold_shapes import Data


def noise_variance(rows: pd.DataFrame, loss: np.ndarray) -> np.ndarray:
    """Sampling variance of each value, shape (checkpoints,).

    Binomial for shares of rows, at the isotonic fit over `loss` rather than at the observed share (which would
    give the unluckiest checkpoints the most weight); the squared standard error for other metrics.
    """
    value = rows["value"].to_numpy(dtype=float)
    count = rows["rows"].to_numpy(dtype=float)
    if rows["metric"].iloc[0] in FRACTIONS:
        order = np.argsort(loss, kind="stable")
        fitted = np.empty_like(value)
        fitted[order] = optimize.isotonic_regression(value[order], weights=count[order], increasing=False).x
        floor = np.maximum(GUESS_RATE, 1 / count)
        share = np.clip(fitted, floor, 1 - floor)
        return share * (1 - share) / count
    error = rows["stderr"].to_numpy(dtype=float)
    positive = error[np.isfinite(error) & (error > 0)]
    typical = np.median(positive) if len(positive) else max(float(np.std(value)), 1e-9)
    return np.square(np.where(np.isfinite(error) & (error > 0), error, typical))


def level_spread(chance: float, rows: float, metric: str, variance: np.ndarray) -> float:
    """How far knowing nothing may lie from chance on these very rows, which all checkpoints share (1 sd)."""
    if metric not in FRACTIONS:
        return float(np.sqrt(np.median(variance)))
    return float(np.sqrt(chance * (1 - chance) / rows)) if 0 < chance < 1 else GUESS_RATE


def fit_data(rows: pd.DataFrame, loss: str = "loss") -> Data:
    """One task under one metric as `Data`, runs in the order of their names; `chance` must be known."""
    run = run_ids(rows).to_numpy(dtype=str)
    order = np.argsort(run, kind="stable")
    rows, run = rows.iloc[order], run[order]
    losses = rows[loss].to_numpy(dtype=float)
    chance = rows["chance"].to_numpy(dtype=float)
    sign = 1.0 if rows["higher_is_better"].iloc[0] else -1.0
    variance = noise_variance(rows, losses)
    metric = str(rows["metric"].iloc[0])
    level_sd = level_spread(float(np.median(chance)), float(np.median(rows["rows"])), metric, variance)
    starts = np.flatnonzero(np.concatenate([[True], run[1:] != run[:-1]]))
    return Data(losses, sign * (rows["value"].to_numpy(dtype=float) - chance), variance, starts, level_sd)
