"""What surrounds a training step: budget, optimizers, averaged weights, the run's folder, the loop."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, BertConfig, GPT2Config, LlamaConfig, Qwen3Config

from lm.training.losses import NextTokenLoss
from pipelines.options.training import TrainingOptions
from pipelines.training import run_folder as run_module
from pipelines.training import termination as termination_module
from pipelines.training import throughput
from pipelines.training.averages import AveragedWeights
from pipelines.training.best_kept import Best
from pipelines.training.loop import Loop, Validation
from pipelines.training.metrics_log import MetricsLog
from pipelines.training.muon import Muon, _iterate, _iterate_on_grams, orthogonalized
from pipelines.training.optimizers import (
    build_optimizers,
    check_optimizer_tensors,
    load_optimizer_tensors,
    optimizer_tensors,
)
from pipelines.training.prefetch import prefetch
from pipelines.training.run_folder import Run, peak_memory
from pipelines.training.schedule import FINAL_SHARE, Budget, learning_rate_share, set_learning_rate
from pipelines.training.state import Progress, TrainingState, eager
from pipelines.training.termination import termination
from pipelines.training.throughput import PATIENCE, Throughput, peak_flops
from tokenizer_image import VQVAE, VQVAEConfig


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# Budget and learning rate


def test_budget_in_steps_and_in_minutes():
    assert [Budget(max_steps=8).progress(step, 1e9) for step in (0, 2, 8, 9)] == [0, 0.25, 1, 1]
    assert [Budget(max_minutes=2).progress(10**9, s) for s in (0, 30, 120, 121)] == [0, 0.25, 1, 1]


def test_a_budget_is_one_of_two():
    with pytest.raises(ValueError, match="--max_steps 3 and --max_minutes 1.0: give one of the two"):
        TrainingOptions(max_steps=3, max_minutes=1.0)
    assert Budget.of(TrainingOptions()).progress(10**9, 300) == 0.5, "ten minutes"


@pytest.mark.parametrize("settings", [{"max_steps": 0}, {"max_steps": -3}, {"max_minutes": 0}, {"max_minutes": -1.0}])
def test_a_budget_is_above_zero(settings):
    with pytest.raises(ValueError, match="must be above zero"):
        TrainingOptions(**settings)


def test_the_learning_rate_rises_then_falls_along_a_cosine():
    assert [learning_rate_share(0.0, step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert learning_rate_share(0.5, 1000, 4) == pytest.approx(FINAL_SHARE + (1 - FINAL_SHARE) / 2)
    assert learning_rate_share(1.0, 1000, 4) == pytest.approx(FINAL_SHARE)
    assert learning_rate_share(0.0, 0, 0) == 1, "no warm-up"
    shares = [learning_rate_share(step / 100, step, 10) for step in range(10, 101)]
    assert shares == sorted(shares, reverse=True)


def test_a_constant_rate_falls_over_the_last_share():
    def share(progress: float, decay_share: float = 0.2) -> float:
        return learning_rate_share(progress, 10**6, 4, "constant_decay", decay_share)

    assert [share(progress) for progress in (0, 0.3, 0.8)] == [1, 1, 1]
    assert share(0.85) == pytest.approx(FINAL_SHARE + (1 - FINAL_SHARE) * 0.5), "1 - sqrt(1 / 4)"
    assert share(1.0) == pytest.approx(FINAL_SHARE) == share(1.0, 1.0)
    assert share(0.25, 1.0) == pytest.approx(FINAL_SHARE + (1 - FINAL_SHARE) * 0.5)
    assert learning_rate_share(0.0, 0, 4, "constant_decay", 0.2) == 0.25, "warm-up comes first"
    for changes, message in (({"schedule": "linear"}, "--schedule 'linear': choose cosine or constant_decay"),
                             ({"decay_share": 0.0}, "--decay_share 0.0 must be above zero")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            TrainingOptions(**changes)


# Optimizers


class Network(nn.Module):
    """One of each kind of weight."""

    outer_layers = ("lm_head",)

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.norm = nn.LayerNorm(6)
        self.linear = nn.Linear(6, 10)
        self.conv = nn.Conv2d(1, 4, (3, 2))
        self.lm_head = nn.Linear(10, 7, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.linear(self.norm(self.embedding(ids)))  # (B, L, 10)
        return self.lm_head(hidden + self.conv(hidden[:, None]).mean())


def train(model: nn.Module, optimizers: list[torch.optim.Optimizer], steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        ids = torch.randint(7, (4, 5), generator=torch.Generator().manual_seed(step))
        set_learning_rate(optimizers, 1 / (step + 1))
        model(ids).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def test_every_weight_is_in_one_group_and_decays_only_where_it_should():
    model = Network()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    (adamw,) = build_optimizers(model, learning_rate=1e-3, weight_decay=0.1)
    groups = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in adamw.param_groups}
    assert groups == {
        0.1: {"linear.weight", "conv.weight", "lm_head.weight"},
        0.0: {"embedding.weight", "norm.weight", "norm.bias", "linear.bias", "conv.bias"},
    }
    adamw, muon = build_optimizers(model, learning_rate=1e-3, weight_decay=0.1, muon_learning_rate=0.02)
    matrices = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    others = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert "linear.weight" in matrices and not matrices & others and matrices | others == set(names.values())
    assert not matrices & {"embedding.weight", "lm_head.weight"}
    set_learning_rate([adamw, muon], 0.5)
    assert [group["lr"] for group in adamw.param_groups] == [5e-4, 5e-4] and muon.param_groups[0]["lr"] == 0.01


NETWORKS = {
    "conv": {"quantizer": "cosine", "codebook_sizes": [8]},
    "gradient": {"quantizer": "gradient", "codebook_sizes": [8]},
    "mlp": {"network": "mlp", "hidden_sizes": [8, 12, 8]},
    "hierarchy": {"num_levels": 3, "codebook_sizes": [8, 8, 8], "quantizer": ["ema", "cosine", "residual"]},
}
SMALL = {"vocab_size": 40, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LANGUAGE_MODELS = {
    "llama": LlamaConfig(**SMALL),
    "qwen3": Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=4),
    "gpt2": GPT2Config(vocab_size=40, n_embd=8, n_layer=2, n_head=2, n_positions=16, tie_word_embeddings=False),
    "gpt2, tied": GPT2Config(vocab_size=40, n_embd=8, n_layer=2, n_head=2, n_positions=16),
}


@pytest.mark.parametrize("name", [*NETWORKS, *LANGUAGE_MODELS])
def test_muon_learns_inner_matrices_alone(name):
    """Groups by name, as they were when layers at a network's ends were known by their names."""
    outer = {"lm_head", "stem", "head", "to_pixels", "into", "out_of", "first", "last", "wte", "wpe", "embed_tokens"}
    if name in NETWORKS:
        settings = {"image_size": 32, "hidden_sizes": [8, 12], "code_dim": 4, **NETWORKS[name]}
        model: nn.Module = VQVAE(VQVAEConfig(**settings))
    else:
        model = NextTokenLoss(AutoModelForCausalLM.from_config(LANGUAGE_MODELS[name]), [(0, 40)])
    expected = {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and not outer & set(name.split(".")) and not name.endswith("codebook")
    }
    adamw, muon = build_optimizers(model, learning_rate=1e-3, weight_decay=0.1, muon_learning_rate=0.02)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert expected and {names[id(p)] for p in muon.param_groups[0]["params"]} == expected
    assert [names[id(p)] for group in adamw.param_groups for p in group["params"] if p.ndim > 1], "outer layers"


