"""Is there anything to explain? Whether scores vary by more than the sampling of rows does."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from analysis.columns import FRACTIONS

SIGNIFICANCE = 0.01
"""Probability with which mere sampling error is taken for a signal."""


def homogeneous(rows: pd.DataFrame) -> str:
    """Why the scores of one task and metric hold nothing to explain, or "".

    Cochran's test of homogeneity: the sum of squared deviations from the weighted mean over the squared standard errors
    is chi-square with (checkpoints - 1) degrees of freedom if all checkpoints score the same. Errors of shares are
    taken at the mean, as at a share of 0 or 1 the observed one is 0. Without standard errors nothing is tested.
    """
    value, stderr = rows["value"].to_numpy(dtype=float), rows["stderr"].to_numpy(dtype=float)
    variance = np.square(stderr)
    if rows["metric"].isin(FRACTIONS).all():
        count = rows["rows"].to_numpy(dtype=float)
        mean = float((value * count).sum() / count.sum())
        variance = mean * (1 - mean) / count
    known = np.isfinite(variance) & (variance > 0)
    if known.sum() < 2 or not known.all():
        return ""
    mean = float((value / variance).sum() / (1 / variance).sum())
    statistic = float((np.square(value - mean) / variance).sum())
    p_value = float(stats.chi2.sf(statistic, len(value) - 1))
    if p_value > SIGNIFICANCE:
        return f"scores vary no more than the sampling of rows does (p = {p_value:.2g}): there is nothing to explain"
    return ""
