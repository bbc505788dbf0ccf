"""A small HTTP client for benchmarks: on the same cores as the server, its own work must not count."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit


class Client:
    """One connection that is kept, to a server such as "http://127.0.0.1:7860". It reads answers with a length, and
    those in chunks."""

    def __init__(self, address: str) -> None:
        self._place = urlsplit(address)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: Mapping[str, Any]) -> tuple[int, bytes]:
        """Send JSON; the status and the body of the answer."""
        return await self.send("POST", path, json.dumps(body).encode(), "application/json")

    async def post_form(self, path: str, fields: Mapping[str, str], files: Mapping[str, bytes]) -> tuple[int, bytes]:
        """Send a form with files; the status and the body of the answer."""
        boundary = secrets.token_hex(8)
        parts = [
            *((f'name="{name}"', value.encode()) for name, value in fields.items()),
            *((f'name="{name}"; filename="{name}.png"', content) for name, content in files.items()),
        ]
        head = f"--{boundary}\r\nContent-Disposition: form-data; "
        body = b"".join(f"{head}{name}\r\n\r\n".encode() + value + b"\r\n" for name, value in parts)
        kind = f"multipart/form-data; boundary={boundary}"
        return await self.send("POST", path, body + f"--{boundary}--\r\n".encode(), kind)

    async def send(self, method: str, path: str, body: bytes = b"", kind: str = "text/plain") -> tuple[int, bytes]:
        """Send a request; the status and the body of the answer.

        Raises:
            OSError, EOFError: the connection ends.
        """
        reader, writer = await self.begin(method, path, body, kind)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if ": " in line)
        if headers.get("transfer-encoding") == "chunked":
            content = await _chunks(reader)
        else:
            content = await reader.readexactly(int(headers.get("content-length", 0)))
        if headers.get("connection") == "close":
            self.close()
        return int(head[0].split()[1]), content

    async def begin(
        self, method: str, path: str, body: bytes, kind: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send a request, and do not wait for the answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._place.hostname, self._place.port)
        reader, writer = self._streams
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._place.netloc}\r\nContent-Type: {kind}\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        return reader, writer

    def close(self) -> None:
        """Close the connection, whatever is under way."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    """A body in chunks."""
    parts = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readexactly(2)
    return b"".join(parts)