def test_output_embeddings_are_not_muons_whatever_their_name():
    config = BertConfig(**SMALL, is_decoder=True, tie_word_embeddings=False)  # its head is cls.predictions.decoder
    model = AutoModelForCausalLM.from_config(config)
    _, muon = build_optimizers(model, learning_rate=1e-3, weight_decay=0.1, muon_learning_rate=0.02)
    inner = {id(parameter) for parameter in muon.param_groups[0]["params"]}
    assert inner and id(model.get_output_embeddings().weight) not in inner


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("muon_learning_rate", [None, 0.02])
def test_optimizers_go_on_exactly_from_their_tensors(tmp_path, muon_learning_rate, channels_last):
    def fresh() -> tuple[nn.Module, list[torch.optim.Optimizer]]:
        torch.manual_seed(0)
        model = Network()
        model.conv = nn.Conv2d(3, 4, (3, 2))
        model.conv.forward = lambda x, conv=model.conv: nn.functional.conv2d(x.expand(-1, 3, -1, -1), conv.weight)
        if channels_last:
            model.to(memory_format=torch.channels_last)
        rates = {"learning_rate": 0.01, "weight_decay": 0.1, "muon_learning_rate": muon_learning_rate}
        return model, build_optimizers(model, **rates)

    model, optimizers = fresh()
    train(model, optimizers, 3)
    run = Run(tmp_path, TrainingOptions())
    run.begin()
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    run.save_checkpoint(3, {**tensors, **{f"optimizer/{n}": t for n, t in optimizer_tensors(optimizers).items()}}, {})
    train(model, optimizers, 3, start=3)

    again, others = fresh()
    stored, _ = run.load_checkpoint()
    again.load_state_dict({name[6:]: tensor for name, tensor in stored.items() if name.startswith("model/")})
    load_optimizer_tensors(others, {name[10:]: t for name, t in stored.items() if name.startswith("optimizer/")})
    train(again, others, 3, start=3)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_states_fit_only_the_optimizers_that_they_are_of():
    def of(muon_learning_rate: float | None) -> tuple[list[torch.optim.Optimizer], dict[str, torch.Tensor]]:
        model = Network()
        made = build_optimizers(model, learning_rate=0.1, weight_decay=0.0, muon_learning_rate=muon_learning_rate)
        train(model, made, 1)
        return made, optimizer_tensors(made)

    (one, of_one), (two, of_two) = of(None), of(0.1)
    for optimizers, tensors in ((one, of_one), (two, of_two), (one, {}), (two, {})):
        check_optimizer_tensors(optimizers, tensors)
    adamw_alone = {name: tensor for name, tensor in of_two.items() if name.startswith("0.")}
    for optimizers, tensors, message in (
        (one, {"1.0.momentum": torch.zeros(6, 10)}, "the states are of 2 optimizers, not 1"),
        (two, adamw_alone, "the states are of 1 optimizers, not 2"),
        (two, of_one, "optimizer 0 has no state"),
        (one, {"0.0.exp_avg": torch.zeros(3)}, r"optimizer 0 has no state 'exp_avg' of shape \(3,\) at 0"),
        (one, {"0.0.momentum": of_one["0.0.exp_avg"]}, "optimizer 0 has no state 'momentum'"),
        (one, {"0.8.step": torch.zeros(())}, "optimizer 0 has no state 'step' .* at 8"),
    ):
        with pytest.raises(ValueError, match=message):
            check_optimizer_tensors(optimizers, tensors)
    check_optimizer_tensors(one, {"0.7.step": torch.zeros(())})


# Muon


def test_a_step_of_muon_may_compute_its_gradients():
    weight = nn.Parameter(torch.randn(4, 4))
    optimizer = Muon([weight])

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    before = weight.detach().clone()
    assert optimizer.step(closure).item() == pytest.approx(before.square().sum().item())
    assert not torch.equal(weight, before) and optimizer.step() is None
    theirs = torch.optim.Muon([weight]).defaults
    assert optimizer.defaults == {**{name: theirs[name] for name in ("lr", "momentum")}, "weight_decay": 0.0}


