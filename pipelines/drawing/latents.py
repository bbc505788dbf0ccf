"""Pictures from latents: samples of an autoencoder's prior, walks between two pictures, one latent at a time.

Each function returns rows for `pipelines.drawing.grids.labelled_grid`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image

from pipelines.drawing.streams import seeded_streams
from tokenizer_image import VQVAE
from tokenizer_image.autoencoder import Autoencoder
from tokenizer_image.preprocessing import postprocess

Rows = list[tuple[str, list[Image.Image]]]


def sample_rows(
    model: Autoencoder, count: int, *, seed: int, temperature: float = 1.0, class_names: Sequence[str] = ()
) -> Rows:
    """`count` samples of the prior; of a conditional model so many for each class, from the same latents.

    Picture j has the stream of random numbers (seed, j), whatever their number.

    Args:
        class_names: default: all of the model's.

    Raises:
        ValueError: the model has no prior, or no class of that name.
    """
    levels = seeded_latents(model, count, seed, temperature)
    if not model.config.class_names and not class_names:
        return [(f"samples of the prior, seed {seed}", _images(model.decode(levels)))]
    names = list(class_names) or model.config.class_names
    return [(name, _images(model.decode(levels, class_numbers(model, [name]).expand(count)))) for name in names]


def seeded_latents(model: Autoencoder, count: int, seed: int, temperature: float = 1.0) -> list[torch.Tensor]:
    """Latents of `count` pictures from the prior, each level (count, h, w, code_dim); picture j has the stream of
    random numbers (seed, j), whatever their number.

    Raises:
        ValueError: the model has no prior.
    """
    drawn = [model.sample_latents(1, stream, temperature=temperature) for stream in seeded_streams([seed], count)]
    return [torch.cat([one[level] for one in drawn]) for level in range(len(drawn[0]))]


def class_numbers(model: Autoencoder, names: Sequence[str]) -> torch.Tensor:
    """Class names to numbers (n,) int64, on the model's device.

    Raises:
        ValueError: the model is not conditional, or has no class of that name.
    """
    known = model.config.class_names
    for name in names:
        if name not in known:
            classes = f"its classes are {', '.join(known[:20])}" if known else "it is not conditional"
            raise ValueError(f"the autoencoder has no class {name!r}: {classes}")
    return torch.tensor([known.index(name) for name in names], device=model.device)


def interpolation_rows(
    model: Autoencoder,
    pixel_values: torch.Tensor,
    steps: int,
    classes: torch.Tensor | None = None,
) -> Rows:
    """The walk from each picture to the next one: a straight line between their latents, at every level, decoded, and
    below it one between their pixels.

    Args:
        pixel_values: (2n, C, H, W) in [-1, 1]; pairs follow each other.
        steps: pictures of a walk, both ends included, at least 2.
        classes: (2n,), of a conditional model; the walk has the class of the nearer end.
    """
    levels = model.latents(pixel_values, classes)

    def decode(walk: list[torch.Tensor], first: int, shares: torch.Tensor) -> torch.Tensor:
        ends = None if classes is None else torch.where(shares < 0.5, classes[first], classes[first + 1])
        return model.decode(walk, ends)

    return _walks(pixel_values, levels, steps, decode)


def quantized_interpolation_rows(model: VQVAE, pixel_values: torch.Tensor, steps: int) -> Rows:
    """`interpolation_rows` of an image tokenizer: the latents on the straight line are quantized, and their codes
    decoded.

    Args:
        pixel_values: (2n, C, H, W) in [-1, 1]; pairs follow each other.
        steps: pictures of a walk, both ends included, at least 2.
    """
    size = int(pixel_values.shape[2]), int(pixel_values.shape[3])

    def decode(walk: list[torch.Tensor], first: int, shares: torch.Tensor) -> torch.Tensor:
        return model.decode(model.quantize_latents(walk, size), size)

    return _walks(pixel_values, model.latents(pixel_values), steps, decode)


def _walks(
    pixel_values: torch.Tensor,
    levels: Sequence[torch.Tensor],
    steps: int,
    decode: Callable[[list[torch.Tensor], int, torch.Tensor], torch.Tensor],
) -> Rows:
    """Two rows for each pair of pictures: `decode` of the latents (steps, h, w, D) of each level on the line between
    theirs, the first one's number, and the shares (steps,) of the second; and the pixels on the line between theirs."""
    rows: Rows = []
    shares = torch.linspace(0, 1, steps, device=pixel_values.device)
    for first in range(0, len(pixel_values) - 1, 2):
        walk = [_between(latents[first], latents[first + 1], shares) for latents in levels]
        decoded = decode(walk, first, shares)
        rows.append((f"pair {first // 2}: between latents", _images(decoded)))
        pixels = _between(pixel_values[first], pixel_values[first + 1], shares)
        rows.append((f"pair {first // 2}: between pixels", _images(pixels)))
    return rows


