"""Moving averages of a model's weights, which are what is validated and saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pipelines.training.distribution import local, spread


class AveragedWeights:
    """Exponential moving average of a model's parameters, in float32.

    The decay rises with the steps, (1 + step) / (10 + step), up to `decay`, so that short runs are not averaged with
    their random start. Where parameters are sharded, so are the averages. A `decay`, in [0, 1), of 0 turns it off.

    Args:
        trained_only: leave out frozen parameters, whose average would be a copy of themselves.
    """

    def __init__(self, model: nn.Module, decay: float, *, trained_only: bool = False) -> None:
        self.decay = decay
        averaged = {name: each for name, each in model.named_parameters() if each.requires_grad or not trained_only}
        self.names = list(averaged)
        self.parameters: list[torch.Tensor] = list(averaged.values())
        self.averages = [parameter.detach().clone().float() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Fold in the parameters as they are after `step` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        parameters = [local(parameter).float() for parameter in self.parameters]
        torch._foreach_lerp_([local(average) for average in self.averages], parameters, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for one, other in zip(self.parameters, self.averages, strict=True):
            parameter, average = local(one), local(other)
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)

    def state(self) -> dict[str, torch.Tensor]:
        """Averages by parameter name."""
        return dict(zip(self.names, self.averages, strict=True))

    @torch.no_grad()
    def load(self, state: dict[str, torch.Tensor]) -> None:
        """The inverse of `state`, from whole tensors."""
        for name, average in self.state().items():
            local(average).copy_(local(spread(state[name], average)))
