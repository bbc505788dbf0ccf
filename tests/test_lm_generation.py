"""The sampler: exact against plain forward passes, only valid codes, and each row a world of its own."""

from __future__ import annotations

import pytest
import torch
from tiny import add_noise, draw_codes, streams, task_of, tiny_model
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lm.generation import memory, native
from lm.generation.direct_stepper import DirectModel
from lm.generation.images import draw
from lm.generation.noise import gumbel
from lm.generation.progress import DrawingInterrupted, DrawingStopped
from lm.generation.sampling import SamplingSchedule, SamplingSettings, choose
from lm.model import plain_head
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
        return add_noise(Gemma2ForCausalLM(config), 0.15)
    return tiny_model(vocabulary, architecture=architecture, max_positions=96)


@pytest.fixture(scope="module")
def model(vocabulary) -> torch.nn.Module:
    return random_model(vocabulary)


@pytest.fixture(scope="module")
def prompts(vocabulary) -> list[list[int]]:
    return [image_prompt(vocabulary, caption) for caption in CAPTIONS]


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


@pytest.fixture(params=["compiled", "operators"])
def path(request, monkeypatch) -> str:
    """With compiled code where it can be had, and with torch's operators alone."""
    if request.param == "operators":
        monkeypatch.setattr(native, "fits", lambda model: False)
    return request.param


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("guidance_scale", [0.0, 0.5, 1.0, 3.0])
def test_greedy_equals_plain_forward_passes(vocabulary, prompts, architecture, guidance_scale, path):
    model = random_model(vocabulary, architecture)
    negative = None if guidance_scale == 1 else image_prompt(vocabulary, None)
    expected = [greedy_by_hand(model, vocabulary, prompt, negative, guidance_scale) for prompt in prompts]
    settings = {"guidance_scale": guidance_scale, "temperature": 0, "generators": streams(0, 1, 2, 3)}
    assert draw_codes(model, vocabulary, prompts, **settings).tolist() == expected
    assert draw_codes(model, vocabulary, prompts, max_batch_rows=3, **settings).tolist() == expected


def test_an_output_layer_with_a_bias(vocabulary, prompts):
    model = random_model(vocabulary)
    model.lm_head.bias = torch.nn.Parameter(5 * torch.randn(vocabulary.size))
    expected = [greedy_by_hand(model, vocabulary, prompt, None, 1.0) for prompt in prompts]
    got = draw_codes(model, vocabulary, prompts, temperature=0, generators=streams(0, 0, 0, 0))
    assert got.tolist() == expected


def test_greedy_with_negative_prompts(model, vocabulary, prompts):
    negatives = prompts[::-1]
    pairs = zip(prompts, negatives, strict=True)
    expected = [greedy_by_hand(model, vocabulary, prompt, negative, 2.5) for prompt, negative in pairs]
    got = draw_codes(
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
def test_greedy_equals_transformers_generate(vocabulary, prompts, architecture, path):
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

    got = draw_codes(model, vocabulary, prompts, temperature=0, generators=streams(0, 0, 0, 0))
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
    codes = draw_codes(model, vocabulary, prompts * 8, guidance_scale=2, generators=streams(*range(32)), **settings)
    low, high = torch.tensor(vocabulary.layout["low"]), torch.tensor(vocabulary.layout["high"])
    assert codes.shape == (32, vocabulary.tokens_per_image) and codes.dtype == torch.int64
    assert (codes >= low).all() and (codes < high).all()


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 9, "top_p": 0.8}])
def test_a_row_does_not_depend_on_its_neighbours(model, vocabulary, prompts, guidance_scale, settings, path):
    settings = {"guidance_scale": guidance_scale, **settings}
    together = draw_codes(model, vocabulary, prompts, generators=streams(5, 6, 7, 8), **settings)
    for row in range(len(prompts)):
        alone = draw_codes(model, vocabulary, [prompts[row]], generators=streams(5 + row), **settings)
        assert alone[0].equal(together[row])
    halves = draw_codes(model, vocabulary, prompts, generators=streams(5, 6, 7, 8), max_batch_rows=2, **settings)
    assert halves.equal(together)


