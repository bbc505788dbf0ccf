"""Command-line options of the scripts: one flat dataclass each, read by transformers' `HfArgumentParser`.

    @dataclass
    class Options:
        learning_rate: float = option(1e-3, "peak learning rate", above_zero=True)
        resume: bool = option(False, "go on with the run in output_dir")

        def __post_init__(self) -> None:
            check_values(self)

    options = parse_options(Options, description=__doc__)

The command line overrides `--config file.yaml`, which overrides the dataclass' defaults. Every mistake ends
in argparse's usual way: usage, one sentence on stderr, exit code 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

OptionsT = TypeVar("OptionsT")

_BOOLEAN_WORDS = ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, except where there is none to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default == []:
            return action.help
        return super()._get_help_string(action)


def parse_options(
    options_class: type[OptionsT],
    *,
    description: str | None,
    argv: Sequence[str] | None = None,
    positional: Mapping[str, Mapping[str, Any]] | None = None,
) -> OptionsT:
    """Read the command line into an `options_class`, a dataclass with one field for each option.

    `argv` is the command line without the program's name (default: this process's). `positional` maps fields
    that are given without a flag to `add_argument` settings: `{"prompts": {"nargs": "*", "help": "..."}}`.
    A boolean field `resume` is set by `--resume` and unset by `--no_resume`. A ValueError or TypeError that
    the dataclass raises in `__post_init__` is reported like any other mistake on the command line.
    """
    positional = positional or {}
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _build_parser(options_class, description, positional)
    flags = _boolean_options(options_class)
    argv = [_explicit_flag(*pair, flags) for pair in itertools.pairwise([*argv, ""])]
    _apply_config(parser, options_class, argv)
    _polish_help(parser)
    # Positional words may stand before, between and after the options.
    parse = parser.parse_known_intermixed_args if positional else parser.parse_known_args
    namespace, unknown = parse(argv)
    if unknown:
        nearest = _suggestion(unknown[0], [name for action in parser._actions for name in action.option_strings])
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{nearest}")
    values = vars(namespace)
    values.pop("config")
    try:
        options = options_class(**values)
    except (ValueError, TypeError) as error:
        parser.error(str(error))
    return options


def run_command(
    main: Callable[[OptionsT], Any],
    options_class: type[OptionsT],
    description: str | None,
    positional: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Call `main` with the command line's options.

    What a user can get wrong ends in one line: with exit code 2 where it is an option, else 1. Ctrl-C exits with 130.
    Characters that the terminal's encoding lacks are printed as escapes.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is by default
    try:
        main(parse_options(options_class, description=description, positional=positional))
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: error: {error}")
    except (MemoryError, RuntimeError) as error:
        reason = _reason_of(error)
        if reason is None:
            raise
        sys.exit(f"{Path(sys.argv[0]).name}: error: {reason}")
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        sys.exit(130)


def _reason_of(error: MemoryError | RuntimeError) -> str | None:
    """What to say of an error of a library that a user can do something about, else None."""
    from lm.generation.memory import out_of_memory  # imports torch, which has raised this

    words = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, MemoryError) or out_of_memory(error):
        return (
            f"there is not enough memory ({words}): work on less at once (--batch_size), on smaller pictures or with a "
            "smaller model"
        )
    if "timed out waiting" in words.lower():
        return f"another process did not answer in time ({words}): look for its error, or raise --timeout_minutes"
    return None


def _build_parser(
    options_class: Any, description: str | None, positional: Mapping[str, Mapping[str, Any]]
) -> argparse.ArgumentParser:
    from transformers.hf_argparser import HfArgumentParser  # here, so that a command may first say what it needs of it

    hints = get_type_hints(options_class)
    flagged = [
        (field.name, hints[field.name], _copy_of(field))
        for field in dataclasses.fields(options_class)
        if field.init and field.name not in positional
    ]
    # HfArgumentParser turns every field into a flag, so it is given a dataclass without the positional ones.
    flags_class: Any = dataclasses.make_dataclass(options_class.__name__, flagged, kw_only=True)
    parser = HfArgumentParser(flags_class, description=description, allow_abbrev=False, formatter_class=_HelpFormatter)
    for name, settings in positional.items():
        parser.add_argument(name, **settings)
    for name, hint, field in flagged:
        # HfArgumentParser adds `--no_x` where the default is True; the others serve beside a config file.
        if (hint is bool or hint == bool | None) and field.default is not True:
            names = (f"--no_{name}", f"--no-{name.replace('_', '-')}")
            parser.add_argument(*names, dest=name, action="store_false", help=argparse.SUPPRESS)
    parser.add_argument("--config", metavar="FILE.yaml", help="options from a file; those given here override it")
    return parser


def _copy_of(field: dataclasses.Field) -> Any:
    """A fresh field: `make_dataclass` and HfArgumentParser write into the ones that they are given.

    Of its metadata only what `add_argument` takes: the rest is for `pipelines.options.option.check_values`.
    """
    metadata = {name: value for name, value in field.metadata.items() if name == "help"}
    if field.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=field.default_factory, metadata=metadata)
    if field.default is not dataclasses.MISSING:
        return dataclasses.field(default=field.default, metadata=metadata)
    return dataclasses.field(metadata=metadata)


def _boolean_options(options_class: type) -> set[str]:
    hints = get_type_hints(options_class)
    names = {name for name, hint in hints.items() if hint is bool or hint == bool | None}
    return {f"--{name}" for name in names} | {f"--{name.replace('_', '-')}" for name in names}


def _explicit_flag(argument: str, following: str, flags: set[str]) -> str:
    """`--resume` becomes `--resume=true`, so that it never takes the next word (a prompt) for its value."""
    return f"{argument}=true" if argument in flags and following.lower() not in _BOOLEAN_WORDS else argument


def _polish_help(parser: argparse.ArgumentParser) -> None:
    """Escape lone per cent signs, and give every `--no_x` a text of its own instead of that of `--x`."""
    for action in parser._actions:
        if action.help and action.help != argparse.SUPPRESS:
            action.help = re.sub(r"%(?![(%])", "%%", action.help)
        if action.const is False and action.nargs == 0:
            if action.help != argparse.SUPPRESS:
                action.help = f"turn --{action.dest} off"
            action.default = argparse.SUPPRESS


def _suggestion(word: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(word.split("=")[0], list(known), n=1)
    return f" (did you mean {nearest[0]}?)" if nearest else ""


def _apply_config(parser: argparse.ArgumentParser, options_class: type, argv: Sequence[str]) -> None:
    """Make the values in the `--config` file of `argv`, if there is one, the parser's defaults."""
    finder = argparse.ArgumentParser(prog=parser.prog, add_help=False, allow_abbrev=False)
    finder.add_argument("--config", nargs="?")
    path = finder.parse_known_args(argv)[0].config
    if path is None:
        return
    hints = get_type_hints(options_class)
    actions = {action.dest: action for action in reversed(parser._actions) if action.dest in hints}
    for key, text in _read_yaml(parser, path).items():
        name = str(key).replace("-", "_")
        if name not in actions:
            known = ", ".join(sorted(actions))
            hint = _suggestion(name, actions) or f"; the options are {known}"
            parser.error(f"unknown option {key!r} in {path}{hint}")
        optional = type(None) in get_args(hints[name])
        try:
            value = _value_from_config(actions[name], text, optional)
        except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
            parser.error(f"option {key!r} in {path}: {error}")
        parser.set_defaults(**{name: value})
        actions[name].required = False


