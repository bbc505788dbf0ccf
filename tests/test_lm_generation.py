"""The sampler: exact against plain forward passes, only valid codes, and each row a world of its own."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LogitsProcessor, LogitsProcessorList

from lm.generation import SamplingSettings, choose, generate_codes
from lm.model import build_configuration, build_model
from lm.sequences import image_prompt
from lm.vocabulary import MultimodalVocabulary, train_text_tokenizer
from tokenizer_image.layout import build_layout

ARCHITECTURES = ("qwen3", "llama", "gpt2", "gemma2")
CAPTIONS = ("a red dog left of a blue house on grass", "a cat", "", "a small green star")


@pytest.fixture(scope="module")
def vocabulary() -> MultimodalVocabulary:
    """Two levels with ranges of their own: 4 positions of 12 codes, then 8 of 20 codes."""
    layout = build_layout([(2, 2), (2, 4)], [[12], [20]])
    return MultimodalVocabulary.build(
        train_text_tokenizer(CAPTIONS, 300),
        num_codes=32,
        layout=layout.to_dict(),
        image_size=[16, 16],
        image_tokenizer_fingerprint="none",
    )


def random_model(vocabulary: MultimodalVocabulary, architecture: str = "qwen3") -> torch.nn.Module:
    """Weights larger than at the start of training, so that the prompt matters and ties are out of reach."""
    torch.manual_seed(0)
    if architecture == "gemma2":  # soft-capped logits: not one linear map; and a sliding window
        config = Gemma2Config(
            vocab_size=vocabulary.size, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=96,
            sliding_window=8, bos_token_id=vocabulary.bos_id, eos_token_id=vocabulary.eos_id,
            pad_token_id=vocabulary.pad_id,
        )  # fmt: skip
        model = Gemma2ForCausalLM(config)
    else:
        sizes = {"num_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
        config = build_configuration(vocabulary, architecture=architecture, max_positions=96, **sizes)
        model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def model(vocabulary) -> torch.nn.Module:
    return random_model(vocabulary)


@pytest.fixture(scope="module")
def prompts(vocabulary) -> list[list[int]]:
    return [image_prompt(vocabulary, caption) for caption in CAPTIONS]


def streams(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@torch.no_grad()
def greedy_by_hand(model, vocabulary, prompt, negative, guidance_scale) -> list[int]:
    """Whole sequences, no cache, no padding, all of the output layer, two forward passes for each code."""
    model.eval()
    codes: list[int] = []
    for low, high in zip(vocabulary.layout["low"], vocabulary.layout["high"], strict=True):

        def log_probabilities(prompt):
            ids = torch.tensor([prompt + [vocabulary.image_offset + code for code in codes]])  # noqa: B023
            return model(ids, use_cache=False).logits[0, -1].log_softmax(-1)

        guided = log_probabilities(prompt)
        if negative is not None:
            unconditional = log_probabilities(negative)
            guided = unconditional + guidance_scale * (guided - unconditional)
        best = guided[vocabulary.image_offset + low : vocabulary.image_offset + high].argmax()
        codes.append(low + int(best))
    return codes


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("guidance_scale", [0.0, 0.5, 1.0, 3.0])
def test_greedy_equals_plain_forward_passes(vocabulary, prompts, architecture, guidance_scale):
    model = random_model(vocabulary, architecture)
    negative = None if guidance_scale == 1 else image_prompt(vocabulary, None)
    expected = [greedy_by_hand(model, vocabulary, prompt, negative, guidance_scale) for prompt in prompts]
    settings = {"guidance_scale": guidance_scale, "temperature": 0, "generators": streams(0, 1, 2, 3)}
    assert generate_codes(model, vocabulary, prompts, **settings).tolist() == expected
    assert generate_codes(model, vocabulary, prompts, max_batch_rows=3, **settings).tolist() == expected


def test_an_output_layer_with_a_bias(vocabulary, prompts):
    model = random_model(vocabulary)
    model.lm_head.bias = torch.nn.Parameter(5 * torch.randn(vocabulary.size))
    expected = [greedy_by_hand(model, vocabulary, prompt, None, 1.0) for prompt in prompts]
    got = generate_codes(model, vocabulary, prompts, temperature=0, generators=streams(0, 0, 0, 0))
    assert got.tolist() == expected


def test_greedy_with_negative_prompts(model, vocabulary, prompts):
    negatives = prompts[::-1]
    pairs = zip(prompts, negatives, strict=True)
    expected = [greedy_by_hand(model, vocabulary, prompt, negative, 2.5) for prompt, negative in pairs]
    got = generate_codes(
        model,
        vocabulary,
        prompts,
        negatives,
        guidance_scale=2.5,
        temperature=0,
        generators=streams(0, 0, 0, 0),
    )
    assert got.tolist() == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equals_transformers_generate(vocabulary, prompts, architecture):
    model = random_model(vocabulary, architecture).eval()
    layout, offset = vocabulary.layout, vocabulary.image_offset

    class ValidCodes(LogitsProcessor):
        """The same constraint in transformers' own words."""

        def __init__(self, prompt_length: int) -> None:
            self.prompt_length = prompt_length

        def __call__(self, input_ids, scores):
            t = input_ids.shape[1] - self.prompt_length
            valid = slice(offset + layout["low"][t], offset + layout["high"][t])
            masked = torch.full_like(scores, -torch.inf)
            masked[:, valid] = scores[:, valid]
            return masked

    got = generate_codes(model, vocabulary, prompts, temperature=0, generators=streams(0, 0, 0, 0))
    for prompt, codes in zip(prompts, got, strict=True):
        ids = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=vocabulary.tokens_per_image,
            logits_processor=LogitsProcessorList([ValidCodes(len(prompt))]),
        )
        assert vocabulary.ids_to_codes(ids[0, len(prompt) :]).equal(codes)


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.5}, {"temperature": 50.0}, {"temperature": 1e-30}])
def test_only_codes_of_the_position_are_drawn(model, vocabulary, prompts, settings):
    codes = generate_codes(model, vocabulary, prompts * 8, guidance_scale=2, generators=streams(*range(32)), **settings)
    low, high = torch.tensor(vocabulary.layout["low"]), torch.tensor(vocabulary.layout["high"])
    assert codes.shape == (32, vocabulary.tokens_per_image) and codes.dtype == torch.int64
    assert (codes >= low).all() and (codes < high).all()


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 9, "top_p": 0.8}])
def test_a_row_does_not_depend_on_its_neighbours(model, vocabulary, prompts, guidance_scale, settings):
    settings = {"guidance_scale": guidance_scale, **settings}
    together = generate_codes(model, vocabulary, prompts, generators=streams(5, 6, 7, 8), **settings)
    for row in range(len(prompts)):
        alone = generate_codes(model, vocabulary, [prompts[row]], generators=streams(5 + row), **settings)
        assert alone[0].equal(together[row])
    halves = generate_codes(model, vocabulary, prompts, generators=streams(5, 6, 7, 8), max_batch_rows=2, **settings)
    assert halves.equal(together)


