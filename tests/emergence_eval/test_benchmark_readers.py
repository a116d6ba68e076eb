"""Every reader: on small files with the formats' traps, on broken files, and on the real files complete."""

from __future__ import annotations

import bz2
import json
import shutil

import pytest

from emergence_eval import definitions
from emergence_eval.readers import commonsense, exams, maths, open_questions, reading
from emergence_eval.readers.files import LETTERS
from tokenizer.cli import UserError

SHARED_ROWS = {
    "triviaqa": 11_313,
    "hellaswag": 10_042,
    "race": 4_934,
    "winogrande": 1_267,
    "mmlu": 14_042,
    "gsm8k": 1_319,
    "nlpcc_kbqa": 9_870 + 618,
    "c3": 1_825 + 1_991,
    "cluewsc": 1_244 + 304,
    "ceval": 1_346,
    "gsm8k_zh": 250,
    "word_unscramble": 8_917,
    "modified_arithmetic": 6_000,
    "ipa_transliterate": 1_003,
}
EVERYTHING = ("emergence", "emergence_variants", "bigbench")
TASKS = {task.name: task for task in definitions.load(EVERYTHING)}
READERS = {name: task.reader for name, task in TASKS.items()}
VARIANTS = {"mmlu_texts": "mmlu", "ceval_texts": "ceval", "gsm8k_direct": "gsm8k", "gsm8k_zh_direct": "gsm8k_zh"}


def test_all_tasks_have_expected_rows():
    """ClozeT alone is not there to be counted; a variant asks for the rows of another task."""
    assert READERS.keys() == SHARED_ROWS.keys() | VARIANTS.keys() | {"clozet"}
    assert all(READERS[name] is READERS[other] for name, other in VARIANTS.items())


@pytest.mark.parametrize("name", SHARED_ROWS)
def test_real_files_are_read_whole(shared, name):
    splits = READERS[name](data=shared / "benchmarks")
    assert len(splits["test"]) == SHARED_ROWS[name]
    for rows in splits.values():
        for row in rows:
            assert list(row) == list(rows.features)
            if "choices" in row:
                assert 0 <= row["gold"] < len(row["choices"])
                assert all(isinstance(choice, str) for choice in row["choices"])
            if "answers" in row:
                assert row["answers"] and all(row["answers"])


def test_real_answers_are_spread_as_published(shared):
    counts = [0] * 4
    for row in commonsense.HELLASWAG(data=shared / "benchmarks")["test"]:
        counts[row["gold"]] += 1
    assert counts == [2515, 2485, 2584, 2458]
    pronouns = commonsense.CLUEWSC(data=shared / "benchmarks")["test"]
    assert sum(row["gold"] for row in pronouns) == 517 + 111


def test_real_hellaswag_subset_agrees_with_the_full_text(shared):
    folder = shared / "benchmarks" / "hellaswag"
    full = commonsense.HELLASWAG.read({"test": [folder / "hellaswag_val_full.txt.bz2"]})["test"]
    by_endings = {tuple("".join(filter(str.isalnum, e.lower())) for e in row["choices"]): row for row in full}
    for row in commonsense.HELLASWAG.read({"test": [folder / "hellaswag_val.subset1000.jsonl"]})["test"]:
        other = by_endings[tuple("".join(filter(str.isalnum, e.lower())) for e in row["choices"])]
        assert other["gold"] == row["gold"]


def test_real_nlpcc_years_and_alternatives(shared):
    folder = shared / "benchmarks" / "nlpcc-kbqa"
    rows = {year: open_questions.nlpcc_rows(folder / f"nlpcc{year}.kbqa.test") for year in (2016, 2017, 2018)}
    assert {year: len(found) for year, found in rows.items()} == {2016: 9870, 2017: 7631, 2018: 618}
    # 12 answers hold `|||`; one of them repeats its triple and has a single answer.
    assert sum(len(row["answers"]) > 1 for row in rows[2018]) == 11


def test_real_mmlu_subjects_have_five_examples(shared):
    for reader, subjects in ((exams.MMLU, 57), (exams.CEVAL, 52)):
        splits = reader(data=shared / "benchmarks")
        names = [row["subject"] for row in splits["fewshot"]]
        assert len(set(names)) == subjects
        assert {names.count(name) for name in names} == {5}
        assert {row["subject"] for row in splits["test"]} == set(names)


