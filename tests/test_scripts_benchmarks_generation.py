"""The benchmark of the sampler, as far as it takes no time."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import tiny_pipeline

from lm.model import build_configuration, build_model
from scripts.benchmarks import several_codes
from scripts.benchmarks.generation import TEXT_TOKENS, Options, bytes_read, main, ours, random_model, vocabulary_of
from scripts.benchmarks.several_codes import widened


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


def test_a_widened_model_computes_the_same():
    torch.manual_seed(0)
    vocabulary = vocabulary_of(4)
    small = build_model(build_configuration(vocabulary, size="2M")).eval()
    large = widened(small)
    assert sum(p.numel() for p in large.model.layers.parameters()) > 25e6 and widened(large) is large
    ids = torch.randint(vocabulary.size, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(large(ids).logits, small(ids).logits, atol=1e-5, rtol=1e-5)


def test_rows_of_several_codes_a_call(tmp_path, monkeypatch):
    for part in ("calls", "calls_a_code", "several", "captions"):
        main(Options(only=part, model=str(tmp_path / "none"), output=str(tmp_path / "rows.json")))
        assert all(row["value"] is None for row in json.loads((tmp_path / "rows.json").read_text()))
    tiny_pipeline().save_pretrained(tmp_path / "model")
    tiny_pipeline(formats=["caption_to_image", "image_to_caption"]).save_pretrained(tmp_path / "describes")
    monkeypatch.setattr(several_codes, "CAPTIONS", 8)
    rows = {row["what"]: row["value"] for row in several_codes.calls(str(tmp_path / "model"))}
    monkeypatch.setattr(several_codes, "SEVERAL_TURNS", 1)
    (_, same) = several_codes.captions_over_one_token_a_call(str(tmp_path / "describes"), 1)
    assert same["value"] == same["target"] == 1
    assert rows["calls/sprites/same_codes"] == 1 and rows["calls/sprites"] <= rows["calls/sprites/one_by_one"] == 8


def test_rows_of_equal_codes(tmp_path):
    """Without a trained model, 4 random ones at their sizes, of which 2 have levels or depths: 42 cases."""
    main(Options(only="equal", pictures=42, model=str(tmp_path / "none"), output=str(tmp_path / "rows.json")))
    rows = {row["what"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert rows["equal/pictures"]["value"] == rows["equal/pictures"]["target"] == 42
    assert [rows[f"equal/{name}"]["target"] for name in ("plain", "forced", "by_level_or_depth")] == [4, 4, 2]
