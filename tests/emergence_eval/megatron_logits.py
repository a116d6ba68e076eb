"""Print nothing; write the logits that Megatron-Core gives for fixed ids, from a checkpoint of the smoke grid.

A process of its own, because `recipes.cpu` answers torch's CUDA names for the whole process.

    python tests/emergence_eval/megatron_logits.py RUN_DIRECTORY STEP OUT.pt
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from recipes import cpu


def main() -> None:
    """Load the checkpoint into one process and save {"ids", "logits"}."""
    cpu.install()
    from recipes import checkpoint, distributed, saving
    from recipes.grid import load_grid
    from recipes.trainer import Trainer

    run, step, out = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    settings = load_grid("smoke").run("large-40960").settings
    with distributed.process_groups(settings):
        trainer = Trainer(settings)
        saving.load(checkpoint.step_directory(run, step), trainer)
        (module,) = trainer.modules
        module.eval()
        ids = torch.randint(settings.vocab_size, (2, 128), generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            logits = module(ids, torch.arange(128).expand(2, -1), None)
        torch.save({"ids": ids, "logits": logits}, out)


if __name__ == "__main__":
    main()