@pytest.mark.parametrize("shape", [(16, 64), (64, 16), (32, 32)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape):
    matrices = torch.randn(3, *shape) * torch.tensor([0.01, 1.0, 100.0])[:, None, None]
    result = orthogonalized(matrices).float()
    assert result.shape == matrices.shape
    values = torch.linalg.svdvals(result)
    assert values.max() < 1.3 and values.median() > 0.6 and (values > 0.3).float().mean() > 0.9
    for matrix, other in zip(matrices, result, strict=True):
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        assert torch.nn.functional.cosine_similarity((u @ v).flatten(), other.flatten(), dim=0) > 0.95
    assert torch.equal(orthogonalized(torch.zeros(1, 4, 4)), torch.zeros(1, 4, 4, dtype=torch.bfloat16))


@pytest.mark.parametrize("shape", [(64, 192), (32, 288)])
def test_iterating_on_grams_is_as_exact_as_on_matrices(shape):
    spread = torch.logspace(0, -3, shape[0])[:, None]  # singular values that a gradient's span
    matrices = torch.randn(3, *shape) * spread
    matrices /= matrices.norm(dim=(1, 2), keepdim=True)
    exact = _iterate(matrices.double())
    assert (_iterate_on_grams(matrices) - exact).abs().max() < 1e-5
    assert (_iterate(matrices) - exact).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_muon_equals_torchs(shape):
    start, momentum = torch.randn(*shape), 0.9
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    settings = {"lr": 0.02, "momentum": momentum, "weight_decay": 0.1}
    mine = Muon([ours], **settings)
    yours = torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **settings)
    for _ in range(4):
        ours.grad = torch.randn(*shape)
        theirs.grad = ours.grad.clone()
        mine.step()
        yours.step()
    step = (theirs - start).detach()
    assert step.abs().mean() > 0.01
    assert (ours - theirs).detach().norm() < 0.02 * step.norm(), "but for rounding in bfloat16"


def test_muon_works_on_stacks_and_convolutions():
    """Weights of one shape are worked on together; a convolution's is a matrix (out, in x height x width)."""
    shapes = [(8, 6), (8, 6), (8, 2, 3, 1), (5, 9), (4, 3, 2, 2)]
    starts, gradients = ([torch.randn(shape) for shape in shapes] for _ in range(2))
    together = [nn.Parameter(start.clone()) for start in starts]
    together[-1] = nn.Parameter(starts[-1].to(memory_format=torch.channels_last))  # as stage 1 keeps them
    single = [nn.Parameter(start.clone().flatten(1)) for start in starts]
    optimizer = Muon(together, lr=0.02, weight_decay=0.1)
    others = [Muon([parameter], lr=0.02, weight_decay=0.1) for parameter in single]
    for _ in range(3):
        for one, other, gradient in zip(together, single, gradients, strict=True):
            one.grad, other.grad = torch.empty_like(one).copy_(gradient), gradient.clone().flatten(1)
        for each in (optimizer, *others):
            each.step()
    for one, other, start in zip(together, single, starts, strict=True):
        assert torch.allclose(one.detach().flatten(1), other.detach(), atol=2e-3)
        assert (one - start).abs().mean() > 0.005
    before = together[0].detach().clone()
    together[0].grad = None
    optimizer.step()
    assert torch.equal(together[0], before), "no gradient, no step"
    with pytest.raises(ValueError, match="two or more dimensions"):
        Muon([nn.Parameter(torch.zeros(3))])


# Averaged weights


def test_averages_by_hand():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    averages = AveragedWeights(model, decay=0.5)
    expected = 1.0
    for step, value in enumerate((3.0, 5.0, -2.0, 7.0, 4.0, 9.0, 1.0, 0.0, 6.0, 2.0), start=1):
        with torch.no_grad():
            model.weight.fill_(value)
        averages.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        assert averages.averages[0].item() == pytest.approx(expected, abs=1e-5)
    assert model.weight.item() == 2.0


def test_swapping_restores_every_bit():
    model = Network()
    averages = AveragedWeights(model, 0.9)
    train(model, build_optimizers(model, learning_rate=0.1, weight_decay=0.0), 2)
    averages.update(1)
    raw = {name: tensor.clone() for name, tensor in model.named_parameters()}
    averaged = {name: tensor.clone() for name, tensor in averages.state().items()}
    with pytest.raises(KeyError), averages.applied():  # after an error too
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, averaged[name]) and not torch.equal(parameter, raw[name]), name
        raise KeyError
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, raw[name]) and torch.equal(averages.state()[name], averaged[name]), name


def test_averages_load_and_can_be_off():
    model = nn.Linear(3, 3)
    averages = AveragedWeights(model, 0.9)
    other = AveragedWeights(nn.Linear(3, 3), 0.9)
    other.load({name: tensor.clone() for name, tensor in averages.state().items()})
    assert all(torch.equal(a, b) for a, b in zip(other.averages, averages.averages, strict=True))
    off = AveragedWeights(model, 0.0)
    with torch.no_grad():
        model.weight.add_(1)
    off.update(1)
    assert torch.equal(off.state()["weight"], model.weight)


# The run's folder


@dataclass
class Settings:
    batch_size: int = 64
    learning_rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2)
    output_dir: str = "a"
    max_steps: int | None = 5
    resume: bool = False
    code_dim: int | None = None
    script: ClassVar[str] = "train_this.py"


def begun(folder: Path, options: Settings | None = None, **settings: bool) -> Run:
    run = Run(folder, options or Settings(), **settings)
    run.begin()
    run.write_info(finished=False)
    return run


def test_a_folder_that_holds_a_run(tmp_path):
    begun(tmp_path / "run")
    with pytest.raises(ValueError, match=r"--output_dir .*run already holds a run: pass --resume.*--overwrite"):
        Run(tmp_path / "run", Settings())
    with pytest.raises(ValueError, match="--resume and --overwrite exclude each other"):
        TrainingOptions(resume=True, overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; name a folder"):
        Run(tmp_path / "file", Settings())
    assert not Run(tmp_path / "new", Settings(), resume=True).finished, "--resume starts in an empty folder"


def test_overwriting_removes_the_run_and_nothing_else(tmp_path):
    run = begun(tmp_path)
    run.log(1, loss=2.0)
    run.save_checkpoint(1, {"x": torch.zeros(1)}, {})
    (tmp_path / "notes.txt").write_text("mine")
    again = Run(tmp_path, Settings(), overwrite=True)
    assert run.checkpoints.joinpath("checkpoint-1").is_dir(), "nothing is lost before the run begins"
    again.begin()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "notes.txt", "samples"]
    assert again.load_checkpoint() is None


