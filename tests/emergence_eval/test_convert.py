"""Conversion to transformers' Glm: the logits and the ids are those of training."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from commands import run_command
from transformers import AutoModelForCausalLM, AutoTokenizer

from emergence_eval import convert, sources
from tokenizer import vocabulary
from tokenizer.cli import UserError


@pytest.mark.parametrize("layout", ["single", "tensor_parallel", "pipeline_parallel"])
def test_logits_are_those_of_megatron(layout_runs, tmp_path, layout):
    """Each checkpoint is loaded into one Megatron process and converted; which layout wrote it must not matter."""
    run = layout_runs[layout]
    script = Path(__file__).parent / "megatron_logits.py"
    run_command([sys.executable, str(script), str(run), "20", str(tmp_path / "logits.pt")])
    expected = torch.load(tmp_path / "logits.pt", weights_only=True)
    convert.nemo_to_hf(run / "checkpoints" / "step_20", tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        logits = model(expected["ids"]).logits
    assert logits.shape == (2, 128, 1024)
    assert logits.std() > 0.1
    assert (logits - expected["logits"]).abs().max() < 1e-4


def test_megatron_loads_what_came_there_and_back(layout_runs, tmp_path):
    """The optimizer's state is that of the original; every bit of the weights is, too."""
    run = shutil.copytree(layout_runs["tensor_parallel"], tmp_path / "run")
    weights = run / "checkpoints" / "step_20" / "weights"
    before = convert.read_weights(weights, "module.")
    back = convert.hf_to_nemo(convert.nemo_to_hf(weights.parent, tmp_path / "hf"), tmp_path / "step_20")
    shutil.rmtree(weights)
    shutil.copytree(back / "weights", weights)
    after = convert.read_weights(weights, "module.")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    tokenizer = vocabulary.load(back / "context" / "tokenizer")
    assert tokenizer.sha256 == vocabulary.load(weights.parent / "context" / "tokenizer").sha256
    assert sources.read_nemo_description(back) == sources.read_nemo_description(weights.parent)
    script = Path(__file__).parent / "megatron_logits.py"
    run_command([sys.executable, str(script), str(run), "20", str(tmp_path / "logits.pt")])
    found = torch.load(tmp_path / "logits.pt", weights_only=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        assert (model(found["ids"]).logits - found["logits"]).abs().max() < 1e-4


def test_converted_directory_carries_the_tokenizer(layout_runs, tmp_path):
    checkpoint = layout_runs["single"] / "checkpoints" / "step_20"
    convert.main(["nemo-to-hf", str(checkpoint), str(tmp_path / "hf")])
    ours = vocabulary.load(checkpoint / "context" / "tokenizer")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in ("bada fe, gibo.\n  two", "一丁丂。", "👩🏽‍🚀 \x00\x07\t é", ""):
        assert theirs(text)["input_ids"] == ours.encode(text)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == (ours.eod_id, ours.pad_id)
    assert config["vocab_size"] == ours.vocab_size


def test_what_is_no_checkpoint_is_refused_and_nothing_is_written(layout_runs, tmp_path):
    with pytest.raises(UserError, match="is no checkpoint"):
        convert.nemo_to_hf(tmp_path, tmp_path / "hf")
    broken = tmp_path / "step_20"
    shutil.copytree(layout_runs["single"] / "checkpoints" / "step_20", broken)
    (broken / "weights" / ".metadata").unlink()
    with pytest.raises(UserError, match=r"missing|cannot read"):
        convert.nemo_to_hf(broken, tmp_path / "hf")
    shutil.copy(layout_runs["single"] / "checkpoints" / "step_20" / "weights" / ".metadata", broken / "weights")
    model = broken / "context" / "model.yaml"
    model.write_text(model.read_text().replace("RMSNorm", "LayerNorm"))
    with pytest.raises(UserError, match=r"model\.yaml has \d+ bytes instead of"):
        convert.nemo_to_hf(broken, tmp_path / "hf")
    (broken / "manifest.json").unlink()
    with pytest.raises(UserError, match="normalization is 'LayerNorm'"):
        convert.nemo_to_hf(broken, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
