"""The command line: every shipped grid is planned, mistakes are one line, the bash scripts reach Python."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from made_runs import write_run

from launchers import grid as command
from launchers.estimate import Estimator, makespan, phase_seconds, total_seconds
from launchers.local import Process
from launchers.plan import GridDirectory, Inputs, build_plan
from launchers.status import format_duration
from tokenizer.cli import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
GRIDS = sorted((REPOSITORY / "recipes" / "grids").glob("*.yaml"))


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_shipped_grid_can_be_planned(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main(["--grid", str(path), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for word in ("train the tokenizer", "python -m recipes.pretrain", "together", "GFLOP/s", "Disk:"):
        assert word in shown
    assert list(tmp_path.iterdir()) == []


def test_only_the_runs_that_are_picked_are_planned(smoke, tmp_path, capsys):
    assert command.main(["--grid", "smoke", "--out", str(tmp_path), "--dry-run", "--runs", "small-*"]) == 0
    shown = capsys.readouterr().out
    assert "train small-20480" in shown and "train large-20480" not in shown
    with pytest.raises(UserError, match=r"matches 'huge-\*'; the runs are small-20480, "):
        smoke.select("huge-*")


def test_estimates_follow_the_cores(smoke, tmp_path):
    plan = build_plan(smoke, GridDirectory(tmp_path), Inputs())
    times = {jobs: total_seconds(plan, lambda step: 10.0, jobs) for jobs in (1, 2, 4)}
    assert times[1] > times[2] > times[4]
    assert sum(phase_seconds(plan, lambda step: 10.0, 1).values()) == pytest.approx(times[1])
    assert total_seconds(plan, lambda step: 0.0, 2) == 0.0
    assert makespan([3, 2, 2], 2) == 4


def test_estimates_of_one_size_learn_from_another(smoke, tmp_path):
    folder, (small, large) = GridDirectory(tmp_path), (smoke.runs[0], smoke.runs[-1])
    plan = build_plan(smoke, folder, Inputs())
    rates = {run.settings.hidden_size: 1e9 for run in smoke.runs}

    def estimator() -> Estimator:
        return Estimator(smoke.runs, folder, rates, 12, 8, 1_000_000, jobs=2)

    before = estimator()
    write_run(folder, small, steps=10)
    after = estimator()
    ratio = after.tokens_per_second(small.settings) / before.tokens_per_second(small.settings)
    assert after.tokens_per_second(small.settings) == pytest.approx(1005, abs=1)
    assert after.tokens_per_second(large.settings) == pytest.approx(ratio * before.tokens_per_second(large.settings))

    of_small, of_large = (
        next(it for it in plan if it.phase == "evaluate" and it.run == run.name) for run in (small, large)
    )
    expected = after.seconds(of_large) / after.seconds(of_small)
    after.ended(Process((of_small,), None, folder.logs, 0, time.time() - 1000), ())
    assert after.seconds(of_small) == pytest.approx(1000 - 12, rel=0.01)
    assert after.seconds(of_large) == pytest.approx(expected * after.seconds(of_small))


def test_a_world_says_how_many_rows_its_tasks_have(smoke):
    world = smoke.microworld
    assert Inputs(world=world).rows_per_task(None) == Inputs(world=world).rows_per_task(10**6) == world.rows
    assert Inputs(world=world).rows_per_task(3) == Inputs().rows_per_task(3) == 3
    assert Inputs().rows_per_task(None) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.4, "3 s"), (65, "1 min 5 s"), (3700, "1 h 2 min"), (5 * 86400, "5 days"), (1e12, "31,688 years")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as leave:
        command.main(["--help"])
    assert leave.value.code == 0
    shown = capsys.readouterr().out
    for word in ("--grid", "(default: micro)", "--corpus", "--benchmarks", "--dry-run", "--status", "slurm_grid.sh"):
        assert word in shown


def bash(*arguments: object, environment: dict[str, str], cwd: Path) -> subprocess.CompletedProcess:
    command = ["bash", str(REPOSITORY / "launchers" / "slurm_grid.sh"), *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=cwd, text=True, capture_output=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--grid", "nowhere.yaml"], r"error: there is no grid file nowhere\.yaml; .*smoke"),
        (["--grid", "realtext"], r"error: --corpus is missing; give a directory of documents"),
        (["--grid", "realtext", "--corpus", "x"], r"error: --benchmarks is missing; give the directory"),
        (["--grid", "smoke", "--corpus", "x"], r"error: --benchmarks is missing; give it beside --corpus, or neither"),
        (["--grid", "smoke", "--dry-run", "--benchmarks", "x"], r"error: --corpus is missing; give it beside"),
        (["--grid", "smoke", "--json"], r"error: --json goes with --status"),
        (["--grid", "realtext", "--dry-run", "--corpus", "nowhere"], r"error: /.*/nowhere: no such file or directory"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(environment, tmp_path, arguments, said):
    result = bash(*arguments, environment=environment, cwd=tmp_path)
    assert result.returncode == 2
    assert re.fullmatch(said + r"[^\n]*\n", result.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_clone_runs_its_own_code(environment, tmp_path):
    """With an environment that was set up for another checkout, the code beside the script is what runs."""
    clone = tmp_path / "a clone"
    for room in ("launchers", "recipes", "tokenizer", "emergence_eval"):
        shutil.copytree(REPOSITORY / room, clone / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", clone)
    (clone / "recipes" / "grids" / "smoke.yaml").write_text("nonsense: 1\n")
    script = clone / "launchers" / "slurm_grid.sh"
    result = subprocess.run(
        ["bash", str(script), "--grid", "smoke", "--status"],
        env=environment,
        cwd=tmp_path,
        text=True,
        capture_output=True,
    )
    assert result.returncode == 2 and "nonsense" in result.stderr


def test_the_scripts_are_short_and_clean():
    scripts = [*(REPOSITORY / "launchers").glob("*.sh"), REPOSITORY / "tests" / "run.sh", REPOSITORY / ".ci" / "run"]
    for script in scripts:
        assert len(script.read_text().splitlines()) <= 60, script
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", "-x", *map(str, scripts)], cwd=REPOSITORY, check=True)


def test_the_directory_it_is_called_from_does_not_matter(environment, tmp_path):
    """Not even one with packages of the same names, as another clone has them."""
    (tmp_path / "launchers").mkdir()
    (tmp_path / "launchers" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    result = bash("--grid", "smoke", "--status", environment=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