def test_streams_decide(model, vocabulary, prompts):
    same = generate_codes(model, vocabulary, [prompts[0]] * 3, generators=streams(1, 1, 2))
    assert same[0].equal(same[1]) and not same[0].equal(same[2])


def test_global_generator_is_left_alone(model, vocabulary, prompts):
    before = torch.get_rng_state()
    generate_codes(model, vocabulary, prompts, generators=streams(1, 2, 3, 4))
    assert torch.get_rng_state().equal(before)


def test_each_module_gets_its_mode_back(vocabulary, prompts):
    model = random_model(vocabulary).train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    seen = []
    codes = generate_codes(
        model,
        vocabulary,
        prompts,
        generators=streams(1, 2, 3, 4),
        callback=lambda *_: seen.append(model.training),
    )
    assert [module.training for module in model.modules()] == before and not any(seen)
    assert not codes.is_inference()  # may be used in training


def test_callback(model, vocabulary, prompts):
    calls = []
    codes = generate_codes(
        model, vocabulary, prompts[:3], generators=streams(1, 2, 3), max_batch_rows=2,
        callback=lambda step, total, codes: calls.append((step, total, codes.clone())),
    )  # fmt: skip
    total = 2 * vocabulary.tokens_per_image
    assert [(step, of) for step, of, _ in calls] == [(step, total) for step in range(1, total + 1)]
    assert calls[4][2].equal(codes[:2, :5]) and calls[-1][2].equal(codes[2:])


def test_no_prompts(model, vocabulary):
    assert generate_codes(model, vocabulary, [], generators=[]).shape == (0, vocabulary.tokens_per_image)


def test_one_linear_map_where_it_is_one(vocabulary):
    from lm.generation import _plain_head

    found = {name: _plain_head(random_model(vocabulary, name)) is not None for name in ARCHITECTURES}
    assert found == {"qwen3": True, "llama": True, "gpt2": True, "gemma2": False}


# The choice of one code


def frequencies(logits: list[float], **settings) -> torch.Tensor:
    """How often each column is chosen, over evenly spaced numbers in [0, 1)."""
    count = 20_000
    uniforms = torch.arange(count, dtype=torch.float64) / count
    chosen = choose(torch.tensor([logits]).expand(count, -1), uniforms, SamplingSettings(**settings))
    return chosen.bincount(minlength=len(logits)) / count


