"""TriviaQA and NLPCC-KBQA: closed-book questions with an open answer.

Few-shot examples come from the training questions, in the order of the file.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from emergence_eval.readers.files import (
    FEWSHOT_POOL,
    Files,
    Reader,
    Row,
    first_file,
    malformed,
    read_csv,
    read_json,
    read_text,
)


def _find_triviaqa(data: Path) -> Files:
    remedy = (
        "take the DPR question files (trivia-test.qa.csv is the official unfiltered dev set, trivia-dev.qa.csv "
        "is held out of train) or the official triviaqa-unfiltered release"
    )

    def file(*names: str) -> Path:
        return first_file(data, "TriviaQA", "triviaqa", names, remedy)

    return {
        "test": [
            file(
                "unfiltered-web-dev.json",
                "triviaqa-unfiltered/unfiltered-web-dev.json",
                "topics.dpr.trivia.test.txt",
                "trivia-test.qa.csv",
            )
        ],
        "fewshot": [
            file(
                "topics.dpr.trivia.dev.txt",
                "trivia-dev.qa.csv",
                "unfiltered-web-train.json",
                "triviaqa-unfiltered/unfiltered-web-train.json",
            )
        ],
    }


def _triviaqa_dpr(path: Path) -> Iterator[Row]:
    for line, (question, cell) in read_csv(path, columns=2, delimiter="\t"):
        try:
            answers = ast.literal_eval(cell)
        except (SyntaxError, ValueError) as error:
            raise malformed(path, line, "the second column is no list of answers") from error
        if not isinstance(answers, list) or not answers:
            raise malformed(path, line, "the second column is no list of answers")
        yield {"question": question.strip(), "answers": [str(answer) for answer in answers]}


def _triviaqa_json(path: Path) -> Iterator[Row]:
    try:
        for entry in read_json(path)["Data"]:
            answer = entry["Answer"]
            answers = list(dict.fromkeys([answer["Value"], *answer["Aliases"]]))
            yield {"question": entry["Question"].strip(), "answers": answers}
    except (TypeError, KeyError) as error:
        raise malformed(path, None, f"not TriviaQA's JSON (Data, Question, Answer.Aliases): {error}") from error


def _read_triviaqa(files: Files) -> dict[str, list[Row]]:
    (test,), (train,) = files["test"], files["fewshot"]
    examples = _triviaqa_json(train) if train.suffix == ".json" else _triviaqa_dpr(train)
    if train.suffix != ".json":
        # The DPR files list aliases in no order (a helicopter's first one is an emoji), so that only a
        # question with one accepted answer shows what an answer looks like.
        examples = (row for row in examples if len(row["answers"]) == 1)
    return {
        "test": list(_triviaqa_json(test) if test.suffix == ".json" else _triviaqa_dpr(test)),
        "fewshot": list(islice(examples, FEWSHOT_POOL)),
    }


def _find_nlpcc(data: Path) -> Files:
    remedy = "take it from github.com/nanduan/NLPCC-KBQA or the task's own release"

    def file(*names: str) -> Path:
        return first_file(data, "NLPCC-KBQA", "nlpcc-kbqa", names, remedy)

    training = "nlpcc-iccpol-2016.kbqa.training-data"
    return {
        # 2017 has no triples, and questions that the knowledge base does not answer.
        "test": [file("nlpcc2016.kbqa.test"), file("nlpcc2018.kbqa.test")],
        "fewshot": [file(training, f"{training}.first500")],
    }


_TAGGED = re.compile(r"<(question|triple|answer) id=(\d+)>\s*(.*)")


def nlpcc_rows(path: Path) -> list[Row]:
    """Questions and accepted answers of a file of tagged blocks (any of the three years)."""
    rows: list[Row] = []
    block: dict[str, Any] = {}
    # Some files have CRLF line ends; text may hold other characters that splitlines() would split at.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        line = line.strip()
        if not line:
            continue
        if set(line) == {"="}:
            rows += _nlpcc_row(path, number, block)
            block = {}
            continue
        tagged = _TAGGED.fullmatch(line)
        if tagged is None:
            raise malformed(path, number, "a line without <question>, <triple> or <answer>")
        tag, identifier, text = tagged.groups()
        if block.setdefault("id", identifier) != identifier:
            raise malformed(path, number, f"id {identifier} in the block of id {block['id']}")
        block[tag] = text.strip()
    return rows + _nlpcc_row(path, None, block)


def _nlpcc_row(path: Path, line: int | None, block: dict[str, Any]) -> list[Row]:
    if not block:
        return []
    if "question" not in block or "answer" not in block:
        raise malformed(path, line, f"the block of id {block['id']} has no question or no answer")
    answers = [part.strip() for part in block["answer"].split("|||") if part.strip()]
    triple = [part.strip() for part in block.get("triple", "").split("|||")]
    # One answer of 2018 repeats the whole triple: its object is the answer, its subject is not.
    if len(triple) == 3 and answers[:2] == triple[:2]:
        answers = answers[2:]
    return [{"question": block["question"], "answers": answers}]


def _read_nlpcc(files: Files) -> dict[str, list[Row]]:
    return {
        "test": [row for path in files["test"] for row in nlpcc_rows(path)],
        "fewshot": nlpcc_rows(files["fewshot"][0])[:FEWSHOT_POOL],
    }


TRIVIAQA = Reader("TriviaQA", _find_triviaqa, _read_triviaqa)
NLPCC_KBQA = Reader("NLPCC-KBQA", _find_nlpcc, _read_nlpcc)
