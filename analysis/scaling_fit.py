"""Fitting L(N, D) = E + A/N^alpha + B/D^beta: Huber loss on the logarithm of the loss, many starts, all draws of runs
at once (Hoffmann et al. 2022, App. D.3; Levenberg-Marquardt on reweighted least squares instead of L-BFGS).

Parameters are theta = (log E, log A, alpha, log B, beta), with N and D relative to a reference so that A and B are the
terms there, which keeps the five apart numerically.
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy import optimize

HUBER = 1e-3
"""Residual of the log loss from which on it counts linearly (Hoffmann et al. 2022, App. D.3)."""

EXPONENTS = (0.02, 3.0)
"""Least and greatest alpha and beta."""

LEAST_IRREDUCIBLE = 1e-3
"""Least E, as a share of the lowest loss."""

START_EXPONENTS = (0.1, 0.25, 0.45, 0.8)
START_SHARES = (0.3, 0.6, 0.85, 0.97)
"""Starts: E as a share of the lowest loss; A and B follow by non-negative least squares."""

DRAW_STARTS = 2
"""Starts of a draw beside the fit to all checkpoints, with at most `FEW_POINTS` of these."""

FEW_POINTS = 200

LEAST_DAMPING = 1e-9

_ITERATIONS = 120
_ELEMENTS = 400_000
"""Draws times checkpoints that are held in memory at once."""


def predict(theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray) -> np.ndarray:
    """log L for parameters (..., 5) at log N and log D (relative to the reference), which broadcast against (...)."""
    return _logsumexp(_terms(theta, log_n, log_d))


def fit(
    log_n: np.ndarray, log_d: np.ndarray, log_loss: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The best parameters for all checkpoints, shape (5,), and for each row of `weights` (draws, checkpoints), shape
    (draws, 5). The draws start at the former and, with few checkpoints, elsewhere too, and keep the best they reach."""
    low, high = _bounds(log_loss)
    ones = np.ones((1, len(log_loss)))
    starts = np.clip(_starts(log_n, log_d, np.exp(log_loss)), low, high)
    reached, objective = _descend(starts, log_n, log_d, log_loss, np.repeat(ones, len(starts), axis=0), low, high)
    order = np.argsort(objective)
    best = reached[order[0]]
    draws = np.empty((len(weights), 5))
    least = np.full(len(weights), np.inf)
    chunk = max(1, _ELEMENTS // len(log_loss))
    # Another valley may be the deepest for a draw. Many checkpoints leave less room for that, and cost more.
    spread = np.linspace(0, len(starts) - 1, DRAW_STARTS + 2).round().astype(int)[1:-1]
    beginnings = [best, *(starts[spread] if len(log_loss) <= FEW_POINTS else [])]
    for begin in range(0, len(weights), chunk):
        part = slice(begin, begin + chunk)
        for start in beginnings:
            theta = np.repeat(start[None], len(weights[part]), axis=0)
            theta, value = _descend(theta, log_n, log_d, log_loss, weights[part], low, high)
            better = value < least[part]
            draws[part][better], least[part][better] = theta[better], value[better]
    return best, draws


def huber(residual: np.ndarray) -> np.ndarray:
    """Huber's function: half the square up to `HUBER`, linear beyond."""
    size = np.abs(residual)
    return np.where(size <= HUBER, size**2 / 2, HUBER * (size - HUBER / 2))


def _terms(theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    e, a, alpha, b, beta = (theta[..., i, None] for i in range(5))
    a_term, b_term = a - alpha * log_n, b - beta * log_d
    return np.broadcast_to(e, a_term.shape), a_term, b_term


def _logsumexp(terms: tuple[np.ndarray, ...]) -> np.ndarray:
    highest = np.maximum(np.maximum(terms[0], terms[1]), terms[2])
    return highest + np.log(sum(np.exp(term - highest) for term in terms))


def _bounds(log_loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lowest = log_loss.min()
    low = np.array([lowest + np.log(LEAST_IRREDUCIBLE), -30, EXPONENTS[0], -30, EXPONENTS[0]])
    return low, np.array([lowest, 30, EXPONENTS[1], 30, EXPONENTS[1]])


def _starts(log_n: np.ndarray, log_d: np.ndarray, loss: np.ndarray) -> np.ndarray:
    starts = []
    for share, alpha, beta in itertools.product(START_SHARES, START_EXPONENTS, START_EXPONENTS):
        irreducible = share * loss.min()
        design = np.stack([np.exp(-alpha * log_n), np.exp(-beta * log_d)], axis=1)
        (a, b), _ = optimize.nnls(design, loss - irreducible)
        starts.append([np.log(irreducible), np.log(max(a, 1e-6)), alpha, np.log(max(b, 1e-6)), beta])
    return np.array(starts)


def _descend(
    theta: np.ndarray,
    log_n: np.ndarray,
    log_d: np.ndarray,
    log_loss: np.ndarray,
    weights: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Levenberg-Marquardt for all rows of `theta` (m, 5) with their `weights` (m, n) at once; where it ends, and the
    objective there."""
    theta = theta.copy()
    damping = np.full(len(theta), 1e-3)
    objective, gradient, hessian = _model(theta, log_n, log_d, log_loss, weights)
    active = np.arange(len(theta))
    for _ in range(_ITERATIONS):
        diagonal = np.einsum("mii->mi", hessian[active])
        # Each parameter in its own unit; a term that vanishes everywhere leaves a zero on the diagonal.
        unit = np.sqrt(diagonal + 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300)
        scaled = hessian[active] / unit[:, :, None] / unit[:, None, :] + damping[active, None, None] * np.eye(5)
        step = np.linalg.solve(scaled, (gradient[active] / unit)[..., None])[..., 0] / unit
        trial = np.clip(theta[active] - step, low, high)
        value, trial_gradient, trial_hessian = _model(trial, log_n, log_d, log_loss, weights[active])
        better = value < objective[active]
        moved = active[better]
        gained = objective[active] - value
        small = gained <= 1e-7 * objective[active]
        theta[moved], objective[moved] = trial[better], value[better]
        gradient[moved], hessian[moved] = trial_gradient[better], trial_hessian[better]
        damping[active] = np.where(better, np.maximum(damping[active] / 5, LEAST_DAMPING), damping[active] * 8)
        # A short step because of the damping is no end yet.
        done = (better & small & (damping[active] < 1e-2)) | (damping[active] > 1e8)
        active = active[~done]
        if not len(active):
            break
    return theta, objective


def _model(
    theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray, log_loss: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Objective (m,), gradient (m, 5) and its reweighted Gauss-Newton Hessian (m, 5, 5)."""
    terms = _terms(theta, log_n, log_d)
    total = _logsumexp(terms)
    residual = total - log_loss
    of_e, of_a, of_b = (np.exp(term - total) for term in terms)
    jacobian = np.stack([of_e, of_a, -log_n * of_a, of_b, -log_d * of_b], axis=1)
    influence = weights / np.maximum(1.0, np.abs(residual) / HUBER)
    weighted = jacobian * influence[:, None, :]
    objective = (weights * huber(residual)).sum(axis=1)
    gradient = (weighted @ residual[..., None])[..., 0]
    return objective, gradient, weighted @ jacobian.transpose(0, 2, 1)
