"""The engine: a job's pictures do not depend on others, rows are shared fairly, and a job that ends frees its rows."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_pipeline

from pipelines import ImageToTextPipeline, TextToImagePipeline
from pipelines.serving.engine.engine import DrawingEngine, EngineLimits
from pipelines.serving.engine.jobs import EngineFull, EngineStopping, JobCancelled, JobTimeout
from pipelines.serving.engine.reducing import reduced
from pipelines.serving.engine.requests import CompleteRequest, DescribeRequest, DrawRequest, VaryRequest
from pipelines.serving.engine.turns import fair_shares, slots_allowed

BOTH = ("caption_to_image", "image_and_caption")
SIZES = ((16, 16), (16, 32))


@pytest.fixture(scope="module")
def pipe() -> TextToImagePipeline:
    pipe = tiny_pipeline(sizes=SIZES, formats=BOTH)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8))


def same(one: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def wait_until(holds, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_pictures_are_the_same_alone_and_among_31_others(pipe):
    """In float32: pixels and codes, whatever the settings of the others; and as the pipeline's call draws them."""
    requests = [
        DrawRequest(
            prompt=["a red dog", "a blue cat on grass", None][number % 3], seed=number,
            guidance_scale=[1.0, 2.0, 1.0][number % 3], temperature=[0.0, 0.7, 1.0][number % 3],
            top_k=[0, 5][number % 2], width=[16, 32][number % 2], height=16,
        )
        for number in range(32)
    ]  # fmt: skip
    with DrawingEngine(pipe) as engine:
        crowd = [engine.submit(request) for request in requests]
        crowded = [job.result(30)[0] for job in crowd]
        alone = [engine.submit(request).result(30)[0] for request in requests]
    for request, one, other in zip(requests, crowded, alone, strict=True):
        assert one.codes.tolist() == other.codes.tolist() and same(one.image, other.image)
        settings = {**request.settings(), "height": request.height, "width": request.width}
        offline = pipe(request.prompt, seed=request.seed, **settings)
        assert one.codes.tolist() == offline.codes[0].tolist() and same(one.image, offline.images[0])


def test_pictures_that_cannot_be_decoded_end_their_jobs_alone(monkeypatch):
    broken = tiny_pipeline(formats=BOTH)
    decode, fails = broken.image_tokenizer.decode, True

    def maybe(*arguments):
        if fails:
            raise RuntimeError("no memory")
        return decode(*arguments)

    monkeypatch.setattr(broken.image_tokenizer, "decode", maybe)
    with DrawingEngine(broken, EngineLimits(pictures_at_once=4)) as engine:
        jobs = [engine.submit(DrawRequest(prompt="a red dog", count=20)) for _ in range(16)]
        for job in jobs:
            with pytest.raises(RuntimeError, match="drawing failed: no memory"):
                job.result(20)
        wait_until(lambda: engine.num_under_way == 0)
        fails = False
        assert len(engine.submit(DrawRequest(prompt="a red dog", count=64)).result(20)) == 64, "all slots are free"


def test_each_picture_can_be_had_alone_by_its_seed(pipe):
    with DrawingEngine(pipe) as engine:
        drawn = engine.submit(DrawRequest(prompt="a red dog", count=3, seed=7)).result(10)
        assert [one.seed for one in drawn] == [7, 8, 9] and [one.number for one in drawn] == [0, 1, 2]
        assert same(engine.submit(DrawRequest(prompt="a red dog", seed=9)).result(10)[0].image, drawn[2].image)
        unseeded = engine.submit(DrawRequest(prompt="a red dog")).result(10)[0]
        assert same(
            engine.submit(DrawRequest(prompt="a red dog", seed=unseeded.seed)).result(10)[0].image, unseeded.image
        )
    assert drawn[0].codes.tolist() != drawn[1].codes.tolist()


def test_previews_come_in_order_and_end_in_the_picture(pipe):
    with DrawingEngine(pipe) as engine:
        events = list(engine.submit(DrawRequest(prompt="a red dog", count=2, seed=1), previews=3).events(10))
    for number in range(2):
        mine = [one for one in events if one.number == number]
        assert [len(one.codes) for one in mine] == [2, 4, 6, 8] and [one.is_complete for one in mine][-2:] == [
            False,
            True,
        ]
        shown = pipe.decode_codes(torch.from_numpy(mine[-1].codes)[None, :4])
        assert np.allclose(np.asarray(mine[1].image), ((shown[0].permute(1, 2, 0) + 1) * 127.5).clamp(0, 255), atol=1)


