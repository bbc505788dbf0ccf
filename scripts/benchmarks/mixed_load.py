"""Mixed requests to a server: what it must answer, and how its memory grows."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import time
from collections import Counter
from typing import Any

import psutil

from scripts.benchmarks.figures import Row, row
from scripts.benchmarks.http_client import Client

WORKERS = 8
WARM_SECONDS = 60.0  # of the load, or half of it where it is shorter: memory is compared with what it is then
PICTURES = "/v1/images/generations"
GROWTH_TARGET = 50.0  # MB
PROMPTS = ("a red dog", "a blue cat on grass", "two green houses", "")

# Bodies that must be answered with 400, whatever the model.
WRONG: tuple[dict[str, Any], ...] = (
    {},
    {"prompt": "a dog", "n": 0},
    {"prompt": "a dog", "n": 1_000_000},
    {"prompt": "a dog", "size": "1x1"},
    {"prompt": "a dog", "colour": "red"},
    {"prompt": "dog " * 5000},
    {"prompt": "a dog", "temperature": -1},
    {"prompt": "a dog", "partial_images": 2},
)


def _files(size: tuple[int, int]) -> tuple[bytes, bytes]:
    """PNG files of a picture, and of a mask of which the lower half is transparent."""
    from PIL import Image

    picture = Image.radial_gradient("L").resize(size).convert("RGB")
    mask = picture.convert("RGBA")
    mask.paste((0, 0, 0, 0), (0, size[1] // 2, *size))
    contents = []
    for one in (picture, mask):
        stream = io.BytesIO()
        one.save(stream, "PNG")
        contents.append(stream.getvalue())
    return contents[0], contents[1]


class Load:
    """Requests of random kinds, and how often each status was answered where another was expected."""

    def __init__(self, address: str, capabilities: list[str], size: str) -> None:
        width, height = map(int, size.split("x"))
        self._address, self._describes = address, "describe" in capabilities
        self._picture, self._mask = _files((width, height))
        self.sent: Counter[str] = Counter()
        self.unexpected: Counter[str] = Counter()

    async def work(self, stop: float, seed: int) -> None:
        """Send requests until a time."""
        kinds = (self._draw, self._stream, self._edit, self._vary, self._describe, self._cancel, self._wrong)
        choice, client = random.Random(seed), Client(self._address)
        while time.monotonic() < stop:
            kind = choice.choice(kinds)
            try:
                await kind(client, choice)
            except (OSError, EOFError) as error:
                self.unexpected[f"{kind.__name__}: {type(error).__name__}"] += 1
                client.close()
        client.close()

    def _note(self, kind: str, status: int, expected: int) -> None:
        self.sent[kind] += 1
        if status != expected:
            self.unexpected[f"{kind}: {status}"] += 1

    async def _draw(self, client: Client, choice: random.Random) -> None:
        body = {
            "prompt": choice.choice(PROMPTS), "n": choice.randint(1, 4), "seed": choice.randrange(1000),
            "temperature": choice.random(), "top_p": choice.choice((0.9, 1.0)), "guidance_scale": choice.choice((1, 3)),
        }  # fmt: skip
        self._note("draw", (await client.post(PICTURES, body))[0], 200)

    async def _stream(self, client: Client, choice: random.Random) -> None:
        body = {"prompt": choice.choice(PROMPTS[:3]), "stream": True, "partial_images": 3}
        status, answer = await client.post(PICTURES, body)
        self._note("stream", status if b"image_generation.completed" in answer else 0, 200)

    async def _edit(self, client: Client, choice: random.Random) -> None:
        fields = {"prompt": choice.choice(PROMPTS[:3]), "seed": str(choice.randrange(1000))}
        files = {"image": self._picture, "mask": self._mask}
        self._note("edit", (await client.post_form("/v1/images/edits", fields, files))[0], 200)

    async def _vary(self, client: Client, choice: random.Random) -> None:
        fields = {"n": "2", "prompt": choice.choice(PROMPTS[:3])}
        self._note("vary", (await client.post_form("/v1/images/variations", fields, {"image": self._picture}))[0], 200)

    async def _describe(self, client: Client, choice: random.Random) -> None:
        url = "data:image/png;base64," + base64.b64encode(self._picture).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}]
        status, _ = await client.post("/v1/chat/completions", {"messages": [{"role": "user", "content": content}]})
        self._note("describe", status, 200 if self._describes else 400)

    async def _cancel(self, client: Client, choice: random.Random) -> None:
        """Go away in the middle."""
        going = Client(self._address)
        await going.begin("POST", PICTURES, json.dumps({"prompt": "a dog", "n": 8}).encode(), "application/json")
        await asyncio.sleep(choice.random() / 10)
        going.close()
        self.sent["cancel"] += 1

    async def _wrong(self, client: Client, choice: random.Random) -> None:
        if choice.random() < 0.3:
            broken = self._picture[: choice.randrange(len(self._picture) // 2)]
            status, _ = await client.post_form("/v1/images/variations", {}, {"image": broken})
        else:
            status, _ = await client.post(PICTURES, choice.choice(WRONG))
        self._note("wrong", status, 400)


async def mixed_load(address: str, process: int, minutes: float) -> list[Row]:
    """Send mixed requests for so many minutes to the server with this process number."""
    client = Client(address)
    card = json.loads((await client.send("GET", "/v1/models"))[1])["data"][0]
    client.close()
    load = Load(address, card["capabilities"], card["sizes"][0])
    server, start = psutil.Process(process), time.monotonic()
    stop = start + 60 * minutes
    workers = [asyncio.create_task(load.work(stop, seed)) for seed in range(WORKERS)]
    await asyncio.sleep(min(WARM_SECONDS, 30 * minutes))
    before = server.memory_info().rss
    await asyncio.gather(*workers)
    grown = (server.memory_info().rss - before) / 1e6
    for what, count in load.unexpected.items():
        print(f"not expected: {what}, {count} times")
    return [
        row("load/errors", sum(load.unexpected.values()), "", 0),
        row("load/memory_growth", grown, "MB", GROWTH_TARGET),
        row("load/requests", sum(load.sent.values()), "", None, True),
    ]
