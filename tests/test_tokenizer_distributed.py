"""Two processes with half of a batch each learn what one process with the whole batch learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tokenizer_image import VQVAE, VectorQuantizer, VQVAEConfig

STEPS, BATCH = 4, 8


def build(**changes) -> VQVAE:
    torch.manual_seed(0)
    settings = {"hidden_sizes": [8, 16], "num_res_blocks": 1, "code_dim": 4, "codebook_sizes": [16, 8],
                "quantizer": "residual"}  # fmt: skip
    tokenizer = VQVAE(VQVAEConfig(image_size=16, **settings, **{"revival_threshold": 0.0, **changes}))
    for quantizer in tokenizer.quantizer.quantizers:  # a start of its own, so that k-means has no part in it
        codebook = 0.5 * torch.randn(quantizer.codebook.shape)
        quantizer.codebook.copy_(codebook)
        quantizer.ema_counts.fill_(1.0)
        quantizer.ema_sums.copy_(codebook)
        quantizer.initialized.fill_(True)
    return tokenizer.train()


def batch(step: int) -> Tensor:
    return torch.rand(BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(step)) * 2 - 1


def learn(tokenizer: VQVAE, model: torch.nn.Module, rows: slice) -> dict[str, Tensor]:
    """A few steps; returns weights, buffers and the first step's gradients."""
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
    """What each of two spawned processes does: one process group serves all checks, since starting it is slow."""
    torch.set_num_threads(1)
    # Built before the process group exists, as in a script that loads first and launches then.
    tokenizer, codebooks = build(), VectorQuantizer(16, 4, revival_threshold=0.5, ema_decay=0.5)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    half = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    wrapped = torch.nn.parallel.DistributedDataParallel(tokenizer)
    results = learn(tokenizer, wrapped, half)
    torch.manual_seed(100 + rank)  # ranks that do not even share their random numbers
    states = []
    for _ in range(6):
        output = codebooks(torch.randn(64, 4) + 5 * rank)
        states.append({"revived": torch.tensor(output.revived), **codebooks.state_dict()})
        states[-1] = {name: tensor.clone() for name, tensor in states[-1].items()}
    torch.save({"learned": results, "codebooks": states}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(on_two_ranks, (str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_ranks_learn_what_one_process_learns(ranks):
    tokenizer = build()
    expected = learn(tokenizer, tokenizer, slice(None))
    start = build().state_dict()
    for results in ranks:
        assert results["learned"].keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.allclose(results["learned"][name].double(), tensor.double(), rtol=1e-4, atol=1e-5), name
    for name in ("quantizer.depths.0.codebook", "quantizer.depths.1.ema_sums", "encoder.stem.weight"):
        assert not torch.allclose(expected[name], start[name], atol=1e-3), f"{name} has not learned anything"


def test_ranks_keep_the_same_codebooks_through_start_and_revival(ranks):
    first, second = (results["codebooks"] for results in ranks)
    for ours, theirs in zip(first, second, strict=True):
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name]), name
    assert sum(int(state["revived"]) for state in first) > 0
    # k-means starts from rank 0's latents, around 0; then rank 1's, around 5, are counted and attract codes too.
    assert first[0]["ema_counts"].sum() >= 2 * 64 - 1e-3
    assert first[-1]["codebook"].max() > 4


def test_a_quantizer_asks_for_the_process_group_when_it_is_called(tmp_path):
    """One process in a group behaves as one without."""
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
