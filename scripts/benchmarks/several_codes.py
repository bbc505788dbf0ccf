"""Rows of `scripts/benchmarks/generation.py`: several codes a call of the model against one, by a trained model."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from pipelines.model_folder import INDEX_FILE, shipped_folder
from scripts.benchmarks.figures import Row, interleaved, row

if TYPE_CHECKING:
    import torch

CAPTIONS, OWN_CAPTIONS, CODES_PER_CALL, FEW_CODES, SEED = 200, 50, 16, 4, 9
SEVERAL_TURNS = 5  # drawings that one measurement takes


SETTINGS: dict[str, dict[str, float]] = {"guidance_2": {"guidance_scale": 2.0, "temperature": 1.0}, "own_settings": {}}


def calls(folder: str) -> list[Row]:
    """Calls of the model for a picture, and whether its codes are those of drawing one by one: CAPTIONS captions,
    each alone, at guidance 2 and temperature 1 and at the model's own settings."""
    if not is_model(folder):
        return [row("calls/sprites", None, "", None)]
    pipe, captions = trained_model(folder)
    rows = []
    for setting, name, target in (("guidance_2", "sprites", 10), ("own_settings", "own_settings", None)):
        several, one_by_one, same = compared(pipe, captions, SETTINGS[setting])
        rows.append(row(f"calls/{name}", several, "", target))
        rows.append(row(f"calls/{name}/one_by_one", one_by_one, "", None))
        rows.append(row(f"calls/{name}/same_codes", same, "", 1, True))
    return rows


def calls_a_code(folder: str) -> list[Row]:
    """Calls of the model for a code of its own data set's pictures: OWN_CAPTIONS captions in its token cache, each
    alone, at the same settings."""
    from lm.data.token_cache import TokenCache

    cache = Path(folder) / "token_cache" / "train"
    if not is_model(folder) or not cache.is_dir():
        return [row("calls_a_code", None, "", 0.75)]
    pipe, _ = trained_model(folder)
    captions = list(islice(TokenCache(cache).some_texts(OWN_CAPTIONS), OWN_CAPTIONS))
    rows = []
    for name, settings in SETTINGS.items():
        several, _, same = compared(pipe, captions, settings)
        rows.append(row(f"calls_a_code/{name}", several / pipe.vocabulary.tokens_per_image, "", 0.75))
        rows.append(row(f"calls_a_code/{name}/same_codes", same, "", 1, True))
    return rows


def compared(pipe: Any, captions: list[str], settings: dict[str, Any]) -> tuple[float, float, float]:
    """Mean calls of the model for a picture, at most CODES_PER_CALL codes in each and one by one; and the share of
    pictures that have the same codes both ways."""
    drawn = {
        codes: [drawn_alone(pipe, caption, seed, codes, settings) for seed, caption in enumerate(captions)]
        for codes in (1, CODES_PER_CALL)
    }
    same = [one[0].equal(several[0]) for one, several in zip(*drawn.values(), strict=True)]
    return mean(count for _, count in drawn[CODES_PER_CALL]), mean(count for _, count in drawn[1]), mean(same)


def is_model(folder: str) -> bool:
    """Whether there is a trained model: a folder, or the name of one that comes with Tessera."""
    return ((shipped_folder(folder) or Path(folder)) / INDEX_FILE).is_file()


def trained_model(folder: str) -> tuple[Any, list[str]]:
    """The model's pipeline, and captions of sprites. A model without a guess table learns one of its token cache."""
    from lm.data.token_cache import TokenCache
    from lm.training.guess_table import learn_guess_table
    from pipelines import TextToImagePipeline
    from tokenizer_image.sprites.captions import describe
    from tokenizer_image.sprites.scenes import sample_scene

    pipe = TextToImagePipeline.from_pretrained(folder)
    cache = Path(folder) / "token_cache" / "train"
    if (pipe.guess_table is None or not len(pipe.guess_table.phrases.entries)) and cache.is_dir():
        pipe.guess_table = learn_guess_table(TokenCache(cache), pipe.vocabulary)
    return pipe, [
        describe(sample_scene(index, seed=SEED), random.Random(index), full=True) for index in range(CAPTIONS)
    ]


