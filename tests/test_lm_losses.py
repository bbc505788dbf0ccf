"""The next-token loss against full logits, and what must not change it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, LlamaForCausalLM, PreTrainedModel, Qwen3ForCausalLM

from lm.model import ARCHITECTURES, build_configuration, build_model, check_vocabulary, default_size, recompute_layers
from lm.model import SIZES as model_sizes
from lm.sequences import IGNORED, TokenSequence, collate, token_sequence
from lm.training import losses
from lm.training.attention import NAME
from lm.training.losses import NextTokenLoss, balance, label_weights, places_read
from lm.vocabulary import MultimodalVocabulary, train_text_tokenizer
from tokenizer_image.layout import build_layout

SIZES = {"num_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
FIELDS = ("loss", "weight", "text_nats", "text_tokens", "image_nats", "image_tokens", "z_loss")
NAMES = ("caption_and_image", "image", "image_to_caption", "caption_to_image", "text", "caption_and_image")
CAPTIONS = ("a red dog", None, "", "a blue cat on grass", "a dog", "a red cat left of a blue dog")


@pytest.fixture(scope="module")
def vocabulary() -> MultimodalVocabulary:
    """Two depths of 12 and 20 codes at 2x2 positions."""
    return MultimodalVocabulary.build(
        train_text_tokenizer([caption for caption in CAPTIONS if caption] * 3, 300),
        num_codes=32,
        layout=build_layout([(2, 2)], [[12, 20]]).to_dict(),
        image_size=[16, 16],
        image_tokenizer_fingerprint="none",
    )


def random_model(vocabulary: MultimodalVocabulary, architecture: str = "qwen3") -> PreTrainedModel:
    torch.manual_seed(0)
    model = build_model(build_configuration(vocabulary, architecture=architecture, max_positions=64, **SIZES))
    with torch.no_grad():  # far from the start, where all losses are about the same
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def model(vocabulary) -> PreTrainedModel:
    return random_model(vocabulary)


@pytest.fixture(scope="module")
def sequences(vocabulary) -> list[TokenSequence]:
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, 12, (6, 4)), rng.integers(12, 32, (6, 4))], axis=2).reshape(6, 8)
    ids = [None if caption is None else vocabulary.encode_text(caption) for caption in CAPTIONS]
    found = [
        token_sequence(vocabulary, "image" if one is None else name, one, row)
        for name, one, row in zip(NAMES, ids, codes, strict=True)
    ]
    for sequence in found:
        sequence.loss_weights *= np.where(sequence.labels < vocabulary.image_offset, np.float32(0.3), np.float32(1))
    return found


@pytest.fixture(scope="module")
def batch(vocabulary, sequences) -> dict[str, Tensor]:
    return collate(sequences, vocabulary.pad_id)


def sums_of(model: PreTrainedModel, vocabulary: MultimodalVocabulary, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return NextTokenLoss(model, vocabulary.id_ranges)(**batch)


@pytest.mark.parametrize("attention", ["sdpa", NAME])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_and_unpacked_losses_and_gradients_are_equal(vocabulary, sequences, architecture, attention):
    """Rows of one to three sequences, longer than the model has positions, beside each sequence in a row of its own."""
    found = []
    packs = [sequences[:3], sequences[3:5], sequences[5:]]
    for rows, length in ((sequences, None), (packs, 70)):
        model = random_model(vocabulary, architecture)
        model.set_attn_implementation(attention)
        batch = collate(rows, vocabulary.pad_id, length)
        sums = sums_of(model, vocabulary, batch)
        sums["loss"].backward()
        found.append((sums, {name: parameter.grad for name, parameter in model.named_parameters()}))
    assert batch["input_ids"].shape == (3, 70) and (batch["position_ids"] == 0).sum() > 6
    (alone, expected), (together, gradients) = found
    for name in FIELDS:
        torch.testing.assert_close(together[name], alone[name], rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4, msg=name)


def by_hand(model: PreTrainedModel, vocabulary: MultimodalVocabulary, batch: dict[str, Tensor]) -> dict[str, float]:
    """One label at a time, from all logits of each row without its padding."""
    totals = dict.fromkeys(FIELDS, 0.0)
    offset = vocabulary.image_offset
    for row, labels in enumerate(batch["labels"]):
        length = int((batch["input_ids"][row] != vocabulary.pad_id).sum())
        logits = model(batch["input_ids"][row : row + 1, :length], use_cache=False).logits[0].double()
        for place in range(1, length):
            label = int(labels[place])
            if label == IGNORED:
                continue
            if label < offset:
                kind, low, high = "text", 0, offset
            elif label < offset + 12:
                kind, low, high = "image", offset, offset + 12
            else:
                kind, low, high = "image", offset + 12, offset + 32
            nats = -float(logits[place - 1, low:high].log_softmax(0)[label - low])
            weight = float(batch["loss_weights"][row, place])
            totals["loss"] += weight * nats
            totals["weight"] += weight
            totals[f"{kind}_nats"] += nats
            totals[f"{kind}_tokens"] += 1
    return totals


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sums_equal_a_hand_computation_with_full_logits(vocabulary, batch, architecture):
    model = random_model(vocabulary, architecture)
    sums = sums_of(model, vocabulary, batch)
    assert set(sums) == set(FIELDS)
    with torch.no_grad():
        expected = by_hand(model, vocabulary, batch)
    for name in FIELDS:
        assert float(sums[name].detach()) == pytest.approx(expected[name], rel=1e-4), name
    assert expected["image_tokens"] == 4 * 8
    special = {"caption_and_image": 3, "image_to_caption": 1, "text": 1}  # learned ones
    assert expected["text_tokens"] == sum(
        len(vocabulary.encode_text(caption)) + special[name]
        for name, caption in zip(NAMES, CAPTIONS, strict=True)
        if name in special
    )
    sums["loss"].backward()
    gradient = model.get_output_embeddings().weight.grad
    assert (gradient[: vocabulary.size].abs().sum(1) > 0).float().mean() > 0.9


def test_other_kinds_do_not_compete(vocabulary, model, batch):
    """A bias on ids that cannot stand at a place changes nothing there."""
    expected = sums_of(model, vocabulary, batch)
    changed = random_model(vocabulary)
    changed.lm_head.bias = torch.nn.Parameter(torch.zeros(vocabulary.size))
    with torch.no_grad():
        changed.lm_head.bias[: vocabulary.image_offset] = 50.0
    sums = sums_of(changed, vocabulary, batch)
    for name in ("loss", "image_nats", "text_nats"):
        assert torch.allclose(sums[name], expected[name], rtol=1e-4), name
    with torch.no_grad():  # a bias inside a kind does count
        changed.lm_head.bias[vocabulary.image_offset + 3] = 5.0
    assert not torch.allclose(sums_of(changed, vocabulary, batch)["image_nats"], expected["image_nats"], rtol=1e-3)


def test_drawing_learns_codes_alone(vocabulary, model):
    rows = [token_sequence(vocabulary, "caption_to_image", vocabulary.encode_text("a red dog"), np.arange(8) % 2 * 12)]
    sums = sums_of(model, vocabulary, collate(rows, vocabulary.pad_id))
    assert sums["text_tokens"] == 0 and sums["image_tokens"] == 8 and sums["weight"] == 8
    assert torch.allclose(sums["loss"], sums["image_nats"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_right_padding_does_not_change_the_loss(vocabulary, sequences, architecture):
    model = random_model(vocabulary, architecture)
    tight = sums_of(model, vocabulary, collate(sequences, vocabulary.pad_id))
    padded = collate(sequences, vocabulary.pad_id, length=60)
    padded["position_ids"] = torch.arange(60).expand(len(sequences), -1)  # not one more document
    wide = sums_of(model, vocabulary, padded)
    for name in FIELDS:
        assert torch.allclose(tight[name], wide[name], rtol=1e-5), name


@pytest.mark.parametrize(
    ("rows", "length", "positions", "places"),
    [(64, 45, 64, 44), (12, 64, 64, 64), (12, 63, 64, 62), (16, 17, 64, 16), (12, 64, 63, 63)],
)
def test_the_last_place_is_read_only_where_that_aligns_products(vocabulary, rows, length, positions, places):
    config = build_configuration(vocabulary, max_positions=positions, **SIZES)
    row = torch.arange(length)
    assert places_read(config, row.expand(rows, -1)) == places
    assert places_read(config, (row % 20).expand(rows, -1)) == (length if places == 63 else places), "packed"


def test_reading_the_last_place_changes_nothing(vocabulary, model, sequences, monkeypatch):
    batch = collate(sequences[:4], vocabulary.pad_id, length=40)
    assert places_read(model.config, batch["position_ids"]) == 40
    read = sums_of(model, vocabulary, batch)
    monkeypatch.setattr(losses, "ALIGNMENT", 1)
    assert places_read(model.config, batch["position_ids"]) == 39
    left_out = sums_of(model, vocabulary, batch)
    for name in FIELDS:
        assert torch.allclose(read[name], left_out[name], rtol=1e-5), name


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def test_parts_of_a_batch_add_up(vocabulary, model, sequences, batch):
    whole = sums_of(model, vocabulary, batch)
    whole["loss"].backward()
    expected = gradients(model)
    totals = dict.fromkeys(FIELDS, 0.0)
    for part in (sequences[:1], sequences[1:3], sequences[3:]):  # of different widths
        sums = sums_of(model, vocabulary, collate(part, vocabulary.pad_id))
        sums["loss"].backward()
        for name in FIELDS:
            totals[name] += float(sums[name].detach())
    for name in FIELDS:
        assert totals[name] == pytest.approx(float(whole[name].detach()), rel=1e-5), name
    for name, gradient in gradients(model).items():
        assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("kinds, shares", [
    (slice(None), (1 / 8, 7 / 8)),
    (slice(None), (0.5, 0.5)),
    (slice(3, 4), (0.0, 1.0)),  # drawing alone
    (slice(4, 5), (1.0, 0.0)),  # text alone
    (slice(3, 4), (1 / 8, 7 / 8)),  # a batch that happens to have no text
    (slice(4, 5), (1 / 8, 7 / 8)),  # or no codes
    (slice(0, 1), (1.0, 0.0)),  # codes that do not count
])  # fmt: skip
def test_balanced_losses_are_global_means_of_both_kinds(vocabulary, model, sequences, kinds, shares):
    """Over micro-batches and ranks of different lengths and kinds, from one plain sum each."""
    chosen = sequences[kinds]
    whole = sums_of(model, vocabulary, collate(chosen, vocabulary.pad_id))
    means = [float(whole[f"{k}_nats"].detach()) / max(1, int(whole[f"{k}_tokens"])) for k in ("text", "image")]
    expected = shares[0] * means[0] + shares[1] * means[1]
    for sequence in (
        plain := [replace(one, loss_weights=(one.labels != IGNORED).astype(np.float32)) for one in chosen]
    ):
        assert sequence.loss_weights.max() == 1
    ranks = [[collate([one], vocabulary.pad_id) for one in plain[rank::2]] for rank in range(2)]
    counts = [label_weights(batches, vocabulary.image_offset) for batches in ranks]
    totals = (counts[0] + counts[1]).tolist()
    assert totals == [int(whole["text_tokens"]), int(whole["image_tokens"])]
    found = 0.0
    for batches in ranks:
        divisor = balance(batches, vocabulary.image_offset, totals, shares)
        found += sum(float(sums_of(model, vocabulary, batch)["loss"].detach()) for batch in batches) / divisor
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("place", "shares"), [(3, (0.0, 1.0)), (4, (1.0, 0.0))], ids=["drawing", "text"])
def test_balancing_leaves_a_batch_of_one_kind_as_it_is(vocabulary, sequences, place, shares):
    one = sequences[place]
    batch = collate([replace(one, loss_weights=(one.labels != IGNORED).astype(np.float32))], vocabulary.pad_id)
    before = batch["loss_weights"].clone()
    totals = label_weights([batch], vocabulary.image_offset).tolist()
    assert balance([batch], vocabulary.image_offset, totals, shares) == (one.labels != IGNORED).sum()
    assert torch.equal(batch["loss_weights"], before)


def test_codes_keep_their_weights_beside_text(vocabulary, sequences):
    """Text is weighed beside codes, and the divisor has the codes' share, whatever that is."""
    plain = [replace(one, loss_weights=(one.labels != IGNORED).astype(np.float32)) for one in sequences[3:5]]
    batch = collate(plain, vocabulary.pad_id)
    texts, codes = label_weights([batch], vocabulary.image_offset).tolist()
    is_code = batch["labels"] >= vocabulary.image_offset
    before = batch["loss_weights"].clone()
    divisor = balance([batch], vocabulary.image_offset, [texts, codes], (1 / 8, 7 / 8))
    assert divisor == pytest.approx(codes / (7 / 8))
    assert torch.equal(batch["loss_weights"][is_code], before[is_code])
    assert batch["loss_weights"][~is_code].sum() / divisor == pytest.approx(1 / 8)


