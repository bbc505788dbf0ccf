"""The web page: draw, edit, vary and describe in a browser; pictures appear tile by tile.

    mount_page(application, engine)

It needs nothing from elsewhere: the system's fonts, no analytics, no history outside of the tab.
"""

from __future__ import annotations

import asyncio
import io
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

import gradio as gr
from fastapi import FastAPI, HTTPException
from PIL import Image

from pipelines.serving.endpoint.context import ServingSettings
from pipelines.serving.endpoint.running import before_end
from pipelines.serving.engine.engine import DrawingEngine
from pipelines.serving.page.actions import PageActions, sentence_of
from pipelines.serving.page.cards import Drawn, gallery, note_line
from pipelines.serving.page.fields import HERE, PageFields
from pipelines.serving.page.form import ANY_SEED, Form, size_field
from pipelines.serving.page.upload_fields import Painting

SYSTEM_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONOSPACED_FONTS = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
LAST_WORDS = 0.5  # seconds that a browser has to read the last picture before the streams end
FILES_KEPT = (600, 3600)  # seconds: how often uploads are looked through, and their age when they are deleted
EVENT: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
PAINT_OVER = "Paint over what is to be drawn again."
SHOW_STAGE = "() => window.innerWidth < 800 && document.querySelector('#stage').scrollIntoView({behavior: 'smooth'})"


def mount_page(
    application: FastAPI,
    engine: DrawingEngine,
    settings: ServingSettings | None = None,
    examples: Sequence[str] = (),
) -> FastAPI:
    """Put the page at / of an application; addresses that the application has already stay as they are.

    Args:
        settings: its name of the model, and its limits of uploads.
        examples: prompts to choose from.
    """
    settings = settings or ServingSettings()
    page = Page(engine, settings, examples)
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=list(SYSTEM_FONTS),
        font_mono=list(MONOSPACED_FONTS),
    )

    @application.api_route("/v1/{rest:path}", methods=["GET", "POST"], include_in_schema=False)
    async def no_address(rest: str) -> None:
        """Addresses that the endpoint lacks are answered as it does, not by the page."""
        raise HTTPException(404)

    gr.mount_gradio_app(
        application, page.blocks, path="/", theme=theme, css=(HERE / "page.css").read_text(encoding="utf-8"),
        footer_links=[], run_history=False, ssr_mode=False, mcp_server=False, pwa=False, enable_monitoring=False,
        show_error=False, max_file_size=settings.body_bytes,
    )  # fmt: skip
    streams: asyncio.Event = application.router.routes[-1].app.stop_event  # type: ignore[attr-defined]

    async def end() -> None:
        while page.is_busy:
            await asyncio.sleep(0.1)
        await asyncio.sleep(LAST_WORDS)
        streams.set()

    before_end(application).append(end)
    return application


