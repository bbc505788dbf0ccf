"""What codes cost: bits of a picture, and likelihoods level by level and of texts. By hand, and on tiny real parts."""

import math

import pytest
import torch
from tiny import tiny_pipeline, tiny_tokenizer

from pipelines.drawing.likelihood import label_nats
from pipelines.evaluation.likelihood import code_nats, measure_likelihood, measure_text
from pipelines.evaluation.metrics.rate import entropy_bits, rate_figures
from tokenizer_image.layout import build_layout

CAPTIONS = ["a red dog", None, "a blue cat on grass"]


def two_levels():
    """A tokenizer of 1 + 4 positions of one code each, 16 and 8."""
    return tiny_tokenizer(num_levels=2, quantizer="ema", hidden_sizes=[8, 16])


def test_bits_of_two_levels_by_hand():
    layout = build_layout([(1, 1), (2, 2)], [[4], [8]])
    coarse, fine = torch.tensor([0, 0, 3, 3]), torch.full((4, 4), 4 + 5)
    found = rate_figures(torch.cat([coarse[:, None], fine], dim=1), layout, (3, 8, 8))
    assert found["bits_per_picture"] == 1 * 2 + 4 * 3
    assert found["entropy_bits_per_picture"] == pytest.approx(1.0)  # one of two, and always the same
    assert found["bits_per_pixel"] == 14 / 64 and found["compression"] == 8 * 3 * 64 / 14 and found["n"] == 4
    first, second = found["levels"]
    assert (first["num_codes"], first["bits"], first["values_per_code"], first["compression"]) == (1, 2, 192, 768)
    assert (second["num_codes"], second["bits"], second["values_per_code"], second["compression"]) == (4, 12, 48, 128)
    assert first["entropy_bits"] == pytest.approx(1.0) and second["entropy_bits"] == 0


def test_each_depth_has_a_histogram_of_its_own():
    layout = build_layout([(1, 1)], [[2, 4]])
    codes = torch.tensor([[0, 2], [1, 3], [0, 4], [1, 5]])
    found = rate_figures(codes, layout, (1, 4, 4))
    assert found["bits_per_picture"] == 3 and found["entropy_bits_per_picture"] == pytest.approx(3.0)
    assert len(found["levels"]) == 1 and found["levels"][0]["num_codes"] == 2


def test_every_position_takes_the_bits_of_its_levels_histogram():
    layout = build_layout([(2, 1)], [[4]])
    found = rate_figures(torch.tensor([[0, 0], [0, 0], [1, 1], [2, 3]]), layout, (1, 4, 4))
    assert found["entropy_bits_per_picture"] == pytest.approx(2 * 1.75)  # shares 1/2, 1/4, 1/8, 1/8 at both positions


def test_entropy_of_shares():
    assert entropy_bits(torch.tensor([1, 1, 2, 0])) == pytest.approx(1.5)
    assert entropy_bits(torch.tensor([7, 0])) == 0


def test_likelihood_by_level_is_the_mean_of_its_codes():
    tokenizer = two_levels()
    pipe = tiny_pipeline(tokenizer=tokenizer, formats=["caption_to_image", "image"])
    layout = tokenizer.layout()
    generator = torch.Generator().manual_seed(0)
    low, high = torch.from_numpy(layout.low), torch.from_numpy(layout.high)
    codes = low + (torch.rand(3, len(low), generator=generator) * (high - low)).long()
    nats = code_nats(pipe, codes, CAPTIONS, progress=False).double()
    assert nats.shape == codes.shape
    found = measure_likelihood(pipe, codes, CAPTIONS, progress=False)
    level = torch.from_numpy(layout.level)
    assert [one["num_codes"] for one in found["levels"]] == [int((level == number).sum()) for number in (0, 1)]
    for number, one in enumerate(found["levels"]):
        assert one["nats_per_code"] == pytest.approx(float(nats[:, level == number].mean()))
        assert one["bits_per_code"] == pytest.approx(one["nats_per_code"] / math.log(2))
        assert one["interval"]["nats_per_code"][0] < one["nats_per_code"] < one["interval"]["nats_per_code"][1]
    assert found["nats_per_code"] == pytest.approx(float(nats.mean()))
    assert found["bits_per_dimension"] == pytest.approx(float(nats.sum()) / math.log(2) / (3 * 3 * 16 * 16))
    # Each row is what it is alone: the batch is sorted by the length of captions.
    for row, caption in enumerate(CAPTIONS):
        alone = code_nats(pipe, codes[row : row + 1], [caption], progress=False)[0].double()
        assert torch.allclose(alone, nats[row], atol=1e-5)


@pytest.mark.parametrize("name", ["image_to_caption", "image_and_caption", "text", "caption_and_image"])
def test_the_likelihood_of_texts_is_that_of_their_own_tokens(name):
    pipe = tiny_pipeline(formats=[name], max_positions=128)
    codes = pipe.encode_pixels([torch.zeros(3, 16, 16, dtype=torch.uint8).numpy()] * 3)
    found = measure_text(pipe, codes, CAPTIONS)
    rows, texts = [0, 2], [pipe.vocabulary.encode_text(CAPTIONS[row]) for row in (0, 2)]
    labels = label_nats(pipe, name, texts, codes[rows])
    start = {"image_and_caption": codes.shape[1]}.get(name, 0)  # where codes are learned in front of the text
    parts = [nats[start : start + len(ids)].double() for nats, ids in zip(labels, texts, strict=True)]
    assert found is not None and found["format"] == name and found["n"] == 2
    assert found["num_tokens"] == sum(map(len, texts))
    assert found["nats_per_token"] == pytest.approx(float(torch.cat(parts).mean()))
    low, high = found["interval"]["nats_per_token"]
    assert low <= found["nats_per_token"] <= high


def test_models_that_only_draw_have_no_likelihood_of_texts():
    pipe = tiny_pipeline(formats=["caption_to_image", "image"])
    codes = pipe.encode_pixels([torch.zeros(3, 16, 16, dtype=torch.uint8).numpy()])
    assert measure_text(pipe, codes, ["a red dog"]) is None
    pipe.vocabulary.formats = ["image_to_caption"]
    assert measure_text(pipe, codes, [None]) is None
