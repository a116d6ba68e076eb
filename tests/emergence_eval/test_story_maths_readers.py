"""ClozeT, GSM8K in Chinese and BIG-bench: the formats' traps on small files, and the real files."""

from __future__ import annotations

import json
import shutil

import pytest

from emergence_eval.readers import bigbench, commonsense, maths
from tokenizer.cli import UserError


def test_clozet_in_the_official_format(benchmarks):
    splits = commonsense.CLOZET(data=benchmarks)
    assert list(splits) == ["test"]
    assert [row["gold"] for row in splits["test"]] == [0, 1, 0, 1, 0]
    first, middle, last = splits["test"][:3]
    assert first == {"before": "", "choices": ["没有鱼。猫饿了。", "有0条鱼。猫饿了。"], "gold": 0}
    assert middle["before"] == "猫饿了。" and middle["choices"][0] == "没有鱼。它吃了鱼。"
    assert last["choices"] == ["没有鱼。", "有2条鱼。"]


def test_the_real_row_of_clozet(shared):
    (row,) = commonsense.clozet_rows(shared / "benchmarks/clozet/readme_example.jsonl")
    assert row["gold"] == 1
    assert row["before"].endswith("自己的生日宴会。") and row["choices"][1].startswith(
        "有些单纯的鸟儿赴宴来了。鸟儿一进来"
    )


def test_mgsm_quotation_marks_commas_and_exemplars(benchmarks):
    splits = maths.GSM8K_ZH(data=benchmarks)
    assert [row["answer"] for row in splits["test"]] == ["18", "70000", "-3.5"]
    # A quotation mark is text: the file is not quoted.
    assert splits["test"][0]["question"].startswith('珍妮说 "好"')
    assert splits["test"][0]["solution"] == "答案是 18。"
    # Exemplars are numbered: 2 comes before 10.
    assert [row["question"][4:-4] for row in splits["fewshot"]] == [str(i) for i in range(1, 11)]
    assert splits["fewshot"][0] == {
        "question": "罗杰有 1 个球。",
        "solution": "1 + 1 = 2。\n答案是 2000。",
        "answer": "2000",
    }


def test_the_translation_of_gsm8k_goes_before_mgsm(tmp_path, benchmarks):
    shutil.copytree(benchmarks, tmp_path, dirs_exist_ok=True)
    problem = {"question": "q", "answer": "a\n#### 1", "question_zh": "几个？", "answer_only": "1,200"}
    entries = [
        {**problem, "answer_zh": "一共<<600*2=1200>>1200个。\n#### 1,200", "split": "train"},
        {**problem, "answer_zh": "一共1200个。", "split": "test"},
    ]
    path = tmp_path / "gsm8k-chinese/GSM8K_zh.json"
    path.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    splits = maths.GSM8K_ZH(data=tmp_path)
    row = {"question": "几个？", "solution": "一共1200个。\n答案是 1200。", "answer": "1200"}
    assert splits == {"test": [row], "fewshot": [row]}
    path.write_text('[{"question_zh": "x", "answer_zh": "y", "answer_only": 1}]')
    with pytest.raises(UserError, match="problem 1 has no split"):
        maths.GSM8K_ZH(data=tmp_path)
    path.write_text("{}")
    with pytest.raises(UserError, match="not a list of problems"):
        maths.GSM8K_ZH(data=tmp_path)


def test_real_mgsm_is_the_english_test_set(shared):
    """Row i is row i of GSM8K's test set: the answers agree."""
    english = maths.GSM8K(data=shared / "benchmarks")["test"]
    chinese = maths.GSM8K_ZH(data=shared / "benchmarks")
    assert [row["answer"] for row in chinese["test"]] == [row["answer"] for row in english[:250]]
    assert [row["answer"] for row in chinese["fewshot"]] == ["11", "29", "39", "9", "33", "8", "8", "5"]


def test_bigbench_targets_and_scripts(benchmarks):
    words = bigbench.WORD_UNSCRAMBLE(data=benchmarks)
    assert [row["answers"] for row in words["test"]] == [["the"], ["and"], ["this", "hits"], ["with"]]
    assert words["test"][0]["question"].endswith("English word")
    assert words["fewshot"][0] is words["test"][0]
    sentences = bigbench.IPA_TRANSLITERATE(data=benchmarks)["test"]
    # The first rows of the file name the script of the answer in the target.
    assert sentences[0] == {"question": "IPA: ju doʊnt.\nEnglish:", "answers": ["You don't."]}
    assert [row["answers"] for row in sentences[1:]] == [["aɪ laɪk ɪt."], ["Go."]]
    assert len(bigbench.MODIFIED_ARITHMETIC(data=benchmarks)["test"]) == 6


def test_real_bigbench_parts_and_scripts(shared):
    rows = bigbench.MODIFIED_ARITHMETIC(data=shared / "benchmarks")["test"]
    operations = [row["operation"] for row in rows]
    assert [operations.count(name) for name in bigbench.ARITHMETIC] == [1000] * 6
    assert all(row["question"].count("->") == 7 and row["question"].endswith("->") for row in rows)
    rows = bigbench.IPA_TRANSLITERATE(data=shared / "benchmarks")["test"]
    assert sum(row["question"].endswith("\nIPA:") for row in rows) == 502
    assert sum(row["question"].endswith("\nEnglish:") for row in rows) == 501
    assert sum(len(row["answers"]) > 1 for row in bigbench.WORD_UNSCRAMBLE(data=shared / "benchmarks")["test"]) > 1000
