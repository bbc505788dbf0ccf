"""The server under load: how fast it draws for many, how long one waits, and whether it grows.

    python scripts/benchmarks/serving.py --output rows.json
    python scripts/benchmarks/serving.py --model runs/model --load_minutes 10

The server runs in a process of its own. Its pictures a second, and the time of one client alone, are over those of the
pipeline's call in this process, with which it takes turns on the same cores. Clients send one request after the other.
With --load_minutes, mixed requests follow (drawing, editing, describing, cancelled and wrong ones): errors that were
not expected, and the growth of the server's memory after the first minute.
"""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

from pipelines.options.option import option
from pipelines.options.parser import run_command
from scripts.benchmarks.figures import BenchmarkOptions, Row, row, seconds, show, write_rows
from scripts.benchmarks.http_client import Client
from scripts.benchmarks.mixed_load import mixed_load

CLIENTS, FEW_CLIENTS, LARGE = 32, 16, 64
PATH, PROMPT = "/v1/images/generations", "a red dog on grass"
START_SECONDS = 120.0


@dataclass(kw_only=True)
class Options(BenchmarkOptions):
    """The server under load."""

    model: str = option("sprites", "model folder, or the name of one that comes with Tessera")
    rounds: int = option(5, "how often each is measured; the rows are medians", above_zero=True)
    requests: int = option(8, "of each client, one after the other, in a round", above_zero=True)
    load_minutes: float = option(0.0, "how long to send mixed requests afterwards", not_negative=True)


def same(seed: int) -> str:
    """One prompt for all."""
    return PROMPT


def new_prompts() -> Callable[[int], str]:
    """A prompt for each seed that no request has had before."""
    first = secrets.randbelow(10**6)
    return lambda seed: f"{PROMPT} {first + seed}"


@contextmanager
def server(options: Options) -> Iterator[tuple[str, int]]:
    """The address and the process number of a server of the model.

    Raises:
        ValueError: it does not start.
    """
    script = Path(__file__).resolve().parents[1] / "serve.py"
    command = [sys.executable, str(script), "--model", options.model, "--port", "0"]
    if options.cpu_threads is not None:
        command += ["--cpu_threads", str(options.cpu_threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            words = process.stdout.readline().split()
            address = next((word.removesuffix("/v1") for word in words if word.startswith("http://")), None)
            if address is None:
                raise ValueError("the server did not start: its error is above")
            asyncio.run(_ready(address))
            yield address, process.pid
        finally:
            process.terminate()
            process.wait()


async def _ready(address: str) -> None:
    """Wait until the server answers."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        client = Client(address)
        try:
            if (await client.send("GET", "/readyz"))[0] == 200:
                return
        except (OSError, EOFError):
            await asyncio.sleep(0.1)
        finally:
            client.close()
    raise ValueError(f"the server was not ready after {START_SECONDS:g} s")


async def _draw(client: Client, seed: int, count: int = 1, prompt: str = PROMPT) -> float:
    """Seconds of one request.

    Raises:
        ValueError: it fails.
    """
    start = time.perf_counter()
    status, answer = await client.post(PATH, {"prompt": prompt, "n": count, "seed": seed})
    if status != 200:
        raise ValueError(f"the server answered {status}: {answer[:200]!r}")
    return time.perf_counter() - start


async def _clients(address: str, count: int, requests: int, prompt: Callable[[int], str] = same) -> list[float]:
    """Seconds of each request of so many clients, of which each has a seed, and a prompt by its seed."""

    async def one(number: int) -> list[float]:
        client = Client(address)
        try:
            seeds = range(number * requests, (number + 1) * requests)
            return [await _draw(client, seed, prompt=prompt(seed)) for seed in seeds]
        finally:
            client.close()

    parts = await asyncio.gather(*(one(number) for number in range(count)))
    return [took for part in parts for took in part]


async def _beside_large(address: str, requests: int) -> list[float]:
    """Seconds of each request of a few clients, while another one asks for many pictures again and again."""
    large = Client(address)

    async def ask() -> None:
        while True:
            await _draw(large, 0, LARGE)

    asking = asyncio.create_task(ask())
    await asyncio.sleep(0.2)
    try:
        return await _clients(address, FEW_CLIENTS, requests)
    finally:
        asking.cancel()
        large.close()


def _p95(values: list[float]) -> float:
    return quantiles(values, n=20)[-1]


def figures(options: Options, address: str) -> list[Row]:
    """Throughput and latency, the server and the pipeline's call taking turns."""
    from pipelines.text_to_image import TextToImagePipeline

    pipe = TextToImagePipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)

    def offline(count: int, prompt: Callable[[int], str] = same) -> float:
        return seconds(lambda: pipe([prompt(seed) for seed in range(count)], seed=list(range(count))))

    rates: dict[str, list[float]] = {"server": [], "offline": [], "new server": [], "new offline": []}
    alone: dict[str, list[float]] = {"server": [], "offline": []}
    waits: dict[str, list[float]] = {"few": [], "beside": []}
    for turn in range(options.rounds + 1):
        took = seconds(lambda: asyncio.run(_clients(address, CLIENTS, options.requests)))
        calls = [offline(CLIENTS) for _ in range(3)]
        fresh = new_prompts()
        took_new = seconds(lambda: asyncio.run(_clients(address, CLIENTS, options.requests, fresh)))  # noqa: B023
        calls_new = [offline(CLIENTS, fresh) for _ in range(3)]
        one = asyncio.run(_clients(address, 1, options.requests))
        few = asyncio.run(_clients(address, FEW_CLIENTS, options.requests))
        beside = asyncio.run(_beside_large(address, options.requests))
        if not turn:  # the first turn warms up
            continue
        rates["server"].append(CLIENTS * options.requests / took)
        rates["offline"].append(CLIENTS / median(calls))
        rates["new server"].append(CLIENTS * options.requests / took_new)
        rates["new offline"].append(CLIENTS / median(calls_new))
        alone["server"].append(median(one))
        alone["offline"].append(median(offline(1) for _ in range(options.requests)))
        waits["few"] += few
        waits["beside"] += beside
    middle = {name: median(values) for name, values in rates.items()}
    return [
        row("throughput/32_clients", middle["server"] / middle["offline"], "", 0.9, True),
        row("latency/one_client", median(alone["server"]) / median(alone["offline"]), "", 1.15),
        row("latency/beside_a_large_request", _p95(waits["beside"]) / _p95(waits["few"]), "", 3),
        row("throughput/32_clients/new_prompts", middle["new server"] / middle["new offline"], "", None, True),
        row("throughput/32_clients/pictures_per_second", middle["server"], "/s", None, True),
        row("throughput/offline/pictures_per_second", middle["offline"], "/s", None, True),
        row("latency/one_client/seconds", median(alone["server"]), "s"),
        row("latency/16_clients/p95", _p95(waits["few"]), "s"),
    ]


def main(options: Options) -> None:
    """Measure; a table on the screen, rows in the file."""
    options.set_threads()
    with server(options) as (address, process):
        rows = figures(options, address)
        show(rows)
        if options.load_minutes:
            load = asyncio.run(mixed_load(address, process, options.load_minutes))
            show(load)
            rows += load
    write_rows(options.output, rows)


if __name__ == "__main__":
    run_command(main, Options, __doc__)
