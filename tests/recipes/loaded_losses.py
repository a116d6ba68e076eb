"""Held-out losses of a checkpoint of the smoke grid on other layouts than it was written on.

    torchrun --nproc-per-node 2 tests/recipes/loaded_losses.py CHECKPOINT DATA OUT.json tensor_parallel=2 \\
        distributed_optimizer=true,micro_batch_size=8

A layout is a comma-separated list of settings; they share their processes, for loading torch takes longest.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from recipes import cpu


def main(state: Path, data_directory: Path, out: Path, layouts: list[str]) -> None:
    """Load the checkpoint on each layout and write its losses, by layout and language."""
    cpu.install()
    from megatron.core import parallel_state

    from recipes import distributed, encoded, saving
    from recipes.checkpoint import read_manifest
    from recipes.data import heldout_sets
    from recipes.grid import load_grid, override
    from recipes.trainer import Trainer

    settings = load_grid("smoke").run(read_manifest(state).run).settings
    data = encoded.read_data(data_directory)
    losses = {}
    given = [override(settings, name.split(",")) for name in layouts]
    with distributed.process_groups(given[0]):
        for name, one in zip(layouts, given, strict=True):
            # The processes stay together: torch would look for those of the layout before.
            parallel_state.destroy_model_parallel()
            parallel_state.initialize_model_parallel(one.tensor_parallel, one.pipeline_parallel)
            trainer = Trainer(one)
            saving.load(state, trainer)
            losses[name] = trainer.heldout_losses(heldout_sets(data, one))
        if distributed.is_first_rank():
            out.write_text(json.dumps(losses))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
