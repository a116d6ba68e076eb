"""BIG-bench's word unscrambling, modified arithmetic and IPA transliteration (Srivastava et al. 2022).

Each is a `task.json` with `examples` of an `input` and a `target` (a text, or several that are right). Word
unscrambling and transliteration have no examples of their own: the first rows of the file serve, never a row
itself.
"""

from __future__ import annotations

from pathlib import Path

from emergence_eval.readers.files import FEWSHOT_POOL, Files, Reader, Row, first_file, malformed, read_json

ARITHMETIC = tuple(
    f"{operation}_{variant}"
    for operation in ("three_digit_addition", "three_digit_subtraction", "two_digit_multiplication")
    for variant in ("control", "plus_one")
)
"""The folders of modified arithmetic: the plain operation, and the operation plus one."""

_REMEDY = "take task.json from bigbench/benchmark_tasks of github.com/google/BIG-bench"


def _file(data: Path, *folders: str) -> Path:
    path = "/".join(folders)
    return first_file(data, "BIG-bench", "bigbench", (f"{path}/task.json",), _REMEDY)


def _examples(path: Path) -> list[tuple[str, list[str]]]:
    """Input and accepted targets of each example."""
    content = read_json(path)
    found = []
    try:
        for example in content["examples"]:
            targets = example["target"] if isinstance(example["target"], list) else [example["target"]]
            if not targets or not all(isinstance(text, str) and text.strip() for text in targets):
                raise malformed(path, None, f"example {len(found) + 1} has no target text")
            found.append((example["input"], [target.strip() for target in targets]))
    except (KeyError, TypeError) as error:
        raise malformed(path, None, "not BIG-bench's JSON (examples with input and target)") from error
    return found


def _find_unscramble(data: Path) -> Files:
    path = _file(data, "word_unscrambling")
    return {"test": [path], "fewshot": [path]}


def _read_unscramble(files: Files) -> dict[str, list[Row]]:
    rows = [{"question": text.strip(), "answers": answers} for text, answers in _examples(files["test"][0])]
    return {"test": rows, "fewshot": rows[:FEWSHOT_POOL]}


def _find_arithmetic(data: Path) -> Files:
    return {"test": [_file(data, "modified_arithmetic", name) for name in ARITHMETIC]}


def _read_arithmetic(files: Files) -> dict[str, list[Row]]:
    return {
        "test": [
            {"question": text.rstrip(), "answers": answers, "operation": path.parent.name}
            for path in files["test"]
            for text, answers in _examples(path)
        ]
    }


def _find_transliterate(data: Path) -> Files:
    path = _file(data, "international_phonetic_alphabet_transliterate")
    return {"test": [path], "fewshot": [path]}


def _read_transliterate(files: Files) -> dict[str, list[Row]]:
    (path,) = files["test"]
    rows = []
    for number, (text, (target, *_)) in enumerate(_examples(path), 1):
        # The first three rows name the script of the answer in the target, all others at the end of the input.
        label, colon, rest = target.partition(":")
        if colon and label in ("English", "IPA") and not text.rstrip().endswith(f"\n{label}:"):
            text, target = f"{text.rstrip()}\n{label}:", rest.strip()
        if not text.rstrip().endswith(("\nEnglish:", "\nIPA:")):
            raise malformed(path, None, f"example {number} does not say into which script")
        rows.append({"question": text.rstrip(), "answers": [target]})
    return {"test": rows, "fewshot": rows[:FEWSHOT_POOL]}


WORD_UNSCRAMBLE = Reader("BIG-bench word unscrambling", _find_unscramble, _read_unscramble)
MODIFIED_ARITHMETIC = Reader("BIG-bench modified arithmetic", _find_arithmetic, _read_arithmetic)
IPA_TRANSLITERATE = Reader("BIG-bench IPA transliteration", _find_transliterate, _read_transliterate)
