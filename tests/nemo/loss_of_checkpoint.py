"""Print the loss of a smoke run's checkpoint on the first batch that the run trains on, nats per token.

    python tests/nemo/loss_of_checkpoint.py RUN CHECKPOINT DATA

A process of its own, because `recipes.cpu` answers torch's CUDA names for the whole process.
"""

from __future__ import annotations

import sys
from pathlib import Path

from recipes import cpu


def main() -> None:
    """Load the checkpoint into a trainer and take its first step."""
    cpu.install()
    from recipes import distributed, encoded, saving
    from recipes.data import training_set
    from recipes.grid import load_grid
    from recipes.trainer import Trainer

    run, checkpoint, data = sys.argv[1:]
    settings = load_grid("smoke").run(run).settings
    with distributed.process_groups(settings):
        trainer = Trainer(settings)
        saving.load(Path(checkpoint), trainer)
        print(repr(trainer.step(training_set(encoded.read_data(Path(data)), settings), 1).loss))


if __name__ == "__main__":
    main()
