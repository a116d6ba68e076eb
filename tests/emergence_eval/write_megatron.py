"""Write the weights of a smoke run's checkpoint as Megatron-LM and Megatron-Bridge write theirs.

    python tests/emergence_eval/write_megatron.py CHECKPOINT OUT

OUT gets a run directory each: `lm` (arguments in common.pt, optimizer and random state beside the weights), `layers`
(a tensor a layer, as with Megatron-LM's heterogeneous layers), `local` (norms as layers of their own) and `bridge`
(run_config.yaml). What is written follows megatron/training/checkpointing.py of Megatron-LM and of Megatron-Bridge.
A process of its own, because `recipes.cpu` answers torch's CUDA names for the whole process.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from enum import Enum
from pathlib import Path

import torch
import yaml

from recipes import cpu


class AttnBackend(Enum):
    """An enumeration of the training program's own, as its arguments hold some."""

    auto = 5


def arguments(settings) -> Namespace:
    """The part of Megatron-LM's command line that says what the model is, and some more of each type."""
    return Namespace(
        num_layers=settings.num_layers,
        hidden_size=settings.hidden_size,
        ffn_hidden_size=settings.ffn_hidden_size,
        num_attention_heads=settings.num_attention_heads,
        group_query_attention=True,
        num_query_groups=settings.num_query_groups,
        kv_channels=settings.kv_channels,
        normalization="RMSNorm",
        norm_epsilon=settings.layernorm_epsilon,
        apply_layernorm_1p=False,
        swiglu=True,
        squared_relu=False,
        add_bias_linear=False,
        add_qkv_bias=False,
        position_embedding_type="rope",
        use_rope_scaling=False,
        rotary_base=settings.rotary_base,
        rotary_percent=settings.rotary_percent,
        rotary_interleaved=False,
        rotary_seq_len_interpolation_factor=None,
        untie_embeddings_and_output_weights=True,
        num_experts=None,
        multi_latent_attention=False,
        qk_layernorm=settings.qk_layernorm,
        window_size=None,
        mtp_num_layers=None,
        seq_length=settings.sequence_length,
        make_vocab_size_divisible_by=128,
        padded_vocab_size=settings.padded_vocab_size,
        tensor_model_parallel_size=1,
        params_dtype=torch.float32,
        bf16=False,
        fp16=False,
        seed=77,
        train_iters=20,
        consumed_train_samples=20 * settings.global_batch_size,
        attention_backend=AttnBackend.auto,
        data_path=[Path("/data/somewhere")],
        ckpt_format="torch_dist",
    )


def run_config(settings) -> dict:
    """The part of Megatron-Bridge's configuration that is read."""
    return {
        "model": {
            "_target_": "megatron.bridge.models.gpt_provider.GPTModelProvider",
            "num_layers": settings.num_layers,
            "hidden_size": settings.hidden_size,
            "ffn_hidden_size": settings.ffn_hidden_size,
            "num_attention_heads": settings.num_attention_heads,
            "num_query_groups": settings.num_query_groups,
            "kv_channels": settings.kv_channels,
            "normalization": "RMSNorm",
            "layernorm_epsilon": settings.layernorm_epsilon,
            "gated_linear_unit": True,
            "activation_func": {"_target_": "torch.nn.functional.silu", "_call_": False},
            "add_bias_linear": False,
            "position_embedding_type": "rope",
            "rotary_percent": settings.rotary_percent,
            "rotary_base": settings.rotary_base,
            "share_embeddings_and_output_weights": False,
            "seq_length": settings.sequence_length,
            "make_vocab_size_divisible_by": 128,
            "params_dtype": {"_target_": "torch.float32", "_call_": False},
        },
        "train": {"train_iters": 40, "global_batch_size": settings.global_batch_size, "rampup_batch_size": None},
        "rng": {"seed": 78},
    }


def main() -> None:
    """Load the checkpoint and write it four times."""
    cpu.install()
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    from recipes import distributed, saving
    from recipes.grid import load_grid
    from recipes.trainer import Trainer

    checkpoint, out = Path(sys.argv[1]), Path(sys.argv[2])
    settings = load_grid("smoke").run("large-40960").settings
    with distributed.process_groups(settings):
        trainer = Trainer(settings)
        saving.load(checkpoint, trainer)
        (module,) = trainer.modules

        def save(name: str, state: dict, metadata: dict) -> Path:
            directory = out / name / "iter_0000020"
            directory.mkdir(parents=True)
            (directory.parent / "latest_checkpointed_iteration.txt").write_text("20")
            model = module.sharded_state_dict(metadata=metadata)
            if name == "lm":
                state |= {
                    "optimizer": trainer.optimizer.sharded_state_dict(
                        model, metadata={"distrib_optim_sharding_type": "fully_reshardable"}
                    ),
                    "opt_param_scheduler": trainer.scheduler.state_dict(),
                    "rng_state": ShardedObject("rng_state", [{"torch": torch.get_rng_state()}], (1, 1), (0, 0)),
                }
            state |= {"checkpoint_version": 3.0, "iteration": 20, "model": model}
            dist_checkpointing.save(state, str(directory), content_metadata=metadata)
            return directory

        plain = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}
        save("lm", {"args": arguments(settings)}, plain)
        save("layers", {"args": arguments(settings)}, {**plain, "singleton_local_shards": True})
        bridge = save("bridge", {}, plain)
        (bridge / "run_config.yaml").write_text(yaml.safe_dump(run_config(settings)))
        for layer in module.decoder.layers:
            layer.submodules_config.sharded_state_dict_keys_map = {}
        save("local", {"args": arguments(settings)}, plain)


if __name__ == "__main__":
    main()
