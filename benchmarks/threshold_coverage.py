"""How often the verdicts on thresholds and the intervals of η are right, on simulated grids whose truth is known.

Tasks at chance, smooth ones of several shapes, and ones with a threshold, with noise of the rows and differences
between runs, on grids of 6 to 31 runs; beside them what the packages piecewise-regression and ruptures say of the
same simulations. The tables of docs/methods.md are this program's output.

    python benchmarks/threshold_coverage.py --simulations 500 --jobs 2
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

# The simulated grids are those of the tests, which are no package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "analysis"))
import simulated_grids
from simulated_grids import emergent, flat, smooth

from analysis.correlation import correlations
from analysis.noise import fit_data
from analysis.threshold import EMERGENT, NOT_REACHED, SMOOTH, UNDECIDED, thresholds
from analysis.threshold_fit import fit
from tokenizer import cli

ETA = 4.0
"""The true threshold, nats per token."""

IN_VIEW = 8.0
"""Lead in deviance of the emergent account over the best smooth one on the table without noise from which on a plateau
is called in view: twice what the verdict asks for."""

BATCH = 10
"""Simulations per piece of work."""

Excess = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Grid:
    """A grid of runs: 3 sizes x `budgets`, and `more` runs of a fourth size."""

    budgets: int
    checkpoints: int
    rows: int
    more: int = 0

    @property
    def num_runs(self) -> int:
        """Runs."""
        return 3 * self.budgets + self.more

    def runs(self) -> pd.DataFrame:
        """One row per checkpoint."""
        parts = [simulated_grids.runs(self.budgets, self.checkpoints)]
        if self.more:
            parts.append(simulated_grids.runs(self.more, self.checkpoints, {"100M": 100_000_000}))
        return pd.concat(parts, ignore_index=True)

    def __str__(self) -> str:
        return f"{self.num_runs} runs, {self.checkpoints} checkpoints each, {self.rows} rows"


GRIDS = (Grid(2, 4, 300), Grid(2, 12, 1500), Grid(4, 6, 1000), Grid(10, 8, 2000, more=1))

KINDS = CHANCE_LEVEL, SMOOTH_RISE, WITH_THRESHOLD = "chance", "smooth", "threshold"


@dataclass(frozen=True)
class Case:
    """A truth; `excess(rows, seed)` gives it as a function of loss, `options` are those of simulated_grids.table."""

    name: str
    kind: str
    task: str
    excess: Callable[[int, int], Excess]
    options: dict = field(default_factory=lambda: {"run_sd": 0.01})


def _always(excess: Excess) -> Callable[[int, int], Excess]:
    return lambda rows, seed: excess


def _same_rows(rows: int, seed: int) -> Excess:
    """A level off chance by what the sample of rows explains, the same for all checkpoints."""
    offset = np.random.default_rng(seed + 10_000).normal(0, math.sqrt(0.25 * 0.75 / rows))
    return lambda loss: np.full_like(loss, offset)


def _levels_off(loss: np.ndarray) -> np.ndarray:
    return 0.35 * -np.expm1(-np.maximum(0, ETA - loss) / 0.7)


def _s_shaped(loss: np.ndarray) -> np.ndarray:
    """Weibull's curve: no shape that the fit knows."""
    return 0.4 * -np.expm1(-((np.maximum(0, ETA - loss) / 0.8) ** 1.5))


