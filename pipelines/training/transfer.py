"""--init_from: an earlier model's layers, with rows for the captions and the codes of this data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from lm.data.token_cache import TokenCache
from lm.model import load_model, start_code_rows
from lm.pretrained import max_positions
from lm.transfer import CodeSources, extend_text_tokenizer, move_rows, same_codes
from lm.vocabulary import MultimodalVocabulary, Size
from pipelines.machine.batches import evenly_spaced
from pipelines.options.language_model import LanguageModelOptions
from pipelines.training.sequences import longest_sequence
from pipelines.training.vocabulary import BPE_ROWS, joint_vocabulary
from tokenizer_image.fingerprint import accepts_fingerprint
from tokenizer_image.layout import ImageTokenizer
from tokenizer_image.registry import load_tokenizer

PICTURES, BATCH = 1024, 64  # that both image tokenizers encode; at once
EXTRA_POSITIONS = 4  # beyond the longest sequence
ROTARY = ("llama", "qwen3")  # positions without rows: sequences may become longer


def transferred(
    options: LanguageModelOptions, tokenizer: ImageTokenizer, cache: TokenCache
) -> tuple[PreTrainedModel, MultimodalVocabulary, str | None]:
    """The model of --init_from for this data set, its vocabulary, and what had to be extended, in words.

    Text tokens that the captions ask for are added to its BPE. Codes of another image tokenizer start from the rows of
    the codes that the earlier tokenizer gives the same places of the same pictures.
    """
    folder = options.earlier_folder
    before = MultimodalVocabulary.from_pretrained(folder / "lm")
    model = load_model(str(folder / "lm"), dtype=torch.float32)
    text, merges = extend_text_tokenizer(before.tokenizer, cache.some_texts(BPE_ROWS), most_text_tokens(folder))
    keeps_codes = accepts_fingerprint(tokenizer, before.image_tokenizer_fingerprint)
    side = tokenizer.config.image_size
    keeps_sizes = set(options.picture_sizes() or [(side, side)]) <= before.layouts.keys()
    if keeps_codes and keeps_sizes and not merges:
        _allow_positions(model, options, before, cache)
        return model, before, None
    after = joint_vocabulary(text, options, tokenizer)
    said = [f"{merges} text tokens are new"] if merges else []
    codes = same_codes(after.num_codes) if keeps_codes else None
    if codes is None:
        codes = code_sources(folder, before, tokenizer, after, cache)
        said.append(
            "codes of another image tokenizer start anew, since its pictures have another layout of codes"
            if codes is None
            else "codes of another image tokenizer start from those that the earlier one gives the same pictures"
        )
    move_rows(model, before, after, codes)
    vectors = tokenizer.code_vectors() if codes is None and hasattr(tokenizer, "code_vectors") else None
    if vectors is not None:
        start_code_rows(model, after, vectors)
    _allow_positions(model, options, after, cache)
    return model, after, f"--init_from {options.init_from}: " + "; ".join(said or ["sizes of pictures are new"])


def most_text_tokens(folder: Path) -> int:
    """Most text tokens that the model in a folder may have: what its run was given as --text_vocab_size."""
    file = folder / "run.json"
    given = json.loads(file.read_text()).get("options", {}) if file.is_file() else {}
    return int(given.get("text_vocab_size") or LanguageModelOptions.text_vocab_size)


def _allow_positions(
    model: PreTrainedModel, options: LanguageModelOptions, vocabulary: MultimodalVocabulary, cache: TokenCache
) -> None:
    """Let a model whose positions have no rows take the longest sequences of this data set."""
    if model.config.model_type in ROTARY:
        needed = longest_sequence(options, vocabulary.longest_picture, cache) + EXTRA_POSITIONS
        model.config.max_position_embeddings = max(max_positions(model.config), needed)


@torch.inference_mode()
def code_sources(
    folder: Path,
    before: MultimodalVocabulary,
    tokenizer: ImageTokenizer,
    after: MultimodalVocabulary,
    cache: TokenCache,
) -> CodeSources | None:
    """Which codes of the earlier image tokenizer stand where the new one's stand, by the pictures of the cache.

    The pictures are decoded by the new tokenizer and encoded by the earlier one. A code that none of them has starts as
    the one does whose vector is nearest.

    Returns:
        None where the two have no codes at the same places.
    """
    size: Size = (after.image_size[0], after.image_size[1])
    places = [before.layout[name] == after.layout[name] for name in ("level", "depth", "row", "column")]
    rows = [row for row in evenly_spaced(len(cache), PICTURES).tolist() if cache.image_sizes(row) == [size]]
    if not all(places) or not rows:
        return None
    earlier = load_tokenizer(folder / "image_tokenizer").to(_device(tokenizer))
    pairs = []
    for start in range(0, len(rows), BATCH):
        codes = np.stack([cache.codes(row) for row in rows[start : start + BATCH]]).astype(np.int64)
        pixels = tokenizer.decode(torch.from_numpy(codes).to(_device(tokenizer)), size)
        pixels = F.interpolate(pixels, (before.image_size[0], before.image_size[1]), mode="bicubic", antialias=True)
        found = earlier.encode(_with_channels(pixels.clamp(-1, 1), earlier.config.num_channels)).cpu().numpy()
        pairs.append(codes.ravel() * before.num_codes + found.ravel())
    numbers, counts = np.unique(np.concatenate(pairs), return_counts=True)
    codes, sources = numbers // before.num_codes, numbers % before.num_codes
    totals = np.bincount(codes, counts, minlength=after.num_codes)
    weights = (counts / totals[codes]).astype(np.float32)
    return _with_unseen(CodeSources(codes, sources, weights), totals > 0, tokenizer, after)


def _with_unseen(
    found: CodeSources, is_seen: np.ndarray, tokenizer: ImageTokenizer, after: MultimodalVocabulary
) -> CodeSources:
    """The same with sources for codes that were not seen: those of the nearest one of their range that was, by the
    image tokenizer's vectors; of any, where it has none."""
    vectors = tokenizer.code_vectors() if hasattr(tokenizer, "code_vectors") else None
    codes, earlier, weights = [found.codes], [found.earlier], [found.weights]
    for low, high in after.id_ranges[1:]:
        numbers = np.arange(low - after.image_offset, high - after.image_offset)
        seen, unseen = numbers[is_seen[numbers]], numbers[~is_seen[numbers]]
        if not len(seen) or not len(unseen):
            continue
        nearest = np.zeros(len(unseen), np.int64)
        if vectors is not None:
            nearest = torch.cdist(vectors[unseen].float().cpu(), vectors[seen].float().cpu()).argmin(1).numpy()
        for code, like in zip(unseen.tolist(), seen[nearest].tolist(), strict=True):
            same = found.codes == like
            codes.append(np.full(int(same.sum()), code))
            earlier.append(found.earlier[same])
            weights.append(found.weights[same])
    return CodeSources(np.concatenate(codes), np.concatenate(earlier), np.concatenate(weights))


def _device(tokenizer: ImageTokenizer) -> torch.device:
    return next(tokenizer.parameters()).device if isinstance(tokenizer, torch.nn.Module) else torch.device("cpu")


def _with_channels(pixels: torch.Tensor, channels: int) -> torch.Tensor:
    """(B, C, H, W) with so many channels: grey repeated for each colour, or colours averaged."""
    if pixels.shape[1] == channels:
        return pixels
    return pixels.expand(-1, channels, -1, -1) if pixels.shape[1] == 1 else pixels.mean(1, keepdim=True)
