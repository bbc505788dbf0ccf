"""The set-up: requirements, make targets, how the packages are found, and what no file of ours may do."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("tokenizer_image", "lm", "pipelines")
TARGETS = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
# Import names that differ from the distribution's.
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn"}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements() -> dict[str, list[str]]:
    """Group -> requirement lines; the group of what everybody needs is ''."""
    return {"": project()["dependencies"], **project()["optional-dependencies"]}


def constraints() -> dict[str, Version]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pairs = [line.split("==") for line in lines if line]
    assert all(len(pair) == 2 for pair in pairs), "every constraint is name==version"
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def sources(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text(), str(path))


def imports(tree: ast.Module) -> Iterator[str]:
    """Names of the modules that are imported anywhere in a file, lazily too; relative imports are skipped."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module)


# --------------------------------------------------------------------------------------- requirements


@pytest.mark.parametrize("group", ["", *project()["optional-dependencies"]])
def test_constraints_name_every_requirement_and_satisfy_its_bound(group: str) -> None:
    tested = constraints()
    for line in requirements()[group]:
        requirement = Requirement(line)
        version = tested.get(canonicalize_name(requirement.name))
        assert version is not None, f"constraints.txt has no line for {requirement.name}"
        assert requirement.specifier.contains(version, prereleases=True), f"{line}, but tested is {version}"


def test_requirements_have_the_form_that_test_lowest_reads() -> None:
    for lines in requirements().values():
        for line in lines:
            assert re.fullmatch(r"[A-Za-z0-9_.-]+(\[[a-z,]+\])?>=[0-9.]+", line), line


def test_constrained_torchvision_accepts_the_constrained_torch() -> None:
    tested = constraints()
    if Version(importlib.metadata.version("torchvision")).base_version != str(tested["torchvision"]):
        pytest.skip("another torchvision is installed, so its requirements say nothing of the tested one")
    wanted = [Requirement(line) for line in importlib.metadata.requires("torchvision") or []]
    bounds = [requirement.specifier for requirement in wanted if requirement.name == "torch"]
    assert bounds and all(bound.contains(tested["torch"]) for bound in bounds)


def test_torch_and_torchvision_work_together() -> None:
    # A torch and a torchvision that were built apart import, and fail at the first operator.
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9]])
    assert torchvision.ops.nms(boxes, torch.tensor([0.4, 0.6]), 0.5).tolist() == [1]


def test_every_library_that_is_imported_is_required() -> None:
    required = {
        canonicalize_name(Requirement(line).name)
        for group in ("", "tracking", "evaluation", "finetune", "serving", "ray", "signals")
        for line in requirements()[group]
    }
    peers = {canonicalize_name(Requirement(line).name) for line in requirements()["dev"]}
    for path, tree in sources(*PACKAGES, "scripts"):
        for module in imports(tree):
            top = module.partition(".")[0]
            if top in sys.stdlib_module_names or top in (*PACKAGES, "scripts"):
                continue
            name = canonicalize_name(DISTRIBUTIONS.get(top, top))
            # A benchmark runs beside its peer, and code on the Hub inside of it: only who develops has it installed.
            is_peer = path.parent.name in ("benchmarks", "hub") and name in peers
            assert name in required or is_peer, f"{path} imports {module}"


def test_pre_commit_uses_the_tested_ruff() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    pins = [pin for hook in hooks for pin in hook["additional_dependencies"]]
    assert {pin for pin in pins if pin.startswith("ruff")} == {f"ruff=={constraints()['ruff']}"}


# ------------------------------------------------------------------------------------------------- uv


def test_the_lock_has_the_tested_versions_from_the_package_index() -> None:
    text = (ROOT / "uv.lock").read_text()
    assert set(re.findall(r"https?://([^/\"]+)", text)) == {"pypi.org", "files.pythonhosted.org"}
    locked: dict[str, set[Version]] = {}  # several, where newer Pythons get newer versions
    for package in tomllib.loads(text)["package"]:
        locked.setdefault(package["name"], set()).add(Version(package["version"]))
    tested = constraints()
    shared = locked.keys() & tested.keys()  # the lock has other systems' packages, too, and torch's CUDA libraries
    assert {"torch", "transformers", "numpy"} <= shared
    assert {name: tested[name] for name in shared if tested[name] not in locked[name]} == {}


# ----------------------------------------------------------------------------------------------- make


def make(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run make with none of the variables of a make that may have started this test."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    names = (
        "MAKEFLAGS",
        "MFLAGS",
        "MAKEOVERRIDES",
        "MAKELEVEL",
        "PYTHON",
        "VENV",
        "PIP_ARGS",
        "MINUTES",
        "TEST_ARGS",
    )
    environment = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=folder,
        env=environment,
        text=True,
        capture_output=True,
    )


@pytest.mark.parametrize("target", TARGETS)
def test_make_can_say_what_a_target_would_do(target: str) -> None:
    result = make("--dry-run", target)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


