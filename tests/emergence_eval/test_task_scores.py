"""The task files in the harness: prompts, requests and scores, with a language model of known answers."""

from __future__ import annotations

import re

import pytest
from known_answers import KnownAnswers
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from emergence_eval import definitions, harness, task_scores
from emergence_eval.fewshot import FittedTask, Window

harness.silence()

EVERYTHING = ("emergence", "emergence_variants", "bigbench")


@pytest.fixture(scope="module")
def tasks(benchmarks):
    return task_scores.load_tasks(definitions.load(EVERYTHING), benchmarks)


def score(task, model, rows=None):
    output = evaluate(
        lm=model,
        task_dict={"tasks": {task.config.task: task}, "groups": {}},
        samples={task.config.task: rows} if rows else None,
        bootstrap_iters=0,
    )
    return output["results"][task.config.task]


def words(max_length):
    """A window whose tokens are words."""

    def encode_pair(context, continuation):
        return context.split(), continuation.split()

    return Window(str.split, encode_pair, max_length, f"words {max_length}")


def test_every_task_and_group_loads_as_plain_lm_eval_does(benchmarks):
    manager = TaskManager(
        include_path=str(definitions.TASKS), include_defaults=False, metadata={"data": str(benchmarks)}
    )
    loaded = manager.load([*EVERYTHING])
    assert loaded["tasks"].keys() == {task.name for task in definitions.load(EVERYTHING)}
    assert len(loaded["tasks"]) == 12 + 4 + 3
    assert loaded["groups"].keys() == {*EVERYTHING, "emergence_en", "emergence_zh"}
    assert all(isinstance(task, FittedTask) for task in loaded["tasks"].values())
    loaded = manager.load(["emergence_maths"])
    assert list(loaded["tasks"]) == ["gsm8k", "gsm8k_zh"]


def test_prompts_are_the_harness_s_own(tasks):
    """Without a window a prompt equals what the harness builds from the same examples."""
    for task in tasks.values():
        shots = task.config.num_fewshot
        for doc in task.eval_docs[:3]:
            ours = task.fewshot_context(doc, shots)
            if shots:
                task.sampler.replace_df(task._pool(doc))
            theirs = super(FittedTask, task).fewshot_context(doc, shots)
            assert ours == theirs


def test_examples_share_the_subject(tasks):
    for name in ("mmlu", "ceval"):
        task = tasks[name]
        for doc in task.eval_docs:
            assert {example["subject"] for example in task._pool(doc)} == {doc["subject"]}


def test_mmlu_prompt(tasks):
    prompt = tasks["mmlu"].fewshot_context(tasks["mmlu"].eval_docs[0], 1)
    assert prompt == (
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
        'abstract_algebra: "None",\nor\x85what 0?\nA. None\nB. 1\nC. a,b\nD. NA\nAnswer: A\n\n'
        'abstract_algebra: "None",\nor\x85what 0?\nA. None\nB. 1\nC. a,b\nD. NA\nAnswer:'
    )


def test_c3_prompt_lists_the_options_there_are(tasks):
    task = tasks["c3"]
    prompt = task.fewshot_context(task.eval_docs[0], 0)
    assert prompt == (
        "男：听说你们公司要派你去南方工作?d\n女：是呀。\n问题：他们在谈论什么0?\nA. 旅行\nB. 工作\n答案："
    )
    assert [task.chance(doc) for doc in task.eval_docs] == [0.5] * 4 + [0.25] * 4


def test_gsm8k_prompt_shows_worked_solutions(tasks):
    prompt = tasks["gsm8k"].fewshot_context(tasks["gsm8k"].eval_docs[0], 1)
    assert prompt == (
        "Question: 0 plus 0?\nAnswer: It is 0+0 = 0.\nThe answer is 1200.\n\nQuestion: 0 plus 0?\nAnswer:"
    )


def test_examinations_with_options_as_texts(tasks):
    prompt = tasks["mmlu_texts"].fewshot_context(tasks["mmlu_texts"].eval_docs[1], 1)
    assert prompt == (
        "The following are questions (with answers) about abstract algebra.\n\n"
        'abstract_algebra: "None",\nor\x85what 0?\nAnswer: None\n\n'
        'abstract_algebra: "None",\nor\x85what 1?\nAnswer:'
    )
    prompt = tasks["ceval_texts"].fewshot_context(tasks["ceval_texts"].eval_docs[0], 1)
    assert prompt.splitlines()[:3] == ["以下是中国关于法学考试的问题和答案。", "", "law要添加几个0____0"]
    assert prompt.count("答案：1\n") == 1


