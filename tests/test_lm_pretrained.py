"""A pretrained language model gets rows for image codes, and keeps what it has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from lm.pretrained import extend_model, load_own_tokenizer, load_pretrained
from lm.vocabulary import MultimodalVocabulary, train_text_tokenizer
from pipelines import TextToImagePipeline
from pipelines.caching import sources
from scripts import train_lm, train_tokenizer
from tokenizer_image.layout import build_layout

TEXTS = ["a red dog", "a small blue house on the left", "a large yellow star at night"] * 3
PADDED = 320  # rows, more than the tokenizer has tokens


def text_tokenizer(**special: str) -> PreTrainedTokenizerBase:
    tokenizer = train_text_tokenizer(TEXTS, 280, lowercase=False)
    tokenizer.add_special_tokens(special)
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """gpt2/: one special token for all, tied, exactly as many rows. llama/: its own three, not tied, padded, bf16."""
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    tokenizer = text_tokenizer(bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=128,
                        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder / "gpt2")
    tokenizer.save_pretrained(folder / "gpt2")
    tokenizer = text_tokenizer(bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    config = LlamaConfig(vocab_size=PADDED, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128,
                         bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    return folder


def joined(folder: Path, num_codes: int = 20) -> tuple[int, MultimodalVocabulary]:
    """How many ids the model knows, and the vocabulary with image codes."""
    tokenizer = load_own_tokenizer(str(folder))
    known = len(tokenizer)
    layout = build_layout([(2, 2)], [[num_codes]]).to_dict()
    vocabulary = MultimodalVocabulary.build(
        tokenizer, num_codes=num_codes, layout=layout, image_size=[16, 16], image_tokenizer_fingerprint="none"
    )
    return known, vocabulary


def test_the_row_that_begins_and_ends_sequences_learns(tmp_path):
    """Of a model whose three special tokens are one: its padding row had no gradient."""
    tokenizer = text_tokenizer(bos_token="<s>", eos_token="<s>", pad_token="<s>")
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.bos_token_id)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128, **ids)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    known, vocabulary = joined(tmp_path)
    model = load_pretrained(str(tmp_path))
    extend_model(model, vocabulary, known)
    assert vocabulary.pad_id not in (vocabulary.bos_id, vocabulary.eos_id)
    model(input_ids=torch.tensor([[vocabulary.bos_id, 3, 4]]), labels=torch.tensor([[-100, 3, 4]])).loss.backward()
    assert model.get_input_embeddings().weight.grad[vocabulary.bos_id].abs().sum() > 0


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("num_codes", [5, 200])  # few enough for the padded rows, and not
def test_new_rows_start_from_the_mean_and_old_ones_stay(folder, name, num_codes):
    before = load_pretrained(str(folder / name))
    assert next(before.parameters()).dtype == torch.float32
    tied = name == "gpt2"
    own = AutoTokenizer.from_pretrained(folder / name)
    known, vocabulary = joined(folder / name, num_codes)
    model = load_pretrained(str(folder / name))
    extend_model(model, vocabulary, known)
    assert (vocabulary.bos_id, vocabulary.eos_id) == (own.bos_token_id, own.eos_token_id), "its own are used"
    assert vocabulary.pad_id == (own.pad_token_id if own.pad_token else known)
    layers = [(model.get_input_embeddings(), before.get_input_embeddings()),
              (model.get_output_embeddings(), before.get_output_embeddings())]  # fmt: skip
    for new, old in layers:
        assert new.weight.shape[0] >= vocabulary.size and new.weight.shape[0] == model.config.vocab_size
        assert torch.equal(new.weight[:known], old.weight[:known])
        mean = old.weight[:known].mean(0)
        assert torch.allclose(new.weight[known:], mean.expand(len(new.weight) - known, -1))
    assert (layers[0][0].weight is layers[1][0].weight) == tied == model.config.tie_word_embeddings
    ids = torch.tensor([own("a red dog")["input_ids"]])
    with torch.no_grad():  # the old tokens among themselves are as likely as before
        ours, theirs = (m.eval()(ids).logits[..., :known].log_softmax(-1) for m in (model, before))
    assert torch.allclose(ours, theirs, atol=1e-4)
    for settings in (model.config, model.generation_config):
        assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (
            vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id
        )  # fmt: skip


def test_what_can_stand_in_a_text(folder):
    """The tokens of the text tokenizer and eos; neither its padding rows nor ids that it leaves out."""
    known, vocabulary = joined(folder / "llama")
    mask, own = vocabulary.text_mask(), AutoTokenizer.from_pretrained(folder / "llama")
    assert len(mask) == vocabulary.image_offset == known + 2 < PADDED
    assert mask.sum() == known - 3 + 1 and mask[vocabulary.eos_id] and not mask[vocabulary.pad_id]
    assert mask[own.convert_tokens_to_ids("d")]
    _, gpt2 = joined(folder / "gpt2")
    assert gpt2.bos_id == gpt2.eos_id and gpt2.text_mask()[gpt2.eos_id], "bos is eos: it ends a text"


@pytest.mark.parametrize("num_codes", [4, 200])
def test_tokenizers_that_leave_ids_out(tmp_path, num_codes):
    """New tokens would get the ids left out, and meet those that come after."""
    text_tokenizer(eos_token="</s>").save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    ids = content["model"]["vocab"]
    ids[max(ids, key=ids.get)] += 20
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="or ids where new ones go: use another"):
        joined(tmp_path, num_codes)


# Through the script


def trained_image_tokenizer(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """An image tokenizer after one step of stage 1, in `folder`, where the pictures of later runs are kept, too."""
    patch.setenv("TESSERA_CACHE", str(folder / "pictures"))
    patch.setattr(sources, "VALIDATION_PICTURES", 16)
    AcceleratorState._reset_state(reset_partial_state=True)
    train_tokenizer.main(train_tokenizer.ImageTokenizerOptions(
        output_dir=str(folder / "tokenizer"), num_workers=0, cpu_threads=1, mixed_precision="no", batch_size=16,
        max_steps=1, max_examples=32, image_size=16, patch_size=4, hidden_sizes=[8, 16], codebook_sizes=[16],
        num_res_blocks=1, code_dim=4, quantizer="ema",
    ))  # fmt: skip
    return folder / "tokenizer"


@pytest.fixture(scope="module")
def image_tokenizer(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("stage1")
        yield trained_image_tokenizer(folder, patch)


def train(output_dir: Path, image_tokenizer: Path, **changes) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    settings = dict(
        output_dir=str(output_dir), image_tokenizer=str(image_tokenizer),
        token_cache=str(image_tokenizer.parent / "cache"), num_workers=0, cpu_threads=1, mixed_precision="no",
        batch_size=8, max_steps=2, max_examples=32, warmup_steps=1, log_every=1, max_caption_tokens=48,
        formats=["caption_to_image", "image_to_caption"],
    )  # fmt: skip
    train_lm.main(train_lm.LanguageModelOptions(**{**settings, **changes}))
    return output_dir


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_training_starts_from_the_pretrained_model(folder, image_tokenizer, tmp_path, name):
    model = train(tmp_path / "model", image_tokenizer, lm_name_or_path=str(folder / name), learning_rate=1e-5)
    pipe = TextToImagePipeline.from_pretrained(model)
    assert type(pipe.model) is (GPT2LMHeadModel if name == "gpt2" else LlamaForCausalLM)
    assert pipe("a red dog", seed=0).images[0].size == (16, 16)
    start, end = load_file(folder / name / "model.safetensors"), load_file(model / "lm" / "model.safetensors")
    layer = "transformer.h.0.mlp.c_fc.weight" if name == "gpt2" else "model.layers.0.mlp.up_proj.weight"
    moved = (end[layer].float() - start[layer].float()).abs().max()
    assert 0 < moved < 1e-3, "near where it started, not another random start"
    assert end[layer].dtype == torch.float32
    assert ("lm_head.weight" in end) == (name == "llama"), "tied layers stay tied"
    loaded, tokenizer = (kind.from_pretrained(model / "lm") for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert tokenizer.convert_tokens_to_ids("<|image_0|>") == pipe.vocabulary.image_offset
    assert loaded.config.vocab_size >= len(tokenizer)


def test_a_pretrained_run_resumes(folder, image_tokenizer, tmp_path):
    asked = dict(lm_name_or_path=str(folder / "gpt2"), checkpoint_every=1, max_steps=4, schedule="constant_decay")
    whole = train(tmp_path / "whole", image_tokenizer, **asked)
    train(tmp_path / "run", image_tokenizer, **{**asked, "max_steps": 2, "decay_share": 0.2})
    info = tmp_path / "run" / "run.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "finished": False}))
    resumed = train(tmp_path / "run", image_tokenizer, **asked, resume=True)
    ours, theirs = (load_file(run / "lm" / "model.safetensors") for run in (resumed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs), "the rate was constant until there"


@pytest.mark.parametrize("changes, message", [
    ({"lm_name_or_path": "{}/nothing"}, "nothing is no causal LM of transformers"),
    ({"lm_name_or_path": "{}/bare"}, "bare has no .*tokenizer.*--text_tokenizer"),
    ({"lm_name_or_path": "{}/bare", "text_tokenizer": "{}/llama"}, "has 50 token ids, the tokenizer 283"),
    ({"lm_name_or_path": "{}/short"}, "takes at most 40 tokens, and a sequence may have 56: lower --max_cap"),
    ({"lm_name_or_path": "{}/llama", "num_layers": 3}, "fixes --num_layers: leave them out"),
    ({"lm_name_or_path": "{}/llama", "lm_size": "2M"}, "fixes --lm_size: leave them out"),
    ({"lm_name_or_path": "{}/llama", "init_from": "{}"}, "--init_from .* and --lm_name_or_path .* exclude each other"),
])  # fmt: skip
def test_starts_that_cannot_be(folder, image_tokenizer, tmp_path, changes, message):
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    if not (folder / "bare").exists():
        LlamaForCausalLM(LlamaConfig(vocab_size=50, **small)).save_pretrained(folder / "bare")
        short = LlamaConfig(vocab_size=PADDED, max_position_embeddings=40, **small)
        LlamaForCausalLM(short).save_pretrained(folder / "short")
        AutoTokenizer.from_pretrained(folder / "llama").save_pretrained(folder / "short")
    changes = {k: v.format(folder) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", image_tokenizer, **changes)
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_tokenizer_given_beside_a_model_without(folder, image_tokenizer, tmp_path):
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(LlamaConfig(vocab_size=PADDED, **small)).save_pretrained(tmp_path / "lone")
    model = train(tmp_path / "model", image_tokenizer, lm_name_or_path=str(tmp_path / "lone"),
                  text_tokenizer=str(folder / "llama"))  # fmt: skip
    assert TextToImagePipeline.from_pretrained(model).vocabulary.bos_id == 280
