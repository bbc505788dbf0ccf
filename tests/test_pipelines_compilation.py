"""--compile: the same loss where it works, a sentence where it does not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from lm.model import build_configuration, build_model
from lm.sequences import collate, token_sequence
from lm.training.losses import NextTokenLoss
from lm.vocabulary import MultimodalVocabulary, train_text_tokenizer
from pipelines.training import compilation
from pipelines.training.compilation import compile_layers, repeated_layers
from pipelines.training.state import eager
from tokenizer_image.layout import build_layout


@pytest.fixture
def parts(monkeypatch):
    """A loss, and something that gives batches of the rows that are asked for."""
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(0)
    vocabulary = MultimodalVocabulary.build(
        train_text_tokenizer(["a red dog"] * 3, 300), num_codes=20, layout=build_layout([(2, 2)], [[20]]).to_dict(),
        image_size=[16, 16], image_tokenizer_fingerprint="none",
    )  # fmt: skip
    sizes = {"num_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
    model = build_model(build_configuration(vocabulary, max_positions=64, **sizes)).train()

    class Order:
        def __init__(self, source, batch_size, seed, pack_length=None) -> None:
            text = vocabulary.encode_text("a red dog " * batch_size)
            rows = [token_sequence(vocabulary, "caption_to_image", text, np.arange(4)) for _ in range(batch_size)]
            self.batch = collate(rows, vocabulary.pad_id)

        def batches(self):
            while True:
                yield None, [self.batch]

    monkeypatch.setattr(compilation, "BatchOrder", Order)
    return (
        NextTokenLoss(model, vocabulary.id_ranges),
        SimpleNamespace(source=None, seed=0, pack_length=None),
        Order(None, 4, 0).batch,
    )


def test_a_compiler_that_fails_is_left_out(parts, monkeypatch, capsys):
    module, order, batch = parts
    expected = module(**batch)["loss"].detach()
    original, state = torch.nn.Module.compile, torch.get_rng_state()

    def broken(graph, inputs):
        raise RuntimeError("no C++ compiler\nand a page about it")

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **settings: original(self, backend=broken, **settings))
    assert not compile_layers(Accelerator(cpu=True), module, order)
    said = capsys.readouterr().out
    assert "--compile does not work here and is left out (" in said and "page about it" not in said
    assert torch.equal(module(**batch)["loss"].detach(), expected), "training goes on without"
    assert all(p.grad is None for p in module.parameters()) and torch.equal(torch.get_rng_state(), state)


def test_layers_are_compiled_once_for_all_shapes(parts, monkeypatch, capsys):
    module, order, batch = parts
    expected = module(**batch)["loss"].detach()
    original, graphs = torch.nn.Module.compile, []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **settings: original(self, backend=counting, **settings)
    )
    torch._dynamo.reset()
    assert compile_layers(Accelerator(cpu=True), module, order)
    assert "compiled 2 layers in " in capsys.readouterr().out and len(repeated_layers(module.model)) == 2
    before = len(graphs)
    assert 1 <= before <= 4, "not one for each layer and shape"
    assert torch.allclose(module(**batch)["loss"].detach(), expected, rtol=1e-5)
    assert len(graphs) == before and all(p.grad is None for p in module.parameters())
    assert [name for name, _ in module.model.named_parameters()][0] == "model.embed_tokens.weight", "names stay"


def test_what_is_not_training_runs_uncompiled(parts, monkeypatch):
    """Validation and sample pictures would otherwise compile every layer again, in the middle of a run."""
    module, order, batch = parts
    original, runs = torch.nn.Module.compile, []

    def counting(graph, inputs):
        def run(*values):
            runs.append(1)
            return graph(*values)

        return run

    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **settings: original(self, backend=counting, **settings)
    )
    assert compile_layers(Accelerator(cpu=True), module, order)
    module(**batch)
    used = len(runs)
    with eager(module.model):
        module(**batch)
    assert len(runs) == used > 0, "nothing compiled ran"
    module(**batch)
    assert len(runs) > used, "and it is back"
