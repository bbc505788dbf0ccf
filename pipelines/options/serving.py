"""Options of `scripts/serve.py`: no torch, so that --help is quick."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pipelines.options.inference import ModelOptions
from pipelines.options.option import check_values, option

KEY_VARIABLE = "TESSERA_API_KEY"
MEGABYTE = 1_000_000


@dataclass
class ServingOptions(ModelOptions):
    """A server with an endpoint in OpenAI's shape."""

    model_name: str | None = option(None, "what clients call the model (default: the last part of --model)")
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 lets other machines in: give an --api_key then")
    port: int = option(7860, "port to listen on; 0 takes a free one", within="[0, 65535]")
    api_key: str | None = option(
        None,
        f"clients must give this key (also from the environment variable {KEY_VARIABLE}, which `ps` does not show)",
    )
    allowed_origins: list[str] = option([], "web pages of these origins may call the endpoint (CORS); * is every one")

    page: bool = option(True, "serve the web page at / beside the endpoint")
    share: bool = option(False, "let the internet in, through a tunnel of gradio's makers; give an --api_key then")

    pictures_at_once: int = option(32, "most pictures in one call of the model", above_zero=True)
    waiting_requests: int = option(256, "requests beyond so many that wait get 429", above_zero=True)
    request_seconds: float = option(300.0, "most time of a request, its waiting included", above_zero=True)
    images_per_request: int = option(64, "most pictures, or texts to choose among, of a request", above_zero=True)
    prompt_tokens: int = option(256, "most tokens of a prompt, where the model has room for as many", above_zero=True)
    description_tokens: int = option(128, "most tokens of a description", above_zero=True)
    body_megabytes: float = option(20.0, "most megabytes of a request", above_zero=True)
    upload_pixels: int = option(16_777_216, "most pixels of an uploaded picture", above_zero=True)
    cpu_threads: int | None = option(
        None, "threads of the model (default: the cores that this process may use)", above_zero=True
    )

    def __post_init__(self) -> None:
        check_values(self)
        source = "--api_key"
        if self.api_key is None and KEY_VARIABLE in os.environ:
            self.api_key, source = os.environ[KEY_VARIABLE], KEY_VARIABLE
        if self.api_key is not None and not self.api_key.strip():
            raise ValueError(f"{source} is empty: give a key, or leave it out to let everyone in")
        if self.api_key is not None and not self.api_key.isascii():
            raise ValueError(f"{source} has letters that a header cannot carry: use ASCII")

    @property
    def served_name(self) -> str:
        """What clients call the model."""
        return self.model_name or os.path.basename(os.path.normpath(self.chosen_model)) or "model"

    @property
    def body_bytes(self) -> int:
        """Most bytes of a request."""
        return round(self.body_megabytes * MEGABYTE)
