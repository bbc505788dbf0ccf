"""The README's commands work as they are written, with their budgets cut."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
CUT = {
    "train_tokenizer.py": ["--hidden_sizes", "8", "8", "--codebook_sizes", "8", "8"],
    "train_lm.py": ["--lm_size", "2M"],
}


def blocks(language: str) -> list[str]:
    """The README's code blocks in one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def commands() -> list[list[str]]:
    """Every command of a shell block that runs one of our scripts, split into words."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if "scripts/" in line]


def cut(words: list[str]) -> list[str]:
    """The same command with this interpreter and a budget of two steps."""
    script = next(index for index, word in enumerate(words) if word.startswith("scripts/"))
    name, arguments = Path(words[script]).name, words[script + 1 :]
    if "--max_minutes" in arguments:
        place = arguments.index("--max_minutes")
        arguments[place : place + 2] = [
            "--max_steps",
            "2",
            "--batch_size",
            "4",
            "--cpu_threads",
            "1",
            "--num_workers",
            "0",
        ]
    own = [] if "--init_from" in arguments else CUT.get(name, [])  # else the sizes are the earlier model's
    return [sys.executable, str(ROOT / "scripts" / name), *arguments, *own]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with captioned pictures in photos/ and few/, as the README describes them."""
    folder = tmp_path_factory.mktemp("readme")
    photos = folder / "photos"
    photos.mkdir()
    for index in range(12):
        image = Image.new("RGB", (80, 64), (20 * index, 90, 200))
        ImageDraw.Draw(image).ellipse((10, 10, 50, 50), fill=(250, 20 * index, 0))
        image.save(photos / f"{index}.jpg")
        (photos / f"{index}.txt").write_text("a photo of a dog\na dog\n")
    shutil.copytree(photos, folder / "few")
    return folder


@pytest.fixture(scope="module")
def ran(folder: Path) -> dict[str, subprocess.CompletedProcess[str]]:
    """Every command that trains on, draws from or measures one's own pictures, run in the README's order."""
    results = {}
    own = [words for words in commands() if "runs/demo" not in words]
    for words in own:
        environment = {
            "TESSERA_CACHE": str(folder / "cache"),
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "HOME": str(folder),
        }
        done = subprocess.run(cut(words), cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        results[" ".join(words)] = done
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr[-2000:]}"
    return results


def test_own_pictures_step_by_step(folder: Path, ran: dict[str, subprocess.CompletedProcess[str]]) -> None:
    assert [Path(shlex.split(command)[-1]).name for command in ran], "the README has commands for one's own pictures"
    assert any("train_tokenizer" in command for command in ran) and any("train_lm" in command for command in ran)
    assert Image.open(folder / "dogs.png").width >= 4 * 64
    assert (folder / "report.json").is_file() and (folder / "runs/model/model_index.json").is_file()


def test_python_block_draws(folder: Path, monkeypatch) -> None:
    (code,) = blocks("python")
    monkeypatch.chdir(folder)
    exec(compile(code, "README.md", "exec"), {})
    assert Image.open(folder / "dog.png").size == (32, 32)


def test_quantizers_page() -> None:
    """The first block runs as it stands; the names in the table are the kinds that there are."""
    from tokenizer_image.quantizers import KINDS

    page = (ROOT / "docs" / "quantizers.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, flags=re.S)[0]
    exec(compile(code, "quantizers.md", "exec"), {})
    table = page.split("## Kinds")[1].split("`codebook_sizes` has")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, flags=re.M)) == KINDS.keys()


def documented_options() -> list[tuple[str, str, set[str]]]:
    """(page, script, names of options) of every command in the README and the docs that gives a script any."""
    found = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for line in page.read_text().replace("\\\n", " ").splitlines():
            for script, rest in re.findall(r"scripts/((?:benchmarks/)?\w+)\.py([^`|]*)", line):
                names = set(re.findall(r"(?<![\w-])--(\w+)", rest))
                found += [(page.name, script, names)] if names else []
    return found


def test_the_options_of_documented_commands_exist() -> None:
    commands = documented_options()
    assert len(commands) > 100 and len({script for _, script, _ in commands}) > 20
    for page, script, names in commands:
        main = importlib.import_module(f"scripts.{script.replace('/', '.')}").main
        known = {field.name for field in dataclasses.fields(get_type_hints(main)["options"])} | {"config"}
        unknown = {name for name in names if name.removeprefix("no_") not in known}
        assert not unknown, f"{page}: scripts/{script}.py has no option {', '.join(sorted(unknown))}"


def test_demo_commands_name_what_make_demo_leaves() -> None:
    demo = [words for words in commands() if "runs/demo" in words]
    assert demo, "the README draws from the demo's model"
    told = subprocess.run(["make", "--dry-run", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--output_dir runs/demo " in told


def test_pictures_and_pages_that_the_readme_names_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), f"README.md links to {target}, which is not there"
