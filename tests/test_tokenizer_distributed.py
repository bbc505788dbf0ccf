"""Two processes with half of a batch each learn what one process with the whole batch learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tokenizer_image import VQVAE, Autoencoder, AutoencoderConfig, VectorQuantizer, VQVAEConfig, build_quantizer
from tokenizer_image.quantizers import KINDS as ALL_KINDS
from tokenizer_image.quantizers.distributed import NotFiniteError

STEPS, BATCH = 4, 8
# Every kind, without randomness: neither k-means start nor revival.
NO_RANDOMNESS = {"revival_threshold": 0.0}
KINDS: dict[str, tuple[list[int], dict[str, Any]]] = {
    "ema": ([16], NO_RANDOMNESS),
    "gradient": ([16], NO_RANDOMNESS),
    "cosine": ([16], {**NO_RANDOMNESS, "codebook_dim": 3}),
    "residual": ([16, 8], NO_RANDOMNESS),
    "grouped": ([16, 8], NO_RANDOMNESS),
    "grouped_residual": ([16, 8, 8, 8], NO_RANDOMNESS),
    "finite_scalar": ([240], {}),
    "lookup_free": ([16], {}),
    "binary_spherical": ([16], {}),
}


def build(kind: str) -> VQVAE:
    torch.manual_seed(0)
    sizes, options = KINDS[kind]
    config = VQVAEConfig(image_size=16, hidden_sizes=[8, 16], num_res_blocks=1, code_dim=4, codebook_sizes=sizes,
                         quantizer=kind, quantizer_options=options)  # fmt: skip
    tokenizer = VQVAE(config)
    for module in tokenizer.modules():
        if isinstance(module, VectorQuantizer):  # a fixed codebook instead of the k-means start
            codebook = 0.5 * torch.randn(module.codebook.shape)
            with torch.no_grad():
                module.codebook.copy_(codebook)
            module.ema_counts.fill_(1.0)
            module.initialized.fill_(True)
            if module.learning == "ema":
                module.ema_sums.copy_(codebook)
    return tokenizer.train()


# Other bottlenecks, without randomness: one whose loss is of the batch's means, one that differentiates its encoder.
AUTOENCODERS: dict[str, dict[str, Any]] = {
    "sparse": {"bottleneck_options": {"weight": 5.0}},
    "contractive": {"network": "mlp", "hidden_sizes": [12]},
}


def build_autoencoder(name: str) -> Autoencoder:
    torch.manual_seed(0)
    settings = {"hidden_sizes": [8, 16], **AUTOENCODERS[name]}
    config = AutoencoderConfig(image_size=16, num_res_blocks=1, code_dim=4, bottleneck=name, **settings)
    return Autoencoder(config).train()


def batch(step: int) -> Tensor:
    return torch.rand(BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(step)) * 2 - 1


def learn(tokenizer: VQVAE | Autoencoder, model: torch.nn.Module, rows: slice) -> dict[str, Tensor]:
    """Train for some steps; returns weights, buffers and the first step's gradients."""
    optimizer = torch.optim.SGD(tokenizer.parameters(), 0.3)
    gradients: dict[str, Tensor] = {}
    for step in range(STEPS):
        model(batch(step)[rows]).loss.backward()
        if step == 0:
            gradients = {f"gradient of {n}": p.grad.clone() for n, p in tokenizer.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
    return {**gradients, **tokenizer.state_dict()}


def on_two_ranks(rank: int, folder: str) -> None:
    """Run in each of two spawned processes: one process group for all checks, because starting it is slow."""
    torch.set_num_threads(1)
    # Built before the process group exists, as in a script that loads the model first.
    models = {kind: build(kind) for kind in KINDS} | {name: build_autoencoder(name) for name in AUTOENCODERS}
    codebooks = VectorQuantizer(16, 4, revival_threshold=0.5, ema_decay=0.5)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    half = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    results = {
        name: learn(model, torch.nn.parallel.DistributedDataParallel(model), half) for name, model in models.items()
    }
    torch.manual_seed(100 + rank)  # ranks have different random numbers
    states = []
    for _ in range(6):
        output = codebooks(torch.randn(64, 4) + 5 * rank)
        states.append({"revived": torch.tensor(output.revived), **codebooks.state_dict()})
        states[-1] = {name: tensor.clone() for name, tensor in states[-1].items()}
    # NaN on one rank must raise on all of them; otherwise the others would wait forever.
    bad = torch.full((8, 4), float("nan") if rank == 1 else 1.0)
    refused = []
    for quantizer in (codebooks, build_quantizer("grouped", [16, 8], 4)):
        try:
            quantizer(bad)
        except NotFiniteError:
            refused.append(True)
    torch.save({"learned": results, "codebooks": states, "refused": refused}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(on_two_ranks, (str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_learn_what_one_process_learns(ranks, kind):
    tokenizer = build(kind)
    expected = learn(tokenizer, tokenizer, slice(None))
    start = build(kind).state_dict()
    for results in ranks:
        learned = results["learned"][kind]
        assert learned.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.allclose(learned[name].double(), tensor.double(), rtol=1e-4, atol=1e-5), name
    moved = [name for name in start if not torch.allclose(expected[name].double(), start[name].double(), atol=1e-3)]
    assert "encoder.head.bias" in moved
    assert any("codebook" in name for name in moved) or not any("codebook" in name for name in start)


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_two_ranks_learn_what_one_autoencoder_learns(ranks, name):
    model = build_autoencoder(name)
    expected = learn(model, model, slice(None))
    for results in ranks:
        for key, tensor in expected.items():
            assert torch.allclose(results["learned"][name][key], tensor, rtol=1e-4, atol=1e-5), key


def test_every_kind_is_tested():
    assert KINDS.keys() == ALL_KINDS.keys()


def test_one_rank_that_is_not_finite_stops_all(ranks):
    assert [results["refused"] for results in ranks] == [[True, True], [True, True]]


def test_ranks_keep_the_same_codebooks_through_start_and_revival(ranks):
    first, second = (results["codebooks"] for results in ranks)
    for ours, theirs in zip(first, second, strict=True):
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name]), name
    assert sum(int(state["revived"]) for state in first) > 0
    # k-means starts from latents of both ranks, around 0 and around 5.
    assert first[0]["ema_counts"].sum() >= 2 * 64 - 1e-3
    assert first[-1]["codebook"].max() > 4


def test_a_quantizer_asks_for_the_process_group_when_it_is_called(tmp_path):
    """A process group of one process behaves like none."""
    latents, alone, grouped = torch.randn(64, 4), VectorQuantizer(8, 4), VectorQuantizer(8, 4)
    torch.manual_seed(0)
    alone(latents)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        grouped(latents)
    finally:
        dist.destroy_process_group()
    for name, tensor in alone.state_dict().items():
        assert torch.equal(grouped.state_dict()[name], tensor), name