def test_changed_options_are_listed(tmp_path):
    begun(tmp_path)
    # How long and how fast may change: a lower rate is the way on that a run whose loss broke names.
    free = Settings(output_dir="b", max_steps=7, resume=True, learning_rate=0.2)
    assert Run(tmp_path, free, resume=True).info["options"]["max_steps"] == 5
    with pytest.raises(ValueError, match="other settings: --batch_size was 64, now 32; --sizes was .*, now .3,."):
        Run(tmp_path, Settings(batch_size=32, sizes=(3,)), resume=True)


def test_an_option_that_is_not_given_may_have_been_noted_by_its_earlier_default(tmp_path):
    begun(tmp_path, Settings(code_dim=32))
    assert Run(tmp_path, Settings(), resume=True).info["options"]["code_dim"] == 32
    for before, now in ((8, None), (32, 16)):
        begun(tmp_path / str(before), Settings(code_dim=before))
        with pytest.raises(ValueError, match=f"--code_dim was {before}, now {now}"):
            Run(tmp_path / str(before), Settings(code_dim=now), resume=True)


def test_a_run_of_another_command_is_not_resumed(tmp_path):
    class Others(Settings):
        script = "train_others.py"

    begun(tmp_path)
    with pytest.raises(ValueError, match="another command .train_this.py, not train_others.py.: name another --output"):
        Run(tmp_path, Others(), resume=True)


def test_run_info_says_how_it_came_about(tmp_path):
    run = begun(tmp_path)
    run.write_info(parameters=12, finished=True)
    info = json.loads((tmp_path / "run.json").read_text())
    assert info["parameters"] == 12 and info["finished"] and info["options"]["learning_rate"] == 0.1
    assert info["versions"].keys() >= {"python", "torch", "transformers", "numpy"} and info["command"]
    in_checkout = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    head = in_checkout.stdout.strip() or None  # None where the tests lie outside of a git checkout
    assert (info["commit"] or "").removesuffix("-dirty") == (head or "")
    assert Run(tmp_path, Settings(), resume=True).finished


def test_the_end_of_a_run_is_written_down(tmp_path):
    begun(tmp_path).write_end(5, 90.0, 64, {"mse": 0.5}, extra=1)
    info = json.loads((tmp_path / "run.json").read_text())
    ended = {name: info[name] for name in ("finished", "steps", "minutes", "pictures_seen", "validation", "extra")}
    assert ended == {"finished": True, "steps": 5, "minutes": 1.5, "pictures_seen": 320, "validation": {"mse": 0.5},
                     "extra": 1}  # fmt: skip


def test_progress_survives_json_and_is_read_from_earlier_checkpoints():
    for progress in (Progress(), Progress(7, 1.5, [1, 2, 3], 100, Best(0.25, 5, 1.0, {"mse": 0.5}))):
        values = json.loads(json.dumps({"step": progress.step, **progress.to_dict()}))
        again = Progress.from_dict(values)
        assert again == dataclasses.replace(progress, place=list(progress.place)) and list(again.place) == again.place
    assert Progress.from_dict({"step": 7, "seconds": 1.5}) == Progress(7, 1.5, (0, 0, 0), 0, Best())
    assert Progress() == Progress(0, 0.0, (0, 0, 0), 0, Best(math.inf, 0, 0.0, {}))
    earlier = Progress.from_dict({"step": 7, "seconds": 1.5, "best": 0.25})
    assert earlier.best == Best(0.25, 7, 1.5), "its step is not known: patience counts from here"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there, what PyTorch holds on the GPU counts")
def test_the_most_memory_is_in_gigabytes():
    now = psutil.Process().memory_info().rss / 1e9
    assert 0.9 * now < peak_memory() < max(50 * now, 1)


def test_checkpoints_rotate(tmp_path):
    run = begun(tmp_path)
    for step in (2, 9, 10, 100):
        run.save_checkpoint(step, {"x": torch.full((2,), float(step))}, {"seconds": step / 2})
    names = sorted(path.name for path in run.checkpoints.iterdir())
    assert names == ["checkpoint-10", "checkpoint-100"], "the newest two, by number"
    tensors, state = run.load_checkpoint()
    assert tensors["x"].tolist() == [100, 100] and state == {"step": 100, "seconds": 50}


def test_what_a_killed_run_left_is_ignored_then_removed(tmp_path):
    run = begun(tmp_path)
    run.save_checkpoint(3, {"x": torch.zeros(1)}, {})
    for name in ("checkpoint-4.part", "checkpoint-x", "checkpoint-"):
        (run.checkpoints / name).mkdir()
        (run.checkpoints / name / "state.safetensors").write_bytes(b"half")
    assert run.load_checkpoint()[1]["step"] == 3
    resumed = begun(tmp_path, resume=True)
    assert not (run.checkpoints / "checkpoint-4.part").exists()
    assert resumed.load_checkpoint()[1]["step"] == 3


def test_a_kill_while_a_checkpoint_is_written_keeps_the_one_before(tmp_path, monkeypatch):
    run = begun(tmp_path)
    run.save_checkpoint(1, {"x": torch.ones(1)}, {})
    for target in ("save_file", "sync"):
        with monkeypatch.context() as patch:
            patch.setattr(
                f"pipelines.training.run_folder.{target}", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt)
            )
            with pytest.raises(KeyboardInterrupt):
                run.save_checkpoint(2, {"x": torch.zeros(1)}, {})
        tensors, state = Run(tmp_path, Settings(), resume=True).load_checkpoint()
        assert state["step"] == 1 and tensors["x"].item() == 1
    run.save_checkpoint(2, {"x": torch.zeros(1)}, {})
    assert run.load_checkpoint()[1]["step"] == 2


