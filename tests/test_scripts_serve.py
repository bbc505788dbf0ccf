"""`scripts/serve.py` as a process: what it refuses, how it ends, and that it keeps what it has loaded."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from tiny import tiny_pipeline

from pipelines.options.serving import KEY_VARIABLE, ServingOptions

pytest.importorskip("fastapi")
SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "serve.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline(formats=("caption_to_image", "image")).save_pretrained(path)
    return path


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, timeout=100)


def started(folder: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """A server and its address."""
    command = [sys.executable, str(SCRIPT), "--model", str(folder), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "http://127.0.0.1:" in line, line
    return process, next(word for word in line.split() if word.startswith("http")).removesuffix("/v1")


def draw(address: str, **body) -> dict:
    content = json.dumps({"prompt": "a red dog", **body}).encode()
    request = urllib.request.Request(
        f"{address}/v1/images/generations", content, {"Content-Type": "application/json"}
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def test_termination_finishes_what_is_under_way(folder):
    """SIGTERM while pictures are drawn: they come, new connections are refused, and the exit code is 0. Meanwhile the
    folder was overwritten: the server goes on with what it has loaded."""
    process, address = started(folder, "--pictures_at_once", "4", "--model_name", "mine")
    try:
        before = draw(address, seed=1)["data"]
        moved = folder.with_name("moved")
        shutil.copytree(folder, moved)
        for file in folder.rglob("*.safetensors"):
            file.write_bytes(b"overwritten")
        assert draw(address, seed=1)["data"] == before
        answers: list[dict] = []
        asking = threading.Thread(target=lambda: answers.append(draw(address, n=64)))
        asking.start()
        while "tessera_rows_under_way 0" in urllib.request.urlopen(f"{address}/metrics").read().decode():
            assert asking.is_alive(), answers
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        asking.join(120)
        assert len(answers[0]["data"]) == 64
        assert process.wait(60) == 0
        with pytest.raises(OSError):
            draw(address)
        shutil.rmtree(folder)
        moved.rename(folder)
    finally:
        process.kill()
        process.communicate()


def test_a_port_in_use_is_named_with_its_option(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("--model", str(folder), "--port", str(port))
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"port {port} on 127.0.0.1 is in use" in done.stderr and "--port" in done.stderr


def test_what_is_no_model_folder_is_refused_in_a_line(tmp_path):
    done = run("--model", str(tmp_path), "--port", "0")
    assert done.returncode == 1 and "is not a model folder" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"api_key": " "}, "--api_key is empty"),
        ({"api_key": "schlüssel"}, "ASCII"),
        ({"port": 70000}, "--port 70000"),
        ({"pictures_at_once": 0}, "--pictures_at_once 0"),
        ({"request_seconds": -1.0}, "--request_seconds -1.0"),
    ],
)
def test_wrong_options_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        ServingOptions(**settings)


def test_the_key_can_come_from_the_environment(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    assert ServingOptions().api_key == "secret" and ServingOptions(api_key="other").api_key == "other"
    monkeypatch.setenv(KEY_VARIABLE, "")
    with pytest.raises(ValueError, match=f"{KEY_VARIABLE} is empty"):
        ServingOptions()


def test_a_model_is_called_by_the_last_part_of_its_folder():
    assert ServingOptions(model="runs/dogs/").served_name == "dogs"
    assert ServingOptions(model="owner/name").served_name == "name"
    assert ServingOptions(model="runs/dogs", model_name="mine").served_name == "mine"
    assert os.sep not in ServingOptions(model="/a/b").served_name
