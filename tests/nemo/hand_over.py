"""What nemo_run's executors do with a recipe before they start it: write it out, read it back, print the job.

    python tests/nemo/hand_over.py DATA OUT

Runs in NeMo's environment, on a machine without GPUs, for a cluster that has them.
"""

from __future__ import annotations

import sys

import nemo_run
from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer

from recipes.nemo import recipe


def main() -> None:
    """Hand a run of 16 processes over to an executor."""
    data, out = sys.argv[1:]
    layout = ("tensor_parallel=2", "pipeline_parallel=2", "sequence_parallel=true", "distributed_optimizer=true")
    partial = recipe(
        "smoke",
        "large-40960",
        data=data,
        out=out,
        devices=8,
        nodes=2,
        overrides=(*layout, "precision=bf16", "micro_batch_size=4"),
    )
    serializer = ZlibJSONSerializer()
    again = serializer.deserialize(serializer.serialize(partial))
    assert again == partial
    strategy = again.trainer.strategy
    print(strategy.tensor_model_parallel_size, strategy.pipeline_model_parallel_size, strategy.sequence_parallel)
    print(again.trainer.plugins.precision, again.trainer.num_nodes, again.trainer.devices)
    with nemo_run.Experiment("hand-over", base_dir=out) as experiment:
        experiment.add(partial, executor=nemo_run.LocalExecutor(ntasks_per_node=1, launcher="torchrun"), name="train")
        experiment.dryrun()


if __name__ == "__main__":
    main()