def test_completing_and_varying_are_those_of_the_pipeline(pipe, picture):
    mask = Image.new("L", (16, 16))
    mask.paste(255, (0, 8, 16, 16))
    with DrawingEngine(pipe) as engine:
        completed = engine.submit(CompleteRequest(image=picture, mask=mask, prompt="a red dog", seed=3)).result(10)[0]
        varied = engine.submit(VaryRequest(image=picture, redraw=0.5, seed=4, count=2)).result(10)
        whole = engine.submit(CompleteRequest(image=picture, mask=Image.new("L", (16, 16)))).result(10)[0]
        larger = engine.submit(
            CompleteRequest(image=picture.resize((64, 64)), mask=mask.resize((64, 64)), seed=3)
        ).result(10)[0]  # fmt: skip
    offline = pipe.complete(picture, "a red dog", mask=mask, seed=3)
    assert completed.codes.tolist() == offline.codes[0].tolist() and same(completed.image, offline.images[0])
    for number, one in enumerate(varied):
        assert one.codes.tolist() == pipe.vary(picture, redraw=0.5, seed=4 + number).codes[0].tolist()
    assert whole.codes.tolist() == pipe.encode_images(picture)[0].tolist()  # nothing to draw
    assert larger.image.size == (16, 16)


def test_descriptions_are_those_of_the_pipeline(pipe, picture):
    describing = ImageToTextPipeline(pipe.image_tokenizer, pipe.model, pipe.vocabulary)
    with DrawingEngine(pipe, EngineLimits(description_tokens=8)) as engine:
        beside = engine.submit(DrawRequest(prompt="a red dog", count=4))
        greedy = engine.submit(DescribeRequest(image=picture)).result(10)[0]
        best = engine.submit(DescribeRequest(image=picture, best_of=4, seed=2)).result(10)[0]
        beside.result(10)
    assert greedy.text == describing(picture, max_new_tokens=8).texts[0]
    assert best.text == describing(picture, max_new_tokens=8, best_of=4, seed=2).texts[0]
    assert greedy.text_tokens <= 8 and greedy.prompt_tokens == len(pipe.vocabulary.picture((16, 16))) + 3


def test_a_cancelled_job_frees_its_rows(pipe):
    limits = EngineLimits(pictures_at_once=1)
    with DrawingEngine(pipe, limits) as engine:
        large = engine.submit(DrawRequest(prompt="a red dog", count=64))
        wait_until(lambda: engine.num_under_way > 0)
        large.cancel()
        with pytest.raises(JobCancelled):
            large.result(10)
        wait_until(lambda: engine.num_under_way == 0)
        assert engine.submit(DrawRequest(prompt="a red dog", seed=1)).result(10)
        assert engine.num_waiting == 0, "what has ended does not wait"
        waiting = engine.submit(DrawRequest(prompt="a red dog"))
        waiting.cancel()
        assert waiting.has_ended or waiting.is_cancelled


def test_limits_say_what_is_allowed(pipe, picture):
    limits = EngineLimits(images_per_request=2, prompt_tokens=4, description_tokens=5)
    with DrawingEngine(pipe, limits) as engine:
        with pytest.raises(ValueError, match="n=3: at most 2"):
            engine.submit(DrawRequest(prompt="a dog", count=3))
        with pytest.raises(ValueError, match=r"prompt has \d+ tokens: at most 4"):
            engine.submit(DrawRequest(prompt="a blue cat on grass and a red dog"))
        with pytest.raises(ValueError, match="prompt has more than 4 tokens, which is the limit"):
            engine.submit(DrawRequest(prompt="dog " * 20_000))
        with pytest.raises(ValueError, match="max_new_tokens=6: a description has at most 5"):
            engine.submit(DescribeRequest(image=picture, max_new_tokens=6))
        with pytest.raises(ValueError, match="best_of=3: at most 2"):
            engine.submit(DescribeRequest(image=picture, best_of=3))
        with pytest.raises(ValueError, match="the mask is 8x8"):
            engine.submit(CompleteRequest(image=picture, mask=Image.new("L", (8, 8))))
        with pytest.raises(ValueError, match="height=7"):
            engine.submit(DrawRequest(prompt="a dog", height=7))
        with pytest.raises(ValueError, match="temperature must be at least 0"):
            engine.submit(DrawRequest(prompt="a dog", temperature=-1.0))