def test_streams_decide(model, vocabulary, prompts):
    same = draw_codes(model, vocabulary, [prompts[0]] * 3, generators=streams(1, 1, 2))
    assert same[0].equal(same[1]) and not same[0].equal(same[2])


def test_global_generator_is_left_alone(model, vocabulary, prompts):
    before = torch.get_rng_state()
    draw_codes(model, vocabulary, prompts, generators=streams(1, 2, 3, 4))
    assert torch.get_rng_state().equal(before)


def test_each_module_gets_its_mode_back(vocabulary, prompts):
    model = random_model(vocabulary).train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    seen = []
    codes = draw_codes(
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
    codes = draw_codes(
        model, vocabulary, prompts[:3], generators=streams(1, 2, 3), max_batch_rows=2,
        callback=lambda step, total, codes: calls.append((step, total, codes.clone())),
    )  # fmt: skip
    total = 2 * vocabulary.tokens_per_image
    assert [(step, of) for step, of, _ in calls] == [(step, total) for step in range(1, total + 1)]
    assert calls[4][2].equal(codes[:2, :5]) and calls[-1][2].equal(codes[2:])


def test_no_prompts(model, vocabulary):
    assert draw_codes(model, vocabulary, [], generators=[]).shape == (0, vocabulary.tokens_per_image)


def test_one_linear_map_where_it_is_one(vocabulary):
    found = {name: plain_head(random_model(vocabulary, name)) is not None for name in ARCHITECTURES}
    assert found == {"qwen3": True, "llama": True, "gpt2": True, "gemma2": False}


# Stock models by their weights alone, others by their own forward


def test_which_models_are_read_directly(vocabulary):
    found = {name: DirectModel.fits(random_model(vocabulary, name)) for name in ARCHITECTURES}
    assert found == {"qwen3": True, "llama": True, "gpt2": True, "gemma2": False}


def test_a_changed_model_answers_through_its_own_forward(vocabulary, prompts):
    hooked = random_model(vocabulary)
    hooked.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: output * 0.5)
    replaced = random_model(vocabulary)
    replaced.model.layers[1].mlp.down_proj = Doubled(replaced.model.layers[1].mlp.down_proj)
    for model in (hooked, replaced):
        assert not DirectModel.fits(model)
        expected = [greedy_by_hand(model, vocabulary, prompt, None, 1.0) for prompt in prompts]
        got = draw_codes(model, vocabulary, prompts, temperature=0, generators=streams(0, 0, 0, 0))
        assert got.tolist() == expected


class Doubled(torch.nn.Module):
    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return 2 * self.layer(inputs)


def other_shapes(vocabulary, name: str) -> torch.nn.Module:
    """Settings that the models of `train_lm.py` do not have."""
    own = {"bos_token_id": vocabulary.bos_id, "eos_token_id": vocabulary.eos_id, "pad_token_id": vocabulary.pad_id}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    shared = {**own, **sizes, "vocab_size": vocabulary.size, "max_position_embeddings": 96}
    torch.manual_seed(1)
    if name == "shared keys, wide heads, biases, tied":
        config = LlamaConfig(
            **shared, num_key_value_heads=2, head_dim=16, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
        )
        model = LlamaForCausalLM(config)
    elif name == "qwen3 with one key, yarn":
        rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
        model = Qwen3ForCausalLM(Qwen3Config(**shared, num_key_value_heads=1, head_dim=8, rope_parameters=rope))
    elif name == "sliding window":
        model = Qwen3ForCausalLM(
            Qwen3Config(
                **shared, num_key_value_heads=1, head_dim=8, sliding_window=8, use_sliding_window=True,
                max_window_layers=0,
            )
        )  # fmt: skip
    else:
        model = GPT2LMHeadModel(
            GPT2Config(
                **own, vocab_size=vocabulary.size, n_positions=96, n_embd=32, n_layer=2, n_head=4,
                activation_function="relu", scale_attn_by_inverse_layer_idx=True,
            )
        )  # fmt: skip
    return add_noise(model, 0.15)


