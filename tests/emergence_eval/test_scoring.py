"""Scoring with shared prefixes beside the harness's own: the same answers, whatever is asked, in whatever order."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from emergence_eval import definitions, harness, shared_attention, task_scores
from emergence_eval.prefix import Limits, plan_prompts
from emergence_eval.scoring import Encodings, PrefixLM
from emergence_eval.sharding import Processes
from tokenizer.cli import UserError

harness.silence()

LENGTH = 256
SMALL = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def load(tiny_hf, batch_size=8, dtype="float32", **options):
    return harness.load_model(tiny_hf, "tiny", Encodings(), "cpu", dtype, batch_size, **options)


def theirs(model):
    """The harness's model with the same weights."""
    return HFLM(
        pretrained=model.model,
        tokenizer=model.tokenizer,
        max_length=LENGTH,
        batch_size=5,
        softmax_dtype="float32",
    )


def instances(kind, requests):
    return [Instance(kind, {}, request, number) for number, request in enumerate(requests)]


def words(rng, length):
    return "".join(rng.choice("abcde 答") for _ in range(length))


def choices(seed=0):
    """Requests whose beginnings are shared at every depth: subject, passage, question, option."""
    rng = random.Random(seed)
    requests = []
    for _ in range(2):
        subject = words(rng, 50)
        for _ in range(3):
            passage = subject + words(rng, 25)
            for _ in range(2):
                question = passage + words(rng, 12) + "?"
                requests += [(question, letter) for letter in "ABCD"]
                requests += [(question, words(rng, rng.randint(1, 15)) + "x") for _ in range(3)]
        requests.append((subject + "!", "A"))
    requests += [(words(rng, rng.randint(1, 60)) + "y", words(rng, rng.randint(1, 9)) + "z") for _ in range(6)]
    requests += [("", "ab"), ("", "a"), requests[0], requests[5], requests[-1]]
    # A prompt that is the beginning of another, and beginnings that are equal until one ends.
    requests += [("abcde", "a"), ("abcde", "ab"), ("abc", "d")]
    # Longer than the context, by context or by continuation: cut from the left, shared once more.
    long = words(rng, 300)
    requests += [(long + end, option) for end in ("?", "!") for option in ("A", "B", "no", "yes it is")]
    requests += [("a" * LENGTH, "b"), ("q", "b" * LENGTH), ("q", "b" * (LENGTH - 1)), ("a" * (LENGTH - 1), "bc")]
    return requests


def same(found, expected, tolerance=1e-3):
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=tolerance)
    assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in expected]


def test_loglikelihoods_equal_the_harness_s_own(tiny_hf):
    model = load(tiny_hf)
    assert model.shares
    asked = instances("loglikelihood", choices())
    expected = theirs(model).loglikelihood(asked, disable_tqdm=True)
    found = model.loglikelihood(asked)
    same(found, expected)
    assert all(type(value) is float and type(is_greedy) is bool for value, is_greedy in found)
    # What is the same for all is read once.
    assert model.tokens_read < 0.35 * sum(len(model.tok_encode(a + b)) for a, b in choices())


def test_continuations_that_begin_at_different_tokens_of_one_prompt(tiny_hf):
    """The harness keeps logits by the tokens that are read, and takes the first of ("abcde", "ab") for
    ("abcdea", "b"), which reads the same."""
    model = load(tiny_hf)
    asked = instances("loglikelihood", [("abcde", "ab"), ("abcdea", "b")])
    expected = [theirs(model).loglikelihood([it], disable_tqdm=True)[0] for it in asked]
    same(model.loglikelihood(asked), expected)


def test_is_greedy_is_seen(tiny_hf):
    model = load(tiny_hf)
    (text,) = model.generate_until(instances("generate_until", [("abc", {"until": ["\0"], "max_gen_toks": 3})]))
    ids = model.tok_encode("abc") + model.tok_encode(text)
    asked = [(None, ids[:3], ids[3:]), (None, ids[:3], [*ids[3:-1], ids[-1] ^ 1])]
    assert [is_greedy for _, is_greedy in model._loglikelihood_tokens(asked)] == [True, False]


@pytest.mark.parametrize("batch_size", [1, 64])
def test_neither_order_nor_batch_size_matters(tiny_hf, batch_size):
    asked = instances("loglikelihood", choices())
    expected = load(tiny_hf).loglikelihood(asked)
    places = list(range(len(asked)))
    random.Random(1).shuffle(places)
    shuffled = load(tiny_hf, batch_size).loglikelihood([asked[i] for i in places])
    same(shuffled, [expected[i] for i in places], 1e-4)


