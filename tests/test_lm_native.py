"""Drawing through compiled code: the same numbers as torch's operators, and what happens without a compiler."""

from __future__ import annotations

import logging
import os
import platform
from pathlib import Path

import pytest
import torch
from test_lm_generation import CAPTIONS, other_shapes, random_model, vocabulary  # noqa: F401
from tiny import draw_codes, streams

from lm.generation import native, native_stepper
from lm.generation.direct_stepper import DirectModel, DirectStepper
from lm.generation.native_stepper import NativeStepper
from lm.sequences import image_prompt

# Where there is a compiler, code that does not compile fails these tests.
compiled = pytest.mark.skipif(
    native.find_compiler() is None or os.environ.get("TESSERA_NATIVE") == "0",
    reason="there is no C++ compiler, or TESSERA_NATIVE=0",
)


@pytest.fixture
def without_library():
    """Looks for the library anew, before and after the test."""
    native._library.cache_clear()
    yield
    native._library.cache_clear()


def draw(model, vocabulary, **settings):  # noqa: F811
    prompts = [image_prompt(vocabulary, caption) for caption in CAPTIONS]
    return draw_codes(model, vocabulary, prompts, generators=streams(1, 2, 3, 4), guidance_scale=2, **settings)


def mapped(weight: torch.Tensor, bias: torch.Tensor, rows: torch.Tensor, threads: int) -> torch.Tensor:
    """x W^T + b by the compiled code."""
    linear = native.Linear(weight.data_ptr(), bias.data_ptr(), weight.shape[1], len(weight))
    result = torch.full((len(rows), len(weight)), torch.nan)
    call = getattr(native._library(), "map_" + str(weight.dtype).removeprefix("torch."))
    call(linear, rows.data_ptr(), len(rows), threads, result.data_ptr())
    return result


@compiled
def test_it_compiles():
    assert native.unavailable() is None


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 12), (37, 7), (5, 3)])
def test_a_product_of_a_row_is_the_same_whatever_rows_are_beside_it(dtype, inputs, outputs):
    torch.manual_seed(0)
    rows, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((19, inputs), (outputs, inputs), (outputs,)))
    together = mapped(weight, bias, rows, 1)
    expected = rows.double() @ weight.double().T + bias.double()
    torch.testing.assert_close(together.double(), expected, atol=1e-5, rtol=1e-5)
    for count in range(19):
        assert mapped(weight, bias, rows[:count], 2).equal(together[:count])


@compiled
@pytest.mark.skipif(platform.machine() != "x86_64", reason="these are options of x86 processors")
@pytest.mark.parametrize("option", ["-mno-avx512f", "-mno-avx"])
def test_narrower_vectors_sum_in_the_same_order(option, without_library, monkeypatch, tmp_path):
    """In float32; products of bfloat16 are added by pairs where the processor does so."""
    torch.manual_seed(0)
    rows, weight, bias = (torch.randn(*shape) for shape in ((19, 100), (13, 100), (13,)))
    expected = mapped(weight, bias, rows, 1)
    native._library.cache_clear()
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, option))
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path))
    assert native.unavailable() is None and native.vector_bytes() <= 32
    near = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(mapped(weight, bias, rows, 1), expected, **near)  # whether products are rounded differs
    for count in range(1, 19):
        assert mapped(weight, bias, rows[:count], 1).equal(mapped(weight, bias, rows, 2)[:count])


