"""Simulated results with a known truth: as a results table, and as a grid directory in the contract's format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

CHANCE = {
    "triviaqa": 0.0,
    "hellaswag": 0.25,
    "race": 0.25,
    "winogrande": 0.5,
    "nlpcc_kbqa": 0.0,
    "c3": 0.27,
    "cluewsc": 0.5,
    "mmlu": 0.25,
    "ceval": 0.25,
    "gsm8k": 0.0,
}
CHINESE = ("nlpcc_kbqa", "c3", "cluewsc", "ceval")
OPEN = ("triviaqa", "nlpcc_kbqa", "gsm8k")
SIZES = {"3M": 3_000_000, "10M": 10_000_000, "30M": 30_000_000}


def flat(loss: np.ndarray) -> np.ndarray:
    """Knows nothing at any loss."""
    return np.zeros_like(loss)


def emergent(eta: float, slope: float = 0.25, power: float = 1.0):
    """Chance for loss >= eta, then a rise."""
    return lambda loss: slope * np.maximum(0.0, eta - loss) ** power


def smooth(start: float = 9.0, slope: float = 0.08):
    """A rise from the start."""
    return lambda loss: slope * (start - loss)


def run_losses(parameters: float, tokens: np.ndarray) -> np.ndarray:
    """A scaling law that puts tiny models between 3 and 7 nats."""
    return 1.6 + (3e6 / parameters) ** 0.25 * 1.2 + (1e6 / tokens) ** 0.4 * 3.0


def runs(num_budgets: int = 2, num_checkpoints: int = 4, sizes: dict[str, int] = SIZES) -> pd.DataFrame:
    """One row per checkpoint, without tasks."""
    rows = []
    for size, parameters in sizes.items():
        for budget in [4_000_000 * 2**i for i in range(num_budgets)]:
            for position in range(1, num_checkpoints + 1):
                tokens = budget * position // num_checkpoints
                decay = 0.1 * position / num_checkpoints
                loss = float(run_losses(parameters, np.array(tokens))) - decay
                rows.append(
                    {
                        "grid": "simulated",
                        "run": f"{size}-{budget // 1_000_000}M",
                        "size": size,
                        "seed": 1,
                        "step": tokens // 4096,
                        "final": position == num_checkpoints,
                        "tokens": tokens,
                        "parameters": parameters,
                        "parameters_non_embedding": parameters // 2,
                        "flops_6nd": 3 * parameters * tokens,
                        "flops_exact": 3.4 * parameters * tokens,
                        "loss": loss,
                        "loss_train": loss + 0.02,
                        "loss_en": loss - 0.1,
                        "loss_zh": loss + 0.4,
                        "precision": "fp32",
                        "tokenizer_sha256": "a" * 64,
                        "data_fingerprint": "b" * 64,
                    }
                )
    return pd.DataFrame(rows)


ROW_SD = {"correct_choice_prob": 0.25, "brier": 0.3, "loglikelihood_per_token": 1.0}
"""Standard deviation of one row's score under the metrics that are no shares of right answers."""