def test_chunks_change_nothing(vocabulary, model, batch, monkeypatch):
    whole = sums_of(model, vocabulary, batch)
    whole["loss"].backward()
    expected = gradients(model)
    monkeypatch.setattr(losses, "CHUNK_FLOATS", 5 * 20)  # 5 of 24 rows at a time in the widest kind of code
    calls = []
    original = NextTokenLoss._chunk_terms
    monkeypatch.setattr(NextTokenLoss, "_chunk_terms", lambda *a: calls.append(len(a[1])) or original(*a))
    chunked = sums_of(model, vocabulary, batch)
    assert max(calls) <= 8 and len(calls) > 10
    for name in FIELDS:
        assert torch.allclose(whole[name], chunked[name], rtol=1e-6), name
    chunked["loss"].backward()
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        scale = float(expected[name].abs().max())  # float32 sums of numbers of this size round so much
        assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-6 * scale), name


def test_bf16_autocast_keeps_the_loss_in_float32(vocabulary, model, batch):
    exact = sums_of(model, vocabulary, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = sums_of(model, vocabulary, batch)
    assert rounded["loss"].dtype == torch.float32
    assert torch.allclose(rounded["loss"], exact["loss"], rtol=0.05)


def test_one_caption_can_be_overfitted(vocabulary):
    """Two captions, two pictures: the loss goes to nothing."""
    torch.manual_seed(0)
    model = build_model(build_configuration(vocabulary, max_positions=64, **SIZES))
    codes = np.stack([np.arange(8) % 2 * 12, np.arange(8) % 2 * 15 + np.arange(8) // 2])
    rows = [token_sequence(vocabulary, "caption_to_image", vocabulary.encode_text(f"a {c} dog"), row)
            for c, row in zip(("red", "blue"), codes, strict=True)]  # fmt: skip
    batch = collate(rows, vocabulary.pad_id)
    module, optimizer = NextTokenLoss(model.train(), vocabulary.id_ranges), torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(60):
        sums = module(**batch)
        (sums["loss"] / sums["weight"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(sums["image_nats"].detach() / sums["image_tokens"]) < 0.05


# The models


@pytest.mark.parametrize(
    "architecture, kind", [("qwen3", Qwen3ForCausalLM), ("llama", LlamaForCausalLM), ("gpt2", GPT2LMHeadModel)]
)
def test_models_are_stock_and_say_what_belongs_to_them(vocabulary, architecture, kind, tmp_path):
    model = random_model(vocabulary, architecture)
    assert type(model) is kind
    config = model.config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (
        vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id,
    )  # fmt: skip
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (2, 32, 2)
    assert config.vocab_size == vocabulary.size and config.max_position_embeddings == 64
    if architecture != "gpt2":
        assert (config.head_dim, config.num_key_value_heads, config.intermediate_size) == (16, 2, 64)
    model.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    assert loaded.generation_config.eos_token_id == vocabulary.eos_id
    for (name, ours), theirs in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    check_vocabulary(config, vocabulary)
    config.vocab_size -= 1
    with pytest.raises(ValueError, match="do not belong together"):
        check_vocabulary(config, vocabulary)


def test_named_sizes_and_settings_that_cannot_be(vocabulary):
    widths = [model_sizes[default_size(tokens)][1] for tokens in (16, 64, 100, 256, 1024)]
    assert widths == sorted(widths) and widths[0] < widths[-1], "longer rows of codes get larger models"
    for name, (layers, hidden, intermediate) in model_sizes.items():
        config = build_configuration(vocabulary, size=name)
        assert (config.num_hidden_layers, config.hidden_size) == (layers, hidden), name
        assert config.intermediate_size == intermediate and config.head_dim * config.num_attention_heads == hidden
    assert build_configuration(vocabulary, hidden_size=128).intermediate_size == 384
    with pytest.raises(ValueError, match="unknown LM size '4M': choose one of 2M"):
        build_configuration(vocabulary, size="4M")
    with pytest.raises(ValueError, match="unknown architecture 'bert': choose one of qwen3, llama, gpt2"):
        build_configuration(vocabulary, architecture="bert")
    with pytest.raises(ValueError, match="hidden_size 100 is not a multiple of num_heads 3"):
        build_configuration(vocabulary, hidden_size=100, num_heads=3)


def test_z_loss_by_hand(vocabulary, model, batch):
    """The squared log-partition over the ids of each place, weighted as the nats are."""
    plain = sums_of(model, vocabulary, batch)
    sums = NextTokenLoss(model, vocabulary.id_ranges, z_loss_weight=0.01)(**batch)
    expected, offset = 0.0, vocabulary.image_offset
    with torch.no_grad():
        logits = model(batch["input_ids"], use_cache=False).logits.double()
    for row, column in (batch["labels"][:, 1:] != IGNORED).nonzero().tolist():
        label = int(batch["labels"][row, column + 1])
        ranges = [pair for pair in ((0, offset), (offset, offset + 12), (offset + 12, offset + 32)) if pair[0] <= label]
        low, high = ranges[-1]
        log_partition = float(logits[row, column, low:high].logsumexp(0))
        expected += 0.01 * float(batch["loss_weights"][row, column + 1]) * log_partition**2
    assert float(sums["z_loss"]) == pytest.approx(expected, rel=1e-4) and expected > 0.1
    assert float(sums["loss"].detach()) == pytest.approx(float(plain["loss"].detach()) + expected, rel=1e-4)
    assert plain["z_loss"] == 0 and torch.allclose(sums["image_nats"], plain["image_nats"])
    sums["loss"].backward()
    assert not torch.allclose(gradients(model)["lm_head.weight"], torch.zeros(()))


def test_recomputed_layers_have_the_same_gradients(vocabulary, batch):
    model = random_model(vocabulary).train()
    sums_of(model, vocabulary, batch)["loss"].backward()
    expected = gradients(model)
    recompute_layers(model)
    calls = []
    layer = model.model.layers[1].mlp
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    sums_of(model, vocabulary, batch)["loss"].backward()
    assert len(calls) == 2, "once forward, once again in the backward pass"
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, expected[name]), name


def test_models_with_more_than_one_linear_map_for_a_head(vocabulary, batch):
    """Their own forward makes the logits: Gemma 2 caps them, Granite divides them."""
    from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

    common = dict(
        vocab_size=vocabulary.size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=64, pad_token_id=vocabulary.pad_id,
        attn_implementation="eager",
    )  # fmt: skip
    for kind, config in ((Gemma2ForCausalLM, Gemma2Config(**common, final_logit_softcapping=2.0)),
                         (GraniteForCausalLM, GraniteConfig(**common, logits_scaling=4.0))):  # fmt: skip
        torch.manual_seed(0)
        capped = kind(config).eval()
        with torch.no_grad():
            for parameter in capped.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
            expected = by_hand(capped, vocabulary, batch)
        module = NextTokenLoss(capped, vocabulary.id_ranges)
        assert not module.has_plain_head
        sums = module(**batch)
        for name in FIELDS:
            assert float(sums[name].detach()) == pytest.approx(expected[name], rel=1e-4), (kind, name)
