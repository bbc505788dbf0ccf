"""Messages to the user from one of several processes."""

from __future__ import annotations

from accelerate import Accelerator
from tqdm.auto import tqdm


def say(accelerator: Accelerator, text: str) -> None:
    """Print from the main process, above any progress bar."""
    if accelerator.is_main_process:
        tqdm.write(text)
