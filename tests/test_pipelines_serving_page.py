"""The parts of the page that need no browser: what it greys out, pictures, fields, actions, and the Space."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_lm_cache import Document, write_cache
from tiny import tiny_pipeline, tiny_tokenizer, tiny_vocabulary

from pipelines.drawing.best_of import caption_scores
from pipelines.example_prompts import example_prompts
from pipelines.serving.endpoint.waiting import outputs_of
from pipelines.serving.engine.engine import DrawingEngine
from pipelines.serving.engine.jobs import DrawnPicture, Job, JobCancelled
from pipelines.serving.engine.requests import DrawRequest
from pipelines.serving.page.abilities import Abilities
from pipelines.serving.page.actions import KEPT_PICTURES, PageActions, sentence_of
from pipelines.serving.page.cards import Drawn, Frame, Settings, abilities, gallery, stage
from pipelines.serving.page.form import Form, View, size_of
from pipelines.serving.page.session_jobs import SessionJobs
from pipelines.serving.page.tiles import drawn_places, enlarged, grid_of, half_drawn, painted_pixels, spread_over_pixels
from pipelines.serving.page.upload_fields import KEPT_CANVASES, Painting, mask_editor
from pipelines.serving.space import requirements, write_space

ROOT = Path(__file__).resolve().parents[1]
SQUARE = {"level": [0] * 8, "depth": [0, 1] * 4, "row": [0, 0, 0, 0, 1, 1, 1, 1], "column": [0, 0, 1, 1, 0, 0, 1, 1]}
LEVELS = {"level": [0, 1, 1, 1, 1], "depth": [0] * 5, "row": [0, 0, 0, 1, 1], "column": [0, 0, 1, 0, 1]}
FORM = Form("a red dog", 1, 1, "", "", 1.0, 1.0, 0, 1.0)


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


# What the model has learned


@pytest.mark.parametrize(
    ("formats", "missing"),
    [
        (["caption_to_image", "image_and_caption"], set()),
        (["caption_to_image", "image"], {"describes", "ranks"}),
        (["caption_to_image"], {"draws_alone", "guides", "describes", "ranks"}),
        (["image"], {"reads_prompts", "guides", "describes", "ranks"}),
        (["image_to_caption"], {"draws", "reads_prompts", "draws_alone", "guides", "ranks"}),
    ],
)
def test_what_a_model_has_not_learned_has_a_reason(formats, missing):
    can = Abilities.of(tiny_vocabulary(tiny_tokenizer(), formats=formats))
    uses = ("draws", "reads_prompts", "draws_alone", "guides", "describes", "ranks")
    assert {use for use in uses if getattr(can, use) is not None} == missing
    assert all(name in can.remedy for name in formats)


def test_the_head_of_the_page_says_why():
    words = abilities([("draws", None), ("describes", "it has <not> learned")], "Train it.")
    assert '<li class="can">draws</li>' in words and "&lt;not&gt;" in words and "<not>" not in words
    assert "Greyed out: it has &lt;not&gt; learned. Train it." in words
    assert "Greyed" not in abilities([("draws", None)], "Train it.")


# Half-drawn pictures


def test_places_are_drawn_when_their_codes_of_the_coarsest_level_are():
    assert grid_of(SQUARE) == (2, 2) and grid_of(LEVELS) == (1, 1)
    three = np.arange(8) < 3  # the first place whole, the second half
    assert drawn_places(SQUARE, three).tolist() == [[True, False], [False, False]]
    assert drawn_places(LEVELS, np.arange(5) < 1).tolist() == [[True]]
    assert not drawn_places(LEVELS, np.arange(5) < 0).any()


def test_pixels_of_places_that_are_not_drawn_are_transparent():
    places = np.array([[True, False]])
    assert spread_over_pixels(places, (2, 4)).tolist() == [[True, True, False, False]] * 2
    shown = half_drawn(Image.new("RGB", (4, 2), "red"), places)
    assert [shown.getpixel((x, 1)) for x in range(4)] == [(255, 0, 0, 255)] * 2 + [(255, 0, 0, 0)] * 2


def test_pictures_are_enlarged_by_whole_factors():
    image = Image.effect_noise((3, 2), 90)
    large = enlarged(image, 10)
    assert large.size == (9, 6) and large.resize((3, 2), Image.Resampling.NEAREST).tobytes() == image.tobytes()
    assert enlarged(image, 1).size == (3, 2)


def test_a_pixel_is_painted_where_half_of_it_is():
    layer = Image.new("RGBA", (8, 8))
    layer.paste((255, 0, 0, 255), (0, 0, 2, 4))  # half of the first pixel of 4x4
    layer.paste((255, 0, 0, 255), (4, 4, 5, 8))  # a quarter of the last
    assert painted_pixels([layer], (2, 2)).tolist() == [[True, False], [False, False]]
    assert not painted_pixels([], (2, 2)).any()


def test_kept_places_show_their_source_until_they_are_decoded():
    vocabulary = tiny_vocabulary(tiny_tokenizer())
    size, total = (16, 16), vocabulary.tokens_per_image
    kept = np.arange(total) >= total - 2  # the last place
    source, decoded = Image.new("RGB", (16, 16), "blue"), Image.new("RGB", (16, 16), "red")
    view = View(vocabulary, size, [kept], source)
    begun = Image.open(io.BytesIO(view.empty(0).png))
    assert begun.getpixel((0, 0))[3] == 0 and begun.getpixel((15, 15)) == (0, 0, 255, 255)
    half = DrawnPicture(0, decoded, np.zeros(2, np.int64), 7, total, 3)
    shown = Image.open(io.BytesIO(view.frame(half).png))
    assert shown.getpixel((0, 0)) == (255, 0, 0, 255)
    assert shown.getpixel((15, 0))[3] == 0
    assert shown.getpixel((15, 15)) == (0, 0, 255, 255)
    whole = DrawnPicture(0, decoded, np.zeros(total, np.int64), 7, total, 3)
    assert Image.open(io.BytesIO(view.frame(whole).png)).getcolors() == [(256, (255, 0, 0))]


def test_texts_of_visitors_are_no_html():
    settings = Settings("<script>alert(1)</script>", 16, 16, 1.0, 1.0, 0, 1.0)
    shown = gallery([Drawn(png(Image.new("RGB", (2, 2))), 5, settings, "draw")], chosen=0)
    assert "<script" not in shown and "&lt;script" in shown and 'data-copy="5"' in shown
    frame = Frame(None, (16, 16), (2, 2), (0, 8))
    assert "<b>" not in stage([frame], "<b>", kind="error") and "<b>" not in stage([], "<b>")


# Fields


def test_fields_become_a_request():
    form = Form(" a dog ", 2, 3, "16x16", " 12 ", 3.0, 0.5, 4, 0.9)
    assert (form.text, form.num_drawn, form.first_seed()) == ("a dog", 6, 12)
    assert form.sampling(is_guided=True) == {"guidance_scale": 3.0, "temperature": 0.5, "top_k": 4, "top_p": 0.9}
    assert form.sampling(is_guided=False)["guidance_scale"] == 1.0
    assert Form("  ", 1, 1, "", "", 3.0, 1.0, 0, 1.0).text is None
    assert FORM.first_seed() != FORM.first_seed()


@pytest.mark.parametrize("seed", ["-1", "1.5", "x", "²"])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(ValueError, match="is no whole number"):
        Form("", 1, 1, "", seed, 1.0, 1.0, 0, 1.0).first_seed()


def test_a_size_that_the_model_does_not_draw_is_refused():
    vocabulary = tiny_vocabulary(tiny_tokenizer(), sizes=[(16, 16), (16, 32)])
    assert size_of(vocabulary, "") == (16, 16) and size_of(vocabulary, "16x32") == (16, 32)
    with pytest.raises(ValueError, match="size '8x8': this model draws 16x16, 16x32"):
        size_of(vocabulary, "8x8")


def test_canvases_that_no_action_takes_are_dropped():
    editor = mask_editor()
    for number in range(KEPT_CANVASES + 5):
        data = {"type": "background", "index": None, "file": b"", "id": str(number)}
        editor.accept_blobs(type("Blobs", (), {"data": data, "files": [("file", b"x")]}))
    assert len(editor.blob_storage) == KEPT_CANVASES and "0" not in editor.blob_storage


# Actions


@pytest.fixture(scope="module")
def actions():
    pipe = tiny_pipeline(formats=("caption_to_image", "image_and_caption"))
    with DrawingEngine(pipe) as engine:
        yield PageActions(engine, 10_000)


def run(action):
    async def collect():
        return [updates async for updates in action]

    return asyncio.run(collect())


def said(updates) -> str:
    return re.search(r'role="\w+">([^<]*)<', updates[0]).group(1)


def test_best_of_gives_those_after_which_the_prompt_is_likeliest(actions):
    form = Form("a red dog", 2, 3, "", "3", 1.0, 1.0, 0, 1.0)
    history = run(actions.draw(form, [], "me"))[-1][1]
    job = actions.engine.submit(DrawRequest(prompt="a red dog", count=6, seed=3, guidance_scale=1.0))
    codes = torch.from_numpy(np.stack([drawn.codes for drawn in job.result(30)]))
    scores = caption_scores(actions.engine.pipeline, ["a red dog"], codes)[0]
    assert [drawn.seed - 3 for drawn in history] == scores.argsort(descending=True)[:2].tolist()
    assert not actions.jobs.any_under_way


def test_a_variation_keeps_the_rest(actions):
    content = png(Image.effect_noise((16, 16), 90).convert("RGB"))
    frames = run(actions.vary(content, 0.5, FORM, [], "me"))
    assert said(frames[-1]).startswith("1 picture in") and frames[-1][1][0].made_by == "vary"


def test_a_picture_is_edited_under_what_is_painted(actions):
    layer = Image.new("RGBA", (64, 64))
    layer.paste((255, 0, 0, 255), (0, 0, 20, 20))
    painting = Painting(png(Image.new("RGB", (64, 64), "green")), [png(layer)])
    last = run(actions.edit(painting, FORM, [], "me"))[-1]
    assert "75% of the picture stays" in said(last) and last[1][0].made_by == "edit"


def test_descriptions(actions):
    content = png(Image.new("RGB", (30, 20), "green"))
    notes = run(actions.describe(content, 1, "me"))
    assert notes[-1][0] == "The likeliest caption." and isinstance(notes[-1][1], str)
    assert run(actions.describe(content, 3, "me"))[-1][0] == "The best of 3 captions."
    assert "There is no picture to describe" in run(actions.describe(None, 1, "me"))[-1][0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a: a.draw(Form("dog " * 400, 1, 1, "", "", 1.0, 1.0, 0, 1.0), [], "me"), "tokens: at most"),
        (lambda a: a.draw(Form("a", 1, 1, "8x8", "", 1.0, 1.0, 0, 1.0), [], "me"), "this model draws 16x16"),
        (lambda a: a.draw(Form("a", 1, 1, "", "-", 1.0, 1.0, 0, 1.0), [], "me"), "The seed &#x27;-&#x27; is no whole"),
        (lambda a: a.draw(Form("", 1, 2, "", "", 1.0, 1.0, 0, 1.0), [], "me"), "give a prompt"),
        (lambda a: a.edit(None, FORM, [], "me"), "There is no picture to edit"),
        (lambda a: a.edit(Painting(b"x", []), FORM, [], "me"), "The picture is not a picture"),
        (lambda a: a.edit(Painting(png(Image.new("RGB", (9, 9))), []), FORM, [], "me"), "Nothing is painted over"),
        (lambda a: a.vary(None, 0.5, FORM, [], "me"), "There is no picture to vary"),
        (lambda a: a.vary(png(Image.new("RGB", (200, 100))), 0.5, FORM, [], "me"), "200x100 pixels: at most 10,000"),
    ],
)
def test_mistakes_are_one_sentence_on_the_stage(actions, make, message):
    last = run(make(actions))[-1]
    assert message in said(last) and said(last).endswith(".")
    assert 'data-state="error"' in last[0] and not actions.jobs.any_under_way


def test_what_is_not_the_visitors_fault_is_logged_and_not_shown(caplog):
    assert "/secret" not in sentence_of(OSError("no file /secret"))
    assert "/secret" in caplog.text
    assert sentence_of(JobCancelled("x")) == "Cancelled."


def test_uploads_of_a_models_size_and_enlarged_ones_keep_their_pixels(actions):
    noise = Image.effect_noise((16, 16), 90).convert("RGB")
    for picture in (noise, enlarged(noise, 512)):
        fitted, note = actions.of_model_size(picture)
        assert fitted.tobytes() == noise.tobytes() and note == ""
    fitted, note = actions.of_model_size(Image.new("RGB", (40, 30)))
    assert fitted.size == (16, 16)
    assert note == "Your picture of 40 x 30 was resized and cropped to 16 x 16, a size that this model draws."


def test_the_gallery_is_bounded(actions):
    history = []
    for seed in range(KEPT_PICTURES // 8 + 1):
        form = Form("a red dog", 8, 1, "", str(seed), 1.0, 1.0, 0, 1.0)
        history = run(actions.draw(form, history, "me"))[-1][1]
    assert len(history) == KEPT_PICTURES


# Sessions


def test_a_new_job_of_a_session_takes_the_place_of_the_one_before():
    jobs, first, second, other = SessionJobs(), Job(1), Job(1), Job(1)
    jobs.begin("a", first)
    jobs.begin("b", other)
    jobs.begin("a", second)
    assert first.is_cancelled and not second.is_cancelled and not other.is_cancelled
    assert jobs.is_current("a", second) and not jobs.is_current("a", first)
    jobs.end("a", first)
    assert jobs.is_current("a", second)
    jobs.cancel("b")
    jobs.cancel("nobody")
    assert other.is_cancelled and not second.is_cancelled
    jobs.end("a", second)
    jobs.end("b", other)
    assert not jobs.any_under_way


def test_outputs_come_together_that_came_together_and_an_error_comes_last():
    async def listen():
        job, seen = Job(2), []
        job.give(1)
        job.give(2)
        with pytest.raises(JobCancelled):
            async for outputs in outputs_of(job):
                seen.append(outputs)
                if len(seen) == 1:
                    job.give(3)
                    job.end(error=JobCancelled("x"))
        return seen

    assert asyncio.run(listen()) == [[1, 2], [3]]


# Prompts to try


def test_examples_come_from_the_card_or_from_captions(tmp_path):
    assert example_prompts(tmp_path) == []
    texts = ["a  dog", "a dog", "x" * 500, "a cat"]
    write_cache(tmp_path / "token_cache" / "validation", [[Document(np.zeros(4, int), [(8, 8)], texts)]])
    assert example_prompts(tmp_path) == ["a dog", "a cat"]
    (tmp_path / "README.md").write_text("---\nlicense: mit\nwidget:\n- text: a bird\n- src: x\n---\n# Model\n")
    assert example_prompts(tmp_path) == ["a bird"]
    (tmp_path / "README.md").write_text("---\n[\n---\n")
    assert example_prompts(tmp_path, 1) == ["a dog"]


# The Space


def test_a_space_serves_its_model(tmp_path):
    """As the Hub runs it: the folder alone, with the model where its name leads."""
    folder = write_space(tmp_path / "space", "owner/name", title="Sprites")
    head = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    assert head["sdk"] == "gradio" and head["app_file"] == "app.py" and head["models"] == ["owner/name"]
    lines = (folder / "requirements.txt").read_text().splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(lines) == {*project["dependencies"], *project["optional-dependencies"]["serving"]}
    assert not list(folder.rglob("__pycache__")) and (folder / "pipelines" / "serving" / "page" / "page.css").is_file()
    tiny_pipeline().save_pretrained(folder / "owner" / "name")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "TESSERA_API_KEY": "secret"}
    environment.pop("PYTHONPATH", None)
    with subprocess.Popen([sys.executable, "app.py"], cwd=folder, env=environment, stderr=subprocess.PIPE) as process:
        try:
            assert "name - Tessera" in _answer(f"http://127.0.0.1:{port}/", process)
            assert '"name"' in _answer(f"http://127.0.0.1:{port}/v1/models", process)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()


def _answer(address: str, process: subprocess.Popen) -> str:
    key = base64.b64encode(b"any:secret").decode()
    request = urllib.request.Request(address, headers={"Authorization": f"Basic {key}"})
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.read().decode()
        except urllib.error.URLError:
            assert process.poll() is None, process.stderr.read().decode()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.3)


@pytest.mark.parametrize("model", ["name", "a/b/c", "/name", "owner/"])
def test_a_space_needs_a_model_on_the_hub(tmp_path, model):
    with pytest.raises(ValueError, match="a Space loads its model from the Hub"):
        write_space(tmp_path / "space", model)


def test_a_space_replaces_no_other_folder(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="holds something else than a Space"):
        write_space(tmp_path, "owner/name")
    folder = write_space(tmp_path / "space", "owner/name")
    assert write_space(folder, "owner/other") == folder and "owner/other" in (folder / "app.py").read_text()


def test_requirements_have_no_other_extra():
    lines = requirements()
    assert any(line.startswith("gradio") for line in lines) and any(line.startswith("torch>") for line in lines)
    assert not any(line.startswith(("pytest", "ray", "peft")) for line in lines)


def test_sharing_without_the_internet_is_one_sentence():
    """With a proxy that is not there, so that no tunnel is opened wherever the test runs."""
    code = "from pipelines.serving.sharing import public_address; public_address('127.0.0.1', 1)"
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment = {**kept, **nowhere, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "ValueError: --share: there is no tunnel" in done.stderr.splitlines()[-1]
