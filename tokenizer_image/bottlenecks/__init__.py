"""Bottlenecks: what may stand between encoder and decoder in a quantizer's place, all with one interface."""

from tokenizer_image.bottlenecks.conditional import ConditionalBottleneck
from tokenizer_image.bottlenecks.contractive import ContractiveBottleneck
from tokenizer_image.bottlenecks.denoising import InputNoise
from tokenizer_image.bottlenecks.divergence import KLSchedule
from tokenizer_image.bottlenecks.gaussian import GaussianBottleneck
from tokenizer_image.bottlenecks.hierarchical import HierarchicalBottleneck
from tokenizer_image.bottlenecks.interface import Bottleneck, BottleneckOutput, Encoded
from tokenizer_image.bottlenecks.k_sparse import KSparseBottleneck
from tokenizer_image.bottlenecks.kinds import BOTTLENECKS, build_bottleneck, register_bottleneck
from tokenizer_image.bottlenecks.plain import PlainBottleneck
from tokenizer_image.bottlenecks.sparse import SparseBottleneck

__all__ = [
    "BOTTLENECKS",
    "Bottleneck",
    "BottleneckOutput",
    "ConditionalBottleneck",
    "ContractiveBottleneck",
    "Encoded",
    "GaussianBottleneck",
    "HierarchicalBottleneck",
    "InputNoise",
    "KLSchedule",
    "KSparseBottleneck",
    "PlainBottleneck",
    "SparseBottleneck",
    "build_bottleneck",
    "register_bottleneck",
]
