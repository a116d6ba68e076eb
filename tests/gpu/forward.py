"""Write the logits and the loss of a model with its initial weights, on this process's device.

The weights are drawn by name and seed, so that they are the same on every device.

    python tests/gpu/forward.py OUT.pt precision=bf16 hidden_size=128
"""

from __future__ import annotations

import sys

import torch

from recipes import cpu


def main() -> None:
    """Build the smoke grid's large model with the given settings and save {"logits", "loss", "device"}."""
    cpu.install()
    from recipes import distributed, precision
    from recipes.grid import load_grid, override
    from recipes.model import build_model

    settings = override(load_grid("smoke").run("large-20480").settings, sys.argv[2:])
    precision.check(settings)
    with distributed.process_groups(settings):
        (model,) = build_model(settings)
        model.eval()
        generator = torch.Generator().manual_seed(5)
        ids = torch.randint(settings.vocab_size, (2, settings.sequence_length + 1), generator=generator)
        tokens, labels = (part.contiguous().to(cpu.device()) for part in (ids[:, :-1], ids[:, 1:]))
        positions = torch.arange(settings.sequence_length, device=cpu.device()).expand(2, -1)
        with torch.no_grad():
            logits = model(tokens, positions, None).float().cpu()
            loss = model(tokens, positions, None, labels=labels).float().mean().item()
        torch.save({"logits": logits, "loss": loss, "device": cpu.device().type}, sys.argv[1])


if __name__ == "__main__":
    main()
