"""Running the application: the port, the signals, and the end."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from torch import nn

from pipelines.machine.processors import in_passing_thread
from pipelines.multimodal import MultimodalPipeline
from pipelines.options.inference import ModelOptions
from pipelines.text_to_image import TextToImagePipeline

KEEP_ALIVE_SECONDS = 30  # of a connection without requests
SWITCH_SECONDS = 0.0001  # between threads of Python: else each step of the model waits up to 5 ms for the event loop


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that is bound to an address, before time is spent on loading a model.

    Raises:
        ValueError: the port is in use or not allowed, or there is no such address; the message names the option.
    """
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise ValueError(f"--host {host}: there is no such address here ({error.strerror})") from error
    listener = socket.socket(kind, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)  # at once: of two servers that start together, one gets the port
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ValueError(
                f"port {port} on {host} is in use: stop what listens there, or give another --port (0: a free one)"
            ) from error
        if error.errno == errno.EACCES:
            raise ValueError(f"--port {port}: this user may not listen there; give one above 1023") from error
        raise ValueError(f"--host {host}: cannot listen there ({error.strerror})") from error
    return listener


def load_held(options: ModelOptions) -> TextToImagePipeline:
    """The model of these options, for as long as the server runs: with weights of its own (`hold_weights`), and loaded
    in a thread that ends (`in_passing_thread`)."""

    def load() -> TextToImagePipeline:
        pipe = options.load(TextToImagePipeline)
        hold_weights(pipe)
        return pipe

    return in_passing_thread(load)


def hold_weights(pipe: MultimodalPipeline) -> None:
    """Copy a model's weights into this process's own memory.

    Loading maps the files into memory: a folder that is overwritten later would change the weights under the server, or
    end it (SIGBUS) where a file becomes shorter.
    """
    for part in (pipe.model, pipe.image_tokenizer):
        if isinstance(part, nn.Module):  # an image tokenizer made elsewhere may be none
            for tensor in (*part.parameters(), *part.buffers()):
                tensor.data = tensor.data.clone()


def before_end(application: FastAPI) -> list[Callable[[], Coroutine[Any, Any, None]]]:
    """What is begun when the server is told to end: whoever keeps streams open for as long as clients listen must end
    them, or they would hold the server up."""
    if not hasattr(application.state, "before_end"):
        application.state.before_end = []
    return application.state.before_end


class Server(uvicorn.Server):
    """A server that lets its application end streams (`before_end`), and closes connections on which no request comes.

    Attributes:
        idle_seconds: after which it does.
    """

    def __init__(self, config: uvicorn.Config, idle_seconds: float = KEEP_ALIVE_SECONDS) -> None:
        super().__init__(config)
        self.idle_seconds = idle_seconds
        self._idle: dict[Any, tuple[Any, float]] = {}  # of each connection without a request: the last one, since when

    async def on_tick(self, counter: int) -> bool:
        """What is to be done every tenth of a second; whether the server is to end."""
        if counter % 10 == 0:
            self._close_idle()
        return await super().on_tick(counter)

    def _close_idle(self) -> None:
        """Close connections that have waited too long for the whole head of a request: uvicorn's own timeout begins
        after an answer, and ends at the next byte."""
        before, now = self._idle, time.monotonic()
        self._idle = {}
        for connection in list(self.server_state.connections):
            last = getattr(connection, "cycle", None)  # of HTTP: the last request
            if not hasattr(connection, "cycle") or (last is not None and not last.response_complete):
                continue
            known, since = before.get(connection, (last, now))
            since = since if known is last else now
            self._idle[connection] = last, since
            if now - since > self.idle_seconds:
                connection.transport.close()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the port, finish what is under way, and let the application end."""
        ending = [asyncio.create_task(end()) for end in before_end(self.config.app)]  # type: ignore[arg-type]
        await super().shutdown(sockets)
        for task in ending:
            task.cancel()


def serve(application: FastAPI, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C: then no new requests are taken, and what is under way is finished.

    It returns after SIGTERM; after Ctrl-C it raises KeyboardInterrupt. A second signal ends at once.
    """
    settings = uvicorn.Config(
        application, log_level="warning", access_log=False, server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS, lifespan="on",
    )  # fmt: skip
    sys.setswitchinterval(SWITCH_SECONDS)
    before = signal.signal(signal.SIGTERM, _ignored)
    try:
        Server(settings).run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, before)
        listener.close()


def _ignored(number: int, frame: FrameType | None) -> None:
    """uvicorn raises the signals that ended it once more, when it has finished; SIGTERM is no failure."""