@pytest.mark.parametrize(
    ("name", "direct"),
    [
        ("shared keys, wide heads, biases, tied", True),
        ("qwen3 with one key, yarn", True),
        ("sliding window", False),
        ("gpt2 with other settings", True),
    ],
)
def test_other_shapes_of_stock_models(vocabulary, prompts, name, direct, path):
    model = other_shapes(vocabulary, name)
    assert DirectModel.fits(model) == direct
    negative = image_prompt(vocabulary, None)
    expected = [greedy_by_hand(model, vocabulary, prompt, negative, 2.0) for prompt in prompts]
    got = draw_codes(model, vocabulary, prompts, guidance_scale=2.0, temperature=0, generators=streams(0, 0, 0, 0))
    assert got.tolist() == expected


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gpt2"])
def test_bfloat16_is_near(vocabulary, prompts, architecture, path):
    """Not the same numbers, but those of the model's own forward, as well as bfloat16 tells them."""
    model = random_model(vocabulary, architecture).bfloat16().eval()
    codes = draw_codes(model, vocabulary, prompts[:1], temperature=0, generators=streams(0))[0]
    ids = torch.tensor([[*prompts[0], *(vocabulary.image_offset + codes).tolist()]])
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0, len(prompts[0]) - 1 : -1].float()
    for t, (low, high) in enumerate(zip(vocabulary.layout["low"], vocabulary.layout["high"], strict=True)):
        own = logits[t, vocabulary.image_offset + low : vocabulary.image_offset + high]
        assert own[codes[t] - low] >= own.max() - 0.1 * own.std() - 0.05


# Kept codes


def test_forced_codes_stay_and_the_rest_follows_them(model, vocabulary, prompts):
    settings = {"guidance_scale": 2.0, "temperature": 0, "generators": streams(0, 0, 0, 0)}
    whole = draw_codes(model, vocabulary, prompts, **settings)
    low = torch.tensor(vocabulary.layout["low"])
    forced = torch.full_like(whole, -1)
    forced[:, 1] = low[1] + 3  # one place in all rows
    forced[1:, 6] = low[6] + torch.tensor([1, 5, 9])  # one place in some
    forced[3, :5] = low[:5]
    got = draw_codes(model, vocabulary, prompts, forced=forced, **settings)
    assert got[forced >= 0].equal(forced[forced >= 0]) and not got.equal(whole)
    again = draw_codes(model, vocabulary, prompts, forced=torch.where(torch.arange(12) < 9, got, -1), **settings)
    assert again.equal(got)  # a beginning read with the prompt leads to the same as one drawn code by code
    alone = draw_codes(model, vocabulary, prompts[3:], forced=forced[3:], **{**settings, "generators": streams(0)})
    assert alone[0].equal(got[3])


def test_all_codes_forced(model, vocabulary, prompts):
    whole = draw_codes(model, vocabulary, prompts, generators=streams(1, 2, 3, 4))
    kept = draw_codes(model, vocabulary, prompts, generators=streams(5, 6, 7, 8), forced=whole)
    assert kept.equal(whole)


def test_forced_codes_do_not_move_the_stream(model, vocabulary, prompts):
    """A place draws from its own number, whatever is kept before it."""
    whole = draw_codes(model, vocabulary, prompts, generators=streams(1, 2, 3, 4))
    forced = whole.clone()
    forced[:, 7:] = -1
    assert draw_codes(model, vocabulary, prompts, generators=streams(1, 2, 3, 4), forced=forced).equal(whole)


