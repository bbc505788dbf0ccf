"""The import graph, drawn from the code: no circle, and arrows between rooms run one way."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("tokenizer_image", "lm", "pipelines", "scripts")
Graph = dict[str, set[str]]

# What each room may import of the others; a room is a folder, and the files of a package's top are one room.
ALLOWED = {
    "tokenizer_image": {"tokenizer_image"},
    "lm": {"lm"},
    "pipelines": {"pipelines", "lm", "tokenizer_image"},
    "scripts": set(PACKAGES),
}
INFERENCE = ("pipelines", "pipelines.drawing", "pipelines.machine")
FORBIDDEN = {
    **dict.fromkeys(INFERENCE, ("pipelines.training", "pipelines.evaluation", "pipelines.serving")),
    "pipelines.options": ("pipelines.training", "pipelines.evaluation", "pipelines.serving", "pipelines.caching"),
    "pipelines.caching": ("pipelines.training", "pipelines.evaluation", "pipelines.serving"),
    "pipelines.evaluation": ("pipelines.training", "pipelines.serving"),
    "pipelines.serving": ("pipelines.training", "pipelines.evaluation", "pipelines.caching"),
}


def module_files(root: Path = ROOT) -> dict[str, Path]:
    """Dotted name -> file, of every module of the packages."""
    files = [file for package in PACKAGES for file in (root / package).rglob("*.py")]
    names = {".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for file in files}
    assert len(names) == len(files)
    return names


def imported(tree: ast.Module, modules: Iterable[str]) -> Iterator[str]:
    """Modules that a file names in an import anywhere: at its top, inside functions, for types alone; and in the
    table of lazily loaded names of an `__init__.py`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules else str(node.module)


def import_graph(root: Path = ROOT) -> Graph:
    """Module -> the modules of the packages that it imports."""
    files = module_files(root)
    trees = {name: ast.parse(file.read_text(), str(file)) for name, file in files.items()}
    return {name: {to for to in imported(tree, files) if to in files and to != name} for name, tree in trees.items()}


def room_of(module: str, depth: int = 2) -> str:
    """The folder of a module, so many levels deep at most."""
    parts = module.split(".")
    folder = parts if (ROOT / Path(*parts)).is_dir() else parts[:-1]
    return ".".join(folder[:depth])


def circle(graph: Graph) -> list[str]:
    """Modules that import each other in a ring, [] where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_files_import_each_other():
    assert circle(import_graph()) == []


def test_a_circle_is_found(tmp_path):
    """Through any number of files, lazily, and for types alone."""
    texts = {
        "lm/a.py": "def f():\n    from lm import b\n",
        "lm/b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lm.c import C\n",
        "lm/c.py": "import lm.a\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    graph = import_graph(tmp_path)
    assert set(circle(graph)) == {"lm.a", "lm.b", "lm.c"}
    (tmp_path / "lm" / "c.py").write_text("import os\n")
    assert circle(import_graph(tmp_path)) == []


def test_rooms_do_not_import_each_other():
    """Two rooms may not lean on each other, even where no two files do. The pipelines' own classes and what draws for
    them are one room here: a class is handed to functions in `drawing/`, which are about it."""
    rooms: Graph = {}
    for module, targets in import_graph().items():
        for target in targets:
            pair = [room_of(name, depth=3) for name in (module, target)]
            pair = ["pipelines" if room == "pipelines.drawing" else room for room in pair]
            if pair[0] != pair[1] and not module.startswith("scripts"):
                rooms.setdefault(pair[0], set()).add(pair[1])
    assert circle(rooms) == []


def test_imports_run_one_way():
    wrong = []
    for module, targets in import_graph().items():
        for target in sorted(targets):
            room, other = room_of(module), room_of(target)
            allowed = target.split(".")[0] in ALLOWED[module.split(".")[0]]
            if not allowed or other in FORBIDDEN.get(room, ()):
                wrong.append(f"{module} imports {target}, which {room} may not")
    assert wrong == []


def test_stage_1_loads_no_language_model():
    """Of `lm`, the file that knows how folders are published whole, and nothing else."""
    code = "import sys, pipelines.training.loop, pipelines.training.image_tokenizer; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert [name for name in done.stdout.split() if name.split(".")[0] == "lm"] == ["lm", "lm.files"]


@pytest.mark.parametrize("module", [f"pipelines.{name}" for name in ("text_to_image", "image_to_text", "interleaved")])
def test_inference_loads_no_training(module):
    code = f"import sys, {module}; print(*sorted(name for name in sys.modules if name.startswith('pipelines.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    rooms = {room_of(name) for name in done.stdout.split()}
    assert rooms and not rooms & set(FORBIDDEN["pipelines"])


WITHOUT_POSIX = """
import builtins, importlib
hidden, ours, real = {hidden}, {ours}, builtins.__import__
def pretend(name, globals=None, *rest, **named):
    caller = (globals or {{}}).get("__name__", "")
    if name in hidden and caller.split(".")[0] in ("tokenizer_image", "lm", "pipelines", "scripts"):
        raise ImportError(f"no module named {{name}} on this system, asked for by {{caller}}")
    return real(name, globals, *rest, **named)
builtins.__import__ = pretend
for name in ours:
    importlib.import_module(name)
"""


def test_every_module_imports_without_modules_that_only_posix_has():
    """As on Windows: our files import such modules where they are used, and guarded."""
    hidden = ("resource", "fcntl", "pwd", "grp", "termios", "pty", "tty", "syslog")
    ours = [name for name in module_files() if not name.startswith("scripts.benchmarks")]
    code = WITHOUT_POSIX.format(hidden=hidden, ours=ours)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_public_names_are_where_the_tables_say():
    for package in ("tokenizer_image", "lm", "pipelines"):
        module = importlib.import_module(package)
        for name in module.__all__:
            assert getattr(module, name).__name__ == name
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            _ = module.nothing
