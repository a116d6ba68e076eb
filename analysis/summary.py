"""What a results table says, in plain sentences with numbers, and what may make its numbers incomparable."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.chance import AboveChance
from analysis.correlation import Correlation
from analysis.figures import loss_words, short_count, sizes_in_order
from analysis.names import in_order, language_title, task_title
from analysis.result_files import RunState
from analysis.table import run_ids
from analysis.threshold import EMERGENT, NOT_REACHED, SMOOTH, UNDECIDED, Threshold

FEW_RUNS = 10
"""Below this, bootstrap intervals over runs are too narrow by enough to say so (docs/methods.md)."""


MOST_SCORES = 5
"""Tasks above chance whose scores still make a sentence that one reads."""

MUCH_TRUNCATED = 0.1
"""Share of rows cut to the context from which a reader is warned at the top."""


def scope(table: pd.DataFrame) -> str:
    """How many runs, sizes, tokens, checkpoints, tasks and rows."""
    runs = run_ids(table)
    sizes = sizes_in_order(table)
    budgets = table.groupby(runs)["tokens"].max()
    checkpoints = table[["grid", "run", "step"]].drop_duplicates().shape[0]
    tasks = table.drop_duplicates("task")
    languages = [
        f"{count} {language_title(str(language))}" for language, count in tasks["language"].value_counts().items()
    ]
    return (
        f"{count_of(runs.nunique(), 'run')} of {count_of(len(sizes), 'size')} ({', '.join(sizes)}), trained on "
        f"{_span(budgets.min(), budgets.max())} tokens each; {count_of(checkpoints, 'checkpoint')} evaluated on "
        f"{count_of(len(tasks), 'task')} ({', '.join(languages)}) with {_rows(table)} rows a task. Held-out loss "
        f"goes from {table['loss'].max():.2f} down to {table['loss'].min():.2f} nats per token."
    )


def above_chance(results: Sequence[AboveChance]) -> str:
    """Which tasks are above chance at the lowest loss, with intervals."""
    best = min(results, key=lambda result: result.loss)
    where = f"At the lowest loss ({best.loss:.2f}: run {best.run}, step {best.step:,})"
    above = [result for result in results if result.above]
    if not above:
        return (
            f"{where}, none of {count_of(len(results), 'task')} is above chance beyond what sampling of rows explains "
            "(5 % for the tasks together)."
        )
    if len(above) > MOST_SCORES:
        names = ", ".join(task_title(r.task) for r in above)
        return f"{where}, {len(above)} of {count_of(len(results), 'task')} are above chance: {names} (scores below)."
    scores = [f"{task_title(r.task)} {r.value:.3f} [{r.low:.3f}, {r.high:.3f}], chance {r.chance:.2g}" for r in above]
    verb = "is" if len(above) == 1 else "are"
    return f"{where}, {len(above)} of {count_of(len(results), 'task')} {verb} above chance: {'; '.join(scores)}."


def verdicts(results: Sequence[Threshold], best: Sequence[AboveChance]) -> list[str]:
    """One sentence for each verdict that occurs, tasks under their first metric; `best`: at the lowest loss."""
    sentences = []
    emergent = [r for r in results if r.verdict == EMERGENT]
    if emergent:
        words = [(task_title(r.task), *loss_words(r.eta, r.eta_low, r.eta_high)) for r in emergent]
        named = [f"{name} at {eta} [{low}, {high}]" for name, eta, low, high in words]
        sentences.append(f"Rising from chance at a threshold (loss in nats per token): {'; '.join(named)}.")
    smooth = [task_title(r.task) for r in results if r.verdict == SMOOTH]
    if smooth:
        sentences.append(f"Improving over the whole range of losses, without a threshold in it: {', '.join(smooth)}.")
    hidden = [r for r in results if r.verdict == NOT_REACHED]
    if hidden:
        bound = max(r.eta_below for r in hidden)
        names = ", ".join(task_title(r.task) for r in hidden)
        room = max(
            (at.high - at.chance if at.higher_is_better else at.chance - at.low)
            for at in best
            if at.task in {r.task for r in hidden}
        )
        sentences.append(
            f"Not reached (a threshold, if there is one, lies below a loss of {bound:.2f}): {names}. With so many "
            f"rows, up to {max(0.0, room):.2f} above chance could be there unseen at the lowest loss (upper 95 % "
            "limit, the widest of these tasks)."
        )
    undecided = [task_title(r.task) for r in results if r.verdict == UNDECIDED]
    if undecided:
        sentences.append(f"Undecided with these runs and rows: {', '.join(undecided)}.")
    return sentences


def correlation(results: Sequence[Correlation]) -> str:
    """On how many tasks performance rises as loss falls, beyond the bootstrap's doubt."""
    computed = [r for r in results if not r.reason]
    if not computed:
        return "A correlation with loss cannot be computed for any task; the table below says why."
    falling = [r for r in computed if r.spearman_high < 0]
    if not falling:
        return (
            f"On none of {count_of(len(results), 'task')} does performance rise as loss falls with any certainty (no "
            "interval of Spearman's correlation lies below 0)."
        )
    first = min(falling, key=lambda r: r.spearman)
    return (
        f"Performance rises as loss falls (Spearman's interval below 0) on {len(falling)} of "
        f"{count_of(len(results), 'task')}, most closely on {task_title(first.task)}: {signed(first.spearman)} "
        f"[{signed(first.spearman_low)}, {signed(first.spearman_high)}]. By accident it would be one task in forty"
        f"{', and more with so few runs' if first.num_runs < FEW_RUNS else ''}."
    )