CASES = (
    Case("4 options, off by one sampling error", CHANCE_LEVEL, "mmlu", _same_rows, {}),
    Case("open answer, 0.5 % lucky", CHANCE_LEVEL, "gsm8k", _always(lambda loss: np.full_like(loss, 0.005)), {}),
    Case("linear", SMOOTH_RISE, "hellaswag", _always(smooth())),
    Case("linear, slow", SMOOTH_RISE, "hellaswag", _always(smooth(8.0, 0.025))),
    Case("quadratic", SMOOTH_RISE, "hellaswag", _always(lambda loss: 0.012 * np.maximum(0, 8 - loss) ** 2)),
    Case("square root", SMOOTH_RISE, "hellaswag", _always(lambda loss: 0.15 * np.sqrt(np.maximum(0, 7.6 - loss)))),
    Case("exponential", SMOOTH_RISE, "hellaswag", _always(lambda loss: 0.4 * np.exp(3 - loss))),
    Case("logistic", SMOOTH_RISE, "hellaswag", _always(lambda loss: 0.5 / (1 + np.exp((loss - 4) / 0.5)))),
    Case("rounded", SMOOTH_RISE, "hellaswag", _always(lambda loss: 0.1 * np.log1p(np.exp((4 - loss) / 0.4)))),
    Case("linear", WITH_THRESHOLD, "mmlu", _always(emergent(ETA))),
    Case("quadratic", WITH_THRESHOLD, "mmlu", _always(emergent(ETA, 0.25, 2))),
    Case("square root", WITH_THRESHOLD, "mmlu", _always(emergent(ETA, 0.2, 0.5))),
    Case("levels off", WITH_THRESHOLD, "mmlu", _always(_levels_off)),
    Case("s-shaped", WITH_THRESHOLD, "mmlu", _always(_s_shaped)),
    Case("linear, η differs by run", WITH_THRESHOLD, "mmlu", _always(emergent(ETA)), {"run_shift": 0.05}),
    Case("linear, open answer", WITH_THRESHOLD, "gsm8k", _always(emergent(ETA, 0.15)), {"run_scale": 0.1}),
    Case(
        "linear, CorrectChoiceProb",
        WITH_THRESHOLD,
        "mmlu",
        _always(emergent(ETA, 0.15)),
        {"run_sd": 0.01, "metric": "correct_choice_prob"},
    ),
    Case("linear, Brier", WITH_THRESHOLD, "mmlu", _always(emergent(ETA, 0.2)), {"run_sd": 0.01, "metric": "brier"}),
)


@dataclass(frozen=True)
class Outcome:
    """What was said of one simulation; intervals as (low, high), NaN where none."""

    verdict: str
    eta: float
    calibrated: tuple[float, float]
    profile: tuple[float, float]
    drawn: tuple[float, float]
    piecewise: tuple[bool, float, float, float] | None
    """Whether a break was found (Davies' test, 5 %), its place, and its interval; None if not asked."""
    ruptures: tuple[int, float] | None
    """Number of breaks found, and the place of the only one if one is asked for."""


def simulate(case: Case, grid: Grid, seed: int) -> pd.DataFrame:
    """The results table of one simulation."""
    truth = {case.task: case.excess(grid.rows, seed)}
    return simulated_grids.table(truth, grid.runs(), grid.rows, seed, **case.options)


def lead_without_noise(case: Case, grid: Grid) -> float:
    """By how much the emergent account leads the smooth one in deviance when every value is as expected."""
    table = simulate(case, grid, 0)
    excess = case.excess(grid.rows, 0)(table["loss"].to_numpy())
    sign = np.where(table["higher_is_better"], 1, -1)
    fitted = fit(fit_data(table.assign(value=np.clip(table["chance"] + sign * excess, 0, 1))))
    smooth_best, emergent_best = fitted.best(fitted.shapes.smooth), fitted.best(fitted.shapes.emergent)
    return float(fitted.deviance[smooth_best] - fitted.deviance[emergent_best])


def by_piecewise_regression(loss: np.ndarray, value: np.ndarray) -> tuple[bool, float, float, float]:
    """One break by `piecewise_regression` (Muggeo 2003), its test by Davies (1987)."""
    import piecewise_regression

    np.random.seed(0)  # It starts at random places.
    fitted = piecewise_regression.Fit(loss, value, n_breakpoints=1, n_boot=10)
    results = fitted.get_results()
    if not results["converged"]:
        return False, math.nan, math.nan, math.nan
    found = results["estimates"]["breakpoint1"]
    low, high = found["confidence_interval"]
    return bool(fitted.davies < 0.05), float(found["estimate"]), float(low), float(high)


def by_ruptures(loss: np.ndarray, value: np.ndarray) -> tuple[int, float]:
    """Breaks of a piecewise linear regression on loss by `ruptures` (binary segmentation): their number under a BIC
    penalty of 3 parameters a break, the noise from second differences, and the place of the one break if one is asked
    for, half-way between its neighbours."""
    import ruptures

    order = np.argsort(loss, kind="stable")
    loss, value = loss[order], value[order]
    signal = np.column_stack([value, loss, np.ones_like(loss)])
    search = ruptures.Binseg(model="linear", jump=1, min_size=3).fit(signal)
    noise = float(np.mean(np.diff(value, 2) ** 2)) / 6
    several = search.predict(pen=max(3 * math.log(len(value)) * noise, 1e-12))
    one = search.predict(n_bkps=1)
    return len(several) - 1, float(loss[one[0] - 1 : one[0] + 1].mean()) if len(one) > 1 else math.nan


