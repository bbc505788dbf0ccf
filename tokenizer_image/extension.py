"""More codes for a trained image tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tokenizer_image.configuration import VQVAEConfig
from tokenizer_image.vqvae import VQVAE

PER_CODE = ("codebook", "ema_counts", "ema_sums")  # what a quantizer keeps for each code


@torch.no_grad()
def with_more_codes(tokenizer: VQVAE, codebook_sizes: Sequence[int]) -> VQVAE:
    """The same tokenizer with larger codebooks: its own codes come first and keep their numbers.

    A new code is a copy of an old one that no latent has chosen yet, so that training revives it from the latents of
    its first batch.

    Args:
        codebook_sizes: of each level, none smaller than before.

    Raises:
        ValueError: fewer levels or codes than before, or quantizers whose codes are not rows of a codebook.
    """
    before = tokenizer.config.codebook_sizes
    if len(before) != len(codebook_sizes) or any(new < old for old, new in zip(before, codebook_sizes, strict=True)):
        raise ValueError(f"codebook_sizes={list(codebook_sizes)}: a trained tokenizer keeps its {before} or gets more")
    settings = {**tokenizer.config.to_dict(), "codebook_sizes": list(codebook_sizes)}
    extended = VQVAE(VQVAEConfig.from_dict(settings))
    state, found = extended.state_dict(), tokenizer.state_dict()
    for name, old in found.items():
        new = state.get(name)
        if new is None or (new.shape != old.shape and (new.shape[1:] != old.shape[1:] or not name.endswith(PER_CODE))):
            raise ValueError(
                f"codebook_sizes={list(codebook_sizes)}: the codes of {tokenizer.config.quantizer} are not rows of a "
                f"codebook, so that it keeps its {before}"
            )
        if new.shape == old.shape:
            new.copy_(old)
            continue
        new[: len(old)] = old
        is_codebook = name.endswith("codebook")
        new[len(old) :] = old[torch.arange(len(new) - len(old)) % len(old)] if is_codebook else 0
    extended.load_state_dict(state)
    return extended