@compiled
def test_prompts_are_read_alike_in_parts_and_shared_ones_once(vocabulary, monkeypatch):  # noqa: F811
    model = random_model(vocabulary).eval()
    prompts = [image_prompt(vocabulary, caption) for caption in (*CAPTIONS, CAPTIONS[0])]

    def states(prompts) -> torch.Tensor:
        stepper = NativeStepper(model, prompts, 4, vocabulary.pad_id)
        first = stepper.logits(0, vocabulary.size)
        stepper.advance(torch.full((len(prompts),), vocabulary.image_offset))
        return torch.cat([first, stepper.logits(0, vocabulary.size)], 1)

    with torch.inference_mode():
        together = states(prompts)
        monkeypatch.setattr(native_stepper, "MOST_FED", 3)
        assert states(prompts).equal(together) and together[-1].equal(together[0])
        assert torch.cat([states([prompt]) for prompt in prompts]).equal(together)
        for prompt in ([], [-1], [vocabulary.size + 1000]):
            with pytest.raises(ValueError, match="at least one token each, of 0 .. "):
                NativeStepper(model, [prompts[0], prompt], 4, vocabulary.pad_id)


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["qwen3", "llama", "shared keys, wide heads, biases, tied"])
def test_steps_are_those_of_torch(vocabulary, name, dtype):  # noqa: F811
    model = random_model(vocabulary, name) if name in ("qwen3", "llama") else other_shapes(vocabulary, name)
    model = model.to(dtype).eval()
    assert native.fits(model)
    prompts = [image_prompt(vocabulary, caption) for caption in (*CAPTIONS, "a")]
    arguments = (prompts, 40, vocabulary.pad_id)
    with torch.inference_mode():
        ours, theirs = NativeStepper(model, *arguments), DirectStepper(DirectModel(model, 5), *arguments)
        for ids in torch.randint(vocabulary.image_offset, vocabulary.size, (40, len(prompts))):
            near = {"atol": 1e-4, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.3, "rtol": 0.1}
            torch.testing.assert_close(ours.logits(0, vocabulary.size), theirs.logits(0, vocabulary.size), **near)
            ours.advance(ids)
            theirs.advance(ids)


@compiled
def test_which_models_the_compiled_code_takes(vocabulary):  # noqa: F811
    for name, takes in {"qwen3": True, "llama": True, "gpt2": False, "gemma2": False}.items():
        assert native.fits(random_model(vocabulary, name)) == takes
    model = random_model(vocabulary)
    assert not native.fits(model.half())
    model = random_model(vocabulary)
    model.config.hidden_act = "gelu"
    assert not native.fits(model)
    model = random_model(vocabulary)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.T.contiguous().T)
    assert not native.fits(model)


@compiled
def test_changed_weights_are_seen(vocabulary):  # noqa: F811
    model = random_model(vocabulary)
    before = draw(model, vocabulary)
    original = model.model.layers[1].mlp.up_proj.weight.data.clone()
    model.model.layers[1].mlp.up_proj.weight.data.neg_()
    assert not draw(model, vocabulary).equal(before)
    model.model.layers[1].mlp.up_proj.weight.data.copy_(original)
    assert draw(model, vocabulary).equal(before)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [("TESSERA_NATIVE", "0", "TESSERA_NATIVE=0"), ("CXX", "false", "false failed"), ("CXX", "/no/g++", "/no/g++")],
)
def test_without_a_compiler_torch_draws_the_same(
    vocabulary, monkeypatch, tmp_path, caplog, without_library, name, value, why  # noqa: F811
):  # fmt: skip
    model = random_model(vocabulary)
    expected = draw(model, vocabulary, temperature=0)
    native._library.cache_clear()
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path))
    with caplog.at_level(logging.INFO, "lm.generation.native"):
        assert why in native.unavailable() and not native.fits(model)
    assert name == "TESSERA_NATIVE" or "drawing without compiled code" in caplog.text
    assert draw(model, vocabulary, temperature=0).equal(expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cpuinfo", ["Features : fp asimd\n", None])
def test_processors_that_list_no_flags_compile_too(cpuinfo, monkeypatch, tmp_path):
    """As those of ARM, and systems without /proc."""
    import subprocess

    read_text = Path.read_text

    def read(path: Path, *arguments, **settings) -> str:
        if str(path) != "/proc/cpuinfo":
            return read_text(path, *arguments, **settings)
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return cpuinfo

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", lambda command, **_: Path(command[-1]).write_text("library"))
    assert native._compiled("g++").read_text() == "library"


@compiled
def test_it_is_compiled_once(monkeypatch, tmp_path):
    import subprocess

    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path))
    compiler = native.find_compiler()
    file = native._compiled(compiler)
    assert file.parent == tmp_path and [*file.parent.iterdir()] == [file]
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    assert native._compiled(compiler) == file
    source = tmp_path / "other.cpp"
    source.write_text(native.SOURCE.read_text() + "// other")
    monkeypatch.setattr(native, "SOURCE", Path(source))
    with pytest.raises(pytest.fail.Exception):
        native._compiled(compiler)