@pytest.mark.parametrize("limits", [{"segment_tokens": 1, "shared_tokens": 1, "saved_tokens": 1}, {"pass_tokens": 70}])
def test_wherever_prefixes_are_cut(tiny_hf, limits, monkeypatch):
    """One trunk a branch, and passes of hardly more than a prompt."""
    asked = instances("loglikelihood", choices(2))
    model = load(tiny_hf)
    expected = model.loglikelihood(asked)
    monkeypatch.setattr(
        model, "_limits", lambda **options: Limits(**{"pass_tokens": 500, "positions": 4096, **limits, **options})
    )
    same(model.loglikelihood(asked), expected, 1e-4)


def test_a_plan_reads_every_token_once_and_within_its_limits():
    rng = np.random.default_rng(0)
    trunk = rng.integers(0, 9, 200)
    prompts = [
        np.concatenate([trunk[: rng.integers(0, 200)], rng.integers(0, 9, rng.integers(1, 50))]) for _ in range(90)
    ]
    prompts = list({tuple(it.tolist()): it for it in prompts}.values())
    exact = plan_prompts(prompts, Limits(64, 2**20, segment_tokens=1, shared_tokens=1, saved_tokens=1))
    nodes = {tuple(it[: n + 1].tolist()) for it in prompts for n in range(len(it))}
    assert exact.tokens_read() == len(nodes)
    cut = plan_prompts(prompts, Limits(300, 600, segment_tokens=100))
    assert len(nodes) <= cut.tokens_read() < 0.5 * sum(map(len, prompts))
    for leaf in cut.leaves:
        (start,) = {segment.start for segment in leaf.segments}
        assert [trunk.start for trunk in leaf.path] == [0, *(trunk.end for trunk in leaf.path)][: len(leaf.path)]
        assert leaf.tokens <= 300
        assert start + len(leaf.segments) * max(segment.tokens for segment in leaf.segments) <= 600
    # Each leaf is one process's.
    for count in (1, 2, 3, 50):
        assert [leaf for rank in range(count) for leaf in cut.share(rank, count)] == cut.leaves
    assert len(cut.share(0, 2)) and len(cut.share(1, 2))


def test_no_requests(tiny_hf):
    model = load(tiny_hf)
    assert model.loglikelihood([]) == []
    assert model.generate_until([]) == []


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt_neox", "gpt2"])
def test_other_architectures(tiny_hf, kind):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_hf)
    torch.manual_seed(1)
    configurations = {
        "llama": lambda: transformers.LlamaConfig(**SMALL, num_key_value_heads=2),
        "qwen3": lambda: transformers.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
        "gpt_neox": lambda: transformers.GPTNeoXConfig(**SMALL),
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=259, n_embd=32, n_layer=2, n_head=4, n_positions=LENGTH, bos_token_id=1, eos_token_id=1
        ),
    }
    network = transformers.AutoModelForCausalLM.from_config(configurations[kind]()).eval()
    for name, weight in network.named_parameters():
        if "q_norm" in name or "k_norm" in name:
            weight.data.uniform_(0.2, 3.0)
    options = {"pretrained": network, "tokenizer": tokenizer, "max_length": LENGTH, "batch_size": 4}
    model = PrefixLM(Encodings(), **options)
    assert model.shares
    asked = instances("loglikelihood", choices())
    same(model.loglikelihood(asked), theirs(model).loglikelihood(asked, disable_tqdm=True))
    asked = instances("generate_until", open_questions())
    assert model.generate_until(copy.deepcopy(asked)) == theirs(model).generate_until(copy.deepcopy(asked), True)


