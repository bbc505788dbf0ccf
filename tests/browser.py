"""A real browser for the tests of the page: Debian's chromium, driven by playwright, and a server for it to look at."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# Set by .ci/run: a browser must be there.
REQUIRED = "TESSERA_BROWSER_REQUIRED"
# A folder for pictures of the page as the tests see it.
SCREENSHOTS = "TESSERA_SCREENSHOTS"
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def chromium() -> str:
    """The browser's path. Without one the test is skipped, or fails where one must be there."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        words = "no browser: apt-get install chromium"
        if os.environ.get(REQUIRED):
            pytest.fail(words)
        pytest.skip(words)
    return path


@contextmanager
def browser() -> Iterator[Any]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    path = chromium()
    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield running
        finally:
            running.close()


@contextmanager
def served(application: Any) -> Iterator[str]:
    """The address of an application, served from this process."""
    import uvicorn

    from pipelines.serving.endpoint.running import Server

    server = Server(uvicorn.Config(application, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server ended at its start"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def screenshot(page: Any, name: str, full_page: bool = False) -> None:
    """Write what the browser shows, where the environment names a folder."""
    folder = os.environ.get(SCREENSHOTS)
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=full_page)