def table(
    truths: dict,
    checkpoints: pd.DataFrame | None = None,
    rows: int = 400,
    seed: int = 0,
    run_sd: float = 0.0,
    *,
    run_scale: float = 0.0,
    run_shift: float = 0.0,
    metric: str | None = None,
) -> pd.DataFrame:
    """A results table; `truths` maps a task to its excess over chance as a function of loss.

    Runs differ once risen, by standard deviations: `run_sd` in units of the metric, `run_scale` as a share of the
    rise, `run_shift` in nats of loss. `metric` replaces accuracy or exact match by one of `ROW_SD`; under the Brier
    score, where lower is better, chance is 1 minus that of the accuracy and the truth is taken off it.
    """
    generator = np.random.default_rng(seed)
    checkpoints = runs() if checkpoints is None else checkpoints
    parts = []
    for task, truth in truths.items():
        part = checkpoints.copy()
        names, index = np.unique(part["run"], return_inverse=True)
        loss = part["loss"].to_numpy() + (generator.normal(0, run_shift, len(names))[index] if run_shift else 0.0)
        chance = CHANCE.get(task, 0.25)
        risen = truth(loss) > 0
        effect = generator.normal(0, run_sd, len(names))[index] * risen
        scale = 1 + (generator.normal(0, run_scale, len(names))[index] if run_scale else 0.0)
        excess = truth(loss) * scale + effect
        if metric is None:
            value = generator.binomial(rows, np.clip(chance + excess, 0, 1)) / rows
            stderr = np.sqrt(value * (1 - value) / rows)
        else:
            stderr = ROW_SD[metric] / np.sqrt(rows)
            value = chance + excess + generator.normal(0, stderr, len(loss))
            if metric == "brier":
                chance, value = 1 - chance, 1 - value
        part["task"] = task
        part["language"] = "zh" if task in CHINESE else "en"
        part["kind"] = "simulated"
        part["metric"] = metric or ("exact_match" if task in OPEN else "acc")
        part["value"] = value
        part["stderr"] = stderr
        part["rows"] = rows
        part["chance"] = chance
        part["higher_is_better"] = metric != "brier"
        part["num_fewshot_used_mean"] = 0.0 if task in ("hellaswag", "winogrande", "cluewsc") else 2.4
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def write_grid(directory: Path, results: pd.DataFrame) -> Path:
    """Write a results table as a grid directory: result files, loss curves, run.yaml."""
    for run, of_run in results.groupby("run"):
        home = directory / str(run)
        (home / "eval").mkdir(parents=True)
        (home / "run.yaml").write_text(f"name: {run}\n", encoding="utf-8")
        for step, of_step in of_run.groupby("step"):
            first = of_step.iloc[0]
            losses = {
                "heldout": first["loss"],
                "train": first["loss_train"],
                "heldout_en": first["loss_en"],
                "heldout_zh": first["loss_zh"],
            }
            names = (
                "grid run size seed step final tokens parameters parameters_non_embedding flops_6nd flops_exact "
                "precision tokenizer_sha256 data_fingerprint"
            )
            checkpoint = {name: first[name] for name in names.split()}
            checkpoint |= {"schema": 1, "losses": losses, "sequence_length": 256, "vocab_size": 8192}
            checkpoint |= {"git_revision": "c" * 40, "manifest_sha256": "d" * 64}
            tasks = {}
            for row in of_step.to_dict("records"):
                fewshot = row["num_fewshot_used_mean"] > 0
                tasks[row["task"]] = {
                    "language": row["language"],
                    "kind": row["kind"],
                    "prompting": "few-shot" if fewshot else "zero-shot",
                    "version": 1,
                    "task_hash": "e" * 16,
                    "num_fewshot": 5 if fewshot else 0,
                    "num_fewshot_used_mean": row["num_fewshot_used_mean"],
                    "truncated_rows": 12 if row["task"] == "race" else 0,
                    "rows": row["rows"],
                    "rows_available": 10_000,
                    "chance": row["chance"],
                    "metrics": {
                        row["metric"]: {"value": row["value"], "stderr": row["stderr"], "higher_is_better": True}
                    },
                }
            environment = {
                "git_revision": "c" * 40,
                "lm_eval": "0.4.13",
                "transformers": "5.23.0",
                "torch": "2.13.0",
                "device": "cpu",
                "dtype": "float32",
                "date": "2026-01-01T00:00:00+00:00",
            }
            result = {"schema": 1, "limit": 300, "checkpoint": checkpoint, "tasks": tasks, "environment": environment}
            (home / "eval" / f"step_{step}.json").write_text(json.dumps(result, default=_plain), encoding="utf-8")
        _loss_curve(home / "loss.csv", of_run)
    return directory


def _plain(value):
    return value.item()


def _loss_curve(path: Path, of_run: pd.DataFrame) -> None:
    generator = np.random.default_rng(3)
    checkpoints = of_run.drop_duplicates("step").set_index("step")
    last = int(checkpoints.index.max())
    lines = [
        "step,tokens,train_loss,learning_rate,grad_norm,tokens_per_second,mfu,"
        "heldout_loss,heldout_loss_en,heldout_loss_zh"
    ]
    every = max(1, last // 200)
    for step in sorted({*range(1, last + 1, every), *checkpoints.index}):
        tokens = step * 4096
        loss = min(9.0, float(run_losses(float(of_run["parameters"].iloc[0]), np.array(tokens))))
        train = loss + generator.normal(0, 0.06)
        heldout = ",,"
        if step in checkpoints.index:
            row = checkpoints.loc[step]
            heldout = f"{row['loss']},{row['loss_en']},{row['loss_zh']}"
        lines.append(f"{step},{tokens},{train},0.001,0.9,9000,0.2,{heldout}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
