"""Every module imports with the pinned packages alone, and the light rooms stay light."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

WALK = '''
import importlib, json, pkgutil, sys
failed, imported = {}, []
blocked = set(sys.argv[2:])

class Without:
    """Finds what the finders find, but for the blocked packages, as if these were not installed."""

    def __init__(self, finders):
        self.finders = finders

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            return None
        specs = (finder.find_spec(name, path, target) for finder in self.finders)
        return next((spec for spec in specs if spec is not None), None)

    def find_distributions(self, *arguments):
        for finder in self.finders:
            yield from getattr(finder, "find_distributions", lambda *_: ())(*arguments)

sys.meta_path[:] = [Without(list(sys.meta_path))]
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    try:
        importlib.import_module(module.name)
        imported.append(module.name)
    except BaseException as error:
        failed[module.name] = repr(error)
print(json.dumps({"failed": failed, "imported": imported, "torch": "torch" in sys.modules}))
'''

EXTRAS = ("nemo", "nemo_run", "transformer_engine", "apex", "lightning", "pytest", "hypothesis", "IPython")
"""Packages of the extras; no module may need one to be imported."""

SUBCLASSES_OF_NEMO = {"recipes.nemo_callbacks"}
"""But these, which `recipes.nemo` imports inside the functions that need NeMo."""


def walk(room: str, *blocked: str) -> dict:
    command = [sys.executable, "-P", "-c", WALK, room, *EXTRAS, *blocked]
    output = subprocess.run(command, cwd=REPOSITORY, text=True, capture_output=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


@pytest.mark.parametrize("room", ["tokenizer", "recipes", "emergence_eval"])
def test_every_module_imports_without_the_extras(room):
    walked = walk(room)
    assert walked["failed"].keys() <= SUBCLASSES_OF_NEMO


def test_analysis_needs_nothing_of_the_training_stack():
    walked = walk("analysis", "torch", "megatron", "transformers", "lm_eval", "sentencepiece", "recipes")
    assert walked["failed"] == {}
    assert walked["imported"] and not walked["torch"]


def test_the_launcher_needs_no_torch():
    """It answers in a moment, and its memory is the steps'."""
    walked = walk("launchers", "torch", "megatron", "transformers", "lm_eval")
    assert walked["failed"] == {}
    assert not walked["torch"]
