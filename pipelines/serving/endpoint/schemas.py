"""Bodies of requests and answers, as the `openai` client's types have them, with further settings as extra fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import UploadFile
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pipelines.serving.endpoint.uploads import OutputFormat

MOST_PREVIEWS = 3  # partial images, by OpenAI's documentation
LARGEST_SEED = 2**63 - 1
MOST_LETTERS = 100_000  # of a prompt, before its tokens are counted


def _whole(value: Any) -> Any:
    """JSON's true is no number."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


Number = Annotated[float, BeforeValidator(_whole)]
Whole = Annotated[int, BeforeValidator(_whole)]


class SamplingFields(BaseModel):
    """Settings of a pipeline's call that OpenAI's clients send as extra fields."""

    seed: Whole | None = Field(None, ge=0, le=LARGEST_SEED)
    temperature: Number | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    top_k: Whole | None = Field(None, ge=0, le=LARGEST_SEED)
    top_p: Number | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    min_p: Number | None = Field(None, ge=0, le=1, allow_inf_nan=False)


class PictureFields(SamplingFields):
    """What requests for pictures share. What has no meaning here (quality, style, ...) is taken and ignored."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    n: Whole | None = Field(None, ge=1)
    size: str | None = Field(None, description="WIDTHxHEIGHT, one of the model's sizes, or auto")
    response_format: Literal["b64_json", "url"] | None = Field(None, description="url: a data URL")
    output_format: OutputFormat | None = None
    output_compression: Whole | None = Field(None, ge=0, le=100)
    negative_prompt: str | None = Field(None, max_length=MOST_LETTERS)
    guidance_scale: Number | None = Field(None, ge=0, le=1000, allow_inf_nan=False)
    user: str | None = None
    safety_identifier: str | None = None
    quality: str | None = None
    moderation: str | None = None
    background: Literal["opaque", "auto"] | None = None

    @model_validator(mode="after")
    def _check_compression(self) -> PictureFields:
        if self.output_compression not in (None, 100) and self.output_format not in ("jpeg", "webp"):
            raise ValueError("output_compression is for output_format jpeg or webp")
        return self


class StreamFields(PictureFields):
    """Requests whose pictures can be sent while they are drawn."""

    prompt: str = Field(max_length=MOST_LETTERS)
    stream: bool | None = None
    partial_images: Whole | None = Field(None, ge=0, le=MOST_PREVIEWS)

    @model_validator(mode="after")
    def _check_stream(self) -> StreamFields:
        if self.stream and self.response_format == "url":
            raise ValueError("stream sends pictures as b64_json: leave response_format out")
        if self.partial_images and not self.stream:
            raise ValueError("partial_images are sent with stream=true")
        return self


class GenerationBody(StreamFields):
    """Body of /v1/images/generations."""

    style: str | None = None


class EditForm(StreamFields):
    """Form of /v1/images/edits."""

    image: UploadFile
    mask: UploadFile | None = Field(None, description="transparent where to draw again; default: the picture's own")
    input_fidelity: str | None = None


class VariationForm(PictureFields):
    """Form of /v1/images/variations."""

    image: UploadFile
    prompt: str | None = Field(None, max_length=MOST_LETTERS)
    redraw: Number | None = Field(
        None, gt=0, le=1, description="share of the picture to draw again", allow_inf_nan=False
    )
    keep_levels: Whole | None = Field(None, ge=1, le=LARGEST_SEED)


class ImageUrl(BaseModel):
    """A picture as a data URL."""

    url: str


class ContentPart(BaseModel):
    """A part of a message: a text, or a picture."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None


class ChatMessage(BaseModel):
    """A message of a chat."""

    role: str
    content: str | list[ContentPart] | None = None


class ChatBody(SamplingFields):
    """Body of /v1/chat/completions. The model reads the last picture; texts are ignored."""

    model: str | None = None
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: Whole | None = Field(None, ge=1, le=LARGEST_SEED)
    max_completion_tokens: Whole | None = Field(None, ge=1, le=LARGEST_SEED)
    n: Whole | None = Field(None, ge=1, le=1)
    stream: bool | None = None
    best_of: Whole | None = Field(None, ge=1)


class InputDetails(BaseModel):
    """Tokens that were read."""

    image_tokens: int = 0
    text_tokens: int


class Usage(BaseModel):
    """Tokens that were read and drawn."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    total_tokens: int


class PictureData(BaseModel):
    """One picture; with its seed, it can be had alone."""

    b64_json: str | None = None
    url: str | None = None
    seed: int


class PicturesAnswer(BaseModel):
    """Answer with pictures."""

    created: int
    background: Literal["opaque"] = "opaque"
    data: list[PictureData]
    output_format: OutputFormat
    size: str
    usage: Usage


class ModelCard(BaseModel):
    """The model that is served.

    Attributes:
        sizes: WIDTHxHEIGHT of the pictures that it draws.
        capabilities: "draw", "draw_without_prompt", "describe".
    """

    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "tessera"
    sizes: list[str]
    capabilities: list[str]


class ModelList(BaseModel):
    """The models that are served: one."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ChatAnswerMessage(BaseModel):
    """The description."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: str | None = None


class ChatChoice(BaseModel):
    """The only choice of an answer."""

    index: int = 0
    message: ChatAnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatUsage(BaseModel):
    """Tokens that were read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatAnswer(BaseModel):
    """Answer with a description."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage
