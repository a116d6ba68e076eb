"""The figures of a report: drawn, written beside the page, and ready to be set into it with their captions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis import figures, page
from analysis.names import in_order
from analysis.statements import Statements
from analysis.threshold import EMERGENT

METRICS = ("acc", "correct_choice_prob", "brier")
"""Columns of the figure of metrics, those of Du et al. 2024, Fig. 4."""

MOST_TASKS = 6
"""Rows of that figure at most."""


@dataclass(frozen=True)
class Drawn:
    """Draws the figures of one report into `out`."""

    table: pd.DataFrame
    found: Statements
    out: Path

    def _set(self, figure: Figure, name: str, alternative: str, caption: str) -> str:
        return page.figure(*figures.save(figure, self.out / name), alternative=alternative, caption=caption)

    def against_loss(self) -> str:
        """Performance of each task against loss, with thresholds."""
        return self._set(
            figures.performance(self.table, self.found.shown),
            "performance_against_loss",
            "One panel a task: performance of every checkpoint against its held-out loss.",
            "One marker a checkpoint, filled at the end of a run; loss falls to the right. Bars: 95 % intervals over "
            "rows, cut at the panel's edge. Dashed: chance. Orange: a threshold η with its 95 % interval, drawn only "
            "where the verdict is emergent. Panels have different heights, of 0.16 at least.",
        )

    def against_compute(self) -> str:
        """The same against training FLOPs; empty where the table has none."""
        if self.table["flops_6nd"].isna().any() or self.table["flops_6nd"].nunique() < 2:
            return ""
        return self._set(
            figures.performance(self.table, x="flops_6nd"),
            "performance_against_compute",
            "One panel a task: performance of every checkpoint against its training FLOPs.",
            "The same checkpoints against training compute, 6 N D with N without embeddings, as Du et al. 2024, Fig. "
            "6: where sizes lie on curves of their own, compute alone does not tell performance.",
        )

    def metrics(self) -> str:
        """Tasks with a threshold under accuracy, CorrectChoiceProb and Brier score; empty without any."""
        pairs = set(self.table[["task", "metric"]].drop_duplicates().itertuples(index=False, name=None))
        emergent = {result.task for result in self.found.thresholds if result.verdict == EMERGENT}
        tasks = [
            task for task in in_order(self.found.primary) if task in emergent and {(task, m) for m in METRICS} <= pairs
        ]
        tasks = tasks[:MOST_TASKS]
        if not tasks:
            return ""
        shown = self.table[self.table["task"].isin(tasks) & self.table["metric"].isin(METRICS)]
        return self._set(
            figures.performance(
                shown,
                self.found.thresholds,
                panels=[(task, m) for task in tasks for m in METRICS],
                columns=len(METRICS),
            ),
            "metrics",
            "Tasks with a threshold, under accuracy, probability of the correct option, and Brier score.",
            "As Du et al. 2024, Fig. 4: a threshold that were made by the jump of accuracy alone would be absent from "
            "the two continuous metrics.",
        )

    def table_2(self) -> str:
        """Correlations beside the published ones."""
        return self._set(
            figures.correlations_beside_the_paper(self.found.shown_correlations),
            "correlations",
            "Spearman's and Pearson's correlation with loss of each task, with intervals, beside the published ones.",
            "Each task under its first metric. Diamonds: Du et al. 2024, Table 2.",
        )

    def scaling(self) -> str:
        """Losses and the fitted law; empty without one."""
        if self.found.law.reason:
            return ""
        return self._set(
            figures.scaling(self.found.law, self.table),
            "scaling",
            "Loss against training tokens for each size, with the fitted law.",
            "Checkpoints (ends of runs filled) and the law, fitted to the ends of runs where there are enough of them: "
            "at a higher learning rate checkpoints on the way lie above it.",
        )

    def forecast(self) -> str:
        """Scores that were forecast and measured; empty without a forecast."""
        if not self.found.forecast.scores:
            return ""
        return self._set(
            figures.forecast(self.found.forecast),
            "forecast",
            "For each large run and task the score that the small runs forecast, and the one that was measured.",
            "One panel a run held out, of those with the most compute. Blue: what the smaller runs say of its score at "
            "the end, with the 95 % interval. Orange: the score, with its interval over rows. Dashed: chance.",
        )

    def loss_curves(self, curves: dict[str, pd.DataFrame]) -> str:
        """Training and held-out loss of the runs that have both a curve and a result."""
        sizes = dict(zip(self.table["run"], self.table["size"], strict=True))
        # Runs without a result file have no size to be coloured by yet.
        known = {run: curve for run, curve in curves.items() if run in sizes}
        if not known:
            return page.caption("None of the evaluated runs has a loss.csv.")
        left_out = sorted(set(curves) - set(known))
        return self._set(
            figures.loss_curves(known, sizes, figures.sizes_in_order(self.table)),
            "loss_curves",
            "Training and held-out loss of every run against tokens, in total and by language.",
            "Training loss as a running mean, held-out loss at checkpoints, in total and by language, on common axes; "
            "the first steps are left out."
            + (f" Not drawn, because nothing of them is evaluated yet: {', '.join(left_out)}." if left_out else ""),
        )