def test_a_model_with_another_attention_is_scored_by_the_harness(tiny_hf):
    """Windows that slide: what is before them is not seen, so that nothing may be shared across them."""
    network = transformers.MistralForCausalLM(
        transformers.MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=16)
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_hf)
    model = PrefixLM(Encodings(), pretrained=network.eval(), tokenizer=tokenizer, max_length=LENGTH, batch_size=4)
    assert not model.shares
    asked = instances("loglikelihood", choices())
    asked = [it for it in asked if len(model.tok_encode(it.args[1])) < LENGTH]
    same(model.loglikelihood(asked), theirs(model).loglikelihood(asked, disable_tqdm=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_without_a_kernel_of_its_own(tiny_hf, dtype, monkeypatch):
    """What runs on a GPU, in small pieces."""
    questions = instances("generate_until", open_questions())
    asked = instances("loglikelihood", choices())
    with_kernel = load(tiny_hf, dtype=dtype)
    expected = with_kernel.loglikelihood(asked)
    texts = with_kernel.generate_until(copy.deepcopy(questions))
    monkeypatch.setattr(shared_attention, "KERNEL_ON", ())
    monkeypatch.setattr(shared_attention, "SCORES", 5000)
    model = load(tiny_hf, dtype=dtype)
    assert model.shares
    found = model.loglikelihood(asked)
    if dtype == "float32":
        same(found, expected)
        assert model.generate_until(questions) == texts
    else:
        assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-2)


def test_bf16(tiny_hf):
    """Rounding differs with the order of sums; it stays within bf16's own error against fp32."""
    asked = instances("loglikelihood", choices())
    exact = np.array([value for value, _ in load(tiny_hf).loglikelihood(asked)])
    model = load(tiny_hf, dtype="bfloat16")
    assert model.shares
    found = np.array([value for value, _ in model.loglikelihood(asked)])
    reference = np.array([value for value, _ in theirs(model).loglikelihood(asked, disable_tqdm=True)])
    assert np.abs(found - exact).max() <= 2 * np.abs(reference - exact).max() + 1e-2


def open_questions():
    rng = random.Random(3)
    examples = words(rng, 60)
    stops = [["\0never"], ["a"], ["b", "cd"], ["答"]]
    # In a few of the texts the stop sequence comes, in others the last token does.
    requests = [(examples + words(rng, rng.randint(1, 30)) + "?", stops[n % 4]) for n in range(14)]
    requests += [(words(rng, rng.randint(1, 90)), stops[n % 4]) for n in range(8)]
    requests += [requests[0], requests[1], (words(rng, 400), stops[0])]
    return [(text, {"until": list(until), "max_gen_toks": 24, "do_sample": False}) for text, until in requests]


def test_generated_texts_equal_the_harness_s_own(tiny_hf):
    model = load(tiny_hf)
    expected = theirs(model).generate_until(instances("generate_until", open_questions()), disable_tqdm=True)
    found = model.generate_until(instances("generate_until", open_questions()))
    assert found == expected
    # Some rows end before others.
    assert len({len(model.tok_encode(text)) for text in found}) > 4
    assert load(tiny_hf, 1).generate_until(instances("generate_until", open_questions())) == expected


def test_generation_shares_the_examples(tiny_hf):
    model = load(tiny_hf)
    examples = words(random.Random(0), 150)
    asked = [(f"{examples}{number}", {"until": ["\n"], "max_gen_toks": 4}) for number in range(30)]
    expected = theirs(model).generate_until(instances("generate_until", copy.deepcopy(asked)), disable_tqdm=True)
    assert model.generate_until(instances("generate_until", asked)) == expected
    assert model.tokens_read < 0.2 * sum(len(model.tok_encode(text)) for text, _ in asked)


def test_a_text_ends_with_the_end_of_document(tiny_hf):
    """The likeliest token ends the document: nothing is generated, whatever the stop sequences say."""
    model = load(tiny_hf)
    with torch.no_grad():
        model.model.lm_head.weight[1] = 40 * model.model.lm_head.weight[3:].mean(0).sign() + 0.0
        model.model.lm_head.weight[1] = model.model.lm_head.weight.abs().sum(0)
    asked = instances("generate_until", open_questions())
    expected = theirs(model).generate_until(copy.deepcopy(asked), disable_tqdm=True)
    assert model.generate_until(asked) == expected


def test_sampling_is_left_to_the_harness(tiny_hf):
    model = load(tiny_hf)
    assert model._greedy_alone({"do_sample": False, "temperature": 0.0})
    assert not model._greedy_alone({"do_sample": True, "temperature": 0.7})
    assert not model._greedy_alone({"num_beams": 4})


def test_progress_is_told(tiny_hf):
    model = load(tiny_hf, 1)
    told = []
    model.progress = lambda done, of: told.append((done, of))
    asked = instances("loglikelihood", choices())
    model.loglikelihood(asked)
    model.generate_until(instances("generate_until", open_questions()))
    done = [n for n, of in told if of == len(asked)]
    assert done == sorted(done) and done[-1] == len(asked) and len(done) > 2
    assert told[-1][0] <= told[-1][1] == len(open_questions())


def test_scores_of_the_tasks_equal_the_harness_s_own(tiny_hf, benchmarks):
    """Whole tasks through both backends: the same predicted option on every row."""
    wanted = definitions.load(["hellaswag", "winogrande", "mmlu", "c3"])
    tasks = task_scores.load_tasks(wanted, benchmarks)
    plain = load(tiny_hf)
    reference = HFLM(pretrained=plain.model, tokenizer=plain.tokenizer, max_length=LENGTH, batch_size=1)
    for task in tasks.values():
        task.build_all_requests()
        expected = reference.loglikelihood(task.instances, disable_tqdm=True)
        for batch_size in (1, 64):
            same(load(tiny_hf, batch_size).loglikelihood(task.instances), expected)


def test_backends(tiny_hf, benchmarks):
    (definition,) = definitions.load(["mmlu"])
    task = task_scores.load_tasks([definition], benchmarks)["mmlu"]
    rows = {}
    for backend in ("ours", "hf"):
        model = load(tiny_hf, backend=backend)
        assert isinstance(model, PrefixLM) == (backend == "ours")
        rows[backend] = task_scores.evaluate_task(model, task, definition, "hash", "tiny", None)[1]
    for ours, others in zip(rows["ours"], rows["hf"], strict=True):
        assert ours.prediction == others.prediction
        assert list(ours.loglikelihoods) == pytest.approx(list(others.loglikelihoods), abs=1e-3)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="vllm needs a GPU"):
            load(tiny_hf, backend="vllm")


