"""Our sampler beside transformers' `generate`, drawing with the same random language model of 51M parameters.

    python scripts/benchmarks/generation.py --output rows.json

Both draw 256 codes of a picture with guidance, taking turns; the rows are medians. The limit is what memory bandwidth
allows: the bytes that drawing a token must read (weights outside the embedding, output rows of the codes, keys and
values in use) over the read bandwidth measured in the same run. The cold start is that of `scripts/generate.py`. It,
the calls a picture, and several codes a call against one are measured only where --model is a trained model.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from pipelines.options.option import option
from pipelines.options.parser import run_command
from scripts.benchmarks import equal_codes, several_codes
from scripts.benchmarks.figures import BenchmarkOptions, Row, interleaved, row, seconds, show, write_rows

if TYPE_CHECKING:
    import torch

    from lm.vocabulary import MultimodalVocabulary

TEXT_TOKENS, NUM_CODES = 16_384, 8_192
PROMPT_LENGTH, TOKENS, GUIDANCE = 16, 256, 3.0
READ_MB = 256  # size of the buffer that the bandwidth is measured on


@dataclass(kw_only=True)
class Options(BenchmarkOptions):
    """Our sampler beside transformers' `generate`."""

    repeats: int = option(3, "how often each is measured; the rows are medians", above_zero=True)
    only: str | None = option(None, "one part, e.g. one_picture")
    model: str = option("sprites", "model that the cold start and several codes a call are measured on")
    pictures: int = option(500, "pictures that are drawn both ways for the rows equal/...", above_zero=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [part.__name__ for part in PARTS]
        if self.only not in (None, *names):
            raise ValueError(f"--only {self.only}: choose one of {', '.join(names)}")


def vocabulary_of(tokens_per_image: int) -> MultimodalVocabulary:
    """A vocabulary of 24,576 ids: the last 8,192 are image codes, each of them valid at every position."""
    from lm.vocabulary import MultimodalVocabulary, train_text_tokenizer

    side = range(tokens_per_image)
    zeros = [0 for _ in side]
    layout = {name: zeros for name in ("level", "depth", "row", "low")} | {"column": list(side)}
    return MultimodalVocabulary(
        tokenizer=train_text_tokenizer(["a dog"], 300), image_offset=TEXT_TOKENS, num_codes=NUM_CODES,
        bos_id=0, eos_id=1, pad_id=2, boi_id=3, eoi_id=4, image_size=[1, tokens_per_image],
        layout=layout | {"high": [NUM_CODES for _ in side]}, image_tokenizer_fingerprint="none",
    )  # fmt: skip


def random_model(size: str, dtype: torch.dtype, device: str = "cpu") -> Any:
    """A stock Llama with random weights; the size "25M" has 51M parameters with its input and output embeddings."""
    import torch

    from lm.model import build_configuration, build_model

    torch.manual_seed(0)
    configuration = build_configuration(vocabulary_of(TOKENS), size=size, max_positions=2048)
    return build_model(configuration).eval().to(device, dtype)


def prompts_of(count: int) -> list[list[int]]:
    """Prompts of 16 tokens that end with the beginning of a picture."""
    return [[0, *(10 + 50 * row + i for i in range(PROMPT_LENGTH - 2)), 3] for row in range(count)]


def ours(
    model: Any, pictures: int, tokens: int = TOKENS, temperature: float = 1.0, callback: Any = None
) -> torch.Tensor:
    """Codes (pictures, tokens) by our sampler."""
    import torch

    from lm.generation.images import generate_codes
    from lm.generation.sampling import SamplingSettings
    from lm.generation.task import DrawingTask

    settings = [SamplingSettings(GUIDANCE, temperature)] * tokens
    streams = [torch.Generator().manual_seed(seed) for seed in range(pictures)]
    return generate_codes(model, vocabulary_of(tokens), DrawingTask(prompts_of(pictures), streams, settings), callback)


def theirs(model: Any, pictures: int, temperature: float = 1.0) -> torch.Tensor:
    """Codes (pictures, 256) by `generate`, with its own guidance and the text ids masked."""
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    text = torch.zeros(TEXT_TOKENS + NUM_CODES)
    text[:TEXT_TOKENS] = -torch.inf

    class ImageTokensOnly(LogitsProcessor):
        """Masks the text ids by one addition a step; transformers' SuppressTokens rebuilds its mask at each step."""

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores + text

    prompts, negatives = torch.tensor(prompts_of(pictures)), torch.tensor([[0, 3]] * pictures)
    ids = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), guidance_scale=GUIDANCE,
        negative_prompt_ids=negatives, negative_prompt_attention_mask=torch.ones_like(negatives),
        logits_processor=LogitsProcessorList([ImageTokensOnly()]), do_sample=temperature > 0,
        top_k=0, top_p=1.0, min_new_tokens=TOKENS, max_new_tokens=TOKENS,
    )  # fmt: skip
    return ids[:, PROMPT_LENGTH:] - TEXT_TOKENS


def bytes_read(model: Any, rows: int, length: float) -> float:
    """Bytes that drawing a token must read: layers, output rows of the codes, and keys and values of `length` tokens a
    row."""
    config = model.config
    embedded = 2 * config.vocab_size * config.hidden_size
    weights = sum(parameter.numel() for parameter in model.parameters()) - embedded
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * length
    return model.dtype.itemsize * (weights + NUM_CODES * config.hidden_size + rows * cached)


def reader(device: str = "cpu") -> Callable[[], Any]:
    """A call that reads a buffer of READ_MB once."""
    import torch

    buffer = torch.ones(READ_MB * 250_000, device=device)
    return lambda: float(buffer.sum())


