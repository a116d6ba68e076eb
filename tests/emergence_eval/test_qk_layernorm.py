"""Models with norms of queries and keys: they are transformers' Qwen3, and every number is the same there."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from commands import run_command
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from emergence_eval import convert, hf_files, run, sources
from emergence_eval.results import read_result, read_rows, rows_path
from tokenizer.cli import UserError


@pytest.fixture(scope="session")
def normed(once, smoke_data) -> Path:
    """`write_normed.py`'s directories, whose norms have random weights."""
    script, tokenizer = Path(__file__).parent / "write_normed.py", smoke_data.parent / "tokenizer"
    return once("normed", lambda out: run_command([sys.executable, str(script), str(tokenizer), str(out)]))


@pytest.fixture(scope="session")
def nemo(normed) -> Path:
    return normed / "nemo" / "step_20"


@pytest.fixture(scope="session")
def known(normed) -> dict:
    """What Megatron-Core computes."""
    return torch.load(normed / "known.pt", weights_only=True)


def make_qwen3(tiny_hf: Path, out: Path, dtype=torch.float32, **changed) -> Path:
    """A random Qwen3 of the tiny model's shape, with norms that are not all ones."""
    small = json.loads((tiny_hf / "config.json").read_text())
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "head_dim", "max_position_embeddings", "eos_token_id", "pad_token_id")
    torch.manual_seed(3)
    model = Qwen3ForCausalLM(Qwen3Config(**{**{name: small[name] for name in names}, **changed}))
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data.uniform_(0.2, 3.0)
    model.to(dtype).save_pretrained(out)
    for path in tiny_hf.glob("*token*"):
        shutil.copy(path, out)
    return out


@pytest.fixture(scope="module")
def tiny_qwen3(tiny_hf, tmp_path_factory) -> Path:
    return make_qwen3(tiny_hf, tmp_path_factory.mktemp("qwen3") / "hf")


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor.contiguous().view(torch.uint8), second[name].contiguous().view(torch.uint8)), name


@pytest.mark.parametrize("kind", ["nemo", "lm", "layers"])
def test_logits_are_those_of_megatron(normed, nemo, known, tmp_path, kind):
    if kind == "nemo":
        out = convert.nemo_to_hf(nemo, tmp_path / "hf")
    else:
        source, identity = sources.open_megatron(normed / kind / "iter_0000020", nemo / "context" / "tokenizer")
        assert identity.parameters == known["parameters"]
        assert identity.flops_exact == pytest.approx(known["flops_of_a_token"] * identity.tokens)
        out = convert.to_hf(source, tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    assert type(model) is Qwen3ForCausalLM
    with torch.no_grad():
        logits = model(known["ids"]).logits
    assert logits.shape == (2, 128, 1024) and logits.std() > 0.1
    assert (logits - known["logits"]).abs().max() < 1e-4


def test_a_checkpoint_there_and_back_again_has_every_bit_it_had(nemo, tmp_path):
    back = convert.hf_to_nemo(convert.nemo_to_hf(nemo, tmp_path / "hf"), tmp_path / "step_20")
    first, second = (convert.read_weights(it / "weights", "module.") for it in (nemo, back))
    assert_same(first, second)
    assert first["decoder.layers.self_attention.q_layernorm.weight"].std() > 0.1
    assert sources.read_nemo_description(back) == sources.read_nemo_description(nemo)


@pytest.mark.parametrize(
    ("dtype", "changed"),
    [
        (torch.bfloat16, {"tie_word_embeddings": True, "rope_theta": 1e6}),
        (torch.float16, {"num_key_value_heads": 1}),
        (torch.float32, {"num_key_value_heads": 4, "head_dim": 16}),
    ],
)
def test_a_model_there_and_back_again_has_every_bit_it_had(tiny_hf, tmp_path, dtype, changed):
    source = make_qwen3(tiny_hf, tmp_path / "hf", dtype, **changed)
    back = convert.nemo_to_hf(convert.hf_to_nemo(source, tmp_path / "step_10"), tmp_path / "back")
    tensors = (load_file(path) for it in (source, back) for path in hf_files.weight_files(it))
    assert_same(*tensors)
    model, again = (AutoModelForCausalLM.from_pretrained(it, dtype=torch.float32) for it in (source, back))
    assert model.config.rope_parameters == again.config.rope_parameters
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids).logits, again(ids).logits)


