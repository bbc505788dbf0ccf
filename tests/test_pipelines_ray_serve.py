"""The endpoint on Ray Serve, as `configs/ray_serve.yaml` says: two replicas, of which one is killed under load."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml
from tiny import tiny_pipeline

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
pytest.importorskip("fastapi", reason="the extra serving is not installed")

from pipelines.machine.ray_cluster import ray_cluster  # noqa: E402
from pipelines.serving.deployment import NAME, build, options_of  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
KEY = "a key of some length"
SHIPPED = yaml.safe_load((ROOT / "configs" / "ray_serve.yaml").read_text())
REQUESTS, AT_ONCE, TRIES = 48, 6, 40


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """`serve run` with the shipped file, but for the model, the port and two replicas from the start."""
    folder = tmp_path_factory.mktemp("serve")
    pipe = tiny_pipeline(formats=("caption_to_image",))
    pipe.save_pretrained(folder / "tiny")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = json.loads(json.dumps(SHIPPED))
    settings["http_options"]["port"] = port
    application = settings["applications"][0]
    application["args"] = {"model": str(folder / "tiny"), "images_per_request": 3, "cpu_threads": 1}
    deployment = application["deployments"][0]
    deployment["autoscaling_config"] |= {"min_replicas": 2, "max_replicas": 2}
    deployment["ray_actor_options"]["num_cpus"] = 1
    (folder / "serve.yaml").write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("TESSERA_API_KEY", KEY)
        with ray_cluster(None, 4):
            address = ray.get_runtime_context().gcs_address
            command = [Path(sys.executable).with_name("serve"), "run", "--address", address, str(folder / "serve.yaml")]
            with (folder / "log.txt").open("w") as log:
                process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
            try:
                running = SimpleNamespace(address=f"http://127.0.0.1:{port}", pipe=pipe, process=process)
                wait_until(lambda: process.poll() is not None or len(replicas()) == 2 and is_ready(running), 200)
                assert process.poll() is None, (folder / "log.txt").read_text()[-3000:]
                yield running
            finally:
                process.terminate()  # a shell that starts tests in the background has SIGINT ignored
                process.wait(timeout=60)


def wait_until(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not come to this"
        time.sleep(0.1)


def replicas() -> list[psutil.Process]:
    return [one for one in psutil.Process().children(recursive=True) if f"ServeReplica:tessera:{NAME}" in title(one)]


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return ""


def is_ready(server) -> bool:
    try:
        return ask(server, "/readyz")[0] == 200
    except OSError:
        return False


def ask(server, path: str, body: dict | None = None, key: str | None = KEY) -> tuple[int, dict | str]:
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    content = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(server.address + path, content, headers), timeout=60) as got:
            text = got.read().decode()
            return got.status, json.loads(text) if text.startswith("{") else text
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        return error.code, json.loads(text) if text.startswith("{") else text


def draw(server, **fields) -> tuple[int, dict | str]:
    return ask(server, "/v1/images/generations", {"prompt": "a red dog", **fields})


def test_a_replica_is_killed_under_load(server):
    """What a client tries again comes, as it would have been; the other replica goes on; a new one takes its place."""
    status, first = draw(server, seed=0)
    assert status == 200
    before = replicas()
    tries: dict[int, int] = {}
    started = threading.Semaphore(0)

    def client(seed: int) -> str:
        for attempt in range(1, TRIES):
            tries[seed] = attempt
            started.release()
            try:
                status, answer = draw(server, seed=seed)
            except OSError:
                status = 0
            if status == 200:
                return answer["data"][0]["b64_json"]
            assert status == 0 or status >= 500, answer
            time.sleep(0.1)
        raise AssertionError(f"no picture after {TRIES} tries")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked = {seed: pool.submit(client, seed) for seed in range(REQUESTS)}
        for _ in range(REQUESTS // 4):
            started.acquire()
        os.kill(before[0].pid, signal.SIGKILL)
        pictures = {seed: one.result() for seed, one in asked.items()}
    assert pictures[0] == first["data"][0]["b64_json"]
    assert len(set(pictures.values())) > 1
    assert sum(count == 1 for count in tries.values()) >= REQUESTS // 2, "the other replica went on"
    assert [draw(server, seed=seed)[1]["data"][0]["b64_json"] for seed in (3, 20, 47)] == [
        pictures[seed] for seed in (3, 20, 47)
    ]
    wait_until(lambda: len(replicas()) == 2, 100)
    assert before[1].is_running() and before[0].pid not in [one.pid for one in replicas()]


def test_key_limits_and_figures_are_those_of_a_single_server(server):
    status, answer = ask(server, "/v1/models", key=None)
    assert status == 401 and answer["error"]["type"]
    assert ask(server, "/v1/models")[1]["data"][0]["id"] == "tiny"
    status, answer = draw(server, n=4)
    assert status == 400 and "3" in answer["error"]["message"]
    assert draw(server, size="17x17")[0] == 400
    status, text = ask(server, "/metrics")
    assert status == 200 and "tessera_requests_total" in text and "tessera_pictures_total" in text
    assert ask(server, "/healthz", key=None) == (200, {"status": "ok"})


def test_pictures_come_while_they_are_drawn(server):
    """Server-sent events pass through Ray's proxy."""
    body = json.dumps({"prompt": "a red dog", "stream": True, "partial_images": 2}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"{server.address}/v1/images/generations", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        events = [line for line in answer.read().decode().splitlines() if line.startswith("event:")]
    assert events[-1] == "event: image_generation.completed" and len(events) > 1


@pytest.mark.parametrize("args, message", [
    ({"port": 1}, "args: port: Ray Serve listens where http_options says"),
    ({"page": True}, "args: page: replicas serve the endpoint alone"),
    ({"modle": "x"}, "args: there is no option 'modle'; there are model, "),
    ({"pictures_at_once": 0}, "--pictures_at_once 0 must be above zero"),
    ({"api_key": " "}, "--api_key is empty"),
])  # fmt: skip
def test_arguments_that_cannot_be(args, message):
    with pytest.raises(ValueError, match=message):
        build(args)


def test_the_shipped_file_names_options_and_the_deployment():
    (application,) = SHIPPED["applications"]
    options = options_of(application["args"])
    (deployment,) = application["deployments"]
    assert deployment["name"] == NAME
    assert application["import_path"] == f"{build.__module__}:{build.__name__}"
    assert deployment["max_ongoing_requests"] > options.waiting_requests + options.pictures_at_once
    assert deployment["graceful_shutdown_timeout_s"] > options.request_seconds
