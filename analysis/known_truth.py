"""Results tables whose truth is known: for the notebooks, and to see what would be found before a grid is trained.

    points = checkpoints({"300M": 0.35e9, "1B": 1.1e9}, (67e9, 250e9), num_checkpoints=8)
    table = scores(points, {"mmlu": lambda loss: 0.8 * np.maximum(0, 2.2 - loss)}, rows=1000)

All of it is made up (*ours*): losses follow a scaling law exactly, scores vary by their benchmark's rows and by run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.table import check

Truth = Callable[[np.ndarray], np.ndarray]
"""Excess over chance, in units of accuracy, at each loss."""


def law(parameters: float, tokens: np.ndarray | float) -> np.ndarray:
    """Loss in nats per token: 1.52 + 406.4 / N^0.34 + 410.7 / D^0.28, with the exponents and factors that Hoffmann et
    al. 2022 (App. D.3) give for their corpus, and a floor set lower (*ours*)."""
    return 1.52 + 406.4 / parameters**0.34 + 410.7 / np.asarray(tokens, dtype=float) ** 0.28


def checkpoints(sizes: Mapping[str, float], budgets: Sequence[float], num_checkpoints: int = 6) -> pd.DataFrame:
    """One row for each checkpoint of a run for every size (its parameters) and budget (tokens), evenly spaced.

    Before the end of its run a checkpoint lies up to 0.03 nats above the law, as under a cosine schedule.
    """
    rows = []
    for size, parameters in sizes.items():
        for budget in budgets:
            for position in range(1, num_checkpoints + 1):
                share = position / num_checkpoints
                tokens = budget * share
                rows.append(
                    {
                        "grid": "known truth",
                        "run": f"{size}-{budget / 1e9:g}B",
                        "size": size,
                        "step": round(tokens / 2**21),
                        "final": position == num_checkpoints,
                        "tokens": tokens,
                        "parameters": parameters,
                        "parameters_non_embedding": 0.9 * parameters,
                        "loss": float(law(parameters, tokens)) + 0.03 * (1 - share),
                    }
                )
    return pd.DataFrame(rows)


def scores(
    points: pd.DataFrame,
    truths: Mapping[str, Truth],
    *,
    rows: int = 1000,
    chance: float = 0.25,
    run_sd: float = 0.0,
    seed: int = 0,
    continuous: bool = False,
) -> pd.DataFrame:
    """A results table of accuracies at the given checkpoints.

    Args:
        points: one row a checkpoint, as `checkpoints` gives.
        truths: task -> its excess over chance as a function of loss.
        rows: questions of each task.
        run_sd: standard deviation of a run's own excess, where there is any.
        continuous: also the probability of the correct option and the Brier score. The model gives the correct option
            of each question a probability p with the mean chance + excess, the others equal shares of the rest.
    """
    generator = np.random.default_rng(seed)
    _, run = np.unique(points["run"], return_inverse=True)
    parts = []
    for task, truth in truths.items():
        excess = np.maximum(truth(points["loss"].to_numpy()), 0.0)
        excess = excess + (excess > 0) * generator.normal(0, run_sd, run.max() + 1)[run]
        share = np.clip(chance + excess, 0.0, 1.0)
        accuracy = generator.binomial(rows, share) / rows
        common = points.assign(task=task, language="en", rows=rows)
        parts.append(common.assign(metric="acc", value=accuracy, stderr=np.nan, chance=chance, higher_is_better=True))
        if continuous:
            parts += _continuous(common, share, chance, rows, generator)
    return check(pd.concat(parts, ignore_index=True), "known truth")


def _continuous(
    common: pd.DataFrame, share: np.ndarray, chance: float, rows: int, generator: np.random.Generator
) -> list[pd.DataFrame]:
    # Beta with 20 pseudo-counts: questions differ in how sure the model is.
    mean = np.clip(share, 0.01, 0.99)[:, None]
    p = generator.beta(20 * mean, 20 * (1 - mean), size=(len(share), rows))
    others = 1 / chance - 1
    brier = (1 - p) ** 2 + (1 - p) ** 2 / others
    # The chance level of the Brier score is that of certain chance; spread over questions adds its variance.
    spread = (chance * (1 - chance) / 21) * (1 + 1 / others)
    return [
        common.assign(
            metric=metric,
            value=values.mean(axis=1),
            stderr=values.std(axis=1, ddof=1) / np.sqrt(rows),
            chance=level,
            higher_is_better=better,
        )
        for metric, values, level, better in (
            ("correct_choice_prob", p, chance, True),
            ("brier", brier, 1 - chance + spread, False),
        )
    ]