def test_hellaswag_json_is_cleaned_as_the_field_does(benchmarks):
    rows = commonsense.HELLASWAG(data=benchmarks)["test"]
    assert rows[0]["query"] == "Pole vault: A woman runs fast. She"
    assert rows[0]["choices"][0] == "jumps. over 0."
    # U+2028 is no end of a JSON line.
    assert rows[0]["choices"][2] == "eats\u2028a cake."
    assert [row["gold"] for row in rows] == [0, 1, 2, 3, 0]


def test_hellaswag_prefers_the_more_complete_file(tmp_path, benchmarks):
    folder = tmp_path / "hellaswag"
    folder.mkdir()
    shutil.copy(benchmarks / "hellaswag/hellaswag_val.jsonl", folder / "hellaswag_val.subset1000.jsonl")
    assert len(commonsense.HELLASWAG(data=tmp_path)["test"]) == 5
    text = "Label: A man sits. he\n3\nruns.\nwalks.\nflies.\nswims.\n"
    (folder / "hellaswag_val_full.txt.bz2").write_bytes(bz2.compress(text.encode()))
    (row,) = commonsense.HELLASWAG(data=tmp_path)["test"]
    assert row == {"query": "Label: A man sits. he", "choices": ["runs.", "walks.", "flies.", "swims."], "gold": 3}


def test_winogrande_is_split_at_the_blank(benchmarks):
    row = commonsense.WINOGRANDE(data=benchmarks)["test"][1]
    assert row["contexts"][0] == "Sarah was better than Maria so Sarah"
    assert row["continuation"] == "always won."
    assert row["gold"] == 1


def test_cluewsc_is_train_and_validation(benchmarks):
    rows = commonsense.CLUEWSC(data=benchmarks)["test"]
    assert [row["gold"] for row in rows] == [1, 0, 1, 1, 0]
    assert (rows[0]["noun"], rows[0]["pronoun"]) == ("伤口", "它们")


def test_race_examples_alternate_between_levels(benchmarks):
    splits = reading.RACE(data=benchmarks)
    assert [row["gold"] for row in splits["test"]] == [1, 0, 1, 0]
    assert [row["level"] for row in splits["fewshot"][:4]] == ["middle", "high", "middle", "high"]
    # Files are numbered: 8 comes before 10.
    assert [row["passage"].split()[-1] for row in splits["fewshot"][::2]] == ["8", "10", "11"]


def test_c3_answers_are_texts_and_options_vary(benchmarks):
    rows = reading.C3(data=benchmarks)["test"]
    assert len(rows) == 8
    assert {(len(row["labels"]), row["gold"]) for row in rows} == {(2, 1), (4, 3)}


def test_exam_cells_stay_strings(benchmarks):
    row = exams.MMLU(data=benchmarks)["test"][0]
    assert row["choices"] == ["None", "1", "a,b", "NA"]
    # Quoted line breaks and U+0085 are part of the cell.
    assert row["question"] == 'abstract_algebra: "None",\nor\x85what 0?'
    assert row["subject"] == "abstract algebra"
    row = exams.CEVAL(data=benchmarks)["test"][0]
    assert row["choices"] == ["1", "2", "3", "4"]
    assert row["subject"] == "法学"


def test_triviaqa_answers_are_parsed_and_examples_have_one(benchmarks):
    splits = open_questions.TRIVIAQA(data=benchmarks)
    assert splits["test"][0] == {"question": 'Who wrote "Book 0"?', "answers": ['The "Author" 0', "Bob's"]}
    assert {len(row["answers"]) for row in splits["fewshot"]} == {1}


def test_triviaqa_official_json(tmp_path, benchmarks):
    shutil.copytree(benchmarks / "triviaqa", tmp_path / "triviaqa")
    answer = {"Value": "Sunset Boulevard", "Aliases": ["Sunset Blvd", "Sunset Boulevard"], "NormalizedAliases": []}
    data = {"Data": [{"Question": "Which musical?", "QuestionId": "tc_33", "Answer": answer}]}
    (tmp_path / "triviaqa/unfiltered-web-dev.json").write_text(json.dumps(data))
    (row,) = open_questions.TRIVIAQA(data=tmp_path)["test"]
    assert row == {"question": "Which musical?", "answers": ["Sunset Boulevard", "Sunset Blvd"]}


