"""The fingerprint of an image tokenizer, which says to token caches and language models whose codes they have."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch

from tokenizer_image.configuration import VQVAEConfig
from tokenizer_image.layout import ImageTokenizer

# Configuration fields that decide, with the weights, which codes a picture gets.
FIELDS = (
    "image_size",
    "num_channels",
    "network",
    "patch_size",
    "hidden_sizes",
    "num_levels",
    "quantizer",
    "codebook_sizes",
    "preprocessing",
)
# Of signals alone, where they are not the defaults: pictures keep the fingerprint that they had.
SIGNAL_FIELDS = {"signal": None, "causal": False, "frame_patch": 1}
# Quantizer options that decide codes; the others set how the quantizer learns.
QUANTIZER_OPTIONS = ("shared_codebook", "num_groups", "codebook_dim", "levels")


def fingerprint_of(config: VQVAEConfig, state: Mapping[str, torch.Tensor]) -> str:
    """32 hexadecimal digits: a hash of `state` in float32 and of the settings that decide codes."""
    digest = hashlib.sha256()
    settings = {name: getattr(config, name) for name in FIELDS}
    options = config.quantizer_options
    settings |= {name: options[name] for name in QUANTIZER_OPTIONS if name in options}
    settings |= {name: value for name, default in SIGNAL_FIELDS.items() if (value := getattr(config, name)) != default}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def accepts_fingerprint(tokenizer: ImageTokenizer, fingerprint: str) -> bool:
    """Whether codes that were made by the tokenizer with this fingerprint are codes of `tokenizer`.

    Besides its `fingerprint`, a tokenizer may have a `legacy_fingerprint`, which earlier versions wrote.
    """
    return fingerprint == tokenizer.fingerprint or fingerprint == getattr(tokenizer, "legacy_fingerprint", None)


def weights_hash(module: object) -> str:
    """16 hexadecimal digits: a hash of every weight and buffer of a module, and of its configuration, if it has one.

    Unlike a fingerprint it covers what decodes pictures, too. An image tokenizer that is no module is known by its
    fingerprint alone.
    """
    digest = hashlib.sha256()
    if isinstance(module, torch.nn.Module):
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        to_json = getattr(getattr(module, "config", None), "to_json_string", None)
        digest.update(to_json().encode() if to_json is not None else b"")
    elif isinstance(module, ImageTokenizer):
        digest.update(module.fingerprint.encode())
    else:
        raise TypeError(f"a {type(module).__name__} has neither weights nor a fingerprint")
    return digest.hexdigest()[:16]
