"""Hugging Face models as checkpoints, and a run whose checkpoints are evaluated as they appear."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
from commands import REPOSITORY, run_command

from emergence_eval import convert, harness, hf_checkpoint, options, run, sources, task_scores, watch
from emergence_eval.results import read_result, read_rows, rows_path
from emergence_eval.sharding import Processes
from recipes.checkpoint import Manifest, write_manifest
from tokenizer.cli import UserError

TASK = ["--tasks", "cluewsc", "--limit", "2", "--device", "cpu"]


@pytest.fixture
def command(benchmarks):
    return lambda *arguments: run.main(["--data", str(benchmarks), *TASK, *map(str, arguments)])


def make_gpt_neox(tiny_hf: Path, out: Path) -> Path:
    """A tiny Pythia: another architecture, its embedding and output under other names."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    GPTNeoXForCausalLM(config).to(torch.bfloat16).save_pretrained(out)
    for path in tiny_hf.glob("*token*"):
        shutil.copy(path, out)
    return out


def test_any_causal_model_is_evaluated_and_says_what_it_does_not_know(tiny_hf, command, tmp_path, capfd):
    model = make_gpt_neox(tiny_hf, tmp_path / "models" / "pythia-tiny-step3000")
    command("--hf-ckpt", model, "--loss", "3.25")
    result = read_result(tmp_path / "models" / "eval" / "pythia-tiny-step3000.json")
    assert "cluewsc" in result.tasks and result.environment.dtype == "float32"
    it = result.checkpoint
    assert (it.origin, it.run, it.step, it.precision) == ("huggingface", "pythia-tiny-step3000", 3000, "bf16")
    assert (it.sequence_length, it.vocab_size, it.losses) == (256, 259, {"heldout": 3.25})
    assert {"tokens", "flops_6nd", "seed", "final", "data_fingerprint"} <= set(it.unknown)
    assert not {"step", "losses", "precision"} & set(it.unknown)
    from transformers import AutoModelForCausalLM

    counted = AutoModelForCausalLM.from_pretrained(model)
    assert it.parameters == counted.num_parameters()
    assert it.parameters_non_embedding == it.parameters - 2 * 259 * 32
    capfd.readouterr()
    command("--hf-ckpt", model, "--loss", "3.25")
    assert "up to date" in capfd.readouterr().out


def test_its_scores_are_those_of_the_same_weights_from_nemo(tiny_hf, command, tmp_path):
    nemo = convert.hf_to_nemo(tiny_hf, tmp_path / "run" / "step_10")
    command("--nemo-ckpt", nemo, "--out", tmp_path / "nemo.json")
    command("--hf-ckpt", tiny_hf, "--out", tmp_path / "hf.json")
    assert read_result(tmp_path / "nemo.json").tasks == read_result(tmp_path / "hf.json").tasks
    first, second = (read_rows(rows_path(tmp_path / f"{name}.json")) for name in ("nemo", "hf"))
    assert first.equals(second)


def test_tied_weights_are_counted_once(tiny_hf, tmp_path):
    from transformers import GlmConfig, GlmForCausalLM

    config = GlmConfig.from_pretrained(tiny_hf)
    config.tie_word_embeddings = True
    model = GlmForCausalLM(config)
    model.save_pretrained(tmp_path)
    for path in tiny_hf.glob("*token*"):
        shutil.copy(path, tmp_path)
    _, identity = hf_checkpoint.open_hf(str(tmp_path))
    assert identity.parameters == model.num_parameters()
    assert identity.parameters_non_embedding == identity.parameters - 259 * 32
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert hf_checkpoint.open_hf(str(tmp_path))[1].parameters == identity.parameters


