"""Quantizers: latents to codes and back, all with one interface on channel-last latents."""

from tokenizer_image.quantizers.finite_scalar import FiniteScalarQuantizer
from tokenizer_image.quantizers.grouped import GroupedQuantizer
from tokenizer_image.quantizers.interface import Quantizer, QuantizerOutput
from tokenizer_image.quantizers.kinds import KINDS, build_quantizer, register_quantizer
from tokenizer_image.quantizers.lookup_free import LookupFreeQuantizer
from tokenizer_image.quantizers.projected import ProjectedQuantizer
from tokenizer_image.quantizers.residual import ResidualQuantizer
from tokenizer_image.quantizers.vector import VectorQuantizer

__all__ = [
    "KINDS",
    "FiniteScalarQuantizer",
    "GroupedQuantizer",
    "LookupFreeQuantizer",
    "ProjectedQuantizer",
    "Quantizer",
    "QuantizerOutput",
    "ResidualQuantizer",
    "VectorQuantizer",
    "build_quantizer",
    "register_quantizer",
]
