"""Muon: momentum whose matrices are made orthogonal before each step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from pipelines.training.distribution import local, spread
from tokenizer_image.quantizers.screening import has_bfloat16

# Quintic whose five-fold iteration takes singular values from (0, 1] to about 1 (Jordan et al. 2024).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalized(matrices: Tensor) -> Tensor:
    """Nearest (semi-)orthogonal matrices, roughly, of (n, rows, columns), in bfloat16, or in float32 on processors
    without instructions for bfloat16, where that is several times as fast.

    Newton-Schulz on a whole stack at once: small matrices one by one are slow.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.float() if matrices.device.type == "cpu" and not has_bfloat16() else matrices.bfloat16()
    x = x.mT.contiguous() if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    is_wide = x.shape[2] >= 3 * x.shape[1]
    x = _iterate_on_grams(x) if is_wide and x.dtype == torch.float32 else _iterate(x)
    return x.mT if tall else x


def _iterate(x: Tensor) -> Tensor:
    """X <- a X + b (X X') X + c (X X')^2 X, five times, of (n, rows, columns)."""
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _iterate_on_grams(x: Tensor) -> Tensor:
    """The same by matrices (rows, rows) alone, which takes fewer operations where rows are few, in float32.

    With S = X X' and P = a I + b S + c S^2, a step makes P X of X and P S P of S, so that all five are one product of
    the P with the first X. The error is larger for singular values near the square root of the precision: float32 has
    room.
    """
    a, b, c = COEFFICIENTS
    identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)

    def factor_of(gram: Tensor) -> Tensor:
        return torch.baddbmm(a * identity + b * gram, gram, gram, alpha=c)

    gram = x @ x.mT
    product = factor = factor_of(gram)
    for _ in range(ITERATIONS - 1):
        gram = factor @ gram @ factor
        factor = factor_of(gram)
        product = factor @ product
    return product @ x


def as_matrix(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor of a weight's shape as a matrix (out, rest), in the memory order of the weight `like`.

    The order of the columns does not matter to Muon, so a convolution's weight in channels-last memory is read as it
    lies, (out, height, width, in), and nothing is copied.
    """
    if like.ndim == 4 and not like.is_contiguous():
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.reshape(tensor.shape[0], -1)


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal (Jordan et al. 2024, "Muon: an optimizer for hidden layers"), with AdamW's update size.

    For weights with two or more dimensions inside a network (not embeddings, not the output layer); a convolution's
    weight counts as a matrix (out, in x height x width). torch.optim.Muon takes matrices alone, and one at a time.

    With momentum M and G the gradient:  M <- m M + (1 - m) G;  U = orthogonalized((1 - m) G + m M);
    W <- (1 - lr wd) W - lr 0.2 sqrt(max(rows, columns)) U, so that U has the root mean square of AdamW's updates
    (Liu et al. 2025, "Muon is scalable for LLM training").

    Args:
        params: weights with at least two dimensions.
        lr: learning rate, on AdamW's scale.
        momentum: m.
        weight_decay: decoupled weight decay wd.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim < 2:
                    raise ValueError(f"Muon takes weights with two or more dimensions, got {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step for every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            stacks: dict[tuple[int, int], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    rows = parameter.shape[0]
                    stacks.setdefault((rows, parameter.numel() // rows), []).append(parameter)
            for (rows, columns), parameters in stacks.items():
                self._step_stack(parameters, rows, columns, group)
        return loss

    def _step_stack(self, parameters: list[Tensor], rows: int, columns: int, group: dict[str, Any]) -> None:
        momentum = group["momentum"]
        updates = []
        for parameter in parameters:
            gradient = parameter.grad
            assert gradient is not None
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(gradient, 1 - momentum)
            update = gradient.lerp(state["momentum"], momentum)
            # A matrix that is sharded is made orthogonal as a whole, in every process.
            whole = update.full_tensor() if isinstance(update, DTensor) else update
            updates.append(as_matrix(whole, parameter))
        stack = orthogonalized(torch.stack(updates))
        scale = group["lr"] * 0.2 * max(rows, columns) ** 0.5
        for parameter, update in zip(parameters, stack, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            if parameter.ndim == 4 and not parameter.is_contiguous():
                out, channels, height, width = parameter.shape
                update = update.view(out, height, width, channels).permute(0, 3, 1, 2)
            update = spread(update.reshape(parameter.shape).to(parameter.dtype), parameter)
            local(parameter).add_(local(update), alpha=-scale)
