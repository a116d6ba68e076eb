"""The scaling law L(N, D) = E + A/N^alpha + B/D^beta, fitted to a grid, and what it says of a threshold.

From it the paper's Eq. 4 (loss against size at fixed tokens) and Eq. 5 (the size at which a threshold eta is crossed),
the tokens that a size needs, and the least compute that reaches eta, each with an interval over draws of runs.

    law = fit(analysis.load("runs/paper"))
    law.size_for(2.2, tokens=5e11)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis import bootstrap, problems, scaling_fit
from analysis.table import run_ids

PARAMETERS = ("parameters", "parameters_non_embedding")
"""What N can be."""

MINIMUM_POINTS = 8
"""Checkpoints, five parameters being fitted."""

NEGLIGIBLE = 1e-3
"""Share of the loss that size and tokens must each account for in the middle of the grid."""

MINIMUM_DISTINCT = 3
"""Sizes and token counts; fewer cannot tell a power law from a line."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval over draws of runs. `inf`: not reached at any size, tokens or compute."""

    value: float
    low: float
    high: float
    reached: float = 1.0
    """Share of the draws in which the number is finite."""


@dataclass(frozen=True)
class FixedTokens:
    """Du et al. 2024, Eq. 4: L(N) = L_inf + (N0/N)^alpha_N at a fixed number of tokens."""

    loss_infinity: float
    """Loss of an endlessly large model, nats per token."""
    n0: float
    """Parameters at which the size costs one nat."""
    alpha: float

    def loss(self, parameters: float) -> float:
        """Eq. 4."""
        return self.loss_infinity + (self.n0 / parameters) ** self.alpha

    def size_for(self, eta: float) -> float:
        """Eq. 5: N = N0 (eta - L_inf)^(-1/alpha_N), the size from which on the loss is at most `eta`; inf if no size
        reaches it."""
        return self.n0 * (eta - self.loss_infinity) ** (-1 / self.alpha) if eta > self.loss_infinity else np.inf


def emergent_performance(loss: np.ndarray, eta: float, rise: float, power: float = 1.0) -> np.ndarray:
    """Du et al. 2024, Eq. 3: normalised performance (chance is 0) f(L) for L < eta, else 0, with the falling
    f(L) = rise (eta - L)^power (*ours*; the paper leaves f open)."""
    return rise * np.maximum(0.0, eta - np.asarray(loss, dtype=float)) ** power


def loss_of_performance(performance: float, eta: float, rise: float, power: float = 1.0) -> float:
    """Eq. 3 the other way round: the loss at which a normalised performance above 0 is reached."""
    if performance <= 0:
        raise ValueError("every loss of eta and more has normalised performance 0")
    return eta - (performance / rise) ** (1 / power)


@dataclass(frozen=True)
class Optimum:
    """The cheapest way to a loss: 6 N D is least where alpha A/N^alpha = beta B/D^beta."""

    parameters: Estimate
    tokens: Estimate
    flops: Estimate