class Page:
    """The page: its fields, wired to its actions.

    Attributes:
        blocks: what gradio serves.
    """

    def __init__(self, engine: DrawingEngine, settings: ServingSettings, examples: Sequence[str]) -> None:
        self._actions = PageActions(engine, settings.upload_pixels)
        title = f"{settings.model_name} - Tessera"
        with gr.Blocks(analytics_enabled=False, title=title, delete_cache=FILES_KEPT) as blocks:
            self._fields = PageFields(engine, self._actions.abilities, settings.model_name, examples)
            self._wire_work()
            self._wire_gallery()
            blocks.unload(self._leave)
        blocks.queue(api_open=False, default_concurrency_limit=None)
        self.blocks = blocks

    @property
    def is_busy(self) -> bool:
        """Whether any visitor's work is under way."""
        return self._actions.jobs.any_under_way

    def _wire_work(self) -> None:
        fields = self._fields
        rest = [*fields.settings, fields.history]
        shown = [fields.stage, fields.history, fields.gallery, fields.cancel]
        gr.on([fields.draw.click, fields.prompt.submit], self._do_draw, [fields.prompt, *rest], shown, **EVENT)
        fields.edit.click(self._do_edit, [fields.editor, fields.edit_prompt, *rest], shown, **EVENT)
        vary = [fields.vary_picture, fields.redraw, fields.vary_prompt, *rest]
        fields.vary.click(self._do_vary, vary, shown, **EVENT)
        for button in (fields.draw, fields.edit, fields.vary):
            button.click(None, js=SHOW_STAGE)
        describe = [fields.describe_picture, fields.captions]
        fields.describe.click(self._do_describe, describe, [fields.describe_note, fields.caption], **EVENT)
        fields.cancel.click(self._do_cancel, None, None, queue=False, **EVENT)
        fields.editor.upload(self._do_upload, fields.editor, [fields.editor, fields.edit_note], **EVENT)

    def _wire_gallery(self) -> None:
        fields = self._fields
        changed = [fields.gallery, fields.chosen, fields.chosen_row, fields.chosen_note]
        form = [fields.prompt, fields.size, fields.seed, fields.guidance, fields.temperature, fields.top_k,
                fields.top_p]  # fmt: skip
        fields.gallery.select(self._choose, fields.history, [*changed, *form], **EVENT)
        chosen = [fields.history, fields.chosen]
        editor = [fields.tabs, fields.editor, fields.edit_note, fields.edit_prompt, fields.seed]
        fields.to_edit.click(self._take_to_edit, chosen, editor, **EVENT)
        vary = [fields.tabs, fields.vary_picture, fields.vary_prompt, fields.seed]
        fields.to_vary.click(self._take_to_vary, chosen, vary, **EVENT)
        describe = [fields.tabs, fields.describe_picture]
        fields.to_describe.click(self._take_to_describe, chosen, describe, **EVENT)

    async def _do_draw(self, request: gr.Request, prompt: str, *values: Any) -> AsyncIterator[list[Any]]:
        *fields, history = values
        async for updates in self._actions.draw(_form(prompt, fields), history, _session(request)):
            yield updates

    async def _do_edit(
        self, request: gr.Request, painting: Painting | None, prompt: str, *values: Any
    ) -> AsyncIterator[list[Any]]:
        *fields, history = values
        async for updates in self._actions.edit(painting, _form(prompt, fields), history, _session(request)):
            yield updates

    async def _do_vary(
        self, request: gr.Request, content: bytes | None, redraw: float, prompt: str, *values: Any
    ) -> AsyncIterator[list[Any]]:
        *fields, history = values
        async for updates in self._actions.vary(content, redraw, _form(prompt, fields), history, _session(request)):
            yield updates

    async def _do_describe(
        self, request: gr.Request, content: bytes | None, candidates: int
    ) -> AsyncIterator[tuple[str, Any]]:
        async for note, text in self._actions.describe(content, candidates, _session(request)):
            yield note_line(note), text

    def _do_cancel(self, request: gr.Request) -> None:
        self._actions.cancel(_session(request))

    def _leave(self, request: gr.Request) -> None:
        """The tab was closed."""
        self._actions.cancel(_session(request))

    def _do_upload(self, painting: Painting | None) -> tuple[Any, str]:
        """Show an uploaded picture as the model sees it, ready to be painted on."""
        if painting is None:
            return gr.skip(), ""
        try:
            picture, note = self._actions.editable(painting.background)
        except Exception as error:
            return None, note_line(sentence_of(error))
        return _on_canvas(picture), note_line(f"{note} {PAINT_OVER}")

    def _choose(self, history: list[Drawn], event: gr.EventData) -> tuple[Any, ...]:
        """A picture of the gallery was clicked: its seed and settings go into the fields."""
        index = event.index
        if not isinstance(index, int) or not 0 <= index < len(history):
            return (gr.skip(),) * 11
        drawn = history[index]
        settings = drawn.settings
        return (
            gallery(history, index), index, gr.update(visible=True),
            note_line(f"Seed {drawn.seed} and its settings are in the fields."),
            settings.prompt, size_field((settings.height, settings.width)), str(drawn.seed), settings.guidance_scale,
            settings.temperature, settings.top_k, settings.top_p,
        )  # fmt: skip

    def _take_to_edit(self, history: list[Drawn], chosen: int | None) -> tuple[Any, ...]:
        drawn = _chosen_of(history, chosen)
        if drawn is None:
            return (gr.skip(),) * 5
        picture, note = self._actions.editable(drawn.png)
        note = note_line(f"{note} {PAINT_OVER}")
        return gr.update(selected="edit"), _on_canvas(picture), note, drawn.settings.prompt, ANY_SEED

    def _take_to_vary(self, history: list[Drawn], chosen: int | None) -> tuple[Any, ...]:
        drawn = _chosen_of(history, chosen)
        if drawn is None:
            return (gr.skip(),) * 4
        return gr.update(selected="vary"), Image.open(io.BytesIO(drawn.png)), drawn.settings.prompt, ANY_SEED

    def _take_to_describe(self, history: list[Drawn], chosen: int | None) -> tuple[Any, ...]:
        drawn = _chosen_of(history, chosen)
        if drawn is None:
            return (gr.skip(),) * 2
        return gr.update(selected="describe"), Image.open(io.BytesIO(drawn.png))


def _on_canvas(picture: Image.Image) -> dict[str, Any]:
    return {"background": picture, "layers": [], "composite": None}


def _chosen_of(history: list[Drawn], chosen: int | None) -> Drawn | None:
    return history[chosen] if chosen is not None and 0 <= chosen < len(history) else None


def _form(prompt: str, fields: Sequence[Any]) -> Form:
    number, candidates, size, seed, guidance_scale, temperature, top_k, top_p = fields
    return Form(
        prompt or "", int(number), int(candidates), size, seed or "", guidance_scale, temperature, int(top_k), top_p
    )


def _session(request: gr.Request) -> str:
    return request.session_hash or secrets.token_hex()  # a client that names none shares it with nobody
