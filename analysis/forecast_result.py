"""What runs below a share of the largest compute foretell of the others, and what these did: data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.scaling_law import Estimate


@dataclass(frozen=True)
class FinalLoss:
    """The loss at the end of one run that was held out, in nats per token."""

    grid: str
    run: str
    size: str
    parameters: float
    tokens: float
    flops: float
    """6 N D."""
    forecast: Estimate
    """The law's, with the interval for one new run: that of the law, and what runs lie off it."""
    measured: float

    @property
    def inside(self) -> bool:
        """Whether the measured loss lies in the interval."""
        return self.forecast.low <= self.measured <= self.forecast.high


@dataclass(frozen=True)
class TaskForecast:
    """One task under its first metric at one run that was held out; what is not known is NaN."""

    task: str
    metric: str
    grid: str
    run: str
    verdict: str
    """On the runs below the cut, as in `threshold.Threshold`."""
    eta: Estimate
    """The threshold of these runs, nats per token, only with the verdict *emergent*."""
    below: float
    """Share of the draws in which the run ends below the threshold."""
    ends_below: bool | None
    """Whether its measured loss at the end lies below `eta`; None without a threshold."""
    eta_tokens: Estimate
    """Tokens after which a run of this size, had it ended there, would have the loss `eta`; inf: at no number."""
    eta_between: tuple[float, float]
    """Tokens of the checkpoints between which the loss fell below `eta` to stay there; (last, inf) if it did not."""
    chance: float
    score: Estimate
    """Forecast at the end: median and interval of what will be measured, with the noise of runs and of rows."""
    measured: Estimate
    """The score at the end; the interval is over rows."""
    clear_from: Estimate
    """Tokens of the checkpoint from which on the scores are forecast to be clear of chance, at the losses that the run
    had on its way; inf: at none."""
    clear_between: tuple[float, float]
    """Tokens of the checkpoints between which they became so; (last, inf) if they did not."""
    risen: bool
    """Whether the score at the end is clear of chance."""
    reason: str
    """Of the verdict, in words."""

    @property
    def inside(self) -> bool | None:
        """Whether the measured score lies in the interval of the forecast; None where there is none."""
        return None if np.isnan(self.score.value) else self.score.low <= self.measured.value <= self.score.high

    @property
    def clear_inside(self) -> bool | None:
        """Whether the scores became clear of chance where they were forecast to; None without a forecast."""
        return (
            None
            if np.isnan(self.clear_from.value)
            else self.clear_from.low <= self.clear_between[1] <= self.clear_from.high
        )


@dataclass(frozen=True)
class Forecast:
    """What runs below a share of the largest compute say of the others; without `losses` and `scores` where they say
    nothing, with the cause in `reason`."""

    below: float
    cut: float
    """6 N D from which on runs are held out."""
    num_fitted: int
    """Runs below the cut."""
    num_unfinished: int
    """Runs without a final checkpoint, which are neither fitted nor forecast: their budget is not known."""
    losses: list[FinalLoss]
    scores: list[TaskForecast]
    reason: str
