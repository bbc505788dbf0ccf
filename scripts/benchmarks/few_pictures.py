"""Few pictures of one's own: the README's two commands on small worlds, and what their captions then draw.

    python scripts/benchmarks/few_pictures.py --output rows.json

`drawings` (2,376 training pictures of 9,216 combinations; see `few_worlds.py`) is judged by captions of combinations
that neither stage has seen; `icons` (1,400 with invented names) by all names, and by those of them that were learned
(`nearest_of_learned`): the others are validation pictures, which nothing but their name tells. A picture is right where
it is nearer in pixels to the caption's own than to any other of its world; its codes are right where all are those of
the caption's own picture.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.options.option import option
from pipelines.options.parser import run_command
from scripts.benchmarks.few_worlds import DRAWING_SIDE, ICON_SIDE, Drawing, Icon, drawings, icons, write_folder
from scripts.benchmarks.figures import BenchmarkOptions, Row, row, show, write_rows

if TYPE_CHECKING:
    import numpy as np
    import torch

SCRIPTS = Path(__file__).parents[1]
TRAINING_DRAWINGS, ICONS = 2376, 1400
# Settings that captions are drawn with, by name; those of the targets are the defaults.
SETTINGS: dict[str, dict[str, float]] = {
    "default": {},
    "greedy": {"temperature": 0.0},
    "greedy_unguided": {"temperature": 0.0, "guidance_scale": 1.0},
    "guidance_2": {"guidance_scale": 2.0},
}
TARGETS = {"drawings/default/nearest": 0.97, "drawings/default/all_codes": 0.6, "icons/default/nearest": 0.97}


@dataclass(kw_only=True)
class Options(BenchmarkOptions):
    """What a model of few pictures draws."""

    worlds: list[str] = option(["drawings", "icons"], "which worlds", choices=("drawings", "icons"))
    minutes: float = option(20.0, "of training, both stages together", above_zero=True)
    stage_1_share: float = option(0.3, "of these minutes, for the image tokenizer", within="(0, 1)")
    max_steps: int | None = option(None, "in place of --minutes: steps of each stage", above_zero=True)
    captions: int = option(1000, "captions to draw", above_zero=True)
    folder: str | None = option(None, "where pictures and runs are kept (default: a temporary folder)")
    tokenizer_options: list[str] = option(
        [], "further options of train_tokenizer.py, each without its dashes: 'codebook_sizes 64 64' patch_size=2"
    )
    lm_options: list[str] = option(
        [], "further options of train_lm.py, each without its dashes: dropout=0.1 code_noise=0 lm_size=2M"
    )


@dataclass
class World:
    """Pictures of a world and what is drawn of them: `judged` has the places in `items` of captions to draw."""

    items: list[Drawing] | list[Icon]
    training: list[int]
    judged: list[int]
    image_size: int


def build_world(name: str, captions: int) -> World:
    """Which pictures are for training, and which captions are drawn."""
    import numpy as np

    items: list[Any] = drawings() if name == "drawings" else icons(ICONS)
    order = np.random.default_rng(0).permutation(len(items)).tolist()
    if name == "drawings":
        unseen = order[TRAINING_DRAWINGS:]
        return World(items, order[:TRAINING_DRAWINGS], unseen[:captions], DRAWING_SIDE)
    return World(items, list(range(len(items))), order[:captions], ICON_SIDE)


def train(world: World, root: Path, options: Options, threads: int) -> None:
    """Write the folder and run both commands, as the README has them; the model is in root/model."""
    data = root / "pictures"
    if not data.exists():
        write_folder(data, [world.items[place] for place in world.training])
    shares = {"train_tokenizer.py": options.stage_1_share, "train_lm.py": 1 - options.stage_1_share}
    further = {"train_tokenizer.py": options.tokenizer_options, "train_lm.py": options.lm_options}
    outputs = {"train_tokenizer.py": root / "tokenizer", "train_lm.py": root / "model"}
    for script, share in shares.items():
        budget = ["--max_minutes", f"{share * options.minutes:g}"]
        if options.max_steps is not None:
            budget = ["--max_steps", str(options.max_steps)]
        own = ["--image_size", str(world.image_size)]
        if script == "train_lm.py":
            own += ["--image_tokenizer", str(outputs["train_tokenizer.py"])]
        own += [part for words in further[script] for part in f"--{words}".split()]
        command = [sys.executable, str(SCRIPTS / script), "--dataset", str(data), "--output_dir", str(outputs[script]),
                   "--cpu_threads", str(threads), "--resume", *own, *budget]  # fmt: skip
        run_script(command)


def run_script(command: list[str]) -> None:
    """Run one of our commands. Raises ValueError where it does not end well."""
    if subprocess.run(command).returncode:
        raise ValueError(f"{Path(command[1]).name} failed: nothing measured")


def are_nearest(drawn: np.ndarray, items: Sequence[Drawing] | Sequence[Icon], places: Sequence[int]) -> torch.Tensor:
    """Whether each drawn picture (n, H, W, 3) in [0, 1] is nearer to its own, `items[place]`, than to any other."""
    import numpy as np
    import torch

    pixels = torch.from_numpy(np.stack([np.asarray(item.picture()) for item in items])).flatten(1).float()
    return torch.cdist(torch.from_numpy(drawn).flatten(1) * 255, pixels).argmin(1) == torch.tensor(places)


def judge(world: World, model: Path, name: str) -> list[Row]:
    """Draw the captions, and count what is right."""
    import numpy as np
    import torch

    from lm.data.token_cache import TokenCache
    from pipelines import TextToImagePipeline

    pipe = TextToImagePipeline.from_pretrained(model)
    codes = pipe.encode_pixels([np.asarray(world.items[place].picture()).transpose(2, 0, 1) for place in world.judged])
    captions = [world.items[place].caption for place in world.judged]
    learned = set(TokenCache(model / "token_cache" / "train").all_texts())
    is_learned = torch.tensor([caption in learned for caption in captions])
    rows = [row(f"{name}/default_guidance", pipe.vocabulary.default_guidance, "")]
    for setting, arguments in SETTINGS.items():
        output = pipe(captions, seed=0, output_type="np", **arguments)
        nearest = are_nearest(np.asarray(output.images), world.items, world.judged).float()
        figures = {"nearest": nearest.mean(), "all_codes": (output.codes == codes).all(1).float().mean()}
        if is_learned.any():
            figures["nearest_of_learned"] = nearest[is_learned].mean()
        for what, value in figures.items():
            named = f"{name}/{setting}/{what}"
            rows.append(row(named, float(value), "", TARGETS.get(named), higher_is_better=True))
    return rows


def validation_rise(model: Path, name: str) -> list[Row]:
    """Validation of the weights that were left, and of the last ones, over the lowest of the run."""
    info = json.loads((model / "run.json").read_text())
    lines = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    nats = [line["validation_nats_per_code"] for line in lines if "validation_nats_per_code" in line]
    return [
        row(f"{name}/validation_over_best", info["validation"]["nats_per_code"] / min(nats), "x", 1.02),
        row(f"{name}/last_validation_over_best", nats[-1] / min(nats), "x"),
    ]


def main(options: Options) -> None:
    """Train and measure; a table on the screen, rows in the file."""
    threads = options.set_threads()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.worlds:
            world = build_world(name, options.captions)
            root = Path(options.folder or temporary) / name
            root.mkdir(parents=True, exist_ok=True)
            train(world, root, options, threads)
            rows += judge(world, root / "model", name) + validation_rise(root / "model", name)
            write_rows(options.output, rows)
    show(rows)


if __name__ == "__main__":
    run_command(main, Options, __doc__)
