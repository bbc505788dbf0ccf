"""The registry of image tokenizers: the `model_type` in a folder's config.json chooses the class that loads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tokenizer_image.autoencoder import Autoencoder
from tokenizer_image.autoencoder_configuration import AutoencoderConfig
from tokenizer_image.bottlenecks.kinds import QUANTIZER
from tokenizer_image.configuration import VQVAEConfig
from tokenizer_image.layout import ImageTokenizer
from tokenizer_image.quantizers.kinds import KINDS
from tokenizer_image.vqvae import VQVAE

TOKENIZERS: dict[str, type[ImageTokenizer]] = {VQVAEConfig.model_type: VQVAE}
AUTOENCODER = AutoencoderConfig.model_type
REMEDY = "give the --output_dir of scripts/train_tokenizer.py"


def register_tokenizer(model_type: str, tokenizer_class: type[ImageTokenizer]) -> None:
    """Register a class of image tokenizers for commands and pipelines.

    A process that loads a tokenizer or a model with it must have registered its class before: nothing is imported from
    a folder.

    Args:
        model_type: the entry of that name in the config.json that `tokenizer_class.save_pretrained` writes.
        tokenizer_class: has the members of `ImageTokenizer`.

    Raises:
        ValueError: the name is taken.
        TypeError: the class lacks a member.
    """
    if TOKENIZERS.get(model_type, tokenizer_class) is not tokenizer_class:
        raise ValueError(f"image tokenizer {model_type!r} is registered already: choose another model_type")
    members = [name for name in dir(ImageTokenizer) if not name.startswith("_")]
    missing = [name for name in members if not hasattr(tokenizer_class, name)]
    if missing:
        raise TypeError(f"{tokenizer_class.__name__} is no image tokenizer: it lacks {', '.join(missing)}")
    TOKENIZERS[model_type] = tokenizer_class


def load_tokenizer(folder: str | Path, **settings: Any) -> ImageTokenizer:
    """Load a tokenizer folder, or the image_tokenizer/ of a model folder, in eval mode.

    Args:
        settings: configuration fields to override, such as `quantizer_options`; never sizes, which the weights fix.

    Raises:
        ValueError: the folder has no tokenizer of a registered class, but for example an autoencoder without codes, or
            weights that do not match its configuration.
    """
    path, model_type = _find(folder)
    if model_type == AUTOENCODER:
        raise ValueError(
            f"{folder} is an autoencoder whose bottleneck, {_bottleneck_of(path)!r}, has no codes, which a language "
            f"model could learn: give a tokenizer that was trained with --bottleneck {QUANTIZER}, of any --quantizer "
            f"({', '.join(KINDS)})"
        )
    if model_type not in TOKENIZERS or not (path / "model.safetensors").is_file():
        kinds = ", ".join(TOKENIZERS)
        raise ValueError(
            f"{folder} is not an image tokenizer (no config.json with a registered model_type ({kinds}), or no "
            f"weights): {REMEDY}, or register the class first (tokenizer_image.register_tokenizer)"
        )
    tokenizer_class: Any = TOKENIZERS[model_type]
    if not issubclass(tokenizer_class, PreTrainedModel):
        return tokenizer_class.from_pretrained(str(path), **settings)
    return _load(tokenizer_class, path, folder, settings)


def load_autoencoder(folder: str | Path, **settings: Any) -> Autoencoder:
    """Load the folder of an autoencoder whose bottleneck is no quantizer, in eval mode.

    Args:
        settings: configuration fields to override, such as `bottleneck_options`; never sizes, which the weights fix.

    Raises:
        ValueError: the folder has none, or weights that do not match its configuration.
    """
    path, model_type = _find(folder)
    if model_type != AUTOENCODER or not (path / "model.safetensors").is_file():
        has = f"a {TOKENIZERS[model_type].__name__}" if model_type in TOKENIZERS else "no model"
        raise ValueError(
            f"{folder} has {has}, not an autoencoder: give the --output_dir of scripts/train_tokenizer.py "
            "--bottleneck with another name than quantizer"
        )
    return _load(Autoencoder, path, folder, settings)


def is_autoencoder(folder: str | Path) -> bool:
    """Whether a folder has an autoencoder whose bottleneck is no quantizer, for `load_autoencoder`.

    Raises:
        ValueError: there is no such folder.
    """
    return _find(folder)[1] == AUTOENCODER


def load_image_model(folder: str | Path, **settings: Any) -> Any:
    """What scripts/train_tokenizer.py has left in a folder: an `ImageTokenizer` (`load_tokenizer`) or an `Autoencoder`
    (`load_autoencoder`)."""
    return (load_autoencoder if is_autoencoder(folder) else load_tokenizer)(folder, **settings)


def _find(folder: str | Path) -> tuple[Path, str | None]:
    """Where a model's config.json is, and the model_type that it names; None without.

    Raises:
        ValueError: there is no such folder.
    """
    path = Path(folder)
    if (path / "image_tokenizer" / "config.json").is_file():
        path = path / "image_tokenizer"
    if not path.is_dir():
        raise ValueError(f"there is no image tokenizer folder {folder}: {REMEDY}")
    try:
        return path, json.loads((path / "config.json").read_text()).get("model_type")
    except (OSError, ValueError, AttributeError):
        return path, None


def _bottleneck_of(path: Path) -> str:
    """The name in an autoencoder's config.json."""
    return json.loads((path / "config.json").read_text()).get("bottleneck", "none")


def _load(model_class: Any, path: Path, folder: str | Path, settings: dict[str, Any]) -> Any:
    """The model in `path`, in eval mode, once its weights are known to be those of its configuration."""
    model, info = model_class.from_pretrained(path, use_safetensors=True, output_loading_info=True, **settings)
    problems = {name: sorted(map(str, info[name])) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(problems.values()):
        listing = "; ".join(f"{name.replace('_', ' ')}: {', '.join(k[:3])}" for name, k in problems.items() if k)
        raise ValueError(
            f"{folder} has weights that are not those of its configuration ({listing}): it is damaged, or of an "
            "earlier version of tessera; train it again"
        )
    vars(model.config).pop("auto_map", None)  # names code in the folder, which is not used, and not written with a copy
    return model.eval()
