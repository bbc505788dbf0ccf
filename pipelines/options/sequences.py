"""Options about the sequences of stage 2. No torch, so that --help is quick."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from pipelines.options.data import DataOptions
from pipelines.options.option import option

CAPTION_DROPOUT = 0.1
GUIDANCE, TEMPERATURE = 2.0, 1.0  # by default, where they are neither given nor found
IMAGE_GUIDANCE = 1.0  # over the source of an edit


@dataclass
class SequenceOptions(DataOptions):
    """Which sequences are learned, what counts in them, and how long they may be."""

    formats: list[str] = option(
        ["caption_to_image=1"],
        "sequence formats and how often each is learned, e.g. caption_to_image=4 image_and_caption=1: "
        "caption_to_image, caption_and_image (the caption is learned too), image, image_to_caption, "
        "image_and_caption (both learned, in place of caption dropout), text, document (interleaved rows), edit and "
        "image_to_image (documents of a picture, an instruction and the result: by default where all rows are such)",
    )
    unconditional: bool = option(False, "learn pictures alone, without captions (--formats image)")
    caption_dropout: float | None = option(
        None,
        "share of pictures that are drawn without their caption, for guidance (default: 0.1, or 0 beside image or "
        "image_and_caption, which teach the same)",
        within="[0, 1]",
    )
    edit_dropout: float = option(
        0.05,
        "share of edits whose result is drawn without the instruction, and as large a share without instruction and "
        "source picture, for guidance over both",
        within="[0, 0.5]",
    )
    phrase_dropout: float = option(
        0.0,
        "share of a caption's phrases (between punctuation, 'and', 'with') that are left out in training; one stays",
        within="[0, 1)",
    )
    text_loss_weight: float = option(
        1.0,
        "what the mean loss of text counts, where --formats learn text and pictures; where text is little, 0.35 "
        "disturbs drawing less (docs/results.md)",
        above_zero=True,
    )
    image_loss_weight: float = option(7.0, "what the mean loss of image codes counts beside it", above_zero=True)
    default_guidance: float | None = option(
        None,
        "the pipeline's guidance scale when none is given (default: found at the end of training where captions say "
        "which picture is meant or the data are edits alone, else 2; 1 where nothing is learned without a caption)",
        not_negative=True,
    )
    default_image_guidance: float | None = option(
        None, "the same over the source picture of an edit (default: 1, which is off)", not_negative=True
    )
    default_temperature: float | None = option(
        None,
        "the temperature that pictures are drawn at when none is given (default: found at the end of training where "
        "captions say which picture is meant or the data are edits alone, else 1)",
        not_negative=True,
    )
    max_caption_tokens: int = option(64, "longer captions lose their end", above_zero=True)
    max_length: int | None = option(
        None,
        "most tokens of a sequence (default: a picture and its caption; edits two pictures; documents 1024)",
        above_zero=True,
    )
    long_sequences: str = option("crop", "what is done with longer ones: 'crop' or 'drop'", choices=("crop", "drop"))
    pack_length: int | None = option(
        None,
        "tokens of a row that several sequences share: --batch_size then counts such rows (default: no packing)",
        above_zero=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unconditional and self.formats != SequenceOptions().formats:
            raise ValueError(f"--unconditional and --formats {' '.join(self.formats)} exclude each other: give one")
        self.loss_shares(self.mixture())

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

    def caption_dropout_share(self) -> float:
        """--caption_dropout, or its default."""
        from lm.sequences import DRAWING_ALONE

        if self.caption_dropout is not None:
            return self.caption_dropout
        return 0.0 if set(self.mixture()) & set(DRAWING_ALONE) else CAPTION_DROPOUT

    def loss_shares(self, formats: Collection[str]) -> tuple[float, float]:
        """Shares of text and of image codes in the loss, with sum 1, where the `formats` are learned.

        Raises:
            ValueError: --text_loss_weight or --image_loss_weight was given, but only one of both kinds is learned.
        """
        from lm.sequences import learned_kinds, loss_shares

        text, image = learned_kinds(formats)
        names = ("text_loss_weight", "image_loss_weight")
        changed = [
            f"--{name} {getattr(self, name):g}" for name in names if getattr(self, name) != getattr(type(self), name)
        ]
        if changed and not (text and image):
            raise ValueError(
                f"{' and '.join(changed)} has no effect: --formats {' '.join(self.mixture())} learns only "
                f"{'text' if text else 'image codes'}; leave it out, or add a format (caption_and_image learns both; "
                "so does document, of interleaved rows)"
            )
        return loss_shares(formats, self.text_loss_weight, self.image_loss_weight)

    @property
    def needs_captions(self) -> bool:
        """Whether there is something that cannot be learned without captions."""
        from lm.sequences import FORMATS

        return any(FORMATS[name].has_text for name in self.mixture())
