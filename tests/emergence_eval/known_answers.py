"""A language model for tests of tasks and metrics: its answers are given."""

from __future__ import annotations

import pytest
from lm_eval.api.model import LM


class KnownAnswers(LM):
    """A language model that is told each log-likelihood and each generated text."""

    def __init__(self, likelihood=lambda context, continuation: 0.0, text=lambda context: ""):
        super().__init__()
        self.likelihood, self.text = likelihood, text
        self.asked = []

    def loglikelihood(self, requests, disable_tqdm=False):
        self.asked += [request.args for request in requests]
        return [(self.likelihood(*request.args), False) for request in requests]

    def generate_until(self, requests, disable_tqdm=False):
        self.asked += [request.args for request in requests]
        return [self.text(request.args[0]) for request in requests]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        pytest.fail("no task here asks for the likelihood of a whole text")
