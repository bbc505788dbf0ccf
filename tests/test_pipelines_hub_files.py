"""A model folder as `push_to_hub` writes it: loaded by plain diffusers and by transformers' Auto classes, from disk and
from a server in the Hub's place."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import tiny_pipeline

from pipelines import TextToImagePipeline
from pipelines.hub_files import write_hub_files
from tokenizer_image import load_tokenizer, register_auto_classes

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY, COMMIT = "someone/tiny", "0" * 39 + "1"


@pytest.fixture(scope="module")
def pipe() -> TextToImagePipeline:
    return tiny_pipeline()


@pytest.fixture(scope="module")
def folder(pipe: TextToImagePipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    pipe.save_pretrained(folder)
    assert write_hub_files(folder, pipe.image_tokenizer, pipe.model, pipe.vocabulary)
    return folder


class Hub(BaseHTTPRequestHandler):
    """The Hub's answers for one repository, whose files lie in a folder: what it holds, and each file."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self.folder = folder
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        files = sorted(str(file.relative_to(self.folder)) for file in self.folder.rglob("*") if file.is_file())
        headers = {"Content-Type": "application/json", "X-Repo-Commit": COMMIT}
        if path.startswith(f"/api/models/{REPOSITORY}/tree/"):
            entries = [{"type": "file", "path": name, "oid": "0" * 40, "size": 1} for name in files]
            body = json.dumps(entries).encode()
        elif path.startswith(f"/api/models/{REPOSITORY}"):
            siblings = [{"rfilename": name} for name in files]
            body = json.dumps({"id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "siblings": siblings}).encode()
        elif (name := path.removeprefix(f"/{REPOSITORY}/resolve/").partition("/")[2]) in files:
            body = (self.folder / name).read_bytes()
            headers |= {"Content-Type": "application/octet-stream", "ETag": f'"{hashlib.sha1(body).hexdigest()}"'}
        else:
            headers |= {"X-Error-Code": "EntryNotFound"}
            body = b""
        self.send_response(404 if "X-Error-Code" in headers else 200)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def python(code: str, where: Path, **environment: str) -> str:
    """What a script prints that has nothing but the environment, in a folder of its own."""
    names = {"PYTHONPATH": str(ROOT), "HF_HOME": str(where / "home"), "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=where, env={**kept, **names}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


DIFFUSERS = """
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({name!r}, custom_pipeline={name!r}, trust_remote_code=True)
assert type(pipe).__name__ == "TesseraPipeline" and isinstance(pipe, DiffusionPipeline)
pipe.set_progress_bar_config(disable=True)
output = pipe("a dog", num_images_per_prompt=2, guidance_scale=2.0, seed=5)
output.images[0].save("dog.png")
print(output.codes.tolist(), sorted(pipe.components), pipe.to("cpu").device)
"""
CLASSES = """
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel
settings = dict(subfolder="image_tokenizer", trust_remote_code=True)
tokenizer = AutoModel.from_pretrained({name!r}, **settings)
processor = AutoImageProcessor.from_pretrained({name!r}, **settings)
assert AutoConfig.from_pretrained({name!r}, **settings).model_type == "tessera_vqvae" and not tokenizer.training
print(tokenizer.encode(processor(Image.open("picture.png"))["pixel_values"]).tolist())
"""


def picture(where: Path) -> Image.Image:
    image = Image.linear_gradient("L").resize((40, 24)).convert("RGB")
    image.save(where / "picture.png")
    return image


@pytest.mark.parametrize("kind", ["folder", "name"])
def test_diffusers_draws_the_same(pipe, folder, address, tmp_path, kind):
    if kind == "folder":
        printed = python(DIFFUSERS.format(name=str(folder)), tmp_path, HF_HUB_OFFLINE="1")
    else:
        printed = python(DIFFUSERS.format(name=REPOSITORY), tmp_path, HF_ENDPOINT=address)
    codes = pipe("a dog", num_images_per_prompt=2, guidance_scale=2.0, seed=5).codes.tolist()
    assert printed == f"{codes} ['image_tokenizer', 'lm', 'vocabulary'] cpu\n"
    assert Image.open(tmp_path / "dog.png").size == (16, 16)


@pytest.mark.parametrize("kind", ["folder", "name"])
def test_the_tokenizer_as_auto_classes(pipe, folder, address, tmp_path, kind):
    image = picture(tmp_path)
    name, where = (str(folder), {"HF_HUB_OFFLINE": "1"}) if kind == "folder" else (REPOSITORY, {"HF_ENDPOINT": address})
    assert python(CLASSES.format(name=name), tmp_path, **where) == f"{pipe.encode_images(image).tolist()}\n"


def test_our_own_loader_takes_the_folder_and_runs_no_code_of_it(pipe, folder, tmp_path):
    for file in (folder / "pipeline.py", folder / "image_tokenizer" / "modeling_tessera.py"):
        assert compile(file.read_text(), file.name, "exec")
    loaded = TextToImagePipeline.from_pretrained(folder)
    assert loaded("a dog", seed=0).codes.equal(pipe("a dog", seed=0).codes)
    loaded.save_pretrained(tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "image_tokenizer" / "config.json").read_text())


def test_registered_classes_need_no_code_of_the_folder(pipe, folder, tmp_path):
    from transformers import AutoImageProcessor, AutoModel

    register_auto_classes()
    register_auto_classes()  # once more does no harm
    part = folder / "image_tokenizer"
    tokenizer, processor = AutoModel.from_pretrained(part), AutoImageProcessor.from_pretrained(part)
    assert type(tokenizer).__name__ == "VQVAE"
    image = picture(tmp_path)
    codes = tokenizer.eval().encode(processor([image, image])["pixel_values"])
    assert codes.equal(pipe.encode_images([image, image]))
    assert processor(image, return_tensors="np")["pixel_values"].shape == (1, 3, 16, 16)
    with pytest.raises(TypeError, match="preprocess needs a PIL image, got str"):
        processor(["picture.png"])


def test_16_bits_keep_the_tokenizer_in_float32(folder, tmp_path):
    small = tmp_path / "small"
    rounded = tiny_pipeline().rounded("bfloat16")
    rounded.save_pretrained(small)
    write_hub_files(small, rounded.image_tokenizer, rounded.model, rounded.vocabulary)  # not ours: a cast copy of it
    code = DIFFUSERS.format(name=str(small)).replace("trust_remote", "torch_dtype=torch.bfloat16, trust_remote")
    printed = python("import torch" + code + "\nprint({p.dtype for p in pipe.image_tokenizer.parameters()})", tmp_path)
    assert printed.endswith("{torch.float32}\n")


def test_a_tokenizer_of_another_class_gets_no_files(pipe, tmp_path):
    class Other(type(pipe.image_tokenizer)):
        pass

    other = Other(pipe.image_tokenizer.config)
    pipe.save_pretrained(tmp_path)
    assert not write_hub_files(tmp_path, other, pipe.model, pipe.vocabulary)
    assert not (tmp_path / "pipeline.py").exists() and not (tmp_path / "vocabulary").exists()
    assert torch.equal(load_tokenizer(tmp_path).code_vectors(), pipe.image_tokenizer.code_vectors())