def test_the_log_is_cut_back_to_the_checkpoint(tmp_path):
    run = begun(tmp_path)
    run.save_checkpoint(4, {"x": torch.zeros(1)}, {})
    for step in (2, 4, 6):
        run.log(step, loss=1.0 / step)
    with run.metrics_file.open("a") as file:
        file.write('{"step": 7, "lo')
    Run(tmp_path, Settings(), resume=True).load_checkpoint()
    lines = run.metrics_file.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]
    run.log(5, loss=1.0)
    assert len(run.metrics_file.read_text().splitlines()) == 3


def test_without_a_checkpoint_the_log_starts_again(tmp_path):
    begun(tmp_path).log(2, loss=1.0)
    resumed = Run(tmp_path, Settings(), resume=True)
    assert resumed.load_checkpoint() is None and resumed.metrics_file.read_text() == ""


def test_only_the_main_process_writes(tmp_path):
    run = Run(tmp_path / "run", Settings(), is_main=False)
    run.begin()
    run.write_info(finished=True)
    run.log(1, loss=1.0)
    run.save_checkpoint(1, {"x": torch.zeros(1)}, {})
    assert not (tmp_path / "run").exists()


# The loop


class Training:
    """The smallest script: a linear map learns to give zero."""

    def __init__(self, folder: Path, muon: bool = False, **settings) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.manual_seed(0)
        chosen = {"learning_rate": 0.1, "warmup_steps": 2, "log_every": 2, "validate_every": 0, "sample_every": 0,
                  "checkpoint_every": 3, **settings}  # fmt: skip
        if "max_minutes" not in chosen:
            chosen.setdefault("max_steps", 8)
        self.options = TrainingOptions(mixed_precision="no", **chosen)
        self.run = Run(folder, self.options, resume=self.options.resume)
        self.run.begin()
        self.model = nn.Linear(4, 2)
        rate = 0.1 if muon else None
        optimizers = build_optimizers(self.model, learning_rate=0.1, weight_decay=0.0, muon_learning_rate=rate)
        self.validated: list[torch.Tensor] = []
        self.sampled: list[int] = []
        accelerator = Accelerator(cpu=True)
        averages = AveragedWeights(self.model, self.options.ema_decay)
        self.loop = Loop(
            accelerator, self.run, self.options,
            TrainingState(accelerator, self.model, optimizers, averages, self.model),
            Validation(self.validate, lambda model, step: self.sampled.append(step)),
            MetricsLog(accelerator, self.run, "none", "images", 4),
        )  # fmt: skip
        if self.options.resume:
            self.loop.resume()
        self.run.write_info(finished=False)

    def validate(self) -> dict[str, float]:
        assert not self.model.training
        self.validated.append(self.model.weight.detach().clone())
        return {"mse": 0.5}

    def train(self, bad_step: int | None = None, kill_at: int | None = None,
              terminate_at: int | None = None, number: int = signal.SIGTERM) -> list[int]:  # fmt: skip
        steps = []
        self.model.train()
        for step in self.loop.steps():
            steps.append(step)
            # Noise from torch's generator: a resumed run must go on with its state.
            loss = self.model(torch.randn(4, 4)).square().mean()
            loss.backward()
            for optimizer in self.loop.state.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            self.loop.finish_step(loss * float("nan") if step == bad_step else loss, extra=1.5)
            if step == terminate_at:
                os.kill(os.getpid(), number)
            if step == kill_at:
                break
        return steps

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.run.metrics_file.read_text().splitlines()]


def test_the_loop_logs_validates_and_ends(tmp_path):
    training = Training(tmp_path, validate_every=4, sample_every=5)
    assert training.train() == list(range(8)) and training.loop.progress.step == 8
    losses = [line for line in training.lines() if "loss" in line]
    assert [line["step"] for line in losses] == [2, 4, 6, 8]
    assert all(line["extra"] == 1.5 and line["images_per_second"] > 0 and line["seconds"] >= 0 for line in losses)
    assert losses[-1]["loss"] < losses[0]["loss"]
    assert [line["step"] for line in training.lines() if "validation_mse" in line] == [4, 8]
    assert training.sampled == [5, 8], "and once more at the end"
    assert len(training.validated) == 2
    names = sorted(path.name for path in training.run.checkpoints.iterdir())
    assert names == ["checkpoint-6", "checkpoint-8"], "one at the end"


def test_validation_sees_the_averaged_weights(tmp_path):
    training = Training(tmp_path, ema_decay=0.9)
    training.train()
    assert torch.equal(training.validated[-1], training.loop.state.averages.state()["weight"])
    assert not torch.equal(training.validated[-1], training.model.weight) and training.model.training


@pytest.mark.parametrize("killed_at", [3, 4, 6])
def test_a_resumed_loop_equals_an_uninterrupted_one(tmp_path, killed_at):
    whole = Training(tmp_path / "whole")
    whole.train()
    Training(tmp_path / "killed").train(kill_at=killed_at)
    resumed = Training(tmp_path / "killed", resume=True)
    last = killed_at + 1 if (killed_at + 1) % 3 == 0 else (killed_at + 1) // 3 * 3
    assert resumed.loop.progress.step == last
    assert resumed.train() == list(range(last, 8))
    for name in ("checkpoint-6", "checkpoint-8"):
        ours, theirs = (
            load_file(training.run.checkpoints / name / "state.safetensors") for training in (resumed, whole)
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    assert [line["step"] for line in resumed.lines()] == [line["step"] for line in whole.lines()]


def test_sigterm_writes_a_checkpoint_and_ends_with_its_code(tmp_path, capsys):
    before = signal.getsignal(signal.SIGTERM)
    whole = Training(tmp_path / "whole")
    whole.train()
    with pytest.raises(SystemExit) as told:
        Training(tmp_path / "told").train(terminate_at=4)
    assert told.value.code == 143 and signal.getsignal(signal.SIGTERM) is before
    assert "stopped after step 5, checkpoint written; go on with --resume" in capsys.readouterr().out
    resumed = Training(tmp_path / "told", resume=True)
    assert resumed.loop.progress.step == 5 and resumed.train() == [5, 6, 7]
    assert torch.equal(resumed.model.weight, whole.model.weight)


LAUNCHER = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[2]]).wait()
"""
LAUNCHED = """
import sys, time
from pathlib import Path
from pipelines.training.termination import end_with_launcher, termination
end_with_launcher()
with termination() as received:
    Path({folder!r}, "started").touch()
    end = time.monotonic() + {patience}
    while not received.exit_code and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.2)
    Path({folder!r}, str(received.exit_code == 143)).touch()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells a process when its parent dies")
