"""The serving benchmark's own parts: its client, its clocks, and its mixed load, against a server of a tiny model."""

from __future__ import annotations

import asyncio
import json
import os

import pytest
from test_pipelines_serving_endpoint import picture, png, served

from scripts.benchmarks.http_client import Client
from scripts.benchmarks.mixed_load import mixed_load
from scripts.benchmarks.serving import FEW_CLIENTS, _beside_large, _clients


@pytest.fixture(scope="module")
def address():
    with served() as server:
        yield server.address


def test_the_client_reads_answers_of_both_kinds(address):
    async def ask() -> list[tuple[int, bytes]]:
        client = Client(address)
        body = {"prompt": "a red dog"}
        answers = [
            await client.send("GET", "/v1/models"),
            await client.post("/v1/images/generations", body | {"stream": True, "partial_images": 1}),
            await client.post_form("/v1/images/variations", {"n": "2"}, {"image": png(picture())}),
        ]
        client.close()
        return answers

    models, stream, varied = asyncio.run(ask())
    assert models[0] == 200 and json.loads(models[1])["data"][0]["id"] == "tiny"
    assert stream[0] == 200 and stream[1].count(b"event: image_generation.") == 2
    assert varied[0] == 200 and len(json.loads(varied[1])["data"]) == 2


def test_every_request_is_timed(address):
    assert len(asyncio.run(_clients(address, 3, 2))) == 6
    beside = asyncio.run(_beside_large(address, 1))
    assert len(beside) == FEW_CLIENTS and all(took > 0 for took in beside)


def test_mixed_load_meets_no_error(address):
    rows = {row["what"]: row["value"] for row in asyncio.run(mixed_load(address, os.getpid(), 0.05))}
    assert rows["load/errors"] == 0 and rows["load/requests"] > 10
    assert set(rows) == {"load/errors", "load/memory_growth", "load/requests"}