def test_what_waits_keeps_pictures_at_the_models_size(pipe):
    """So large uploads take no memory while they wait; what is drawn is as from the large ones."""
    large = Image.radial_gradient("L").convert("RGB").resize((320, 160))
    mask = Image.new("L", large.size)
    mask.paste(255, (0, 0, 160, 160))
    for request in (
        CompleteRequest(image=large, mask=mask), VaryRequest(image=large, seed=1), DescribeRequest(image=large)
    ):  # fmt: skip
        small = reduced(pipe, request)
        assert small.image.size == (32, 16) and same(reduced(pipe, small).image, small.image)
        if isinstance(small, CompleteRequest):
            assert np.array_equal(np.asarray(small.mask) // 128 * 255, np.repeat([[255] * 16 + [0] * 16], 16, 0))
    with DrawingEngine(pipe) as engine:
        varied = engine.submit(VaryRequest(image=large, seed=1)).result(10)[0]
        completed = engine.submit(CompleteRequest(image=large, mask=mask, seed=1)).result(10)[0]
    small = reduced(pipe, CompleteRequest(image=large, mask=mask))
    assert same(varied.image, pipe.vary(small.image, seed=1).images[0])
    redrawn = np.repeat([[255] * 16 + [0] * 16], 16, 0).astype(np.uint8)
    assert same(completed.image, pipe.complete(small.image, mask=redrawn, seed=1).images[0])
    draw = DrawRequest(prompt="a dog")
    assert reduced(pipe, draw) is draw


def test_too_many_waiting_requests_are_refused(pipe):
    with DrawingEngine(pipe, EngineLimits(waiting_requests=2, pictures_at_once=1)) as engine:
        jobs = []
        with pytest.raises(EngineFull, match="2 requests are waiting") as refused:
            for _ in range(50):
                jobs.append(engine.submit(DrawRequest(prompt="a red dog", count=64)))
        assert 1 <= refused.value.retry_after <= 60
        for job in jobs:
            job.cancel()


def test_a_request_has_so_many_seconds(pipe):
    limits = EngineLimits(seconds=0.0)
    with DrawingEngine(pipe, limits) as engine, pytest.raises(JobTimeout, match="longer than 0 s"):
        engine.submit(DrawRequest(prompt="a red dog", count=64)).result(10)


def test_stopping_finishes_what_is_under_way(pipe):
    engine = DrawingEngine(pipe)
    job = engine.submit(DrawRequest(prompt="a red dog", count=8))
    engine.stop()
    with pytest.raises(EngineStopping):
        engine.submit(DrawRequest(prompt="a red dog"))
    engine.join(10)
    assert not engine.is_alive and len(job.result(0)) == 8


def test_an_error_of_the_model_ends_the_jobs_and_not_the_engine():
    broken = tiny_pipeline(formats=BOTH)
    weight = broken.model.model.norm.weight
    with DrawingEngine(broken) as engine:
        kept = weight.detach().clone()
        weight.data.fill_(float("nan"))
        with pytest.raises(RuntimeError, match="not finite"):
            engine.submit(DrawRequest(prompt="a red dog")).result(10)
        weight.data.copy_(kept)
        assert engine.submit(DrawRequest(prompt="a red dog")).result(10)


def test_what_the_model_has_not_learned_is_said(picture):
    with DrawingEngine(tiny_pipeline(formats=("image_to_caption",))) as engine:
        with pytest.raises(ValueError, match="not trained for that"):
            engine.submit(DrawRequest(prompt="a red dog"))
        assert engine.submit(DescribeRequest(image=picture)).result(10)
    drawing = tiny_pipeline(formats=("caption_to_image",))
    with DrawingEngine(drawing) as engine, pytest.raises(ValueError, match="describing a picture"):
        engine.submit(DescribeRequest(image=picture))


@pytest.mark.parametrize(
    ("wanted", "budget", "expected"),
    [
        ([5, 1, 1], 8, [5, 1, 1]),
        ([64, *[1] * 16], 32, [16, *[1] * 16]),
        ([64, 64], 32, [16, 16]),
        ([1] * 5, 3, [1, 1, 1, 0, 0]),
        ([10, 2, 10], 13, [6, 2, 5]),
        ([], 4, []),
    ],
)
def test_shares_of_a_step_are_even(wanted, budget, expected):
    assert fair_shares(wanted, budget) == expected


def test_one_job_leaves_slots_to_others():
    """One large job takes half of the slots, a second one a third in the end, and a small one all that it needs."""
    assert slots_allowed(held=0, free=64, rest=200) == 32
    assert slots_allowed(held=32, free=32, rest=100) == 0
    assert slots_allowed(held=0, free=32, rest=100) == 16
    assert slots_allowed(held=0, free=3, rest=1) == 1
    assert slots_allowed(held=0, free=0, rest=1) == 0


def test_small_jobs_are_not_held_up_by_a_large_one(pipe):
    """While 64 pictures are drawn, one that comes later is complete long before the last of them."""
    with DrawingEngine(pipe, EngineLimits(pictures_at_once=4)) as engine:
        large = engine.submit(DrawRequest(prompt="a red dog", count=64))
        next(large.events(10))
        engine.submit(DrawRequest(prompt="a blue cat", seed=1)).result(10)
        done, ended = large.taken_from(0)
        assert not ended and len(done) < 32
        large.cancel()
