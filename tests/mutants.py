"""Mutation testing: which small changes of the code the tests notice. `make mutants` runs it; tests/mutants.toml says
which files are changed and which tests each of them gets.

The changes are those of cosmic-ray. Its own runner starts a process for each mutant, which imports torch and
transformers anew; here libraries are imported once, and each mutant's tests run in a fork of this process, in a copy
of the project, so that the tests' own subprocesses run the changed code too.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import fnmatch
import importlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from importlib.util import cache_from_source
from itertools import chain, islice
from pathlib import Path

import parso  # noqa: F401  (before cosmic-ray, whose own order of imports meets a circle in it)
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).resolve().parent.parent
NOT_COPIED = (".git", ".venv*", "runs", "__pycache__", ".*_cache", "build", "dist")
PYTEST = ["-q", "-x", "-p", "no:cacheprovider", "--tb=no", "--no-header"]
# A changed loop may never end. Tests get this many times their usual time, and some seconds for a busy machine.
PATIENCE, SECONDS = 3.0, 15.0


@dataclass(frozen=True)
class Harmless:
    """A change that cannot matter: of one line, or in every file of some words into others.

    Attributes:
        file, before, after: where the line is, and the line before and after the change, stripped. Without `after`, any
            change of the line.
        words: two spellings between which no code may depend.
    """

    reason: str
    file: str = ""
    before: str = ""
    after: str | None = None
    words: tuple[str, str] | None = None

    def covers(self, mutant: Mutant) -> bool:
        if self.words:
            return mutant.before.replace(*self.words) == mutant.after.replace(*self.words)
        return (self.file, self.before) == (mutant.file, mutant.before) and self.after in (None, mutant.after)


@dataclass(frozen=True)
class Mutant:
    """One change of one file: the first line that differs, stripped, and the whole changed text. Where a line is gone,
    `after` is the one below it."""

    file: str
    operator: str
    line: int
    before: str
    after: str
    text: str

    @property
    def key(self) -> tuple[str, str, int, str, str]:
        """What tells it from others, in another run too."""
        return self.file, self.operator, self.line, self.before, self.after

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.operator}\n    - {self.before}\n    + {self.after}"


class WithoutAnnotations(ast.NodeTransformer):
    """Drops what `from __future__ import annotations` leaves unevaluated."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        self.generic_visit(node)
        node.annotation = ast.Constant("")
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.returns = None
        return node


def meaning(text: str) -> str:
    """The syntax tree without annotations: equal for texts that run alike."""
    return ast.dump(WithoutAnnotations().visit(ast.parse(text)))


def mutants(file: str, operators: list[str], seed: int) -> Iterator[Mutant]:
    """All changes of a file by these operators (patterns of cosmic-ray's names), in an order that the seed decides. The
    working directory is the copy of the project, which stays as it is while people go on writing."""
    text = Path(file).read_text()
    nodes = list(ast_nodes(get_ast(text)))
    found = []
    for name in operator_names():
        if any(fnmatch.fnmatch(name.partition("/")[2], pattern) for pattern in operators):
            operator = get_operator(name)()
            places = sum(len(list(operator.mutation_positions(node))) for node in nodes)
            found += [(name, place) for place in range(places)]
    random.Random(f"{seed} {file}").shuffle(found)
    original = meaning(text)
    for name, place in found:
        changed = mutate_code(text, get_operator(name)(), place)
        with suppress(SyntaxError):  # an operator may write what is not Python
            if meaning(changed) != original:
                yield Mutant(file, name.partition("/")[2], *difference(text, changed), changed)


def difference(text: str, changed: str) -> tuple[int, str, str]:
    """Number, text and replacement of the first line that differs, blank ones apart."""
    lines = text.splitlines()
    matches = difflib.SequenceMatcher(None, lines, changed.splitlines(), autojunk=False).get_opcodes()
    start, end, new_start, new_end = next(places for kind, *places in matches if kind != "equal")
    line = next(number for number in range(start, end) if lines[number].strip())
    new = [one.strip() for one in changed.splitlines()[new_start:new_end] if one.strip()]
    return line + 1, lines[line].strip(), new[0] if new else lines[end].strip()


def run_tests(arguments: list[str], timeout: float, loaded: Path | None = None) -> int | None:
    """Run pytest in a fork and return its exit code; None if it took too long, or a signal's negative number.

    Args:
        loaded: where to write the names of the modules that the tests loaded, one a line.
    """
    process = os.fork()
    if process == 0:
        os.setsid()  # what the tests start ends with them
        code = 70
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                null = os.open(os.devnull, os.O_RDWR)
                for descriptor in range(3):
                    os.dup2(null, descriptor)
                code = int(pytest.main([*PYTEST, f"--basetemp={Path.cwd().parent / 'temporary'}", *arguments]))
            if loaded:
                loaded.write_text("\n".join(sys.modules))
        finally:
            os._exit(code)
    ends = time.monotonic() + timeout
    ended, status = os.waitpid(process, os.WNOHANG)
    while not ended and time.monotonic() < ends:
        time.sleep(0.02)
        ended, status = os.waitpid(process, os.WNOHANG)
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    if not ended:
        os.waitpid(process, 0)
        return None
    return os.waitstatus_to_exitcode(status)


