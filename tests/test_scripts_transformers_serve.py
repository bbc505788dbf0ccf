"""`transformers serve` on a model's `lm/`, as docs/generation.md shows it."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import tiny_pipeline

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "generation.md").read_text()
SECTION = PAGE.split("## Through transformers' own server")[1].split("\n## ")[0]
BLOCKS = re.findall(r"```python\n(.*?)```", SECTION, flags=re.DOTALL)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with runs/demo, a tiny model of both directions."""
    folder = tmp_path_factory.mktemp("serve")
    pipe = tiny_pipeline(formats=["caption_to_image", "image_and_caption"])
    pipe.save_pretrained(folder / "runs" / "demo")
    return folder


def read_blocks(work: Path, port: int, *blocks: str) -> dict:
    """The names that blocks of the page leave, run in the working directory, with this port in the place of 8000."""
    first = next(
        block for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL) if "prefix_allowed" in block
    )
    names: dict = {}
    before = os.getcwd()
    os.chdir(work)
    try:
        for block in (first, *blocks):
            exec(compile(block.replace(":8000", f":{port}"), "docs/generation.md", "exec"), names)
    finally:
        os.chdir(before)
    return names


@pytest.fixture(scope="module")
def served(work: Path) -> Iterator[tuple[str, int]]:
    """The model's name and the port of a server that runs as on the page."""
    read_blocks(work, 0, BLOCKS[0])
    command = re.search(r"^transformers (serve .*)$", SECTION, flags=re.M)[1]
    port = free_port()
    program = shutil.which("transformers", path=str(Path(sys.executable).parent)) or "transformers"
    words = [program, *command.replace("--port 8000", f"--port {port}").split()]
    log = work / "server.log"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "home")}
    with log.open("w") as file:
        server = subprocess.Popen(words, cwd=work, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        for _ in range(1200):
            assert server.poll() is None, log.read_text()[-3000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.1)
        else:
            raise AssertionError(log.read_text()[-3000:])
        yield words[2], port
    finally:
        server.terminate()
        server.wait(30)


def ask(model: str, port: int, prompt: str, settings: dict) -> str:
    body = json.dumps({"model": model, "prompt": prompt, "generation_config": json.dumps(settings)}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["choices"][0]["text"]


def test_the_page_draws_what_the_pipeline_draws(work: Path, served: tuple[str, int]) -> None:
    from pipelines import TextToImagePipeline

    names = read_blocks(work, served[1], BLOCKS[1])
    pipe = TextToImagePipeline.from_pretrained(work / "runs" / "demo")
    assert names["codes"].equal(pipe("a red dog", temperature=0, guidance_scale=1).codes)


def test_a_picture_in_the_prompt_is_described(work: Path, served: tuple[str, int]) -> None:
    from pipelines import ImageToTextPipeline, TextToImagePipeline

    folder = work / "runs" / "demo"
    codes = TextToImagePipeline.from_pretrained(folder)("a dog", seed=0).codes
    pipe = ImageToTextPipeline.from_pretrained(folder)
    expected = pipe.describe_codes(codes, max_new_tokens=6)[0]
    vocabulary = pipe.vocabulary
    picture = "".join(f"<|image_{code}|>" for code in codes[0].tolist())
    ids = vocabulary.codes_to_ids(codes[0])
    assert vocabulary.tokenizer.decode(ids, skip_special_tokens=True) == "", "why lm/ itself answers with nothing"
    banned = [number for number, allowed in enumerate(vocabulary.text_mask().tolist()) if not allowed]
    settings = {
        "do_sample": False, "max_new_tokens": 6, "eos_token_id": vocabulary.eos_id, "pad_token_id": vocabulary.pad_id,
        "suppress_tokens": [*banned, *range(vocabulary.image_offset, vocabulary.size)],
    }  # fmt: skip
    assert ask(*served, f"<|bos|><|begin_image|>{picture}<|end_image|>", settings).strip() == expected
