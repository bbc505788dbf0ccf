"""Serve a trained model at an endpoint in OpenAI's shape.

    python scripts/serve.py --model runs/model

Clients of OpenAI's interface use http://127.0.0.1:7860/v1 (docs/serving.md).
"""

from __future__ import annotations

import gc
import logging
import os
import sys

from pipelines.options.parser import run_command
from pipelines.options.serving import ServingOptions


def main(options: ServingOptions) -> None:
    """Load, listen, and serve until SIGTERM or Ctrl-C."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # prompts come one by one
    try:
        from pipelines.example_prompts import example_prompts
        from pipelines.serving.endpoint.application import create_application
        from pipelines.serving.endpoint.running import listening_socket, load_held, serve
        from pipelines.serving.engine.engine import DrawingEngine
        from pipelines.serving.settings import engine_limits, serving_settings
        from pipelines.serving.sharing import public_address

        if options.page:  # gradio takes seconds to import
            from pipelines.serving.page.page import mount_page
    except ModuleNotFoundError as error:
        raise ValueError(f"serving needs {error.name}: pip install 'tessera[serving]'") from error
    import torch

    from lm.sequences import DRAWING_ALONE, DRAWING_CAPTIONS
    from pipelines.machine.processors import usable_cores

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    listener = listening_socket(options.host, options.port)
    torch.set_num_threads(options.cpu_threads or usable_cores())
    pipe = load_held(options)
    gc.enable()
    if not set(pipe.vocabulary.formats) & {*DRAWING_ALONE, *DRAWING_CAPTIONS}:
        logging.warning("this model has learned to describe alone: requests for pictures are refused")
    settings = serving_settings(options)
    with DrawingEngine(pipe, engine_limits(options)) as engine:
        application = create_application(engine, settings)
        if options.page:
            mount_page(application, engine, settings, example_prompts(pipe.folder))
        address = "http://{}:{}".format(*listener.getsockname()[:2])
        print(f"serving {options.served_name} at {address}/v1 (Ctrl-C ends)", flush=True)
        if options.page:
            print(f"the page is at {address}", flush=True)
        if options.share:
            print(f"shared at {public_address(*listener.getsockname()[:2])} until this ends", flush=True)
        serve(application, listener)
    print("finished what was under way", file=sys.stderr)


if __name__ == "__main__":
    gc.disable()  # until the model is loaded: garbage collection during imports takes half a second
    run_command(main, ServingOptions, __doc__)
