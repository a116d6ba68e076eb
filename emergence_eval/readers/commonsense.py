"""HellaSwag, WinoGrande, CLUEWSC and ClozeT: zero-shot choices between texts.

HellaSwag is read from the official JSON lines or, where only that is at hand, from the plain text of the
same rows (six lines a row), where the second half of a context is not capitalised. The JSON lines give the
prompt of the field (lm-evaluation-harness, hellaswag).
"""

from __future__ import annotations

import bz2
import re
from pathlib import Path

from emergence_eval.readers.files import Files, Reader, Row, first_file, malformed, read_json_lines, read_text


def _clean_wikihow(text: str) -> str:
    """The field's removal of WikiHow's `[header]`, `[title]`, `[step]` marks."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _find_hellaswag(data: Path) -> Files:
    names = (
        "hellaswag_val.jsonl",
        "hellaswag_val_full.txt.bz2",
        "hellaswag_val_full.txt",
        "hellaswag_val.subset1000.jsonl",
    )
    remedy = "take hellaswag_val.jsonl from data/ of github.com/rowanz/hellaswag"
    return {"test": [first_file(data, "HellaSwag", "hellaswag", names, remedy)]}


def _hellaswag_json(path: Path) -> list[Row]:
    rows = []
    for line, row in read_json_lines(path, ("activity_label", "ctx_a", "ctx_b", "endings", "label")):
        context = row["ctx_a"] + " " + row["ctx_b"].capitalize()
        endings = [_clean_wikihow(ending).strip() for ending in row["endings"]]
        if not (str(row["label"]).isdigit() and int(row["label"]) < len(endings)):
            raise malformed(path, line, f"label {row['label']!r} with {len(endings)} endings")
        query = _clean_wikihow(f"{row['activity_label']}: {context}")
        rows.append({"query": query, "choices": endings, "gold": int(row["label"])})
    return rows


def _hellaswag_text(path: Path) -> list[Row]:
    if path.suffix == ".bz2":
        try:
            text = bz2.decompress(path.read_bytes()).decode("utf-8")
        except (OSError, ValueError) as error:
            raise malformed(path, None, f"not a bzip2 file of UTF-8 text ({error})") from error
    else:
        text = read_text(path)
    lines = [line.rstrip("\r") for line in text.rstrip("\n").split("\n")]
    if len(lines) % 6:
        raise malformed(path, len(lines), "the number of lines is no multiple of 6 (query, label, 4 endings)")
    rows = []
    for start in range(0, len(lines), 6):
        query, label, *endings = lines[start : start + 6]
        if label.strip() not in ("0", "1", "2", "3"):
            raise malformed(path, start + 2, f"label {label!r}, not 0 to 3")
        rows.append({"query": query.strip(), "choices": [e.strip() for e in endings], "gold": int(label)})
    return rows


def _read_hellaswag(files: Files) -> dict[str, list[Row]]:
    (path,) = files["test"]
    return {"test": _hellaswag_json(path) if path.suffix == ".jsonl" else _hellaswag_text(path)}


def _find_winogrande(data: Path) -> Files:
    names = ("dev.jsonl", "winogrande_1.1/dev.jsonl")
    remedy = "unpack winogrande_1.1.zip of github.com/allenai/winogrande there"
    return {"test": [first_file(data, "WinoGrande", "winogrande", names, remedy)]}


def _read_winogrande(files: Files) -> dict[str, list[Row]]:
    (path,) = files["test"]
    rows = []
    for line, row in read_json_lines(path, ("sentence", "option1", "option2", "answer")):
        before, blank, after = row["sentence"].partition("_")
        if not blank or not after.strip():
            raise malformed(path, line, "the sentence has no `_` with text behind it")
        if row["answer"] not in ("1", "2"):
            raise malformed(path, line, f"answer {row['answer']!r}, not '1' or '2'")
        # Partial-sentence scoring (Trinh & Le 2018): what follows the blank is scored after each option.
        rows.append(
            {
                "contexts": [before + row["option1"], before + row["option2"]],
                "continuation": after.strip(),
                "gold": int(row["answer"]) - 1,
            }
        )
    return {"test": rows}


def _find_cluewsc(data: Path) -> Files:
    remedy = "unpack cluewsc2020_public.zip of github.com/CLUEbenchmark/CLUE there"
    names = ("train.json", "dev.json")
    return {"test": [first_file(data, "CLUEWSC", "cluewsc2020", (name,), remedy) for name in names]}


def _read_cluewsc(files: Files) -> dict[str, list[Row]]:
    rows = []
    for path in files["test"]:
        for line, row in read_json_lines(path, ("target", "label", "text")):
            # The labels are the strings "true" and "false"; the unlabelled test file has none.
            if row["label"] not in ("true", "false"):
                raise malformed(path, line, f"label {row['label']!r}, not 'true' or 'false'")
            target, text = row["target"], row["text"]
            for span in ("span1", "span2"):
                start, words = target[f"{span}_index"], target[f"{span}_text"]
                if text[start : start + len(words)] != words:
                    raise malformed(path, line, f"{words!r} is not at character {start} of the text")
            rows.append(
                {
                    "text": text,
                    "noun": target["span1_text"],
                    "pronoun": target["span2_text"],
                    "gold": int(row["label"] == "true"),
                }
            )
    return {"test": rows}


MASK = "<mask>"


def _find_clozet(data: Path) -> Files:
    remedy = "take clozet/ from huggingface.co/datasets/Jiann/LOT or github.com/thu-coai/LOT-LongLM"

    def file(*names: str) -> Path:
        return first_file(data, "ClozeT", "clozet", names, remedy)

    return {"test": [file("train.jsonl"), file("valid.jsonl", "val.jsonl", "dev.jsonl")]}


def clozet_rows(path: Path) -> list[Row]:
    """The stories of one file: what stands before the removed sentence, and the two ways to go on from there to
    the end. Both are scored whole: the sentence may be the first or the last of the story."""
    rows = []
    for line, row in read_json_lines(path, ("story", "plot0", "plot1", "label")):
        if row["story"].count(MASK) != 1:
            raise malformed(path, line, f"the story has {row['story'].count(MASK)} {MASK} where one is expected")
        if str(row["label"]) not in ("0", "1"):
            raise malformed(path, line, f"label {row['label']!r}, not '0' or '1'")
        before, _, after = row["story"].strip().partition(MASK)
        rows.append(
            {
                "before": before,
                "choices": [row[key].strip() + after for key in ("plot0", "plot1")],
                "gold": int(row["label"]),
            }
        )
    return rows


def _read_clozet(files: Files) -> dict[str, list[Row]]:
    return {"test": [row for path in files["test"] for row in clozet_rows(path)]}


HELLASWAG = Reader("HellaSwag", _find_hellaswag, _read_hellaswag)
WINOGRANDE = Reader("WinoGrande", _find_winogrande, _read_winogrande)
CLUEWSC = Reader("CLUEWSC", _find_cluewsc, _read_cluewsc)
CLOZET = Reader("ClozeT", _find_clozet, _read_clozet)