@dataclass(frozen=True)
class ScalingLaw:
    """L(N, D) = E + A/N^alpha + B/D^beta in nats per token, N parameters and D tokens; NaN where nothing was fitted,
    with the cause in `reason`."""

    parameters: str
    """The column that is N."""
    irreducible: Estimate
    """E."""
    a: Estimate
    alpha: Estimate
    b: Estimate
    beta: Estimate
    error: float
    """Root mean squared residual of the log loss."""
    num_runs: int
    num_points: int
    num_left_out: int
    """Checkpoints that were not used: those before the end of their run, if there are enough without them."""
    size_range: tuple[float, float]
    token_range: tuple[float, float]
    reason: str
    theta: np.ndarray = field(repr=False, compare=False)
    """(1 + draws, 5): log E, log A, alpha, log B, beta; the fit first."""

    def loss(self, parameters: float, tokens: float) -> Estimate:
        """The loss of a model of that many parameters after that many tokens."""
        return over_draws(np.exp(scaling_fit.predict(self.theta, np.log([parameters]), np.log([tokens]))[:, 0]))

    def fixed_tokens(self, tokens: float) -> FixedTokens:
        """Eq. 4 at `tokens`: L_inf = E + B/D^beta, N0 = A^(1/alpha), alpha_N = alpha."""
        e, a, alpha, b, beta = self.theta[0]
        return FixedTokens(float(np.exp(e) + np.exp(b) / tokens**beta), float(np.exp(a / alpha)), float(alpha))

    def size_for(self, eta: float | np.ndarray, tokens: float) -> Estimate:
        """Eq. 5: the parameters from which on a model trained on `tokens` has a loss of at most `eta`, a number or one
        for each draw (1 + draws,)."""
        e, a, alpha, b, beta = self.theta.T
        room = eta - np.exp(e) - np.exp(b - beta * np.log(tokens))
        return over_draws(_power(a, alpha, room))

    def tokens_for(self, eta: float | np.ndarray, parameters: float) -> Estimate:
        """The tokens after which a model of that many parameters has a loss of at most `eta`."""
        e, a, alpha, b, beta = self.theta.T
        room = eta - np.exp(e) - np.exp(a - alpha * np.log(parameters))
        return over_draws(_power(b, beta, room))

    def flops_for(self, eta: float | np.ndarray) -> Optimum:
        """The least 6 N D that reaches `eta`, and its size and tokens.

        With R = eta - E, Lagrange gives A/N^alpha = R beta/(alpha + beta) and B/D^beta = R alpha/(alpha + beta)
        (Hoffmann et al. 2022, Eq. 4, for a given loss instead of a given compute).
        """
        e, a, alpha, b, beta = self.theta.T
        room = eta - np.exp(e)
        size = _power(a, alpha, room * beta / (alpha + beta))
        tokens = _power(b, beta, room * alpha / (alpha + beta))
        return Optimum(over_draws(size), over_draws(tokens), over_draws(6 * size * tokens))

    def eta_draws(self, eta: float, low: float, high: float, seed: int = 0) -> np.ndarray:
        """A threshold with its 95 % interval as one value a draw (1 + draws,), the threshold itself first: normal on
        each side, so that its uncertainty adds to the law's."""
        z = np.random.default_rng([seed, 1]).standard_normal(len(self.theta) - 1)
        return np.concatenate([[eta], eta + np.where(z < 0, eta - low, high - eta) * z / 1.959964])


def fit(
    table: pd.DataFrame,
    *,
    loss: str = "loss",
    parameters: str = "parameters",
    points: str = "auto",
    replicates: int = bootstrap.REPLICATES,
    seed: int = 0,
    drawn_runs: np.ndarray | None = None,
) -> ScalingLaw:
    """Fit the law to the checkpoints of a results table.

    `points`: ``final`` takes the last checkpoint of each run, ``all`` every one, ``auto`` the final ones if at least
    `MINIMUM_POINTS` runs have one: a cosine schedule lowers the loss at its end, so that earlier checkpoints lie above
    the law (Hoffmann et al. 2022, section 3.1). Intervals are over draws of whole runs; `drawn_runs`, how often each is
    drawn, (draws, runs) with the runs in the order of their names, takes the place of `replicates` and `seed`.
    """
    checkpoints = table.drop_duplicates(["grid", "run", "step"])
    final = checkpoints[checkpoints["final"]]
    chosen = final if points == "final" or (points == "auto" and _enough(final, parameters)) else checkpoints
    reason = _not_computable(chosen, loss, parameters)
    run, index = np.unique(run_ids(chosen).to_numpy(dtype=str), return_inverse=True)
    left_out = len(checkpoints) - len(chosen)
    counts = (len(run), len(chosen), left_out)
    if reason:
        return _nothing(parameters, counts, reason)
    n, d = (chosen[column].to_numpy(dtype=float) for column in (parameters, "tokens"))
    log_loss = np.log(chosen[loss].to_numpy(dtype=float))
    # Terms at the middle of the grid instead of at one parameter and one token.
    middle_n, middle_d = np.log(n).mean(), np.log(d).mean()
    if drawn_runs is None:
        drawn_runs = bootstrap.multiplicities(len(run), replicates, seed)
    weights = drawn_runs[:, index].astype(float)
    best, draws = scaling_fit.fit(np.log(n) - middle_n, np.log(d) - middle_d, log_loss, weights)
    if reason := _not_identified(best, np.exp(log_loss)):
        return _nothing(parameters, counts, reason)
    theta = np.concatenate([best[None], draws])
    theta[:, 1] += theta[:, 2] * middle_n
    theta[:, 3] += theta[:, 4] * middle_d
    residual = scaling_fit.predict(theta[0], np.log(n), np.log(d)) - log_loss
    return ScalingLaw(
        parameters,
        over_draws(np.exp(theta[:, 0])),
        over_draws(np.exp(theta[:, 1])),
        over_draws(theta[:, 2]),
        over_draws(np.exp(theta[:, 3])),
        over_draws(theta[:, 4]),
        float(np.sqrt(np.mean(np.square(residual)))),
        *counts,
        (float(n.min()), float(n.max())),
        (float(d.min()), float(d.max())),
        "",
        theta,
    )


