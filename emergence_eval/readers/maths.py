"""GSM8K in English and in Chinese: word problems with a worked solution and a number.

Chinese problems are read from the machine translation GSM8K_zh.json where it is at hand, else from MGSM-zh, human
translations of the first 250 test problems with eight worked exemplars and no worked solutions.
"""

from __future__ import annotations

import re
from pathlib import Path

from emergence_eval.readers.files import (
    FEWSHOT_POOL,
    Files,
    Reader,
    Row,
    first_file,
    malformed,
    read_csv,
    read_json,
    read_json_lines,
)

TRANSLATION = "GSM8K_zh.json"


def _number(text: str) -> str:
    return text.strip().replace(",", "").replace("，", "")


def _without_marks(steps: str) -> str:
    """Calculator marks such as <<48/2=24>> belong to the authors' training, not to the text."""
    return re.sub(r"<<.*?>>", "", steps).strip()


def _find_gsm8k(data: Path) -> Files:
    remedy = "take it from grade_school_math/data of github.com/openai/grade-school-math"
    train = first_file(data, "GSM8K", "gsm8k", ("train.jsonl", "train.first500.jsonl"), remedy)
    return {"test": [first_file(data, "GSM8K", "gsm8k", ("test.jsonl",), remedy)], "fewshot": [train]}


def _gsm8k_rows(path: Path) -> list[Row]:
    rows = []
    for line, row in read_json_lines(path, ("question", "answer")):
        steps, mark, number = row["answer"].rpartition("####")
        if not mark:
            raise malformed(path, line, "the answer does not end in `#### <number>`")
        answer = _number(number)
        rows.append(
            {
                "question": row["question"].strip(),
                "solution": f"{_without_marks(steps)}\nThe answer is {answer}.",
                "answer": answer,
            }
        )
    return rows


def _read_gsm8k(files: Files) -> dict[str, list[Row]]:
    return {
        "test": _gsm8k_rows(files["test"][0]),
        "fewshot": _gsm8k_rows(files["fewshot"][0])[:FEWSHOT_POOL],
    }


def _find_gsm8k_zh(data: Path) -> Files:
    folder = "gsm8k-chinese"
    remedy = (
        f"take {TRANSLATION} from huggingface.co/datasets/meta-math/GSM8K_zh, or mgsm_zh.tsv and the Chinese "
        "exemplars from mgsm/ of github.com/google-research/url-nlp"
    )
    test = first_file(data, "GSM8K in Chinese", folder, (TRANSLATION, "mgsm_zh.tsv"), remedy)
    if test.name == TRANSLATION:
        return {"test": [test], "fewshot": [test]}
    return {"test": [test], "fewshot": [first_file(data, "MGSM-zh", folder, ("mgsm_exemplars_zh.json",), remedy)]}


def _solution_zh(steps: str, answer: str) -> str:
    return f"{steps.strip()}\n答案是 {answer}。"


def _translated(path: Path, split: str) -> list[Row]:
    """The rows of one split of the machine translation: a list of objects with `question_zh`, `answer_zh` (the
    worked solution), `answer_only` (the number) and `split`."""
    rows = []
    entries = read_json(path)
    if not isinstance(entries, list):
        raise malformed(path, None, "not a list of problems")
    for number, entry in enumerate(entries, 1):
        keys = ("question_zh", "answer_zh", "answer_only", "split")
        missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if missing:
            raise malformed(path, None, f"problem {number} has no {', '.join(missing)}")
        if entry["split"] != split:
            continue
        answer = _number(str(entry["answer_only"]))
        steps = _without_marks((entry["answer_zh"] or "").partition("####")[0])
        question = (entry["question_zh"] or "").strip()
        if not question or not answer:
            raise malformed(path, None, f"problem {number} has an empty question or answer")
        rows.append({"question": question, "solution": _solution_zh(steps, answer), "answer": answer})
    return rows


def _mgsm(path: Path) -> list[Row]:
    rows = []
    for line, (question, number) in read_csv(path, columns=2, delimiter="\t", quoted=False):
        answer = _number(number)
        if not re.fullmatch(r"-?\d+(\.\d+)?", answer):
            raise malformed(path, line, f"the answer is {number!r}, no number")
        # There is no worked solution: the reference is the sentence that ends those of the exemplars.
        rows.append({"question": question.strip(), "solution": f"答案是 {answer}。", "answer": answer})
    return rows


def _mgsm_exemplars(path: Path) -> list[Row]:
    content = read_json(path)
    try:
        exemplars = content["MGSM_EXEMPLARS"]["zh"]
        rows = []
        for key in sorted(exemplars, key=int):
            question, solution = exemplars[key]["q"], exemplars[key]["a"]
            found = re.search(r"答案是\s*(-?[\d,.]*\d)\s*。?\s*$", solution)
            if not found:
                raise malformed(path, None, f"exemplar {key} does not end in 答案是 <number>。")
            answer = _number(found.group(1))
            steps = solution[: found.start()].removeprefix("逐步解答：")
            solution = _solution_zh(steps, answer)
            question = question.removeprefix("问题：").strip()
            rows.append({"question": question, "solution": solution, "answer": answer})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise malformed(path, None, f"not MGSM's exemplars (MGSM_EXEMPLARS.zh.<n>.q and .a): {error!r}") from error
    return rows


def _read_gsm8k_zh(files: Files) -> dict[str, list[Row]]:
    (test,), (examples,) = files["test"], files["fewshot"]
    if test.name == TRANSLATION:
        return {"test": _translated(test, "test"), "fewshot": _translated(test, "train")[:FEWSHOT_POOL]}
    return {"test": _mgsm(test), "fewshot": _mgsm_exemplars(examples)}


GSM8K = Reader("GSM8K", _find_gsm8k, _read_gsm8k)
GSM8K_ZH = Reader("GSM8K in Chinese", _find_gsm8k_zh, _read_gsm8k_zh)