def share_of_limit(model: Any, took: float, read: float) -> float:
    """Share of the `took` seconds of one picture that reading alone would take; `read`: seconds to read READ_MB."""
    limit = TOKENS * bytes_read(model, 2, PROMPT_LENGTH + TOKENS / 2) / (READ_MB * 1e6 / read)
    return limit / took


def one_picture(options: Options) -> list[Row]:
    """One picture with guidance, in bf16 and in float32."""
    import torch

    models = {"float32": random_model("25M", torch.float32), "bf16": random_model("25M", torch.bfloat16)}
    calls: dict[str, Callable[[], Any]] = {"generate": lambda: theirs(models["float32"], 1), "read": reader()}
    for name, model in models.items():
        calls[name] = lambda model=model: ours(model, 1)
    took = interleaved(calls, options.repeats)
    same = ours(models["float32"], 1, temperature=0).equal(theirs(models["float32"], 1, temperature=0))
    rows = [row("one_picture/float32/same_greedy_tokens", float(same), "", 1, True)]
    for name, speedup, share in (("bf16", 6, 0.6), ("float32", 3, None)):
        rows.append(row(f"one_picture/{name}/speedup", took["generate"] / took[name], "x", speedup, True))
        limit = share_of_limit(models[name], took[name], took["read"])
        rows.append(row(f"one_picture/{name}/share_of_limit", limit, "", share, True))
    for name in ("generate", *models):
        rows.append(row(f"one_picture/{name}/tokens_per_second", TOKENS / took[name], "/s", None, True))
    return [*rows, row("read_bandwidth", READ_MB / 1e3 / took["read"], "GB/s", None, True)]


def eight_pictures(options: Options) -> list[Row]:
    """Eight pictures with guidance in one batch."""
    import torch

    default, half = random_model("25M", torch.float32), random_model("25M", torch.bfloat16)
    took = interleaved({"generate": lambda: theirs(default, 8), "bf16": lambda: ours(half, 8)}, options.repeats)
    return [
        row("eight_pictures/bf16/speedup", took["generate"] / took["bf16"], "x", 6, True),
        *(row(f"eight_pictures/{name}/tokens_per_second", 8 * TOKENS / duration, "/s", None, True)
          for name, duration in took.items()),
    ]  # fmt: skip


def growth(options: Options) -> list[Row]:
    """How the time of a token grows with the number of tokens before it; one picture in bf16."""
    import torch

    model = random_model("25M", torch.bfloat16)
    times: dict[int, list[float]] = {64: [], 1024: []}

    def long() -> None:
        stamps = [time.perf_counter()]
        ours(model, 1, 1024, callback=lambda *_: stamps.append(time.perf_counter()))
        steps = [after - before for before, after in zip(stamps, stamps[1:], strict=False)]
        times[64].append(median(steps[48:80]))
        times[1024].append(median(steps[-32:]))

    took = interleaved({"256": lambda: ours(model, 1), "1024": long}, options.repeats)
    slower = median(times[1024]) / median(times[64])
    more = bytes_read(model, 2, PROMPT_LENGTH + 1008) / bytes_read(model, 2, PROMPT_LENGTH + 64)
    return [
        row("growth/1024_over_64", slower / more, "x", 1.2),
        row("growth/total_1024_over_256", took["1024"] / took["256"], "x", 5),
    ]


def calls(options: Options) -> list[Row]:
    """Calls of the model for a picture."""
    return several_codes.calls(options.model)


def calls_a_code(options: Options) -> list[Row]:
    """Calls of the model for a code of its own data set's pictures."""
    return several_codes.calls_a_code(options.model)


def equal(options: Options) -> list[Row]:
    """Pictures whose codes, several a call, are those of drawing one by one."""
    return equal_codes.equal(options.model, options.pictures)


def several(options: Options) -> list[Row]:
    """Seconds for one picture and for eight, one code a call over several."""
    return several_codes.over_one_code_a_call(options.model, options.repeats)


def captions(options: Options) -> list[Row]:
    """Seconds for the caption of one picture, one token a call over several."""
    return several_codes.captions_over_one_token_a_call(options.model, options.repeats)


def cold_start(options: Options) -> list[Row]:
    """Seconds from the command line to four pictures on disk; the first turn loads the files into the page cache."""
    took = None
    if several_codes.is_model(options.model):
        with tempfile.TemporaryDirectory() as folder:
            script = Path(__file__).resolve().parents[1] / "generate.py"
            command = [sys.executable, str(script), "--model", options.model, "a dog", "--output", folder + "/dog.png"]
            took = interleaved({"cold": lambda: subprocess.run(command, check=True, capture_output=True)}, 3)["cold"]
    return [row("cold_start", took, "s", None if took is None else 6)]


def gpu(options: Options) -> list[Row]:
    """One picture by a random model of 1B parameters, in bf16 on a GPU."""
    import torch

    if not torch.cuda.is_available():
        return [row("gpu/1B/share_of_limit", None, "", None, True)]
    model = random_model("1B", torch.bfloat16, "cuda")
    read = reader("cuda")
    took = interleaved({"ours": lambda: ours(model, 1).cpu(), "read": read}, options.repeats)
    took["read"] = min(seconds(read) for _ in range(20))
    return [row("gpu/1B/share_of_limit", share_of_limit(model, took["ours"], took["read"]), "", 0.6, True)]


PARTS = (one_picture, eight_pictures, growth, calls, calls_a_code, equal, several, captions, cold_start, gpu)


def main(options: Options) -> None:
    """Measure; a table on the screen, rows in the file."""
    options.set_threads()
    rows: list[Row] = []
    for part in PARTS:
        if options.only in (None, part.__name__):
            part_rows = part(options)
            show(part_rows)
            rows += part_rows
    write_rows(options.output, rows)


if __name__ == "__main__":
    run_command(main, Options, __doc__)
