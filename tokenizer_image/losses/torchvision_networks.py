"""Classifiers of torchvision as extractors, and LPIPS, which is one of them with learned weights of its channels."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from tokenizer_image.losses.extractors import (
    INSTALL,
    TORCHVISION,
    Extractor,
    missing_package,
    register_extractor,
    weights_error,
)


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
        kind = label.split("'")[1].partition("=")[0]
        remedy = f"give a file of {model_name}'s weights, as {kind}=weights.pth"
        raise weights_error(label, file, error, remedy) from error
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
