"""The endpoint on Ray Serve: replicas that each hold a model, behind one address.

    ray start --head --include-dashboard false --disable-usage-stats
    serve run configs/ray_serve.yaml

The file says how many replicas there are, by which load they become more, what each may use, and, in `args`, options of
`scripts/serve.py`. Each replica is the application of `create_application` with an engine of its own, so API key,
limits and answers are those of a single server; limits count for each replica.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fastapi import FastAPI

from pipelines.options.serving import ServingOptions

NAME = "Tessera"  # of the deployment, in the configuration file
# Options of the command that a replica has no use for, and why.
OTHERS = {
    "host": "Ray Serve listens where http_options says",
    "port": "Ray Serve listens where http_options says",
    "page": "replicas serve the endpoint alone, since a page's requests need not reach the replica that began them",
    "share": "replicas serve the endpoint alone",
}


def build(args: Mapping[str, Any]) -> Any:
    """What a configuration file names as `import_path`: the application, as Ray Serve deploys it.

    Args:
        args: options of `scripts/serve.py` by name, without dashes. A replica takes the API key from the environment
            variable TESSERA_API_KEY of its node where there is none.

    Returns:
        `ray.serve.Application`.

    Raises:
        ValueError: an option that there is not, or that cannot be as it is.
    """
    from ray import serve

    given = dict(args)
    options_of(given)  # here, so that a mistake ends the command and not each replica

    def application() -> FastAPI:
        return replica_application(given)

    deployment: Any = serve.deployment(serve.ingress(application)(), name=NAME)
    return deployment.bind()


def options_of(args: Mapping[str, Any]) -> ServingOptions:
    """The options of a replica.

    Raises:
        ValueError: an option that there is not, or that cannot be as it is.
    """
    known = [one.name for one in fields(ServingOptions) if one.name not in OTHERS]
    for name in args:
        if name in OTHERS:
            raise ValueError(f"args: {name}: {OTHERS[name]}")
        if name not in known:
            raise ValueError(f"args: there is no option {name!r}; there are {', '.join(known)}")
    return ServingOptions(**args)


def replica_application(args: Mapping[str, Any]) -> FastAPI:
    """Load the model and start an engine, in the process of a replica; the application's end stops the engine."""
    import ray
    import torch

    from pipelines.serving.endpoint.application import create_application
    from pipelines.serving.endpoint.running import SWITCH_SECONDS, load_held
    from pipelines.serving.engine.engine import DrawingEngine
    from pipelines.serving.settings import engine_limits, serving_settings

    options = options_of(args)
    cores = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    torch.set_num_threads(options.cpu_threads or max(1, int(cores)))
    sys.setswitchinterval(SWITCH_SECONDS)
    pipe = load_held(options)
    engine = DrawingEngine(pipe, engine_limits(options))
    return create_application(engine, serving_settings(options))