@pytest.mark.parametrize(("launcher", "signal_number"), [("accelerate", signal.SIGTERM), ("accelerate", signal.SIGKILL),
                                                         ("nohup", signal.SIGKILL)])  # fmt: skip
def test_training_ends_with_its_launcher(tmp_path, launcher, signal_number):
    """And goes on where a shell ends that it was started from."""
    told = launcher == "accelerate"
    (tmp_path / launcher).write_text(LAUNCHER)
    code = LAUNCHED.format(folder=str(tmp_path), patience=20 if told else 3)
    words = [sys.executable, str(tmp_path / launcher), "launch", code]
    process = subprocess.Popen(words, cwd=Path(__file__).parents[1])
    wait_for(tmp_path / "started")
    process.send_signal(signal_number)
    process.wait()
    wait_for(tmp_path / str(told))


@pytest.mark.parametrize(
    ("command", "launches"),
    [
        ("/env/bin/python /env/bin/accelerate launch scripts/train_lm.py", True),
        ("python -m accelerate.commands.launch scripts/train_lm.py", True),
        ("/env/bin/accelerate-launch scripts/train_lm.py", True),
        ("python sweep.py --out runs/accelerate", False),
        ("python sweep.py --out accelerate-launch", False),
        ("bash -c accelerate launch scripts/train_lm.py", False),
        ("python scripts/train_lm.py", False),
        ("", False),
    ],
)
def test_what_is_accelerates_launcher(command, launches):
    words = command.split(" ", 2 if command.startswith("bash") else -1)
    assert termination_module._is_launcher(words) == launches


def wait_for(file: Path) -> None:
    end = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < end, file
        time.sleep(0.02)


def test_sigterm_ends_nothing_outside_training():
    with termination() as received:
        os.kill(os.getpid(), signal.SIGTERM)
        assert received.exit_code == 143
    thread = threading.Thread(target=lambda: termination().__enter__())  # where no signal can be caught
    thread.start()
    thread.join()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"),
                                   SafetensorError("I/O error: No space left on device (os error 28)")])  # fmt: skip
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch, error):
    training, original = Training(tmp_path), run_module.save_file

    def save_file(tensors, file):
        if "checkpoint-6" in str(file):
            Path(file).write_bytes(b"half")
            raise error
        original(tensors, file)

    monkeypatch.setattr(run_module, "save_file", save_file)
    message = r"checkpoint-6 could not be written \(.*No space left.*checkpoint-3 is the last good one. .*--resume"
    with pytest.raises(OSError, match=message):
        training.train()
    assert [path.name for path in training.run.checkpoints.iterdir()] == ["checkpoint-3"], "half a one takes no room"
    monkeypatch.undo()
    assert Training(tmp_path, resume=True).train() == [3, 4, 5, 6, 7]


def test_a_spare_checkpoint_makes_room_on_a_full_disk(tmp_path, monkeypatch, capsys):
    """The newest good one stays, and the run goes on."""
    whole = Training(tmp_path / "whole", checkpoint_every=2)
    whole.train()
    training, original = Training(tmp_path / "run", checkpoint_every=2), run_module.save_file

    def save_file(tensors, file):
        if len(list(training.run.checkpoints.glob("checkpoint-?"))) > 1:
            Path(file).write_bytes(b"half")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        original(tensors, file)

    monkeypatch.setattr(run_module, "save_file", save_file)
    assert training.train() == list(range(8)) and torch.equal(training.model.weight, whole.model.weight)
    assert {path.name for path in training.run.checkpoints.iterdir()} == {"checkpoint-6", "checkpoint-8"}
    told = capsys.readouterr().out
    assert "deleted checkpoint-2 to make room, kept checkpoint-4" in told and "deleted checkpoint-4 to" in told


def test_no_checkpoint_is_deleted_for_another_error_or_beside_a_damaged_one(tmp_path, monkeypatch):
    Training(tmp_path, checkpoint_every=2).train(kill_at=4)
    (tmp_path / "checkpoints" / "checkpoint-4" / "state.safetensors").write_bytes(b"damaged")
    training = Training(tmp_path, checkpoint_every=3, resume=True)
    assert training.loop.progress.step == 2

    def fail_with(error):
        def save_file(tensors, file):
            raise error

        monkeypatch.setattr(run_module, "save_file", save_file)

    fail_with(OSError(errno.EIO, "Input/output error"))
    with pytest.raises(OSError, match="checkpoint-3 could not be written .*Input/output"):
        training.train()
    names = {path.name for path in training.run.checkpoints.iterdir()}
    assert names == {"checkpoint-2", "checkpoint-4"}, "room is not what is missing"
    fail_with(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="checkpoint-3 could not be written .*No space"):
        training.loop.save()
    assert {path.name for path in training.run.checkpoints.iterdir()} == {"checkpoint-2"}, "the one that can be read"


def test_a_disk_that_is_really_full(tmp_path):
    """A limit on the size of files: the library that writes weights raises an error of its own."""
    code = (
        "import resource, signal, sys, torch\n"
        "from pipelines.training.run_folder import Run\n"
        "from pipelines.options.training import TrainingOptions\n"
        "run = Run(sys.argv[1], TrainingOptions())\n"
        "run.begin()\n"
        "run.save_checkpoint(1, {'x': torch.zeros(10)}, {})\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "try: run.save_checkpoint(2, {'x': torch.zeros(100_000)}, {})\n"
        "except OSError as error: sys.exit(f'script: {error}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=100,
                          cwd=Path(__file__).resolve().parents[1])  # fmt: skip
    assert done.returncode == 1 and "checkpoint-1 is the last good one" in done.stderr.splitlines()[-1], done.stderr
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-1"]


