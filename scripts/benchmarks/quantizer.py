"""Our quantizer beside the reference library, vector-quantize-pytorch, doing the same work.

    python scripts/benchmarks/quantizer.py --output rows.json

For each size: a training step (forward, EMA, backward; interleaved with the library's, medians), `encode` beside the
matrix product alone in its best block size, and the memory that a training step needs beyond inputs, outputs and
gradients, in a process of its own.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.machine.processors import usable_cores
from pipelines.options.parser import run_command
from scripts.benchmarks.figures import Row, interleaved, row, seconds, show, write_rows

# (vectors N, code_dim D, codebook_size K), and the targets: speed-up of a step, encode over product, extra MB.
SIZES: dict[tuple[int, int, int], tuple[float | None, float | None, float]] = {
    (8192, 64, 512): (8.0, None, 32),
    (16384, 256, 1024): (6.3, 1.2, 64),
    (16384, 64, 8192): (13.0, 1.25, 64),
    (65536, 8, 16384): (None, 1.5, 256),
}
LIMIT_GB = 16  # for the library where it runs out of memory
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048)
KINDS = ("ours", "library", "library_defaults")


@dataclass
class BenchOptions:
    """Our quantizer beside vector-quantize-pytorch."""

    output: str | None = field(default=None, metadata={"help": "JSON file for the rows"})
    repeats: int = field(default=7, metadata={"help": "of each measurement; medians are told"})
    cpu_threads: int | None = field(default=None, metadata={"help": "PyTorch's threads (default: cores)"})
    only: str | None = field(default=None, metadata={"help": "one size, e.g. 8192x64x512"})
    child: str | None = field(default=None, metadata={"help": "used by the script itself: measure memory of one kind"})


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
    found = interleaved(calls, repeats)
    with torch.no_grad():
        pair = {"encode": lambda: ours.encode(vectors), "product": product(vectors, ours.codebook, best)}
        return {**found, **interleaved(pair, 2 * repeats)}


def child(options: BenchOptions) -> None:
    """Print the MB that one training step adds at most, beyond inputs, outputs and gradients."""
    import torch

    kind, name = str(options.child).split(":")
    n, dim, size = map(int, name.split("x"))
    torch.manual_seed(0)
    small = torch.randn(64, dim, requires_grad=True)
    training_step(build(kind, dim, 64), small, torch.ones(64, dim))  # what libraries load once
    latents, weights = torch.randn(n, dim, requires_grad=True), torch.randn(n, dim)
    quantizer = build(kind, dim, size)
    if kind != "ours":
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = taken + LIMIT_GB * 10**9
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # Quantized latents, their gradient and the latents' gradient are not extra: held here, then given back. The ballast
    # brings what is held now up to the most that was ever held, so that the system's peak begins to count.
    kept = torch.zeros(3 * n * dim)
    ballast = torch.zeros(max(0, peak_memory() - held_memory()) // 4)
    before = peak_memory()
    del kept
    training_step(quantizer, latents, weights)
    print(f"extra_mb {(peak_memory() - before) / 1e6:.1f}")
    del ballast


def peak_memory() -> int:
    """The most bytes that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def held_memory() -> int:
    """Bytes that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def extra_memory(kind: str, name: str) -> float | None:
    """MB beyond inputs, outputs and gradients, measured in a process of its own; None if it ran out of memory."""
    command = [sys.executable, __file__, "--child", f"{kind}:{name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return float(done.stdout.split()[-1])
    if not any(word in done.stderr.lower() for word in ("memory", "bad_alloc")) and done.returncode != -9:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-500:]}")
    return None


def rows_of(shape: tuple[int, int, int], options: BenchOptions) -> list[Row]:
    """The rows of one size."""
    name = "x".join(map(str, shape))
    speedup, over_product, extra = SIZES[shape]
    found = speeds(*shape, options.repeats, with_library=speedup is not None)
    rows = []
    if speedup is not None:
        ratio = found["library"] / found["ours"]
        rows.append(row(f"train_step/{name}/speedup", ratio, "x", speedup, True))
        defaults = found["library_defaults"] / found["ours"]
        rows.append(row(f"train_step/{name}/speedup_defaults", defaults, "x", None, True))
    rows.append(row(f"train_step/{name}/over_product", found["ours"] / found["product"], "x"))
    rows.append(row(f"encode/{name}/over_product", found["encode"] / found["product"], "x", over_product))
    rows.append(row(f"train_step/{name}/ms", 1e3 * found["ours"], "ms"))
    rows.append(row(f"train_step/{name}/extra_mb", extra_memory("ours", name), "MB", extra))
    rows.append(row(f"train_step/{name}/extra_mb_library", extra_memory("library", name), "MB"))
    return rows


def main(options: BenchOptions) -> None:
    """Measure all sizes; a table on the screen, rows in the file."""
    import torch

    torch.set_num_threads(options.cpu_threads or usable_cores())
    if options.child:
        child(options)
        return
    rows: list[Row] = []
    for shape in SIZES:
        if options.only in (None, "x".join(map(str, shape))):
            rows += (found := rows_of(shape, options))
            show(found, missing=f"out of memory ({LIMIT_GB} GB)")
    if not rows:
        raise ValueError(f"--only {options.only}: choose one of {', '.join('x'.join(map(str, s)) for s in SIZES)}")
    write_rows(options.output, rows)


if __name__ == "__main__":
    run_command(main, BenchOptions, __doc__)
