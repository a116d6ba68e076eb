"""Write a model with norms of queries and keys as NeMo and Megatron-LM write it, and what Megatron-Core computes of it.

    python tests/emergence_eval/write_normed.py TOKENIZER OUT

OUT gets `nemo/step_20`, `lm/iter_0000020`, `layers/iter_0000020` (a tensor a layer) and known.pt: {"ids", "logits",
"parameters", "flops_of_a_token"}. A process of its own, because `recipes.cpu` answers torch's CUDA names for the whole
process.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from write_megatron import arguments

from recipes import cpu


def main() -> None:
    """Draw the weights, those of the norms too, and save them three times."""
    cpu.install()
    from megatron.core import dist_checkpointing

    from recipes import distributed, saving
    from recipes.grid import load_grid
    from recipes.model import build_model
    from recipes.model_description import model_description

    tokenizer, out = Path(sys.argv[1]), Path(sys.argv[2])
    settings = replace(load_grid("smoke").run("large-40960").settings, qk_layernorm=True, rotary_percent=1.0)
    with distributed.process_groups(settings):
        (module,) = build_model(settings)
        generator = torch.Generator().manual_seed(6)
        for name, weight in module.named_parameters():
            if "q_layernorm" in name or "k_layernorm" in name:
                # Of all ones they could be left out, or be each other's.
                weight.data.uniform_(0.2, 3.0, generator=generator)
        module.eval()
        ids = torch.randint(settings.vocab_size, (2, 128), generator=generator)
        with torch.no_grad():
            logits = module(ids, torch.arange(128).expand(2, -1), None)
        facts = {"parameters": settings.parameters, "flops_of_a_token": settings.flops_exact(1)}
        torch.save({"ids": ids, "logits": logits, **facts}, out / "known.pt")

        nemo = out / "nemo" / "step_20"
        (nemo / "weights").mkdir(parents=True)
        dist_checkpointing.save(saving.model_state([module])["model0"], str(nemo / "weights"))
        shutil.copytree(tokenizer, nemo / "context" / "tokenizer")
        (nemo / "context" / "model.yaml").write_text(yaml.safe_dump(model_description(settings)))
        for name in ("lm", "layers"):
            directory = out / name / "iter_0000020"
            directory.mkdir(parents=True)
            metadata = {"singleton_local_shards": name == "layers"}
            state = {
                "model": module.sharded_state_dict(metadata=metadata),
                "args": arguments(settings),
                "iteration": 20,
            }
            dist_checkpointing.save(state, str(directory), content_metadata=metadata)


if __name__ == "__main__":
    main()
