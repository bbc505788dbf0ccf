"""Make a Hugging Face Space of a model on the Hub: its web page, and the endpoint beside it.

python scripts/make_space.py --model owner/name --output space
python scripts/make_space.py --model owner/name --push owner/space-name
"""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.options.option import check_values, option
from pipelines.options.parser import run_command


@dataclass
class SpaceOptions:
    """Options of `scripts/make_space.py`."""

    model: str = option("", "the model's name on the Hub, owner/name (push_to_hub puts one there)")
    output: str | None = option(None, "write the Space into this folder")
    push: str | None = option(None, "write it to the Hub, under this name (owner/name; needs `hf auth login`)")
    title: str | None = option(None, "of the Space (default: the model's name)")
    private: bool = option(False, "let nobody else see the Space that is pushed")

    def __post_init__(self) -> None:
        check_values(self)
        if not self.model:
            raise ValueError("--model is missing: the model's name on the Hub, owner/name")
        if (self.output is None) == (self.push is None):
            raise ValueError("say where the Space goes: either --output FOLDER or --push OWNER/NAME")


def main(options: SpaceOptions) -> str:
    """Write or push the Space, and return where it is."""
    from pipelines.serving.space import push_space, write_space

    if options.output is not None:
        where = str(write_space(options.output, options.model, options.title))
    else:
        private = options.private or None  # None: as the owner's settings have it
        where = push_space(str(options.push), options.model, title=options.title, private=private)
    print(where)
    return where


if __name__ == "__main__":
    run_command(main, SpaceOptions, __doc__)
