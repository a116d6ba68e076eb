"""The benchmarks from the Hugging Face hub, written as the official files that the readers take.

    fetch("hellaswag", Path("benchmarks"), datasets.load_dataset)   # benchmarks/hellaswag/hellaswag_val.jsonl

The names, columns and splits are those of the hub's pages; they have been tried with a stand-in for
`datasets.load_dataset`, never against the hub itself. NLPCC-KBQA and BIG-bench's files have no entry.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from emergence_eval.readers.exams import CEVAL_HEADER, CEVAL_SUBJECTS
from emergence_eval.readers.files import FEWSHOT_POOL, LETTERS
from tokenizer.files import write_text

Load = Callable[..., Iterable[dict[str, Any]]]
"""`datasets.load_dataset(path, name, split=..., data_files=...)`: the rows of one split."""

_RACE_EXAMPLES = 20


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_text(path, "".join(_json(row) + "\n" for row in rows))


def _write_csv(path: Path, rows: Iterable[list[Any]]) -> None:
    file = io.StringIO(newline="")
    csv.writer(file).writerows(rows)
    # Not write_text: line breaks inside cells stay as they are.
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.getvalue().encode("utf-8"))


def _first(rows: Iterable[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return [row for row, _ in zip(rows, range(count), strict=False)]


def _triviaqa(load: Load, out: Path) -> None:
    for split, name, count in (("validation", "dev", None), ("train", "train", FEWSHOT_POOL)):
        rows = load("mandarjoshi/trivia_qa", "unfiltered.nocontext", split=split)
        data = [
            {
                "Question": row["question"],
                "QuestionId": row["question_id"],
                "Answer": {"Value": row["answer"]["value"], "Aliases": list(row["answer"]["aliases"])},
            }
            for row in (rows if count is None else _first(rows, count))
        ]
        write_text(out / f"triviaqa/unfiltered-web-{name}.json", _json({"Data": data}))


def _hellaswag(load: Load, out: Path) -> None:
    _write_lines(out / "hellaswag/hellaswag_val.jsonl", load("Rowan/hellaswag", None, split="validation"))


def _race(load: Load, out: Path) -> None:
    for level in ("middle", "high"):
        for split in ("test", "train"):
            passages: dict[str, dict[str, Any]] = {}
            # A row is a question; those of a passage share its name, such as high10001.txt.
            for row in load("ehovy/race", level, split=split):
                name = row["example_id"]
                if name not in passages:
                    if split == "train" and len(passages) == _RACE_EXAMPLES:
                        break
                    passages[name] = {"article": row["article"], "questions": [], "options": [], "answers": []}
                for key, column in (("questions", "question"), ("options", "options"), ("answers", "answer")):
                    passages[name][key].append(row[column])
            for name, passage in passages.items():
                number = "".join(filter(str.isdigit, name))
                write_text(out / f"race/RACE/{split}/{level}/{number}.txt", _json({**passage, "id": name}))


def _winogrande(load: Load, out: Path) -> None:
    _write_lines(out / "winogrande/dev.jsonl", load("allenai/winogrande", "winogrande_xl", split="validation"))


def _mmlu(load: Load, out: Path) -> None:
    for split in ("test", "dev"):
        subjects: dict[str, list[list[str]]] = {}
        for row in load("cais/mmlu", "all", split=split):
            cells = [row["question"], *row["choices"], LETTERS[row["answer"]]]
            subjects.setdefault(row["subject"], []).append(cells)
        for subject, rows in subjects.items():
            _write_csv(out / f"mmlu/data/{split}/{subject}_{split}.csv", rows)


def _ceval(load: Load, out: Path) -> None:
    for subject in CEVAL_SUBJECTS:
        for split in ("val", "dev"):
            header = [*CEVAL_HEADER, "explanation"] if split == "dev" else CEVAL_HEADER
            rows = [[row[column] for column in header] for row in load("ceval/ceval-exam", subject, split=split)]
            _write_csv(out / f"c-eval/{split}/{subject}_{split}.csv", [header, *rows])


def _gsm8k(load: Load, out: Path) -> None:
    for split in ("test", "train"):
        _write_lines(out / f"gsm8k/{split}.jsonl", load("openai/gsm8k", "main", split=split))


def _gsm8k_zh(load: Load, out: Path) -> None:
    rows = list(load("meta-math/GSM8K_zh", None, split="train", data_files="GSM8K_zh.json"))
    write_text(out / "gsm8k-chinese/GSM8K_zh.json", _json(rows))


def _clozet(load: Load, out: Path) -> None:
    for name, pattern in (("train", "clozet/train.jsonl"), ("valid", "clozet/val*.jsonl")):
        rows = [
            {key: str(row[key]) for key in ("story", "plot0", "plot1", "label")}
            for row in load("Jiann/LOT", None, split="train", data_files=pattern)
        ]
        _write_lines(out / f"clozet/{name}.jsonl", rows)


def _c3(load: Load, out: Path) -> None:
    for kind, config in (("d", "dialog"), ("m", "mixed")):
        for split, name in (("validation", "dev"), ("train", "train")):
            documents = []
            for row in load("dataset-org/c3", config, split=split):
                questions = row["questions"]
                if isinstance(questions, dict):
                    # Of a sequence of records the library makes a record of sequences.
                    columns = questions.values()
                    questions = [dict(zip(questions, cells, strict=True)) for cells in zip(*columns, strict=True)]
                kept = [{key: question[key] for key in ("question", "choice", "answer")} for question in questions]
                documents.append([list(row["documents"]), kept, row["document_id"]])
            write_text(out / f"c3/c3-{kind}-{name}.json", _json(documents))


def _cluewsc(load: Load, out: Path) -> None:
    for split, name in (("train", "train"), ("validation", "dev")):
        rows = load("clue/clue", "cluewsc2020", split=split)
        labels = rows.features["label"].names  # the order of "true" and "false" is the hub's
        kept = [{**{key: row[key] for key in ("target", "idx", "text")}, "label": labels[row["label"]]} for row in rows]
        _write_lines(out / f"cluewsc2020/{name}.json", kept)


SOURCES: dict[str, Callable[[Load, Path], None]] = {
    "triviaqa": _triviaqa,
    "hellaswag": _hellaswag,
    "race": _race,
    "winogrande": _winogrande,
    "mmlu": _mmlu,
    "gsm8k": _gsm8k,
    "clozet": _clozet,
    "c3": _c3,
    "cluewsc": _cluewsc,
    "ceval": _ceval,
    "gsm8k_zh": _gsm8k_zh,
}
"""Tasks whose data the hub has."""


def fetch(task: str, out: Path, load: Load) -> None:
    """Write the files of one task of `SOURCES` under `out`, in the layout of its reader."""
    SOURCES[task](load, out)
