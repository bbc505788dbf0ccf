"""--lora_rank: adapters and the rows of new tokens are trained, everything else stays bit by bit."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors import safe_open
from safetensors.torch import load_file
from test_lm_pretrained import trained_image_tokenizer
from tiny import tiny_model, tiny_tokenizer, tiny_vocabulary
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen3Config, Qwen3ForCausalLM

from lm.lora import AdaptedModel, frozen_in_bfloat16, load_trained, save_trained, trained_parameters
from lm.training.losses import NextTokenLoss
from lm.vocabulary import MultimodalVocabulary, train_text_tokenizer
from pipelines import TextToImagePipeline
from pipelines.options.language_model import LanguageModelOptions
from pipelines.training.averages import AveragedWeights
from pipelines.training.memory import estimate_memory
from pipelines.training.optimizers import (
    build_optimizers,
    check_optimizer_tensors,
    load_optimizer_tensors,
    optimizer_bytes,
    optimizer_tensors,
)
from scripts import train_lm

NEW = 5  # special tokens before the image codes


def adapted_model(architecture: str = "llama", tied: bool = False) -> tuple[AdaptedModel, MultimodalVocabulary, int]:
    vocabulary = tiny_vocabulary(tiny_tokenizer())
    model = tiny_model(vocabulary, architecture=architecture)
    if tied:
        model.config.tie_word_embeddings = True
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    first = vocabulary.image_offset - NEW
    return AdaptedModel(model, 4, first, vocabulary.size - first), vocabulary, first


def batch(vocabulary: MultimodalVocabulary) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    ids = torch.randint(0, vocabulary.size, (3, 9))
    return ids, ids, torch.arange(9).expand(3, 9), torch.ones(3, 9)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_merged_model_is_plain_and_computes_what_the_adapted_one_did(architecture, tied, tmp_path):
    adapted, vocabulary, first = adapted_model(architecture, tied)
    model, inputs = adapted.model, batch(vocabulary)
    frozen = {name: each.detach().clone() for name, each in model.named_parameters() if not each.requires_grad}
    loss = NextTokenLoss(model, vocabulary.id_ranges)
    optimizer = torch.optim.AdamW(trained_parameters(model).values(), lr=0.05)
    for _ in range(3):
        loss(*inputs)["loss"].backward()
        assert all(parameter.grad is not None for parameter in trained_parameters(model).values())
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(each, frozen[name]) for name, each in model.named_parameters() if name in frozen)
    with torch.no_grad():
        logits, nats = model(inputs[0]).logits, float(loss(*inputs)["loss"])
        plain = adapted.merge()
        assert torch.allclose(plain(inputs[0]).logits, logits, atol=1e-4)
        assert float(NextTokenLoss(plain, vocabulary.id_ranges)(*inputs)["loss"]) == pytest.approx(nats, rel=1e-5)
    stock = tiny_model(vocabulary, architecture=architecture)
    assert type(plain) is type(stock) and plain.state_dict().keys() == stock.state_dict().keys()
    for layer, name in ((plain.get_input_embeddings(), "embeddings"), (plain.get_output_embeddings(), "output")):
        table = next(each for each in frozen.values() if each.shape == layer.weight.shape) if tied else None
        before = (
            table if tied else [each for each in frozen.values() if each.shape == layer.weight.shape][name == "output"]
        )
        assert torch.equal(layer.weight[:first], before[:first]), f"rows of the {name} that were not new"
        assert (layer.weight[first:] != before[first:]).any(), f"rows of new tokens in the {name} have learned"
    plain.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(inputs[0]).logits, plain.eval()(inputs[0]).logits)


def test_adapters_compute_what_the_paper_says():
    """W x + (alpha / rank) B A x, with alpha 32."""
    adapted, *_ = adapted_model()
    layer = adapted.model.model.layers[0].mlp.up_proj
    torch.nn.init.normal_(layer.lora_B.default.weight)
    x = torch.randn(2, 32)
    a, b = layer.lora_A.default.weight, layer.lora_B.default.weight
    assert torch.allclose(
        layer(x), F.linear(x, layer.base_layer.weight) + 32 / 4 * F.linear(F.linear(x, a), b), atol=1e-5
    )
    assert adapted.num_layers == 14, "all linear layers of both blocks, and not the output layer"


def test_averages_and_kept_weights_are_of_what_is_trained_alone(tmp_path):
    adapted, *_ = adapted_model()
    averages = AveragedWeights(adapted.model, 0.9, trained_only=True)
    trained = trained_parameters(adapted.model)
    assert averages.names == list(trained)
    save_trained(adapted.model, tmp_path)
    assert load_file(tmp_path / "trained.safetensors").keys() == trained.keys()
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(1)
    load_trained(adapted.model, tmp_path)
    assert all(torch.equal(parameter, before[name]) for name, parameter in trained.items())


def test_frozen_matrices_in_bfloat16_compute_what_they_compute_in_float32_under_autocast():
    results = []
    for frozen in (torch.float32, torch.bfloat16):
        vocabulary = tiny_vocabulary(tiny_tokenizer())
        model = tiny_model(vocabulary).to(torch.bfloat16).float()  # values that bfloat16 has
        model = frozen_in_bfloat16(model) if frozen == torch.bfloat16 else model
        torch.manual_seed(0)
        first = vocabulary.image_offset
        adapted = AdaptedModel(model, 4, first, vocabulary.size - first)
        assert model.model.layers[0].mlp.up_proj.base_layer.weight.dtype == frozen
        assert all(parameter.dtype == torch.float32 for parameter in trained_parameters(model).values())
        with torch.autocast("cpu", torch.bfloat16):
            loss = NextTokenLoss(model, vocabulary.id_ranges)(*batch(vocabulary))["loss"]
        loss.backward()
        gradients = [parameter.grad for parameter in trained_parameters(model).values()]
        assert next(iter(adapted.merge().parameters())).dtype == torch.float32
        results.append((loss.detach(), gradients))
    (loss, gradients), (other, others) = results
    assert torch.equal(loss, other) and all(map(torch.equal, gradients, others))


# Through the script


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """tokenizer/: an image tokenizer; qwen/ and gpt2/: language models with text tokenizers."""
    folder = tmp_path_factory.mktemp("parts")
    with pytest.MonkeyPatch.context() as patch:
        trained_image_tokenizer(folder, patch)
        torch.manual_seed(0)
        text = train_text_tokenizer(["a red dog", "a small blue house on the left"] * 3, 280)
        text.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
        Qwen3ForCausalLM(Qwen3Config(
            vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, max_position_embeddings=128, tie_word_embeddings=True,
        )).to(torch.bfloat16).save_pretrained(folder / "qwen")  # fmt: skip
        GPT2LMHeadModel(
            GPT2Config(vocab_size=len(text), n_embd=32, n_layer=2, n_head=2, n_positions=128)
        ).save_pretrained(folder / "gpt2")
        for name in ("qwen", "gpt2"):
            text.save_pretrained(folder / name)
        yield folder


def train(output_dir: Path, parts: Path, **changes) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    settings = dict(
        output_dir=str(output_dir), image_tokenizer=str(parts / "tokenizer"), token_cache=str(parts / "cache"),
        num_workers=0, cpu_threads=1, mixed_precision="no", batch_size=8, max_steps=4, max_examples=32, warmup_steps=1,
        log_every=1, validate_every=1, max_caption_tokens=32, lora_rank=2, learning_rate=0.01, patience=0.0,
    )  # fmt: skip
    train_lm.main(LanguageModelOptions(**{**settings, **changes}))
    return output_dir


@pytest.mark.parametrize("name, precision", [("qwen", "no"), ("qwen", "bf16"), ("gpt2", "no")])
def test_a_run_leaves_a_plain_model_whose_old_rows_are_those_that_it_started_with(
    parts, tmp_path, capsys, name, precision
):
    model = train(tmp_path / "run", parts, lm_name_or_path=str(parts / name), mixed_precision=precision)
    said = capsys.readouterr().out
    assert "--lora_rank 2: adapters of" in said and "(captions of the validation split, " in said
    start, end = load_file(parts / name / "model.safetensors"), load_file(model / "lm" / "model.safetensors")
    assert end.keys() == start.keys()
    table = "transformer.wte.weight" if name == "gpt2" else "model.embed_tokens.weight"
    pipe = TextToImagePipeline.from_pretrained(model)
    known = pipe.vocabulary.boi_id - 1  # the padding token is new, too
    assert torch.equal(end[table][:known], start[table][:known].float())
    assert end[table][known:].std(0).min() > 0, "rows of new tokens started alike, and have learned"
    changed = {key for key in start if key != table and not torch.equal(end[key], start[key].float())}
    assert changed == {key for key in start if start[key].ndim == 2 and "wpe" not in key and key != table}
    assert pipe("a red dog", seed=0).images[0].size == (16, 16)
    check = json.loads((model / "run.json").read_text())["text_check"]
    assert check["nats_before"] > 0 and check["nats_after"] > 0 and check["nats_before"] != check["nats_after"]


def test_checkpoints_hold_what_is_trained_alone_and_a_resumed_run_is_the_same(parts, tmp_path):
    asked = dict(lm_name_or_path=str(parts / "qwen"), checkpoint_every=1, schedule="constant_decay", decay_share=0.1)
    whole = train(tmp_path / "whole", parts, **asked, max_steps=6)
    train(tmp_path / "run", parts, **asked, max_steps=3)
    info = tmp_path / "run" / "run.json"
    before = json.loads(info.read_text())
    info.write_text(json.dumps({**before, "finished": False}))
    with safe_open(tmp_path / "run" / "checkpoints" / "checkpoint-3" / "state.safetensors", "pt") as state:
        names = list(state.keys())
    parts_of = {
        kind: {name.split("/", 1)[1] for name in names if name.startswith(f"{kind}/")} for kind in ("model", "averaged")
    }
    assert parts_of["model"] == parts_of["averaged"]
    assert all("lora_" in name or "new_rows" in name for name in parts_of["model"])
    assert not (tmp_path / "run" / "checkpoints" / "best" / "lm").exists()
    resumed = train(tmp_path / "run", parts, **asked, max_steps=6, resume=True)
    ours, theirs = (load_file(run / "lm" / "model.safetensors") for run in (resumed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert json.loads(info.read_text())["text_check"]["nats_before"] == before["text_check"]["nats_before"]


def test_a_run_does_not_go_on_beside_other_frozen_weights(parts, tmp_path):
    shutil.copytree(parts / "gpt2", tmp_path / "start")
    asked = dict(lm_name_or_path=str(tmp_path / "start"), text_check=None)
    run = train(tmp_path / "run", parts, **asked, max_steps=1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "start")
    with torch.no_grad():
        model.transformer.ln_f.bias[0] += 1e-3
    model.save_pretrained(tmp_path / "start")
    with pytest.raises(ValueError, match="the model that the run started from has other weights now"):
        train(run, parts, **asked, max_steps=2, resume=True)


def test_an_earlier_model_is_adapted_to_other_codes(parts, tmp_path):
    """The rows of its words stay; those of special tokens and codes are trained."""
    first = train(tmp_path / "first", parts, lora_rank=None, max_steps=1, num_layers=1, hidden_size=32, num_heads=2)
    (tmp_path / "held_out.txt").write_text("a red dog and a small blue house on the left")
    asked = dict(init_from=str(first), text_check=str(tmp_path / "held_out.txt"))
    second = train(tmp_path / "second", parts, **asked)
    start, end = (load_file(each / "lm" / "model.safetensors") for each in (first, second))
    vocabulary = MultimodalVocabulary.from_pretrained(first / "lm")
    words = min(vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        same = (start[name] == end[name]).all(1)
        assert same[:words].all() and not same[vocabulary.image_offset :].all()
    check = json.loads((second / "run.json").read_text())["text_check"]
    assert check["source"].endswith("held_out.txt")


def test_the_text_check_is_the_mean_of_a_plain_log_softmax(parts, tmp_path, capsys):
    """Of the model as it was, with its own begin token, over the ids that it knew."""
    (tmp_path / "held_out.txt").write_text("a small red house")
    run = train(tmp_path / "run", parts, lm_name_or_path=str(parts / "gpt2"), text_check=str(tmp_path / "held_out.txt"))
    text = TextToImagePipeline.from_pretrained(run).vocabulary
    ids = torch.tensor([[text.bos_id, *text.encode_text("a small red house")]])
    figures = []
    for folder, known in ((parts / "gpt2", None), (run / "lm", text.boi_id - 1)):
        with torch.no_grad():
            logits = AutoModelForCausalLM.from_pretrained(folder)(ids).logits[0, :-1, :known]
        figures.append(float(F.cross_entropy(logits, ids[0, 1:])))
    check = json.loads((run / "run.json").read_text())["text_check"]
    assert [check["nats_before"], check["nats_after"]] == pytest.approx(figures, rel=1e-4)
    assert (
        f"{check['nats_before']:.4g} nats a token before training, {check['nats_after']:.4g} after"
        in capsys.readouterr().out
    )


# What cannot be


@pytest.mark.parametrize("changes, message", [
    ({"lora_rank": 4}, "--lora_rank 4 adapts a model that is there: give --lm_name_or_path or --init_from"),
    ({"lora_rank": 0, "lm_name_or_path": "x"}, "--lora_rank 0 must be above zero"),
    ({"lora_rank": 4, "lm_name_or_path": "x", "optimizer": "muon"}, "--lora_rank 4 and --optimizer muon exclude each"),
    ({"text_check": __file__}, "--text_check .* a new model has no text to keep"),
    ({"text_check": "/nowhere", "lm_name_or_path": "x"}, "--text_check /nowhere: there is no such file"),
])  # fmt: skip
def test_options_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        LanguageModelOptions(**changes)


@pytest.mark.parametrize("changes, message", [
    ({"lora_rank": 4, "lm_name_or_path": "x"}, r"--lora_rank 4 needs peft, .*: pip install 'tessera\[finetune\]'"),
    ({"optimizer": "adamw8bit"}, r"--optimizer adamw8bit needs bitsandbytes, .*: pip install 'tessera\[finetune\]'"),
])  # fmt: skip
def test_packages_that_are_absent(monkeypatch, changes, message):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        LanguageModelOptions(**changes)


def test_held_out_text_that_is_none(parts, tmp_path):
    for content, message in ((b"\xff\xfe\x00x", "not a text in UTF-8"), (b"", "too little text in it")):
        (tmp_path / "text").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            train(tmp_path / "run", parts, lm_name_or_path=str(parts / "gpt2"), text_check=str(tmp_path / "text"))
        shutil.rmtree(tmp_path / "run", ignore_errors=True)


# Memory


def configurations(folder: Path, **settings) -> LanguageModelOptions:
    """Options of a run from a language model of which there is a configuration and a tokenizer, and no weights."""
    text = train_text_tokenizer(["a red dog"] * 3, 280)
    text.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    text.save_pretrained(folder / "lm")
    sizes = dict(
        vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    Qwen2Config(**{**sizes, **settings.pop("config", {})}).save_pretrained(folder / "lm")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    asked = dict(batch_size=16, mixed_precision="bf16", image_tokenizer=str(folder / "tokenizer"))
    return LanguageModelOptions(**asked, lm_name_or_path=str(folder / "lm"), **settings)


LARGE = dict(vocab_size=152_064, hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28,
             num_attention_heads=28, num_key_value_heads=4, tie_word_embeddings=False)  # fmt: skip


@pytest.mark.parametrize("config, parameters", [({}, 494e6), (LARGE, 7.616e9)])
def test_a_dry_run_of_large_models_counts_their_weights_without_making_them(tmp_path, config, parameters):
    """Of the sizes of Qwen2.5-0.5B and Qwen2.5-7B."""
    whole = estimate_memory(configurations(tmp_path, config=config))
    assert whole.parameters == whole.trained == pytest.approx(parameters, rel=1e-3)
    for part, size in (("weights", 4), ("gradients", 4), ("averages", 4), ("optimizer", 8)):
        assert getattr(whole, part) == size * whole.parameters
    adapted = estimate_memory(configurations(tmp_path, config=config, lora_rank=16, gradient_checkpointing=True))
    assert adapted.trained < 0.03 * whole.parameters
    assert adapted.weights == pytest.approx(2 * adapted.parameters, rel=0.03), "frozen matrices stay in bfloat16"
    assert adapted.activations < 0.1 * whole.activations and adapted.training < 0.2 * whole.training
    assert adapted.total > adapted.training, "the merged model is written in float32"


def test_a_dry_run_prints_and_leaves_nothing(parts, tmp_path, capsys):
    train(tmp_path / "run", parts, lm_name_or_path=str(parts / "qwen"), dry_run=True)
    assert "memory of a run, in one process:\nweights" in capsys.readouterr().out
    train(tmp_path / "run", parts, lora_rank=None, dry_run=True)
    assert "activations" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


# States of 8 bits


def test_states_of_8_bits_are_near_those_of_32_and_come_back_bit_by_bit():
    pytest.importorskip("bitsandbytes")

    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(128, 64)

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            model(torch.randn(16, 128)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    settings = dict(learning_rate=1e-3, weight_decay=0.05)
    models = [model(), model(), model()]
    small, large, again = (
        build_optimizers(each, eight_bits=bits, **settings)[0]
        for each, bits in zip(models, (True, False, True), strict=True)
    )
    for each, optimizer in zip(models[:2], (small, large), strict=True):
        torch.manual_seed(1)
        steps(each, optimizer, 10)
    moved = (models[1].weight - model().weight).abs().mean()
    assert (models[0].weight - models[1].weight).abs().mean() < 0.02 * moved
    tensors = optimizer_tensors([small])
    assert tensors["0.0.state1"].dtype == torch.uint8 and tensors["0.1.state1"].dtype == torch.float32
    models[2].load_state_dict(models[0].state_dict())
    check_optimizer_tensors([again], tensors)
    load_optimizer_tensors([again], {name: tensor.clone() for name, tensor in tensors.items()})
    for each, optimizer in ((models[0], small), (models[2], again)):
        torch.manual_seed(2)
        steps(each, optimizer, 5)
    assert torch.equal(models[0].weight, models[2].weight) and torch.equal(models[0].bias, models[2].bias)
    with pytest.raises(ValueError, match="has no state 'state1'"):
        check_optimizer_tensors([large], tensors)
    options = LanguageModelOptions(optimizer="adamw8bit")
    held = sum(tensor.numel() * tensor.element_size() for name, tensor in tensors.items() if "step" not in name)
    assert optimizer_bytes(options, models[0]) == held


def test_a_run_with_states_of_8_bits_resumes(parts, tmp_path):
    pytest.importorskip("bitsandbytes")
    asked = dict(lora_rank=None, optimizer="adamw8bit", checkpoint_every=1, schedule="constant_decay", decay_share=0.1,
                 num_layers=1, hidden_size=64)  # fmt: skip
    whole = train(tmp_path / "whole", parts, **asked, max_steps=4)
    train(tmp_path / "run", parts, **asked, max_steps=2)
    info = tmp_path / "run" / "run.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "finished": False}))
    resumed = train(tmp_path / "run", parts, **asked, max_steps=4, resume=True)
    ours, theirs = (load_file(run / "lm" / "model.safetensors") for run in (resumed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
