"""Memory does not grow with the corpus: four times the text, the same peak."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from documents_for_tests import text

PEAK = """
import sys
from tokenizer import {module}
{module}.main(sys.argv[1:])
status = open("/proc/self/status").read()
print(int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""
# Not getrusage: what it reports is passed on from parent to child, and this parent has imported torch.


def write_corpus(directory, megabytes):
    """Documents that differ (a number in each), so that no step can profit from copies."""
    directory.mkdir()
    bodies = [text("zh" if number % 2 else "en", number, 2000) for number in range(40)]
    with open(directory / "x.jsonl", "w", encoding="utf-8") as file:
        number = 0
        while file.tell() < megabytes * 1e6:
            body = bodies[number % len(bodies)].replace(" ", f" {number} ", 20)
            row = {"text": f"{number} {body}", "lang": "zh" if number % 2 else "en"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            number += 1
    return directory


def peak_mb(module, *arguments):
    """Peak memory of a command in a process of its own."""
    command = [sys.executable, "-c", PEAK.format(module=module), *map(str, arguments)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpora")
    return write_corpus(directory / "small", 5), write_corpus(directory / "large", 20)


def test_encoding(corpora, tokenizer_dir, tmp_path):
    small, large = (
        peak_mb(
            "encode", "--corpus", corpus, "--tokenizer", tokenizer_dir, "--out", tmp_path / corpus.name, "--workers", 1
        )
        for corpus in corpora
    )
    assert large < small + 10
    assert large < 250


def test_training(corpora, tmp_path):
    small, large = (
        peak_mb("train", "--corpus", corpus, "--out", tmp_path / corpus.name, "--vocab-size", 1000, "--sample-mb", 2)
        for corpus in corpora
    )
    assert large < small + 10
    assert large < 250
