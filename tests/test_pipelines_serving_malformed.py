"""Requests that are wrong in every way: none is answered with 5xx, none hangs, and the server goes on.

TESSERA_MALFORMED_REQUESTS=1000 makes as many from the schema (and half as many broken uploads and connections); by
default there are few.
"""

from __future__ import annotations

import io
import os
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from PIL import Image
from test_pipelines_serving_endpoint import data_url, masked, message, picture, png, served

from pipelines.serving.endpoint.context import ServingSettings

REQUESTS = int(os.environ.get("TESSERA_MALFORMED_REQUESTS", "160"))
SECONDS = 20.0  # in which each is answered
PAST_THE_SCHEMA = ("Unsatisfiable", "NegativeGenerationError", "SkipTest")  # nothing wrong can be made of an operation
SETTINGS = ServingSettings(model_name="tiny", upload_pixels=10_000, body_bytes=200_000)


@pytest.fixture(scope="module")
def server() -> Iterator[SimpleNamespace]:
    with served(SETTINGS, images_per_request=4) as running:
        yield running
        good = httpx.post(f"{running.address}/v1/images/generations", json={"prompt": "a red dog", "seed": 1})
        assert good.status_code == 200, "the server goes on"
        assert running.engine.is_alive and not running.engine.num_under_way and not running.engine.num_waiting


def test_requests_from_the_schema(server):
    """schemathesis on the OpenAPI schema: examples of each operation, correct ones and wrong ones."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings

    schema = schemathesis.openapi.from_url(f"{server.address}/openapi.json")
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    operations = [result.ok() for result in schema.get_all_operations()]
    takers = [one for one in operations if one.method.upper() == "POST"]  # the others have next to nothing to vary
    statuses: Counter[int] = Counter()
    for operation in operations:
        each = max(2, -(-REQUESTS // (len(modes) * len(takers)))) if operation in takers else 4
        for mode in modes:
            cases = operation.as_strategy(generation_mode=mode)

            @given(case=cases)
            @settings(max_examples=each, deadline=None, database=None, phases=[Phase.generate], derandomize=True,
                      suppress_health_check=list(HealthCheck))  # fmt: skip
            def check(case: Any) -> None:
                answer = case.call(timeout=SECONDS)
                statuses[answer.status_code] += 1
                assert answer.status_code < 500, (case.as_curl_command(), answer.text)

            try:
                check()
            except Exception as error:
                if type(error).__name__ not in PAST_THE_SCHEMA:
                    raise
    print(f"{sum(statuses.values())} requests from the schema: {dict(sorted(statuses.items()))}")
    assert statuses[400] and statuses.total() >= REQUESTS / 2


def files() -> list[bytes]:
    """Correct pictures of each kind that is read, small and with transparency."""
    contents = [png(masked(picture()))]
    for kind, image in (
        ("JPEG", picture()), ("WEBP", masked(picture())), ("GIF", picture().convert("P")), ("TIFF", picture()),
        ("BMP", picture()), ("PNG", Image.new("I;16", (16, 16))), ("PNG", Image.new("1", (16, 16))),
    ):  # fmt: skip
        stream = io.BytesIO()
        image.save(stream, kind)
        contents.append(stream.getvalue())
    return contents


def broken(content: bytes, choice: random.Random) -> bytes:
    """A picture's file, damaged in one of several ways."""
    data, kind = bytearray(content), choice.randrange(6)
    if kind == 0:
        return bytes(data[: choice.randrange(len(data))])
    if kind == 1:  # anything anywhere
        for _ in range(choice.choice((1, 4, 32))):
            data[choice.randrange(len(data))] = choice.randrange(256)
    elif kind == 2:  # sizes of all kinds: whatever lies near the head, made huge, or none
        start = choice.randrange(min(32, len(data) - 4))
        data[start : start + 4] = struct.pack(">I", choice.choice((0, 1, 2**31 - 1, 2**32 - 1, 60_000)))
    elif kind == 3:  # a part twice, or left out
        first, last = sorted(choice.sample(range(len(data)), 2))
        data[first:last] = data[first:last] * choice.choice((0, 2, 9))
    elif kind == 4:
        data += choice.randbytes(choice.choice((1, 1000)))
    else:
        data[:8] = choice.choice((b"\x89PNG\r\n\x1a\n", b"GIF89a\0\0", b"\xff\xd8\xff\xe0\0\0\0\0", b"II*\0\0\0\0\0"))
    return bytes(data)


