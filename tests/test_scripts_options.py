"""The option parser of all scripts: defaults < `--config` < command line; one sentence for each mistake."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from pipelines.options.parser import parse_options

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
