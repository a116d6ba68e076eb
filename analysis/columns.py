"""What the columns of a results table are called, which values they can hold, and which can be derived.

`analysis.table` reads and completes tables by this, `analysis.problems` checks them.
"""

from __future__ import annotations

import pandas as pd

from emergence_eval.metrics import LOWER_IS_BETTER as _LOWER_IS_BETTER

GUESS_RATE = 0.01
"""What knowing nothing may still earn on an open task (a small number, a frequent name): *ours*. A chance of
exactly 0 would make one lucky answer in ten thousand an ability."""

REQUIRED = ("run", "size", "tokens", "loss", "task", "metric", "value", "rows")
"""Columns without which nothing can be said; none of their cells may be empty."""

DERIVED = ("step", "parameters", "language", "chance", "higher_is_better")
"""Columns that nothing goes without either, but which follow from others where a table lacks them: the step from
the order of tokens, parameters from the size's name (6B), chance and direction from task and metric."""

OPTIONAL = (
    "grid",
    "seed",
    "final",
    "decay",
    "parameters_non_embedding",
    "flops_6nd",
    "flops_exact",
    "loss_train",
    "precision",
    "tokenizer_sha256",
    "data_fingerprint",
    "kind",
    "stderr",
    "num_fewshot_used_mean",
)
"""Columns that are derived or left empty where a table of other origin lacks them."""

ORDER = (
    *("grid", "run", "size", "seed", "step", "final", "decay", "tokens", "parameters", "parameters_non_embedding"),
    *("flops_6nd", "flops_exact", "loss", "loss_train"),
    *("precision", "tokenizer_sha256", "data_fingerprint", "task", "language", "kind", "metric", "value"),
    *("stderr", "rows", "chance", "higher_is_better", "num_fewshot_used_mean"),
)
"""The order in which columns are written; `loss_<language>` follow `loss_train`, unknown ones come last."""

KEY = ("grid", "run", "step", "task", "metric")
"""What names one row of the table."""

CHECKPOINT = ("grid", "run", "step")
"""What names one checkpoint."""

ALIASES = {"run": ("model",), "parameters": ("params", "num_parameters"), "size": ("model_size",)}
"""Names that a column is also known by, taken where it is missing."""

TEXT = (
    *("grid", "run", "size", "task", "language", "kind", "metric", "precision"),
    *("tokenizer_sha256", "data_fingerprint"),
)
"""Columns of words; empty cells become ""."""

TRUTH = ("higher_is_better", "final", "decay")
"""Columns of true and false."""

FRACTIONS = ("acc", "acc_norm", "exact_match", "reference_prob")
"""Metrics that are a share of rows answered correctly: within 0 and 1, with binomial noise. The last is the share
expected of a model that is sampled; a mean of probabilities varies no more than a share that is as large does."""

PAPER_METRICS = ("acc", "exact_match", "correct_choice_prob", "brier")
"""The metrics of Du et al. 2024 (sections 2 and 3.2)."""

RANGES = {
    **dict.fromkeys(FRACTIONS, (0.0, 1.0)),
    **dict.fromkeys(("correct_choice_prob", "f1", "ece"), (0.0, 1.0)),
    "brier": (0.0, 2.0),
}
"""Least and greatest possible value of the metrics that have one."""

LOWER_IS_BETTER = _LOWER_IS_BETTER | {"perplexity"}
"""Metrics of which a smaller value is the better one."""

MAXIMUM_LOSS = 30.0
"""Nats per token; ln(vocabulary) is 11 for 65k entries, so anything above this is another quantity."""

OPTIONS = {"hellaswag": 4, "race": 4, "mmlu": 4, "ceval": 4, "winogrande": 2, "clozet": 2, "cluewsc": 2}
"""Options of the paper's choice tasks (Du et al. 2024, Table 6) in which every row has as many; C3 has 2 to 4."""

_CHOICE = ("acc", "acc_norm", "correct_choice_prob")
_OPEN = ("exact_match", "reference_prob", "f1")


def chance_levels(table: pd.DataFrame, given: dict[str, float]) -> pd.Series:
    """The chance level of each row as far as it follows from something; NaN where it does not.

    A task's level is `given`, else that of another metric of the task in the table, else 1/options of the paper's
    tasks. It is that of accuracy and CorrectChoiceProb, one minus it that of the Brier score (a uniform guess over
    k options: (1 - 1/k)^2 + (k - 1)/k^2 = 1 - 1/k; 0.75 of four, Du et al. 2024, App. C), and 0 that of open answers.
    """
    metric, task = table["metric"], table["task"]
    known = pd.Series(float("nan"), index=table.index)
    if "chance" in table:
        known = table["chance"].where(metric.isin(_CHOICE)).fillna((1 - table["chance"]).where(metric == "brier"))
    of_task = known.groupby(task).median()
    by_name = {name: 1 / options for name, options in OPTIONS.items()}
    level = task.map(given).fillna(task.map(of_task)).fillna(task.map(by_name))
    level = level.where(metric.isin(_CHOICE), (1 - level).where(metric == "brier"))
    # An open answer that was given a level by hand keeps it.
    open_level = task.map(given).astype(float).fillna(0.0)
    return level.where(~metric.isin(_OPEN), open_level).astype(float)


def parameters_of(sizes: pd.Series) -> pd.Series:
    """`6B` as 6e9, `300M` as 3e8, `1.5e9` as itself; NaN for anything else."""
    distinct = pd.Series(sizes.unique()).astype(str)
    parts = distinct.str.strip().str.extract(r"^([0-9]*\.?[0-9]+(?:[eE]\+?[0-9]+)?)\s*([kKmMbBtT]?)$")
    factor = parts[1].str.upper().map({"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12})
    numbers = pd.to_numeric(parts[0], errors="coerce") * factor
    return sizes.astype(str).map(dict(zip(distinct, numbers, strict=True))).astype(float)
