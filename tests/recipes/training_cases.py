"""Trains runs of the smoke grid one after another in one process, each with what befalls it, and says how they end.

Loading torch takes longer than these runs. Cases come as JSON on the standard input, a list of
{"arguments": [...], "signal": "SIGTERM" or null, "rows": 3, "file_bytes": 100000 or null}: the signal is sent to
this process once loss.csv has that many rows; no file can grow above `file_bytes`. The answer is a JSON list of
{"exit_code", "message"}.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

from recipes import pretrain
from tokenizer.cli import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError


def _send_when_trained(number: signal.Signals, table: Path, rows: int, ended: threading.Event) -> None:
    while not ended.is_set():
        if table.is_file() and len(table.read_text().splitlines()) > rows:
            os.kill(os.getpid(), number)
            return
        time.sleep(0.001)


def _train(case: dict) -> dict:
    arguments = case["arguments"]
    table = Path(arguments[arguments.index("--out") + 1]) / arguments[arguments.index("--run") + 1] / "loss.csv"
    ended = threading.Event()
    if case["signal"]:
        number = signal.Signals[case["signal"]]
        threading.Thread(target=_send_when_trained, args=(number, table, case["rows"], ended), daemon=True).start()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if case["file_bytes"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (case["file_bytes"], hard))
    try:
        return {"exit_code": pretrain.main(arguments), "message": ""}
    except UserError as error:
        return {"exit_code": EXIT_USER_ERROR, "message": str(error)}
    except KeyboardInterrupt:
        return {"exit_code": EXIT_INTERRUPTED, "message": "at once"}
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        ended.set()


def main() -> None:
    """Train every case; what they say goes to the standard error."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    logging.raiseExceptions = False
    json.dump([_train(case) for case in json.load(sys.stdin)], answer)
    answer.close()


if __name__ == "__main__":
    main()