def drawn_alone(
    pipe: Any, caption: str | list[str], seed: int, codes_per_call: int | None, settings: dict[str, Any]
) -> tuple[torch.Tensor, int]:
    """Codes of a picture, or of one for each caption, and the calls of the model that they took."""
    from lm.generation.images import draw
    from pipelines.drawing.request import DrawingRequest

    request = DrawingRequest(caption, seed=seed, codes_per_call=codes_per_call, **settings)
    *_, last = draw(pipe.model, pipe.vocabulary, request.task(pipe))
    return last.codes, last.calls


def over_one_code_a_call(folder: str, repeats: int) -> list[Row]:
    """Seconds for one picture and for eight by a trained model of 25M parameters, one code a call over
    FEW_CODES for one, and over the default for eight.

    A smaller model is widened to that size with zeros (`widened`), which leaves what it draws as it is.
    """
    names = [f"{count}/25M/over_one_code_a_call" for count in ("one_picture", "eight_pictures")]
    if not is_model(folder):
        return [row(name, None, "x", None, True) for name in names]
    pipe, captions = trained_model(folder)
    pipe.model = widened(pipe.model)
    settings = {"guidance_scale": 2.0, "temperature": 1.0}
    takes: dict[str, Callable[[], Any]] = {}
    for name, count in zip(names, (1, 8), strict=True):
        for kind, codes in (("one", 1), ("several", FEW_CODES if count == 1 else None)):

            def take(count: int = count, codes: int | None = codes) -> None:
                for seed in range(SEVERAL_TURNS):
                    drawn_alone(pipe, captions[count * seed : count * (seed + 1)], seed, codes, settings)

            takes[f"{name} {kind}"] = take
    took = interleaved(takes, repeats)
    return [
        row(name, took[f"{name} one"] / took[f"{name} several"], "x", target, True)
        for name, target in zip(names, (2, 1), strict=True)
    ]


def captions_over_one_token_a_call(folder: str, repeats: int) -> list[Row]:
    """Seconds for the caption of one picture by the same model, one token a call over FEW_CODES; and whether it is the
    same caption."""
    name = "one_caption/25M/over_one_token_a_call"
    if not is_model(folder):
        return [row(name, None, "x", None, True)]
    from pipelines import ImageToTextPipeline

    drawing, captions = trained_model(folder)
    pipe = ImageToTextPipeline(drawing.image_tokenizer, widened(drawing.model), drawing.vocabulary, drawing.guess_table)
    pictures = drawing(captions[: 4 * SEVERAL_TURNS], seed=SEED).images

    def take(tokens: int) -> list[str]:
        return [pipe(picture, tokens_per_call=tokens).texts[0] for picture in pictures]

    took = interleaved({str(tokens): lambda tokens=tokens: take(tokens) for tokens in (1, FEW_CODES)}, repeats)
    same = mean(one == several for one, several in zip(take(1), take(FEW_CODES), strict=True))
    return [
        row(name, took["1"] / took[str(FEW_CODES)], "x", None, True),
        row("one_caption/25M/same_text", same, "", 1, True),
    ]


def widened(model: Any, size: str = "25M") -> Any:
    """The same Llama with the layers and the widths of `size`, all that is new being 0: it computes the same logits.

    A model that has that many parameters is given back as it is.
    """
    import torch
    from transformers import LlamaForCausalLM

    from lm.model import SIZES

    layers, hidden, inner = SIZES[size]
    own = model.config
    if own.num_hidden_layers >= layers and own.hidden_size >= hidden:
        return model
    heads = hidden // own.head_dim
    values = own.to_dict() | {
        "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": inner, "num_attention_heads": heads,
        "num_key_value_heads": heads, "rms_norm_eps": own.rms_norm_eps * own.hidden_size / hidden,
    }  # fmt: skip
    large = LlamaForCausalLM(type(own).from_dict(values)).eval()
    small = model.state_dict()
    with torch.no_grad():
        for name, weight in large.state_dict().items():
            weight.zero_()
            if name in small:
                weight[tuple(slice(0, side) for side in small[name].shape)] = small[name]
            if "norm" in name and name in small:  # the mean square is over more numbers, of which the new ones are 0
                weight *= (own.hidden_size / hidden) ** 0.5
    return large
