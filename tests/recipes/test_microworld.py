"""The generated world: the same for a seed, fair, read by the benchmarks' readers, and no test item in a document."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from commands import run_module

from emergence_eval.readers import commonsense, exams, maths, open_questions, reading
from recipes.microworld import __main__ as command
from recipes.microworld.documents import SHARES
from recipes.microworld.search import Search
from recipes.microworld.settings import MicroworldSettings
from recipes.microworld.world import World
from recipes.microworld.writing import write_microworld
from tokenizer.cli import UserError
from tokenizer.documents import find_inputs

SMALL = MicroworldSettings(seed=3, megabytes=1, people=160, rows=24)

CHOICES = {
    "hellaswag": (commonsense.HELLASWAG, 4),
    "race": (reading.RACE, 4),
    "winogrande": (commonsense.WINOGRANDE, 2),
    "mmlu": (exams.MMLU, 4),
    "clozet": (commonsense.CLOZET, 2),
    "c3": (reading.C3, 4),
    "cluewsc2020": (commonsense.CLUEWSC, 2),
    "c-eval": (exams.CEVAL, 4),
}
OPEN = {
    "triviaqa": open_questions.TRIVIAQA,
    "nlpcc-kbqa": open_questions.NLPCC_KBQA,
    "gsm8k": maths.GSM8K,
    "gsm8k-chinese": maths.GSM8K_ZH,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("world") / "world"
    write_microworld(SMALL, directory, lambda size: None)
    return directory


def texts(world: Path) -> list[str]:
    files = sorted((world / "corpus").glob("*.jsonl"))
    return [json.loads(line)["text"] for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_the_same_seed_makes_the_same_files_and_another_seed_others(world, tmp_path):
    write_microworld(SMALL, tmp_path / "again", lambda size: None)
    assert contents(tmp_path / "again") == contents(world)
    other = MicroworldSettings(seed=4, megabytes=1, people=160, rows=24)
    write_microworld(other, tmp_path / "other", lambda size: None)
    assert not {*texts(world)} & {*texts(tmp_path / "other")}


def test_a_longer_corpus_begins_with_the_shorter_one(world, tmp_path):
    """Documents come in a stream: more of them changes nothing of those before."""
    longer = MicroworldSettings(seed=3, megabytes=2, people=160, rows=24)
    write_microworld(longer, tmp_path / "longer", lambda size: None)
    for path in (world / "corpus").iterdir():
        long, short = (tmp_path / "longer/corpus" / path.name).read_bytes(), path.read_bytes()
        assert long.startswith(short) and len(long) > 1.9 * len(short)
    assert contents(tmp_path / "longer/benchmarks") == contents(world / "benchmarks")


def test_languages_and_sources_have_their_shares(world):
    sizes = Counter()
    for path in (world / "corpus").iterdir():
        for line in path.read_text(encoding="utf-8").splitlines():
            document = json.loads(line)
            sizes[document["lang"], document["source"]] += len(document["text"].encode())
    assert len(find_inputs(world / "corpus")) == len(sizes) == 2 * len(SHARES)
    assert sum(SHARES.values()) == pytest.approx(1)
    for (language, source), size in sizes.items():
        assert size / 1e6 == pytest.approx({"en": 0.8, "zh": 0.2}[language] * SHARES[source], abs=0.002)


@pytest.mark.parametrize("name", CHOICES)
def test_the_right_option_stands_everywhere_equally_often(world, name):
    reader, options = CHOICES[name]
    rows = reader(world / "benchmarks")["test"]
    assert len(rows) == SMALL.rows
    assert len({json.dumps(row, sort_keys=True) for row in rows}) == SMALL.rows
    assert Counter(row["gold"] for row in rows) == dict.fromkeys(range(options), SMALL.rows // options)
    for row in rows:
        choices = row.get("choices") or row.get("contexts") or ["no", "yes"]
        assert len(set(choices)) == options


@pytest.mark.parametrize("name", OPEN)
def test_open_questions_have_an_answer_and_examples(world, name):
    splits = OPEN[name](world / "benchmarks")
    rows = splits["test"]
    # Every fifth fact is held out, and the Chinese world has few people.
    assert SMALL.rows >= len(rows) >= 8
    assert not {row["question"] for row in rows} & {row["question"] for row in splits["fewshot"]}
    assert all(row.get("answer") or row["answers"] for row in rows)


def test_sums_are_right(world):
    for reader in (maths.GSM8K, maths.GSM8K_ZH):
        for row in reader(world / "benchmarks")["test"]:
            *steps, last = row["solution"].split("\n")
            for step in steps:
                terms, _, result = step.partition(" = ")
                a, sign, b = terms.split(" ")
                assert int(result) == int(a) + (int(b) if sign == "+" else -int(b))
            assert row["answer"] in last and steps[-1].endswith(f"= {row['answer']}")


def test_no_document_holds_a_test_item(world):
    """Searched for as text, in the form in which the readers give the items."""
    corpus = "\n\n".join(texts(world))
    benchmarks = world / "benchmarks"
    searched = [row["question"] for name in OPEN for row in OPEN[name](benchmarks)["test"]]
    for reader, _ in (CHOICES["race"], CHOICES["c3"]):
        searched += [row["passage"] for row in reader(benchmarks)["test"]]
    for reader in (exams.MMLU, exams.CEVAL):
        for row in reader(benchmarks)["test"]:
            options = "\n".join(f"{letter}. {it}" for letter, it in zip(row["labels"], row["choices"], strict=True))
            searched.append(f"{row['question']}\n{options}")
    searched += [row["query"] for row in commonsense.HELLASWAG(benchmarks)["test"]]
    searched += [row["before"] for row in commonsense.CLOZET(benchmarks)["test"]]
    searched += [row["text"] for row in commonsense.CLUEWSC(benchmarks)["test"]]
    for row in commonsense.WINOGRANDE(benchmarks)["test"]:
        searched.append(f"{row['contexts'][row['gold']]} {row['continuation']}")
    assert len(searched) > 10 * SMALL.rows
    assert [it for it in searched if it in corpus] == []
    # The search finds what is there.
    assert searched[0].replace(searched[0], texts(world)[0]) in corpus


def test_a_test_item_in_a_document_is_found(monkeypatch, tmp_path):
    """Without the rule that holds items back, the check of every document must speak up."""
    monkeypatch.setattr(World, "is_held_out", lambda self, text: False)
    monkeypatch.setattr("recipes.microworld.items.Items.is_item", lambda self, text: True)
    for source in ("stories", "questions", "examinations", "problems"):
        monkeypatch.setattr("recipes.microworld.writing.SHARES", {source: 1.0})
        with pytest.raises(UserError, match=f"a document of {source} holds a test item"):
            write_microworld(
                MicroworldSettings(megabytes=20, people=160, rows=200), tmp_path / source, lambda size: None
            )


def test_the_search_finds_what_a_line_begins_with():
    document = "One. Two. Three.\nLast\n\nQ\nA. a\nB. b\nAnswer: A\n\n一。二。三。"
    for text in ("One. Two.", "Last", "Q\nA. a", "Q\nA. a\nB. b", "一。二。", document):
        assert Search(["none of it", text]).finds_any(document), text
    for text in ("Two. Three.", "One. Three.", "Q\nB. b", "last", "二。"):
        assert not Search([text]).finds_any(document), text


def test_the_command_writes_once_and_says_what(tmp_path):
    options = ["--out", str(tmp_path / "w"), "--megabytes", "0.2", "--people", "64", "--rows", "8"]
    done = run_module("recipes.microworld", *options)
    assert "0.2 MB of text in 12 files" in done.stdout
    written = (tmp_path / "w/manifest.json").stat().st_mtime_ns
    assert "is there already" in run_module("recipes.microworld", *options).stdout
    assert (tmp_path / "w/manifest.json").stat().st_mtime_ns == written
    # The command's process hashes strings otherwise than this one.
    write_microworld(MicroworldSettings(megabytes=0.2, people=64, rows=8), tmp_path / "here", lambda size: None)
    assert contents(tmp_path / "here") == contents(tmp_path / "w")


def test_a_world_that_was_cut_short_is_written_anew(tmp_path):
    options = ["--out", str(tmp_path), "--megabytes", "0.2", "--people", "64", "--rows", "8"]
    assert command.main(options) == 0
    whole = contents(tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "corpus/en-stories.jsonl").write_text("{")
    assert command.main(options) == 0
    assert contents(tmp_path) == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--megabytes", "0"], "megabytes is 0"),
        (["--people", "4"], "people is 4"),
        (["--rows", "2000", "--people", "16"], "lower `rows`"),
        (["--grid", "paper"], "has no section `microworld:`"),
    ],
)
def test_what_cannot_be_made_is_one_line(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        command.main(["--out", str(tmp_path / "w"), *options])
    assert not (tmp_path / "w/manifest.json").exists()


def test_other_files_are_not_removed(tmp_path):
    (tmp_path / "thesis.tex").write_text("work of years")
    with pytest.raises(UserError, match=r"holds other files \(thesis.tex\)"):
        command.main(["--out", str(tmp_path)])
    assert (tmp_path / "thesis.tex").read_text() == "work of years"
