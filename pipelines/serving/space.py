"""A Hugging Face Space: a folder with the page and the endpoint of a model on the Hub.

The Space has a copy of the packages, so that it runs the version that made it, and needs nothing but what the package
index has.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

import lm
import pipelines
import tokenizer_image
from pipelines.model_folder import local_folder
from pipelines.options.serving import KEY_VARIABLE

PACKAGES = (tokenizer_image, lm, pipelines)
LEFT_OUT = ("__pycache__", "*.pyc", "*.safetensors")
DISTRIBUTION, EXTRA = "tessera", "serving"
PORT, PORT_VARIABLE = 7860, "GRADIO_SERVER_PORT"  # where a Space listens

README = """---
title: {title}
colorFrom: green
colorTo: indigo
sdk: gradio
sdk_version: {gradio}
app_file: app.py
models:
- {model}
pinned: false
---

# {title}

Draws with [{model}](https://huggingface.co/{model}) in the browser, and at `/v1` for clients of OpenAI's interface.
Made by `scripts/make_space.py` of Tessera {tessera}.
"""

APP = '''"""The page and the endpoint of {model}."""

from pipelines.serving.space import serve_space

serve_space("{model}")
'''


def write_space(folder: str | Path, model: str, title: str | None = None) -> Path:
    """Write a Space into a folder and return it.

    Args:
        folder: new, or one that an earlier call wrote.
        model: its name on the Hub, "owner/name"; the Space loads it when it starts.
        title: of the Space (default: the model's name).

    Raises:
        ValueError: a name that is none, or a folder with something else.
    """
    if model.count("/") != 1 or not all(model.split("/")) or Path(model).exists():
        raise ValueError(f"a Space loads its model from the Hub: give its name there, owner/name, not {model!r}")
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "app.py").is_file():
        raise ValueError(f"{folder} holds something else than a Space: give a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        source = Path(str(package.__file__)).parent
        shutil.rmtree(folder / source.name, ignore_errors=True)
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns(*LEFT_OUT))
    texts = {
        "README.md": README.format(
            title=title or model.split("/")[1],
            model=model,
            gradio=metadata.version("gradio"),
            tessera=metadata.version(DISTRIBUTION),
        ),
        "app.py": APP.format(model=model),
        "requirements.txt": "".join(f"{line}\n" for line in requirements()),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def requirements() -> list[str]:
    """What pip must install for a server, one a line: of the project, and of its extra for serving."""
    file = Path(str(pipelines.__file__)).parents[1] / "pyproject.toml"
    if file.is_file():  # a checkout, whose installation may be older than it
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        return sorted([*project["dependencies"], *project["optional-dependencies"][EXTRA]])
    named = [line.partition(";")[::2] for line in metadata.requires(DISTRIBUTION) or []]
    return sorted(name.strip() for name, marker in named if not marker or f'"{EXTRA}"' in marker.replace("'", '"'))


def serve_space(model: str) -> None:
    """What a Space runs: the page and the endpoint of a model, until the Space ends.

    `TESSERA_API_KEY` among the Space's secrets is the password that both then ask for.
    """
    from pipelines.example_prompts import example_prompts
    from pipelines.machine.devices import choose_device
    from pipelines.serving.endpoint.application import create_application
    from pipelines.serving.endpoint.context import ServingSettings
    from pipelines.serving.endpoint.running import listening_socket, serve
    from pipelines.serving.engine.engine import DrawingEngine
    from pipelines.serving.page.page import mount_page
    from pipelines.text_to_image import TextToImagePipeline

    listener = listening_socket("0.0.0.0", int(os.environ.get(PORT_VARIABLE, PORT)))
    folder = local_folder(model)
    pipe = TextToImagePipeline.from_pretrained(folder, device=choose_device("auto"))
    settings = ServingSettings(model_name=model.split("/")[-1], api_key=os.environ.get(KEY_VARIABLE))
    with DrawingEngine(pipe) as engine:
        application = create_application(engine, settings)
        serve(mount_page(application, engine, settings, example_prompts(folder)), listener)


def push_space(
    repo_id: str, model: str, *, title: str | None = None, private: bool | None = None, token: str | bool | None = None
) -> str:
    """Make a Space of a model, or renew it, and return its address.

    Args:
        repo_id: of the Space, "owner/name".
        model: its name on the Hub.
        private, token: as in huggingface_hub.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        write_space(folder, model, title)
        name = api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True).repo_id
        api.upload_folder(repo_id=name, repo_type="space", folder_path=folder, delete_patterns=["*.py"])
    return f"https://huggingface.co/spaces/{name}"