def test_make_help_names_every_target() -> None:
    text = make("help").stdout
    assert [target for target in TARGETS if f"make {target}" not in text and target != "help"] == []


@pytest.mark.parametrize(("target", "minutes"), [("demo", 10), ("demo", 60), ("pretrained", 60), ("pretrained", 5)])
def test_make_splits_minutes_between_the_stages(target: str, minutes: int) -> None:
    is_default = (target, minutes) in (("demo", 10), ("pretrained", 60))
    told = make("--dry-run", target, *([] if is_default else [f"MINUTES={minutes}"])).stdout
    given = re.findall(r"--max_minutes ([0-9.]+)", told)
    assert len(given) == 2
    assert sum(map(float, given)) == pytest.approx(minutes)


def test_make_pretrained_leaves_a_model_of_both_directions_in_the_packages() -> None:
    told = make("--dry-run", "pretrained").stdout
    assert "image_and_caption" in told and "--output_dir pipelines/pretrained/sprites --dtype bfloat16" in told
    assert "evaluate.py --model pipelines/pretrained/sprites" in told  # the figures are those of what is shipped


def linked_copy(tmp_path: Path) -> Path:
    """A folder with our Makefile and requirements, to run targets in without touching this checkout."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def fake_environment(folder: Path, version: str = "3, 11") -> Path:
    """An environment whose python notes what pip was asked to do and installs nothing."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/bin/sh\n"
        f'case "$1 $2" in "-m pip") [ "$3" = --version ] || echo "$@" >>"{folder}/asked" ;;\n'
        f'"-c "*) exec "{sys.executable}" "$@" ;; esac\n'
    )
    python.chmod(0o755)
    return folder / "asked"


