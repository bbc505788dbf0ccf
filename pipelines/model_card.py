"""The model card: the README.md of a model on the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from transformers import PreTrainedModel

from lm.sequences import DESCRIBING, DRAWING_CAPTIONS, EDITING
from lm.vocabulary import MultimodalVocabulary
from tokenizer_image.signals.settings import WORDS, SignalSettings

EDIT = """
It has learned to change pictures, too (`edit`):

```python
pipe.edit(Image.open("dog.png"), "make it blue").images[0].save("blue.png")
```
"""
CARD = """---
license: {license}
library_name: tessera
pipeline_tag: {tag}
tags:
- {tag}
- vq-vae
- autoregressive
{widget}---

# {title}

Draws {what} from captions. {tokenizer} (`image_tokenizer/`, a VQ-VAE) turns
{kind} into integers; a language model (`lm/`, a stock {architecture}) writes them after a caption. Trained
with Tessera.

## Use

```python
from pipelines import {pipeline}

pipe = {pipeline}.from_pretrained("{repo_id}")
{call}
{describing}```
{edit}
The weights are safetensors; loading runs no code from this repository. `lm/` alone is an ordinary
transformers causal language model.
{elsewhere}
## Facts

{facts}
{training}{figures}"""
ELSEWHERE = """
By diffusers and by transformers' Auto classes, which run the short `pipeline.py` and
`image_tokenizer/modeling_tessera.py` of this repository; `tessera` must be installed:

```python
from diffusers import DiffusionPipeline
from transformers import AutoImageProcessor, AutoModel

pipe = DiffusionPipeline.from_pretrained("{repo_id}", custom_pipeline="{repo_id}", trust_remote_code=True)
pipe("a dog").images[0].save("dog.png")
tokenizer = AutoModel.from_pretrained("{repo_id}", subfolder="image_tokenizer", trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained("{repo_id}", subfolder="image_tokenizer", trust_remote_code=True)
```
"""
# What differs between the kinds of codes: the Hub's name of the task, what codes are of, and how one is drawn.
CALLS = {
    "pictures": ("text-to-image", 'pipe("a dog").images[0].save("dog.png")'),
    "sounds": ("text-to-audio", 'samples = pipe("a low rising tone").audio[0]  # float32 in [-1, 1], {rate} a second'),
    "series": ("time-series-forecasting", """forecast = pipe.forecast(past)  # (channels, steps), NaN in gaps
low, high = forecast.interval(0.8)  # of the next {horizon} steps; forecast.median
series = pipe("a rising trend and a daily season").series[0]"""),
    "videos": ("text-to-video", 'frames = pipe("a red dog moves to the right").frames[0]  # uint8 (T, H, W, 3)'),
}  # fmt: skip
DESCRIBING_CODE = """
from PIL import Image
from pipelines import ImageToTextPipeline

print(ImageToTextPipeline.from_pretrained("{repo_id}")(Image.open("dog.png")).texts[0])
"""


def model_card(
    model: PreTrainedModel,
    vocabulary: MultimodalVocabulary,
    repo_id: str,
    *,
    license: str = "unknown",
    figures: dict[str, Any] | str | None = None,
    training: Sequence[str] = (),
    has_hub_files: bool = False,
    prompts: Sequence[str] = (),
    signals: SignalSettings | None = None,
) -> str:
    """The card's text.

    Args:
        repo_id: what `from_pretrained` gets; its last part is the title.
        license: of the weights, as the Hub spells it.
        figures: measurements by name, nested to any depth; numbers and texts are listed, other values are left out. Or
            a text, which is shown as it stands.
        training: the commands that trained the model.
        has_hub_files: say how to load the folder by diffusers and transformers (`pipelines.hub_files`).
        prompts: which the Hub's widget, and the page of scripts/serve.py, offer to try. A model that does not draw from
            captions shows none.
        signals: what the codes are of, where it is not pictures.
    """
    height, width = vocabulary.image_size
    kind, size = "pictures", f"{height}x{width}"
    if signals is not None:
        kind = WORDS[signals.signal]
        size = f"{width} samples at {signals.rate} Hz" if signals.rate else f"{width} steps"
        if signals.signal == "video":
            size = f"{signals.length} frames of {width}x{width}"
    tag, call = task_of(signals), CALLS[kind][1].format(**({} if signals is None else signals.to_dict()))
    edits = bool(set(EDITING) & set(vocabulary.formats))
    facts = {
        "picture"
        if signals is None
        else "example": f"{size}, {vocabulary.tokens_per_image} codes out of {vocabulary.num_codes}",
        "language model": f"{type(model).__name__}, {model.num_parameters():,} parameters",
        "text tokens": f"{vocabulary.image_offset:,}",
        "sequence formats": ", ".join(vocabulary.formats),
        "default guidance scale": vocabulary.default_guidance,
        "default temperature": vocabulary.default_temperature,
        **({"default image guidance scale": vocabulary.default_image_guidance} if edits else {}),
        "image tokenizer's fingerprint": f"`{vocabulary.image_tokenizer_fingerprint}`",
    }
    describes = signals is None and bool(set(vocabulary.formats) & set(DESCRIBING))
    measured = f"```\n{figures}\n```" if isinstance(figures, str) else _table(_flatten(figures or {}))
    commands = "\n".join(training)
    return CARD.format(
        license=license,
        widget=_widget(prompts) if set(vocabulary.formats) & set(DRAWING_CAPTIONS) else "",
        title=repo_id.split("/")[-1],
        repo_id=repo_id,
        tag=tag,
        kind=kind,
        what=f"{size} pictures" if signals is None else f"{kind} of {size}",
        tokenizer="An image tokenizer" if signals is None else "A tokenizer",
        pipeline="TextToImagePipeline" if signals is None else "TextToSignalPipeline",
        call=call,
        architecture=type(model).__name__,
        facts=_table(facts),
        elsewhere=ELSEWHERE.format(repo_id=repo_id) if has_hub_files else "",
        describing=DESCRIBING_CODE.format(repo_id=repo_id) if describes else "",
        edit=EDIT if edits else "",
        training=f"\n## Training\n\n```sh\n{commands}\n```\n" if commands else "",
        figures=f"\n## Figures\n\n{measured}\n" if figures else "",
    )


def _widget(prompts: Sequence[str]) -> str:
    """The header's entry of prompts to try, in the Hub's form."""
    if not prompts:
        return ""
    entry = {"widget": [{"text": text} for text in prompts]}
    return yaml.safe_dump(entry, allow_unicode=True, sort_keys=False, width=1000)


def task_of(signals: SignalSettings | None) -> str:
    """The Hub's name of what a model does, of pictures or of these signals."""
    return CALLS["pictures" if signals is None else WORDS[signals.signal]][0]


def _flatten(figures: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} to {"a b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name} ")
        elif isinstance(value, (int, float, str)):
            flat[f"{prefix}{name}"] = f"{value:.4g}" if isinstance(value, float) else value
    return flat


def _table(values: dict[str, Any]) -> str:
    lines = [f"| {name} | {value} |" for name, value in values.items()]
    return "\n".join(["| what | value |", "|---|---|", *lines])