def test_forced_codes_that_cannot_be(model, vocabulary, prompts):
    with pytest.raises(ValueError, match=r"forced codes of shape \(4, 3\): expected \(4, 12\)"):
        draw_codes(model, vocabulary, prompts, generators=streams(0, 0, 0, 0), forced=torch.zeros(4, 3).long())
    for position, code, possible in ((5, 3, "12 to 31"), (5, 32, "12 to 31"), (3, 12, "0 to 11"), (3, -2, "0 to 11")):
        forced = torch.full((4, 12), -1)
        forced[2, position], forced[3, 0] = code, 99  # the first is named
        words = f"forced code {code} at position {position} of row 2: the codes there are {possible}, or -1"
        with pytest.raises(ValueError, match=words):
            draw_codes(model, vocabulary, prompts, generators=streams(0, 0, 0, 0), forced=forced)


# What stops it


@pytest.mark.parametrize(
    ("error", "caught"), [(OSError("no disk"), DrawingStopped), (KeyboardInterrupt(), DrawingInterrupted)]
)
def test_what_is_drawn_comes_with_the_error(model, vocabulary, prompts, error, caught):
    whole = draw_codes(model, vocabulary, prompts, generators=streams(1, 2, 3, 4))

    def stop(step, total, codes):
        if step == 12 + 5:
            raise error

    with pytest.raises(caught) as stopped:
        draw_codes(model, vocabulary, prompts, generators=streams(1, 2, 3, 4), max_batch_rows=2, callback=stop)
    assert stopped.value.codes[:2].equal(whole[:2])
    assert stopped.value.codes[2:, :5].equal(whole[2:, :5]) and (stopped.value.codes[2:, 5:] == -1).all()
    assert stopped.value.__cause__ is error


def test_step_by_step(model, vocabulary, prompts):
    steps = draw(model, vocabulary, task_of(vocabulary, prompts[:1], generators=streams(1)))
    first = next(steps)
    assert (first.step, first.total_steps, first.codes.shape) == (1, 12, (1, 1))
    assert not torch.is_inference_mode_enabled()  # not even between two steps
    *_, last = steps
    assert last.codes.equal(draw_codes(model, vocabulary, prompts[:1], generators=streams(1)))


def test_a_batch_is_as_large_as_the_free_memory(model, vocabulary, prompts, monkeypatch):
    longest, choices = max(map(len, prompts)), 20
    row = memory.bytes_of_row(model, longest, vocabulary.tokens_per_image, choices)
    settings = {"guidance_scale": 2.0, "generators": streams(1, 2, 3, 4)}
    expected = draw_codes(model, vocabulary, prompts, **settings)
    for rows, pictures in ((0, 1), (4.1, 2), (7.9, 3), (8.1, 4), (None, 4)):
        free = None if rows is None else int(rows * row / memory.SHARE)
        monkeypatch.setattr(memory, "available_memory", lambda device, free=free: free)
        settings = {"guidance_scale": 2.0, "generators": streams(1, 2, 3, 4)}
        steps = list(draw(model, vocabulary, task_of(vocabulary, prompts, **settings)))
        assert max(step.rows.stop - step.rows.start for step in steps) == pictures
        assert torch.cat([step.codes for step in steps if step.codes.shape[1] == 12]).equal(expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_a_row_takes_is_not_less_than_its_keys_and_values(vocabulary, prompts, architecture):
    from transformers import DynamicCache

    model = random_model(vocabulary, architecture)
    cache, length = DynamicCache(), len(prompts[0])
    model(torch.tensor([prompts[0]]), past_key_values=cache, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) // length * (length + 12)
    assert held < memory.bytes_of_row(model, length, 12, 20) < 50 * held


def test_what_more_tokens_and_wider_layers_take(vocabulary):
    model, length = random_model(vocabulary), 50
    config, held = model.config, memory.bytes_of_row(model, length, 12, 20)
    keys_and_values = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert memory.bytes_of_row(model, length, 13, 20) - held == 4 * keys_and_values, "in float32"
    added = config.intermediate_size
    config.intermediate_size *= 2
    assert memory.bytes_of_row(model, length, 12, 20) - held >= 4 * length * added, "one activation at least"


def test_a_feed_forward_part_of_unknown_width_is_four_times_as_wide(vocabulary):
    model = random_model(vocabulary, "gpt2")
    unknown = memory.bytes_of_row(model, 50, 12, 20)
    model.config.intermediate_size = 4 * model.config.hidden_size
    assert memory.bytes_of_row(model, 50, 12, 20) == unknown


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [(torch.OutOfMemoryError("no room"), True), (RuntimeError("CUDA out of memory"), True),
     (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True), (RuntimeError("sizes do not match"), False)],
)  # fmt: skip
def test_which_errors_say_that_memory_has_run_out(error, is_memory):
    assert memory.out_of_memory(error) == is_memory