def test_gsm8k_in_chinese_with_and_without_a_chain_of_thought(tasks):
    prompt = tasks["gsm8k_zh"].fewshot_context(tasks["gsm8k_zh"].eval_docs[1], 1)
    assert prompt == ("问题：罗杰有 1 个球。\n逐步解答：1 + 1 = 2。\n答案是 2000。\n\n问题：他买了房子。\n逐步解答：")
    prompt = tasks["gsm8k_zh_direct"].fewshot_context(tasks["gsm8k_zh_direct"].eval_docs[1], 1)
    assert prompt == "问题：罗杰有 1 个球。\n答案：2000\n\n问题：他买了房子。\n答案："
    prompt = tasks["gsm8k_direct"].fewshot_context(tasks["gsm8k_direct"].eval_docs[1], 1)
    assert prompt == "Question: 0 plus 0?\nAnswer: 1200\n\nQuestion: 1 plus 1?\nAnswer:"


def test_bigbench_examples_are_never_the_row_itself(tasks):
    task = tasks["word_unscramble"]
    for doc in task.eval_docs:
        prompt = task.fewshot_context(doc, 2)
        assert prompt.count("\nA:") == 3
        assert prompt.count(doc["question"]) == 1
    assert task.fewshot_context(task.eval_docs[0], 1) == (
        "Q: The word nad is a scrambled version of the English word\nA: and\n\n"
        "Q: The word hte is a scrambled version of the English word\nA:"
    )
    task = tasks["ipa_transliterate"]
    assert task.fewshot_context(task.eval_docs[0], 1).endswith(
        "\n\nEnglish: I like it.\nIPA: aɪ laɪk ɪt.\n\nIPA: ju doʊnt.\nEnglish:"
    )
    task = tasks["modified_arithmetic"]
    assert task.fewshot_context(task.eval_docs[0], 0) == "a symbol\n1 - 2 -> -1\n3 - 9 ->"


def test_options_are_letters_or_texts(tasks):
    asked = {}
    for name in ("race", "hellaswag", "cluewsc", "winogrande", "clozet", "mmlu_texts"):
        model = KnownAnswers()
        score(tasks[name], model, [1] if name == "clozet" else [0])
        asked[name] = model.asked
    assert [continuation for _, continuation in asked["race"]] == [" A", " B", " C", " D"]
    assert [continuation for _, continuation in asked["cluewsc"]] == ["否", "是"]
    assert [continuation for _, continuation in asked["mmlu_texts"]] == [" None", " 1", " a,b", " NA"]
    assert asked["clozet"] == [("猫饿了。", "没有鱼。它吃了鱼。"), ("猫饿了。", "有1条鱼。它吃了鱼。")]
    assert asked["hellaswag"][1] == ("Pole vault: A woman runs fast. She", " sits down.")
    assert asked["winogrande"] == [
        ("Sarah was better than Maria so Sarah", " always won."),
        ("Sarah was better than Maria so Maria", " always won."),
    ]


def test_accuracy_of_known_likelihoods(tasks):
    """Labels 0 1 2 3 0: a model that always prefers the first ending is right twice in five."""
    first = KnownAnswers(lambda context, continuation: -1.0 if "jumps" in continuation else -2.0)
    result = score(tasks["hellaswag"], first)
    assert result["acc,none"] == pytest.approx(2 / 5)


def test_accuracy_is_of_the_sum_not_the_mean(tasks):
    """A long text with the higher sum wins although each of its characters is likelier elsewhere."""
    by_length = KnownAnswers(lambda context, continuation: -0.1 * len(continuation))
    result = score(tasks["hellaswag"], by_length)
    # "sleeps." is the shortest ending, the label of one row in five.
    assert result["acc,none"] == pytest.approx(1 / 5)


