"""Training tokens a second on a CPU: this recipe (Megatron-Core) beside transformers' Glm model.

Same shape, batch, tokens, optimizer (AdamW, gradient clipping) and number of threads. Each side has a process
of its own; the two take turns, so that a change of the machine's speed meets both. Prints the median rate of
each and the ratio.

    python benchmarks/train_cpu.py --size medium --threads 1
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from recipes.settings import RunSettings

SHAPES = {
    "small": {"hidden_size": 128, "ffn_hidden_size": 432, "num_attention_heads": 4, "num_layers": 4},
    "medium": {
        "hidden_size": 256,
        "ffn_hidden_size": 864,
        "num_attention_heads": 8,
        "num_layers": 6,
    },
}
VOCAB_SIZE = 8192


def settings_of(arguments: argparse.Namespace) -> RunSettings:
    """The benchmark's run, as the recipes know it."""
    batch = arguments.batch_size
    return RunSettings(
        size=arguments.size,
        tokens=batch * arguments.sequence_length * 10_000,
        vocab_size=VOCAB_SIZE,
        sequence_length=arguments.sequence_length,
        global_batch_size=batch,
        micro_batch_size=batch,
        learning_rate=1e-3,
        kv_channels=32,
        **SHAPES[arguments.size],
    )


def megatron_step(arguments: argparse.Namespace, stack: contextlib.ExitStack) -> Callable[[int], float]:
    """One training step of this recipe, as a function of the step's number."""
    from recipes import cpu

    cpu.install()
    import torch

    from recipes import distributed
    from recipes.trainer import Trainer

    class RandomTokens(torch.utils.data.Dataset):
        """Random sequences in the form of Megatron's GPTDataset."""

        def __init__(self, length: int):
            generator = torch.Generator().manual_seed(0)
            self.rows = torch.randint(VOCAB_SIZE, (64, length + 1), generator=generator)
            self.rest = {"loss_mask": torch.ones(length), "position_ids": torch.arange(length)}

        def __len__(self) -> int:
            return sys.maxsize

        def __getitem__(self, index: int) -> dict:
            row = self.rows[index % len(self.rows)]
            return {"tokens": row[:-1], "labels": row[1:], **self.rest}

    settings = settings_of(arguments)
    stack.enter_context(distributed.process_groups(settings))
    trainer = Trainer(settings)
    dataset = RandomTokens(settings.sequence_length)
    return lambda step: trainer.step(dataset, step).loss


def glm_step(arguments: argparse.Namespace, stack: contextlib.ExitStack) -> Callable[[int], float]:
    """One training step of transformers' Glm, as a function of the step's number."""
    import torch
    from transformers import GlmConfig, GlmForCausalLM

    it = settings_of(arguments)
    torch.manual_seed(0)
    model = GlmForCausalLM(
        GlmConfig(
            vocab_size=it.vocab_size,
            hidden_size=it.hidden_size,
            intermediate_size=it.ffn_hidden_size,
            num_hidden_layers=it.num_layers,
            num_attention_heads=it.num_attention_heads,
            num_key_value_heads=it.num_query_groups,
            head_dim=it.kv_channels,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
            attention_bias=False,
            tie_word_embeddings=False,
            max_position_embeddings=it.sequence_length,
            pad_token_id=0,
            use_cache=False,
        )
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=it.learning_rate, betas=(it.adam_beta1, it.adam_beta2), weight_decay=it.weight_decay
    )
    rows = torch.randint(VOCAB_SIZE, (64, it.sequence_length), generator=torch.Generator().manual_seed(0))

    def step(number: int) -> float:
        first = (number - 1) * it.global_batch_size
        batch = rows[[index % len(rows) for index in range(first, first + it.global_batch_size)]]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), it.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def work(arguments: argparse.Namespace) -> None:
    """A side's process: take steps when asked, tell the seconds."""
    import warnings

    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(arguments.threads)
    with contextlib.ExitStack() as stack:
        step = {"megatron": megatron_step, "glm": glm_step}[arguments.side](arguments, stack)
        number = 0
        for line in sys.stdin:
            started = time.perf_counter()
            for _ in range(int(line)):
                number += 1
                loss = step(number)
            print(json.dumps({"seconds": time.perf_counter() - started, "loss": loss}), flush=True)


def main() -> None:
    """Let the two sides take turns and print their rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, default="medium")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences a step (default %(default)s)")
    parser.add_argument("--sequence-length", type=int, default=512, help="tokens (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="steps a turn (default %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="turns a side (default %(default)s)")
    parser.add_argument("--side", choices=("megatron", "glm"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        work(arguments)
        return
    sides = ("megatron", "glm")
    processes = {
        side: subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--side", side],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for side in sides
    }
    rates: dict[str, list[float]] = {side: [] for side in sides}
    tokens = arguments.steps * arguments.batch_size * arguments.sequence_length
    for turn in range(arguments.turns + 1):
        for side, process in processes.items():
            print(arguments.steps if turn else 2, file=process.stdin, flush=True)
            answer = json.loads(process.stdout.readline())
            if turn:  # the first turn warms up
                rates[side].append(tokens / answer["seconds"])
                print(f"turn {turn}  {side:9} {rates[side][-1]:9,.0f} tokens/s  loss {answer['loss']:.3f}", flush=True)
    for process in processes.values():
        process.stdin.close()
        process.wait()
    medians = {side: statistics.median(rates[side]) for side in sides}
    for side in sides:
        print(f"{side:9} {medians[side]:9,.0f} tokens/s (median of {arguments.turns} turns)")
    print(f"ratio megatron / glm: {medians['megatron'] / medians['glm']:.2f}")


if __name__ == "__main__":
    main()
