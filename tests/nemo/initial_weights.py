"""Write the weights that a run of the smoke grid starts from as a NeMo checkpoint.

    python tests/nemo/initial_weights.py RUN OUT

A process of its own, because `recipes.cpu` answers torch's CUDA names for the whole process.
"""

from __future__ import annotations

import sys
from pathlib import Path

from recipes import cpu


def main() -> None:
    """Build the run's trainer and save its model."""
    cpu.install()
    from megatron.core import dist_checkpointing

    from recipes import distributed
    from recipes.grid import load_grid
    from recipes.trainer import Trainer

    settings = load_grid("smoke").run(sys.argv[1]).settings
    weights = Path(sys.argv[2]) / "weights"
    weights.mkdir(parents=True)
    with distributed.process_groups(settings):
        (module,) = Trainer(settings).modules
        dist_checkpointing.save(module.sharded_state_dict(prefix="module."), str(weights))


if __name__ == "__main__":
    main()