PROBABILITIES = [0.1, 0.4, 0.2, 0.3]
LOGITS = torch.tensor(PROBABILITIES).log().tolist()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, [1 / 30, 16 / 30, 4 / 30, 9 / 30]),  # p squared
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 4}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_k": 9}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_p": 0.65}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.75}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_p": 0.01}, [0, 1, 0, 0]),
        ({"top_k": 3, "top_p": 0.5}, [0, 4 / 7, 0, 3 / 7]),
        ({"temperature": 1e-30}, [0, 1, 0, 0]),
        ({"temperature": 1e30}, [0.25, 0.25, 0.25, 0.25]),
    ],
)
def test_frequencies(settings, expected):
    assert frequencies(LOGITS, **settings).tolist() == pytest.approx(expected, abs=2e-4)


def test_a_code_without_probability_is_never_chosen():
    highest = torch.nextafter(torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64))
    uniforms = torch.stack([torch.zeros((), dtype=torch.float64), highest, torch.ones((), dtype=torch.float64)])
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).expand(3, -1)
    assert choose(logits, uniforms, SamplingSettings()).tolist() == [1, 2, 2]


# Mistakes


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"temperature": -0.1}, ValueError, "temperature must be at least 0 .* got -0.1"),
        ({"temperature": float("nan")}, ValueError, "temperature .* got nan"),
        ({"temperature": "hot"}, TypeError, "temperature must be a number, got 'hot'"),
        ({"guidance_scale": -1}, ValueError, "guidance_scale must be at least 0 .* got -1"),
        ({"guidance_scale": float("inf")}, ValueError, "guidance_scale .* got inf"),
        ({"top_k": -1}, ValueError, "top_k must be at least 0 .* got -1"),
        ({"top_k": 1.5}, TypeError, "top_k must be a whole number, got 1.5"),
        ({"top_p": 0}, ValueError, r"top_p must be in \(0, 1\] .* got 0"),
        ({"top_p": 1.01}, ValueError, r"top_p must be in \(0, 1\] .* got 1.01"),
        ({"top_p": None}, TypeError, "top_p must be a number, got None"),
    ],
)
def test_settings_out_of_range(model, vocabulary, prompts, settings, error, words):
    with pytest.raises(error, match=words):
        generate_codes(model, vocabulary, prompts, generators=streams(0, 0, 0, 0), **settings)


def test_a_prompt_that_leaves_no_room(model, vocabulary, prompts):
    room = 96 - vocabulary.tokens_per_image
    fits, too_long = [vocabulary.bos_id] * room, [vocabulary.bos_id] * (room + 1)
    assert generate_codes(model, vocabulary, [fits], generators=streams(0)).shape[0] == 1
    with pytest.raises(ValueError, match=f"prompt 1 has {room + 1} tokens, but at most {room} .* 96 positions"):
        generate_codes(model, vocabulary, [prompts[0], too_long], generators=streams(0, 0))
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        generate_codes(model, vocabulary, [[]], generators=streams(0))


def test_numbers_that_do_not_match(model, vocabulary, prompts):
    with pytest.raises(ValueError, match="4 prompts need as many generators, got 1"):
        generate_codes(model, vocabulary, prompts, generators=streams(0))
    with pytest.raises(ValueError, match="4 prompts need as many negative prompts, got 1"):
        generate_codes(model, vocabulary, prompts, prompts[:1], guidance_scale=2, generators=streams(0, 0, 0, 0))


def test_a_model_without_the_image_tokens(vocabulary, prompts):
    model = random_model(vocabulary)
    model.resize_token_embeddings(vocabulary.image_offset)
    with pytest.raises(ValueError, match=f"{vocabulary.image_offset} tokens but the vocabulary {vocabulary.size}"):
        generate_codes(model, vocabulary, prompts, generators=streams(0, 0, 0, 0))


@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_not_finite(vocabulary, prompts, temperature):
    model = random_model(vocabulary)
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="not finite"):
        generate_codes(model, vocabulary, prompts, temperature=temperature, generators=streams(0, 0, 0, 0))


@pytest.mark.gpu
def test_on_a_gpu(vocabulary, prompts):
    model = random_model(vocabulary).cuda()
    negative = image_prompt(vocabulary, None)
    expected = [greedy_by_hand(model.cpu(), vocabulary, prompt, negative, 3.0) for prompt in prompts]
    settings = {"guidance_scale": 3.0, "generators": streams(0, 1, 2, 3)}
    codes = generate_codes(model.cuda(), vocabulary, prompts, temperature=0, **settings)
    assert codes.device.type == "cuda" and codes.tolist() == expected
    generate_codes(model.bfloat16(), vocabulary, prompts, top_k=5, top_p=0.9, **settings)
