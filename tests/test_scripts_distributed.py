"""Stage 2 on two processes, whole (DDP) or sharded (FSDP2), learns what one process learns, and goes on as another."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from lm.vocabulary import train_text_tokenizer
from pipelines import TextToImagePipeline
from pipelines.caching import sources
from pipelines.training.loop import Loop
from scripts import train_lm, train_tokenizer

ROOT = Path(__file__).resolve().parents[1]
STAGE_1 = dict(
    num_workers=0, cpu_threads=1, mixed_precision="no", batch_size=16, max_steps=2, max_examples=64, image_size=16,
    patch_size=4, hidden_sizes=[8, 16], codebook_sizes=[16, 12], num_res_blocks=1, code_dim=4, quantizer="residual",
)  # fmt: skip
# A norm that clips, averages that matter, captions of different lengths and both kinds of loss.
STAGE_2 = dict(
    num_workers=0, cpu_threads=1, mixed_precision="no", batch_size=8, max_steps=6, max_examples=64, warmup_steps=2,
    log_every=1, validate_every=2, sample_every=4, checkpoint_every=3, learning_rate=1e-2, max_grad_norm=0.5,
    ema_decay=0.9, num_layers=2, hidden_size=32, intermediate_size=64, num_heads=2, text_vocab_size=300,
    formats=["caption_and_image", "image_to_caption"], z_loss_weight=1e-3,
)  # fmt: skip
SIZES = ("num_layers", "hidden_size", "intermediate_size", "num_heads")
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}  # fmt: skip
TOLERANCE = 1e-4


class Killed(BaseException):
    """Takes the place of SIGKILL."""


def is_killed(script, options, kill_at: int = 0) -> bool:
    """Run a script's main; with `kill_at`, it stops after so many steps with nothing cleaned up or saved."""
    AcceleratorState._reset_state(reset_partial_state=True)
    original = Loop.finish_step

    def finish_step(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if self.progress.step == kill_at:
            raise Killed

    Loop.finish_step = finish_step
    try:
        script.main(options)
    except Killed:
        return True
    finally:
        Loop.finish_step = original
    return False


def train(options: train_lm.LanguageModelOptions, kill_at: int = 0) -> None:
    """Run stage 2, as `is_killed` does."""
    is_killed(train_lm, options, kill_at)


def on_two_processes(rank: int, port: int, runs: list) -> None:
    """What each of two spawned processes does, as torchrun would start it."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in ranks.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"})
    sources.VALIDATION_PICTURES = 20
    for options, environment, kill_at in runs:
        for name in FSDP:
            os.environ.pop(name, None)
        os.environ.update(environment)
        train(options, kill_at)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """All runs: started one after the other, since starting processes is what takes time."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESSERA_CACHE", str(folder / "pictures"))
        patch.setattr(sources, "VALIDATION_PICTURES", 20)
        AcceleratorState._reset_state(reset_partial_state=True)
        train_tokenizer.main(train_tokenizer.ImageTokenizerOptions(output_dir=str(folder / "tokenizer"), **STAGE_1))
        train(options(folder, "one"))
        train(options(folder, "muon", optimizer="muon"))
        train(options(folder, "one-then-fsdp"), kill_at=4)
        tied = dict(lm_name_or_path=pretrained(folder / "gpt2"), **dict.fromkeys(SIZES), text_vocab_size=4096)
        train(options(folder, "tied", **tied))
        muon, parts = options(folder, "fsdp-muon", optimizer="muon"), dict(gradient_accumulation_steps=2)
        runs = [
            (options(folder, "ddp", **parts), {}, 0),
            (options(folder, "fsdp", **parts), FSDP, 0),
            (muon, FSDP, 4),
            (replace(muon, resume=True), FSDP, 0),
            (options(folder, "fsdp-tied", **tied), FSDP, 0),
            (options(folder, "fsdp-recomputed", gradient_checkpointing=True), FSDP, 0),
            (options(folder, "fsdp-last", keep_best=False), FSDP, 0),
            (options(folder, "fsdp-then-one"), FSDP, 4),
            (options(folder, "ddp-then-one"), {}, 4),
            (options(folder, "one-then-fsdp", resume=True), FSDP, 0),
        ]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        torch.multiprocessing.spawn(on_two_processes, (port, runs), nprocs=2)
        for name in ("fsdp-then-one", "ddp-then-one"):
            train(options(folder, name, resume=True))
    return folder