def test_code_of_the_model_s_own_never_runs(tiny_hf, command, tmp_path):
    model = shutil.copytree(tiny_hf, tmp_path / "model")
    mark = tmp_path / "ran"
    (model / "modeling_own.py").write_text(f"open({str(mark)!r}, 'w')\nclass Own: pass\n")
    (model / "configuration_own.py").write_text(f"open({str(mark)!r}, 'w')\nclass OwnConfig: pass\n")
    config = json.loads((model / "config.json").read_text())
    own = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.Own"}
    (model / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": own}))
    with pytest.raises(UserError, match=r"cannot load it .*never run here"):
        command("--hf-ckpt", model)
    assert not mark.exists() and not (tmp_path / "eval").exists()


def test_what_is_no_model_is_refused(tiny_hf, command, tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=no_network))
    for given, message in (
        (tmp_path, "no config.json"),
        ("../nothing/at/all", "is no directory; give one"),
        ("nobody/nothing@step1", r"cannot be had from the hub \(ConnectionError: no network\)"),
    ):
        with pytest.raises(UserError, match=message):
            command("--hf-ckpt", given)
    for name, message in (("model.safetensors", "holds no weights"), ("tokenizer", "holds no tokenizer")):
        copy = shutil.copytree(tiny_hf, tmp_path / name)
        for path in copy.glob(f"{name}*"):
            path.unlink()
        with pytest.raises(UserError, match=message):
            command("--hf-ckpt", copy)
    with pytest.raises(UserError, match="leave --tokenizer out"):
        command("--hf-ckpt", tiny_hf, "--tokenizer", tmp_path)


def test_a_name_is_fetched_and_its_result_lies_here(tiny_hf, command, tmp_path, monkeypatch):
    asked = []

    def fetch(repository, revision, allow_patterns):
        asked.append((repository, revision))
        return str(tiny_hf)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=fetch))
    directory, identity = hf_checkpoint.open_hf("org/model@step512")
    assert (directory, asked) == (tiny_hf, [("org/model", "step512")])
    assert (identity.run, identity.step) == ("org--model@step512", 512)
    monkeypatch.chdir(tmp_path)
    from emergence_eval.checkpoints import open_checkpoints

    (checkpoint,) = open_checkpoints([], None, hf=["org/model@step512"])
    assert checkpoint.output == tmp_path / "eval" / "org--model@step512.json"


def test_a_bridge_directory_is_recognised_by_nemo_ckpt(tiny_hf, tmp_path):
    """The same weights, arguments in run_config.yaml."""
    import yaml

    nemo = convert.hf_to_nemo(tiny_hf, tmp_path / "step_10")
    bridge = tmp_path / "run" / "iter_0000010"
    shutil.copytree(nemo / "weights", bridge)
    table = pickle.loads((bridge / ".metadata").read_bytes())
    table.state_dict_metadata = {key.removeprefix("module."): it for key, it in table.state_dict_metadata.items()}
    table.storage_data = {
        dataclasses.replace(key, fqn=key.fqn.removeprefix("module.")): it for key, it in table.storage_data.items()
    }
    (bridge / ".metadata").write_bytes(pickle.dumps(table))
    config = yaml.safe_load((nemo / "context/model.yaml").read_text())["config"]
    (bridge / "run_config.yaml").write_text(yaml.safe_dump({"model": config, "train": {"train_iters": 10}}))
    (tmp_path / "run" / "latest_checkpointed_iteration.txt").write_text("10")
    for given in (bridge, tmp_path / "run"):
        source, identity = sources.open_nemo(given, tiny_hf)
        assert (identity.origin, identity.step, source.directory) == ("megatron", 10, bridge)


@pytest.fixture
def training(tiny_hf, tmp_path, monkeypatch):
    """A run directory, and what puts a checkpoint into it as `recipes.saving` does."""
    monkeypatch.setattr(convert, "nemo_to_hf", lambda checkpoint, out: shutil.copytree(tiny_hf, out))
    monkeypatch.setattr(watch, "POLL_SECONDS", 0)
    names = ("grid", "run", "size", "precision", "tokenizer_sha256", "data_fingerprint", "git_revision")
    values = dict.fromkeys((it.name for it in dataclasses.fields(Manifest)), 1) | dict.fromkeys(names, "x")
    values |= {"losses": {"heldout": 5.0}, "files": (), "schema": 1, "checksum": "", "precision": "fp32"}
    folder = tmp_path / "grid" / "small"
    folder.mkdir(parents=True)

    def save(step: int, *, final: bool = False, whole: bool = True) -> None:
        aside = folder / "checkpoints" / f".step_{step}.saving"
        aside.mkdir(parents=True)
        if whole:
            write_manifest(aside, Manifest(**{**values, "step": step, "final": final, "run": "small"}))
            aside.rename(folder / "checkpoints" / f"step_{step}")

    return folder, save


