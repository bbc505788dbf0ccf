"""Stock Llama, Qwen3 and GPT-2 models, advanced by one token in few operations.

One token of one picture is little work, so the overhead of transformers' modules (hooks, a new mask at each step, a
cache that is copied to grow) costs more than the matrix products. This module reads the same weights: it joins products
of the same input, allocates the cache once and reads only the used part, and on a CPU keeps the weights in the order
that oneDNN's kernel reads fastest. The prompt still goes through the model's forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from lm.generation.stepper import Stepper
from lm.model import plain_head

Function = Callable[[torch.Tensor], torch.Tensor]
KeysValues = tuple[torch.Tensor, torch.Tensor]  # (B, key_heads, places, head_dim) each
Rotation = tuple[torch.Tensor, torch.Tensor] | None  # cosines and sines of each token; None: positions are learned
# Queries (N, heads, head_dim), keys and values (N, key_heads, head_dim), cache, scaling -> attended, N heads head_dim.
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, KeysValues, float], torch.Tensor]


class Product:
    """`x W^T + b` for one or several layers of the same input, their outputs side by side.

    On a CPU the weights are copied once into oneDNN's blocked order, which with few rows makes a product up to twice as
    fast. torch offers it only through internal operators of its compiler; where they are missing, plain `linear` is
    used.
    """

    def __init__(self, layers: Sequence[Any], rows: int, part: slice = slice(None)) -> None:
        weights = [layer.weight.t() if isinstance(layer, Conv1D) else layer.weight for layer in layers]  # (out, in)
        biases = [layer.bias for layer in layers]
        self.weight = (torch.cat(weights) if len(weights) > 1 else weights[0])[part].detach()
        self.bias = None
        if any(bias is not None for bias in biases):
            zeros = [weight.new_zeros(len(weight)) for weight in weights]
            self.bias = torch.cat([z if b is None else b for b, z in zip(biases, zeros, strict=True)])[part].detach()
        self.blocked = uses_blocked_order(self.weight)
        if self.blocked:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous(), rows)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, in) to (B, out)."""
        if self.blocked:
            return torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")
        return functional.linear(inputs, self.weight, self.bias)

    def added_to(self, state: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """state (B, out) plus the product of inputs (B, in)."""
        if self.blocked:
            return torch.ops.mkldnn._linear_pointwise(inputs, state, self.weight, self.bias, "add")
        return state + functional.linear(inputs, self.weight, self.bias)


def uses_blocked_order(weight: torch.Tensor) -> bool:
    """Whether torch has oneDNN's blocked order for this weight's device and dtype."""
    operators = torch.ops.mkldnn
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and hasattr(operators, "_reorder_linear_weight")
        and hasattr(operators, "_linear_pointwise")
        and (weight.dtype == torch.float32 or operators._is_mkldnn_bf16_supported())
    )


@dataclass
class Layer:
    """One layer: attention, then the feed-forward part, each added to the state.

    Attributes:
        attention_norm, feed_norm: normalize the state (B, d).
        projections: queries, keys and values of all heads, side by side.
        head_norm: normalizes queries and keys (B, heads, head_dim) head by head, or None.
        scaling: of the attention scores.
        activation: between the two products of the feed-forward part; times the second half where `gated`.
    """

    attention_norm: Function
    projections: Product
    head_norm: Function | None
    scaling: float
    attention_out: Product
    feed_norm: Function
    feed_in: Product
    activation: Function
    gated: bool
    feed_out: Product


