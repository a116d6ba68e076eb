"""Conversion there and back: every bit the same in the checkpoint's own precision, whatever the layout; what is there
is not made again; nothing half is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from commands import REPOSITORY
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GlmConfig, GlmForCausalLM

from emergence_eval import convert, hf_files, hf_layout, nemo_writer, sources
from emergence_eval.torch_dist import Weights
from tokenizer.cli import UserError


def make_hf(tiny_hf: Path, out: Path, dtype=torch.bfloat16, **changed) -> Path:
    """The tiny model with other settings, in another precision."""
    config = GlmConfig.from_pretrained(tiny_hf)
    for name, value in changed.items():
        setattr(config, name, value)
    torch.manual_seed(1)
    GlmForCausalLM(config).to(dtype).save_pretrained(out)
    for path in tiny_hf.glob("*token*"):
        shutil.copy(path, out)
    return out


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    return {name: it for path in hf_files.weight_files(directory) for name, it in load_file(path).items()}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype and torch.equal(bits(tensor), bits(second[name])), name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_there_and_back_again_every_bit_is_the_same(tiny_hf, tmp_path, dtype, tied):
    source = make_hf(tiny_hf, tmp_path / "hf", dtype, tie_word_embeddings=tied)
    nemo = convert.hf_to_nemo(source, tmp_path / "step_10")
    weights = Weights(nemo / "weights", "module.", sources.is_model_tensor)
    assert weights.entries["embedding.word_embeddings.weight"].shape == (384, 32)
    assert not weights.read("embedding.word_embeddings.weight")[259:].any()
    assert ("output_layer.weight" in weights.entries) != tied
    back = convert.nemo_to_hf(nemo, tmp_path / "back")
    assert_same(tensors_of(back), tensors_of(source))
    model, again = (AutoModelForCausalLM.from_pretrained(it, dtype=torch.float32) for it in (source, back))
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids).logits, again(ids).logits)


def test_the_rows_beyond_the_vocabulary_come_back_too(tiny_hf, tmp_path):
    """A trained checkpoint's padding is not zero."""
    opened = nemo_writer.open_model(make_hf(tiny_hf, tmp_path / "hf"))
    for tensor in opened.padding.values():
        tensor.normal_()
    first = tmp_path / "step_7"
    (first / "context").mkdir(parents=True)
    nemo_writer.write_context(tmp_path / "hf", first / "context", opened)
    nemo_writer.write_weights(opened, first / "weights", 7, hf_files.nothing)
    second = convert.hf_to_nemo(convert.nemo_to_hf(first, tmp_path / "there"), tmp_path / "again")
    one, other = (Weights(it / "weights") for it in (first, second))
    assert_same({key: one.read(key) for key in one.entries}, {key: other.read(key) for key in other.entries})
    assert (first / "context/model.yaml").read_bytes() == (second / "context/model.yaml").read_bytes()
    assert sources.open_nemo(second, None)[1].step == 7


def test_queries_keys_and_values_are_put_together_as_they_were_taken_apart(tiny_hf):
    model, _ = nemo_writer.read_config(tiny_hf, 128)
    fused = torch.randn(hf_layout.layer_shapes(model)[hf_layout.QKV])
    assert torch.equal(hf_layout.fuse_qkv(*hf_layout.split_qkv(fused, model), model), fused)


def test_large_models_are_written_in_shards(tiny_hf, tmp_path, monkeypatch):
    monkeypatch.setattr(hf_files, "SHARD_BYTES", 20_000)
    nemo = convert.hf_to_nemo(tiny_hf, tmp_path / "step_10")
    steps = []
    out = convert.nemo_to_hf(nemo, tmp_path / "hf", lambda done, total: steps.append((done, total)))
    files = hf_files.weight_files(out)
    assert len(files) > 2 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert_same(tensors_of(out), tensors_of(tiny_hf))
    index = json.loads((out / hf_files.INDEX).read_text())
    assert index["metadata"]["total_size"] == steps[-1][0] == steps[-1][1]
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert AutoModelForCausalLM.from_pretrained(out).num_parameters() > 0
    assert_same(
        tensors_of(convert.nemo_to_hf(convert.hf_to_nemo(out, tmp_path / "b"), tmp_path / "c")), tensors_of(out)
    )