def _read_yaml(parser: argparse.ArgumentParser, path: str) -> dict[str, Any]:
    """The file's mapping, every scalar as the text that stands there: `1e-4` and `no` keep their meaning."""
    import yaml

    if not os.path.isfile(path):
        parser.error(f"--config {path}: there is no such file")
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        parser.error(f"--config {path}: not a YAML file: {' '.join(str(error).split())}")
    if content in (None, ""):
        return {}
    if not isinstance(content, dict):
        parser.error(f"--config {path}: expected lines `option: value`, found a {type(content).__name__}")
    return content


def _value_from_config(action: argparse.Action, text: Any, optional: bool) -> Any:
    """Convert a value of the file as the command line would. `null` and nothing are None where allowed."""
    if optional and text in ("", "~", "null", "Null", "NULL", "None"):
        return None
    if action.nargs in ("+", "*"):
        if not isinstance(text, list):
            raise ValueError(f"expected a list such as [a, b], found {text!r}")
        return [_scalar(action, item) for item in text]
    return _scalar(action, text)


def _scalar(action: argparse.Action, text: Any) -> Any:
    from transformers.hf_argparser import string_to_bool

    if not isinstance(text, str):
        raise ValueError(f"expected one value, found {text!r}")
    convert: Any = action.type or str
    try:
        value = convert(text)
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        wanted = "true or false" if convert is string_to_bool else getattr(convert, "__name__", "value")
        raise ValueError(f"{text!r} is not a valid {wanted}") from None
    if action.choices is not None and value not in action.choices:
        raise ValueError(f"{text!r} is not one of {', '.join(map(str, action.choices))}")
    return value
