"""Checkpoints of Megatron-LM and Megatron-Bridge: the scores are those of the same weights from NeMo's directory;
what cannot be converted is refused by its name; nothing that a pickle names is run."""

from __future__ import annotations

import argparse
import json
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from commands import run_command
from safetensors.torch import load_file

from emergence_eval import convert, pickles, run, sources
from emergence_eval.results import read_result, read_rows, rows_path
from recipes.checkpoint import read_manifest
from tokenizer.cli import UserError


@pytest.fixture(scope="session")
def ours(layout_runs) -> Path:
    return layout_runs["single"] / "checkpoints" / "step_20"


@pytest.fixture(scope="session")
def tokenizer(ours) -> Path:
    return ours / "context" / "tokenizer"


@pytest.fixture(scope="session")
def megatron(once, ours) -> Path:
    """Run directories `lm`, `layers`, `local` and `bridge` with the weights of `ours`."""
    script = Path(__file__).parent / "write_megatron.py"
    return once("megatron", lambda directory: run_command([sys.executable, str(script), str(ours), str(directory)]))


def test_weights_are_those_of_the_nemo_checkpoint(ours, megatron, tokenizer, tmp_path):
    convert.nemo_to_hf(ours, tmp_path / "ours")
    expected = load_file(tmp_path / "ours" / "model.safetensors")
    for name in ("lm", "layers", "local", "bridge"):
        source, identity = sources.open_megatron(megatron / name, tokenizer)
        found = load_file(convert.to_hf(source, tmp_path / name) / "model.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), name
        manifest = read_manifest(ours)
        for field in ("step", "tokens", "parameters", "parameters_non_embedding", "vocab_size", "tokenizer_sha256"):
            assert getattr(identity, field) == getattr(manifest, field), field
        assert identity.flops_exact == pytest.approx(manifest.flops_exact)
        assert identity.flops_6nd == pytest.approx(manifest.flops_6nd)
        assert (identity.seed, identity.final) == ((78, False) if name == "bridge" else (77, True))


def test_scores_are_those_of_the_nemo_checkpoint(ours, megatron, tokenizer, benchmarks, tmp_path, capfd):
    options = ["--data", str(benchmarks), "--tasks", "cluewsc,winogrande", "--device", "cpu", "--out", str(tmp_path)]
    run.main([*options, "--nemo-ckpt", str(ours)])
    lm = ["--megatron-ckpt", str(megatron / "lm" / "iter_0000020"), "--tokenizer", str(tokenizer)]
    run.main([*options, *lm, "--loss", "2.5"])
    expected, found = tmp_path / "large-40960-step_20.json", tmp_path / "lm-iter_0000020.json"
    assert read_result(found).tasks == read_result(expected).tasks
    assert read_rows(rows_path(found)).equals(read_rows(rows_path(expected)))
    checkpoint = read_result(found).checkpoint
    assert checkpoint.losses == {"heldout": 2.5} and checkpoint.origin == "megatron"
    assert checkpoint.unknown == ["data_fingerprint", "git_revision"]
    capfd.readouterr()
    run.main([*options, *lm, "--loss", "2.5"])
    assert "up to date" in capfd.readouterr().out
    losses = tmp_path / "loss.csv"
    losses.write_text("step,train_loss,heldout_loss,heldout_loss_en\n10,9,9,9\n20,2.6,2.4,2.3\n")
    run.main([*options, *lm, "--loss", str(losses)])
    assert read_result(found).checkpoint.losses == {"heldout": 2.4, "heldout_en": 2.3, "train": 2.6}
    run.main([*options, *lm])
    checkpoint = read_result(found).checkpoint
    assert checkpoint.losses == {} and "losses" in checkpoint.unknown


def rewritten(megatron: Path, tmp_path: Path, **changed) -> Path:
    """The Megatron-LM checkpoint with other arguments."""
    checkpoint = shutil.copytree(megatron / "lm" / "iter_0000020", tmp_path / "iter_0000020")
    common = pickles.read_common(checkpoint)
    arguments = argparse.Namespace(**{**vars(common["args"]), "attention_backend": None, "data_path": None, **changed})
    torch.save({"args": arguments, "iteration": 20}, checkpoint / "common.pt")
    return checkpoint


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"add_bias_linear": True}, "add_bias_linear is True"),
        ({"add_qkv_bias": True}, "add_qkv_bias is True"),
        ({"normalization": "LayerNorm"}, "normalization is 'LayerNorm'"),
        ({"position_embedding_type": "learned_absolute"}, "position_embedding_type is 'learned_absolute'"),
        ({"num_experts": 8}, "num_moe_experts is 8"),
        ({"swiglu": False}, "--swiglu"),
        ({"qk_layernorm": True}, r"rotary_percent is 0\.5 with qk_layernorm"),
        ({"qk_l2_norm": True}, "qk_l2_norm is True"),
        ({"multi_latent_attention": True}, "multi_latent_attention is True"),
        ({"use_rope_scaling": True}, "rope_scaling is True"),
        ({"rotary_interleaved": True}, "rotary_interleaved is True"),
        ({"apply_layernorm_1p": True}, "layernorm_zero_centered_gamma is True"),
        ({"window_size": (128, 0)}, r"window_size is \(128, 0\)"),
        ({"mtp_num_layers": 1}, "mtp_num_layers is 1"),
        ({"num_layers": None}, "does not describe a GPT model"),
    ],
)
def test_what_glm_has_not_is_refused_by_its_name(megatron, tokenizer, tmp_path, changed, message):
    with pytest.raises(UserError, match=message):
        sources.open_megatron(rewritten(megatron, tmp_path, **changed), tokenizer)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_layers": 3}, "more or fewer than the 3 layers"),
        ({"untie_embeddings_and_output_weights": False}, "output_layer.weight, which the Glm architecture has not"),
    ],
)
def test_weights_that_are_not_those_of_the_arguments_are_refused(megatron, tokenizer, tmp_path, changed, message):
    source, _ = sources.open_megatron(rewritten(megatron, tmp_path, **changed), tokenizer)
    with pytest.raises(UserError, match=message):
        convert.to_hf(source, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_what_is_no_torch_dist_checkpoint_is_refused(megatron, tokenizer, tmp_path):
    whole = megatron / "lm" / "iter_0000020"
    legacy = tmp_path / "legacy" / "iter_0000020"
    (legacy / "mp_rank_00").mkdir(parents=True)
    (legacy / "mp_rank_00" / "model_optim_rng.pt").touch()
    for directory, message in (
        (legacy, "old format torch"),
        (tmp_path / "nothing", "is no Megatron checkpoint"),
        (tmp_path, "is no Megatron checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            sources.open_megatron(directory, tokenizer)
    (legacy.parent / "latest_checkpointed_iteration.txt").write_text("30")
    with pytest.raises(UserError, match="says '30', which is not there"):
        sources.open_megatron(legacy.parent, tokenizer)
    copy = shutil.copytree(whole, tmp_path / "copy" / "iter_0000020")
    (copy / "metadata.json").write_text(json.dumps({"sharded_backend": "zarr"}))
    with pytest.raises(UserError, match="in the format zarr"):
        sources.open_megatron(copy, tokenizer)
    (copy / "metadata.json").unlink()
    with pytest.raises(UserError, match="torch_dcp or fsdp_dtensor"):
        sources.open_megatron(copy, tokenizer)
    shutil.copy(whole / "metadata.json", copy)
    (copy / "common.pt").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"no file of torch\.save"):
        sources.open_megatron(copy, tokenizer)


def test_the_tokenizer_must_be_the_model_s(megatron, tiny_hf, tmp_path):
    lm = megatron / "lm"
    with pytest.raises(UserError, match="carries no tokenizer; give the one"):
        sources.open_megatron(lm, None)
    with pytest.raises(UserError, match="holds none"):
        sources.open_megatron(lm, tmp_path)
    with pytest.raises(UserError, match=r"embedding of 1024 rows, the tokenizer .* has 259 pieces, padded 384"):
        sources.open_megatron(lm, tiny_hf)


def test_a_hugging_face_tokenizer_is_taken_as_it_is(megatron, tiny_hf, tmp_path):
    """Its vocabulary is padded to the model's rows with a multiple of 1024."""
    checkpoint = rewritten(megatron, tmp_path, make_vocab_size_divisible_by=1024)
    source, identity = sources.open_megatron(checkpoint, tiny_hf)
    assert identity.vocab_size == 259
    out = convert.to_hf(source, tmp_path / "hf")
    assert (out / "tokenizer.json").read_bytes() == (tiny_hf / "tokenizer.json").read_bytes()
    config = json.loads((out / "config.json").read_text())
    assert (config["vocab_size"], config["eos_token_id"], config["pad_token_id"]) == (259, 1, 2)
    assert load_file(out / "model.safetensors")["lm_head.weight"].shape == (259, 64)


class Program:
    """What a hostile pickle does when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_that_a_pickle_names_is_run(megatron, tokenizer, tmp_path):
    mark = tmp_path / "run"
    checkpoint = rewritten(megatron, tmp_path)
    with zipfile.ZipFile(checkpoint / "common.pt", "w") as archive:
        archive.writestr("common/data.pkl", pickle.dumps({"args": Program(mark), "iteration": 20}))
    with pytest.raises(UserError, match=r"common\.pt is refused: it names (pathlib\.Path\.touch|builtins\.getattr)"):
        sources.open_megatron(checkpoint, tokenizer)
    torch.save({"args": pickles.read_common(megatron / "lm" / "iter_0000020")["iteration"]}, checkpoint / "common.pt")
    with pytest.raises(UserError, match="does not say what model it is"):
        sources.open_megatron(checkpoint, tokenizer)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Program(mark)))
    with pytest.raises(UserError, match=r"\.metadata is refused: it names"):
        convert.read_weights(checkpoint, "")
    pickle.loads(pickle.dumps(Program(mark)))
    assert mark.exists()
    mark.unlink()
    assert not mark.exists()


def test_bridge_s_configuration_is_checked_like_any_other(megatron, tokenizer, tmp_path):
    checkpoint = shutil.copytree(megatron / "bridge" / "iter_0000020", tmp_path / "iter_0000020")
    path = checkpoint / "run_config.yaml"
    content = yaml.safe_load(path.read_text())
    content["model"]["num_moe_experts"] = 4
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"run_config\.yaml: num_moe_experts is 4"):
        sources.open_megatron(checkpoint, tokenizer)
    path.write_text("model: [")
    with pytest.raises(UserError, match="is no YAML"):
        sources.open_megatron(checkpoint, tokenizer)


def test_options_that_a_checkpoint_does_not_need_are_refused(ours, megatron, tokenizer, benchmarks):
    data = ["--data", str(benchmarks)]
    with pytest.raises(UserError, match="leave --tokenizer out"):
        run.main([*data, "--nemo-ckpt", str(ours), "--tokenizer", str(tokenizer)])
    with pytest.raises(UserError, match="leave --loss out"):
        run.main([*data, "--nemo-ckpt", str(ours), "--loss", "2.5"])
    with pytest.raises(UserError, match="no checkpoint is given"):
        run.main(data)
    both = [str(megatron / "lm"), str(megatron / "local")]
    with pytest.raises(UserError, match="one loss for 2 checkpoints"):
        run.main([*data, "--megatron-ckpt", *both, "--tokenizer", str(tokenizer), "--loss", "2.5"])
    with pytest.raises(UserError, match="--loss nan: No such file"):
        run.main([*data, "--megatron-ckpt", both[0], "--tokenizer", str(tokenizer), "--loss", "nan"])
