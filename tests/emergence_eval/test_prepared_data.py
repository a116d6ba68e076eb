"""The data command: from files that are at hand, from a stand-in for the hub, and what it says about the rows."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from emergence_eval import data, definitions, hub
from emergence_eval.readers.exams import CEVAL_SUBJECTS
from tokenizer.cli import UserError

TASKS = {task.name: task for task in definitions.load(["emergence", "bigbench"])}


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_are_copied_as_they_are(benchmarks, tmp_path, capsys):
    assert data.main(["--out", str(tmp_path / "out"), "--from", str(benchmarks)]) == 0
    assert files(tmp_path / "out").items() <= files(benchmarks).items()
    for task in TASKS.values():
        assert task.task_hash(tmp_path / "out") == task.task_hash(benchmarks)
    output = capsys.readouterr().out
    assert "15 of 15 data sets can be evaluated" in output
    # Five rows of HellaSwag where the paper has 10,042.
    assert [cell.strip() for cell in next(li for li in output.splitlines() if "hellaswag" in li).split("│")[1:5]] == [
        *("hellaswag", "5", "10,042", "-10,037")
    ]


def test_what_is_there_is_kept_and_what_is_missing_is_named(benchmarks, tmp_path, capsys):
    source = shutil.copytree(benchmarks, tmp_path / "source")
    out = tmp_path / "out"
    shutil.rmtree(source / "clozet")
    (source / "gsm8k/test.jsonl").write_text("{}\n")
    assert data.main(["--out", str(out), "--from", str(source)]) == 0
    output = capsys.readouterr().out
    assert "13 of 15 data sets" in output
    assert "clozet: ClozeT: none of train.jsonl in" in output
    assert "gsm8k: " in output and "line 1: no question, answer" in output
    # A data set that cannot be read is not copied in part.
    assert not (out / "gsm8k").exists()
    shutil.copytree(benchmarks / "gsm8k", source / "gsm8k", dirs_exist_ok=True)
    shutil.rmtree(source / "mmlu")
    assert data.main(["--out", str(out), "--from", str(source)]) == 0
    assert "14 of 15 data sets" in capsys.readouterr().out
    before = files(out)
    assert data.main(["--out", str(out), "--from", str(out), "--tasks", "emergence_en"]) == 0
    assert files(out) == before
    assert "6 of 6 data sets" in capsys.readouterr().out


class HubRows(list):
    """Rows of a split with the one feature that is asked for."""

    @property
    def features(self):
        return {"label": type("ClassLabel", (), {"names": ["true", "false"]})}


def stand_in(benchmarks):
    """`datasets.load_dataset` with the hub's names, columns and types, on the rows of the small official files."""

    def lines(path):
        return [json.loads(line) for line in (benchmarks / path).read_text().split("\n") if line.strip()]

    def trivia(split):
        rows = [("Who sang it?", "Singer", ["Singer", "The Singer"])] * (100 if split == "train" else 3)
        return [
            {"question": q, "question_id": f"tc_{i}", "answer": {"value": value, "aliases": aliases}}
            for i, (q, value, aliases) in enumerate(rows)
        ]

    def race(level, split):
        rows = []
        for path in sorted((benchmarks / "race/RACE" / split / level).glob("*.txt"), key=lambda p: int(p.stem)):
            passage = json.loads(path.read_text())
            columns = (passage[key] for key in ("questions", "options", "answers"))
            for question, options, answer in zip(*columns, strict=True):
                row = {"example_id": f"{level}{path.stem}.txt", "article": passage["article"]}
                rows.append({**row, "question": question, "options": options, "answer": answer})
        return rows

    def mmlu(split):
        cells = {"question": 'what,\n"is" it?', "choices": ["None", "1", "a,b", "NA"]}
        return [{**cells, "subject": s, "answer": i % 4} for s in ("abstract_algebra", "law") for i in range(5)]

    def ceval(split):
        row = dict(
            zip("ABCD", "1234", strict=True),
            question="几个？",
            answer="B",
            explanation="" if split == "val" else "因为",
        )
        return [{"id": i, **row} for i in range(2 if split == "val" else 5)]

    def c3(config):
        questions = {
            "question": ["谈什么?", "谁?"],
            "answer": ["工作", "她"],
            "choice": [["旅行", "工作"], ["他", "她"]],
        }
        return [{"documents": ["男：好。", "女：是。"], "document_id": f"{config}-1", "questions": questions}]

    def cluewsc(split):
        rows = lines(f"cluewsc2020/{'dev' if split == 'validation' else split}.json")
        return HubRows({**row, "label": ["true", "false"].index(row["label"])} for row in rows)

    def gsm8k_zh():
        problem = {
            "question": "q",
            "answer": "a #### 1",
            "question_zh": "几个？",
            "answer_zh": "一个。",
            "answer_only": "1",
        }
        return [{**problem, "split": split} for split in ("train", "test", "test")]

    def load(path, name=None, split=None, data_files=None):
        return {
            "mandarjoshi/trivia_qa": lambda: trivia(split),
            "Rowan/hellaswag": lambda: lines("hellaswag/hellaswag_val.jsonl"),
            "ehovy/race": lambda: race(name, split),
            "allenai/winogrande": lambda: lines("winogrande/dev.jsonl"),
            "cais/mmlu": lambda: mmlu(split),
            "ceval/ceval-exam": lambda: ceval(split),
            "openai/gsm8k": lambda: lines(f"gsm8k/{split}.jsonl" if split == "test" else "gsm8k/train.first500.jsonl"),
            "meta-math/GSM8K_zh": gsm8k_zh,
            "Jiann/LOT": lambda: lines(f"clozet/{'train' if 'train' in data_files else 'valid'}.jsonl"),
            "dataset-org/c3": lambda: c3(name),
            "clue/clue": lambda: cluewsc(split),
        }[path]()

    return load


