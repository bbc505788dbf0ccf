"""The count of floating-point operations against PyTorch's own counter of those that are executed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

from lm.sequences import IGNORED, TokenSequence, collate
from lm.training.attention import NAME, use_fastest_attention
from lm.training.flops import forward_flops
from lm.training.losses import NextTokenLoss, places_read

RANGES = [(0, 50), (50, 80), (80, 130)]
CONFIGS = {
    "gpt2": GPT2Config(vocab_size=130, n_embd=32, n_layer=3, n_head=4, n_positions=64),
    "gpt2-wide": GPT2Config(vocab_size=130, n_embd=32, n_layer=2, n_head=2, n_inner=96, n_positions=64),
    "llama": LlamaConfig(vocab_size=130, hidden_size=32, intermediate_size=88, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=8),
    "qwen3": Qwen3Config(vocab_size=130, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=1, head_dim=16),
}  # fmt: skip


def sequences() -> list[TokenSequence]:
    rng, found = np.random.default_rng(0), []
    for length in (9, 14, 20):
        ids = rng.integers(0, 130, length)
        labels = np.where(np.arange(length) > 4, ids, IGNORED)
        found.append(TokenSequence(ids, labels, (labels != IGNORED).astype(np.float32)))
    return found


def batch_of(length: int = 20) -> dict[str, torch.Tensor]:
    """The sequences, padded to `length`; positions go on over the padding."""
    batch = collate(sequences(), pad_id=0, length=length)
    return {**batch, "position_ids": torch.arange(length).expand(len(batch["labels"]), -1)}


@pytest.mark.parametrize("length", [20, 32])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_counted_is_what_is_executed(name, length):
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).train()
    use_fastest_attention(model, 40)
    assert model.config._attn_implementation == NAME
    batch = batch_of(length)
    read = places_read(model.config, batch["position_ids"])
    assert batch["input_ids"].shape[1] - read == (1 if length == 20 else 0)
    module = NextTokenLoss(model, RANGES)
    with FlopCounterMode(display=False) as counter:
        loss = module(**batch)["loss"]
    counted = forward_flops(model.config, RANGES, batch)
    # Beside products of weights and attention's, only the rotary tables are products: under 3% here.
    assert counted <= counter.get_total_flops() <= 1.03 * counted
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    assert counter.get_total_flops() == pytest.approx(2 * forward, rel=0.05)


def test_attention_that_leaves_the_future_out_and_heads_of_all_rows():
    config, batch = CONFIGS["llama"], batch_of()
    config._attn_implementation = "sdpa"
    half = forward_flops(config, RANGES, batch)
    config._attn_implementation = NAME
    square = forward_flops(config, RANGES, batch)
    length = batch["input_ids"].shape[1] - 1
    assert square - half == 2 * 3 * config.num_hidden_layers * (length * (length - 1) // 2) * 2 * 32
    packed = {**batch, "position_ids": batch["position_ids"] % 7}
    config._attn_implementation = "sdpa"
    assert forward_flops(config, RANGES, packed) == square, "a mask of packed rows is a whole square"
    whole = forward_flops(config, RANGES, batch, plain_head=False)
    learned = sum(int(((batch["labels"][:, 1:] >= low) & (batch["labels"][:, 1:] < high)).sum()) * (high - low)
                  for low, high in RANGES)  # fmt: skip
    assert whole - half == 2 * 32 * (3 * length * 130 - learned)


def test_longer_padding_costs():
    batches = [batch_of(length) for length in (20, 40)]
    costs = [forward_flops(CONFIGS["gpt2"], RANGES, batch) for batch in batches]
    assert 1.9 < costs[1] / costs[0] < 2.6
    assert torch.equal(batches[0]["labels"], batches[1]["labels"][:, :20])