def test_the_best_validation_is_kept_beside_the_last(tmp_path):
    """Across a kill, too: what was best before it stays to be beaten."""
    figures = {2: 3.0, 4: 1.0, 6: float("nan"), 8: 2.0}

    def kept_by(training: Training, kill_at: int | None) -> list[int]:
        kept: list[int] = []
        loop = training.loop

        def keep(model: nn.Module, folder: Path) -> None:
            assert not model.training
            kept.append(loop.progress.step)
            save_file({"weight": model.weight.detach().clone()}, folder / "model.safetensors")

        loop.validation = Validation(
            lambda: {"n": figures[loop.progress.step]}, loop.validation.sample, lambda found: found["n"], keep
        )
        training.train(kill_at=kill_at)
        return kept

    first = Training(tmp_path, validate_every=2, ema_decay=0.9)
    assert kept_by(first, kill_at=6) == [2, 4]
    resumed = Training(tmp_path, validate_every=2, ema_decay=0.9, resume=True)
    assert resumed.loop.progress.step == 6 and resumed.loop.progress.best == Best(
        1.0, 4, resumed.loop.progress.best.seconds, {"n": 1.0}
    )
    assert kept_by(resumed, kill_at=None) == []
    whole = Training(tmp_path / "whole", ema_decay=0.9, checkpoint_every=4)
    whole.train(kill_at=4)
    averaged = load_file(whole.run.checkpoints / "checkpoint-4" / "state.safetensors")["averaged/weight"]
    best = load_file(tmp_path / "checkpoints" / "best" / "model.safetensors")["weight"]
    assert torch.equal(best, averaged), "the averaged weights of step 4"
    assert not list((tmp_path / "checkpoints").glob("*.part*"))


def test_a_checkpoint_between_two_lines_of_the_log_keeps_their_means(tmp_path):
    settings = {"log_every": 4, "checkpoint_every": 3}
    Training(tmp_path / "run", **settings).train(kill_at=7)
    logged = []
    for name, first in (("run", 6), ("whole", 0)):
        training = Training(tmp_path / name, resume=name == "run", **settings)
        assert training.train() == list(range(first, 8))
        logged.append([line["loss"] for line in training.lines() if "loss" in line])
    assert logged[0] == logged[1] and len(logged[0]) == 2


def test_rates_leave_validation_out(tmp_path):
    training = Training(tmp_path, validate_every=2, log_every=2, max_steps=4)
    loop = training.loop
    loop.log.throughput = Throughput(peak=1e6)
    loop.validation = Validation(lambda: time.sleep(0.5) or {"mse": 1.0}, loop.validation.sample)
    finish = loop.finish_step

    def finish_step(*args, **kwargs):
        time.sleep(0.05)
        loop.count(100, 1000)
        finish(*args, **kwargs)

    loop.finish_step = finish_step
    training.train()
    logged = [line for line in training.lines() if "loss" in line]
    assert all(500 < line["tokens_per_second"] <= 2000 for line in logged), "not the half second of validation"
    assert all(line["mfu"] == pytest.approx(line["tokens_per_second"] * 10 / 1e6) for line in logged)
    assert loop.progress.tokens == 400 and logged[-1]["seconds"] > 0.6, "which counts as training time"


def test_the_peak_is_measured_once_and_quickly():
    throughput._measured.clear()
    before = time.perf_counter()
    peak = peak_flops(torch.device("cpu"), torch.float32)
    assert time.perf_counter() - before < 3 * PATIENCE and 1e9 < peak < 1e15
    assert peak_flops(torch.device("cpu"), torch.float32) == peak


def test_a_peak_of_a_busy_machine_is_raised(monkeypatch):
    """Products reach 100 FLOPs a second at first and more later on; training 300 to 1,200."""
    speeds = iter([100.0, 400.0, 1000.0])
    monkeypatch.setattr(throughput, "_measured", {})
    monkeypatch.setattr(throughput, "_fastest_product", lambda *_: next(speeds))

    def peak(again: bool = False) -> float:
        return peak_flops(torch.device("cpu"), torch.float32, again=again)

    rates = Throughput(peak(), lambda: peak(again=True))
    shares = []
    for flops in (300, 500, 400, 500, 1200):
        rates.add(1, flops)
        shares.append(rates.figures(seconds=1)["mfu"])
    assert shares == [300 / 400, 1, 400 / 500, 500 / 1000, 1], "measured at lines 1 and 4, and never exceeded"
    assert peak() == 1000, "the fastest measured so far"


@pytest.mark.parametrize("name, peak", [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12),
                                        ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA L40S", 362e12),
                                        ("NVIDIA L4", 121e12), ("NVIDIA GeForce RTX 4090", 165e12)])  # fmt: skip
def test_known_devices_have_the_peak_of_their_data_sheets(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), torch.bfloat16) == peak


def test_a_checkpoint_of_another_model_says_what_does_not_fit(tmp_path):
    Training(tmp_path).train(kill_at=4)
    file = tmp_path / "checkpoints" / "checkpoint-3" / "state.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "model/weight": torch.zeros(3, 4)}, file)
    with pytest.raises(ValueError, match=r"does not fit this model: .*weight.*another --output_dir"):
        Training(tmp_path, resume=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there, the state is the GPU's")
def test_a_checkpoint_of_a_gpu_goes_on_without_one(tmp_path):
    Training(tmp_path).train(kill_at=4)
    file = tmp_path / "checkpoints" / "checkpoint-3" / "state.safetensors"
    save_file({**load_file(file), "random/cuda": torch.zeros(16, dtype=torch.uint8)}, file)
    assert Training(tmp_path, resume=True).train() == [3, 4, 5, 6, 7]


def test_compiled_layers_are_compiled_again_after_a_validation():
    model, compiled = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), object()
    model[1]._compiled_call_impl = compiled
    with pytest.raises(KeyError), eager(model):  # after an error too
        assert model[1]._compiled_call_impl is None
        raise KeyError
    assert model[1]._compiled_call_impl is compiled and model[0]._compiled_call_impl is None


