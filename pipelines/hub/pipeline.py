"""A model of Tessera as a pipeline of diffusers: copied to the Hub beside the model, where diffusers finds it.

    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained("owner/name", custom_pipeline="owner/name", trust_remote_code=True)
    pipe("a dog").images[0].save("dog.png")

It needs `tessera` to be installed, and no other file of the repository's code than image_tokenizer/modeling_tessera.py.
"""

from __future__ import annotations

from typing import Any

from diffusers import DiffusionPipeline

from lm.vocabulary import MultimodalVocabulary
from pipelines.drawing.prompts import Prompt
from pipelines.text_to_image import TextToImageOutput, TextToImagePipeline


class TesseraPipeline(DiffusionPipeline):
    """Draws as `TextToImagePipeline`, which is its attribute `drawing`, with all that this one can do besides.

    Args:
        image_tokenizer, lm: the models.
        vocabulary: the tokenizer in the folder of the same name, where vocabulary.json lies beside it.
        format_version, image_tokenizer_fingerprint: entries of model_index.json, as Tessera writes them.
    """

    def __init__(
        self,
        image_tokenizer: Any,
        lm: Any,
        vocabulary: Any,
        format_version: int = 1,
        image_tokenizer_fingerprint: str = "",
    ) -> None:
        super().__init__()
        own: Any = self  # diffusers' types hide what its base classes have
        own.register_modules(image_tokenizer=image_tokenizer, lm=lm, vocabulary=vocabulary)
        own.register_to_config(format_version=format_version, image_tokenizer_fingerprint=image_tokenizer_fingerprint)
        joint = MultimodalVocabulary.from_pretrained(vocabulary.name_or_path)
        self.drawing = TextToImagePipeline(image_tokenizer, lm, joint)

    def __call__(self, prompt: Prompt = None, **settings: Any) -> TextToImageOutput:
        """Draw: the arguments are those of `TextToImagePipeline`."""
        self.drawing.set_progress_bar_config(**getattr(self, "_progress_bar_config", {"disable": None}))
        return self.drawing(prompt, **settings)