def progress(states: Sequence[RunState]) -> str | None:
    """What is missing of the runs that have a directory; None when nothing is."""
    unfinished = [s.run for s in states if not s.finished]
    waiting = sum(max(0, s.checkpoints - s.evaluated) for s in states)
    parts = []
    if unfinished:
        parts.append(f"{len(unfinished)} of {count_of(len(states), 'run')} not finished ({', '.join(unfinished)})")
    if waiting:
        parts.append(f"{count_of(waiting, 'checkpoint')} not evaluated yet")
    return f"This is a partial grid: {'; '.join(parts)}." if parts else None


def short_context(table: pd.DataFrame) -> list[str]:
    """Which tasks were hardly asked as they should be, because the models' context is short; often empty."""
    sentences = []
    tasks = table.groupby("task")
    if "truncated_rows" in table:
        cut = (tasks["truncated_rows"].max() / tasks["rows"].max()).dropna()
        named = [f"{task_title(task)} {100 * cut[task]:.0f} %" for task in in_order(cut.index[cut > MUCH_TRUNCATED])]
        if named:
            sentences.append(
                f"Questions longer than the context, of which only the end was read: {', '.join(named)} of the rows. "
                "These scores say little about the task."
            )
    if "num_fewshot" in table:
        used, wanted = tasks["num_fewshot_used_mean"].max(), tasks["num_fewshot"].max()
        named = [task_title(task) for task in in_order(used.index[(wanted > 0) & (used < 1)])]
        if named:
            sentences.append(
                f"Few-shot tasks with fewer than one example in the prompt on average: {', '.join(named)}. They were "
                "asked zero-shot in effect."
            )
    return sentences


def mixtures(table: pd.DataFrame) -> list[str]:
    """Everything in the table that makes its losses or scores incomparable; empty when nothing does."""
    warnings = []
    for column, thing, consequence in (
        ("tokenizer_sha256", "tokenizers", "their losses are per different tokens and do not compare"),
        ("data_fingerprint", "training data sets", "their losses are of different texts and do not compare"),
        ("precision", "training precisions", "their losses may differ for that reason alone"),
        ("eval_dtype", "evaluation precisions", "their scores may differ for that reason alone"),
        ("eval_lm_eval", "versions of lm-evaluation-harness", "prompts and scoring may differ"),
    ):
        values = _known(table, column)
        if len(values) > 1:
            shown = ", ".join(value[:12] for value in values)
            warnings.append(f"{len(values)} {thing} in one table ({shown}): {consequence}.")
    for column, thing, consequence in (
        ("task_hash", "definitions", "their scores do not compare"),
        ("chance", "chance levels", "verdicts use the one of each checkpoint"),
        ("rows", "numbers of rows", "checkpoints were not evaluated on the same rows"),
    ):
        if column not in table:
            continue
        # Under each metric: a task has another chance level as accuracy than as Brier score.
        counts = table.groupby(["task", "metric"])[column].nunique().groupby("task").max()
        mixed = [task_title(task) for task in in_order(counts.index[counts > 1])]
        if mixed:
            warnings.append(f"Several {thing} of one task ({', '.join(mixed)}): {consequence}.")
    return warnings


def signed(value: float, digits: int = 2) -> str:
    """A correlation with its sign, with a true minus; a dash for NaN."""
    return "–" if value != value else f"{value:+.{digits}f}".replace("-", "−")


def count_of(number: int, noun: str) -> str:
    """`1 run`, `3 runs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _known(table: pd.DataFrame, column: str) -> list[str]:
    if column not in table:
        return []
    return sorted({str(value) for value in table[column].dropna().unique() if str(value)})


def _span(low: float, high: float) -> str:
    return short_count(low) if low == high else f"{short_count(low)} to {short_count(high)}"


def _rows(table: pd.DataFrame) -> str:
    low, high = int(table["rows"].min()), int(table["rows"].max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
