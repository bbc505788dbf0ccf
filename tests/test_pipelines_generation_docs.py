"""What docs/generation.md shows, on a model of tiny size."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_pipeline

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "generation.md").read_text(), flags=re.DOTALL)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The pipeline that the page draws with, and its folder."""
    pipe, folder = tiny_pipeline(), tmp_path_factory.mktemp("docs") / "demo"
    pipe.save_pretrained(folder)
    return pipe, folder


def run(block: str, folder: Path, names: dict) -> dict:
    exec(compile(block.replace("runs/demo", str(folder)), "docs/generation.md", "exec"), names)
    return names


def block_with(words: str) -> str:
    (found,) = [block for block in BLOCKS if words in block]
    return found


def test_calls(model, tmp_path, monkeypatch):
    pipe, folder = model
    monkeypatch.chdir(tmp_path)
    names = {"mask": np.eye(16), "score": lambda image, prompt: 0.0}
    run(BLOCKS[0], folder, names)
    names["pipe"] = pipe
    run(block_with("temperature=0.9"), folder, names)
    kept = block_with("keep_rows")
    # The tiny model's pictures have 16 rows and one level.
    run(kept.replace("keep_rows=16", "keep_rows=8").replace("keep_levels=1", "redraw=1"), folder, names)
    run(block_with("ranker=lambda"), folder, names)
    monkeypatch.setattr(pipe.vocabulary, "formats", [*pipe.vocabulary.formats, "image_to_caption"])
    run(block_with("best_of=4"), folder, names)
    pipe.save_pretrained(tmp_path / "both")
    Image.new("RGB", (20, 16), "red").save("dog.png")
    run(block_with("ImageToTextPipeline").replace("runs/both", str(tmp_path / "both")), folder, {})
    run(block_with("previews"), folder, names)
    assert (tmp_path / "preview.png").is_file()


def test_from_transformers_alone_and_as_a_client(model):
    pipe, folder = model
    expected = pipe("a red dog", temperature=0, guidance_scale=1, output_type="pil")
    names = run(block_with("AutoModelForCausalLM"), folder, {})
    assert names["codes"].equal(expected.codes)
    run(block_with("VQVAE"), folder, names)
    assert np.array_equal(np.asarray(names["image"]), np.asarray(expected.images[0]))

    def complete(ids, allowed, count):
        """The server's part."""
        settings = {"do_sample": False, "min_new_tokens": count, "max_new_tokens": count}
        found = names["model"].generate(
            torch.tensor([ids]), prefix_allowed_tokens_fn=lambda row, ids: allowed, **settings
        )
        return found[0, len(ids) :].tolist()

    client = block_with("ids = list(prompt)").split("ids = list(prompt)")
    names["complete"] = complete
    run("import itertools\nids = list(prompt)" + client[1], folder, names)
    assert names["codes"].equal(expected.codes)