def test_broken_uploads(server):
    """Damaged pictures and masks, with fields that are right or wrong, to all four endpoints that read one."""
    choice, good, statuses = random.Random(0), files(), Counter()
    texts = ("a red dog", "", "\x00", "ä" * 3000, "<|begin_image|>", "\U0001f409 %s %00 ../../etc/passwd")
    fields = ({}, {"n": "0"}, {"n": "2"}, {"size": "16x16"}, {"seed": "x"}, {"redraw": "2"}, {"keep_levels": "9"},
              {"stream": "true"}, {"stream": "true", "partial_images": "3"}, {"temperature": "nan"})  # fmt: skip
    with httpx.Client(base_url=server.address, timeout=SECONDS) as client:
        for number in range(REQUESTS // 4):
            content = broken(choice.choice(good), choice)
            name = choice.choice(("x.png", "../../x", "x" * 5000, "\u202egnp.x", ""))
            values = {"prompt": choice.choice(texts), **choice.choice(fields)}
            if number % 3 == 0:
                body = {"messages": message(data_url(content))}
                answer = client.post("/v1/chat/completions", json=body)
            else:
                upload = {"image": (name, content, choice.choice(("image/png", "text/html", "")))}
                if number % 3 == 1:
                    other = choice.choice((content, good[0], broken(good[0], choice), b""))
                    upload["mask"] = ("mask.png", other, "image/png")
                path = "/v1/images/edits" if number % 3 == 1 else "/v1/images/variations"
                answer = client.post(path, data=values, files=upload)
            statuses[answer.status_code] += 1
            assert answer.status_code < 500, (number, answer.text)
    print(f"{sum(statuses.values())} broken uploads: {dict(sorted(statuses.items()))}")
    assert statuses[400]


def raw_requests(choice: random.Random) -> bytes:
    """The bytes of a request that no library would send."""
    body = b'{"prompt": "a red dog"}'
    head = b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    form = head.replace(b"generations", b"edits").replace(b"application/json", b"multipart/form-data; boundary=b")
    part = b'--b\r\nContent-Disposition: form-data; name="p"\r\n\r\n1\r\n'
    whole = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    kinds = [
        whole[: choice.randrange(len(whole))],
        head + b"Content-Length: 1000\r\n\r\n" + body,
        head + b"Content-Length: -1\r\n\r\n" + body,
        head + b"Content-Length: 99999999999999999999\r\n\r\n" + body,
        head + b"Content-Length: 5\r\nContent-Length: 9\r\n\r\n" + body,
        head + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n" + body,
        head + b"Transfer-Encoding: chunked\r\n\r\n5\r\n" + body,
        head + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        head + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
        head + b"".join(b"X-%d: a\r\n" % number for number in range(5000)) + b"\r\n",
        head.replace(b"HTTP/1.1", b"HTTP/9.9") + b"\r\n",
        head.replace(b"POST", choice.choice((b"BREW", b"CONNECT", b"TRACE", b"\xff\xfe"))) + b"\r\n",
        head.replace(b"/v1/images/generations", choice.choice((b"/" + b"a/" * 20_000, b"//", b"/%00", b"*"))) + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + choice.randbytes(200),  # TLS
        choice.randbytes(choice.choice((1, 100, 5000))),
        form + b"Content-Length: 3\r\n\r\n--b",
        form + b'Content-Length: 61\r\n\r\n--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n--b',
        form.replace(b"; boundary=b", b"") + b"Content-Length: 2\r\n\r\n{}",
        form + b"Content-Length: 60000\r\n\r\n" + (part * 1400)[:60_000],
        head + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n[]",
        head + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b",
        head + b"Content-Length: 40002\r\n\r\n" + b"[" * 20_001 + b"]" * 20_001,
    ]  # fmt: skip
    return choice.choice(kinds)


def answer_to(address: str, request: bytes) -> bytes:
    """What comes back when nothing more is sent, until the server closes the connection or has answered."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            received = b""
            while part := connection.recv(65536):
                received += part
        except (BrokenPipeError, ConnectionResetError):  # it does not want the rest
            return b""
        return received


def test_connections_on_which_nothing_comes_are_closed():
    """200 that send nothing or a part of a head, beside one that works: those are closed, and a request under way is
    not, however slowly its body comes."""
    with served(ServingSettings(model_name="tiny"), idle_seconds=1.0) as server:
        host, port = server.address.removeprefix("http://").split(":")
        idle = [socket.create_connection((host, int(port)), timeout=SECONDS) for _ in range(200)]
        for connection in idle[::2]:
            connection.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHos")
        body = b'{"prompt": "a red dog"}'
        slow = socket.create_connection((host, int(port)), timeout=SECONDS)
        head = "POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        slow.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:5])
        with httpx.Client(base_url=server.address, timeout=SECONDS) as client:
            for _ in range(8):
                assert client.post("/v1/images/generations", json={"prompt": "a red dog"}).status_code == 200
                time.sleep(0.4)
        for connection in idle:
            assert connection.recv(1) == b"", "closed without an answer"
            connection.close()
        slow.sendall(body[5:])
        assert slow.recv(12) == b"HTTP/1.1 200"
        slow.close()


def test_a_body_that_does_not_come_is_told():
    with served(ServingSettings(model_name="tiny", body_seconds=0.2)) as server:
        whole = b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        host, port = server.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
            connection.sendall(whole + b"Content-Length: 100\r\n\r\n{")
            assert connection.recv(12) == b"HTTP/1.1 408"


def test_broken_connections(server):
    """Requests that are cut off, lie about their length, or are none."""
    choice, statuses = random.Random(0), Counter()
    for _ in range(REQUESTS // 4):
        request = raw_requests(choice)
        answer = answer_to(server.address, request)
        statuses[answer[9:12]] += 1
        assert not answer or (answer.startswith(b"HTTP/1.1 ") and answer[9:10] in b"1234"), (request[:300], answer)
        assert b"Traceback" not in answer and b"site-packages" not in answer
    print(f"{sum(statuses.values())} broken connections: {dict(sorted(statuses.items()))}")
