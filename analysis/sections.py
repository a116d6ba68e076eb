"""The sections of the report: tables of tasks, correlations and runs, methods, caveats, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from analysis import page
from analysis.chance import AboveChance, guessing_level
from analysis.correlation import Correlation, reference
from analysis.figures import loss_words, short_count
from analysis.first_above import FirstAbove
from analysis.names import in_order, language_title, metric_title, task_title
from analysis.page import ABSENT
from analysis.result_files import RunState
from analysis.summary import signed
from analysis.table import run_ids
from analysis.threshold import EMERGENT, NOT_REACHED, Threshold


def thresholds(
    results: Sequence[Threshold],
    best: Mapping[str, AboveChance],
    first_above: Sequence[FirstAbove],
    primary: Mapping[str, str],
) -> str:
    """Verdict and η of each task under its first metric, with its score at the lowest loss; other metrics folded."""
    first = [result for result in results if primary[result.task] == result.metric]
    others = [result for result in results if primary[result.task] != result.metric]
    tested = {(result.task, result.metric): result for result in first_above}
    note = (
        "In square brackets 95 % intervals: of a score over rows (Wilson), of losses over runs. ▲ above chance, "
        "corrected for the number of tasks. η in nats per token. Above chance to: an estimate without a model, the "
        "loss below which every group of checkpoints is above chance; it lies at or below η by what rows and runs "
        "leave unseen. Lead: log-likelihood of the account with a threshold over the smooth one, on runs left out, "
        "with its standard error over runs. Du et al. 2024 trained 1.5B to 32B models on another corpus with "
        "another tokenizer: their losses are not on this scale."
    )
    why = [f"{task_title(result.task)}: {result.reason}." for result in first]
    parts = [
        _thresholds(first, best, tested),
        page.caption(note),
        page.details("Why these verdicts", page.bullets(why)),
    ]
    if others:
        parts.append(page.details("The same under other metrics", _thresholds(others, best, tested)))
    return page.section("Task by task", *parts)


def _thresholds(
    results: Sequence[Threshold], best: Mapping[str, AboveChance], tested: Mapping[tuple[str, str], FirstAbove]
) -> str:
    published = reference()
    rows = []
    for result in results:
        at = best.get(result.task)
        score, chance = page.number(ABSENT), ABSENT
        if at is not None and at.metric == result.metric:
            mark = " ▲" if at.above else ""
            score = page.with_interval(f"{at.value:.3f}{mark}", f"{at.low:.3f}", f"{at.high:.3f}")
            chance = f"{at.chance:.2f}"
        eta = page.number(ABSENT)
        if result.verdict == EMERGENT:
            eta = page.with_interval(*loss_words(result.eta, result.eta_low, result.eta_high))
        elif result.verdict == NOT_REACHED:
            eta = page.number(f"if any, < {result.eta_below:.2f}")
        up_to, above = tested.get((result.task, result.metric)), page.number(ABSENT)
        if up_to is not None and up_to.loss == up_to.loss:
            above = page.with_interval(*loss_words(up_to.loss, up_to.low, up_to.high))
        known = published.get(result.task)
        theirs = ABSENT if known is None else "smooth"
        if known is not None and known.threshold == known.threshold:
            theirs = f"≈\u00a0{known.threshold:g}"
        lead = ABSENT
        if result.heldout_lead == result.heldout_lead:
            lead = f"{signed(result.heldout_lead, 1)} ± {result.heldout_error:.1f}"
        rows.append(
            [
                page.text(task_title(result.task)),
                page.text(metric_title(result.metric)),
                page.number(chance),
                score,
                page.verdict(result.verdict),
                eta,
                above,
                page.number(lead),
                page.text(theirs),
            ]
        )
    header = [
        *("task", "metric", "chance", "at the lowest loss", "verdict", "η", "above chance to"),
        *("lead (nats)", "Du\u00a0et\u00a0al."),
    ]
    return page.table(header, rows)


def correlations(results: Sequence[Correlation], primary: Mapping[str, str], figure: str = "") -> str:
    """Spearman and Pearson with intervals, the published ones beside them; metrics but the first folded."""
    first = [result for result in results if primary[result.task] == result.metric]
    others = [result for result in results if primary[result.task] != result.metric]
    runs = max(result.num_runs for result in results)
    note = (
        f"−1: performance rises whenever loss falls. 95 % intervals from draws of whole runs ({runs} here; with fewer "
        "than about 10 they are rather too narrow). Du et al. 2024, Table 2: checkpoints of their 1.5B, 6B and 32B "
        "runs; intervals were not published. Where no task rises from chance, "
        "a correlation near 0 is what to expect, and one interval in twenty misses 0 by accident."
    )
    parts = [figure, _correlations(first), page.caption(note)]
    if others:
        parts.append(page.details("The same under other metrics", _correlations(others)))
    return page.section("Correlation of performance with loss", *parts)


def _correlations(results: Sequence[Correlation]) -> str:
    published = reference()
    rows = []
    for result in results:
        known = published.get(result.task)
        rows.append(
            [
                page.text(task_title(result.task)),
                page.text(metric_title(result.metric)),
                _coefficient(result.spearman, result.spearman_low, result.spearman_high),
                page.number(signed(known.spearman, 3) if known else ABSENT),
                _coefficient(result.pearson, result.pearson_low, result.pearson_high),
                page.number(signed(known.pearson, 3) if known else ABSENT),
                page.text(f"not computed: {result.reason}" if result.reason else ""),
            ]
        )
    header = ["task", "metric", "Spearman", "Du\u00a0et\u00a0al.", "Pearson", "Du\u00a0et\u00a0al.", ""]
    return page.table(header, rows)


def _coefficient(value: float, low: float, high: float) -> page.Cell:
    if value != value:
        return page.number(ABSENT)
    return page.with_interval(*(signed(number, 3) for number in (value, low, high)))


def runs(table: pd.DataFrame, states: Sequence[RunState]) -> str:
    """Every run: size, tokens, losses at its last evaluated checkpoint, and how far it is."""
    languages = [c for c in table.columns if c.startswith("loss_") and c != "loss_train" and table[c].notna().any()]
    last = table.sort_values("step").groupby(run_ids(table)).tail(1)
    last = last.drop_duplicates(["grid", "run"]).sort_values(["parameters", "tokens", "run"])
    counts = table.drop_duplicates(["grid", "run", "step"]).groupby(run_ids(table)).size()
    # Of two grids' runs of one name, nothing says whose state it is.
    in_two = set(last.loc[last["run"].duplicated(keep=False), "run"])
    by_name = {state.run: state for state in states if state.run not in in_two}
    rows = []
    for _, row in last.iterrows():
        state = by_name.get(row["run"])
        body = row["parameters_non_embedding"]
        rows.append(
            [
                page.text(row["run"]),
                page.text(row["size"]),
                page.number(short_count(row["parameters"])),
                page.number(short_count(body) if body == body else ABSENT),
                page.number(short_count(row["tokens"])),
                page.number(int(counts[f"{row['grid']}/{row['run']}"])),
                page.number(f"{row['loss']:.4f}"),
                *(page.number(_loss(row[column])) for column in languages),
                page.number(_loss(row["loss_train"])),
                page.text(_state(state, bool(row["final"]))),
            ]
        )
    evaluated = set(last["run"])
    rows += [
        [page.text(state.run), *(page.text(ABSENT) for _ in range(7 + len(languages))), page.text(_state(state, False))]
        for state in states
        if state.run not in evaluated
    ]
    header = [
        *("run", "size", "parameters", "without embeddings", "tokens", "evaluated", "held-out loss"),
        *(language_title(column.removeprefix("loss_")) for column in languages),
        *("training loss", "state"),
    ]
    note = (
        "Losses in nats per token at the last evaluated checkpoint. Held-out losses are means over one fixed sample "
        "that all runs of a grid share, so that their differences are far more certain than their level; no interval "
        "is given, because only the mean is recorded. Training loss: mean over the last 1 % of the tokens."
    )
    return page.section("Runs", page.table(header, rows), page.caption(note))


def _loss(value: float) -> str:
    return f"{value:.4f}" if value == value else ABSENT


def _state(state: RunState | None, final: bool) -> str:
    if state is None:
        return "complete" if final else "no final checkpoint"
    if state.checkpoints == 0 and state.evaluated == 0:
        return "no checkpoint yet"
    if not state.finished:
        return f"not finished: {state.checkpoints} checkpoints, {state.evaluated} evaluated"
    if state.evaluated < state.checkpoints:
        return f"{state.evaluated} of {state.checkpoints} checkpoints evaluated"
    return "complete"


def asked(table: pd.DataFrame) -> str:
    """How each task was asked: examples, rows, truncation."""
    rows = []
    for task in in_order(table["task"]):
        of_task = table[table["task"] == task]
        first = of_task.iloc[0]
        wanted = _value(first, "num_fewshot")
        used = of_task["num_fewshot_used_mean"]
        examples = "none" if wanted == "0" else ABSENT
        if used.notna().any() and wanted != "0":
            low, high = used.min(), used.max()
            mean = f"{low:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} to {high:.1f}"
            examples = f"{mean} of {wanted}" if wanted != ABSENT else mean
        available = _value(first, "rows_available")
        truncated = ABSENT
        if "truncated_rows" in table and of_task["truncated_rows"].notna().any():
            truncated = f"{int(of_task['truncated_rows'].max()):,}"
        count = f"{int(of_task['rows'].median()):,}"
        rows.append(
            [
                page.text(task_title(task)),
                page.text(language_title(str(first["language"]))),
                page.text(first["kind"] or ABSENT),
                page.text(_value(first, "prompting")),
                page.number(examples),
                page.number(f"{count} of {available}" if available != ABSENT else count),
                page.number(truncated),
                page.number(f"{of_task['chance'].median():.3f}"),
                page.number(f"{guessing_level(float(of_task['chance'].median())):.3f}"),
            ]
        )
    header = ["task", "language", "kind", "prompting", "examples used", "rows", "truncated", "chance", "to beat"]
    note = (
        "Examples used: mean over rows; where the model's context is shorter than the prompt, as many as fit. "
        "Truncated: rows whose question alone is longer than the context, so that its beginning is cut. "
        "To beat: chance, or on an open task the share that knowing nothing may still earn."
    )
    return page.section("How the tasks were asked", page.table(header, rows), page.caption(note))


def _value(row: pd.Series, column: str) -> str:
    value = row.get(column)
    if value is None or value != value or value == "":
        return ABSENT
    return f"{int(value):,}" if isinstance(value, int | float) or hasattr(value, "item") else str(value)


def methods(table: pd.DataFrame, replicates: int, seed: int) -> str:
    """How the numbers were made and what they cannot say."""
    rows = int(table["rows"].median())
    half = 1.96 * (0.25 * 0.75 / rows) ** 0.5
    sentences = [
        f"Loss is the column {table.attrs.get('loss', 'loss')} of the table, in nats per token; of a grid of this "
        "project the held-out loss, the mean over the mixture of languages. Losses compare only within one corpus and "
        "one tokenizer; nothing here can be read on another project's loss axis.",
        "A threshold is Du et al. 2024's (arXiv 2403.15796, Eq. 3): performance is at chance for losses of η and more "
        "and rises below it. Chance only, a smooth rise, and chance followed by a rise are fitted with the noise of "
        "rows and of runs, and compared by BIC and on runs left out of the fit; docs/methods.md has the formulae and "
        "what simulations say about them.",
        "“Equivalent” at equal loss means that the largest difference between sizes is below the margin with 95 % "
        "certainty. “Undecided” is no sign of equality: the runs and rows do not tell.",
        "What an axis leaves unexplained is counted on runs that its curve has not seen. The scaling law is a fit to "
        "this grid; sizes and compute beyond it are extrapolated.",
        f"Intervals over runs come from {replicates:,} bootstrap draws of whole runs (seed "
        f"{seed}), because checkpoints of one run are not independent. They say what other runs of these sizes "
        "might have given, not what other questions would.",
        "All checkpoints answer the same rows: what is peculiar to these rows moves all of them together. The fits "
        "allow the guessing level to be off by that much.",
        f"With {rows:,} rows a task, an accuracy of 0.25 has a 95 % interval of ±{half:.3f}: smaller abilities than "
        "that are invisible in a single checkpoint here.",
        "“Not reached” means that no rise could be seen down to the lowest loss of this grid, not that the ability "
        "would not appear below it.",
        "Intermediate checkpoints were taken at a higher learning rate than final ones; at equal loss they may differ.",
    ]
    return page.section("Methods and caveats", page.bullets(sentences))


def provenance(table: pd.DataFrame, extra: Sequence[tuple[str, str]]) -> str:
    """Where the numbers come from: revisions, hashes, versions; `extra` are name and value of the analysis itself."""
    rows = []
    for column, name in (
        ("grid", "grid"),
        ("git_revision", "git revision, training"),
        ("eval_git_revision", "git revision, evaluation"),
        ("tokenizer_sha256", "tokenizer, SHA-256"),
        ("data_fingerprint", "data fingerprint"),
        ("vocab_size", "vocabulary"),
        ("sequence_length", "sequence length"),
        ("seed", "seeds"),
        ("precision", "training precision"),
        ("eval_dtype", "evaluation precision"),
        ("eval_device", "evaluation device"),
        ("eval_torch", "torch"),
        ("eval_transformers", "transformers"),
        ("eval_lm_eval", "lm-evaluation-harness"),
    ):
        rows.append([page.text(name), page.text(_distinct(table, column))])
    if "eval_date" in table and table["eval_date"].notna().any():
        dates = table["eval_date"].dropna().astype(str)
        rows.append([page.text("evaluated"), page.text(f"{dates.min()} to {dates.max()}")])
    rows += [[page.text(name), page.text(value)] for name, value in extra]
    return page.section("Provenance", page.table(["what", "value"], rows, style="provenance"))


def _distinct(table: pd.DataFrame, column: str) -> str:
    if column not in table:
        return "not recorded"
    values = [value for value in table[column].dropna().unique() if str(value)]
    shown = [str(int(v)) if isinstance(v, float) and v.is_integer() else str(v) for v in sorted(values)]
    return ", ".join(shown) or "not recorded"