def test_changed_settings_are_taken_where_that_is_asked_for(tmp_path):
    begun(tmp_path)
    changed = dataclasses.make_dataclass("Changed", [("allow_changes", bool, True)], bases=(Settings,))
    run = Run(tmp_path, changed(batch_size=32), resume=True)
    run.write_info()
    assert json.loads(run.info_file.read_text())["changes"] == ["--batch_size was 64, now 32"]


def test_time_goes_on_where_a_checkpoint_left_it(tmp_path):
    first = Training(tmp_path, max_minutes=100.0)
    first.loop.progress.seconds = 1200.0
    first.train(kill_at=2)
    resumed = Training(tmp_path, max_minutes=100.0, resume=True)
    assert 1200 <= resumed.loop.progress.seconds < 1260
    assert 0.2 <= resumed.loop.budget.progress(0, resumed.loop.progress.seconds) < 0.21
    resumed.loop.progress.seconds = 5999.95
    steps = resumed.train()
    assert steps and resumed.loop.progress.seconds >= 6000


@pytest.mark.parametrize("bad_step", [3, 4])
def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path, bad_step):
    training = Training(tmp_path)
    with pytest.raises(ValueError, match=rf"the loss is nan at step {bad_step + 1}: stopped. The last good checkpoint "
                       r"is in .*checkpoints; lower --learning_rate.* and --resume"):  # fmt: skip
        training.train(bad_step=bad_step)
    assert training.run.load_checkpoint()[1]["step"] == 3
    assert all(math.isfinite(line["loss"]) for line in training.lines())


def test_a_finished_loop_has_nothing_to_do(tmp_path):
    Training(tmp_path).train()
    resumed = Training(tmp_path, resume=True)
    assert resumed.loop.progress.step == 8 and resumed.train() == []


@pytest.mark.parametrize("name, value", [("learning_rate", 0.0), ("max_grad_norm", -1.0), ("log_every", 0),
                                         ("tracker", "paper"), ("mixed_precision", "fp8"), ("optimizer", "sgd"),
                                         ("init_from", "/nowhere/at/all")])  # fmt: skip
def test_options_that_no_run_can_have(name, value):
    with pytest.raises(ValueError, match=f"--{name}.*{value}"):
        TrainingOptions(**{name: value})


def test_prefetch_keeps_order_hands_errors_on_and_stops():
    assert list(zip(range(10), prefetch(iter(range(1000)), depth=2), strict=False)) == [(i, i) for i in range(10)]

    def broken():
        yield 1
        raise OSError("disk gone")

    items = prefetch(broken())
    assert next(items) == 1
    with pytest.raises(OSError, match="disk gone"):
        next(items)
    assert list(prefetch(iter(range(5)))) == [0, 1, 2, 3, 4]
    threads = threading.active_count()
    items = prefetch(iter(range(1000)), depth=2)
    assert next(items) == 0 and threading.active_count() == threads + 1
    items.close()
    assert threading.active_count() == threads, "no thread is left at work"


# Signals, damaged checkpoints, other optimizers, longer budgets


def test_ctrl_c_writes_a_checkpoint_and_a_second_one_ends_at_once(tmp_path, capsys):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as end:
        Training(tmp_path / "once").train(terminate_at=4, number=signal.SIGINT)
    assert end.value.code == 130 and signal.getsignal(signal.SIGINT) is before
    assert "SIGINT: stopped after step 5, checkpoint written; go on with --resume" in capsys.readouterr().out
    assert Training(tmp_path / "once", resume=True).train() == [5, 6, 7]
    with termination() as received:
        received.receive(signal.SIGINT, None)
        with pytest.raises(KeyboardInterrupt):
            received.receive(signal.SIGINT, None)


def test_a_damaged_checkpoint_makes_way_for_the_one_before(tmp_path, capsys):
    whole = Training(tmp_path / "whole")
    whole.train()
    Training(tmp_path / "run").train(kill_at=6)
    newest = tmp_path / "run" / "checkpoints" / "checkpoint-6" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-40])
    resumed = Training(tmp_path / "run", resume=True)
    assert resumed.loop.progress.step == 3
    assert "checkpoint-6 is damaged" in capsys.readouterr().out
    assert [line["step"] for line in resumed.lines()] == [2], "the log is cut back to it"
    assert resumed.train() == [3, 4, 5, 6, 7] and torch.equal(resumed.model.weight, whole.model.weight)
    for name in ("checkpoint-6", "checkpoint-8"):
        (tmp_path / "run" / "checkpoints" / name / "state.json").write_text("{")
    with pytest.raises(ValueError, match="checkpoint-6 is damaged .*, and there is no older one: start again"):
        Training(tmp_path / "run", resume=True)


def test_another_optimizer_starts_anew_where_changes_are_allowed(tmp_path, capsys):
    Training(tmp_path).train(kill_at=4)
    resumed = Training(tmp_path, resume=True, allow_changes=True, muon=True)
    assert resumed.loop.progress.step == 3 and "this one starts anew" in capsys.readouterr().out
    assert resumed.train() == [3, 4, 5, 6, 7]
    back = Training(tmp_path, resume=True, allow_changes=True, max_steps=10)
    assert back.train() == [8, 9], "and the other way round"
    with pytest.raises(ValueError, match="does not fit this model: .*optimizer.*Give the sizes and the optimizer"):
        Training(tmp_path, resume=True, muon=True)


def test_a_finished_run_goes_on_with_a_larger_budget(tmp_path):
    begun(tmp_path).write_end(5, 60.0, 64, {})
    assert Run(tmp_path, Settings(max_steps=5), resume=True).finished
    assert Run(tmp_path, Settings(max_steps=3), resume=True).finished
    assert not Run(tmp_path, Settings(max_steps=6), resume=True).finished
    minutes = dataclasses.make_dataclass("Minutes", [("max_minutes", float, 1.0)], bases=(Settings,))
    assert Run(tmp_path, minutes(max_steps=None), resume=True).finished
    assert not Run(tmp_path, minutes(max_steps=None, max_minutes=1.5), resume=True).finished
