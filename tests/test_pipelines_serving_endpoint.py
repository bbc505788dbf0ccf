"""The endpoint, with the real `openai` client against a server of a tiny model on a free port."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image
from tiny import tiny_pipeline

from pipelines.serving.endpoint.application import create_application
from pipelines.serving.endpoint.context import ServingSettings
from pipelines.serving.endpoint.running import Server, listening_socket
from pipelines.serving.endpoint.uploads import read_picture, redraw_mask
from pipelines.serving.engine.engine import DrawingEngine, EngineLimits

openai = pytest.importorskip("openai")
BOTH = ("caption_to_image", "image_and_caption")
KEY = "a key of some length"


@contextmanager
def served(
    settings: ServingSettings | None = None, *, idle_seconds: float = 30.0, **limits: Any
) -> Iterator[SimpleNamespace]:
    """A running server: its address, pipeline and engine."""
    pipe = tiny_pipeline(sizes=((16, 16), (16, 32)), formats=BOTH)
    pipe.set_progress_bar_config(disable=True)
    listener = listening_socket("127.0.0.1", 0)
    with DrawingEngine(pipe, EngineLimits(**{"description_tokens": 8, **limits})) as engine:
        application = create_application(engine, settings or ServingSettings(model_name="tiny", upload_pixels=10_000))
        config = uvicorn.Config(application, log_level="critical", server_header=False, lifespan="on")
        server = Server(config, idle_seconds)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            address = f"http://127.0.0.1:{listener.getsockname()[1]}"
            yield SimpleNamespace(address=address, pipe=pipe, engine=engine, application=application)
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def server() -> Iterator[SimpleNamespace]:
    with served() as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="unused", max_retries=0) as client:
        yield client


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def picture(size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8))


def masked(image: Image.Image) -> Image.Image:
    """The picture with a transparent lower half."""
    mask = image.convert("RGBA")
    mask.paste((0, 0, 0, 0), (0, image.height // 2, *image.size))
    return mask


def of(data: Any) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(data.b64_json)))
    image.load()
    return image


def pixels(image: Image.Image) -> list:
    return np.asarray(image).tolist()


def test_pictures_are_those_of_the_pipeline(server, client):
    answer = client.images.generate(
        prompt="a red dog", n=2, size="32x16", response_format="b64_json",
        extra_body={"seed": 5, "guidance_scale": 3.0, "temperature": 0.8, "top_k": 9, "top_p": 0.9, "min_p": 0.01},
    )  # fmt: skip
    offline = server.pipe(
        "a red dog", num_images_per_prompt=2, height=16, width=32, seed=[5, 6], guidance_scale=3.0, temperature=0.8,
        top_k=9, top_p=0.9, min_p=0.01,
    )  # fmt: skip
    assert [pixels(of(one)) for one in answer.data] == [pixels(one) for one in offline.images]
    assert [one.seed for one in answer.data] == [5, 6]
    assert answer.size == "32x16" and answer.output_format == "png" and abs(answer.created - time.time()) < 60
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_pictures_come_in_formats(client, kind):
    extra = {} if kind == "png" else {"output_compression": 40}
    answer = client.images.generate(prompt="a red dog", output_format=kind, **extra)
    assert of(answer.data[0]).format == kind.upper() and answer.output_format == kind
    url = client.images.generate(prompt="a red dog", output_format=kind, response_format="url").data[0].url
    assert url.startswith(f"data:image/{kind};base64,")


def test_pictures_are_streamed_while_they_are_drawn(server, client):
    events = list(client.images.generate(prompt="a red dog", stream=True, partial_images=3, extra_body={"seed": 2}))
    kinds = ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert [event.type for event in events] == kinds
    assert [event.partial_image_index for event in events[:-1]] == [0, 1, 2]
    assert pixels(of(events[-1])) == pixels(server.pipe("a red dog", seed=2).images[0])
    assert events[-1].usage.output_tokens == 8 and type(events[-1]).__name__ == "ImageGenCompletedEvent"
    alone = list(client.images.generate(prompt="a red dog", stream=True))
    assert [event.type for event in alone] == ["image_generation.completed"]


def test_what_is_transparent_is_drawn_again(server, client):
    image = picture()
    answer = client.images.edit(
        image=png(image), mask=png(masked(image)), prompt="a red dog", extra_body={"seed": 3}
    )  # fmt: skip
    mask = np.zeros((16, 16), np.uint8)
    mask[8:] = 255
    offline = server.pipe.complete(image, "a red dog", mask=mask, seed=3)
    assert pixels(of(answer.data[0])) == pixels(offline.images[0])
    own = client.images.edit(image=png(masked(image)), prompt="a red dog", extra_body={"seed": 3})
    assert of(own.data[0]).size == (16, 16)
    events = list(client.images.edit(
        image=png(image), mask=png(masked(image)), prompt="a red dog", stream=True, partial_images=2
    ))  # fmt: skip
    assert [event.type for event in events] == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]


def test_variations(server, client):
    image = picture()
    answer = client.images.create_variation(image=png(image), n=2, extra_body={"seed": 4, "redraw": 0.25})
    offline = [server.pipe.vary(image, redraw=0.25, seed=seed).images[0] for seed in (4, 5)]
    assert [pixels(of(one)) for one in answer.data] == [pixels(one) for one in offline]


def message(url: str) -> list[dict[str, Any]]:
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    return [{"role": "user", "content": content}]


def data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def test_a_picture_is_described(server, client):
    from pipelines import ImageToTextPipeline

    describing = ImageToTextPipeline(server.pipe.image_tokenizer, server.pipe.model, server.pipe.vocabulary)
    messages = message(data_url(png(picture())))
    answer = client.chat.completions.create(model="tiny", messages=messages, max_completion_tokens=6)
    assert answer.choices[0].message.content == describing(picture(), max_new_tokens=6).texts[0]
    assert answer.choices[0].finish_reason in ("stop", "length")
    chunks = list(client.chat.completions.create(model="tiny", messages=messages, max_tokens=6, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.choices[0].message.content
    best = client.chat.completions.create(model="tiny", messages=messages, seed=1, extra_body={"best_of": 3})
    assert best.choices[0].message.content == describing(picture(), max_new_tokens=8, best_of=3, seed=1).texts[0]


def test_models_and_health(server, client):
    (model,) = client.models.list().data
    assert model.id == "tiny" and model.sizes == ["16x16", "32x16"] and "describe" in model.capabilities
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.images.generate(prompt="a dog", model="other")
    assert httpx.get(f"{server.address}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{server.address}/readyz").status_code == 200
    figures = httpx.get(f"{server.address}/metrics").text
    assert 'tessera_requests_total{endpoint="/v1/models",status="200"}' in figures and "python" not in figures


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({}, "prompt is missing"),
    "n of 0": ({"prompt": "a dog", "n": 0}, "greater than or equal to 1"),
    "n above the limit": ({"prompt": "a dog", "n": 65}, "n=65: at most 64"),
    "a size": ({"prompt": "a dog", "size": "64x64"}, "this model draws 16x16, 32x16"),
    "a long prompt": ({"prompt": "a red dog " * 60}, r"has \d+ tokens, but this model takes at most \d+|at most 256"),
    "an unknown name": ({"prompt": "a dog", "guidence": 3}, "unknown parameter 'guidence'"),
    "a format": ({"prompt": "a dog", "output_format": "gif"}, "output_format"),
    "compression of png": ({"prompt": "a dog", "output_compression": 3}, "jpeg or webp"),
    "a stream of addresses": ({"prompt": "a dog", "stream": True, "response_format": "url"}, "b64_json"),
    "parts without a stream": ({"prompt": "a dog", "partial_images": 1}, "stream=true"),
    "many parts": ({"prompt": "a dog", "stream": True, "partial_images": 4}, "less than or equal to 3"),
    "a temperature": ({"prompt": "a dog", "temperature": -1}, "greater than or equal to 0"),
    "a negative prompt": ({"prompt": "a dog", "negative_prompt": "x", "guidance_scale": 1}, "guidance_scale above 1"),
    "true as a number": ({"prompt": "a dog", "seed": True}, "must be a number"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_openais_shape(server, case):
    body, words = WRONG[case]
    answer = httpx.post(f"{server.address}/v1/images/generations", json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}
    assert re.search(words, error["message"]), error["message"]


def post_edit(server, files: dict[str, bytes], **fields: str) -> httpx.Response:
    return httpx.post(
        f"{server.address}/v1/images/edits", data={"prompt": "a dog", **fields},
        files={name: (f"{name}.png", content) for name, content in files.items()},
    )  # fmt: skip


def hostile() -> dict[str, bytes]:
    """Uploads that must be refused."""
    good = png(masked(picture()))
    bomb = bytearray(good)
    bomb[16:24] = (100_000).to_bytes(4, "big") * 2
    gif = io.BytesIO()
    Image.new("P", (200, 200)).save(gif, "GIF")
    return {
        "nothing": b"",
        "text": b"this is a text",
        "a signature alone": good[:8],
        "a truncated file": good[: len(good) // 2],
        "a bomb": bytes(bomb),
        "a large picture": png(Image.new("RGB", (200, 200))),
        "a large GIF": gif.getvalue(),
        "a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\nshowpage\n",
        "vectors": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "zeros": bytes(1000),
    }


@pytest.mark.parametrize("case", hostile())
def test_hostile_uploads_are_refused(server, case):
    content = hostile()[case]
    for files in ({"image": content}, {"image": png(picture()), "mask": content}):
        answer = post_edit(server, files)
        assert answer.status_code == 400 and "error" in answer.json(), answer.text
        assert "/" not in answer.json()["error"]["message"].replace("image/", "")
    messages = message(data_url(content))
    assert httpx.post(f"{server.address}/v1/chat/completions", json={"messages": messages}).status_code == 400


def test_masks_must_fit(server):
    wide = post_edit(server, {"image": png(picture()), "mask": png(masked(picture((32, 16))))})
    assert wide.status_code == 400 and "the mask is 32x16" in wide.json()["error"]["message"]
    opaque = post_edit(server, {"image": png(picture()), "mask": png(picture())})
    assert opaque.status_code == 400 and "mask has no transparency" in opaque.json()["error"]["message"]
    none = post_edit(server, {"image": png(picture())})
    assert none.status_code == 400 and "there is no mask" in none.json()["error"]["message"]


def test_nothing_is_fetched(server):
    for url in ("http://127.0.0.1:1/x.png", "file:///etc/passwd", "data:image/png,abc", "data:image/png;base64,%%%"):
        answer = httpx.post(f"{server.address}/v1/chat/completions", json={"messages": message(url)})
        assert answer.status_code == 400, url


def test_uploads_keep_their_pixels_and_their_transparency():
    image = masked(picture())
    read = read_picture(png(image), "image", 1000)
    assert read.mode == "RGBA" and pixels(read.getchannel("A")) == pixels(image.getchannel("A"))
    assert pixels(read.convert("RGB").crop((0, 0, 16, 8))) == pixels(picture().crop((0, 0, 16, 8)))
    assert pixels(read_picture(png(picture()), "image", 1000)) == pixels(picture())
    assert redraw_mask(read, "mask").getextrema() == (0, 255)
    with pytest.raises(ValueError, match="16x16 pixels: at most 255"):
        read_picture(png(picture()), "image", 255)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_rows(stream):
    """Before the answer, and in the middle of a stream: most of its pictures are never drawn."""
    with served(pictures_at_once=1) as server:
        body = json.dumps({"prompt": "a red dog", "n": 64, "stream": stream}).encode()
        head = "POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", int(server.address.split(":")[-1]))) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            end = time.monotonic() + 10
            while not server.engine.num_under_way:
                assert time.monotonic() < end
                time.sleep(0.001)
        while server.engine.num_under_way:
            assert time.monotonic() < end
            time.sleep(0.001)
        figures = httpx.get(f"{server.address}/metrics").text
        sent = float(re.search(r"^tessera_pictures_total (.*)$", figures, flags=re.M)[1])
        assert sent < 64 if stream else sent == 0


def test_requests_share_steps(server):
    """32 clients at once get what each gets alone."""
    import asyncio

    async def all_at_once() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="-", max_retries=0) as client:
            calls = [client.images.generate(prompt="a red dog", extra_body={"seed": seed}) for seed in range(32)]
            return [answer.data[0].b64_json for answer in await asyncio.gather(*calls)]

    crowd = asyncio.run(all_at_once())
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="-", max_retries=0) as client:
        alone = [client.images.generate(prompt="a red dog", extra_body={"seed": seed}) for seed in range(32)]
    assert crowd == [answer.data[0].b64_json for answer in alone]


def test_limits_of_a_server():
    settings = ServingSettings(model_name="tiny", api_key=KEY, body_bytes=2000, allowed_origins=("https://a.example",))
    with served(settings, waiting_requests=1, pictures_at_once=1) as server:
        url, bearer = f"{server.address}/v1/images/generations", {"Authorization": f"Bearer {KEY}"}
        body = {"prompt": "a red dog"}
        refused = httpx.post(url, json=body)
        assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"
        for wrong in ("Bearer other", "Bearer", f"Token {KEY}", "Basic %%%", "Bearer \xff"):
            headers = {"Authorization": wrong.encode("latin-1")}
            assert httpx.post(url, json=body, headers=headers).status_code == 401
        with openai.OpenAI(base_url=f"{server.address}/v1", api_key=KEY, max_retries=0) as client:
            assert client.images.generate(prompt="a red dog").data
        assert httpx.get(f"{server.address}/metrics").headers["www-authenticate"].startswith("Basic")
        assert httpx.get(f"{server.address}/metrics", auth=("anyone", KEY)).status_code == 200
        assert httpx.get(f"{server.address}/healthz").status_code == 200
        large = httpx.post(url, json={"prompt": "x" * 3000}, headers=bearer)
        assert large.status_code == 413 and "2,000 bytes" in large.json()["error"]["message"]
        chunks = httpx.post(url, content=(b"x" * 100 for _ in range(50)), headers=bearer)
        assert chunks.status_code == 413 and chunks.json()["error"]["code"] == "body_too_large"
        allowed = httpx.get(f"{server.address}/healthz", headers={"Origin": "https://a.example"}).headers
        assert allowed["access-control-allow-origin"] == "https://a.example"
        other = httpx.get(f"{server.address}/healthz", headers={"Origin": "https://b.example"}).headers
        assert "access-control-allow-origin" not in other
        full = fill(url, bearer)
        assert full.json()["error"]["type"] == "rate_limit_error" and int(full.headers["retry-after"]) >= 1


def fill(url: str, headers: dict[str, str]) -> httpx.Response:
    """The answer of a server that has no room for more."""
    import asyncio

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(headers=headers, timeout=30) as client:
            calls = [client.post(url, json={"prompt": "a red dog", "n": 64}) for _ in range(8)]
            return await asyncio.gather(*calls)

    answers = asyncio.run(ask())
    assert {answer.status_code for answer in answers} == {200, 429}
    return next(answer for answer in answers if answer.status_code == 429)


def test_cross_origin_calls_are_off_and_answers_tell_nothing_of_the_server(server):
    answers = [
        httpx.get(f"{server.address}/healthz", headers={"Origin": "https://a.example"}),
        httpx.get(f"{server.address}/nothing"),
        httpx.delete(f"{server.address}/v1/images/generations"),
        httpx.post(
            f"{server.address}/v1/images/generations", content=b"{", headers={"Content-Type": "application/json"}
        ),
    ]
    assert [answer.status_code for answer in answers] == [200, 404, 405, 400]
    for answer in answers:
        assert "access-control-allow-origin" not in answer.headers and "server" not in answer.headers
        assert not any(word in answer.text for word in ("Traceback", ".py", "site-packages", "pydantic"))


def test_a_request_that_takes_too_long_is_told_the_limit():
    with served(seconds=0.0) as server:
        answer = httpx.post(f"{server.address}/v1/images/generations", json={"prompt": "a red dog", "n": 64})
        assert answer.status_code == 408 and "longer than 0 s" in answer.json()["error"]["message"]


def test_an_error_of_the_model_is_no_secret_spilled(monkeypatch):
    with served() as server:
        server.pipe.model.model.norm.weight.data.fill_(float("nan"))
        answer = httpx.post(f"{server.address}/v1/images/generations", json={"prompt": "a red dog"})
        assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
        assert "finite" not in answer.text
        assert httpx.get(f"{server.address}/healthz").status_code == 200


def test_an_empty_key_is_an_error(server):
    with pytest.raises(ValueError, match="API key is empty"):
        create_application(server.engine, ServingSettings(api_key=" "))
