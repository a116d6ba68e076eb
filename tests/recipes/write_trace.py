"""Write the committed loss trace of the smoke grid anew, after a change that was meant to change losses.

python tests/recipes/write_trace.py
"""

from __future__ import annotations

import csv
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from commands import loss_rows, pretrain, run_module
from made_text import write_corpus


def main() -> None:
    """Train the run that the test compares with."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        corpus, tokenizer, data = write_corpus(directory / "corpus"), directory / "tokenizer", directory / "data"
        run_module("tokenizer.train", "--corpus", corpus, "--out", tokenizer, "--vocab-size", 1024)
        run_module(
            "tokenizer.encode", "--corpus", corpus, "--tokenizer", tokenizer, "--out", data, "--heldout-fraction", 0.1
        )
        pretrain("large-40960", directory, data)
        rows = loss_rows(directory / "large-40960")
    path = Path(__file__).parent / "traces" / "smoke.csv"
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
