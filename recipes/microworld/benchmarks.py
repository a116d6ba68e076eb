"""The twelve benchmarks of a micro-world in the official file formats of those that they mirror.

`emergence_eval/readers` reads them as it reads the originals; nothing there knows that the world is small.

| mirrors | task | folder |
|---|---|---|
| TriviaQA, NLPCC-KBQA | closed-book questions about people | triviaqa/, nlpcc-kbqa/ |
| HellaSwag, ClozeT | how an activity goes on | hellaswag/, clozet/ |
| RACE, C3 | where a thing of a passage is | race/, c3/ |
| WinoGrande, CLUEWSC | which of two nouns a reason is about | winogrande/, cluewsc2020/ |
| MMLU, C-Eval | examinations with letters in three subjects | mmlu/, c-eval/ |
| GSM8K, GSM8K-Chinese | word problems with worked steps | gsm8k/, gsm8k-chinese/ |
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

from recipes.microworld.blocks import Choice, Passage, Problem, scene_text
from recipes.microworld.items import EXAM_EXAMPLES, FEWSHOT_ROWS, Items

Files = dict[str, str]
"""Path below the benchmarks' directory to the text of the file."""


def english_files(items: Items) -> Files:
    """The six English benchmarks."""
    return {
        **_triviaqa(items),
        **_hellaswag(items),
        **_race(items),
        **_winogrande(items),
        **_mmlu(items),
        **_gsm8k(items),
    }


def chinese_files(items: Items) -> Files:
    """The six Chinese benchmarks."""
    return {**_nlpcc(items), **_clozet(items), **_c3(items), **_cluewsc(items), **_ceval(items), **_gsm8k_zh(items)}


def _json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def _triviaqa(items: Items) -> Files:
    def data(questions: Iterable) -> str:
        rows = [{"Question": it.question, "Answer": {"Value": it.answer, "Aliases": [it.answer]}} for it in questions]
        return json.dumps({"Data": rows}, ensure_ascii=False, indent=1)

    return {
        "triviaqa/unfiltered-web-dev.json": data(items.facts()),
        "triviaqa/unfiltered-web-train.json": data(items.asked_facts()),
    }


def _nlpcc(items: Items) -> Files:
    def blocks(questions: Iterable) -> str:
        return "".join(
            f"<question id={number}>\t{it.question}\n<answer id={number}>\t{it.answer}\n{'=' * 18}\n"
            for number, it in enumerate(questions, 1)
        )

    facts = items.facts()
    # The original has the questions of two years.
    return {
        "nlpcc-kbqa/nlpcc2016.kbqa.test": blocks(facts[::2]),
        "nlpcc-kbqa/nlpcc2018.kbqa.test": blocks(facts[1::2]),
        "nlpcc-kbqa/nlpcc-iccpol-2016.kbqa.training-data": blocks(items.asked_facts()),
    }


def _hellaswag(items: Items) -> Files:
    rows = []
    for index, it in enumerate(items.continuations()):
        label, _, start = it.start.partition(": ")
        rows.append(
            {"ind": index, "activity_label": label, "ctx_a": start, "ctx_b": "", "endings": it.ways, "label": it.gold}
        )
    return {"hellaswag/hellaswag_val.jsonl": _json_lines(rows)}


def _clozet(items: Items) -> Files:
    rows = []
    for index, it in enumerate(items.continuations()):
        # Two of the four ways: the right one in the first place and in the second by turns.
        wrong = it.ways[(it.gold + 1) % 4]
        plots = [it.ways[it.gold], wrong] if index % 2 == 0 else [wrong, it.ways[it.gold]]
        story = f"{it.start}<mask>{it.end}"
        rows.append({"story": story, "plot0": plots[0], "plot1": plots[1], "label": str(index % 2)})
    # Du et al. use both parts: examples are not needed.
    return {"clozet/train.jsonl": _json_lines(rows[::2]), "clozet/valid.jsonl": _json_lines(rows[1::2])}


def _race(items: Items) -> Files:
    files = {}
    for number, (passage, question) in enumerate(items.passages(items.rows + FEWSHOT_ROWS)):
        split = "test" if number < items.rows else "train"
        level = ("middle", "high")[number % 2]
        value = {
            "article": passage.text,
            "questions": [question.question],
            "options": [question.options],
            "answers": [question.letter],
            "id": f"{level}{number}.txt",
        }
        files[f"race/RACE/{split}/{level}/{number}.txt"] = json.dumps(value)
    return files


