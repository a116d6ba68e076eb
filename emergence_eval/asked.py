"""The log-likelihoods that are asked for: which token of which prompt predicts which id, and what was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from emergence_eval.prefix import Plan, Segment, Trunk

Request = tuple[Any, list[int], list[int]]
"""What the harness calls the request by, the context's token ids, the continuation's token ids."""

Wanted = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Tokens of a pass, the ids that they are to predict, and the places of the answers."""


class Asked:
    """Requests as the harness scores them: the last `max_length` tokens before the last one are read, the
    continuation's own tokens are predicted. Requests that read the same tokens share a prompt.

    Args:
        max_length: the context in tokens; no continuation may be longer.
    """

    def __init__(self, requests: Sequence[Request], max_length: int) -> None:
        self.prompts: list[np.ndarray] = []
        self.requests_of: list[list[int]] = []
        """Of each prompt, the requests that read it."""
        self._targets = [np.asarray(ids, dtype=np.int64) for _, _, ids in requests]
        self._first: list[int] = []
        known: dict[bytes, int] = {}
        for number, (_, context, continuation) in enumerate(requests):
            ids = np.asarray((context + continuation)[-(max_length + 1) : -1], dtype=np.int64)
            prompt = known.setdefault(ids.tobytes(), len(self.prompts))
            if prompt == len(self.prompts):
                self.prompts.append(ids)
                self.requests_of.append([])
                self._first.append(len(ids))
            self.requests_of[prompt].append(number)
            self._first[prompt] = min(self._first[prompt], len(ids) - len(continuation))
        self._ends = np.cumsum([len(it) for it in self._targets], dtype=np.int64)
        places = int(self._ends[-1]) if requests else 0
        self._values, self._likeliest = np.full(places, np.nan), np.zeros(places, dtype=bool)

    @classmethod
    def nothing(cls, prompts: list[np.ndarray]) -> Asked:
        """Prompts of which no log-likelihood is asked."""
        asked = cls([], 0)
        asked.prompts, asked._first = prompts, [len(prompt) for prompt in prompts]
        return asked

    def wanted(self, prompt: int, path: np.ndarray, start: int) -> Iterator[Wanted]:
        """What is asked of the tokens of a prompt from `start` on, which are the tokens `path` of a pass."""
        end = start + len(path)
        if self._first[prompt] >= end:
            return
        for number in self.requests_of[prompt]:
            targets = self._targets[number]
            first = len(self.prompts[prompt]) - len(targets)
            low, high = max(first, start), min(first + len(targets), end)
            if low < high:
                offset = self._ends[number] - len(targets) - first
                yield (
                    path[low - start : high - start],
                    targets[low - first : high - first],
                    np.arange(offset + low, offset + high),
                )

    def put(self, places: np.ndarray, values: np.ndarray, likeliest: np.ndarray) -> None:
        """Log-probabilities (nats) of predicted ids, and whether each is the likeliest."""
        self._values[places], self._likeliest[places] = values, likeliest

    def found(self) -> Wanted:
        """What this process found: places, log-probabilities, whether likeliest."""
        (places,) = np.nonzero(~np.isnan(self._values))
        return places, self._values[places], self._likeliest[places]

    def answers(self) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether it is the greedy one."""
        return [
            (float(self._values[end - len(ids) : end].sum()), bool(self._likeliest[end - len(ids) : end].all()))
            for ids, end in zip(self._targets, self._ends.tolist(), strict=True)
        ]


class Tokens:
    """The tokens of a pass: ids, positions in their prompts, the segments' sizes and trees, and what is wanted."""

    def __init__(self) -> None:
        self._ids: list[np.ndarray] = []
        self._positions: list[np.ndarray] = []
        self.parents: list[np.ndarray] = []
        """Of each segment's tokens, the parent's index within the segment, -1 for none."""
        self.wanted: list[Wanted] = []
        self._count = 0

    @classmethod
    def of_trunk(cls, trunk: Trunk, plan: Plan, asked: Asked) -> Tokens:
        """A trunk's tokens, in one segment."""
        tokens = cls()
        path = tokens._add(asked.prompts[plan.order[trunk.members.start]][trunk.start : trunk.end], trunk.start)
        tokens.parents.append(path - 1)
        for place in trunk.members:
            tokens.wanted += asked.wanted(plan.order[place], path, trunk.start)
        return tokens

    @classmethod
    def of_segments(cls, segments: Sequence[Segment], plan: Plan, asked: Asked) -> Tokens:
        """The tokens of segments, what the prompts of a segment share once."""
        tokens = cls()
        for segment in segments:
            origin, parents = tokens._count, []
            path = np.zeros(0, dtype=np.int64)
            for place in segment.members:
                ids = asked.prompts[plan.order[place]]
                common = segment.start if place == segment.members.start else int(plan.shared[place])
                path = path[: common - segment.start]
                added = tokens._add(ids[common:], common)
                if len(added):
                    parents += [path[-1:] - origin if len(path) else np.array([-1]), added[:-1] - origin]
                path = np.concatenate([path, added])
                tokens.wanted += asked.wanted(plan.order[place], path, segment.start)
            tokens.parents.append(np.concatenate(parents))
        return tokens

    def _add(self, ids: np.ndarray, position: int) -> np.ndarray:
        self._ids.append(ids)
        self._positions.append(np.arange(position, position + len(ids)))
        self._count += len(ids)
        return np.arange(self._count - len(ids), self._count)

    def __len__(self) -> int:
        return self._count

    @property
    def ids(self) -> np.ndarray:
        """Token ids."""
        return np.concatenate(self._ids)

    @property
    def positions(self) -> np.ndarray:
        """Positions in the prompts."""
        return np.concatenate(self._positions)