def test_a_conversion_is_made_once_and_again_when_something_changed(tiny_hf, tmp_path):
    source = make_hf(tiny_hf, tmp_path / "hf")
    nemo, out = tmp_path / "step_10", tmp_path / "out"
    made = []

    def made_anew() -> bool:
        made.clear()
        convert.hf_to_nemo(source, nemo, lambda done, total: made.append(done))
        first = bool(made)
        made.clear()
        convert.nemo_to_hf(nemo, out, lambda done, total: made.append(done))
        assert first == bool(made)
        return first

    assert made_anew()
    assert not made_anew()
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert made_anew()
    assert_same(tensors_of(out), tensors_of(source))
    (out / "model.safetensors").unlink()
    made.clear()
    convert.nemo_to_hf(nemo, out, lambda done, total: made.append(done))
    assert made and (out / "model.safetensors").is_file()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("mine")
    for verb, checkpoint in (("nemo-to-hf", nemo), ("hf-to-nemo", source)):
        with pytest.raises(UserError, match="is no conversion of this program"):
            convert.main([verb, str(checkpoint), str(precious)])
    assert [path.name for path in precious.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'; only 'glm'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"num_hidden_layers": 3}, r"has no model\.layers\.2"),
        ({"num_hidden_layers": 1}, "which a NeMo model of this kind has not"),
        ({"hidden_size": 64}, "where config.json says"),
        ({"hidden_size": "a"}, "does not describe a Glm model"),
        ({"num_key_value_heads": 3}, "does not describe a Glm model"),
        ({"vocab_size": 1 << 40}, "where config.json says"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
    ],
)
def test_what_is_no_glm_is_refused_by_name(tiny_hf, tmp_path, changed, message):
    source = shutil.copytree(tiny_hf, tmp_path / "hf")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **changed}))
    with pytest.raises(UserError, match=message):
        convert.hf_to_nemo(source, tmp_path / "nemo")
    assert not (tmp_path / "nemo").exists()


def test_weights_that_are_not_those_of_the_description_are_refused(tiny_hf, tmp_path):
    nemo = convert.hf_to_nemo(tiny_hf, tmp_path / "step_10")
    path = nemo / "context" / "model.yaml"
    whole = path.read_text()
    for old, new, message in (
        ("num_layers: 2", "num_layers: 3", "more or fewer than the 3 layers"),
        ("ffn_hidden_size: 64", "ffn_hidden_size: 65", r"is of \[128, 32\] where .* say \[130, 32\]"),
        ("weights: false", "weights: true", "output_layer.weight, which the Glm architecture has not"),
    ):
        assert old in whole
        path.write_text(whole.replace(old, new))
        with pytest.raises(UserError, match=message):
            convert.nemo_to_hf(nemo, tmp_path / "hf")
    path.write_text(yaml.safe_dump({"config": {"num_layers": 2}}))
    with pytest.raises(UserError, match="normalization is 'missing'"):
        convert.nemo_to_hf(nemo, tmp_path / "hf")
    with pytest.raises(UserError, match="is no Hugging Face model"):
        convert.hf_to_nemo(nemo, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


@pytest.fixture(scope="module")
def larger(tiny_hf, tmp_path_factory) -> Path:
    """120 MB of bf16 in 24 layers, no tensor larger than 2 MB."""
    directory = tmp_path_factory.mktemp("larger") / "hf"
    shape = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "head_dim": 64}
    return make_hf(tiny_hf, directory, **shape, num_hidden_layers=24)


def test_memory_does_not_grow_with_the_model(larger, tmp_path):
    """A process converts one layer there and back, which takes the libraries' own memory, and then 24."""
    size = sum(path.stat().st_size for path in larger.glob("*.safetensors"))
    small = make_hf(larger, tmp_path / "small", num_hidden_layers=1)
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from emergence_eval import convert, hf_files; hf_files.SHARD_BYTES = 4_000_000\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "small, large, out = map(Path, sys.argv[1:])\n"
        "convert.nemo_to_hf(convert.hf_to_nemo(small, out / 'step_1'), out / 'hf_1'); start = peak()\n"
        "convert.nemo_to_hf(convert.hf_to_nemo(large, out / 'step_2'), out / 'hf_2'); print(peak() - start)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", script, str(small), str(larger), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert_same(tensors_of(tmp_path / "hf_2"), tensors_of(larger))
    assert int(done.stdout) < size / 3


def test_an_interrupted_conversion_leaves_nothing_half(tiny_hf, tmp_path):
    nemo = convert.hf_to_nemo(tiny_hf, tmp_path / "step_10")

    def interrupt(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    folder = tmp_path / "out"
    for function, source in ((convert.nemo_to_hf, nemo), (convert.hf_to_nemo, tiny_hf)):
        with pytest.raises(KeyboardInterrupt):
            function(source, folder / "out", interrupt)
        assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_half(larger, tmp_path):
    nemo = convert.hf_to_nemo(larger, tmp_path / "nemo" / "step_1")
    for verb, source in (("nemo-to-hf", nemo), ("hf-to-nemo", larger)):
        folder = tmp_path / verb
        folder.mkdir()
        command = [sys.executable, "-m", "emergence_eval.convert", verb, str(source), str(folder / "out")]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        pattern = ".out.*/*.safetensors" if verb == "nemo-to-hf" else ".out.*/weights/*.distcp"
        while process.poll() is None and not list(folder.glob(pattern)) and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
        if process.returncode == 0:
            # It was done before the signal came.
            assert (folder / "out" / convert.RECORD).is_file()
            continue
        assert process.returncode == 130 and "interrupted" in error
        assert list(folder.iterdir()) == []
