"""A simulated grid that looks like the paper's 31 runs (REFERENCE.md section 1), for figures and the report.

Losses follow a scaling law of Hoffmann et al.'s form, tasks their description in Du et al. 2024: eight rise from the
start, MMLU, C-Eval and the two GSM8K from 2.2 on, on continuous metrics too.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

LARGE = {"1.5B": (1.51e9, 3000), "6B": (6.24e9, 3000), "32B": (32.0e9, 2500)}
SMALL = {
    "300M": (0.35e9, (67, 125, 250, 500)),
    "540M": (0.55e9, (33, 66, 125, 250, 500)),
    "1B": (1.10e9, (33, 67, 125, 250, 500)),
    "1.5B": (1.51e9, (67, 100, 125, 250, 375, 500)),
    "3B": (3.16e9, (67, 125, 250, 500)),
    "6B": (6.24e9, (33, 67, 125, 250)),
}
ETA = 2.2
CHOICE, OPEN = ("acc", "correct_choice_prob", "brier"), ("exact_match",)

# task: language, kind, prompting, rows, chance, metrics, excess over chance as a function of loss
TASKS = {
    "triviaqa": ("en", "closed-book QA", "few-shot", 11313, 0.0, OPEN, lambda x: 0.36 * (3.4 - x) ** 1.6),
    "hellaswag": ("en", "commonsense NLI", "zero-shot", 10042, 0.25, CHOICE, lambda x: 0.32 * (3.3 - x)),
    "race": ("en", "reading comprehension", "few-shot", 4934, 0.25, CHOICE, lambda x: 0.26 * (3.4 - x) ** 1.3),
    "winogrande": ("en", "coreference", "zero-shot", 1267, 0.5, CHOICE, lambda x: 0.17 * (3.3 - x)),
    "nlpcc_kbqa": ("zh", "closed-book QA", "few-shot", 10613, 0.0, OPEN, lambda x: 0.2 * (3.4 - x) ** 1.5),
    "clozet": ("zh", "commonsense NLI", "zero-shot", 938, 0.5, CHOICE, lambda x: 0.22 * (3.4 - x)),
    "c3": ("zh", "reading comprehension", "few-shot", 3816, 0.28, CHOICE, lambda x: 0.28 * (3.4 - x)),
    "cluewsc": ("zh", "coreference", "zero-shot", 508, 0.5, CHOICE, lambda x: 0.19 * (3.4 - x)),
    "mmlu": ("en", "examinations", "few-shot", 14042, 0.25, CHOICE, lambda x: 0.82 * (ETA - x)),
    "ceval": ("zh", "examinations", "few-shot", 1346, 0.25, CHOICE, lambda x: 0.78 * (ETA - x)),
    "gsm8k": ("en", "maths word problems", "few-shot chain of thought", 1319, 0.0, OPEN, lambda x: 0.9 * (ETA - x)),
    "gsm8k_zh": ("zh", "maths word problems", "few-shot chain of thought", 1212, 0.0, OPEN, lambda x: 0.7 * (ETA - x)),
}
BIG_BENCH = {
    "word_unscramble": ("en", "BIG-bench", "few-shot", 1000, 0.0, OPEN, lambda x: 0.5 * (2.15 - x)),
    "modified_arithmetic": ("en", "BIG-bench", "few-shot", 1000, 0.0, OPEN, lambda x: 0.6 * (2.1 - x)),
    "ipa_transliterate": ("en", "BIG-bench", "few-shot", 1000, 0.0, OPEN, lambda x: 0.7 * (2.2 - x)),
}


def scaling_loss(parameters: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
    """L(N, D) = 1.52 + 406 / N^0.34 + 411 / D^0.28, Hoffmann et al.'s exponents with a lower floor."""
    return 1.52 + 406.4 / np.asarray(parameters) ** 0.34 + 410.7 / np.asarray(tokens) ** 0.28


