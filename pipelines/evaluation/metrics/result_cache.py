"""Drawn pictures and features, kept so that the same evaluation takes them from a file the second time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lm.files import cache_root, published

FORMAT_VERSION = 1


class ResultCache:
    """Tensors in files that are named by a hash of everything that decides them.

    They lie in the folder `evaluation` of `lm.files.cache_root`, and can be deleted at any time.
    """

    def __init__(self, cache_folder: str | Path | None = None) -> None:
        self.folder = cache_root(cache_folder) / "evaluation"

    def tensors(self, key: Mapping[str, Any], compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What `compute` returned when it was first called with this key; a file that cannot be read is made anew.

        Args:
            key: JSON values that decide the result: hashes of weights, settings, seed.
        """
        text = json.dumps({"format_version": FORMAT_VERSION, "torch": torch.__version__, **key}, sort_keys=True)
        path = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"
        try:
            return load_file(path)
        except (OSError, SafetensorError):  # not there, or half written by an earlier version of the library
            found = {name: tensor.cpu().contiguous() for name, tensor in compute().items()}
        with published(path) as aside:
            save_file(found, aside, metadata={"key": text})
        return found
