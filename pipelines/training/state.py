"""The state that a run resumes from, as a checkpoint holds it: whole tensors, for any number and kind of processes.

model/{name}        parameters, each once where layers share them, and buffers; of a model with adapters (`lm.lora`),
                    only what is trained
frozen/bits         of such a model: what its frozen weights are recognised by
averaged/{name}     averaged parameters
optimizer/{name}    states of the optimizers
companion/{name}    parameters and buffers of what trains beside the model
companion_optimizer/{name}  states of its optimizers
random/{name}       states of PyTorch's generators, of the main process
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from pipelines.training.averages import AveragedWeights
from pipelines.training.best_kept import Best
from pipelines.training.distribution import gathered, is_sharded, reshard, spread, whole_copy
from pipelines.training.optimizers import check_optimizer_tensors, load_optimizer_tensors, optimizer_tensors


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: optimizer steps taken.
        seconds: training time.
        place: where in the order of data the next batch is (`lm.data.batch_order.Place`).
        tokens: read by the language model, over all processes.
        best: the best validation so far.
    """

    step: int = 0
    seconds: float = 0.0
    place: Sequence[int] = (0, 0, 0)
    tokens: int = 0
    best: Best = field(default_factory=Best)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; without the step, which is in the checkpoint's name."""
        best = self.best.to_dict()
        return {
            "seconds": self.seconds, "place": list(self.place), "tokens": self.tokens, "best": best.pop("score"),
            "best_of": best,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Progress:
        """The inverse of `to_dict`, with the step; tokens and best are absent in checkpoints of stage 1's first
        versions, and what is known of the best but its score in those of later ones: its place is then this step."""
        step, seconds, score = values["step"], values["seconds"], values.get("best")
        place, tokens = values.get("place", (0, 0, 0)), values.get("tokens", 0)
        described = values.get("best_of", {"step": step, "seconds": seconds, "figures": {}})
        best = Best() if score is None else Best(score, **described)
        return cls(step, seconds, place, tokens, best)


@dataclass
class TrainingState:
    """The model in training, and all that belongs to it.

    Attributes:
        model: the model whose weights are averaged and saved.
        optimizers: of its weights.
        averages: moving averages of its weights.
        prepared: what training calls, `model` or what Accelerate has wrapped around it.
        companion: what trains beside the model and is not saved with it, such as a discriminator; the same in all
            processes.
        companion_optimizers: of its weights.
        trained_only: the model's frozen weights are read anew where the run goes on, and no checkpoint holds them.
    """

    accelerator: Accelerator
    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    averages: AveragedWeights
    prepared: nn.Module
    companion: nn.Module | None = None
    companion_optimizers: list[torch.optim.Optimizer] = field(default_factory=list)
    trained_only: bool = False
    progress: Progress = field(default_factory=Progress)

    @cached_property
    def _frozen(self) -> dict[str, torch.Tensor]:
        """What tells other frozen weights from these."""
        return {"bits": frozen_bits(self.model)} if self.trained_only else {}

    def _model_tensors(self) -> dict[str, torch.Tensor]:
        """The model's part of a checkpoint."""
        return model_tensors(self.model, trained_only=self.trained_only)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that a run resumes from, in the main process; in others, only what is not sharded. To be called
        in all processes."""
        reshard(self.prepared)
        tensors = {f"model/{name}": tensor for name, tensor in self._model_tensors().items()}
        tensors |= {f"frozen/{name}": tensor for name, tensor in self._frozen.items()}
        tensors |= {f"averaged/{name}": tensor for name, tensor in self.averages.state().items()}
        tensors |= {f"optimizer/{name}": tensor for name, tensor in optimizer_tensors(self.optimizers).items()}
        if self.companion is not None:
            tensors |= {f"companion/{name}": tensor for name, tensor in self.companion.state_dict().items()}
        states = optimizer_tensors(self.companion_optimizers)
        tensors |= {f"companion_optimizer/{name}": tensor for name, tensor in states.items()}
        tensors = gathered(tensors, keep=self.accelerator.is_main_process)
        tensors["random/torch"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["random/cuda"] = torch.cuda.get_rng_state()
        return tensors

    def load(self, tensors: dict[str, torch.Tensor], *, other_optimizers: bool = False) -> bool:
        """The inverse of `tensors`, from whole tensors in every process.

        Args:
            other_optimizers: where the states are those of other optimizers, or of another companion, leave them out:
                these start anew.

        Returns:
            whether the optimizers go on from their states.

        Raises:
            RuntimeError, KeyError: the tensors are of another model.
            ValueError: of other optimizers, or beside other frozen weights.
        """
        names = ("model", "frozen", "averaged", "optimizer", "companion", "companion_optimizer", "random")
        parts: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names}
        for name, tensor in tensors.items():
            part, rest = name.split("/", 1)
            parts[part][rest] = tensor
        targets = self._model_tensors()
        if different := sorted(targets.keys() ^ parts["model"].keys()):
            raise KeyError(f"{', '.join(different[:5])}: only on one side.")
        if self._frozen and not torch.equal(self._frozen["bits"], parts["frozen"]["bits"]):
            raise ValueError("the model that the run started from has other weights now.")
        self.model.load_state_dict(
            {name: spread(parts["model"][name], like) for name, like in targets.items()}, strict=False
        )
        self.averages.load(parts["averaged"])
        if self.companion is not None and parts["companion"]:
            self._load_companion(parts["companion"], parts["companion_optimizer"], may_differ=other_optimizers)
        same_optimizers = True
        try:
            check_optimizer_tensors(self.optimizers, parts["optimizer"])
        except ValueError:
            if not other_optimizers:
                raise
            same_optimizers = False
        if same_optimizers:
            load_optimizer_tensors(self.optimizers, parts["optimizer"])
        torch.set_rng_state(parts["random"]["torch"].cpu())
        if "cuda" in parts["random"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(parts["random"]["cuda"].cpu())
        return same_optimizers

    def _load_companion(
        self, tensors: dict[str, torch.Tensor], states: dict[str, torch.Tensor], *, may_differ: bool
    ) -> None:
        """Load the companion and its optimizers; one with other parts starts anew where it may differ."""
        assert self.companion is not None
        if may_differ and tensors.keys() != self.companion.state_dict().keys():
            return
        self.companion.load_state_dict(tensors)
        load_optimizer_tensors(self.companion_optimizers, states)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has the averaged weights, is in evaluation mode, and runs uncompiled. To be entered in all
        processes."""
        self.model.eval()
        with self.averages.applied(), eager(self.model):
            try:
                yield
            finally:
                reshard(self.prepared)
        self.model.train()

    def plain_model(self) -> Any:
        """A model that any tool can use, with the weights as they are now: `model` itself or, where it is sharded, a
        whole copy in the main process and None in the others. To be called in all processes."""
        if not is_sharded(self.accelerator):
            return self.model
        reshard(self.prepared)
        weights = gathered(self.model.state_dict(), keep=self.accelerator.is_main_process)
        return whole_copy(self.model, weights) if self.accelerator.is_main_process else None


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Inside, compiled layers run uncompiled: a forward without gradients, or with a cache, would compile each anew."""
    compiled = [(module, module._compiled_call_impl) for module in model.modules() if module._compiled_call_impl]
    for module, _ in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call


def model_tensors(model: nn.Module, *, trained_only: bool = False) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers, by name; what layers share (tied embeddings) once.

    Args:
        trained_only: only parameters that have a gradient.
    """
    if trained_only:
        return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    once = {name for name, _ in model.named_parameters()}
    return {name: tensor for name, tensor in model.state_dict().items() if name in once or name not in every}


def frozen_bits(model: nn.Module) -> torch.Tensor:
    """(n,) int64: for each frozen parameter the sum of its bits, read as integers, which shows other weights."""
    integers = {4: torch.int32, 2: torch.int16}
    return torch.tensor(
        [
            int(parameter.detach().contiguous().view(integers[parameter.element_size()]).sum(dtype=torch.int64))
            for parameter in model.parameters()
            if not parameter.requires_grad
        ]
    )