class DirectModel:
    """The weights of a stock model, laid out for drawing; built once for a call and shared by its batches.

    Args:
        rows: about how many rows the batches have.
    """

    def __init__(self, model: Any, rows: int) -> None:
        config = model.config
        self.model, self.rows = model, rows
        self.heads = config.num_attention_heads
        self.key_heads = getattr(config, "num_key_value_heads", None) or self.heads
        self.embedding: torch.Tensor = model.get_input_embeddings().weight
        self.head: nn.Linear = model.get_output_embeddings()
        self.positions: torch.Tensor | None = None  # learned ones
        self.rotary: nn.Module | None = None
        if type(model).__name__ == "GPT2LMHeadModel":
            self.positions = model.transformer.wpe.weight
            self.layers = [_gpt2_layer(block, rows) for block in model.transformer.h]
            self.norm = _norm(model.transformer.ln_f)
        else:
            self.rotary = model.model.rotary_emb
            self.layers = [_llama_layer(block, self.heads, self.key_heads, rows) for block in model.model.layers]
            self.norm = _norm(model.model.norm)
        # torch's attention on a CPU is several times slower in bfloat16 than in float32, copies included.
        self.cache_dtype: torch.dtype = torch.float32 if model.device.type == "cpu" else model.dtype
        self._products: dict[tuple[int, int], Product] = {}

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether `model` is one of the stock models, without hooks or replaced modules: then its weights alone define
        what it computes."""
        config, name = model.config, type(model).__name__
        if plain_head(model) is None or name not in ("LlamaForCausalLM", "Qwen3ForCausalLM", "GPT2LMHeadModel"):
            return False
        if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
            return False
        rope = getattr(getattr(model.base_model, "rotary_emb", None), "rope_type", "default")
        if rope in ("dynamic", "longrope"):  # rotary frequencies that change with the length
            return False
        plain = (nn.Linear, nn.Embedding, nn.ModuleList, nn.LayerNorm, nn.Dropout)
        packages = ("transformers.", "torch.nn.modules.activation")
        return all(
            (type(part) in plain or type(part).__module__.startswith(packages))
            and not (part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part))
            for part in model.modules()
        )

    def head_product(self, first: int, last: int) -> Product:
        """The rows of the output layer for tokens `first <= id < last`."""
        if (first, last) not in self._products:
            self._products[first, last] = Product([self.head], self.rows, slice(first, last))
        return self._products[first, last]

    def rotations(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines (A, B, 1, head_dim) of tokens at places (A, B), of a model that has a `rotary`."""
        assert self.rotary is not None
        cos, sin = self.rotary(torch.zeros((), dtype=self.cache_dtype, device=places.device), places)
        half = sin.shape[-1] // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)  # rotating then takes a roll, a product, a sum
        return cos[:, :, None], sin[:, :, None]

    def through_layers(
        self, state: torch.Tensor, caches: Sequence[KeysValues], rotation: Rotation, attend: Attention
    ) -> torch.Tensor:
        """The last norm's output (N, d) of tokens whose embeddings are `state` (N, d); a cache for each layer."""
        for layer, cache in zip(self.layers, caches, strict=True):
            state = self._attention(layer, state, cache, rotation, attend)
            inner = layer.feed_in(layer.feed_norm(state))
            if layer.gated:
                gate, inner = inner.chunk(2, -1)
                inner = layer.activation(gate) * inner
            else:
                inner = layer.activation(inner)
            state = layer.feed_out.added_to(state, inner)
        return self.norm(state)

    def _attention(
        self, layer: Layer, state: torch.Tensor, cache: KeysValues, rotation: Rotation, attend: Attention
    ) -> torch.Tensor:
        """The state (N, d) with attention added; `attend` first writes the tokens' keys and values into the cache."""
        count, heads, key_heads = len(state), self.heads, self.key_heads
        vectors = layer.projections(layer.attention_norm(state)).view(count, heads + 2 * key_heads, -1)
        mixed, value = vectors[:, : heads + key_heads], vectors[:, heads + key_heads :]
        if layer.head_norm is not None:
            mixed = layer.head_norm(mixed)
        mixed = mixed.to(self.cache_dtype)
        if rotation is not None:
            cos, sin = rotation
            mixed = torch.addcmul(mixed * cos, mixed.roll(mixed.shape[-1] // 2, -1), sin)
        attended = attend(mixed[:, :heads], mixed[:, heads:], value, cache, layer.scaling)
        return layer.attention_out.added_to(state, attended.reshape(count, -1).to(state.dtype))


def _norm(module: Any) -> Function:
    """RMSNorm or LayerNorm as one function."""
    shape = tuple(module.weight.shape)
    if isinstance(module, nn.LayerNorm):
        return partial(functional.layer_norm, normalized_shape=shape, weight=module.weight, bias=module.bias,
                       eps=module.eps)  # fmt: skip
    return partial(functional.rms_norm, normalized_shape=shape, weight=module.weight, eps=module.variance_epsilon)


def _llama_layer(block: Any, heads: int, key_heads: int, rows: int) -> Layer:
    """A layer of Llama, or of Qwen3, which normalizes queries and keys as well."""
    attention, feed = block.self_attn, block.mlp
    head_norm = None
    if hasattr(attention, "q_norm"):
        weight = torch.cat([attention.q_norm.weight.expand(heads, -1), attention.k_norm.weight.expand(key_heads, -1)])
        size, epsilon = weight.shape[-1:], attention.q_norm.variance_epsilon

        def head_norm(vectors: torch.Tensor) -> torch.Tensor:
            return weight * functional.rms_norm(vectors, size, eps=epsilon)

    return Layer(
        attention_norm=_norm(block.input_layernorm),
        projections=Product([attention.q_proj, attention.k_proj, attention.v_proj], rows),
        head_norm=head_norm,
        scaling=attention.scaling,
        attention_out=Product([attention.o_proj], rows),
        feed_norm=_norm(block.post_attention_layernorm),
        feed_in=Product([feed.gate_proj, feed.up_proj], rows),
        activation=feed.act_fn,
        gated=True,
        feed_out=Product([feed.down_proj], rows),
    )


def _gpt2_layer(block: Any, rows: int) -> Layer:
    return Layer(
        attention_norm=_norm(block.ln_1),
        projections=Product([block.attn.c_attn], rows),
        head_norm=None,
        scaling=block.attn.scaling,
        attention_out=Product([block.attn.c_proj], rows),
        feed_norm=_norm(block.ln_2),
        feed_in=Product([block.mlp.c_fc], rows),
        activation=block.mlp.act,
        gated=False,
        feed_out=Product([block.mlp.c_proj], rows),
    )


class DirectStepper(Stepper):
    """A `DirectModel` and its cache. The prompt goes through the model's forward, new tokens through `DirectModel`."""

    rows_apart = True
    goes_back = True

    def __init__(self, direct: DirectModel, prompts: Sequence[Sequence[int]], num_new_tokens: int, pad_id: int) -> None:
        super().__init__(direct.model, prompts, num_new_tokens, pad_id)
        self._direct, self._fed = direct, 0
        self._dtype = direct.cache_dtype
        # One more place takes what `feed` is given as padding; no token attends to it.
        total = self._length + num_new_tokens + 1
        self._keys_values = [self._room(layer.keys, layer.values, total) for layer in self._cache.layers]
        self._cache = None
        hidden = functional.pad(self._mask == 0, (0, 1))  # (B, total)
        self._bias: torch.Tensor | None = None  # (B, 1, 1, total), -inf on padding
        if hidden.any():
            self._bias = torch.zeros(hidden.shape, dtype=self._dtype, device=self.device)
            self._bias = self._bias.masked_fill(hidden, -torch.inf)[:, None, None]
        # Rotations, or learned position embeddings, of all new tokens, computed at once.
        places = self._positions.T + torch.arange(num_new_tokens, device=self.device)[:, None]  # (num_new_tokens, B)
        if direct.rotary is not None:
            self._cosines, self._sines = direct.rotations(places)  # (num_new_tokens, B, 1, head_dim)
        elif direct.positions is not None:
            self._added = direct.positions[places]  # (num_new_tokens, B, d)

    def advance(self, ids: torch.Tensor) -> None:
        """Feed token `ids` (B,)."""
        direct, rows = self._direct, len(ids)
        state = functional.embedding(ids, direct.embedding)  # (B, d)
        if direct.positions is not None:
            state = state + self._added[self._fed]
        bias = None if self._bias is None else self._bias[..., : self._length + 1]
        rotation = None if direct.rotary is None else (self._cosines[self._fed], self._sines[self._fed])

        def attend(
            queries: torch.Tensor, mixed: torch.Tensor, value: torch.Tensor, cache: KeysValues, scaling: float
        ) -> torch.Tensor:
            keys, values = cache
            keys.select(2, self._length).copy_(mixed)
            values.select(2, self._length).copy_(value)
            used = self._length + 1
            # Query heads that share a key head take the place of the query length, so that keys need not be repeated.
            queries = queries.reshape(rows, direct.key_heads, direct.heads // direct.key_heads, -1)
            return functional.scaled_dot_product_attention(
                queries, keys.narrow(2, 0, used), values.narrow(2, 0, used), attn_mask=bias, scale=scaling
            )

        self._state = direct.through_layers(state, self._keys_values, rotation, attend)
        self._length += 1
        self._fed += 1

    def feed(self, ids: torch.Tensor, starts: torch.Tensor) -> None:
        """Feed several tokens a row, as `Stepper.feed`; rows may begin at different tokens."""
        direct, (rows, width) = self._direct, ids.shape
        ids, starts = ids.to(self.device), starts.to(self.device)
        numbers, padding = starts[:, None] + torch.arange(width, device=self.device), ids < 0  # (B, W)
        total = self._keys_values[0][0].shape[2]
        places = torch.where(padding, total - 1, self._prompt_length + numbers)
        used = int(torch.where(padding, 0, places).max()) + 1
        row = torch.arange(rows, device=self.device).repeat_interleave(width)  # (B W)
        number, place = torch.where(padding, 0, numbers).reshape(-1), places.reshape(-1)
        state = functional.embedding(ids.clamp(min=0).reshape(-1), direct.embedding)  # (B W, d)
        if direct.positions is not None:
            state = state + self._added[number, row]
        rotation = None if direct.rotary is None else (self._cosines[number, row], self._sines[number, row])
        later = torch.arange(used, device=self.device) > places[..., None]  # (B, W, used)
        bias = torch.zeros(later.shape, dtype=self._dtype, device=self.device).masked_fill(later, -torch.inf)[:, None]
        if self._bias is not None:
            bias = bias + self._bias[..., :used]
        group = direct.heads // direct.key_heads
        bias = bias.repeat(1, 1, group, 1)  # (B, 1, group W, used)

        def attend(
            queries: torch.Tensor, mixed: torch.Tensor, value: torch.Tensor, cache: KeysValues, scaling: float
        ) -> torch.Tensor:
            keys, values = cache
            keys[row, :, place] = mixed
            values[row, :, place] = value.to(values.dtype)
            queries = queries.reshape(rows, width, direct.key_heads, group, -1).permute(0, 2, 3, 1, 4)
            attended = functional.scaled_dot_product_attention(
                queries.reshape(rows, direct.key_heads, group * width, -1), keys[:, :, :used], values[:, :, :used],
                attn_mask=bias, scale=scaling,
            )  # fmt: skip
            return attended.reshape(rows, direct.key_heads, group, width, -1).permute(0, 3, 1, 2, 4)

        self._states = direct.through_layers(state, self._keys_values, rotation, attend).view(rows, width, -1)

    def _map(self, states: torch.Tensor, first: int, last: int) -> torch.Tensor:
        return self._direct.head_product(first, last)(states).float()

    def _room(self, keys: torch.Tensor, values: torch.Tensor, total: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The prompt's keys and values (B, key_heads, L, head_dim), with room for `total` tokens."""
        rows, heads, length, size = keys.shape
        # Zeros: attention multiplies values that are hidden by 0, which NaN would survive.
        room = torch.zeros(2, rows, heads, total, size, dtype=self._dtype, device=self.device)
        room[0, :, :, :length], room[1, :, :, :length] = keys, values
        return room[0], room[1]
