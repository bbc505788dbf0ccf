"""Options of `scripts/sample_latents.py`: no torch, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.machine.destinations import check_file
from pipelines.options.data import DataOptions
from pipelines.options.option import option


@dataclass
class LatentOptions(DataOptions):
    """Which autoencoder, and what is drawn from its latents."""

    autoencoder: str = option("runs/tokenizer", "folder that train_tokenizer.py --bottleneck has left")
    draw: str = option(
        "samples",
        "'samples' of the prior; 'interpolation' between pictures of the data set; 'traversal' of one latent at a time",
        choices=("samples", "interpolation", "traversal"),
    )
    output: str = option("latents.png", "picture file")
    split: str = option("validation", "split whose pictures are interpolated or traversed")
    rows: list[int] = option(
        [],
        "rows of the split: for 'interpolation' pairs (default: the first four pictures), for 'traversal' one picture "
        "(default: the first)",
        not_negative=True,
    )
    count: int = option(12, "samples, for each class of a conditional model", above_zero=True)
    classes: list[str] = option([], "samples of these classes of a conditional model alone (default: all)")
    temperature: float = option(1.0, "of samples: times the prior's standard deviation", not_negative=True)
    steps: int = option(9, "pictures of a walk or of a traversal", within="[2, inf)")
    latents: list[int] = option(
        [], "numbers of the latents to traverse (default: the eight that vary most)", not_negative=True
    )
    level: int = option(0, "level of the latents to traverse, 0 is the coarsest", within="[0, 2]")
    span: float = option(3.0, "a traversal goes so many standard deviations either way", above_zero=True)
    device: str = option("auto", "cpu, cuda, ...; auto: a GPU where there is one")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_file(self.output, "--output", "latents.png")
        if self.draw == "interpolation" and len(self.rows) % 2:
            raise ValueError(f"--rows {' '.join(map(str, self.rows))}: an interpolation needs pairs of pictures")
        if self.draw == "traversal" and len(self.rows) > 1:
            raise ValueError(f"--rows {' '.join(map(str, self.rows))}: a traversal is of one picture")
        only = {"classes": "samples", "latents": "traversal", "level": "traversal"}
        for name, draw in only.items():
            if getattr(self, name) and self.draw != draw:
                raise ValueError(f"--{name} is for --draw {draw}, not for {self.draw}: leave it out")
        if self.rows and self.draw == "samples":
            raise ValueError("--rows is for --draw interpolation or traversal, not for samples: leave it out")
