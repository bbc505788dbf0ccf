"""Options that the commands which use a trained model share: no torch, so that --help is quick."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pipelines.model_folder import DEFAULT_SHIPPED, OWN_MODEL, default_model, model_origin
from pipelines.options.option import option

if TYPE_CHECKING:
    from pipelines.multimodal import MultimodalPipeline

    PipelineT = TypeVar("PipelineT", bound=MultimodalPipeline)


@dataclass
class ModelOptions:
    """Which model, and where and in which precision it runs."""

    model: str | None = option(
        None,
        f"model folder, the name of a model on the Hub, or {DEFAULT_SHIPPED!r}, which comes with Tessera (default: "
        f"{OWN_MODEL} where there is such a folder, else {DEFAULT_SHIPPED})",
    )
    device: str = option("auto", "cpu, cuda, ...; auto: a GPU where there is one")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "of the language model")

    @property
    def chosen_model(self) -> str:
        """The model's name or folder: the default's, where the option is not given."""
        return default_model() if self.model is None else self.model

    def load(self, kind: type[PipelineT]) -> PipelineT:
        """The pipeline, on its device. A line on stderr says which model it is.

        Raises:
            ValueError: `model` is not a model folder.
        """
        import transformers

        from pipelines.machine.devices import choose_device

        transformers.logging.disable_progress_bar()  # loading takes too little time for one
        name = self.chosen_model
        pipeline = kind.from_pretrained(name, dtype=self.dtype, device=choose_device(self.device))
        print(f"model: {model_origin(name)}", file=sys.stderr)
        return pipeline


@dataclass
class SamplingOptions:
    """How freely codes or texts are drawn."""

    temperature: float | None = option(1.0, "0 takes the likeliest each time")
    top_k: int = option(0, "choose among the k likeliest; 0: among all")
    top_p: float = option(1.0, "choose among the likeliest that have this probability together")
    min_p: float = option(0.0, "leave out what has less than this share of the likeliest one's probability")

    # Options that the pipeline's call takes under the same names.
    sampling_names: ClassVar[tuple[str, ...]] = ("temperature", "top_k", "top_p", "min_p")

    def check_sampling(self) -> None:
        """Raise ValueError for a sampling setting out of range."""
        from lm.generation.sampling import SamplingSettings

        try:
            SamplingSettings(**{name: value for name, value in self.sampling().items() if value is not None})
        except ValueError as error:
            raise ValueError(f"--{error}") from error  # its message starts with the setting's name

    def sampling(self) -> dict[str, Any]:
        """Keyword arguments of the pipeline's call."""
        return {name: getattr(self, name) for name in self.sampling_names}


@dataclass
class GuidedSamplingOptions(SamplingOptions):
    """How freely pictures are drawn, and how closely to their prompts."""

    temperature: float | None = option(None, "0 takes the likeliest each time (default: the model's own)")
    guidance_scale: float | None = option(
        None, "how strongly to follow the prompt: 1 is off (default: the model's own)"
    )

    sampling_names: ClassVar[tuple[str, ...]] = (*SamplingOptions.sampling_names, "guidance_scale")
