"""300 pictures of other things, learned from an earlier model and from nothing, in the same number of steps.

    python scripts/benchmarks/few_pictures.py --worlds drawings --folder runs/few
    python scripts/benchmarks/transfer.py --earlier runs/few/drawings/model --output rows.json

The pictures are drawings (`few_worlds.py`) of shapes and colours that the earlier model has never seen, under words
that it does not know. Both are judged by captions of combinations that neither has seen, and by their nats a code.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipelines.options.option import option
from pipelines.options.parser import run_command
from scripts.benchmarks.few_pictures import are_nearest, run_script
from scripts.benchmarks.few_worlds import DRAWING_SIDE, Drawing, other_drawings, write_folder
from scripts.benchmarks.figures import BenchmarkOptions, Row, row, show, write_rows

SCRIPTS = Path(__file__).resolve().parents[1]


@dataclass(kw_only=True)
class Options(BenchmarkOptions):
    """A model of few pictures, with and without an earlier one to start from."""

    earlier: str = option("runs/few/drawings/model", "folder of the earlier model")
    pictures: int = option(300, "that both learn from", above_zero=True)
    judged: int = option(300, "captions that are drawn", above_zero=True)
    stage_1_steps: int = option(300, "of the image tokenizer", above_zero=True)
    steps: int = option(600, "of the language model", above_zero=True)
    batch_size: int = option(16, "pictures a step", above_zero=True)
    folder: str | None = option(None, "keep the runs in this folder (default: a temporary one)")


def train(root: Path, data: Path, options: Options, threads: int, earlier: Path | None) -> Path:
    """Both stages into `root`; the folder of the model."""
    common = ("--dataset", str(data), "--image_size", str(DRAWING_SIDE), "--cpu_threads", str(threads), "--batch_size",
              str(options.batch_size), "--overwrite")  # fmt: skip
    starts = [("--init_from", str(earlier / name)) if earlier else () for name in ("image_tokenizer", "")]
    commands = [
        [str(SCRIPTS / "train_tokenizer.py"), *common, "--max_steps", str(options.stage_1_steps), "--output_dir",
         str(root / "tokenizer"), *starts[0]],
        [str(SCRIPTS / "train_lm.py"), *common, "--max_steps", str(options.steps), "--output_dir", str(root / "model"),
         "--image_tokenizer", str(root / "tokenizer"), *starts[1]],
    ]  # fmt: skip
    for command in commands:
        run_script([sys.executable, *command])
    return root / "model"


def judge(model: Path, judged: range, name: str) -> list[Row]:
    """Share of unseen captions whose picture is the nearest to what is drawn, and nats a code of held-out pictures."""
    import numpy as np

    from pipelines import TextToImagePipeline

    items = shuffled()
    pipe = TextToImagePipeline.from_pretrained(model)
    output = pipe([items[place].caption for place in judged], seed=0, output_type="np")
    right = are_nearest(np.asarray(output.images), items, judged)
    nats = json.loads((model / "run.json").read_text())["validation"]["nats_per_code"]
    return [
        row(f"transfer/{name}/nearest", float(right.float().mean()), "", None, True),
        row(f"transfer/{name}/nats_per_code", nats, "", None, False),
    ]


def shuffled() -> list[Drawing]:
    """The other drawings in an order by chance, always the same."""
    import numpy as np

    items = other_drawings()
    return [items[place] for place in np.random.default_rng(0).permutation(len(items)).tolist()]


def main(options: Options) -> None:
    """Train both and measure; a table on the screen, rows in the file."""
    threads = options.set_threads()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(options.folder or temporary)
        data = root / "pictures"
        if not data.exists():
            write_folder(data, shuffled()[: options.pictures])
        judged = range(options.pictures, options.pictures + options.judged)
        for name, earlier in (("from_nothing", None), ("from_earlier", Path(options.earlier))):
            rows += judge(train(root / name, data, options, threads, earlier), judged, name)
            write_rows(options.output, rows)
    show(rows)


if __name__ == "__main__":
    run_command(main, Options, __doc__)