def pretrained(folder: Path) -> str:
    """A GPT-2, whose output layer is its embeddings, without dropout, which draws other numbers in each process."""
    tokenizer = train_text_tokenizer(["a red dog", "a small blue house"] * 3, 280)
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"})
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=128, resid_pdrop=0.0,
                        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=280, eos_token_id=280)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def options(folder: Path, name: str, **changes) -> train_lm.LanguageModelOptions:
    places = dict(output_dir=str(folder / name), image_tokenizer=str(folder / "tokenizer"),
                  token_cache=str(folder / "cache"))  # fmt: skip
    return train_lm.LanguageModelOptions(**{**STAGE_2, **places, **changes})


def lines(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = {"seconds", "mfu"}
    return [{n: v for n, v in line.items() if n not in clock and not n.endswith("_per_second")} for line in found]


@pytest.mark.parametrize("name, like", [
    ("ddp", "one"), ("fsdp", "one"), ("fsdp-recomputed", "one"), ("fsdp-muon", "muon"), ("fsdp-then-one", "one"),
    ("ddp-then-one", "one"), ("one-then-fsdp", "one"), ("fsdp-tied", "tied"),
])  # fmt: skip
def test_the_same_is_learned(folder, name, like):
    """Every logged loss and norm, every validation, every tensor of the last checkpoint, the final weights."""
    ours, theirs = lines(folder / name), lines(folder / like)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=TOLERANCE), one["step"]
    assert any(line.get("grad_norm", 0) > 0.5 for line in theirs), "clipping has something to do"
    assert all(0 < line["z_loss"] < line["loss"] for line in theirs if "loss" in line)
    for file in ("lm/model.safetensors", "checkpoints/checkpoint-6/state.safetensors",
                 "checkpoints/best/lm/model.safetensors"):  # fmt: skip
        ours, theirs = load_file(folder / name / file), load_file(folder / like / file)
        assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}, file
        for key, tensor in theirs.items():
            if not key.startswith("random/"):
                apart = (ours[key].double() - tensor.double()).norm()
                # Muon rounds to bfloat16 inside, where the last bit of a gradient can tip one.
                bound = 2e-2 if like == "muon" else 10 * TOLERANCE
                assert apart <= bound * tensor.double().norm() + 1e-6, (file, key)
    infos = [json.loads((folder / run / "run.json").read_text()) for run in (name, like)]
    assert infos[0]["tokens_seen"] == infos[1]["tokens_seen"] and infos[0]["finished"]


def test_averaged_weights_are_what_is_saved(folder):
    saved = load_file(folder / "fsdp-last" / "lm" / "model.safetensors")
    state = load_file(folder / "fsdp-last" / "checkpoints" / "checkpoint-6" / "state.safetensors")
    assert all(torch.equal(saved[name], state[f"averaged/{name}"]) for name in saved)
    assert any(not torch.equal(saved[name], state[f"model/{name}"]) for name in saved)
    files = (folder / "fsdp" / place / "lm" / "model.safetensors" for place in ("", "checkpoints/best"))
    kept, best = map(load_file, files)
    assert all(torch.equal(kept[name], best[name]) for name in kept)


