"""What a person sees of a launch: a live view on a terminal, a line an event elsewhere.

    with Display(plan, estimator, jobs, console).drawing() as display:
        LocalExecutor(plan, jobs, observers=[display]).run()

`watch` keeps the table of `--status` on the screen, of a launch that goes on elsewhere.
"""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from launchers.estimate import Estimator, total_seconds
from launchers.local import Failure, LocalExecutor, Observer, Process
from launchers.plan import Plan
from launchers.status import format_duration

HEARTBEAT_SECONDS = 30.0
"""Off a terminal: time between two lines on how far everything is."""

LINES_PER_HEARTBEAT = 4
"""Processes that such a line tells of."""

LINES_BESIDE = 5
"""Lines of a terminal that the processes of the live view do not take: bar, counts, "and 3 more", what was said last,
the cursor."""

REDRAW_SECONDS = 1.0
"""On a terminal: time between two looks at the files that the steps write."""

BAR_WIDTH = 30
"""Columns of the bar: with the figures beside it, it fits a terminal of 80."""

WATCH_SECONDS = 5.0
"""Time between two looks of `watch`."""


def watch(
    read: Callable[[], RenderableType],
    console: Console,
    interval: float = WATCH_SECONDS,
    finished: Callable[[], bool] = lambda: False,
) -> int:
    """Show what `read` gives until `finished`, looked at every `interval` seconds; the exit code, 0 also after Ctrl-C,
    which ends the watching and nothing else.

    On a terminal it is drawn in place, and stands there when this ends. Elsewhere it is printed when it has changed.
    """
    try:
        if console.is_terminal:
            _redraw(read, console, interval, finished)
        else:
            _print_changes(read, console, interval, finished)
    except KeyboardInterrupt:
        console.print("No longer watched. What was launched goes on; look again with --status.", highlight=False)
    return 0


def _redraw(
    read: Callable[[], RenderableType], console: Console, interval: float, finished: Callable[[], bool]
) -> None:
    with Live(console=console, auto_refresh=False) as live:
        for shown in _looks(read, interval, finished):
            live.update(shown, refresh=True)


def _print_changes(
    read: Callable[[], RenderableType], console: Console, interval: float, finished: Callable[[], bool]
) -> None:
    before = ""
    for shown in _looks(read, interval, finished):
        text = _as_text(shown, console.width)
        if text != before:
            console.print(text, end="", markup=False, highlight=False, soft_wrap=True)
            before = text


def _looks(
    read: Callable[[], RenderableType], interval: float, finished: Callable[[], bool]
) -> Iterator[RenderableType]:
    while True:
        # Before reading, so that the last look shows the end.
        is_last = finished()
        yield read()
        if is_last:
            return
        time.sleep(interval)


def _as_text(shown: RenderableType, width: int) -> str:
    page = Console(file=io.StringIO(), width=width)
    page.print(shown)
    return page.file.getvalue()


