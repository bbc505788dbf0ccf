"""The option parser of all scripts: defaults < `--config` < command line; one sentence for each mistake."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from lm.model import ARCHITECTURES, SIZES
from pipelines.options import language_model
from pipelines.options.image_tokenizer import ImageTokenizerOptions
from pipelines.options.language_model import LanguageModelOptions
from pipelines.options.option import check_values, option
from pipelines.options.parser import parse_options, run_command

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Options:
    """One field of each kind that the scripts use."""

    output_dir: str = field(default="runs/x", metadata={"help": "where the run goes"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak; 95% of runs need no other"})
    max_steps: int = field(default=100, metadata={"help": "steps"})
    seed: int | None = field(default=None, metadata={"help": "seed of the run"})
    resume: bool = field(default=False, metadata={"help": "go on"})
    average_weights: bool = field(default=True, metadata={"help": "keep an EMA"})
    mixed_precision: Literal["no", "bf16"] = field(default="bf16", metadata={"help": "dtype of the products"})
    levels: list[int] = field(default_factory=lambda: [8], metadata={"help": "levels"})

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise ValueError(f"--max_steps must be at least 1, got {self.max_steps}")


@dataclass
class WithPrompts:
    prompts: list[str] = field(default_factory=list)
    model: str = field(default="runs/model", metadata={"help": "folder"})
    labels: bool = field(default=False, metadata={"help": "captions"})


@dataclass
class WithRequired:
    model: str = field(metadata={"help": "folder"})


POSITIONAL = {"prompts": {"nargs": "*", "help": "what to draw"}}


def parse(*argv: str, options_class=Options, positional=None):
    return parse_options(options_class, description="test", argv=argv, positional=positional)


def failure(capsys, *argv: str, options_class=Options, positional=None) -> str:
    with pytest.raises(SystemExit) as end:
        parse(*argv, options_class=options_class, positional=positional)
    assert end.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture
def config(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "options.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_defaults_and_flags():
    assert parse() == Options()
    options = parse("--output_dir", "a", "--learning-rate", "3e-4", "--seed", "7", "--levels", "8", "5")
    assert (options.output_dir, options.learning_rate, options.seed, options.levels) == ("a", 3e-4, 7, [8, 5])


@pytest.mark.parametrize(
    ("argv", "resume", "average"),
    [
        ((), False, True),
        (("--resume", "--no_average_weights"), True, False),
        (("--resume", "--no_resume"), False, True),
        (("--resume", "false", "--average-weights"), False, True),
        (("--resume=true", "--no-average-weights"), True, False),
    ],
)
def test_booleans(argv, resume, average):
    options = parse(*argv)
    assert (options.resume, options.average_weights) == (resume, average)


def test_config_is_between_defaults_and_command_line(config):
    path = config(
        "learning_rate: 1e-4\nmax-steps: 5\nresume: true\naverage_weights: false\n"
        "mixed_precision: no\nlevels: [8, 8]\nseed: null\n"
    )
    options = parse("--config", path, "--max_steps", "9", "--no_resume")
    expected = Options(learning_rate=1e-4, max_steps=9, average_weights=False, mixed_precision="no", levels=[8, 8])
    assert options == expected
    assert parse(f"--config={config('')}") == Options()


def test_config_may_give_a_required_option_and_prompts(config):
    assert parse("--config", config("model: m"), options_class=WithRequired).model == "m"
    path = config("prompts: [a cat, a dog]")
    given = parse("--config", path, options_class=WithPrompts, positional=POSITIONAL)
    assert given.prompts == ["a cat", "a dog"]
    given = parse("--config", path, "a fish", options_class=WithPrompts, positional=POSITIONAL)
    assert given.prompts == ["a fish"]


@pytest.mark.parametrize(
    "argv",
    [
        ("a dog", "a cat", "--model", "m", "--labels"),
        ("--labels", "a dog", "--model", "m", "a cat"),
        ("--model", "m", "--labels", "a dog", "a cat"),
    ],
)
def test_prompts_stand_anywhere(argv):
    options = parse(*argv, options_class=WithPrompts, positional=POSITIONAL)
    assert options == WithPrompts(prompts=["a dog", "a cat"], model="m", labels=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rat: 1", ["learning_rat", "did you mean learning_rate?"]),
        ("qqq: 1", ["'qqq'", "the options are", "output_dir"]),
        ("max_steps: many", ["'max_steps'", "'many' is not a valid int"]),
        ("max_steps: null", ["'max_steps'", "not a valid int"]),
        ("resume: perhaps", ["'resume'", "true or false"]),
        ("mixed_precision: fp8", ["'mixed_precision'", "no, bf16"]),
        ("levels: 8", ["'levels'", "list"]),
        ("output_dir: [a]", ["'output_dir'", "one value"]),
        ("- a\n- b", ["option: value", "list"]),
        ("a: [", ["not a YAML file"]),
        ("max_steps: 0", ["--max_steps must be at least 1, got 0"]),
    ],
)
def test_mistakes_in_the_config(capsys, config, text, words):
    path = config(text)
    message = failure(capsys, "--config", path)
    assert all(word in message for word in words), message


def test_missing_config(capsys):
    assert "--config no.yaml: there is no such file" in failure(capsys, "--config", "no.yaml")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--max_step", "3"), ["unrecognized arguments: --max_step 3", "did you mean --max_steps?"]),
        (("--zzz",), ["unrecognized arguments: --zzz"]),
        (("word",), ["unrecognized arguments: word"]),
        (("--max_steps", "x"), ["argument --max_steps", "invalid int value: 'x'"]),
        (("--mixed_precision", "fp8"), ["invalid choice"]),
        (("--max_steps", "0"), ["--max_steps must be at least 1, got 0"]),
        (("--config",), ["--config", "expected one argument"]),
    ],
)
def test_mistakes_on_the_command_line(capsys, argv, words):
    message = failure(capsys, *argv)
    assert all(word in message for word in words), message


def test_required_option_is_named(capsys):
    assert "--model" in failure(capsys, options_class=WithRequired)


def test_help_shows_defaults(capsys):
    with pytest.raises(SystemExit) as end:
        parse("--help")
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert "(default: 0.001)" in text and "95% of runs" in " ".join(text.split()) and "--config" in text
    assert "turn --average_weights off" in text and "(default: None)" not in text


@pytest.mark.parametrize(
    "script", ["train_tokenizer", "train_lm", "generate", "evaluate", "cache_tokens", "inspect_data"]
)
def test_help_leaves_torch_out(script):
    """It answers at once."""
    code = (
        "import runpy, sys; sys.argv[1:] = ['--help']\n"
        f"try: runpy.run_path('scripts/{script}.py', run_name='__main__')\n"
        "except SystemExit as end: sys.exit(end.code or ','.join({'torch', 'datasets'} & {*sys.modules}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--config" in done.stdout, done.stderr


STAGE_1_MISTAKES = {
    "--resize foo": "choose crop or squash",
    "--network foo": "choose conv, mlp or components",
    "--sixteen_bit x": "choose full or data",
    "--num_levels 5": "choose 1, 2 or 3",
    "--num_channels 2": "choose 1 or 3",
    "--image_size 30": "no preset .* the nearest sizes with one are 28 and 32",
    "--image_size 0": "must be above zero",
    "--codebook_sizes 1": "must be at least 2",
    "--hidden_sizes 8 0": "--hidden_sizes 0 must be above zero",
    "--patch_size 3": "--image_size 32x32 is not a multiple .* or other --patch_size",
    "--encoder_kernel_size 2": "must be odd",
    "--code_dim 33": "cannot be split into .* that --codebook_sizes",
    "--level_dropout 1": "must be at least zero and below 1",
    "--codebook_decay 2": "--codebook_decay 2.0 must be in",
    "--codebook_dim 4": "no quantizer option --codebook_dim",
    "--quantizer ema,foo": "--quantizer 'foo': choose",
    "--quantizer ema": "--codebook_sizes .*--quantizer 'ema' has one codebook",
    "--quantizer lookup_free --codebook_sizes 1000": "--codebook_sizes .* needs a power of two",
    "--num_levels 2 --codebook_sizes 8 8 8": "--codebook_sizes .* cannot be split evenly among --num_levels 2",
    "--network mlp --num_levels 2": "--num_levels 2: --network 'mlp' has one level",
}
STAGE_2_MISTAKES = {
    "--lm_size 9M": "choose 2M, ",
    "--architecture bert": "choose llama, qwen3 or gpt2",
    "--hidden_size 100 --num_heads 3": "--hidden_size 100 is not a multiple of --num_heads 3",
    "--lm_size 2M --num_heads 5": "--hidden_size 192 is not a multiple of --num_heads 5",
    "--init_from . --lm_name_or_path x": "exclude each other",
    "--text_tokenizer x --text_vocab_size 9": "leave it out",
    "--caption_dropout 1.5": "must be at least zero and at most 1",
    "--image_sizes 8": "give HEIGHTxWIDTH",
    "--optimizer sgd": "choose adamw, adamw8bit or muon",
    "--lora_rank 8": "give --lm_name_or_path or --init_from",
}
MISTAKES_OF_BOTH = {
    "--max_unreadable_share 3": "must be at least zero and at most 1",
    "--num_workers -7": "must be at least -1",
    "--ema_decay 1": "must be at least zero and below 1",
    "--decay_share 0": "must be above zero and at most 1",
    "--learning_rate nan": "must be above zero",
    "--batch_size 0": "must be above zero",
    "--init_from nowhere": "no such folder",
}


@pytest.mark.parametrize(
    ("options_class", "given", "words"),
    [
        *((ImageTokenizerOptions, *mistake) for mistake in (STAGE_1_MISTAKES | MISTAKES_OF_BOTH).items()),
        *((LanguageModelOptions, *mistake) for mistake in (STAGE_2_MISTAKES | MISTAKES_OF_BOTH).items()),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("--") else "",
)
def test_a_mistake_in_an_option_is_found_before_anything_is_read(capsys, options_class, given, words):
    """With exit code 2, and the message begins with an option that was typed, or names it."""
    message = failure(capsys, *given.split(), options_class=options_class)
    assert re.search(words, message) and "--" in message, message


def test_the_language_models_that_the_options_know():
    assert set(language_model.ARCHITECTURES) == set(ARCHITECTURES) and tuple(SIZES) == language_model.SIZES


def test_intervals_have_both_ends_or_one():
    @dataclass
    class Shares:
        half_open: float = option(0.5, "", within="[0, 1)")
        closed: float = option(1.0, "", within="(0, 1]")
        several: list[int] = option([1], "", within="[-1, inf)")

    for good in ({"half_open": 0.0}, {"closed": 1.0}, {"several": [-1, 10**9]}, {"several": []}):
        check_values(Shares(**good))
    for bad in ({"half_open": 1.0}, {"half_open": -0.1}, {"closed": 0.0}, {"closed": 1.1}, {"several": [3, -2]}):
        with pytest.raises(ValueError, match=f"--{next(iter(bad))} "):
            check_values(Shares(**bad))


def test_memory_and_time_that_run_out_end_in_one_sentence(monkeypatch):
    def main(_: Options) -> None:
        raise MemoryError("Unable to allocate 28 GiB")

    def late(_: Options) -> None:
        raise RuntimeError("[unbound_buffer.cc:78] Timed out waiting 18000ms for recv operation to complete")

    def other(_: Options) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit, match=r"^train.py: error: there is not enough memory \(Unable .*--batch_size"):
        run_command(main, Options, "test")
    with pytest.raises(SystemExit, match="another process did not answer in time .*18000ms.* --timeout_minutes"):
        run_command(late, Options, "test")
    with pytest.raises(RuntimeError, match="a fault of ours"):
        run_command(other, Options, "test")