def test_each_checkpoint_is_evaluated_as_it_appears_until_the_run_ends(training, command, monkeypatch, capfd):
    folder, save = training
    evaluated, waits = [], []
    original = task_scores.evaluate_task

    def evaluate_task(*arguments):
        evaluated.append(len(waits))
        return original(*arguments)

    def sleep(seconds):
        waits.append(seconds)
        script = {1: lambda: save(10), 2: lambda: save(99, whole=False), 3: lambda: (save(20), save(30))}
        script.get(len(waits), lambda: save(40, final=True))()

    monkeypatch.setattr(task_scores, "evaluate_task", evaluate_task)
    monkeypatch.setattr(watch.new_checkpoints, "__defaults__", (sleep,))
    command("--watch", folder)
    assert evaluated == [1, 3, 3, 4]
    names = sorted(path.name for path in (folder / "eval").glob("*.json"))
    assert names == [f"step_{step}.json" for step in (10, 20, 30, 40)]
    assert capfd.readouterr().out.count(".json: cluewsc ") == 4
    command("--watch", folder)
    assert len(evaluated) == 4 and capfd.readouterr().out.count("is up to date") == 4


def test_an_interrupted_watch_goes_on(training, command, monkeypatch):
    folder, save = training

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.new_checkpoints, "__defaults__", (interrupt,))
    save(10)
    with pytest.raises(KeyboardInterrupt):
        command("--watch", folder)
    assert (folder / "eval" / "step_10.json").is_file()
    save(20, final=True)
    command("--watch", folder)
    assert (folder / "eval" / "step_20.json").is_file()


def test_what_cannot_be_watched_is_refused(training, command, tmp_path):
    folder, save = training
    save(10)
    for given, message in (
        (tmp_path / "no" / "such" / "run", "give a run's directory"),
        (folder / "checkpoints" / "step_10", "is no run's directory"),
        (folder / "checkpoints", "is no run's directory"),
    ):
        with pytest.raises(UserError, match=message):
            command("--watch", given)
    with pytest.raises(UserError, match="leave --nemo-ckpt out"):
        command("--watch", folder, "--nemo-ckpt", folder / "checkpoints" / "step_10")
    with pytest.raises(UserError, match="names one file"):
        command("--watch", folder, "--out", tmp_path / "a.json")


def test_precision_is_the_model_s_own_on_a_gpu_and_full_on_a_cpu(tiny_hf):
    assert options.BACKENDS == harness.BACKENDS
    values = {"tasks": [], "hashes": {}, "data": Path(), "limit": None, "batch_size": 1, "keep_hf": None}
    checkpoint = types.SimpleNamespace(identity=types.SimpleNamespace(precision="bf16", manifest_sha256=""))
    for device, dtype, precision, expected in (
        ("cpu", "auto", "bf16", "float32"),
        ("cuda:1", "auto", "bf16", "bfloat16"),
        ("cuda", "auto", "fp32", "float32"),
        ("cpu", "bfloat16", "fp32", "bfloat16"),
    ):
        checkpoint.identity.precision = precision
        job = run.Job(**values, device=device, dtype=dtype, backend="ours", processes=Processes())
        assert job.dtype_of(checkpoint) == expected


@pytest.mark.slow
def test_two_processes_write_the_same_result(tiny_hf, benchmarks, tmp_path):
    script = str(REPOSITORY / "emergence_eval" / "run.py")
    arguments = [script, "--data", str(benchmarks), "--tasks", "cluewsc,gsm8k,c3", "--hf-ckpt", str(tiny_hf)]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run_command([sys.executable, *arguments, "--out", str(tmp_path / "one.json")])
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    done = run_command([*two, "--out", str(tmp_path / "two.json")])
    assert done.stdout.count("two.json: ") == 1
    one, other = (read_result(tmp_path / f"{name}.json") for name in ("one", "two"))
    assert dataclasses.replace(other, environment=one.environment) == one
    assert read_rows(rows_path(tmp_path / "one.json")).equals(read_rows(rows_path(tmp_path / "two.json")))
