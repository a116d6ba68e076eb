"""How fast this machine multiplies matrices of a model's width, with all jobs at work at once.

python -m launchers.machine 64 128        (prints {"64": FLOP/s, "128": FLOP/s} of one core)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence

from launchers.local import STEP_ENVIRONMENT
from launchers.plan import REPOSITORY

SECONDS = 1.0
"""Time that one measurement takes, all widths together."""

LARGEST_WIDTH = 1024
"""Wider products are no faster, and take too long to be measured."""

_ROWS = 1024


def measure(widths: Iterable[int], jobs: int) -> dict[int, float]:
    """FLOP/s of one core for each width while `jobs` cores do the same."""
    asked = sorted({min(width, LARGEST_WIDTH) for width in widths})
    command = [sys.executable, "-m", "launchers.machine", *map(str, asked)]
    environment = {**os.environ, **STEP_ENVIRONMENT}
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY, env=environment) for _ in range(jobs)
    ]
    measured = [json.loads(process.communicate()[0] or "{}") for process in processes]
    rates = {width: sum(rates[str(width)] for rates in measured) / jobs for width in asked}
    return {width: rates[min(width, LARGEST_WIDTH)] for width in widths}


def _flops_per_second(width: int, seconds: float) -> float:
    """The rate of (rows x width) (width x 4 width) products in single precision."""
    # Here, because the commands that only print a grid or a table have no need of it.
    import numpy as np

    random = np.random.default_rng(0)
    left = random.standard_normal((_ROWS, width), dtype=np.float32)
    right = random.standard_normal((width, 4 * width), dtype=np.float32)
    out = left @ right
    # The median, so that the moments in which something else has the core do not count.
    times, end = [], time.perf_counter() + seconds
    while (started := time.perf_counter()) < end:
        np.matmul(left, right, out=out)
        times.append(time.perf_counter() - started)
    return 2.0 * _ROWS * width * 4 * width / float(np.median(times))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the rates of this process as JSON."""
    widths = [int(width) for width in (sys.argv[1:] if argv is None else argv)]
    print(json.dumps({str(width): _flops_per_second(width, SECONDS / len(widths)) for width in widths}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
