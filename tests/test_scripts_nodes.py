"""Training on nodes that share no disk: the main process's folder counts, and the others are told what is in it."""

from __future__ import annotations

import json
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import two_nodes
from safetensors.torch import load_file
from test_scripts_distributed import STAGE_1, STAGE_2, is_killed
from tiny import tiny_tokenizer

from pipelines.caching import sources
from scripts import cache_tokens, train_lm, train_tokenizer

LM = dict(image_tokenizer="tokenizer", token_cache="cache", output_dir="model")


def run_as(script, options, kill_at: int = 0) -> str:
    """ "killed" where `is_killed`, or what a user got wrong."""
    try:
        return "killed" if is_killed(script, options, kill_at) else ""
    except ValueError as error:
        return str(error)


def on_a_node(rank: int, port: int, folder: str) -> None:
    """What the process of a node does, in the node's own folder."""
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1",
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
                       "TESSERA_CACHE": f"{folder}/node-{rank}/tessera"})  # fmt: skip
    os.chdir(f"{folder}/node-{rank}")
    sources.VALIDATION_PICTURES = 20
    options = train_lm.LanguageModelOptions(**STAGE_2, **LM)
    stage_1 = train_tokenizer.ImageTokenizerOptions(
        **{**STAGE_1, "max_steps": 4, "checkpoint_every": 2}, output_dir="stage_1"
    )
    said = {
        "stage_1": run_as(train_tokenizer, replace(stage_1, output_dir="stage_1_undisturbed")),
        "stage_1_killed": run_as(train_tokenizer, stage_1, 3),
        "stage_1_resumed": run_as(train_tokenizer, replace(stage_1, resume=True)),
        "undisturbed": run_as(train_lm, replace(options, output_dir="undisturbed")),
        "killed": run_as(train_lm, options, 5),
        "forgotten": run_as(train_lm, options),
        "resumed": run_as(train_lm, replace(options, resume=True)),
        "finished": run_as(train_lm, replace(options, resume=True)),
        "uncached": run_as(train_lm, replace(options, token_cache="nothing", output_dir="uncached")),
        "half": run_as(train_lm, replace(options, token_cache="half", output_dir="half-a-cache")),
        "other": run_as(train_lm, replace(options, token_cache="other", output_dir="other-cache")),
    }
    Path("said.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "node-0").mkdir()
    tiny_tokenizer().save_pretrained(folder / "node-0" / "tokenizer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESSERA_CACHE", str(folder / "tessera"))
        patch.setattr(sources, "VALIDATION_PICTURES", 20)
        patch.chdir(folder / "node-0")
        common = dict(image_tokenizer="tokenizer", num_workers=0, cpu_threads=1)
        cache_tokens.main(cache_tokens.Options(**common, max_examples=64, token_cache="cache"))
        shutil.copytree("cache", "other")
        shutil.copytree("cache", "half")
        shutil.copytree(folder / "node-0", folder / "node-1")
        shutil.rmtree(folder / "node-1" / "half")
        shutil.rmtree(folder / "node-1" / "other" / "train")
        cache_tokens.main(cache_tokens.Options(**common, max_examples=64, seed=0, shard_rows=32, splits=["train"],
                                               token_cache=str(folder / "node-1" / "other")))  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(on_a_node, (port, str(folder)), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def said(folder) -> dict[str, str]:
    """What both processes said."""
    first, second = (json.loads((folder / f"node-{rank}" / "said.json").read_text()) for rank in range(2))
    assert first == second, "what ends one process ends all in the same way"
    return first


@pytest.mark.parametrize("undisturbed, resumed, weights", [
    ("undisturbed", "model", "lm/model.safetensors"), ("stage_1_undisturbed", "stage_1", "model.safetensors"),
])  # fmt: skip
def test_a_run_goes_on_from_the_first_nodes_checkpoint(folder, said, undisturbed, resumed, weights):
    assert [said[name] for name in ("killed", "resumed", "stage_1_killed", "stage_1_resumed")] == ["killed", ""] * 2
    first = folder / "node-0"
    assert two_nodes.same_weights(first / undisturbed / weights, first / resumed / weights)
    assert json.loads((first / resumed / "run.json").read_text())["finished"]
    assert not (folder / "node-1" / resumed).exists(), "only the main process writes"


def test_checkpoints_are_those_of_an_undisturbed_run(folder, said):
    states = [load_file(folder / "node-0" / name / "checkpoints" / "checkpoint-6" / "state.safetensors")
              for name in ("undisturbed", "model")]  # fmt: skip
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_what_is_there_is_known_to_all(said):
    assert "--output_dir model already holds a run: pass --resume" in said["forgotten"]
    assert said["finished"] == ""


def test_token_caches_that_are_not_the_same_everywhere(said):
    assert "token cache nothing/train is to be built, and the nodes do not share this folder" in said["uncached"]
    assert "half/train is whole on some nodes alone, and the nodes do not share" in said["half"]
    assert "token cache other/train has other rows on one node than on another" in said["other"]


@pytest.mark.slow
def test_two_nodes_of_which_one_is_lost(tmp_path, capsys):
    """In network namespaces, through launchers; minutes on one core."""
    if reason := two_nodes.why_not():
        pytest.skip(reason)
    two_nodes.main(tmp_path)
    assert capsys.readouterr().out.count("the weights at the end are those of the undisturbed run") == 2
