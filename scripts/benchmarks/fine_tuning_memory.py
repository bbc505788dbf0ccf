"""Peak memory of fine-tuning by adapters over that of fine-tuning all weights, and of both beside what --dry_run says.

    python scripts/benchmarks/fine_tuning_memory.py --output rows.json

A language model with random weights (Qwen3, 12 layers of 768, tied) is saved, read again and trained for a few steps of
stage 2, each way in a process of its own. The memory is the most that the process has held, Python and its libraries
included; beside the estimate stands what was added to them.
"""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipelines.options.option import option
from pipelines.options.parser import run_command
from scripts.benchmarks.figures import BenchmarkOptions, Row, row, show, write_rows

STEPS = 3
TARGET = 0.5


@dataclass(kw_only=True)
class Options(BenchmarkOptions):
    """Memory of fine-tuning."""

    num_layers: int = option(12, "layers of the language model", above_zero=True)
    hidden_size: int = option(768, "its width", above_zero=True)
    vocabulary: int = option(32_768, "its token ids", above_zero=True)
    lora_rank: int = option(16, "of the adapters", above_zero=True)
    batch_size: int = option(8, "sequences a step", above_zero=True)
    gradient_checkpointing: bool = option(False, "compute layers again in the backward pass, both ways")
    mixed_precision: str = option("no", "'no' or 'bf16'", choices=("no", "bf16"))