def outcome(case: Case, grid: Grid, seed: int, replicates: int, packages: Sequence[str]) -> Outcome:
    """Simulate once and ask everybody."""
    table = simulate(case, grid, seed)
    result = thresholds(table, replicates=replicates, seed=seed)[0]
    loss, value = table["loss"].to_numpy(), table["value"].to_numpy()
    return Outcome(
        result.verdict,
        result.eta,
        (result.eta_low, result.eta_high),
        (result.eta_profile_low, result.eta_profile_high),
        (result.eta_bootstrap_low, result.eta_bootstrap_high),
        by_piecewise_regression(loss, value) if "piecewise_regression" in packages else None,
        by_ruptures(loss, value) if "ruptures" in packages else None,
    )


def _batch(case: int, grid: int, seeds: range, replicates: int, compared: int, packages: list[str]) -> list[Outcome]:
    return [outcome(CASES[case], GRIDS[grid], seed, replicates, packages if seed < compared else []) for seed in seeds]


def percent(share: float) -> str:
    """A share in whole per cent; a dash for none."""
    return "–" if math.isnan(share) else f"{share:.0%}".replace("%", " %")


def covered(intervals: Sequence[tuple[float, float]]) -> float:
    """Share of the intervals that hold the true η; NaN for fewer than 20 of them."""
    if len(intervals) < 20:
        return math.nan
    return float(np.mean([low <= ETA <= high for low, high in intervals]))


def row(case: Case, lead: float, found: Sequence[Outcome]) -> str:
    """One line of a grid's table."""
    cells = [f"{case.kind}: {case.name}", f"{lead:.0f}" if case.kind == WITH_THRESHOLD else "–"]
    for verdict in (NOT_REACHED, UNDECIDED, SMOOTH, EMERGENT):
        cells.append(percent(float(np.mean([o.verdict == verdict for o in found]))))
    rising = [o for o in found if o.verdict == EMERGENT] if case.kind == WITH_THRESHOLD else []
    for name in ("calibrated", "profile", "drawn"):
        cells.append(percent(covered([getattr(o, name) for o in rising])))
    if len(rising) >= 20:
        etas = [o.eta for o in rising]
        width = float(np.median([o.calibrated[1] - o.calibrated[0] for o in rising]))
        cells += [f"{np.mean(etas) - ETA:+.3f}", f"{np.std(etas):.3f}", f"{width:.3f}"]
    else:
        cells += ["–"] * 3
    return "| " + " | ".join(cells + _packages_cells(case, found)) + " |"


def _packages_cells(case: Case, found: Sequence[Outcome]) -> list[str]:
    cells = []
    piecewise = [o.piecewise for o in found if o.piecewise is not None]
    if piecewise:
        cells.append(percent(float(np.mean([p[0] for p in piecewise]))))
        breaks = [p[2:] for p in piecewise if p[0]] if case.kind == WITH_THRESHOLD else []
        cells.append(percent(covered(breaks)))
    several = [o.ruptures for o in found if o.ruptures is not None]
    if several:
        cells.append(percent(float(np.mean([r[0] > 0 for r in several]))))
        off = [r[1] - ETA for r in several if not math.isnan(r[1])] if case.kind == WITH_THRESHOLD else []
        cells.append(f"{math.sqrt(np.mean(np.square(off))):.2f}" if off else "–")
    return cells


def heading(packages: Sequence[str]) -> str:
    """The two first lines of a grid's table."""
    names = ["truth", "lead", "not reached", "undecided", "smooth", "emergent"]
    names += ["η covered", "by profile", "by draws", "bias", "sd", "width"]
    names += ["p-r: break", "p-r: η covered"] * ("piecewise_regression" in packages)
    names += ["ruptures: break", "ruptures: error"] * ("ruptures" in packages)
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"


def installed() -> list[str]:
    """The packages to compare with that are there; one line on stderr for each that is not."""
    there = []
    for package, project in (("piecewise_regression", "piecewise-regression"), ("ruptures", "ruptures")):
        if importlib.util.find_spec(package):
            there.append(package)
        else:
            print(f"{project} is not installed and left out; pip install {project}", file=sys.stderr)
    return there