def test_nlpcc_line_ends_alternatives_and_missing_triples(benchmarks):
    splits = open_questions.NLPCC_KBQA(data=benchmarks)
    assert [row["answers"] for row in splits["test"]] == [
        ["杨可桢"],
        ["杨可桢"],
        ["176厘米", "176CM"],
        ["贝尔格莱德"],
        ["2013年"],
    ]
    assert len(splits["fewshot"]) == 6


def test_gsm8k_solution_has_no_calculator_marks(benchmarks):
    row = maths.GSM8K(data=benchmarks)["test"][3]
    assert row["solution"] == "It is 3+3 = 6.\nThe answer is 1203."
    assert row["answer"] == "1203"


@pytest.mark.parametrize("name", READERS)
def test_missing_files_are_named_with_a_remedy(tmp_path, name):
    with pytest.raises(UserError, match=r"; (take|unpack)"):
        READERS[name](data=tmp_path)
    with pytest.raises(UserError, match="--data"):
        READERS[name](data=None)
    with pytest.raises(UserError, match="--data"):
        READERS[name](data=tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("hellaswag", "hellaswag/hellaswag_val.jsonl", '{"label": 1}\n', "line 1: no activity_label"),
        ("hellaswag", "hellaswag/hellaswag_val.jsonl", "\n{oops\n", "line 2: invalid JSON"),
        ("winogrande", "winogrande/dev.jsonl", "{}\n", "line 1: no sentence"),
        ("cluewsc", "cluewsc2020/dev.json", '{"target": {}, "label": "1", "text": ""}\n', "line 1: label '1'"),
        ("race", "race/RACE/test/high/10001.txt", '{"article": ""}', "no questions, options, answers"),
        ("c3", "c3/c3-m-dev.json", '[[["a"], [{"question": "q", "choice": ["x"], "answer": "y"}], "1"]]', "'y'"),
        ("c3", "c3/c3-m-dev.json", "[[1]]", "not .paragraphs, questions, id."),
        ("mmlu", "mmlu/data/test/world_religions_test.csv", "a,b,c\n", "line 1: 3 columns where 6"),
        ("mmlu", "mmlu/data/test/world_religions_test.csv", "q,1,2,3,4,E\n", "the answer is 'E'"),
        ("ceval", "c-eval/val/law_val.csv", "id,question,A,B,C,D\n0,q,1,2,3,4\n", "answer are needed"),
        ("triviaqa", "triviaqa/topics.dpr.trivia.test.txt", "question\tDavid\n", "line 1: .*list of answers"),
        ("nlpcc_kbqa", "nlpcc-kbqa/nlpcc2018.kbqa.test", "<question id=1>\tq\n====\n", "id 1 has no question or no"),
        ("nlpcc_kbqa", "nlpcc-kbqa/nlpcc2018.kbqa.test", "what\n", "line 1: a line without"),
        ("gsm8k", "gsm8k/test.jsonl", '{"question": "q", "answer": "1"}\n', "line 1: the answer does not end"),
        ("gsm8k", "gsm8k/test.jsonl", "", "no rows for the split test"),
        ("clozet", "clozet/valid.jsonl", '{"story": "a", "plot0": "", "plot1": "", "label": "0"}', "has 0 <mask>"),
        ("clozet", "clozet/valid.jsonl", '{"story": "<mask>", "plot0": "", "plot1": "", "label": "2"}', "label '2'"),
        ("gsm8k_zh", "gsm8k-chinese/mgsm_zh.tsv", "问题\n", "line 1: 1 columns where 2"),
        ("gsm8k_zh", "gsm8k-chinese/mgsm_zh.tsv", "问题\t许多\n", "line 1: the answer is '许多'"),
        ("gsm8k_zh", "gsm8k-chinese/mgsm_exemplars_zh.json", "{}", "not MGSM's exemplars"),
        ("word_unscramble", "bigbench/word_unscrambling/task.json", "[]", "not BIG-bench's JSON"),
        (
            "ipa_transliterate",
            "bigbench/international_phonetic_alphabet_transliterate/task.json",
            '{"examples": [{"input": "IPA: a", "target": "b"}]}',
            "example 1 does not say into which script",
        ),
    ],
)
def test_malformed_files_are_named(tmp_path, benchmarks, name, file, content, message):
    shutil.copytree(benchmarks, tmp_path, dirs_exist_ok=True)
    (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        READERS[name](data=tmp_path)
    assert content == "" or str(tmp_path / file) in str(caught.value)


def test_bytes_that_are_not_utf8_are_an_error(tmp_path, benchmarks):
    shutil.copytree(benchmarks, tmp_path, dirs_exist_ok=True)
    (tmp_path / "gsm8k/test.jsonl").write_bytes(b'{"question": "\xff"}\n')
    with pytest.raises(UserError, match="not UTF-8 at byte 14"):
        READERS["gsm8k"](data=tmp_path)


def test_task_hash_follows_the_data(tmp_path, benchmarks):
    (task,) = definitions.load(["gsm8k"])
    before = task.task_hash(benchmarks)
    assert before == task.task_hash(benchmarks)
    shutil.copytree(benchmarks, tmp_path, dirs_exist_ok=True)
    assert before == task.task_hash(tmp_path)
    with open(tmp_path / "gsm8k/test.jsonl", "a") as file:
        file.write("\n")
    assert before != task.task_hash(tmp_path)


def test_unknown_task_is_answered_with_all_names():
    with pytest.raises(UserError, match=r"unknown task 'nlu'; tasks: c3, .*groups: bigbench, emergence, "):
        definitions.load(["mmlu", "nlu"])


def test_groups_cover_the_tasks_once():
    names = [task.name for task in definitions.load()]
    assert len(names) == 12
    assert [task.name for task in definitions.load(["emergence_en", "emergence_zh", "mmlu"])] == names
    assert {task.language for task in definitions.load(["emergence_zh"])} == {"zh"}
    kinds = ("closed_book_qa", "commonsense", "reading", "coreference", "examinations", "maths")
    by_kind = [[task.kind for task in definitions.load([f"emergence_{kind}"])] for kind in kinds]
    assert [len(found) for found in by_kind] == [2] * 6
    assert all(len(set(found)) == 1 for found in by_kind)
    assert len(LETTERS) >= 4


def test_settings_are_the_paper_s():
    """Prompting and rows of Table 6 of Du et al. 2024; `emergence` holds nothing else."""
    paper = {
        "triviaqa": ("few-shot", 11_313, 0.0),
        "hellaswag": ("zero-shot", 10_042, 0.25),
        "race": ("few-shot", 4_934, 0.25),
        "winogrande": ("zero-shot", 1_267, 0.5),
        "mmlu": ("few-shot", 14_042, 0.25),
        "gsm8k": ("few-shot chain of thought", 1_319, 0.0),
        "nlpcc_kbqa": ("few-shot", 10_613, 0.0),
        "clozet": ("zero-shot", 938, 0.5),
        "c3": ("few-shot", 3_816, 0.25),
        "cluewsc": ("zero-shot", 508, 0.5),
        "ceval": ("few-shot", 1_346, 0.25),
        "gsm8k_zh": ("few-shot chain of thought", 1_212, 0.0),
    }
    tasks = {task.name: task for task in definitions.load()}
    assert {name: (task.prompting, task.paper_rows) for name, task in tasks.items()} == {
        name: values[:2] for name, values in paper.items()
    }
    for task in TASKS.values():
        assert (task.num_fewshot == 0) == (task.prompting == "zero-shot" or task.name == "modified_arithmetic")
        assert task.metric == ("exact_match" if task.name not in paper or paper[task.name][2] == 0 else "acc") or (
            task.name in ("mmlu_texts", "ceval_texts")
        )


def test_an_optional_task_without_files_is_left_out_of_its_group(tmp_path, benchmarks):
    assert definitions.left_out(["emergence"], benchmarks) == []
    assert len(definitions.load(["emergence"], benchmarks)) == 12
    (line,) = definitions.left_out(["emergence"], tmp_path)
    assert line.startswith("clozet is left out: ClozeT: none of train.jsonl")
    assert "clozet" not in {task.name for task in definitions.load(["emergence_zh"], tmp_path)}
    # Asked for by name it is not left out, and neither is a task that everybody has the files of.
    assert [task.name for task in definitions.load(["emergence_zh", "clozet"], tmp_path)][1] == "clozet"
    assert definitions.left_out(["emergence", "clozet"], tmp_path) == []


def test_real_options_of_c3_are_two_to_four(shared):
    rows = reading.C3(data=shared / "benchmarks")["test"]
    assert {len(row["labels"]) for row in rows} == {2, 3, 4}
    chance = sum(1 / len(row["labels"]) for row in rows) / len(rows)
    assert 0.25 < chance < 0.28
