"""RACE and C3: passages with questions that have two to four options.

Each few-shot example is the first question of another passage, taken in turn from the two halves of the
benchmark (middle and high school; dialogues and mixed texts).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emergence_eval.readers.files import (
    LETTERS,
    Files,
    Reader,
    Row,
    alternate,
    first_file,
    first_folder,
    letter_index,
    malformed,
    read_json,
)

RACE_LEVELS = ("middle", "high")
RACE_KEYS = ("article", "questions", "options", "answers")


def _race_number(path: Path) -> tuple[int, str]:
    return (int(path.stem) if path.stem.isdigit() else 0, path.name)


def _find_race(data: Path) -> Files:
    remedy = "unpack RACE.tar.gz of www.cs.cmu.edu/~glai1/data/race there"
    folder = first_folder(data, "RACE", ("race/RACE", "RACE", "race"), remedy)
    files = {}
    for split, name in (("test", "test"), ("fewshot", "train")):
        files[split] = []
        for level in RACE_LEVELS:
            found = sorted((folder / name / level).glob("*.txt"), key=_race_number)
            if not found:
                raise malformed(folder / name / level, None, "RACE needs files <number>.txt here, none found")
            # The training split has 25,421 passages; the first few serve as examples.
            files[split] += found if split == "test" else found[:20]
    return files


def _race_passage(path: Path) -> list[Row]:
    passage = read_json(path)
    missing = [key for key in RACE_KEYS if not isinstance(passage, dict) or key not in passage]
    if missing:
        raise malformed(path, None, f"no {', '.join(missing)}")
    questions, options, answers = passage["questions"], passage["options"], passage["answers"]
    if not len(questions) == len(options) == len(answers):
        raise malformed(path, None, f"{len(questions)} questions, {len(options)} option lists, {len(answers)} answers")
    return [
        {
            "passage": passage["article"].strip(),
            "question": question.strip(),
            "choices": [choice.strip() for choice in choices],
            "labels": list(LETTERS[: len(choices)]),
            "gold": letter_index(path, None, answer, len(choices)),
            "level": path.parent.name,
        }
        for question, choices, answer in zip(questions, options, answers, strict=True)
    ]


def _read_race(files: Files) -> dict[str, list[Row]]:
    first = [_race_passage(path)[0] for path in files["fewshot"]]
    return {
        "test": [row for path in files["test"] for row in _race_passage(path)],
        "fewshot": alternate(*([row for row in first if row["level"] == level] for level in RACE_LEVELS)),
    }


def _find_c3(data: Path) -> Files:
    remedy = "take it from data/ of github.com/nlpdata/c3"

    def file(*names: str) -> Path:
        return first_file(data, "C3", "c3", names, remedy)

    return {
        "test": [file("c3-d-dev.json"), file("c3-m-dev.json")],
        "fewshot": [file(f"c3-{kind}-train.json", f"c3-{kind}-train.first200.json") for kind in "dm"],
    }


def _c3_document(path: Path, document: Any) -> list[Row]:
    try:
        paragraphs, questions, identifier = document
        rows = []
        for question in questions:
            choices = question["choice"]
            # The answer is the text of the right choice, not its letter.
            if question["answer"] not in choices:
                raise malformed(path, None, f"{identifier}: the answer {question['answer']!r} is no choice")
            rows.append(
                {
                    "passage": "\n".join(paragraphs),
                    "question": question["question"].strip(),
                    "choices": choices,
                    "labels": list(LETTERS[: len(choices)]),
                    "gold": choices.index(question["answer"]),
                }
            )
    except (TypeError, ValueError, KeyError) as error:
        raise malformed(path, None, "an entry is not [paragraphs, questions, id]") from error
    return rows


def _c3_documents(path: Path) -> list[list[Row]]:
    return [_c3_document(path, document) for document in read_json(path)]


def _read_c3(files: Files) -> dict[str, list[Row]]:
    return {
        "test": [row for path in files["test"] for rows in _c3_documents(path) for row in rows],
        "fewshot": alternate(*([rows[0] for rows in _c3_documents(path)[:20] if rows] for path in files["fewshot"])),
    }


RACE = Reader("RACE", _find_race, _read_race)
C3 = Reader("C3", _find_c3, _read_c3)