def test_the_hub_s_rows_become_the_official_files(benchmarks, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    out = tmp_path / "out"
    assert data.main(["--out", str(out), "--tasks", "emergence"], load=stand_in(benchmarks)) == 0
    output = capsys.readouterr().out
    assert "11 of 12 data sets" in output
    assert "nlpcc_kbqa: not on the hub; NLPCC-KBQA: none of" in output
    assert not list(out.glob(".fetching*"))
    for name in ("hellaswag", "race", "winogrande", "cluewsc", "gsm8k", "clozet"):
        assert TASKS[name].reader(data=out) == TASKS[name].reader(data=benchmarks), name
    rows = {name: TASKS[name].reader(data=out) for name in hub.SOURCES}
    assert rows["triviaqa"]["test"][0] == {"question": "Who sang it?", "answers": ["Singer", "The Singer"]}
    assert len(rows["triviaqa"]["fewshot"]) == 64
    assert rows["mmlu"]["test"][5]["subject"] == "law" and rows["mmlu"]["test"][0]["choices"][0] == "None"
    assert rows["mmlu"]["test"][0]["question"] == 'what,\n"is" it?'
    assert len(rows["ceval"]["test"]) == 2 * len(CEVAL_SUBJECTS) and rows["ceval"]["test"][0]["gold"] == 1
    assert [row["choices"][row["gold"]] for row in rows["c3"]["test"]] == ["工作", "她"] * 2
    assert len(rows["gsm8k_zh"]["test"]) == 2 and len(rows["gsm8k_zh"]["fewshot"]) == 1


def test_what_the_hub_does_not_give_is_said_in_a_line(benchmarks, tmp_path, capsys):
    def broken(path, *arguments, **options):
        if path == "openai/gsm8k":
            return [{"question": "q", "answer": "no number"}]
        if path == "cais/mmlu":
            raise ConnectionError("cannot reach the hub\nsee the traceback")
        return stand_in(benchmarks)(path, *arguments, **options)

    arguments = ["--out", str(tmp_path / "out"), "--tasks"]
    assert data.main([*arguments, "gsm8k,mmlu,winogrande"], load=broken) == 0
    output = capsys.readouterr().out
    assert "mmlu: the hub: ConnectionError: cannot reach the hub\n" in output
    assert "gsm8k: " in output and "does not end in" in output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["winogrande"]
    with pytest.raises(
        UserError, match=r"no data set on the hub .* mmlu: the hub: ConnectionError: cannot reach the hub$"
    ):
        data.main([*arguments, "mmlu"], load=broken)


def test_mistakes_are_said_in_a_line(tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"--from .*nothing: no such directory"):
        data.main(["--out", str(tmp_path / "out"), "--from", str(tmp_path / "nothing")])
    with pytest.raises(UserError, match="unknown task"):
        data.main(["--out", str(tmp_path / "out"), "--from", str(empty), "--tasks", "x"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        data.main(["--out", str(tmp_path / "out")])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        data.main(["--out", str(tmp_path / "file"), "--from", str(empty)])
    command = [sys.executable, "-m", "emergence_eval.data", "--out", str(tmp_path / "out"), "--from", str(empty)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: no data set under {empty} that could be used; triviaqa: TriviaQA: none of")
    assert done.stderr.count("\n") == 1 and done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_the_real_files(shared, tmp_path, capsys):
    assert data.main(["--out", str(tmp_path), "--from", str(shared / "benchmarks")]) == 0
    output = capsys.readouterr().out
    assert "14 of 15 data sets" in output
    lines = [[cell.strip() for cell in line.split("│")] for line in output.splitlines()]
    table = {cells[1]: cells[2:5] for cells in lines if len(cells) > 5}
    differing = {name: cells[2] for name, cells in table.items() if cells[1] and cells[2] != "none"}
    assert differing == {"clozet": "", "nlpcc_kbqa": "-125", "cluewsc": "+1,040", "gsm8k_zh": "-962"}
    assert "gsm8k_zh: MGSM-zh" in output and "clozet: ClozeT: none of" in output