def test_a_batch_without_room_is_halved_and_so_are_those_after_it():
    tried = []

    def work(batch):
        tried.append((batch.rows.start, batch.rows.stop, batch.number, batch.expected))
        if batch.rows.stop - batch.rows.start > 2:
            raise torch.OutOfMemoryError("no room")
        yield from range(batch.rows.start, batch.rows.stop)

    assert list(memory.in_batches(work, 9, 8)) == list(range(9))
    assert tried == [(0, 8, 0, 2), (0, 4, 0, 3), *((2 * n, min(2 * n + 2, 9), n, 5) for n in range(5))]
    with pytest.raises(ZeroDivisionError):
        list(memory.in_batches(lambda batch: [1 // 0], 9, 8))


def test_free_memory(monkeypatch, tmp_path):
    assert 2**20 < memory.available_memory(torch.device("cpu")) < 2**50
    assert memory.available_memory(torch.device("meta")) is None and memory._pages() is not None
    for name, value in (("max", 1000), ("current", 900)):
        (tmp_path / f"memory.{name}").write_text(f"{value}\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 250\nactive_file 50\n")
    assert memory._container(tmp_path) == 400
    (tmp_path / "memory.current").write_text("2000\n")
    assert memory._container(tmp_path) == 0, "above its limit"
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._container(tmp_path) is None and memory._container(tmp_path / "none") is None
    with monkeypatch.context() as patch:  # a system without /proc and without cgroups

        def missing(path, *arguments, **settings):
            raise FileNotFoundError(path)

        patch.setattr("pathlib.Path.read_text", missing)
        patch.setattr(memory, "_pages", lambda: 12345)
        assert memory.available_memory(torch.device("cpu")) == 12345
    # A GPU's: what the driver has, and what torch holds without using it.
    for name, value in (("mem_get_info", (300, 1000)), ("memory_reserved", 200), ("memory_allocated", 150)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert memory.available_memory(torch.device("cuda")) == 350


def test_too_little_memory_splits_the_batch(vocabulary, prompts, monkeypatch):
    model, most = random_model(vocabulary), 2
    whole = draw_codes(model, vocabulary, prompts, generators=streams(1, 2, 3, 4))

    def limit(module, arguments, settings):
        if len(settings["input_ids"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.model.register_forward_pre_hook(limit, with_kwargs=True)
    assert draw_codes(model, vocabulary, prompts, generators=streams(1, 2, 3, 4)).equal(whole)
    most = 0
    words = r"no memory to draw even one picture .* about \d+ MB beside the model, and [\d,]+ MB are free on cpu"
    with pytest.raises(RuntimeError, match=words):
        draw_codes(model, vocabulary, prompts, generators=streams(1, 2, 3, 4))
    monkeypatch.setattr(memory, "bytes_of_row", lambda *_: 5_000_000)
    monkeypatch.setattr(memory, "available_memory", lambda device: 7_000_000)
    words = "about 10 MB beside the model, and 7 MB are free on cpu"  # two rows with guidance
    with pytest.raises(RuntimeError, match=words):
        draw_codes(model, vocabulary, prompts, guidance_scale=2, generators=streams(1, 2, 3, 4))


# Settings that change along a picture


def test_a_schedule_of_one_value_is_that_value(model, vocabulary, prompts):
    def codes(scale):
        return draw_codes(model, vocabulary, prompts, guidance_scale=scale, generators=streams(1, 2, 3, 4))

    assert codes([2.5] * 12).equal(codes(2.5)) and codes(lambda position: 2.5).equal(codes(2.5))
    assert codes([1.0] * 12).equal(codes(1.0))
    mixed = codes([1.0] * 6 + [4.0] * 6)
    assert mixed[:, :6].equal(codes(1.0)[:, :6]) and not mixed.equal(codes(1.0)) and not mixed.equal(codes(4.0))


def test_settings_of_each_level(model, vocabulary, prompts):
    def codes(**settings):
        return draw_codes(model, vocabulary, prompts, generators=streams(1, 2, 3, 4), **settings)

    assert codes(temperature=[1.0, 1.0]).equal(codes())
    assert codes(temperature=[0, 0]).equal(codes(temperature=0))
    mixed = codes(temperature=[1.0, 0], top_k=[3, 0])
    assert mixed[:, :4].equal(codes(top_k=3)[:, :4])
    forced = mixed.clone()
    forced[:, 4:] = -1
    assert codes(temperature=0, forced=forced).equal(mixed)


def test_a_schedule_gives_the_settings_at_each_position():
    layout = build_layout([(1, 1), (1, 2)], [[4, 4], [8, 8]]).to_dict()

    def values(name, **settings):
        return [getattr(one, name) for one in SamplingSchedule(**settings).by_position(layout)]

    assert values("top_k", top_k=[1, 2]) == [1, 1, 2, 2, 2, 2]  # levels
    assert values("top_k", top_k=[1, 2, 3, 4]) == [1, 2, 3, 4, 3, 4]  # depths of each
    assert values("guidance_scale", guidance_scale=lambda position: 1 + position) == [1, 2, 3, 4, 5, 6]
    one_level = build_layout([(1, 2)], [[4, 4]]).to_dict()
    assert [one.min_p for one in SamplingSchedule(min_p=[0, 0.5]).by_position(one_level)] == [0, 0.5, 0, 0.5]
    for settings, words in (
        ({"guidance_scale": [1.0, 2.0]}, "guidance_scale has 2 values: give one number, or one .* 6 codes"),
        ({"temperature": [1.0, 2.0, 3.0]}, "temperature has 3 values: give one, or .* 2 levels, or .* 4 depths"),
        ({"top_p": [0.5, 0.0]}, r"top_p must be in \(0, 1\] .* got 0.0"),
    ):
        with pytest.raises(ValueError, match=words):
            SamplingSchedule(**settings).by_position(layout)
    with pytest.raises(ValueError, match="top_k has 3 values: give one, or one for each of the 2 codes of a place"):
        SamplingSchedule(top_k=[1, 2, 3]).by_position(one_level)


# The choice of one code


def frequencies(logits: list[float], **settings) -> torch.Tensor:
    """How often each column is chosen, over evenly spaced numbers in [0, 1)."""
    count = 400_000
    noise = gumbel(torch.arange(count, dtype=torch.float64) / count, len(logits))
    chosen = choose(torch.tensor([logits]).expand(count, -1), noise, SamplingSettings(**settings))
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
        ({"min_p": 0.6}, [0, 4 / 7, 0, 3 / 7]),
        ({"min_p": 1}, [0, 1, 0, 0]),
        ({"min_p": 0.4, "temperature": 0.5}, [0, 16 / 25, 0, 9 / 25]),  # of what the temperature leaves
        ({"min_p": 0.6, "top_k": 1}, [0, 1, 0, 0]),
        ({"temperature": 1e-30}, [0, 1, 0, 0]),
        ({"temperature": 1e30}, [0.25, 0.25, 0.25, 0.25]),
    ],
)
def test_frequencies(settings, expected):
    assert frequencies(LOGITS, **settings).tolist() == pytest.approx(expected, abs=2e-3)


def test_the_smallest_set_of_codes_has_no_code_too_many():
    assert frequencies([0.0, 0.0], top_p=0.5).tolist() == [1, 0], "the first has half of the probability already"


def test_a_code_without_probability_is_never_chosen():
    highest = torch.nextafter(torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64))
    ends = torch.stack([torch.zeros((), dtype=torch.float64), highest, torch.ones((), dtype=torch.float64)])
    uniforms = torch.cat([ends, torch.rand(1000, dtype=torch.float64)])
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).expand(len(uniforms), -1)
    assert set(choose(logits, gumbel(uniforms, 4), SamplingSettings()).tolist()) == {1, 2}


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
        ({"min_p": 1.5}, ValueError, r"min_p must be in \[0, 1\] .* got 1.5"),
        ({"top_p": None}, TypeError, "top_p must be a number, got None"),
    ],
)
def test_settings_out_of_range(model, vocabulary, prompts, settings, error, words):
    with pytest.raises(error, match=words):
        draw_codes(model, vocabulary, prompts, generators=streams(0, 0, 0, 0), **settings)


