"""What size, how many tokens and how much compute a loss takes: L(N, D) = E + A/N^alpha + B/D^beta, fitted to a grid.

From it the paper's Eq. 4 (loss against size at fixed tokens) and Eq. 5 (the size at which a threshold eta is crossed),
the tokens that a size needs, and the least compute that reaches eta, each with an interval over draws of runs; and with
a cluster, GPU-hours.

    python -m analysis.scaling results.csv --eta 2.2
    python -m analysis.scaling results.csv --eta 2.2 --eta-interval 2.1 2.3 --tokens 500B --cluster dgx-a100
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis import mapping, scaling_law, scaling_text
from analysis.columns import parameters_of
from tokenizer import cli
from tokenizer.cli import UserError


def main(argv: Sequence[str] | None = None) -> int | None:
    """Print the law and what a threshold takes."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    mapping.add_options(parser)
    parser.add_argument("--eta", type=float, action="append", default=[], help="a loss to be reached; may be repeated")
    parser.add_argument(
        "--eta-interval",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="its 95 %% interval, which widens the others",
    )
    parser.add_argument("--tokens", help="training tokens of Eq. 4 and 5, as 500B (default: the most in the table)")
    parser.add_argument(
        "--size", help="parameters whose tokens are asked for, as 6B (default: the largest in the table)"
    )
    parser.add_argument("--points", choices=("auto", "final", "all"), default="auto", help="checkpoints (%(default)s)")
    parser.add_argument(
        "--parameters", choices=scaling_law.PARAMETERS, default="parameters", help="what N is (%(default)s)"
    )
    parser.add_argument("--cluster", help="a cluster's name or file (launchers/clusters): gives GPU-hours")
    parser.add_argument("--mfu", type=float, help="share of the peak rate that training uses, instead of a plan's")
    mapping.add_replicates(parser)
    arguments = parser.parse_args(argv)
    mapping.check_replicates(arguments.replicates)
    if arguments.cluster and not arguments.eta:
        raise UserError("--cluster needs a loss to be reached; give --eta 2.2")
    if arguments.mfu is not None and not arguments.cluster:
        raise UserError("--mfu belongs to --cluster; give both")
    if arguments.eta_interval and len(arguments.eta) != 1:
        raise UserError("--eta-interval belongs to one --eta; give exactly one")
    if arguments.eta_interval and not arguments.eta_interval[0] <= arguments.eta[0] <= arguments.eta_interval[1]:
        raise UserError("--eta-interval must hold --eta; give LOW and HIGH around it")
    machine = scaling_text.machine_of(arguments.cluster, arguments.mfu)
    given = _count(arguments.tokens, "--tokens"), _count(arguments.size, "--size")
    table = mapping.load_as_asked(arguments)
    law = scaling_law.fit(
        table, parameters=arguments.parameters, points=arguments.points, replicates=arguments.replicates
    )
    for line in scaling_text.law_lines(law):
        print(line)
    if law.reason:
        return None
    tokens, size = given[0] or law.token_range[1], given[1] or law.size_range[1]
    for eta in arguments.eta:
        draws = law.eta_draws(eta, *arguments.eta_interval) if arguments.eta_interval else eta
        cheapest = law.flops_for(eta).parameters.value
        nearest = cheapest if np.isfinite(cheapest) else law.size_range[1]
        rate = scaling_text.cluster_rate(machine, arguments.mfu, nearest)
        for line in scaling_text.eta_lines(law, eta, draws, tokens, size, rate):
            print(line)
    return None


def _count(text: str | None, option: str) -> float | None:
    if text is None:
        return None
    number = float(parameters_of(pd.Series([text])).iloc[0])
    if not number > 0:
        raise UserError(f"{option} {text}: give a count, as 500B or 6e9")
    return number


if __name__ == "__main__":
    cli.run(main)
