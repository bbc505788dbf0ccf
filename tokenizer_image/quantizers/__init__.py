"""Latents to codes and back. Every quantizer takes channel-last latents and answers in the same form."""

from tokenizer_image.quantizers.grouped import GroupedQuantizer
from tokenizer_image.quantizers.output import QuantizerOutput
from tokenizer_image.quantizers.residual import ResidualQuantizer
from tokenizer_image.quantizers.vector import VectorQuantizer

__all__ = ["GroupedQuantizer", "QuantizerOutput", "ResidualQuantizer", "VectorQuantizer"]
