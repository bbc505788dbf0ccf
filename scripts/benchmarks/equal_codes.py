"""Rows of `scripts/benchmarks/generation.py`: pictures drawn several codes a call with the codes of drawing one by one.

Each picture has another of `SETTINGS`, of the models and of their sizes, in turn: a trained model, and three random
ones of other architectures that have what it may lack (levels, depths, several sizes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scripts.benchmarks.figures import Row, row
from scripts.benchmarks.several_codes import is_model, trained_model

if TYPE_CHECKING:
    import torch

    from lm.generation.guess_table import GuessTable
    from lm.vocabulary import MultimodalVocabulary, Size

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "likeliest": {"temperature": 0},
    "temperature": {"temperature": 0.5},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.1},
    "guidance": {"guidance_scale": 2.0},
    "all": {"guidance_scale": 1.5, "temperature": 0.8, "top_k": 9, "top_p": 0.9, "min_p": 0.01},
    "guidance_schedule": {"guidance_scale": lambda position: 1 + position / 8},
    "by_level_or_depth": {"temperature": [1.0, 0.4], "top_k": [5, 0], "guidance_scale": 2.0},
    "forced": {"guidance_scale": 2.0},
}
CODES_PER_CALL = (2, 4, 8, 16)
FORCED_EVERY = 3  # of the setting "forced", one in so many codes is given
NOISE = 0.15  # standard deviation, of a random model's weights


@dataclass(frozen=True)
class _Drawer:
    """A model with what draws a picture of one size of it."""

    model: Any
    vocabulary: MultimodalVocabulary
    guess_table: GuessTable | None
    size: Size
    captions: Sequence[str]

    def takes(self, setting: str) -> bool:
        """Whether its pictures have two levels or depths, if the setting is one for each of two."""
        layout = self.vocabulary.picture(self.size).layout
        kinds = max(len(set(layout["level"])), len(set(layout["depth"])))
        return setting != "by_level_or_depth" or kinds == 2

    def codes(self, setting: str, seed: int, codes_per_call: int) -> torch.Tensor:
        """Codes (1, T) of a picture in a setting of SETTINGS."""
        import torch

        from lm.generation.images import generate_codes
        from lm.generation.sampling import SamplingSchedule
        from lm.generation.task import DrawingTask
        from lm.sequences import image_prompt

        layout = self.vocabulary.picture(self.size).layout
        task = DrawingTask(
            [image_prompt(self.vocabulary, self.captions[seed % len(self.captions)], self.size)],
            [torch.Generator().manual_seed(seed)],
            SamplingSchedule(**SETTINGS[setting]).by_position(layout),
            size=self.size,
            forced=_forced(layout, seed) if setting == "forced" else None,
            codes_per_call=codes_per_call,
            guess_table=self.guess_table,
        )
        return generate_codes(self.model, self.vocabulary, task)


def equal(folder: str, pictures: int) -> list[Row]:
    """How many of `pictures` have all codes equal, in float32, and how many were drawn in each setting."""
    import torch

    drawers = [*_trained(folder), *_random()]
    cases = [(drawer, name) for name in SETTINGS for drawer in drawers if drawer.takes(name)]
    same, drawn = dict.fromkeys(SETTINGS, 0), dict.fromkeys(SETTINGS, 0)
    with torch.inference_mode():
        for seed in range(pictures):
            drawer, name = cases[seed % len(cases)]
            several = drawer.codes(name, seed, CODES_PER_CALL[seed // len(cases) % len(CODES_PER_CALL)])
            same[name] += several.equal(drawer.codes(name, seed, 1))
            drawn[name] += 1
    rows = [row("equal/pictures", sum(same.values()), f"of {pictures}", pictures, True)]
    return rows + [row(f"equal/{name}", same[name], f"of {drawn[name]}", drawn[name], True) for name in SETTINGS]


def _forced(layout: Any, seed: int) -> torch.Tensor:
    """Codes (1, T): one in FORCED_EVERY drawn evenly from what can be there, -1 elsewhere."""
    import torch

    low, high = torch.tensor(layout["low"]), torch.tensor(layout["high"])
    share = torch.rand(len(low), generator=torch.Generator().manual_seed(seed))
    given = (torch.arange(len(low)) + seed) % FORCED_EVERY == 0
    return torch.where(given, low + (share * (high - low)).long(), -1)[None]


def _trained(folder: str) -> list[_Drawer]:
    """The trained model at each of its sizes; none where there is none."""
    if not is_model(folder):
        return []
    pipe, captions = trained_model(folder)
    model = pipe.model.float()
    return [_Drawer(model, pipe.vocabulary, pipe.guess_table, size, captions) for size in pipe.vocabulary.layouts]


def _random() -> list[_Drawer]:
    """Random models of two levels, of two depths, and of two sizes, through compiled code and their own forward."""
    from tokenizer_image.layout import build_layout

    levels = build_layout([(2, 2), (4, 4)], [[32], [64]]).to_dict()
    depths = build_layout([(4, 4)], [[32, 64]]).to_dict()
    square, wide = (build_layout([(4, columns)], [[64]]).to_dict() for columns in (4, 8))
    return [
        *_random_drawers("llama", {(16, 16): levels}, 96),
        *_random_drawers("qwen3", {(16, 16): depths}, 96),
        *_random_drawers("gpt2", {(16, 16): square, (16, 32): wide}, 64),
    ]


def _random_drawers(architecture: str, layouts: dict[Size, Any], num_codes: int) -> list[_Drawer]:
    """A random model for pictures of some sizes, each with its layout of codes; the first size is the default."""
    import torch

    from lm.model import build_configuration, build_model
    from lm.vocabulary import MultimodalVocabulary, train_text_tokenizer

    captions = ["a red dog", "a blue cat on grass", "", "a small green star"]
    (size, layout), *others = layouts.items()
    vocabulary = MultimodalVocabulary.build(
        train_text_tokenizer(captions, 300), num_codes=num_codes, layout=layout, image_size=list(size),
        image_tokenizer_fingerprint="none", other_layouts=dict(others),
    )  # fmt: skip
    torch.manual_seed(0)
    model = build_model(
        build_configuration(
            vocabulary, architecture=architecture, num_layers=2, hidden_size=32, intermediate_size=64, num_heads=2,
            max_positions=96,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():  # as at the start of training, it would hardly read the prompt
            parameter.add_(NOISE * torch.randn_like(parameter))
    return [_Drawer(model, vocabulary, None, one, captions) for one in layouts]