def _c3(items: Items) -> Files:
    def document(number: int, passage: Passage, question: Choice) -> list:
        answer = question.options[question.gold]
        return [
            [passage.text],
            [{"question": question.question, "choice": list(question.options), "answer": answer}],
            str(number),
        ]

    made = [document(number, *it) for number, it in enumerate(items.passages(items.rows + FEWSHOT_ROWS))]
    test, train = made[: items.rows], made[items.rows :]
    parts = {"d-dev": test[::2], "m-dev": test[1::2], "d-train": train[::2], "m-train": train[1::2]}
    return {f"c3/c3-{part}.json": json.dumps(rows, ensure_ascii=False) for part, rows in parts.items()}


def _winogrande(items: Items) -> Files:
    phrases = items.world.phrases
    rows = [
        {
            "sentence": scene_text(phrases, it, "_"),
            "option1": it.first,
            "option2": it.second,
            "answer": "1" if it.of_first else "2",
        }
        for it in items.scenes(lambda scene: scene_text(phrases, scene), people=True)
    ]
    return {"winogrande/dev.jsonl": _json_lines(rows)}


def _cluewsc(items: Items) -> Files:
    phrases = items.world.phrases
    pronoun = phrases.pronoun
    rows = []
    scenes = items.scenes(lambda scene: scene_text(phrases, scene, pronoun), people=False)
    for index, it in enumerate(scenes):
        text = scene_text(phrases, it, pronoun)
        # The reason holds for each noun by turns; the noun asked for changes after each two: four kinds, equally often.
        noun = it.first if index % 4 < 2 else it.second
        target = {
            "span1_text": noun,
            "span1_index": text.index(noun),
            "span2_text": pronoun,
            "span2_index": text.rindex(pronoun),
        }
        label = "true" if (noun == it.first) == it.of_first else "false"
        rows.append({"target": target, "label": label, "text": text})
    return {"cluewsc2020/train.json": _json_lines(rows[::2]), "cluewsc2020/dev.json": _json_lines(rows[1::2])}


def _exam_rows(questions: Iterable[Choice]) -> list[list[str]]:
    return [[it.question, *it.options, it.letter] for it in questions]


def _mmlu(items: Items) -> Files:
    files = {}
    for index, subject in enumerate(items.world.phrases.subjects):
        rows = _exam_rows(items.exam(index))
        files[f"mmlu/dev/{subject}_dev.csv"] = _csv(rows[:EXAM_EXAMPLES])
        files[f"mmlu/test/{subject}_test.csv"] = _csv(rows[EXAM_EXAMPLES:])
    return files


def _ceval(items: Items) -> Files:
    header = ["id", "question", "A", "B", "C", "D", "answer"]
    files = {}
    for index, subject in enumerate(items.world.phrases.subjects):
        rows = [[number, *row] for number, row in enumerate(_exam_rows(items.exam(index)))]
        dev = [[*row, ""] for row in rows[:EXAM_EXAMPLES]]
        files[f"c-eval/dev/{subject}_dev.csv"] = _csv([[*header, "explanation"], *dev])
        files[f"c-eval/val/{subject}_val.csv"] = _csv([header, *rows[EXAM_EXAMPLES:]])
    return files


def _steps(problem: Problem) -> str:
    return f"{problem.steps}\n#### {problem.answer}"


def _gsm8k(items: Items) -> Files:
    rows = [{"question": it.question, "answer": _steps(it)} for it in items.problems()]
    return {
        "gsm8k/train.jsonl": _json_lines(rows[:FEWSHOT_ROWS]),
        "gsm8k/test.jsonl": _json_lines(rows[FEWSHOT_ROWS:]),
    }


def _gsm8k_zh(items: Items) -> Files:
    rows = [
        {
            "question_zh": it.question,
            "answer_zh": _steps(it),
            "answer_only": str(it.answer),
            "split": "train" if index < FEWSHOT_ROWS else "test",
        }
        for index, it in enumerate(items.problems())
    ]
    return {"gsm8k-chinese/GSM8K_zh.json": json.dumps(rows, ensure_ascii=False, indent=1)}