def load_libraries(loaded: Path) -> None:
    """Import what a test run imported outside of the project, so that forks find it done."""
    ours = {path.stem for path in (*ROOT.iterdir(), *(ROOT / "tests").iterdir())}
    for name in loaded.read_text().splitlines():
        if name not in sys.modules and name.partition(".")[0] not in ours:
            with warnings.catch_warnings(), suppress(Exception):
                warnings.simplefilter("ignore")
                importlib.import_module(name)


@dataclass
class Figures:
    """What became of a file's mutants."""

    caught: int = 0
    survived: int = 0
    harmless: int = 0

    def count(self, outcome: str) -> None:
        setattr(self, outcome, getattr(self, outcome) + 1)

    @property
    def share(self) -> float:
        return self.caught / max(1, self.caught + self.survived)


def caught_before(results: Path | None) -> set[tuple[str, str, int, str, str]]:
    """Keys of the mutants that an earlier run caught, from its `--output`."""
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results else []
    return {Mutant(**row, text="").key for row in rows if row.pop("outcome") == "caught"}


def check_file(file: str, tests: list[str], chosen: list[Mutant]) -> Iterator[tuple[Mutant, str]]:
    """Each mutant with "caught" or "survived"; the working directory is the copy of the project.

    Raises:
        RuntimeError: the tests fail on the code as it is.
    """
    loaded = Path.cwd().parent / "loaded"
    if not chosen:
        return
    begun = time.monotonic()
    code = run_tests(tests, 900, loaded)
    if code != 0:
        raise RuntimeError(f"{file}: its tests end with code {code} before anything is changed: {' '.join(tests)}")
    usual = time.monotonic() - begun  # at first with the time that libraries take to load: an upper bound
    load_libraries(loaded)
    print(f"{file}: {len(chosen)} mutants, {usual:.1f} s of tests", flush=True)
    original, bytecode = Path(file).read_text(), Path(cache_from_source(file))
    for mutant in chosen:
        Path(file).write_text(mutant.text)
        bytecode.unlink(missing_ok=True)  # known by date and size, and a change may keep both
        code = run_tests(tests, PATIENCE * usual + SECONDS)
        yield mutant, "survived" if code == 0 else "caught"
    Path(file).write_text(original)
    bytecode.unlink(missing_ok=True)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="which files of mutants.toml, as patterns (default: all)")
    parser.add_argument("--most", type=int, help="at most so many mutants of a file, drawn by the seed (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="show the mutants, and run nothing")
    parser.add_argument("--output", type=Path, help="file for one JSON line for each mutant")
    parser.add_argument("--caught", type=Path, metavar="OUTPUT",
                        help="an earlier run's --output: what it caught counts, and is not run again")  # fmt: skip
    return parser.parse_args(arguments)


def main(options: argparse.Namespace) -> int:
    settings = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text())
    harmless = [Harmless(**entry) for entry in settings["harmless"]]
    tests = {file: group["tests"] for group in settings["group"] for file in group["files"]}
    known = caught_before(options.caught)
    files = [file for file in tests if any(fnmatch.fnmatch(file, p) for p in options.files or ["*"])]
    figures = {file: Figures() for file in files}
    for file in files:
        chosen = list(islice(mutants(file, settings["operators"], options.seed), options.most))
        if options.list:
            print(*chosen, sep="\n")
            continue
        left_out = [mutant for mutant in chosen if any(entry.covers(mutant) for entry in harmless)]
        caught = [mutant for mutant in chosen if mutant.key in known and mutant not in left_out]
        to_run = [mutant for mutant in chosen if mutant not in caught and mutant not in left_out]
        settled = [*((mutant, "harmless") for mutant in left_out), *((mutant, "caught") for mutant in caught)]
        for mutant, outcome in chain(settled, check_file(file, tests[file], to_run)):
            figures[file].count(outcome)
            if outcome == "survived":
                print(mutant, flush=True)
            if options.output:
                row = {name: value for name, value in asdict(mutant).items() if name != "text"}
                with options.output.open("a") as output:
                    output.write(json.dumps({**row, "outcome": outcome}) + "\n")
    if not options.list:
        show(figures)
    return 0


def show(figures: dict[str, Figures]) -> None:
    total = Figures(*(sum(getattr(f, name) for f in figures.values()) for name in ("caught", "survived", "harmless")))
    print(f"\n{'file':42} {'caught':>7} {'survived':>9} {'harmless':>9} {'share':>7}")
    for file, figure in {**figures, "total": total}.items():
        print(f"{file:42} {figure.caught:7} {figure.survived:9} {figure.harmless:9} {figure.share:7.1%}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    options = parse_arguments()
    for name in ("output", "caught"):
        if getattr(options, name):
            setattr(options, name, getattr(options, name).resolve())
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
        os.chdir(copy)
        sys.path[:] = [str(copy), *(entry for entry in sys.path if Path(entry).resolve() not in (ROOT, ROOT / "tests"))]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(copy), os.environ.get("PYTHONPATH")]))
        sys.exit(main(options))
