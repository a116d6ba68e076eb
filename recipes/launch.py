"""Trains a run with several processes: torchrun, and on top of it one line and one exit code for all of them.

Options of torchrun come first, after the `--` those of `recipes.pretrain`:

    python -m recipes.launch --nproc-per-node 2 -- --grid smoke --run small-20480 --out runs/smoke tensor_parallel=2

Exit codes are the run's own, with one line for all but the first and the last:

    0    done
    2    a mistake: mend it first
    69   a process on another machine is gone, or never came
    137  a process was killed; 128 + the signal, whichever it was
    75   stopped by SIGTERM or SIGUSR1 after saving

After the last three, start it again. (torchrun itself answers 1 and a traceback to all of these, and dies of SIGUSR1.)
On several nodes, each of which runs one of these, `--node-rank` is Slurm's where it is not given:

    srun python -m recipes.launch --nnodes 2 --nproc-per-node 8 --master-addr HOST --master-port 29500 -- ...
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from recipes import outcome
from tokenizer import cli
from tokenizer.cli import EXIT_AGAIN, EXIT_INTERRUPTED, EXIT_UNAVAILABLE, EXIT_USER_ERROR, StartAgain, UserError

SAVE_SECONDS = 300
"""Time that the processes have to save their state after a signal, unless --shutdown-timeout says otherwise."""

_RENDEZVOUS = ("--standalone", "--nnodes", "--rdzv", "--master")

_NODE_RANK = "SLURM_NODEID"
"""Variable that says which node of its job step a process that srun started is on."""


def launch(options: Sequence[str], arguments: Sequence[str]) -> int:
    """Start the processes, wait for all of them, and give their common exit code.

    Raises UserError for what the user can mend, StartAgain for what the run can be started again after.

    Args:
        options: torchrun's.
        arguments: Of `recipes.pretrain`.
    """
    # Before torch is loaded: Slurm may warn at any time.
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _interrupt)
    # torchrun's own warnings and tables of failed processes; their causes are said below.
    logging.disable(logging.CRITICAL)
    from torch.distributed import DistError
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    with tempfile.TemporaryDirectory(prefix="outcomes-") as directory:
        os.environ[outcome.DIRECTORY] = directory
        died: dict[int, int] = {}
        number = 0
        try:
            torchrun.main([*_with_defaults(options), "-m", "--", "recipes.pretrain", *arguments])
        except ChildFailedError as error:
            codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
            if 1 in codes.values():
                # A bug, whose traceback the process has printed.
                return 1
            died = {rank: -code for rank, code in codes.items() if code < 0}
            if not died and not outcome.collect(Path(directory)):
                return next(iter(codes.values()))
        except SignalException as error:
            number = int(error.sigval)
        except (DistError, RendezvousError) as error:
            if "EADDRINUSE" in str(error) or "address already in use" in str(error):
                raise UserError(
                    f"the port for the processes to meet is in use ({_first_line(error)}); give another --master-port, "
                    "or none on a single machine"
                ) from None
            raise StartAgain(
                f"the processes cannot meet: {_first_line(error)}; start all of them, on machines that reach each other"
            ) from None
        return _conclude(outcome.collect(Path(directory)), died, number)


def _conclude(outcomes: Sequence[outcome.Outcome], died: dict[int, int], number: int) -> int:
    """The exit code for what the processes handed over, those that died of a signal, and the launcher's own one.
    Raises UserError and StartAgain as `launch` does."""
    if errors := [it for it in outcomes if it.exit_code == EXIT_USER_ERROR]:
        raise UserError(errors[0].message)
    lost = [it for it in outcomes if it.exit_code == EXIT_UNAVAILABLE]
    if died and not number:
        rank, by = next(iter(died.items()))
        hint = " (out of memory?)" if by == signal.SIGKILL else ""
        raise StartAgain(
            f"process {rank} of the run was ended by {signal.Signals(by).name}{hint}; run the same command again to go "
            "on from the last state saved",
            128 + by,
        )
    if lost and not number:
        raise StartAgain(lost[0].message)
    codes = {it.exit_code for it in outcomes if it not in lost}
    for code in (EXIT_INTERRUPTED, EXIT_AGAIN):
        if code in codes:
            return code
    if number and codes != {0}:
        # Before any process had begun, or on the other machines of the run.
        return EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_AGAIN
    return max(codes, default=0)


def _with_defaults(options: Sequence[str]) -> list[str]:
    given = [option.replace("_", "-") for option in options]
    added = []
    if not any(option.startswith(_RENDEZVOUS) for option in given):
        added.append("--standalone")
    if not any(option.startswith("--signals-to-handle") for option in given):
        added.append("--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")
    if not any(option.startswith("--shutdown-timeout") for option in given):
        added.append(f"--shutdown-timeout={SAVE_SECONDS}")
    elsewhere = ("--standalone", "--node-rank", "--rdzv-backend")
    if _NODE_RANK in os.environ and _has_nodes(given) and not any(it.startswith(elsewhere) for it in given):
        added.append(f"--node-rank={os.environ[_NODE_RANK]}")
    return [*added, *options]


def _has_nodes(options: Sequence[str]) -> bool:
    """Whether torchrun's options say that there is more than one node."""
    for place, option in enumerate(options):
        name, assigned, value = option.partition("=")
        if name == "--nnodes":
            nodes = value if assigned else options[place + 1] if place + 1 < len(options) else ""
            return nodes.isdigit() and int(nodes) > 1
    return False


def _interrupt(number: int, frame: object) -> None:
    # Nothing was started yet.
    sys.exit(EXIT_AGAIN)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")


def main(argv: Sequence[str] | None = None) -> int:
    """Split the command line at the `--` and launch."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    if "--" not in arguments:
        raise UserError(
            "there is no -- between torchrun's options and the run's: --nproc-per-node 2 -- --grid smoke ..."
        )
    at = arguments.index("--")
    return launch(arguments[:at], arguments[at + 1 :])


if __name__ == "__main__":
    cli.run(main)
