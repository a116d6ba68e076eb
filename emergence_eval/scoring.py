"""A language model of lm-evaluation-harness that reads what prompts share only once.

    model = PrefixLM(Encodings(), pretrained=model, tokenizer=tokenizer, max_length=2048, batch_size=8)

Takes the place of the harness's own `HFLM` and gives the same answers: the examples of a subject, a passage with
several questions, a question with several options are read once (`prefix` plans it, `shared_attention` does it), only
scored positions reach the output layer, and greedy decoding leaves finished rows out (`generation`). With several
processes (`sharding`) each reads its share, and all return all answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from emergence_eval.asked import Asked, Request, Tokens
from emergence_eval.generation import Stops, generate
from emergence_eval.prefix import Limits, Plan, Trunk, plan_prompts
from emergence_eval.sharding import Processes
from emergence_eval.shared_attention import KeysValues, Trees, extended, read, supports

T = TypeVar("T")

CACHED_CHARACTERS = 100_000_000
"""Text whose token ids are kept from one checkpoint to the next, at most."""

CPU_PASS_TOKENS = 2048
"""Tokens in a pass on a CPU: more make its products no faster."""

GENERATED_ROWS = 128
"""Rows that are decoded together, at most."""

LEAST_SHARED_ROWS = 8
"""Rows for which decoding has a prefix of its own: a smaller batch takes as many steps as a large one."""


class Encodings:
    """Token ids of texts that were encoded before; checkpoints of one grid share their tokenizer."""

    def __init__(self) -> None:
        self._key: str | None = None
        self._ids: dict[str, list[int]] = {}
        self._characters = 0

    def use(self, key: str) -> None:
        """Forget what another tokenizer encoded."""
        if key != self._key:
            self._key, self._ids, self._characters = key, {}, 0

    def get(self, text: str) -> list[int] | None:
        """The ids of `text`, if they are known."""
        return self._ids.get(text)

    def put(self, text: str, ids: list[int]) -> None:
        """Remember the ids of `text`."""
        self._characters += len(text)
        if self._characters > CACHED_CHARACTERS:
            self._ids, self._characters = {}, len(text)
        self._ids[text] = ids


class HarnessLM(HFLM):
    """The harness's own model, which encodes each text once for all checkpoints, prints nothing, and scores a text
    that is longer than the whole context as far as the model sees it.

    Args:
        processes: those that share the work.
    """

    def __init__(self, encodings: Encodings, processes: Processes | None = None, **options: Any) -> None:
        self._encodings = encodings
        self.processes = processes or Processes()
        self.progress: Callable[[int, int], None] | None = None
        """Called with the number of requests that are answered, and that were asked."""
        super().__init__(**options)

    def tok_encode(self, string: str, *arguments: Any, **options: Any) -> list[int]:
        """Token ids of a text, remembered where the harness passes no options."""
        if arguments or options:
            return super().tok_encode(string, *arguments, **options)
        ids = self._encodings.get(string)
        if ids is None:
            ids = super().tok_encode(string)
            self._encodings.put(string, ids)
        return ids

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        context_ids, continuation_ids = super()._encode_pair(context, continuation)
        if not continuation_ids:
            # A merge across the joint left nothing to score: encode the two parts on their own.
            continuation_ids = self.tok_encode(continuation, add_special_tokens=False)
        return context_ids, continuation_ids

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-probability of each continuation (nats) and whether it is the greedy one."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: list[Request], *_: Any, **options: Any) -> list[tuple[float, bool]]:
        # A tiny model's context may be shorter than an option.
        requests = [(texts, context, ids[-self.max_length :]) for texts, context, ids in requests]
        score = super()._loglikelihood_tokens
        return self._each_its_share(requests, lambda mine: score(mine, disable_tqdm=True, **_only_size(options)))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Greedy continuations up to a stop sequence."""
        answer = super().generate_until
        return self._each_its_share(requests, lambda mine: answer(mine, disable_tqdm=True))

    def _each_its_share(self, requests: Sequence[Any], answer: Callable[[list[Any]], list[T]]) -> list[T]:
        rank, count = self.processes.rank, self.processes.count
        mine = list(requests[len(requests) * rank // count : len(requests) * (rank + 1) // count])
        answers = [it for part in self.processes.gather(answer(mine) if mine else []) for it in part]
        self._report(len(requests), len(requests))
        return answers

    def _report(self, done: int, of: int) -> None:
        if self.progress is not None:
            self.progress(done, of)


def _only_size(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("override_bs",) if name in options}


class PrefixLM(HarnessLM):
    """The harness's model with shared prefixes; where a model's attention does not allow it (`shares`), the harness's
    own.

    The options are those of `HFLM`, with a model and a tokenizer in `pretrained` and `tokenizer`, and a number as
    `batch_size`: as many positions as so many prompts of `max_length` are held at a time.
    """

    def __init__(self, encodings: Encodings, processes: Processes | None = None, **options: Any) -> None:
        super().__init__(encodings, processes, **options)
        self.shares = supports(self.model, self.max_length)
        if not self.shares:
            self.model.set_attn_implementation("sdpa")
        self.tokens_read = 0
        """Tokens of prompts that this process's model read so far."""

    def _limits(self, **options: Any) -> Limits:
        positions = self.batch_size * self.max_length
        on_cpu = self.device.type == "cpu"
        return Limits(min(CPU_PASS_TOKENS, positions) if on_cpu else positions, positions, **options)

    def _loglikelihood_tokens(self, requests: list[Request], *_: Any, **options: Any) -> list[tuple[float, bool]]:
        if not self.shares:
            return super()._loglikelihood_tokens(requests, **options)
        asked = Asked([(name, context, ids[-self.max_length :]) for name, context, ids in requests], self.max_length)
        plan = plan_prompts(asked.prompts, self._limits())
        trunks = _Trunks(lambda trunk, prefix: self._read_trunk(trunk, prefix, plan, asked))
        leaves = plan.share(self.processes.rank, self.processes.count)
        mine, read_already = sum(leaf.tokens for leaf in leaves), 0
        for leaf in leaves:
            prefix = trunks.enter(leaf.path)
            tokens = Tokens.of_segments(leaf.segments, plan, asked)
            self._read(tokens, Trees(tokens.parents, prefix, self.device, self.model.dtype), asked)
            read_already += leaf.tokens
            self._report(round(read_already / mine * len(requests)), len(requests))
        for part in self.processes.gather(asked.found()):
            asked.put(*part)
        answers = asked.answers()
        for (name, _, _), answer in zip(requests, answers, strict=True):
            if name is not None:
                self.cache_hook.add_partial("loglikelihood", name, answer)
        return answers

    def _read_trunk(self, trunk: Trunk, prefix: KeysValues | None, plan: Plan, asked: Asked) -> KeysValues:
        tokens = Tokens.of_trunk(trunk, plan, asked)
        trees = Trees(tokens.parents, prefix, self.device, self.model.dtype, keep=True)
        self._read(tokens, trees, asked)
        return extended(prefix, trees.kept or [])

    def _read(self, tokens: Tokens, trees: Trees, asked: Asked) -> None:
        """One pass, and the log-probabilities that are wanted of it."""
        self.tokens_read += len(tokens)
        if not tokens.wanted:
            read(self.model, self._tensor(tokens.ids), self._tensor(tokens.positions), trees, self._tensor([0]))
            return
        rows, targets, places = (np.concatenate(it) for it in zip(*tokens.wanted, strict=True))
        kept, rows = np.unique(rows, return_inverse=True)
        logits = read(self.model, self._tensor(tokens.ids), self._tensor(tokens.positions), trees, self._tensor(kept))
        total = torch.logsumexp(logits.float(), -1)
        row, target = self._tensor(rows), self._tensor(targets)
        values = logits[row, target].float() - total[row]
        asked.put(places, values.cpu().numpy(), (logits.argmax(-1)[row] == target).cpu().numpy())

    def _tensor(self, numbers: Any) -> torch.Tensor:
        return torch.from_numpy(np.asarray(numbers, dtype=np.int64)).to(self.device)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Greedy continuations up to a stop sequence."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        texts: list[str] = [""] * len(requests)
        answered, report = 0, self.progress
        for numbers in groups.values():
            self.progress = report and (lambda done, _, before=answered: report(before + done, len(requests)))
            group = [requests[number] for number in numbers]
            settings = normalize_gen_kwargs(group[0].args[1], self.max_gen_toks)
            until, room = settings.pop("until"), settings.pop("max_gen_toks")
            if not self.shares or room >= self.max_length or not self._greedy_alone(settings):
                answers = super().generate_until(group)
            else:
                answers = self._generate([request.args[0] for request in group], until, room)
            for number, text in zip(numbers, answers, strict=True):
                texts[number] = text
                self.cache_hook.add_partial("generate_until", requests[number].args, text)
            answered += len(numbers)
        self.progress = report
        return texts

    def _greedy_alone(self, settings: dict[str, Any]) -> bool:
        """Whether the settings of a request and of the model ask for nothing but the likeliest token."""
        asked = {name for name, value in settings.items() if value not in (False, None, 0, 0.0)}
        model = self.model.generation_config
        plain = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1, "min_new_tokens": None}
        return not asked and all(getattr(model, name, None) in (None, value) for name, value in plain.items())

    def _generate(self, contexts: Sequence[str], until: Any, room: int) -> list[str]:
        stop = handle_stop_sequences(until, eos=self.tok_decode(self.eot_token_id, skip_special_tokens=False))
        eos = self.model.generation_config.eos_token_id
        complete = Stops(self.tokenizer, stop, eos if isinstance(eos, list) else [] if eos is None else [eos])
        known: dict[tuple[int, ...], int] = {}
        prompt_of = []
        for context in contexts:
            ids = self.tok_encode(context)[-(self.max_length - room) :] or [self.prefix_token_id]
            prompt_of.append(known.setdefault(tuple(ids), len(known)))
        prompts = [np.array(ids, dtype=np.int64) for ids in known]
        limits = self._limits(trees=False, room=room, segments=GENERATED_ROWS, saved_tokens=room * LEAST_SHARED_ROWS)
        plan = plan_prompts(prompts, dataclasses.replace(limits, pass_tokens=limits.positions), unshared=1)
        trunks = _Trunks(lambda trunk, prefix: self._read_trunk(trunk, prefix, plan, Asked.nothing(prompts)))
        leaves = plan.share(self.processes.rank, self.processes.count, room)
        answers: dict[int, list[int]] = {}
        mine = sum(len(leaf.segments) for leaf in leaves)
        for leaf in leaves:
            prefix = trunks.enter(leaf.path)
            depth = leaf.segments[0].start
            numbers = [plan.order[segment.members.start] for segment in leaf.segments]
            rows = [prompts[number][depth:] for number in numbers]
            self.tokens_read += leaf.tokens
            found = generate(self.model, prefix, depth, rows, room, complete, limits.pass_tokens)
            answers |= dict(zip(numbers, found, strict=True))
            self._report(round(len(answers) / mine * len(contexts)), len(contexts))
        for part in self.processes.gather(answers):
            answers |= part
        return [
            postprocess_generated_text(self.tok_decode(answers[number]), stop=stop, think_end_token=None)
            for number in prompt_of
        ]


class _Trunks:
    """Keys and values of the trunks of the current path: one path's are held at a time."""

    def __init__(self, read_trunk: Callable[[Trunk, KeysValues | None], KeysValues]) -> None:
        self._read = read_trunk
        self._held: list[tuple[Trunk, KeysValues]] = []

    def enter(self, path: Sequence[Trunk]) -> KeysValues | None:
        """The keys and values of all tokens of a path, its trunks read where they are not held."""
        same = 0
        while same < min(len(path), len(self._held)) and path[same] is self._held[same][0]:
            same += 1
        del self._held[same:]
        for trunk in path[same:]:
            prefix = self._held[-1][1] if self._held else None
            self._held.append((trunk, self._read(trunk, prefix)))
        return self._held[-1][1] if self._held else None
