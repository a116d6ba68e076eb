"""Trains a run with several processes: torchrun, and on top of it one line and one exit code for all of them.

Options of torchrun come first, after the `--` those of `recipes.pretrain`:

    python -m recipes.launch --nproc-per-node 2 -- --grid smoke --run small-20480 --out runs/smoke tensor_parallel=2

Exit codes are the run's own: 0 done, 2 for a mistake (one line says which) or a process that died, 75 stopped by
SIGTERM or SIGUSR1 after saving: start it again. (torchrun itself answers 1 and a traceback to all of these, and
dies of SIGUSR1.) In a Slurm job script, with `#SBATCH --signal=USR1@300`:

    srun python -m recipes.launch ... || { [ $? -eq 75 ] && scontrol requeue $SLURM_JOB_ID; }
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
from tokenizer.cli import EXIT_AGAIN, EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError

SAVE_SECONDS = 300
"""Time that the processes have to save their state after a signal, unless --shutdown-timeout says otherwise."""

_RENDEZVOUS = ("--standalone", "--nnodes", "--rdzv", "--master")


def launch(options: Sequence[str], arguments: Sequence[str]) -> int:
    """Start the processes, wait for all of them, and give their common exit code.

    Args:
        options: torchrun's.
        arguments: Of `recipes.pretrain`.
    """
    # Before torch is loaded: Slurm may warn at any time.
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _interrupt)
    # torchrun's own warnings and tables of failed processes; their causes are said below.
    logging.disable(logging.CRITICAL)
    from torch.distributed import DistNetworkError
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

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
        except DistNetworkError as error:
            if "EADDRINUSE" in str(error) or "address already in use" in str(error):
                raise UserError(
                    f"the port for the processes to meet is in use ({_first_line(error)}); give another --master-port, "
                    "or none on a single machine"
                ) from None
            raise UserError(f"the processes cannot meet: {_first_line(error)}") from None
        return _conclude(outcome.collect(Path(directory)), died, number)


def _conclude(outcomes: Sequence[outcome.Outcome], died: dict[int, int], number: int) -> int:
    """The exit code for what the processes handed over, those that died of a signal, and the launcher's own one.
    Raises UserError for what the user can mend."""
    errors = [it for it in outcomes if it.exit_code == EXIT_USER_ERROR and not it.lost_peer]
    if errors:
        raise UserError(errors[0].message)
    if died and not number:
        rank, by = next(iter(died.items()))
        hint = " (out of memory?)" if by == signal.SIGKILL else ""
        raise UserError(
            f"process {rank} of the run was ended by {signal.Signals(by).name}{hint}; run the same command again to go "
            "on from the last state saved"
        )
    if any(it.lost_peer for it in outcomes) and not number:
        raise UserError(next(it.message for it in outcomes if it.lost_peer))
    codes = {it.exit_code for it in outcomes if not it.lost_peer}
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
    return [*added, *options]


def _interrupt(number: int, frame: object) -> None:
    # Nothing was started yet.
    sys.exit(EXIT_AGAIN)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


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