def test_scores_are_the_same_from_nemo_and_hugging_face(tiny_qwen3, benchmarks, tmp_path):
    options = ["--data", str(benchmarks), "--tasks", "cluewsc,winogrande", "--device", "cpu", "--out"]
    checkpoint = convert.hf_to_nemo(tiny_qwen3, tmp_path / "run" / "step_10")
    run.main([*options, str(tmp_path / "nemo.json"), "--nemo-ckpt", str(checkpoint)])
    run.main([*options, str(tmp_path / "hf.json"), "--hf-ckpt", str(tiny_qwen3)])
    first, second = (read_result(tmp_path / f"{name}.json") for name in ("nemo", "hf"))
    assert first.tasks == second.tasks and first.checkpoint.parameters == second.checkpoint.parameters
    first, second = (read_rows(rows_path(tmp_path / f"{name}.json")) for name in ("nemo", "hf"))
    assert len(first) and first.equals(second)


def test_what_was_made_before_there_were_such_models_stays_valid(tiny_hf, tmp_path):
    """The other models' description, by which a conversion and a result know what they were made of, is as it was."""
    description = sources.read_nemo_description(convert.hf_to_nemo(tiny_hf, tmp_path / "step_10"))
    assert list(description.as_dict())[-1] == "vocab_multiple"
    assert "qk_layernorm" not in (tmp_path / "step_10" / "context" / "model.yaml").read_text()


def described(checkpoint: Path, out: Path, **changed) -> Path:
    """A NeMo checkpoint with another description."""
    copy = shutil.copytree(checkpoint, out)
    path = copy / "context" / "model.yaml"
    content = yaml.safe_load(path.read_text())
    content["config"] |= changed
    path.write_text(yaml.safe_dump(content))
    return copy


def test_checkpoints_that_cannot_be_converted_are_refused_by_name(tiny_hf, nemo, tmp_path):
    without = convert.hf_to_nemo(tiny_hf, tmp_path / "without" / "step_10")
    for number, (checkpoint, changed, message) in enumerate(
        (
            (
                nemo,
                {"rotary_percent": 0.5},
                r"rotary_percent is 0\.5 with qk_layernorm.* with rotary_percent 1\.0",
            ),
            (nemo, {"qk_layernorm": False}, r"k_layernorm\.weight, .*which the Glm architecture has not"),
            (without, {"qk_layernorm": True, "rotary_percent": 1.0}, r"no self_attention\.q_layernorm\.weight"),
        )
    ):
        broken = described(checkpoint, tmp_path / str(number) / "step_10", **changed)
        with pytest.raises(UserError, match=message):
            convert.nemo_to_hf(broken, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"use_sliding_window": True, "sliding_window": 64}, "use_sliding_window is True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has {'sliding_attention'}"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, r"rotary_percent is 0\.5 with qk_layernorm"),
        ({"num_key_value_heads": 3}, "does not describe a Qwen3 model"),
        ({"model_type": "glm"}, "has no model.layers.0.mlp.gate_up_proj.weight"),
    ],
)
def test_models_that_cannot_be_converted_are_refused_by_name(tiny_qwen3, tmp_path, changed, message):
    source = shutil.copytree(tiny_qwen3, tmp_path / "hf")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **changed}))
    with pytest.raises(UserError, match=message):
        convert.hf_to_nemo(source, tmp_path / "nemo")
    assert not (tmp_path / "nemo").exists()


@pytest.mark.parametrize("name", ["self_attn.k_norm", "mlp.up_proj"])
def test_a_model_that_is_not_whole_is_refused(tiny_qwen3, tmp_path, name):
    from safetensors.torch import save_file

    source = shutil.copytree(tiny_qwen3, tmp_path / "hf")
    tensors = load_file(source / "model.safetensors")
    del tensors[f"model.layers.1.{name}.weight"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"has no model\.layers\.1\.{name}\.weight"):
        convert.hf_to_nemo(source, tmp_path / "nemo")