def test_environment_is_reused_until_the_requirements_change(tmp_path: Path) -> None:
    checkout, venv = linked_copy(tmp_path), tmp_path / "venv"
    asked = fake_environment(venv)
    for _ in range(2):
        assert make("environment", f"VENV={venv}", folder=checkout).returncode == 0
    assert asked.read_text().count("\n") == 1
    extras = "dev,tracking,evaluation,perceptual,finetune,serving,ray,signals"
    assert f"-c constraints.txt -e .[{extras}]" in asked.read_text()
    with (checkout / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    assert make("environment", f"VENV={venv}", folder=checkout).returncode == 0
    assert asked.read_text().count("\n") == 2


def test_environment_serves_a_fresh_clone_and_links_it(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    asked = fake_environment(venv)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        assert make("environment", f"VENV={venv}", folder=linked_copy(tmp_path / name)).returncode == 0
    first, second = asked.read_text().splitlines()
    assert "--no-deps" not in first
    assert second.endswith("--no-deps -e .")


def test_environment_remembers_its_pip_arguments(tmp_path: Path) -> None:
    checkout, venv = linked_copy(tmp_path), tmp_path / "venv"
    asked = fake_environment(venv)
    assert make("environment", f"VENV={venv}", "PIP_ARGS=--no-deps", folder=checkout).returncode == 0
    assert make("environment", f"VENV={venv}", folder=checkout).returncode == 0  # nothing replaces their torch
    assert asked.read_text().count("\n") == 1
    assert "--no-deps" in asked.read_text() and "constraints" not in asked.read_text()
    assert make("environment", f"VENV={venv}", "PIP_ARGS=", folder=checkout).returncode == 0
    assert "constraints" not in asked.read_text()


def test_environment_is_tried_again_after_a_failed_install(tmp_path: Path) -> None:
    checkout, venv = linked_copy(tmp_path), tmp_path / "venv"
    asked = fake_environment(venv)
    python = venv / "bin" / "python"
    good = python.read_text()
    python.write_text(good.replace(">>", "&& exit 1 >>"))
    assert make("environment", f"VENV={venv}", folder=checkout).returncode != 0
    python.write_text(good)
    assert make("environment", f"VENV={venv}", folder=checkout).returncode == 0
    assert asked.read_text().count("\n") == 1


def test_old_or_absent_python_is_named(tmp_path: Path) -> None:
    checkout = linked_copy(tmp_path)
    old = tmp_path / "python3.9"
    old.write_text(
        '#!/bin/sh\n[ "$1" = -c ] || exit 1\n'
        f'exec "{sys.executable}" -c "import sys; sys.version_info = (3, 9, 0); $2"\n'
    )
    old.chmod(0o755)
    result = make("environment", f"VENV={tmp_path / 'venv'}", f"PYTHON={old}", folder=checkout)
    assert result.returncode != 0
    assert "needs Python 3.11 or newer" in result.stderr and "3.9" in result.stderr
    assert not (tmp_path / "venv").exists()
    result = make("environment", f"VENV={tmp_path / 'venv'}", "PYTHON=no-such-python", folder=checkout)
    assert result.returncode != 0
    assert "No Python at 'no-such-python'" in result.stderr


@pytest.mark.parametrize("minutes", ["ten", "", "1.2.3", "-5"])
def test_demo_refuses_minutes_that_are_no_number(tmp_path: Path, minutes: str) -> None:
    checkout, venv = linked_copy(tmp_path), tmp_path / "venv"
    fake_environment(venv)
    result = make("demo", f"VENV={venv}", f"MINUTES={minutes}", folder=checkout)
    assert result.returncode != 0
    assert f"MINUTES={minutes} is no number of minutes" in result.stderr


def test_demo_of_other_minutes_keeps_the_earlier_one(tmp_path: Path) -> None:
    checkout, venv = linked_copy(tmp_path), tmp_path / "venv"
    fake_environment(venv)
    shutil.copy(venv / "bin" / "python", venv / "bin" / "accelerate")
    for minutes in ("10", "60", "10", "10"):
        result = make("demo", f"VENV={venv}", f"MINUTES={minutes}", folder=checkout)
        assert result.returncode == 0, result.stderr
        for run in ("demo", "demo_tokenizer"):
            (checkout / "runs" / run).mkdir(exist_ok=True)
            (checkout / "runs" / run / "minutes").write_text(minutes)
    runs = [path for path in (checkout / "runs").iterdir() if path.is_dir()]
    left = {path.name: (path / "minutes").read_text() for path in runs}
    assert left == {
        **{"demo": "10", "demo_10_minutes": "10", "demo_60_minutes": "60"},
        **{"demo_tokenizer": "10", "demo_tokenizer_10_minutes": "10", "demo_tokenizer_60_minutes": "60"},
    }


# ------------------------------------------------------------------------------------ where code lies


@pytest.mark.parametrize("how", ["script elsewhere", "python -c", "python -m"])
@pytest.mark.parametrize("package", PACKAGES)
def test_a_folder_of_the_same_name_does_not_hide_a_package(tmp_path: Path, package: str, how: str) -> None:
    # A saved model holds a folder `lm`, and people start Python beside it.
    model = tmp_path / "model"
    (model / package).mkdir(parents=True)
    (model / package / "config.json").write_text("{}")
    (tmp_path / "scripts").mkdir()
    code = f"import {package}; print({package}.__file__)"
    for script in (tmp_path / "scripts" / "ask.py", model / "ask.py"):
        script.write_text(code + "\n")
    arguments = {
        "script elsewhere": [str(tmp_path / "scripts" / "ask.py")],
        "python -c": ["-c", code],  # these two put the working directory first on the path
        "python -m": ["-m", "ask"],
    }[how]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=model, env=environment, text=True, capture_output=True, check=True
    )
    assert Path(result.stdout.strip()) == ROOT / package / "__init__.py"


def test_tests_are_flat() -> None:
    # A folder tests/lm would be found before our lm.
    assert [path for path in (ROOT / "tests").rglob("*.py") if path.parent != ROOT / "tests"] == []


def test_tests_import_each_other_by_plain_names() -> None:
    # torch-fidelity installs a package of the name `tests`, which is found before our folder.
    for path, tree in sources("tests"):
        assert [module for module in imports(tree) if module.partition(".")[0] == "tests"] == [], path


def test_no_file_is_a_drawer() -> None:
    names = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}
    assert [path for path, _ in sources(*PACKAGES, "scripts") if path.name in names] == []


def test_nothing_is_unpickled() -> None:
    # What a user loads may come from a stranger, and unpickling runs it.
    modules = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for path, tree in sources(*PACKAGES, "scripts"):
        wrong = [module for module in imports(tree) if module.partition(".")[0] in modules]
        assert wrong == [], f"{path} imports {wrong}"
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            where = f"{path}:{node.lineno}: {ast.unparse(node)}"
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert given.get("allow_pickle", "False") == "False", where
            assert given.get("trust_remote_code", "False") == "False", where
            if ast.unparse(node.func) == "torch.load":
                assert given.get("weights_only") == "True", where


def test_mutants_name_files_tests_and_lines_that_exist() -> None:
    settings = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text())
    for group in settings["group"]:
        tests = [argument.partition("::")[0] for argument in group["tests"] if argument.startswith("tests/")]
        assert tests and [name for name in (*group["files"], *tests) if not (ROOT / name).is_file()] == []
    for entry in settings["harmless"]:
        assert entry["reason"]
        if "words" not in entry:
            lines = [line.strip() for line in (ROOT / entry["file"]).read_text().splitlines()]
            assert entry["before"] in lines, f"{entry['file']} has no line {entry['before']!r}"


def test_contributing_names_tests_that_exist() -> None:
    named = re.findall(r"tests/test_[\w*]+\.py", (ROOT / "CONTRIBUTING.md").read_text())
    assert named
    assert [name for name in named if not list(ROOT.glob(name))] == []
