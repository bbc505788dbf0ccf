"""The page in a real browser: draw, cancel, edit under a painted mask, vary, describe; what it asks the network for."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import browser, screenshot, served
from fastapi import FastAPI
from PIL import Image
from tiny import tiny_pipeline, tiny_tokenizer

from pipelines.serving.endpoint.application import create_application
from pipelines.serving.endpoint.context import ServingSettings
from pipelines.serving.engine.engine import DrawingEngine, EngineLimits
from pipelines.serving.page.page import mount_page

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "serve.py"
BOTH = ("caption_to_image", "image_and_caption")
SLOW = {"num_layers": 4, "hidden_size": 96, "num_heads": 4, "max_positions": 256}  # slow enough to be watched
SETTINGS = ServingSettings(model_name="tiny")
# Notes what the first picture on the stage looks like after each change of the page.
WATCH = """() => {
  window.seen = [];
  const note = () => {
    const frame = document.querySelector("#stage .frame[data-codes]");
    const image = frame && frame.querySelector("img");
    if (!frame) return;
    const now = [Number(frame.dataset.codes), frame.dataset.complete, image ? image.src : ""].join("|");
    if (window.seen.at(-1) !== now) window.seen.push(now);
  };
  new MutationObserver(note).observe(document.body, {childList: true, subtree: true, attributes: true});
}"""


def application_of(engine: DrawingEngine, examples: tuple[str, ...] = ("a red dog",)) -> FastAPI:
    return mount_page(create_application(engine, SETTINGS), engine, SETTINGS, examples)


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def engine() -> Iterator[DrawingEngine]:
    """A model that draws and describes pictures of 64x64, two at once."""
    pipe = tiny_pipeline(tokenizer=tiny_tokenizer(image_size=64), formats=BOTH, **SLOW)
    with DrawingEngine(pipe, EngineLimits(pictures_at_once=2)) as running:
        yield running


@pytest.fixture(scope="module")
def address(engine: DrawingEngine) -> Iterator[str]:
    with served(application_of(engine)) as where:
        yield where


Opener = Callable[..., Any]


@pytest.fixture
def open_page(chrome: Any, address: str) -> Iterator[Opener]:
    contexts = []

    def opened(where: str = address, width: int = 1280, height: int = 900) -> Any:
        context = chrome.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.goto(where)
        page.wait_for_selector("#draw-button")
        return page

    yield opened
    for context in contexts:
        context.close()


def set_number(page: Any, name: str, value: str) -> None:
    """Write into the number field of a setting."""
    if not page.is_visible("#number"):
        page.click("#settings button")
    field = page.locator(f"#{name} input[type=number]").first
    field.wait_for()
    page.wait_for_timeout(300)  # until the settings have unfolded
    field.fill(value)
    field.press("Tab")
    page.wait_for_timeout(300)  # until the page's state has it


def open_tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).last.click()


def wait_until_done(page: Any) -> str:
    """The sentence on the stage when the work has ended well."""
    page.wait_for_selector("#stage .stage[data-state=done]")
    return page.inner_text("#stage .status")


def wait_until_free(engine: DrawingEngine) -> float:
    """Seconds until nothing is under way."""
    started = time.monotonic()
    while engine.num_under_way or engine.num_waiting:
        assert time.monotonic() - started < 20, "rows are still taken"
        time.sleep(0.02)
    return time.monotonic() - started


def picture_file(color: str, width: int = 90, height: int = 70) -> dict[str, Any]:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), color).save(stream, "PNG")
    return {"name": "picture.png", "mimeType": "image/png", "buffer": stream.getvalue()}


def test_a_picture_appears_tile_by_tile_and_its_seed_draws_it_again(open_page, engine):
    page = open_page()
    screenshot(page, "start")
    page.evaluate(WATCH)
    page.fill("#prompt textarea", "a red dog")
    set_number(page, "number", "2")
    page.click("#draw-button")
    page.wait_for_function("() => window.seen.some((state) => state.split('|')[2])")
    screenshot(page, "drawing")
    assert "2 pictures" in wait_until_done(page)
    states = [state.split("|") for state in page.evaluate("() => window.seen")]
    counts = [int(count) for count, complete, _ in states if complete == "false"]
    assert len({int(count) for count, _, source in states if source}) >= 5, "four states, and the final one"
    assert counts == sorted(counts)
    assert states[-1][1] == "true"
    assert len({source for _, _, source in states if source}) >= 5, "each state looks different"
    screenshot(page, "drawn")

    cards = page.locator("#gallery .card")
    assert cards.count() == 2
    older = cards.nth(1)
    seed, source = older.locator(".seed").inner_text(), older.locator("img").get_attribute("src")
    page.fill("#prompt textarea", "something else")
    older.locator(".choose").click()
    page.wait_for_function("(seed) => document.querySelector('#seed textarea, #seed input').value === seed", arg=seed)
    assert page.input_value("#prompt textarea") == "a red dog"
    screenshot(page, "chosen", full_page=True)
    set_number(page, "number", "1")
    page.click("#draw-button")
    page.wait_for_function("() => document.querySelectorAll('#gallery .card').length === 3")
    assert page.locator("#gallery .card img").first.get_attribute("src") == source
    wait_until_free(engine)


def test_cancel_frees_the_engine(open_page, engine):
    page = open_page()
    page.fill("#prompt textarea", "a blue cat")
    set_number(page, "number", "16")
    assert not page.is_visible("#cancel-button")
    page.click("#draw-button")
    page.wait_for_selector("#stage .stage[data-state=busy] img")
    assert engine.num_under_way + engine.num_waiting > 0
    page.click("#cancel-button")
    assert wait_until_done(page).startswith("Cancelled.")
    assert wait_until_free(engine) < 2
    assert not page.is_visible("#cancel-button")


def test_closing_the_tab_frees_the_engine(open_page, engine):
    page = open_page()
    page.fill("#prompt textarea", "a blue cat")
    set_number(page, "number", "16")
    page.click("#draw-button")
    page.wait_for_selector("#stage .stage[data-state=busy] img")
    page.close()
    assert wait_until_free(engine) < 2


def test_what_is_painted_over_is_drawn_again(open_page, engine):
    page = open_page()
    open_tab(page, "Edit")
    page.click("#edit-button")
    page.wait_for_selector("#stage .status.error")
    assert page.inner_text("#stage .status") == (
        "There is no picture to edit: upload one, or choose one below and press Edit."
    )
    page.set_input_files("#editor input[type=file]", picture_file("green"))
    page.wait_for_function("() => document.querySelector('#edit-note').innerText.startsWith('Your')")
    assert page.inner_text("#edit-note") == (
        "Your picture of 90 x 70 was resized and cropped to 64 x 64, a size that this model draws. "
        "Paint over what is to be drawn again."
    )
    page.click("#edit-button")
    page.wait_for_function("() => document.querySelector('#stage .status').innerText.startsWith('Nothing is painted')")
    canvas = page.locator("#editor canvas").first
    canvas.wait_for()
    time.sleep(1)
    box = canvas.bounding_box()
    side = min(box["width"], box["height"])
    left, top = box["x"] + box["width"] / 2 - side * 0.3, box["y"] + box["height"] / 2 - side * 0.3
    page.mouse.move(left, top)
    page.mouse.down()
    page.mouse.move(left + side * 0.15, top, steps=8)
    page.mouse.up()
    time.sleep(1)
    screenshot(page, "painted", full_page=True)
    set_number(page, "number", "1")
    page.fill("#edit-prompt textarea", "a red dog")
    page.click("#edit-button")
    said = wait_until_done(page)
    screenshot(page, "edited", full_page=True)
    share = int(re.search(r"(\d+)% of the picture stays", said).group(1))
    assert 60 <= share < 100
    wait_until_free(engine)


def test_a_drawn_picture_is_varied_edited_and_described(open_page, engine):
    page = open_page()
    page.fill("#prompt textarea", "a red dog")
    set_number(page, "number", "1")
    page.click("#draw-button")
    wait_until_done(page)
    page.click("#gallery .choose")
    page.click("#to-vary")
    page.wait_for_selector("#vary-picture img")
    assert page.input_value("#vary-prompt textarea") == "a red dog"
    page.click("#vary-button")
    page.wait_for_function("() => document.querySelectorAll('#gallery .card').length === 2")
    assert page.inner_text("#gallery .card .mark") == "varied"
    screenshot(page, "varied", full_page=True)
    page.click("#gallery .choose >> nth=0")
    page.click("#to-edit")
    page.locator("#editor canvas").first.wait_for()
    assert page.input_value("#edit-prompt textarea") == "a red dog"
    page.click("#to-describe")
    page.wait_for_selector("#describe-picture img")
    page.click("#describe-button")
    page.wait_for_function("() => document.querySelector('#describe-note').innerText.startsWith('The likeliest')")
    assert page.input_value("#caption textarea").strip()
    screenshot(page, "described", full_page=True)
    wait_until_free(engine)


def test_an_uploaded_picture_is_described(open_page, engine):
    page = open_page()
    open_tab(page, "Describe")
    page.set_input_files("#describe-picture input[type=file]", picture_file("red"))
    page.wait_for_selector("#describe-picture img")
    set_captions = page.locator("#captions input[type=number]").first
    set_captions.fill("3")
    set_captions.press("Tab")
    page.click("#describe-button")
    page.wait_for_function("() => document.querySelector('#describe-note').innerText.startsWith('The best of 3')")
    assert page.input_value("#caption textarea").strip()
    wait_until_free(engine)


def test_mistakes_are_one_sentence_on_the_page(open_page):
    page = open_page()
    page.fill("#prompt textarea", "dog " * 400)
    page.click("#draw-button")
    page.wait_for_selector("#stage .status.error")
    sentence = page.inner_text("#stage .status")
    assert re.fullmatch(r"Prompt .* tokens.*at most \d+.*shorten it\.", sentence), sentence
    screenshot(page, "refused")


def test_what_the_model_has_not_learned_is_grey_and_says_why(open_page):
    pipe = tiny_pipeline(formats=("caption_to_image", "image"))
    with DrawingEngine(pipe) as alone, served(application_of(alone)) as where:
        page = open_page(where)
        tab = page.get_by_role("tab", name="Describe (not learned)").last
        assert tab.is_disabled()
        assert "this model has not learned to describe pictures" in page.inner_text("#header")
        page.click("#settings button")
        assert page.locator("#candidates input[type=number]").is_disabled()
        assert page.locator("#guidance input[type=number]").is_enabled()
        screenshot(page, "not_learned")
        page.close()


def test_nothing_is_asked_of_other_servers_and_the_page_fits_a_phone(chrome, engine, address):
    """Every request of the browser, from the first on, goes to this server."""
    context = chrome.new_context(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_selector("#draw-button")
    page.fill("#prompt textarea", "a red dog")
    screenshot(page, "phone")
    page.click("#draw-button")
    wait_until_done(page)
    time.sleep(1)
    screenshot(page, "phone_drawn")
    width = page.evaluate("() => document.documentElement.scrollWidth")
    context.close()
    assert width <= 390, "the page is wider than a phone"
    assert asked and [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    wait_until_free(engine)


def test_termination_waits_for_the_picture_and_not_for_the_tab(open_page, tmp_path):
    """SIGTERM while a tab is open and draws: the picture is finished, and the server ends."""
    tiny_pipeline(tokenizer=tiny_tokenizer(image_size=64), formats=BOTH, **SLOW).save_pretrained(tmp_path / "model")
    command = [
        sys.executable,
        str(SCRIPT),
        "--model",
        str(tmp_path / "model"),
        "--port",
        "0",
        "--pictures_at_once",
        "1",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            words = process.stdout.readline().split()
            where = next(word for word in words if word.startswith("http")).removesuffix("/v1")
            page = open_page(where)
            page.fill("#prompt textarea", "a red dog")
            page.click("#draw-button")
            page.wait_for_selector("#stage .stage[data-state=busy] img")
            process.send_signal(signal.SIGTERM)
            assert "4 pictures" in wait_until_done(page)
            assert process.wait(20) == 0
        finally:
            process.kill()