def test_a_text_longer_than_the_context_is_scored(tiny_hf, benchmarks):
    """A smoke run's context is shorter than many an option: the harness's own model stops there."""
    (definition,) = definitions.load(["hellaswag"])
    task = task_scores.load_tasks([definition], benchmarks)["hellaswag"]
    for backend in ("ours", "hf"):
        model = load(tiny_hf, backend=backend)
        model._max_length = 8
        result, rows = task_scores.evaluate_task(model, task, definition, "hash", "tiny", None)
        assert result.truncated_rows == result.rows == 5
        assert all(math.isfinite(value) for row in rows for value in row.loglikelihoods)


def test_a_continuation_that_merges_into_the_prompt_is_still_scored(tiny_hf):
    model = load(tiny_hf)
    model._encodings.put("答：", [5, 6])
    model._encodings.put("答：A", [5, 9])
    context, continuation = model._encode_pair("答：", "A")
    assert context == [5, 6]
    assert continuation == model.tokenizer.encode("A")


class Recorded(Processes):
    """A process whose siblings' parts are put in by hand."""

    parts: list = []  # noqa: RUF012

    def gather(self, part):
        self.parts.append(part)
        return list(self.parts)


def test_each_process_answers_its_share(tiny_hf):
    """The second of two, given what the first found, returns what one process does: to the last bit."""
    alone = load(tiny_hf, 1)
    for answer, asked in (
        ("loglikelihood", instances("loglikelihood", choices())),
        ("generate_until", instances("generate_until", [r for r in open_questions() if r[1]["until"] == ["a"]])),
    ):
        expected = getattr(alone, answer)(copy.deepcopy(asked))
        for backend in ("ours", "hf"):
            Recorded.parts = []
            for rank in range(2):
                model = load(tiny_hf, 1, processes=Recorded(rank, 2), backend=backend)
                if rank == 0 and backend == "ours" and answer == "generate_until":
                    with pytest.raises(KeyError):
                        getattr(model, answer)(copy.deepcopy(asked))
                else:
                    found = getattr(model, answer)(copy.deepcopy(asked))
            assert all(len(part) for part in Recorded.parts)
            if answer == "generate_until" or backend == "ours":
                assert found == expected
            else:
                same(found, expected)


PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[3])
from emergence_eval import sharding
from test_scoring import everything, load
processes = sharding.start()
model = load(sys.argv[1], 1, processes=processes)
answers = everything(model)
assert all(it == answers for it in processes.gather(answers))
assert processes.of_first(processes.rank) == 0
if processes.first:
    open(sys.argv[2], "w").write(json.dumps([processes.count, model.tokens_read, answers]))
sharding.finish()
"""


def everything(model):
    return [
        [list(it) for it in model.loglikelihood(instances("loglikelihood", choices()))],
        model.generate_until(instances("generate_until", open_questions())),
    ]


@pytest.mark.slow
def test_two_processes_equal_one(tiny_hf, tmp_path, repository):
    """To the last bit: they make the same passes, each some of them."""
    script, output = tmp_path / "answers.py", tmp_path / "answers.json"
    script.write_text(PROGRAM)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [sys.executable, *torchrun, script, tiny_hf, output, repository / "tests/emergence_eval"],
        env={**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"},
        cwd=repository,
        check=True,
        capture_output=True,
        timeout=300,
    )
    count, tokens_read, answers = json.loads(output.read_text())
    assert count == 2
    alone = load(tiny_hf, 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert everything(alone) == answers
    finally:
        torch.set_num_threads(threads)
    assert tokens_read < 0.8 * alone.tokens_read