def checkpoints(small_checkpoints: int = 6, large_every: float = 43.25e9) -> pd.DataFrame:
    """One row per checkpoint of the 31 runs."""
    rows = []
    for size, (parameters, billions) in LARGE.items():
        count = int(billions * 1e9 // large_every)
        rows += _run(f"{size}-{billions / 1000:g}T", size, parameters, large_every * np.arange(1, count + 1), 8192)
    for size, (parameters, budgets) in SMALL.items():
        for budget in budgets:
            tokens = budget * 1e9 * np.arange(1, small_checkpoints + 1) / small_checkpoints
            rows += _run(f"{size}-{budget}B", size, parameters, tokens, 1152)
    return pd.DataFrame(rows)


def _run(run: str, size: str, parameters: float, tokens: np.ndarray, batch: int) -> list[dict]:
    progress = tokens / tokens[-1]
    # At equal tokens a run that has not decayed its learning rate yet is a little behind.
    losses = scaling_loss(parameters, tokens) + 0.03 * (1 - progress)
    return [
        {
            "grid": "paper-like",
            "run": run,
            "size": size,
            "seed": 1234,
            "step": int(token // (batch * 2048)),
            "final": position == len(tokens) - 1,
            "tokens": int(token),
            "parameters": int(parameters),
            "parameters_non_embedding": int(parameters * 0.9),
            "flops_6nd": 6 * 0.9 * parameters * token,
            "flops_exact": 6.4 * 0.9 * parameters * token,
            "loss": loss,
            "loss_train": loss + 0.01,
            "loss_en": loss + 0.05,
            "loss_zh": loss - 0.2,
            "precision": "bf16",
            "tokenizer_sha256": "a" * 64,
            "data_fingerprint": "b" * 64,
        }
        for position, (token, loss) in enumerate(zip(tokens, losses, strict=True))
    ]


def table(points: pd.DataFrame | None = None, *, tasks: dict | None = None, seed: int = 0) -> pd.DataFrame:
    """A results table of all tasks and metrics at the given checkpoints, with noise of rows and of runs."""
    points = checkpoints() if points is None else points
    generator = np.random.default_rng(seed)
    loss = points["loss"].to_numpy()
    _, run_index = np.unique(points["run"], return_inverse=True)
    parts = []
    for task, (language, kind, prompting, rows, chance, metrics, truth) in (tasks or TASKS | BIG_BENCH).items():
        with np.errstate(invalid="ignore"):
            excess = np.nan_to_num(np.maximum(truth(loss), 0.0))
        excess = excess + (excess > 0) * generator.normal(0, 0.004, run_index.max() + 1)[run_index]
        for metric in metrics:
            value, stderr, at_chance, higher = _measured(metric, excess, chance, rows, generator)
            part = points.assign(task=task, language=language, kind=kind, prompting=prompting, metric=metric)
            part = part.assign(value=value, stderr=stderr, rows=rows, chance=at_chance, higher_is_better=higher)
            parts.append(part.assign(num_fewshot_used_mean=0.0 if prompting == "zero-shot" else 5.0))
    return pd.concat(parts, ignore_index=True)


def _measured(metric: str, excess: np.ndarray, chance: float, rows: int, generator: np.random.Generator):
    if metric in ("acc", "exact_match"):
        share = np.clip(chance + excess, 0.002, 0.98)
        value = generator.binomial(rows, share) / rows
        return value, np.sqrt(value * (1 - value) / rows), chance, True
    stderr = np.full(len(excess), 0.4 / np.sqrt(rows))
    noise = generator.normal(0, 1, len(excess)) * stderr
    if metric == "correct_choice_prob":
        return np.clip(chance + 0.85 * excess + noise, 0, 1), stderr, chance, True
    return np.clip(1 - chance - 0.9 * excess + noise, 0, 2), stderr, 1 - chance, False


def large_table(num_rows: int) -> pd.DataFrame:
    """At least `num_rows` rows: the paper's runs with many more checkpoints, for measurements of speed."""
    per_checkpoint = sum(len(entry[5]) for entry in (TASKS | BIG_BENCH).values())
    needed = -(-num_rows // per_checkpoint)
    points = checkpoints(small_checkpoints=needed // 31 + 1, large_every=2.8e12 / (needed // 31 + 1))
    return table(points)
