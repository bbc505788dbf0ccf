"""The way of a picture in CONTRIBUTING.md: one captioned picture passes every file that is listed there."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from PIL import Image

from scripts import generate, train_lm, train_tokenizer

ROOT = Path(__file__).resolve().parents[1]


def listed_files() -> list[str]:
    """The numbered files, in order."""
    way = (ROOT / "CONTRIBUTING.md").read_text().split("## The way of a picture")[1].split("\n## ")[0]
    steps = re.findall(r"^(\d+)\. `([\w/]+\.py)`", way, re.M)
    assert [int(number) for number, _ in steps] == list(range(1, len(steps) + 1))
    return [file for _, file in steps]


@contextmanager
def entered_files(entered: set[str]) -> Iterator[None]:
    """Inside, `entered` gets every file of the project of which a function is called, in any thread."""

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_name != "<module>":
            entered.add(frame.f_code.co_filename)

    sys.setprofile(note)
    threading.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    ours = {file for file in entered if file.startswith(str(ROOT))}
    entered.clear()
    entered.update(str(Path(file).relative_to(ROOT)) for file in ours)


def test_a_picture_passes_every_file_of_the_way(tmp_path, monkeypatch):
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    lines = [json.dumps({"file_name": f"{number}.png", "text": "a disc"}) for number in range(8)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    common = {"dataset": str(folder), "max_steps": 1, "batch_size": 4, "num_workers": 0, "cpu_threads": 1}
    stage_1 = train_tokenizer.ImageTokenizerOptions(
        output_dir=str(tmp_path / "tokenizer"), image_size=16, patch_size=4, hidden_sizes=[8, 16], code_dim=4,
        codebook_sizes=[16, 8], **common,
    )  # fmt: skip
    stage_2 = train_lm.LanguageModelOptions(
        image_tokenizer=str(tmp_path / "tokenizer"), output_dir=str(tmp_path / "model"), num_layers=1, hidden_size=32,
        num_heads=2, **common,
    )  # fmt: skip
    drawn = generate.GenerateOptions(
        prompts=["a disc"], model=str(tmp_path / "model"), output=str(tmp_path / "drawn.png")
    )
    entered: set[str] = set()
    with entered_files(entered):
        train_tokenizer.main(stage_1)
        train_lm.main(stage_2)
        generate.main(drawn)
    files = listed_files()
    assert (tmp_path / "drawn.png").is_file()
    assert len(files) == len(set(files)) > 30 and [file for file in files if file not in entered] == []
