"""The benchmark of the sampler, as far as it takes no time."""

from __future__ import annotations

import json

import pytest
import torch

from scripts.benchmarks.generation import TEXT_TOKENS, Options, bytes_read, main, ours, random_model, vocabulary_of


def test_the_model_of_the_rows():
    model = random_model("25M", torch.bfloat16)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 51 and vocabulary_of(256).size == 24_576
    layers = sum(p.numel() for p in model.model.layers.parameters()) + 512
    assert bytes_read(model, 2, 100) == 2 * (layers + 8_192 * 512 + 2 * 2 * 8 * 512 * 100)
    assert vocabulary_of(4).image_offset == TEXT_TOKENS and ours(model, 1, 2).shape == (1, 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures where there is a GPU")
def test_a_row_without_a_gpu(tmp_path):
    main(Options(only="gpu", output=str(tmp_path / "rows.json")))
    assert json.loads((tmp_path / "rows.json").read_text()) == [
        {"what": "gpu/1B/share_of_limit", "value": None, "unit": "", "target": None, "higher_is_better": True}
    ]
    with pytest.raises(ValueError, match="--only two_pictures: choose one of one_picture, "):
        main(Options(only="two_pictures"))


def test_a_row_without_a_trained_model(tmp_path):
    main(Options(only="cold_start", model=str(tmp_path / "none"), output=str(tmp_path / "rows.json")))
    assert json.loads((tmp_path / "rows.json").read_text()) == [
        {"what": "cold_start", "value": None, "unit": "s", "target": None, "higher_is_better": False}
    ]
