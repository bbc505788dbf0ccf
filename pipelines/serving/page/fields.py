"""The page's fields and their layout: what is shown, and what is greyed out because the model has not learned it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import gradio as gr

from lm.vocabulary import Size
from pipelines.serving.engine.engine import DrawingEngine
from pipelines.serving.page.abilities import Abilities
from pipelines.serving.page.cards import Drawn, abilities, gallery, note_line, stage
from pipelines.serving.page.form import ANY_SEED, size_field
from pipelines.serving.page.upload_fields import mask_editor, picture_field

HERE = Path(__file__).parent
IDLE = "Nothing is being drawn."
MOST_CANDIDATES = 8  # for each picture that is given
MOST_PICTURES = 16
PAINT = "Upload a picture, then paint over what is to be drawn again."
CANVAS = (512, 512)
BRUSH = 56  # pixels of a canvas


class PageFields:
    """Lays the page out, inside of a `gr.Blocks`; each field is an attribute.

    Args:
        name: of the model.
        examples: prompts to choose from.
    """

    def __init__(self, engine: DrawingEngine, can: Abilities, name: str, examples: Sequence[str]) -> None:
        self._engine, self._can, self._examples = engine, can, list(examples)
        self._vocabulary = engine.pipeline.vocabulary
        self.history = gr.State(list[Drawn]())
        self.chosen = gr.State(None)
        self._header(name)
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=5, min_width=320, elem_id="controls"):
                self._tabs()
                with gr.Accordion("Settings", open=False, elem_id="settings", visible=can.draws is None):
                    self._settings()
            with gr.Column(scale=6, min_width=320, elem_id="results"):
                self._results()

    @property
    def settings(self) -> list[gr.components.Component]:
        """The fields of a `Form` behind its prompt, in order."""
        return [
            self.number, self.candidates, self.size, self.seed, self.guidance, self.temperature, self.top_k, self.top_p,
        ]  # fmt: skip

    def _header(self, name: str) -> None:
        sizes = " · ".join(_shown_size(size) for size in self._vocabulary.layouts)
        parameters = _shown_count(self._engine.pipeline.model.num_parameters())
        can = self._can
        uses = [("draws", can.draws), ("edits", can.draws), ("varies", can.draws), ("describes", can.describes),
                ("chooses the best", can.ranks)]  # fmt: skip
        gr.HTML(
            f'<header><h1>{escape(name)}</h1><p class="facts">{sizes} pictures · {parameters} parameters</p>'
            f"{abilities(uses, can.remedy)}</header>",
            elem_id="header",
        )

    def _tabs(self) -> None:
        can_draw, can_describe = self._can.draws is None, self._can.describes is None
        with gr.Tabs(
            selected="draw" if can_draw else "describe", overflow_behavior="wrap", elem_id="tabs"
        ) as self.tabs:
            with gr.Tab(_tab("Draw", can_draw), id="draw", interactive=can_draw):
                self._draw_tab()
            with gr.Tab(_tab("Edit", can_draw), id="edit", interactive=can_draw):
                self._edit_tab()
            with gr.Tab(_tab("Vary", can_draw), id="vary", interactive=can_draw):
                self._vary_tab()
            with gr.Tab(_tab("Describe", can_describe), id="describe", interactive=can_describe):
                self._describe_tab()

    def _draw_tab(self) -> None:
        self.prompt = self._prompt_field("What to draw", "prompt")
        if self._examples and self._can.reads_prompts is None:
            gr.Examples(
                [[text] for text in self._examples], self.prompt, label="Try", elem_id="examples", cache_examples=False
            )
        self.draw = self._go("Draw", "draw-button", self._can.draws)

    def _edit_tab(self) -> None:
        self.editor = mask_editor(
            label="Picture", elem_id="editor",
            sources=["upload", "clipboard"], transforms=None, layers=False, format="png", canvas_size=CANVAS,
            brush=gr.Brush(default_size=BRUSH, colors=["#e11d48"], color_mode="fixed"),
            eraser=gr.Eraser(default_size=BRUSH), buttons=[],
        )  # fmt: skip
        self.edit_note = gr.HTML(note_line(PAINT), elem_id="edit-note")
        self.edit_prompt = self._prompt_field("What the picture is to show", "edit-prompt")
        self.edit = self._go("Draw again", "edit-button", self._can.draws)

    def _vary_tab(self) -> None:
        self.vary_picture = _picture_field("A picture to vary", "vary-picture")
        self.redraw = gr.Slider(0.05, 1, 0.5, step=0.05, label="Share that is drawn again", elem_id="redraw")
        self.vary_prompt = self._prompt_field("What it shows", "vary-prompt")
        self.vary = self._go("Vary", "vary-button", self._can.draws)

    def _describe_tab(self) -> None:
        self.describe_picture = _picture_field("A picture to describe", "describe-picture")
        self.captions = self._candidates_field("Write so many captions, and show the best", "captions")
        self.describe = self._go("Describe", "describe-button", self._can.describes)
        self.describe_note = _note("describe-note")
        self.caption = gr.Textbox(label="Description", interactive=False, lines=2, buttons=["copy"], elem_id="caption")

    def _settings(self) -> None:
        vocabulary = self._vocabulary
        most = max(1, min(MOST_PICTURES, self._engine.limits.images_per_request // MOST_CANDIDATES))
        sizes = [(_shown_size(size), size_field(size)) for size in vocabulary.layouts]
        with gr.Row():
            self.number = gr.Slider(
                1, most, min(4, most), step=1, label="Pictures", info="So many are shown", elem_id="number"
            )
            self.candidates = self._candidates_field("Draw so many for each, keep the best", "candidates")
        with gr.Row():
            self.seed = gr.Textbox(
                ANY_SEED, label="Seed", info="Empty: another each time", max_lines=1, placeholder="any", elem_id="seed",
                max_length=20,
            )  # fmt: skip
            self.size = gr.Dropdown(
                sizes, value=sizes[0][1], label="Size", interactive=len(sizes) > 1, elem_id="size",
                info="Of pictures that are drawn" if len(sizes) > 1 else "This model draws no other",
            )  # fmt: skip
        with gr.Row():
            self.guidance = gr.Slider(
                0, 10, vocabulary.default_guidance, step=0.1, label="Guidance", elem_id="guidance",
                interactive=self._can.guides is None,
                info=_sentence(self._can.guides) or "How strongly the prompt counts",
            )  # fmt: skip
            self.temperature = gr.Slider(
                0, 2, vocabulary.default_temperature, step=0.05, label="Temperature", elem_id="temperature",
                info="0: the likeliest each time",
            )  # fmt: skip
        with gr.Row():
            most_codes = max(high - low for low, high in vocabulary.id_ranges[1:])
            self.top_k = gr.Slider(0, most_codes, 0, step=1, label="Top k", info="0: all codes", elem_id="top-k")
            self.top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top p", info="1: all codes", elem_id="top-p")

    def _results(self) -> None:
        self.stage = gr.HTML(stage([], IDLE, kind="idle"), elem_id="stage")
        self.cancel = gr.Button("Cancel", variant="stop", interactive=False, elem_id="cancel-button")
        script = (HERE / "page.js").read_text(encoding="utf-8")
        self.gallery = gr.HTML(gallery([]), elem_id="gallery", js_on_load=script)
        self.chosen_note = _note("chosen-note")
        can_draw, can_describe = self._can.draws is None, self._can.describes is None
        with gr.Row(elem_id="chosen-actions", visible=False) as self.chosen_row:
            self.to_edit = gr.Button("Edit it", size="sm", elem_id="to-edit", interactive=can_draw)
            self.to_vary = gr.Button("Vary it", size="sm", elem_id="to-vary", interactive=can_draw)
            self.to_describe = gr.Button("Describe it", size="sm", elem_id="to-describe", interactive=can_describe)

    def _prompt_field(self, label: str, name: str) -> gr.Textbox:
        reason = self._can.reads_prompts
        optional = "" if self._can.draws_alone else " (empty: anything)"
        return gr.Textbox(
            label=label + optional * (reason is None), lines=2, max_lines=4, interactive=reason is None,
            info=_sentence(reason), placeholder=self._examples[0] if self._examples else "in words", elem_id=name,
        )  # fmt: skip

    def _candidates_field(self, label: str, name: str) -> gr.Slider:
        return gr.Slider(
            1, MOST_CANDIDATES, 1, step=1, label="Best of", info=_sentence(self._can.ranks) or label, elem_id=name,
            interactive=self._can.ranks is None,
        )  # fmt: skip

    def _go(self, label: str, name: str, reason: str | None) -> gr.Button:
        return gr.Button(label, variant="primary", elem_id=name, interactive=reason is None)


def _picture_field(label: str, name: str) -> gr.Image:
    return picture_field(
        label=label, sources=["upload", "clipboard"], format="png", height=260, elem_id=name, buttons=[],
        elem_classes=["crisp"],
    )  # fmt: skip


def _note(name: str) -> gr.HTML:
    return gr.HTML("", elem_id=name)


def _tab(name: str, has_learned: bool) -> str:
    return name if has_learned else f"{name} (not learned)"


def _shown_count(count: int) -> str:
    return f"{count / 1e6:,.1f}M" if count >= 1e6 else f"{count / 1e3:,.0f}K"


def _sentence(reason: str | None) -> str | None:
    return None if reason is None else reason[:1].upper() + reason[1:]


def _shown_size(size: Size) -> str:
    return f"{size[1]} × {size[0]}"
