"""Costs of a token cache of a million rows: bytes a row, time to open it, time to the first training step.

    python scripts/benchmarks/token_cache.py --output rows.json

A cache of random codes and invented captions is written by the project's own writer to a temporary folder (about
0.6 GB), which is removed at the end. The time to the first step runs from the launch of `scripts/train_lm.py`, with a
small language model, to the first line in its metrics.jsonl, and so includes imports; the peak memory is the most that
this process holds until then.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipelines.options.option import option
from pipelines.options.parser import run_command
from scripts.benchmarks.figures import BenchmarkOptions, Row, row, seconds, show, write_rows

SIDE, CODES, NUM_CODES = 64, 256, 1024  # pictures of 64x64 become 16x16 codes of two bytes
WORDS = (
    ["red", "blue", "green", "yellow", "small", "large", "old", "new", "bright", "dark"],
    ["dog", "house", "boat", "tree", "star", "fish"],
)


@dataclass(kw_only=True)
class Options(BenchmarkOptions):
    """A large token cache."""

    rows: int = option(1_000_000, "rows of the cache", above_zero=True)
    shard_rows: int = option(8192, "rows of a shard", above_zero=True)
    folder: str | None = option(None, "where to write (default: the system's temporary folder)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folder is not None and not Path(self.folder).is_dir():
            raise ValueError(f"--folder {self.folder}: there is no such folder; make it, or name another")


def save_tokenizer(folder: Path) -> Any:
    """An untrained image tokenizer whose pictures have as many codes as the cache's."""
    from tokenizer_image import VQVAE, VQVAEConfig
    from tokenizer_image.pictures.loading import Preprocessing

    settings = Preprocessing(image_size=SIDE).to_dict()
    config = VQVAEConfig(
        image_size=SIDE, patch_size=4, hidden_sizes=[8], num_res_blocks=1, code_dim=8, codebook_sizes=[NUM_CODES],
        quantizer="ema", preprocessing=settings,
    )  # fmt: skip
    tokenizer = VQVAE(config)
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_cache(folder: Path, rows: int, shard_rows: int, fingerprint: str) -> int:
    """Write random codes and captions; returns the captions' bytes."""
    import numpy as np

    from lm.data.shards import Shard
    from lm.data.token_cache import Document, code_dtype, write_manifest, write_shard

    shards, caption_bytes = [], 0
    dtype = code_dtype(NUM_CODES)
    for index, start in enumerate(range(0, rows, shard_rows)):
        count = min(shard_rows, rows - start)
        chance = np.random.default_rng(index)
        codes = chance.integers(0, NUM_CODES, (count, CODES), dtype=dtype)
        kinds, things = chance.choice(WORDS[0], (count, 2)), chance.choice(WORDS[1], (count, 2))
        texts = [
            f"a {kind[0]} {thing[0]} beside a {kind[1]} {thing[1]}, number {start + place}"
            for place, (kind, thing) in enumerate(zip(kinds.tolist(), things.tolist(), strict=True))
        ]
        caption_bytes += sum(map(len, texts))
        documents = [Document(codes[place], [(SIDE, SIDE)], [text]) for place, text in enumerate(texts)]
        name = f"shard-{index:05d}"
        write_shard(folder / name, documents, dtype)
        shards.append(Shard(folder / name, count).entry())
    write_manifest(folder, {"image_tokenizer_fingerprint": fingerprint, "num_codes": NUM_CODES, "shards": shards})
    return caption_bytes


def first_batch(folder: Path, tokenizer: Any) -> float:
    """Seconds from a closed cache to the first batch: vocabulary, order, captions and tokens."""
    from lm.data.batch_order import BatchOrder
    from lm.data.sequence_source import SequenceSource
    from lm.data.token_cache import TokenCache
    from pipelines.training.vocabulary import build_vocabulary

    def run() -> None:
        cache = TokenCache(folder)
        settings = SimpleNamespace(lm_name_or_path=None, text_tokenizer=None, text_vocab_size=4096,
                                   default_guidance=2.0, picture_sizes=list)  # fmt: skip
        source = SequenceSource(cache, build_vocabulary(settings, tokenizer, cache))
        next(BatchOrder(source, 64).batches())

    return seconds(run)


def first_step(root: Path, options: Options) -> tuple[float, float, float]:
    """(seconds from the launch of train_lm.py to its first step, processor seconds by then, most GB resident)."""
    import psutil

    script = Path(__file__).resolve().parents[1] / "train_lm.py"
    command = [
        sys.executable, str(script), "--image_tokenizer", str(root / "tokenizer"), "--token_cache", str(root / "cache"),
        "--output_dir", str(root / "model"), "--num_layers", "2", "--hidden_size", "64", "--intermediate_size", "128",
        "--num_heads", "2", "--batch_size", "8", "--max_steps", "100000", "--log_every", "1", "--validate_every", "0",
        "--sample_every", "0", "--checkpoint_every", "0",
        *([] if options.cpu_threads is None else ["--cpu_threads", str(options.cpu_threads)]),
    ]  # fmt: skip
    metrics, log, peak, used = root / "model" / "metrics.jsonl", root / "log.txt", 0, 0.0
    start = time.perf_counter()
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            while process.poll() is None and not (metrics.is_file() and metrics.stat().st_size):
                time.sleep(0.02)
                with suppress(psutil.NoSuchProcess):
                    watched = psutil.Process(process.pid)
                    peak = max(peak, watched.memory_info().rss)
                    used = sum(watched.cpu_times()[:2])
            took = time.perf_counter() - start
            if process.poll() is not None:
                raise ValueError(f"train_lm.py ended before its first step: {log.read_text()[-500:]}")
        finally:
            process.kill()
    return took, used, peak / 1e9


def main(options: Options) -> None:
    """Write, open, train one step; a table on the screen, rows in the file."""
    from lm.data.token_cache import TokenCache

    options.set_threads()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        root = Path(name)
        tokenizer = save_tokenizer(root / "tokenizer")
        written = time.perf_counter()
        caption_bytes = write_cache(root / "cache" / "train", options.rows, options.shard_rows, tokenizer.fingerprint)
        written = time.perf_counter() - written
        write_cache(root / "cache" / "validation", 2000, options.shard_rows, tokenizer.fingerprint)
        size = sum(path.stat().st_size for path in (root / "cache" / "train").rglob("*") if path.is_file())
        code_bytes = TokenCache(root / "cache" / "train").codes(0).dtype.itemsize
        beside = size - options.rows * CODES * code_bytes - caption_bytes
        rows: list[Row] = [
            row("token_cache/rows", options.rows, "rows", None, True),
            row("token_cache/bytes_per_code", code_bytes, "B", 2),
            row("token_cache/bytes_per_row_beside", beside / options.rows, "B", 24),
            row("token_cache/size", size / 1e9, "GB"),
            row("token_cache/written_per_second", options.rows / written, "rows/s", None, True),
            row("token_cache/open", seconds(lambda: TokenCache(root / "cache" / "train")), "s", 1),
            row("token_cache/first_batch", first_batch(root / "cache" / "train", tokenizer), "s"),
        ]
        took, used, peak = first_step(root, options)
        rows += [
            row("token_cache/first_step", took, "s", 10),
            row("token_cache/first_step_processor", used, "s"),  # steadier on a busy machine
            row("token_cache/peak_resident", peak, "GB", 1.5),
        ]
    show(rows)
    write_rows(options.output, rows)


if __name__ == "__main__":
    run_command(main, Options, __doc__)