class Display(Observer):
    """Tells of starts, ends and progress on `console`."""

    def __init__(self, plan: Plan, estimator: Estimator, jobs: int, console: Console) -> None:
        self._plan = plan
        self._estimator = estimator
        self._jobs = jobs
        self._console = console
        self._drawn = time.monotonic()
        self._live: Live | None = None
        self._whole = max(total_seconds(plan, estimator.seconds, jobs), 1e-9)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=BAR_WIDTH),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[eta]}"),
            console=console,
        )
        self._total = self._bar.add_task("all steps", total=1.0, eta="")

    @contextmanager
    def drawing(self) -> Iterator[Display]:
        """Draw the live view while the block runs, if there is a terminal."""
        if not self._console.is_terminal:
            yield self
            return
        with Live(self._bar, console=self._console, refresh_per_second=4, transient=True) as live:
            self._live = live
            try:
                yield self
            finally:
                self._live = None

    def say(self, text: str) -> None:
        """Print a line with the time of day; `text` is rich markup."""
        self._console.print(f"[dim]{time.strftime('%H:%M:%S')}[/]  {text}", highlight=False, soft_wrap=True)

    def started(self, process: Process) -> None:
        """A line for the process."""
        self.say(f"started  {_describe(process)}")

    def ended(self, process: Process, failures: Sequence[Failure]) -> None:
        """A line for what is done, and one for each failure."""
        taken = format_duration(time.time() - process.started)
        failed = {failure.step.name for failure in failures}
        done = [step for step in process.steps if step.name not in failed and step.done()]
        if done:
            name = escape(done[0].name) if len(done) == 1 else f"evaluate {len(done)} checkpoints"
            self.say(f"[green]done[/]     {name}  ({taken}{escape(self._last_loss(process))})")
        for failure in failures:
            self.say(f"[red]failed[/]   {escape(failure.step.name)}: {escape(failure.message)}")
            self.say(f"         its log: {escape(str(failure.log))}")

    def restarted(self, process: Process, message: str) -> None:
        """A line with why."""
        self.say(f"[yellow]again[/]    {_describe(process)}: {escape(message)}")

    def tick(self, executor: LocalExecutor) -> None:
        """Redraw, or print how far everything is, when it is time."""
        now = time.monotonic()
        if now - self._drawn < (REDRAW_SECONDS if self._live else HEARTBEAT_SECONDS):
            return
        self._drawn = now
        if self._live:
            self._estimator.refresh()
        share, eta = self._progress()
        if not self._live:
            lines = [self._counts(), *self._lines(executor.processes, LINES_PER_HEARTBEAT)]
            self.say(f"{share:.0%} done, about {format_duration(eta)} left; {escape('; '.join(lines))}")
            return
        self._bar.update(self._total, completed=share, eta=f"about {format_duration(eta)} left")
        lines = [self._counts(), *self._lines(executor.processes, max(1, self._console.height - LINES_BESIDE))]
        page = (Text(f"  {line}", no_wrap=True, overflow="ellipsis") for line in lines)
        self._live.update(Group(self._bar, *page))

    def _progress(self) -> tuple[float, float]:
        """Share of the work that is done, and seconds to the end."""
        left = total_seconds(self._plan, self._estimator.left, self._jobs)
        whole = max(total_seconds(self._plan, self._estimator.seconds, self._jobs), left, 1e-9)
        return 1.0 - left / whole, left

    def _counts(self) -> str:
        steps = Counter(step.phase for step in self._plan)
        done = Counter(step.phase for step in self._plan if step.done())
        return (
            f"{done['train']} of {steps['train']} runs trained, "
            f"{done['evaluate']} of {steps['evaluate']} checkpoints evaluated"
        )

    def _lines(self, processes: Sequence[Process], most: int) -> list[str]:
        """A line each for `most` processes, and one for the others."""
        more = len(processes) - most
        return [*map(self._line, processes[:most]), *([f"and {more} more"] if more > 0 else [])]

    def _line(self, process: Process) -> str:
        step = process.steps[0]
        if step.phase == "evaluate":
            done = len(process.steps) - len(process.pending)
            return f"evaluate {done} of {len(process.steps)} checkpoints ({_names(process)})"
        if step.phase != "train" or step.run is None:
            return f"{step.name} ({format_duration(time.time() - process.started)})"
        progress = self._estimator.progress[step.run]
        if not progress.step:
            return f"{step.name}: starting"
        steps = self._estimator.num_steps(step.run)
        loss = "" if progress.loss is None else f", loss {progress.loss:.3f}"
        rate = "" if progress.tokens_per_second is None else f", {progress.tokens_per_second:,.0f} tokens/s"
        return f"{step.name}: step {progress.step:,} of {steps:,}{loss}{rate}"

    def _last_loss(self, process: Process) -> str:
        step = process.steps[0]
        if step.phase != "train" or step.run is None:
            return ""
        self._estimator.refresh()
        loss = self._estimator.progress[step.run].heldout_loss
        return "" if loss is None else f", held-out loss {loss:.4f}"


def _describe(process: Process) -> str:
    if process.steps[0].phase != "evaluate":
        return escape(process.steps[0].name)
    count = len(process.steps)
    return f"evaluate {count} checkpoint{'s' if count > 1 else ''} ({escape(_names(process))})"


def _names(process: Process) -> str:
    names = list(dict.fromkeys(step.run for step in process.steps if step.run))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
