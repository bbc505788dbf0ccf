"""What stage 2 lets its users say about sequences: no torch, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from pipelines.options.data import DataOptions
from pipelines.options.option import option

CAPTION_DROPOUT = 0.1


@dataclass
class SequenceOptions(DataOptions):
    """Which sequences are learned, what counts in them, and how long they may be."""

    above_zero: ClassVar[tuple[str, ...]] = (
        "max_caption_tokens", "max_length", "pack_length", "text_loss_weight", "image_loss_weight",
    )  # fmt: skip
    not_negative: ClassVar[tuple[str, ...]] = ("default_guidance",)

    formats: list[str] = field(
        default_factory=lambda: ["caption_to_image=1"],
        metadata={
            "help": "sequence formats and how often each is learned, e.g. caption_to_image=4 image_and_caption=1: "
            "caption_to_image, caption_and_image (the caption is learned too), image, image_to_caption, "
            "image_and_caption (both learned, in place of caption dropout), text, document (interleaved rows)"
        },
    )
    unconditional: bool = option(False, "learn pictures alone, without captions (--formats image)")
    caption_dropout: float | None = option(
        None,
        "share of pictures that are drawn without their caption, for guidance (default: 0.1, or 0 beside image or "
        "image_and_caption, which teach the same)",
    )
    text_loss_weight: float = option(
        1.0,
        "what the mean loss of text counts, where --formats learn text and pictures; where text is little, 0.35 "
        "disturbs drawing less (docs/results.md)",
    )
    image_loss_weight: float = option(7.0, "what the mean loss of image codes counts beside it")
    default_guidance: float = option(
        2.0, "the pipeline's guidance scale when none is given; 1 where pictures are not learned without a caption"
    )
    max_caption_tokens: int = option(64, "longer captions lose their end")
    max_length: int | None = option(
        None, "most tokens of a sequence (default: a picture and its caption; documents 1024)"
    )
    long_sequences: str = option("crop", "what is done with longer ones: 'crop' or 'drop'")
    pack_length: int | None = option(
        None, "tokens of a row that several sequences share: --batch_size then counts such rows (default: no packing)"
    )

    def check(self) -> None:
        super().check()
        if self.caption_dropout is not None and not 0 <= self.caption_dropout <= 1:
            raise ValueError(f"--caption_dropout {self.caption_dropout} is out of range: give a share, 0 to 1")
        if self.unconditional and self.formats != SequenceOptions().formats:
            raise ValueError(f"--unconditional and --formats {' '.join(self.formats)} exclude each other: give one")
        if self.long_sequences not in ("crop", "drop"):
            raise ValueError(f"--long_sequences {self.long_sequences!r}: choose crop or drop")
        from pipelines.training.language_model import loss_shares

        loss_shares(self, self.mixture())

    def mixture(self) -> dict[str, float]:
        """Weight of each sequence format."""
        from lm.sequences import FORMATS, parse_mixture

        if self.unconditional:
            return {"image": 1.0}
        try:
            found = parse_mixture(self.formats)
        except ValueError as error:
            raise ValueError(f"--formats: {error}") from error
        mixture: dict[str, float] = {}
        for name, weight in found.items():
            name = "image" if self.caption_dropout == 1 and FORMATS[name].drops_captions else name
            mixture[name] = mixture.get(name, 0.0) + weight
        return mixture

    def dropout(self) -> float:
        """--caption_dropout, or its default."""
        from lm.sequences import DRAWING_ALONE

        if self.caption_dropout is not None:
            return self.caption_dropout
        return 0.0 if set(self.mixture()) & set(DRAWING_ALONE) else CAPTION_DROPOUT

    @property
    def needs_captions(self) -> bool:
        """Whether there is something that cannot be learned without captions."""
        from lm.sequences import FORMATS

        return any(FORMATS[name].has_text for name in self.mixture())