def test_a_prompt_that_leaves_no_room(model, vocabulary, prompts):
    room = 96 - vocabulary.tokens_per_image
    fits, too_long = [vocabulary.bos_id] * room, [vocabulary.bos_id] * (room + 1)
    assert draw_codes(model, vocabulary, [fits], generators=streams(0)).shape[0] == 1
    with pytest.raises(ValueError, match=f"prompt 1 has {room + 1} tokens, but at most {room} .* 96 positions"):
        draw_codes(model, vocabulary, [prompts[0], too_long], generators=streams(0, 0))
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        draw_codes(model, vocabulary, [[]], generators=streams(0))


def test_numbers_that_do_not_match(model, vocabulary, prompts):
    with pytest.raises(ValueError, match="4 prompts need as many generators, got 1"):
        draw_codes(model, vocabulary, prompts, generators=streams(0))
    with pytest.raises(ValueError, match="4 prompts need as many negative prompts, got 1"):
        draw_codes(model, vocabulary, prompts, prompts[:1], guidance_scale=2, generators=streams(0, 0, 0, 0))


def test_a_model_without_the_image_tokens(vocabulary, prompts):
    model = random_model(vocabulary)
    model.resize_token_embeddings(vocabulary.image_offset)
    with pytest.raises(ValueError, match=f"{vocabulary.image_offset} tokens but the vocabulary {vocabulary.size}"):
        draw_codes(model, vocabulary, prompts, generators=streams(0, 0, 0, 0))


@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_not_finite(vocabulary, prompts, temperature):
    model = random_model(vocabulary)
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="not finite"):
        draw_codes(model, vocabulary, prompts, temperature=temperature, generators=streams(0, 0, 0, 0))


@pytest.mark.gpu
def test_on_a_gpu(vocabulary, prompts):
    model = random_model(vocabulary).cuda()
    negative = image_prompt(vocabulary, None)
    expected = [greedy_by_hand(model.cpu(), vocabulary, prompt, negative, 3.0) for prompt in prompts]
    settings = {"guidance_scale": 3.0, "generators": streams(0, 1, 2, 3)}
    codes = draw_codes(model.cuda(), vocabulary, prompts, temperature=0, **settings)
    assert codes.device.type == "cuda" and codes.tolist() == expected
    draw_codes(model.bfloat16(), vocabulary, prompts, top_k=5, top_p=0.9, **settings)