@dataclass
class Tally:
    """What the issue asks for, over all lines."""

    false: list[float] = field(default_factory=list)
    power: list[float] = field(default_factory=list)
    coverage: list[float] = field(default_factory=list)

    def add(self, case: Case, lead: float, found: Sequence[Outcome]) -> None:
        """Take in one line."""
        share = float(np.mean([o.verdict == EMERGENT for o in found]))
        if case.kind != WITH_THRESHOLD:
            self.false.append(share)
            return
        if lead >= IN_VIEW:
            self.power.append(share)
        rate = covered([o.calibrated for o in found if o.verdict == EMERGENT])
        if not math.isnan(rate):
            self.coverage.append(rate)

    def __str__(self) -> str:
        lines = []
        if self.false:
            lines.append(f"Called emergent without a threshold: at most {percent(max(self.false))} on any line.")
        if self.power:
            held = sum(share >= 0.9 for share in self.power)
            lines.append(
                f"Found where the plateau is in view (lead >= {IN_VIEW:g}): at least {percent(min(self.power))}; "
                f"{held} of {len(self.power)} lines reach 90 %."
            )
        if self.coverage:
            held = sum(0.92 <= rate <= 0.98 for rate in self.coverage)
            lines.append(
                f"η covered: {percent(min(self.coverage))} to {percent(max(self.coverage))}, mean "
                f"{percent(float(np.mean(self.coverage)))}; {held} of {len(self.coverage)} lines within 92 to 98 %, "
                f"{sum(rate < 0.92 for rate in self.coverage)} below."
            )
        return "\n".join(lines)


def correlation_table(simulations: int) -> str:
    """How often Spearman's interval misses 0 on a task at chance."""
    lines = ["| runs | checkpoints a run | Spearman's 95 % interval misses 0 though nothing depends on loss |"]
    lines.append("|---|---|---|")
    for grid in (Grid(1, 4, 300), *GRIDS):
        missed = []
        for seed in range(simulations):
            table = simulated_grids.table({"mmlu": flat}, grid.runs(), grid.rows, seed)
            result = correlations(table, replicates=300, seed=seed)[0]
            missed.append(result.spearman_low > 0 or result.spearman_high < 0)
        lines.append(f"| {grid.num_runs} | {grid.checkpoints} | {percent(float(np.mean(missed)))} |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/threshold_coverage.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--simulations", type=int, default=500, help="per line (default: %(default)s)")
    parser.add_argument("--replicates", type=int, default=300, help="draws of runs (default: %(default)s)")
    parser.add_argument("--compared", type=int, default=100, help="of them also by the packages (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--runs", type=int, nargs="+", help="only grids of so many runs")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="only truths of these kinds")
    parser.add_argument("--first-seed", type=int, default=0, help="other numbers, other noise (default: %(default)s)")
    parser.add_argument("--correlations", action="store_true", help="also the table of Spearman's interval")
    return parser


def main(argv: Sequence[str] | None = None) -> int | None:
    """Print the tables."""
    arguments = _parser().parse_args(argv)
    if arguments.simulations < 1 or arguments.jobs < 1 or arguments.replicates < 50:
        raise cli.UserError("--simulations and --jobs are at least 1, --replicates at least 50")
    grids = [i for i, grid in enumerate(GRIDS) if arguments.runs is None or grid.num_runs in arguments.runs]
    if not grids:
        raise cli.UserError(f"--runs: the grids have {', '.join(sorted({str(g.num_runs) for g in GRIDS}))} runs")
    packages = installed() if arguments.compared > 0 else []
    tally = Tally()
    with (
        cli.progress_bar("{task.description}") as bar,
        ProcessPoolExecutor(arguments.jobs) as pool,
    ):
        cases = [(index, case) for index, case in enumerate(CASES) if case.kind in arguments.kinds]
        steps = bar.add_task("simulating", total=len(grids) * len(cases) * arguments.simulations)
        for grid in grids:
            print(f"\n{GRIDS[grid]}:\n\n{heading(packages)}", flush=True)
            for index, case in cases:
                bar.update(steps, description=f"{GRIDS[grid].num_runs} runs, {case.kind}: {case.name}")
                first, end = arguments.first_seed, arguments.first_seed + arguments.simulations
                batches = [range(i, min(i + BATCH, end)) for i in range(first, end, BATCH)]
                rest = (arguments.replicates, first + arguments.compared, packages)
                work = [pool.submit(_batch, index, grid, seeds, *rest) for seeds in batches]
                found = []
                for done in as_completed(work):
                    found += done.result()
                    bar.advance(steps, len(done.result()))
                lead = lead_without_noise(case, GRIDS[grid])
                print(row(case, lead, found), flush=True)
                tally.add(case, lead, found)
    print(f"\n{tally}")
    if arguments.correlations:
        print(f"\n{correlation_table(arguments.simulations)}")
    return None


if __name__ == "__main__":
    cli.run(main)
