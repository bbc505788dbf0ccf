"""Stock Llama and Qwen3 models on a CPU, advanced by one token, or several, in one call of compiled code.

The time to draw a few pictures is bound by the memory bandwidth: each token reads all weights once. Separate torch
operators take three times as long, so `native.cpp` computes a whole step, and reads the model's weights in
place, without a copy. It is compiled when it is first used, which takes a C++ compiler with OpenMP, and cached in
`~/.cache/tessera` (or TESSERA_CACHE). Without a compiler, or with TESSERA_NATIVE=0,
`lm/generation/direct_stepper.py` takes its place; `unavailable()` says why.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lm.files import cache_root, published

SOURCE = Path(__file__).with_name("native.cpp")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-std=c++17", "-shared", "-fPIC")
DTYPES = (torch.float32, torch.bfloat16)

logger = logging.getLogger(__name__)


class Linear(ctypes.Structure):
    """The struct of this name in native.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "bias")),
        *((name, ctypes.c_int64) for name in ("inputs", "outputs")),
    ]


class Layer(ctypes.Structure):
    """The struct of this name in native.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("attention_norm", "query_norm", "key_norm", "feed_norm")),
        *((name, Linear) for name in ("query", "key", "value", "out", "gate", "up", "down")),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
    ]


class Model(ctypes.Structure):
    """The struct of this name in native.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("threads", "width", "inner", "heads", "key_heads")),
        *((name, ctypes.c_int64) for name in ("head_size", "places", "num_layers")),
        *((name, ctypes.c_float) for name in ("epsilon", "scaling")),
        *((name, ctypes.c_void_p) for name in ("embedding", "norm", "starts", "layers")),
    ]


def unavailable() -> str | None:
    """Why the compiled code cannot be used here; None where it can. The first call compiles it, if need be."""
    library = _library()
    return library if isinstance(library, str) else None


def find_compiler() -> str | None:
    """The C++ compiler: what CXX names, else g++, else clang++; None where there is none."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The compiled code, or the reason why there is none."""
    if os.environ.get("TESSERA_NATIVE") == "0":
        return "TESSERA_NATIVE=0"
    compiler = find_compiler()
    if compiler is None:
        return _log_reason("there is no C++ compiler (g++ or clang++)")
    try:
        library = ctypes.CDLL(str(_compiled(compiler)))
    except subprocess.CalledProcessError as error:
        return _log_reason(f"{compiler} failed: {error.stderr.strip()[-300:]}")
    except OSError as error:
        return _log_reason(str(error))
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.vector_bytes.restype, library.vector_bytes.argtypes = number, []
    for dtype in ("float32", "bfloat16"):
        step, product = getattr(library, f"step_{dtype}"), getattr(library, f"map_{dtype}")
        step.restype = product.restype = None
        step.argtypes = [ctypes.POINTER(Model), number, *[pointer] * 6]
        product.argtypes = [ctypes.POINTER(Linear), pointer, number, number, pointer]
    return library


def _log_reason(reason: str) -> str:
    logger.info("drawing without compiled code, which takes longer: %s", reason)
    return reason


def _compiled(compiler: str) -> Path:
    """The library's file, compiled if it is not in the cache."""
    # The key has the source and the processor's features: machines that differ may share a home folder.
    try:
        processor = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        processor = platform.node()
    key = "\n".join([SOURCE.read_text(), compiler, *FLAGS, platform.machine(), processor])
    file = cache_root() / f"native-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if not file.is_file():
        logger.info("compiling %s, once", SOURCE.name)
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with published(file) as output:  # several processes may compile at once
            command = [compiler, *FLAGS, str(SOURCE), "-o", str(output)]
            subprocess.run(command, check=True, capture_output=True, text=True)
    return file


def fits(model: Any) -> bool:
    """Whether the compiled code computes `model`, which `DirectModel.fits` has accepted."""
    config = model.config
    return (
        type(model).__name__ in ("LlamaForCausalLM", "Qwen3ForCausalLM")
        and getattr(config, "hidden_act", None) == "silu"
        and model.device.type == "cpu"
        and model.dtype in DTYPES
        and all(weight.dtype == model.dtype and weight.is_contiguous() for weight in model.parameters())
        and unavailable() is None
    )


def vector_bytes() -> int:
    """Bytes of the vectors that the compiled code computes with: 64 with AVX-512; 0 where there is no compiled code."""
    library = _library()
    return 0 if isinstance(library, str) else int(library.vector_bytes())


def functions_for(dtype: torch.dtype) -> tuple[Any, Any]:
    """The compiled step, and the product of the output layer, of models in this dtype, one of DTYPES.

    Raises:
        RuntimeError: there is no compiled code here (`unavailable`).
    """
    library = _library()
    if isinstance(library, str):
        raise RuntimeError(library)
    name = str(dtype).removeprefix("torch.")
    return getattr(library, f"step_{name}"), getattr(library, f"map_{name}")


def model_of(model: Any, places: int, starts: torch.Tensor, layers: int) -> Model:
    """Sizes and addresses of a model that `fits`.

    Args:
        places: of each row of the cache.
        starts: (rows,) int64, the first place of each row that is not padding; read by address.
        layers: the address of its `Layer` structs.
    """
    config, attention = model.config, model.model.layers[0].self_attn
    return Model(
        threads=torch.get_num_threads(), width=config.hidden_size, inner=config.intermediate_size,
        heads=config.num_attention_heads, key_heads=config.num_key_value_heads, head_size=attention.head_dim,
        places=places, num_layers=len(model.model.layers), epsilon=config.rms_norm_eps, scaling=attention.scaling,
        embedding=model.get_input_embeddings().weight.data_ptr(), norm=model.model.norm.weight.data_ptr(),
        starts=starts.data_ptr(), layers=layers,
    )  # fmt: skip


def linear_of(layer: nn.Linear, part: slice = slice(None)) -> Linear:
    """The address and shape of some of a layer's output rows."""
    weight, bias = layer.weight[part], None if layer.bias is None else layer.bias[part]
    return Linear(weight.data_ptr(), None if bias is None else bias.data_ptr(), layer.in_features, len(weight))


def layer_of(block: Any, room: torch.Tensor) -> Layer:
    """Addresses of one layer's weights, and of its keys and values: room (2, B, key_heads, places, head_size)."""
    attention, feed = block.self_attn, block.mlp
    normalizes = hasattr(attention, "q_norm")  # Qwen3
    return Layer(
        attention_norm=block.input_layernorm.weight.data_ptr(),
        query_norm=attention.q_norm.weight.data_ptr() if normalizes else None,
        key_norm=attention.k_norm.weight.data_ptr() if normalizes else None,
        feed_norm=block.post_attention_layernorm.weight.data_ptr(),
        query=linear_of(attention.q_proj), key=linear_of(attention.k_proj), value=linear_of(attention.v_proj),
        out=linear_of(attention.o_proj), gate=linear_of(feed.gate_proj), up=linear_of(feed.up_proj),
        down=linear_of(feed.down_proj), keys=room[0].data_ptr(), values=room[1].data_ptr(),
    )  # fmt: skip