def _between(start: torch.Tensor, end: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """(1 - s) start + s end for each share s: (n, *start.shape)."""
    weights = shares.view(-1, *[1] * start.ndim)
    return (1 - weights) * start + weights * end


def widest_latents(model: Autoencoder, pixel_values: torch.Tensor, level: int, count: int) -> list[int]:
    """Numbers of the `count` latents, of `code_dim`, that differ most between pictures (B, C, H, W), the widest
    first: those that carry most of a variational model's information."""
    variance = model.latents(pixel_values)[level].var(dim=0).mean(dim=(0, 1))
    return variance.argsort(descending=True, stable=True)[:count].tolist()


def traversal_rows(
    model: Autoencoder,
    pixel_values: torch.Tensor,
    latents: Sequence[int],
    *,
    level: int = 0,
    span: float = 3.0,
    steps: int = 9,
    classes: torch.Tensor | None = None,
) -> Rows:
    """One picture, and for each of the latents what comes of it as that one alone changes, at all positions.

    Of a variational model it is set to values from -span to span, standard deviations of the prior, and finer levels
    follow by their prior; of others, this is added to it in standard deviations of the picture's latents.

    Args:
        pixel_values: (1, C, H, W) in [-1, 1].
        latents: numbers below `code_dim`.
        level: of the latents that change, 0 the coarsest.
        classes: (1,), of a conditional model.

    Raises:
        ValueError: a latent or a level that the model does not have.
    """
    config = model.config
    if not 0 <= level < config.num_levels or any(not 0 <= number < config.code_dim for number in latents):
        raise ValueError(
            f"level {level}, latents {list(latents)}: the autoencoder has levels 0 to {config.num_levels - 1} and "
            f"latents 0 to {config.code_dim - 1}"
        )
    levels = model.latents(pixel_values, classes)
    known = None if classes is None else classes.expand(steps)
    rows: Rows = [
        ("the picture, and its reconstruction", _images(pixel_values) + _images(model.decode(levels, classes)))
    ]
    values = torch.linspace(-span, span, steps, device=pixel_values.device).view(-1, 1, 1)
    has_prior = model.bottleneck.has_prior
    for number in latents:
        changed = [part.expand(steps, -1, -1, -1).clone() for part in levels[: level + 1]]
        before, deviation = changed[level][..., number], levels[level].std(correction=0)
        changed[level][..., number] = values.expand_as(before) if has_prior else before + deviation * values
        if not has_prior:
            changed += [part.expand(steps, -1, -1, -1) for part in levels[level + 1 :]]
        title = f"latent {number}" + (f" of level {level}" if config.num_levels > 1 else "")
        rows.append((f"{title}, from {-span:g} to {span:g}", _images(model.decode(changed, known))))
    return rows


def _images(pixel_values: torch.Tensor) -> list[Image.Image]:
    return postprocess(pixel_values.cpu())