def save_parts(folder: Path, options: Options) -> None:
    """Write an image tokenizer (128 codes a picture), and a language model with its text tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from lm.vocabulary import train_text_tokenizer
    from tokenizer_image import VQVAE, VQVAEConfig
    from tokenizer_image.preprocessing import Preprocessing

    torch.manual_seed(0)
    settings = {"hidden_sizes": [8, 16], "num_res_blocks": 1, "code_dim": 4, "codebook_sizes": [512, 512]}
    preprocessing = Preprocessing(image_size=64).to_dict()
    VQVAE(VQVAEConfig(image_size=64, preprocessing=preprocessing, **settings)).save_pretrained(folder / "tokenizer")
    width = options.hidden_size
    config = Qwen3Config(
        vocab_size=options.vocabulary, hidden_size=width, intermediate_size=width * 8 // 3,
        num_hidden_layers=options.num_layers, num_attention_heads=width // 64, num_key_value_heads=width // 64,
        head_dim=64, max_position_embeddings=1024, tie_word_embeddings=True,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder / "lm")
    text = train_text_tokenizer(["a red dog"] * 2, 300)
    text.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    text.save_pretrained(folder / "lm")


def run_options(folder: str, options: Options, rank: int | None) -> Any:
    """Those of the run whose memory is measured."""
    from pipelines.options.language_model import LanguageModelOptions

    return LanguageModelOptions(
        image_tokenizer=f"{folder}/tokenizer", lm_name_or_path=f"{folder}/lm", lora_rank=rank, max_caption_tokens=32,
        batch_size=options.batch_size, mixed_precision=options.mixed_precision,
        gradient_checkpointing=options.gradient_checkpointing,
    )  # fmt: skip


def measure_training(folder: str, options: Options, rank: int | None, pipe: Connection) -> None:
    """Send the parameters, the most bytes that this process has held, and the most that training added to it."""
    import torch

    from lm.model import recompute_layers
    from lm.pretrained import extend_model, ids_taken, load_pretrained
    from lm.training.attention import use_fastest_attention
    from lm.training.losses import NextTokenLoss
    from pipelines.training.averages import AveragedWeights
    from pipelines.training.few_pictures import USUAL_DECAY
    from pipelines.training.fine_tuning import adapt, frozen_dtype
    from pipelines.training.language_model_step import train_step
    from pipelines.training.optimizers import optimizers_of
    from pipelines.training.run_folder import peak_memory
    from pipelines.training.sequences import longest_sequence
    from pipelines.training.start import start_accelerator
    from pipelines.training.vocabulary import given_tokenizer, joint_vocabulary
    from tokenizer_image.registry import load_tokenizer

    settings = run_options(folder, options, rank)
    settings.cpu_threads = options.cpu_threads
    accelerator = start_accelerator(settings)
    tokenizer = load_tokenizer(settings.image_tokenizer)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    vocabulary = joint_vocabulary(given_tokenizer(settings), settings, tokenizer)
    model = load_pretrained(settings.lm_name_or_path, frozen_dtype(settings, options.mixed_precision))
    extend_model(model, vocabulary, ids_taken(given_tokenizer(settings)))
    parameters = model.num_parameters()
    if rank:
        adapt(settings, model, vocabulary)
    length = longest_sequence(settings, vocabulary.longest_picture)
    use_fastest_attention(model, length)
    if settings.gradient_checkpointing:
        recompute_layers(model)
    loss = NextTokenLoss(model.train(), vocabulary.id_ranges)
    optimizers = optimizers_of(settings, model, 1e-4, (0.9, 0.95), USUAL_DECAY)
    prepared, averages = accelerator.prepare(loss), AveragedWeights(model, 0.9, trained_only=bool(rank))
    picture = [vocabulary.boi_id, *(low + vocabulary.image_offset for low in vocabulary.layout["low"])]
    ids = torch.tensor([[vocabulary.bos_id] * (length - len(picture)) + picture] * options.batch_size)
    codes = ids >= vocabulary.image_offset
    for step in range(STEPS):
        batch = {
            "input_ids": ids, "labels": ids.masked_fill(~codes, -100), "loss_weights": codes.float(),
            "position_ids": torch.arange(length).repeat(options.batch_size, 1),
        }  # fmt: skip
        train_step(
            accelerator, loss, prepared, optimizers, [batch], loss_shares=(0.0, 1.0), pad_id=vocabulary.pad_id,
            max_grad_norm=1.0,
        )  # fmt: skip
        averages.update(step)
    peak = peak_memory() * 1e9
    pipe.send((parameters, peak, peak - before))


def fine_tuning_memory(options: Options) -> list[Row]:
    """Peak memory of adapters over that of all weights; and what --dry_run says over what was measured, of both."""
    if not Path("/proc/self/statm").exists():
        return [row("fine_tuning/lora/peak_memory", None, "of full", TARGET)]
    measured: dict[str, tuple[int, float, float]] = {}
    context = multiprocessing.get_context("spawn")
    ranks = {"full": None, "lora": options.lora_rank}
    with TemporaryDirectory() as folder:
        saving = context.Process(target=save_parts, args=(Path(folder), options))
        saving.start()
        saving.join()
        for name, rank in ranks.items():
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=measure_training, args=(folder, options, rank, sender))
            process.start()
            measured[name] = receiver.recv()
            process.join()
        rows = [row("fine_tuning/parameters", measured["full"][0] / 1e6, "M")]
        from pipelines.training.memory import estimate_memory

        for name, rank in ranks.items():
            _, peak, added = measured[name]
            estimate = estimate_memory(run_options(folder, options, rank)).training
            print(f"{name}: {peak / 1e9:.2f} GB, training added {added / 1e9:.2f}; estimate {estimate / 1e9:.2f} GB")
            rows += [
                row(f"fine_tuning/{name}/peak_memory", peak / 1e9, "GB"),
                row(f"fine_tuning/{name}/estimate_over_measured", estimate / added, ""),
            ]
    share = measured["lora"][1] / measured["full"][1]
    return [*rows, row("fine_tuning/lora/over_full", share, "of full", TARGET)]


def main(options: Options) -> None:
    """Measure; a table on the screen, rows in the file."""
    options.set_threads()
    rows = fine_tuning_memory(options)
    show(rows)
    write_rows(options.output, rows)


if __name__ == "__main__":
    run_command(main, Options, __doc__)