def test_winogrande_compares_the_same_continuation(tasks):
    right = KnownAnswers(lambda context, continuation: -1.0 if context.endswith("Maria") else -2.0)
    assert score(tasks["winogrande"], right)["acc,none"] == pytest.approx(1 / 2)
    assert score(tasks["winogrande"], right, [1, 3])["acc,none"] == 1.0


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("triviaqa", lambda context: f" an author {re.findall('Book (.)', context)[-1]}\n", 1.0),
        ("nlpcc_kbqa", lambda context: "176cm", 1 / 5),
        ("gsm8k", lambda context: "It is 2. The answer is $1,201.", 1 / 4),
        ("gsm8k_direct", lambda context: " 1,201", 1 / 4),
        ("gsm8k_zh", lambda context: "一共 ７０，答案是 ７００００。", 1 / 3),
        ("gsm8k_zh_direct", lambda context: "18 个", 1 / 3),
        ("word_unscramble", lambda context: " this", 1 / 4),
        ("modified_arithmetic", lambda context: " -6 and 3", 1.0),
        ("ipa_transliterate", lambda context: " Go.", 1 / 3),
    ],
)
def test_exact_match_of_known_texts(tasks, name, text, value):
    assert score(tasks[name], KnownAnswers(text=text))["exact_match,none"] == pytest.approx(value)


def test_as_many_examples_as_fit(tasks):
    task = tasks["gsm8k"]
    doc = task.eval_docs[0]
    question, block = 5, 14  # words of "Question: 0 plus 0?\nAnswer:", and of that with a solution
    for room, expected in ((0, 0), (block - 1, 0), (block, 1), (3 * block, 3), (900, 8)):
        # A quarter of the context at most is generated, so that the length has to be found.
        length = next(n for n in range(1, 5000) if n - max(1, n // 4) - question == room)
        task.window = words(length)
        task._blocks = {}
        task.examples_used, task.truncated = [], []
        prompt = task.fewshot_context(doc, 8)
        assert task.examples_used == [expected]
        assert task.truncated == [False]
        assert prompt.count("Question:") == expected + 1
        assert "Question: 0 plus 0?" in prompt[:25] or expected == 0
    task.window = words(100)
    request = task.construct_requests(doc, "prompt", metadata=("gsm8k", 0, 1))
    assert request.arguments[1]["max_gen_toks"] == 25
    task.window = None


def test_a_prompt_that_never_fits_is_counted(tasks):
    task = tasks["race"]
    task.window = words(20)
    model = KnownAnswers()
    score(task, model)
    assert task.truncated == [True] * 4
    assert task.examples_used == [0] * 4
    task.window = words(45)
    score(task, model)
    assert task.truncated == [False] * 4
    assert task.examples_used == [0, 0, 0, 0]
    task.window = words(10_000)
    score(task, model)
    assert task.examples_used == [5] * 4
    task.window = None


def test_merges_across_examples_are_seen(tasks):
    """A tokenizer for which the whole is shorter than the sum of its parts still gets the largest number."""
    task = tasks["gsm8k"]
    doc = task.eval_docs[0]

    def encode(text):
        return [*text.split(), "end"]

    task.window = Window(encode, lambda a, b: (encode(a), encode(b)), 80, "one more")
    task._blocks, task.examples_used, task.truncated = {}, [], []
    prompt = task.fewshot_context(doc, 8)
    (used,) = task.examples_used
    room = 80 - 20
    assert len(encode(prompt)) <= room
    one_more = len(encode(prompt)) + len(task._blocks[id(task._pool(doc)[used])][0].split())
    assert one_more > room
    task.window = None


def test_requests_are_built_once_for_a_window(tasks, monkeypatch):
    task = tasks["triviaqa"]
    task.window = words(400)
    built = []
    original = FittedTask.fewshot_context
    monkeypatch.setattr(FittedTask, "fewshot_context", lambda *a, **k: built.append(1) or original(*a, **k))
    for _ in range(2):
        assert score(task, KnownAnswers(text=lambda context: "x"), [0, 2])["exact_match,none"] == 0.0
    assert len(built) == 2
    assert score(task, KnownAnswers(text=lambda context: "author 0"), [0, 2])["exact_match,none"] == 0.5
    task.window = words(300)
    score(task, KnownAnswers(text=lambda context: "x"), [0, 2])
    assert len(built) == 4
    task.window = None


def test_row_samples_are_fixed_and_nested():
    ten = task_scores.sample_rows("mmlu", 14_042, 10)
    assert ten == sorted(set(ten)) and len(ten) == 10
    assert ten == task_scores.sample_rows("mmlu", 14_042, 10)
    assert set(ten) < set(task_scores.sample_rows("mmlu", 14_042, 20))
    assert ten != task_scores.sample_rows("race", 14_042, 10)
    assert task_scores.sample_rows("mmlu", 5, 10) == task_scores.sample_rows("mmlu", 5, None) == [0, 1, 2, 3, 4]
