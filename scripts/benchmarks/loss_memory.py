"""Memory and time of stage 2's loss, over those of the model's own loss.

    python scripts/benchmarks/loss_memory.py --output rows.json

The memory is the most that the loss and its gradients add to a process, each measured in a process of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from pipelines.options.option import option
from pipelines.options.parser import run_command
from scripts.benchmarks.figures import BenchmarkOptions, Row, row, show, write_rows

WIDTH = 512  # of the hidden states


@dataclass(kw_only=True)
class Options(BenchmarkOptions):
    """Memory of stage 2's loss."""

    vocabulary: int = option(131_072, "token ids", above_zero=True)
    tokens: int = option(4096, "tokens of the sequence", above_zero=True)


def measure_loss(which: str, vocabulary: int, tokens: int, pipe: Connection) -> None:
    """Send the most bytes that one loss and its gradients add to this process, their seconds, and the loss."""
    import resource

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lm.training.losses import NextTokenLoss

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=vocabulary, hidden_size=WIDTH, num_hidden_layers=0, num_attention_heads=8,
                         num_key_value_heads=8, intermediate_size=64, max_position_embeddings=tokens + 1)  # fmt: skip
    model = LlamaForCausalLM(config)
    ids = torch.randint(0, vocabulary, (1, tokens + 1))
    page = os.sysconf("SC_PAGE_SIZE")
    before = int(Path("/proc/self/statm").read_text().split()[1]) * page
    started = time.perf_counter()
    if which == "plain":
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    else:
        positions, weights = torch.arange(tokens + 1)[None], torch.ones(1, tokens + 1)
        loss = NextTokenLoss(model, [(0, vocabulary)])(ids, ids, positions, weights)["loss"] / tokens
    loss.backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pipe.send((peak - before, time.perf_counter() - started, float(loss.detach())))


def loss_memory(vocabulary: int = Options.vocabulary, tokens: int = Options.tokens) -> list[Row]:
    """Peak memory and seconds of our loss over those of the model's own loss."""
    if not Path("/proc/self/statm").exists():
        return [row(f"loss_memory/{vocabulary}", None, "of plain")]
    measured: dict[str, tuple[float, float, float]] = {}
    context = multiprocessing.get_context("spawn")
    for which in ("plain", "ours"):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=measure_loss, args=(which, vocabulary, tokens, sender))
        process.start()
        measured[which] = receiver.recv()
        process.join()
    (plain, plain_seconds, expected), (ours, our_seconds, loss) = measured["plain"], measured["ours"]
    if abs(loss - expected) > 1e-3 * expected:
        raise RuntimeError(f"the losses differ: {loss} and {expected}")
    print(f"loss: {ours / 1e6:.0f} MB and {our_seconds:.1f} s, plain {plain / 1e6:.0f} MB and {plain_seconds:.1f} s")
    return [row(f"loss_memory/{vocabulary}", ours / plain, "of plain", 0.25),
            row(f"loss_seconds/{vocabulary}", our_seconds / plain_seconds, "of plain")]  # fmt: skip


def main(options: Options) -> None:
    """Measure; a table on the screen, rows in the file."""
    options.set_threads()
    rows = loss_memory(options.vocabulary, options.tokens)
    show(rows)
    write_rows(options.output, rows)


if __name__ == "__main__":
    run_command(main, Options, __doc__)
