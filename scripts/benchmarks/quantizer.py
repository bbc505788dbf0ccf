"""Our quantizer beside the reference library, vector-quantize-pytorch, doing the same work.

    python scripts/benchmarks/quantizer.py --output rows.json

For each size: a training step (forward, EMA, backward; interleaved with the library's, medians), `encode` beside the
matrix product alone in its best block size, and the memory that a training step needs beyond inputs, outputs and
gradients, measured in a separate process.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.options.option import option
from pipelines.options.parser import run_command
from scripts.benchmarks.figures import BenchmarkOptions, Row, interleaved, row, seconds, show, write_rows

# (vectors N, code_dim D, codebook_size K), and the targets: speed-up of a step, encode over product, extra MB.
SIZES: dict[tuple[int, int, int], tuple[float | None, float | None, float]] = {
    (8192, 64, 512): (8.0, None, 32),
    (16384, 256, 1024): (6.3, 1.2, 64),
    (16384, 64, 8192): (13.0, 1.25, 64),
    (65536, 8, 16384): (None, 1.5, 256),
}
LIMIT_GB = 16  # address space that the library may take
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048)
KINDS = ("ours", "library", "library_defaults")


@dataclass(kw_only=True)
class Options(BenchmarkOptions):
    """Our quantizer beside vector-quantize-pytorch."""

    repeats: int = option(7, "how often each is measured; the rows are medians", above_zero=True)
    only: str | None = option(None, "one size, e.g. 8192x64x512")
    child: str | None = option(None, "used by the script itself: measure the memory of one kind")

    def __post_init__(self) -> None:
        super().__post_init__()
        names = ["x".join(map(str, shape)) for shape in SIZES]
        if self.only not in (None, *names):
            raise ValueError(f"--only {self.only}: choose one of {', '.join(names)}")


def build(kind: str, dim: int, size: int) -> Any:
    """A quantizer in train mode: "ours", "library" (set to the same work) or "library_defaults"."""
    if kind == "ours":
        from tokenizer_image import VectorQuantizer

        return VectorQuantizer(size, dim, kmeans_start=False, revival_threshold=0.0).train()
    from vector_quantize_pytorch import VectorQuantize

    if kind == "library_defaults":
        return VectorQuantize(dim, size).train()
    return VectorQuantize(
        dim, size, decay=0.99, commitment_weight=0.25, rotation_trick=False, threshold_ema_dead_code=0,
        kmeans_init=False,
    ).train()  # fmt: skip


def training_step(quantizer: Any, latents: Any, weights: Any) -> None:
    """Forward, codebook update, backward."""
    latents.grad = None
    output = quantizer(latents)
    quantized, loss = (output[0], output[2]) if isinstance(output, tuple) else (output.quantized, output.loss)
    ((quantized * weights).sum() + loss.sum()).backward()


def product(vectors: Any, codebook: Any, rows: int) -> Callable[[], None]:
    """The float32 matrix product alone, in blocks of `rows`."""
    import torch

    scores, transposed = torch.empty(rows, len(codebook)), codebook.t()

    def run() -> None:
        for start in range(0, len(vectors), rows):
            torch.mm(vectors[start : start + rows], transposed, out=scores)

    return run


def speeds(n: int, dim: int, size: int, repeats: int, with_library: bool) -> dict[str, float]:
    """Median seconds of a step of each kind, of `encode`, and of the product in its best block size."""
    import torch

    torch.manual_seed(0)
    latents, weights = torch.randn(n, dim, requires_grad=True), torch.randn(n, dim)
    vectors = latents.detach()
    ours = build("ours", dim, size)
    blocks = [rows for rows in BLOCKS if n % rows == 0]
    best = min(blocks, key=lambda rows: min(seconds(product(vectors, ours.codebook, rows)) for _ in range(3)))
    calls: dict[str, Callable[[], Any]] = {}
    for kind in KINDS if with_library else KINDS[:1]:
        quantizer = build(kind, dim, size)
        calls[kind] = lambda quantizer=quantizer: training_step(quantizer, latents, weights)
    steps = interleaved(calls, repeats)
    with torch.no_grad():
        pair = {"encode": lambda: ours.encode(vectors), "product": product(vectors, ours.codebook, best)}
        return {**steps, **interleaved(pair, 2 * repeats)}


def child(options: Options) -> None:
    """Print the MB that one training step adds at most, beyond inputs, outputs and gradients."""
    import torch

    kind, name = str(options.child).split(":")
    n, dim, size = map(int, name.split("x"))
    torch.manual_seed(0)
    small = torch.randn(64, dim, requires_grad=True)
    training_step(build(kind, dim, 64), small, torch.ones(64, dim))  # loads what libraries load at first use
    latents, weights = torch.randn(n, dim, requires_grad=True), torch.randn(n, dim)
    quantizer = build(kind, dim, size)
    if kind != "ours":
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = taken + LIMIT_GB * 10**9
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # Quantized latents, their gradient and the latents' gradient do not count as extra: as much memory is held here and
    # freed before the step. The ballast raises the memory in use to the peak so far, above which the peak counts.
    outputs = torch.zeros(3 * n * dim)
    ballast = torch.zeros(max(0, peak_memory() - held_memory()) // 4)
    before = peak_memory()
    del outputs
    training_step(quantizer, latents, weights)
    print(f"extra_mb {(peak_memory() - before) / 1e6:.1f}")
    del ballast


def peak_memory() -> int:
    """The most bytes that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def held_memory() -> int:
    """Bytes that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def extra_memory(kind: str, name: str) -> float | None:
    """MB beyond inputs, outputs and gradients, measured in a separate process; None if it ran out of memory."""
    command = [sys.executable, __file__, "--child", f"{kind}:{name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return float(done.stdout.split()[-1])
    if not any(word in done.stderr.lower() for word in ("memory", "bad_alloc")) and done.returncode != -9:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-500:]}")
    return None


def rows_of(shape: tuple[int, int, int], options: Options) -> list[Row]:
    """The rows of one size."""
    name = "x".join(map(str, shape))
    speedup, over_product, extra = SIZES[shape]
    times = speeds(*shape, options.repeats, with_library=speedup is not None)
    rows = []
    if speedup is not None:
        ratio = times["library"] / times["ours"]
        rows.append(row(f"train_step/{name}/speedup", ratio, "x", speedup, True))
        defaults = times["library_defaults"] / times["ours"]
        rows.append(row(f"train_step/{name}/speedup_defaults", defaults, "x", None, True))
    rows.append(row(f"train_step/{name}/over_product", times["ours"] / times["product"], "x"))
    rows.append(row(f"encode/{name}/over_product", times["encode"] / times["product"], "x", over_product))
    rows.append(row(f"train_step/{name}/ms", 1e3 * times["ours"], "ms"))
    rows.append(row(f"train_step/{name}/extra_mb", extra_memory("ours", name), "MB", extra))
    rows.append(row(f"train_step/{name}/extra_mb_library", extra_memory("library", name), "MB"))
    return rows


def main(options: Options) -> None:
    """Measure all sizes; a table on the screen, rows in the file."""
    options.set_threads()
    if options.child:
        child(options)
        return
    rows: list[Row] = []
    for shape in SIZES:
        if options.only in (None, "x".join(map(str, shape))):
            size_rows = rows_of(shape, options)
            show(size_rows, missing=f"out of memory ({LIMIT_GB} GB)")
            rows += size_rows
    write_rows(options.output, rows)


if __name__ == "__main__":
    run_command(main, Options, __doc__)