def test_what_shards_leave_is_a_whole_model(folder):
    for place in ("fsdp", "fsdp/checkpoints/best"):
        pipe = TextToImagePipeline.from_pretrained(folder / place)
        assert pipe("a dog", seed=0).images[0].size == (16, 16)
    names = {path.name for path in (folder / "fsdp" / "samples").iterdir()}
    assert names == {path.name for path in (folder / "one" / "samples").iterdir()} == {
        "step-000004.png", "step-000006.png"
    }  # fmt: skip
    for name in names:
        assert (folder / "fsdp" / "samples" / name).read_bytes() == (folder / "one" / "samples" / name).read_bytes()


# Configuration files


def launch(folder: Path, config: Path | str, script: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` on two CPU processes."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config),
                "--num_processes", "2", "--main_process_port", "0"]  # fmt: skip
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                   "TESSERA_CACHE": str(folder / "pictures")}  # fmt: skip
    return subprocess.run([*launcher, script, *words], cwd=ROOT, env=environment, capture_output=True, text=True,
                          timeout=300)  # fmt: skip


def flags(options: train_lm.LanguageModelOptions) -> list[str]:
    words: list[str] = []
    for name, value in vars(options).items():
        if value is not None and value is not False and value != []:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def test_the_shipped_files_start_the_script(folder):
    """As docs/scaling.md says; what one process learns is there to compare with."""
    asked = options(folder, "launched")
    done = launch(folder, "configs/fsdp2.yaml", "scripts/train_lm.py", flags(asked))
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = lines(folder / "launched"), lines(folder / "one")
    theirs = [line for line in theirs if "loss" in line]
    for one, other in zip([line for line in ours if "loss" in line], theirs, strict=True):
        assert one == pytest.approx(other, rel=TOLERANCE)


@pytest.mark.parametrize("change, message", [
    ({"fsdp_version": 1}, "FSDP version 1: set fsdp_version: 2"),
    ({"fsdp_cpu_ram_efficient_loading": True}, "fsdp_cpu_ram_efficient_loading: true .*set it to false"),
])  # fmt: skip
def test_configurations_that_would_go_wrong(folder, tmp_path, monkeypatch, change, message):
    settings = {**yaml.safe_load((ROOT / "configs" / "fsdp2.yaml").read_text())["fsdp_config"], **change}
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for name, value in settings.items():
        monkeypatch.setenv(name.upper(), str(value).lower())
    from pipelines.training import distribution

    accelerator = pretended(monkeypatch)
    with pytest.raises(ValueError, match=message):
        distribution.check_distribution(accelerator)
    with pytest.raises(ValueError, match="configured for FSDP, and stage 1 runs .*configs/ddp.yaml"):
        distribution.check_distribution(accelerator, plain=True)


def pretended(monkeypatch):
    """An Accelerator of one process that takes itself for one of several under FSDP."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    from pipelines.training.distribution import shard_on_cpu

    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    accelerator.state.distributed_type = DistributedType.MULTI_CPU
    monkeypatch.setattr("pipelines.training.distribution.PartialState", lambda: accelerator.state)
    shard_on_cpu(accelerator)
    return accelerator


def test_configuration_files_say_what_their_names_say():
    kinds = {}
    for file in (ROOT / "configs").glob("*.yaml"):
        if "distributed_type" not in file.read_text():  # not Accelerate's
            continue
        if file.stem in ("kubernetes", "skypilot"):  # test_scripts_schedulers.py
            continue
        settings = yaml.safe_load(file.read_text())
        kinds[file.stem] = settings["distributed_type"]
        assert settings["mixed_precision"] == "no", "the script's own --mixed_precision decides"
        assert f"configs/{file.name}" in (ROOT / "docs" / "scaling.md").read_text()
    assert kinds == {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}


def test_more_processes_than_shares(folder, tmp_path):
    asked = replace(options(folder, "odd"), batch_size=9, output_dir=str(tmp_path / "odd"))
    done = launch(folder, "configs/ddp.yaml", "scripts/train_lm.py", flags(asked))
    assert done.returncode and "--batch_size 9 is not a multiple of 2 (2 processes x 1 accumulation" in done.stderr
