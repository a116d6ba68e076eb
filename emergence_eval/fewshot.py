"""The harness's task with one addition: as many few-shot examples as fit into the model's context.

Of a row's ordered examples the first k are used, with the largest k for which the prompt and its longest
option (or the tokens to be generated) fit. How many were used is kept for every row. Where not even the
question alone fits, the harness truncates it from the left and the row is counted.

`emergence_eval/run.py` sets a task's `window`. Under plain `lm_eval` the window is taken from the model
arguments that the harness hands to tasks as metadata (`pretrained=DIR`, and `tokenizer`, `max_length` if
given); without a local model directory all examples are used:

    lm_eval --model hf --model_args pretrained=HF_DIR --metadata '{"data": "DIR"}' \\
        --include_path emergence_eval/tasks --tasks emergence
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

MERGE_SLACK = 8
"""Tokens by which a whole prompt may be shorter than the sum of its parts, as merges may cross their joints."""


@dataclass(frozen=True)
class Window:
    """What of a model decides how long a prompt may be."""

    encode: Callable[[str], list[int]]
    """Text to token ids, as the language model does it (cached there: prompts are encoded again for scoring)."""
    encode_pair: Callable[[str, str], tuple[list[int], list[int]]]
    """Context and continuation to the token ids of each, as the language model does it."""
    max_length: int
    """Context length in tokens."""
    key: str
    """Identifies tokenizer and length: requests built for one window serve all models with the same key."""

    def room_for_generation(self, asked: int) -> int:
        """Tokens to generate: as asked, but at most a quarter of the context, so that the prompt keeps room."""
        return max(1, min(asked, self.max_length // 4))


class FittedTask(ConfigurableTask):
    """A task of `emergence_eval/tasks`; attributes beside the harness's are the window and the counts per row."""

    def __init__(self, config: dict[str, Any]) -> None:
        # The harness leaves the YAML key that named this class in the settings, where it has no place.
        super().__init__(config={key: value for key, value in config.items() if key != "class"})
        self.window: Window | None = None
        self.examples_used: list[int] = []
        """Few-shot examples in the prompt of each row of the last build, in the order of the rows."""
        self.truncated: list[bool] = []
        """Whether each row's prompt is longer than the context even without examples."""
        self._blocks: dict[int, tuple[str, int]] = {}
        self._pools: dict[Any, list[dict]] = {}
        self._built: tuple | None = None

    def build_all_requests(self, *, limit: int | None = None, samples: list[int] | None = None, **options: Any) -> None:
        """Build the requests of all rows, or reuse those of the last model with the same window."""
        if self.window is None:
            self.window = window_of_local_model(self.config.metadata or {})
        key = (
            self.window and self.window.key,
            limit,
            samples and tuple(samples),
            tuple(sorted((name, str(value)) for name, value in options.items())),
        )
        if key == self._built:
            for instance in self._instances:
                instance.resps, instance.filtered_resps = [], {}
            return
        self._built = None
        self._blocks = {}
        self.examples_used, self.truncated = [], []
        super().build_all_requests(limit=limit, samples=samples, **options)
        self._built = key

    def fewshot_context(self, doc: dict, num_fewshot: int, **options: Any) -> str | list[str]:
        """The prompt of a row (a list of prompts where the options are contexts), as the harness builds it but
        with the examples that fit."""
        bare = super().fewshot_context(doc, 0, **options)
        if num_fewshot == 0 or isinstance(bare, list):
            self.examples_used.append(0)
            self.truncated.append(not self._fits(doc, bare))
            return bare
        head = self.resolve_field(doc, self.config.description) or ""
        question = bare[len(head) :]
        blocks = [self._block(example) for example in self._pool(doc)[:num_fewshot]]

        def prompt(k: int) -> str:
            return head + "".join(text for text, _ in blocks[:k]) + question

        k = len(blocks)
        if self.window is not None:
            k = self._largest_fitting(doc, prompt, [count for _, count in blocks])
        self.examples_used.append(k)
        self.truncated.append(k == 0 and not self._fits(doc, bare))
        return prompt(k)

    def _largest_fitting(self, doc: dict, prompt: Callable[[int], str], counts: Sequence[int]) -> int:
        """The largest k whose prompt fits. The examples' own token counts, taken once per task, say where to
        look; only prompts near the limit are encoded."""
        room = self._room(doc, prompt(0))
        totals = list(accumulate(counts))
        k = bisect_right(totals, room)
        while k < len(totals) and totals[k] <= room + MERGE_SLACK and self._fits(doc, prompt(k + 1)):
            k += 1
        while k > 0 and not self._fits(doc, prompt(k)):
            k -= 1
        return k

    def _room(self, doc: dict, prompt: str | list[str]) -> int:
        """Tokens that are left beside a prompt and its longest option (negative: too long)."""
        if self.window is None:
            return 0
        if self.OUTPUT_TYPE == "generate_until":
            generated = self.window.room_for_generation(self.config.generation_kwargs["max_gen_toks"])
            return self.window.max_length - generated - len(self.window.encode(prompt))
        pairs = [instance.args for instance in super().construct_requests(doc, prompt)]
        # The last token of an option is predicted, never read.
        longest = max(sum(map(len, self.window.encode_pair(*pair))) for pair in pairs) - 1
        return self.window.max_length - longest

    def _fits(self, doc: dict, prompt: str | list[str]) -> bool:
        return self._room(doc, prompt) >= 0

    def _pool(self, doc: dict) -> list[dict]:
        """The ordered examples of a row: all, or those of its own subject; never the row itself."""
        column = (self.config.metadata or {}).get("examples_share")
        key = doc[column] if column else None
        if key not in self._pools:
            examples = self.dataset[self.fewshot_cfg.split]
            self._pools[key] = [e for e in examples if not column or e[column] == key]
        pool = self._pools[key]
        # Splits are lists of the reader's own rows: BIG-bench's examples are rows of the task.
        return [e for e in pool if e is not doc] if any(e is doc for e in pool) else pool

    def _block(self, example: dict) -> tuple[str, int]:
        """An example's text with its answer and the space behind it, and its token count."""
        if id(example) not in self._blocks:
            settings = self.fewshot_cfg
            choices = settings.doc_to_choice and self.doc_to_choice(example, settings.doc_to_choice)
            turn = self.build_qa_turn(
                q=self.doc_to_text(example, settings.doc_to_text),
                c=choices,
                a=self.doc_to_target(example, settings.doc_to_target),
                tgt_delim=settings.target_delimiter,
                few_delim=settings.fewshot_delimiter,
            )
            text = "".join(message.to_text() for message in turn)
            self._blocks[id(example)] = (text, len(self.window.encode(text)) if self.window else 0)
        return self._blocks[id(example)]

    def construct_requests(self, doc: dict, ctx: str | list[str], **options: Any) -> list[Instance] | Instance:
        """The harness's requests, with the number of tokens to generate kept within the window."""
        requests = super().construct_requests(doc, ctx, **options)
        if self.window is not None and isinstance(requests, Instance):
            context, settings = requests.arguments
            settings["max_gen_toks"] = self.window.room_for_generation(settings["max_gen_toks"])
            requests.arguments = (context, settings)
        return requests

    def reference(self, doc: dict) -> str:
        """The text that is right for an open question, as it would follow the prompt: the first accepted answer with
        a letter or digit (TriviaQA accepts an emoji), or the column that the YAML's metadata name as `reference`."""
        column = (self.config.metadata or {}).get("reference")
        target = doc[column] if column else self.doc_to_target(doc)
        if isinstance(target, list):
            target = next((text for text in target if any(map(str.isalnum, text))), target[0])
        return self.config.target_delimiter + target

    def chance(self, doc: dict) -> float:
        """The chance level of a row: one over its options, 0 for an open question."""
        return 0.0 if self.OUTPUT_TYPE == "generate_until" else 1 / len(self.doc_to_choice(doc))


def window_of_local_model(metadata: dict[str, Any]) -> Window | None:
    """The window of the model directory that plain `lm_eval` was given, or None if it was given none."""
    model = metadata.get("pretrained")
    if not isinstance(model, str) or not Path(model, "config.json").is_file():
        return None
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(metadata.get("tokenizer", model))
    length = metadata.get("max_length") or AutoConfig.from_pretrained(model).max_position_embeddings

    def encode_pair(context: str, continuation: str) -> tuple[list[int], list[int]]:
        ids = tokenizer.encode(context)
        return ids, tokenizer.encode(context + continuation)[len(ids) :]

    return Window(tokenizer.encode, encode_pair, int(length), f"{model} {length}")