def _nothing(parameters: str, counts: tuple[int, int, int], reason: str) -> ScalingLaw:
    nothing = [Estimate(*[float("nan")] * 3, 0.0)] * 5
    ranges = [(float("nan"), float("nan"))] * 2
    return ScalingLaw(parameters, *nothing, float("nan"), *counts, *ranges, reason, np.full((1, 5), np.nan))


def _not_identified(theta: np.ndarray, loss: np.ndarray) -> str:
    """Why a fit says nothing about size or tokens, or "": a term that has vanished in the middle of the grid, or an
    exponent at the end of what is allowed."""
    for name, log_term, exponent in (("size", theta[1], theta[2]), ("tokens", theta[3], theta[4])):
        if np.exp(log_term) < NEGLIGIBLE * loss.mean():
            return f"{name}: the fit gives the term no part in the loss; the table does not tell how loss falls with it"
        low, high = scaling_fit.EXPONENTS
        if not 1.01 * low < exponent < 0.99 * high:
            return (
                f"{name}: the exponent {exponent:.2g} is at the end of what is allowed ({low:g} to {high:g}); the "
                + ("table does not tell how loss falls with it")
            )
    return ""


def _power(log_factor: np.ndarray, exponent: np.ndarray, room: np.ndarray) -> np.ndarray:
    """x with factor/x^exponent = room; inf without room."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        reached = np.exp((log_factor - np.log(np.where(room > 0, room, 1))) / exponent)
    return np.where(np.isnan(room), np.nan, np.where(room > 0, reached, np.inf))


def over_draws(values: np.ndarray) -> Estimate:
    """The first of (1 + draws,) values with the percentile interval of the others, in which infinite ones count."""
    drawn = np.sort(values[1:])
    if not len(drawn):
        return Estimate(float(values[0]), float("nan"), float("nan"))
    # Positions instead of interpolation: between a finite and an infinite draw there is nothing.
    low, high = drawn[int(0.025 * (len(drawn) - 1))], drawn[int(np.ceil(0.975 * (len(drawn) - 1)))]
    return Estimate(float(values[0]), float(low), float(high), float(np.isfinite(drawn).mean()))


def _enough(checkpoints: pd.DataFrame, parameters: str) -> bool:
    distinct = min(checkpoints[column].nunique() for column in (parameters, "tokens"))
    return len(checkpoints) >= MINIMUM_POINTS and distinct >= MINIMUM_DISTINCT


def _not_computable(checkpoints: pd.DataFrame, loss: str, parameters: str) -> str:
    if reason := problems.incomparable(checkpoints):
        return reason
    for column in (loss, parameters, "tokens"):
        if checkpoints[column].isna().any() or not (checkpoints[column] > 0).all():
            return f"{column} is empty or 0 at some checkpoints"
    for column, thing in ((parameters, "model sizes"), ("tokens", "numbers of tokens")):
        if checkpoints[column].nunique() < MINIMUM_DISTINCT:
            return f"{checkpoints[column].nunique()} {thing}; a power law needs {MINIMUM_DISTINCT} at least"
    if len(checkpoints) < MINIMUM_POINTS:
        return f"{len(checkpoints)} checkpoints; five parameters need {MINIMUM_POINTS} at least"
    if checkpoints[loss].nunique() == 1:
        return f"the loss is {checkpoints[loss].iloc[0]:g} at every checkpoint"
    runs = run_ids(checkpoints).nunique()
    if runs < bootstrap.MINIMUM_RUNS:
        return f"{runs} runs; an interval needs {bootstrap.MINIMUM_RUNS} at least"
    return ""
