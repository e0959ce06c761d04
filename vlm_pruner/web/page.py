"""The page: its layout, and the session's function behind each click. No work is done here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read at gradio's import; nothing is reported

import gradio as gr

from vlm_pruner.console import typed
from vlm_pruner.experiments.mini import embedded
from vlm_pruner.web import cards, settings
from vlm_pruner.web.recipe import Recipe
from vlm_pruner.web.samples import Sample
from vlm_pruner.web.session import Job, Pane, Session, check_question
from vlm_pruner.web.uploads import Inbox, Upload, accept

WHAT_TO_ASK = (
    " It knows drawn scenes alone: ask for the word or number on a sign, for a shape's colour, whether there is one, "
    "or how many."
)
SHORT_ANSWER = "Answer the question using a single word or phrase."
STYLE = Path(__file__).with_name("page.css")
_MODEL: dict[str, Any] = {
    "concurrency_id": "model",
    "concurrency_limit": 1,
}  # visitors queue for the model, and see their place
_PICK = """element.addEventListener('click', event => {
  const button = event.target.closest('button[data-index]');
  if (button) trigger('select', {index: +button.dataset.index});
});"""
# Brings the answers into view: wherever the page was scrolled to, and below the form on a phone.
_LOOK = """(...given) => {
  const block = innerWidth < 700 ? 'start' : 'nearest';
  document.getElementById('vp-answers').scrollIntoView({block});
  return given;
}"""
_KEEP_STATE = 3600  # seconds that an idle visitor's picture is remembered


class Page:
    """Builds the page for one session. Every `on_...` method is one event."""

    def __init__(self, session: Session, samples: Sequence[Sample], loading: dict[str, str | None]) -> None:
        self.session = session
        self.samples = samples
        self.inbox = Inbox()
        self.loading = loading  # device and dtype as the user gave them, for the lines that repeat an answer
        self.methods = settings.usable_methods(session.chat)
        self.visual = session.chat.visual_tokens(samples[0].upload.picture()) if samples else 576

    def build(self) -> gr.Blocks:
        with gr.Blocks(title="VLM-Pruner", analytics_enabled=False, delete_cache=(60, 600)) as page:
            first = self.samples[0] if self.samples else None
            upload = gr.State(first.upload if first else None, time_to_live=_KEEP_STATE)
            gr.HTML(self._heading(), elem_id="vp-heading")
            with gr.Row(elem_id="vp-main"):
                with gr.Column(scale=1, min_width=300):
                    self._inputs(first)
                with gr.Column(scale=2, min_width=320):
                    self._outputs()
            with gr.Accordion("Compare methods on this question", open=False, elem_id="vp-compare"):
                self._comparison()
            with gr.Accordion("Repeat this in Python or in the shell", open=False):
                self.lines = gr.HTML(cards.message("Ask something first.", "note"), elem_id="vp-lines")
            self._connect(upload)
            page.unload(self.on_leave)
        return page

    # Layout

    def _heading(self) -> str:
        chat = self.session.chat
        own = embedded(chat.name)
        name = "the embedded mini model" if own else chat.name
        return (
            "<h1>VLM-Pruner</h1><p>One question, answered twice: with all visual tokens, and with the few that a "
            f"pruning method keeps. Model: <strong>{cards.escape(name)}</strong>, {chat.layers} decoder layers."
            f"{WHAT_TO_ASK if own else ''}</p>"
        )

    def _inputs(self, first: Sample | None) -> None:
        with gr.Row(elem_id="vp-pick"):
            with gr.Column(min_width=130):
                self.preview = gr.HTML(cards.preview(first.upload) if first else "", elem_id="vp-picture")
            with gr.Column(min_width=130):
                self.file = gr.File(
                    label="Picture", show_label=False, file_types=["image"], height=200, elem_id="vp-file"
                )
        self.problem = gr.HTML("", elem_id="vp-problem")
        self.examples = gr.HTML(
            cards.examples(self.samples), js_on_load=_PICK, visible=bool(self.samples), elem_id="vp-examples"
        )
        self.question = gr.Textbox(
            first.question if first else "", label="Question", lines=2, max_lines=6, elem_id="vp-question"
        )
        self.short = gr.Checkbox(True, label="Ask for a single word or phrase")
        with gr.Row():
            self.ask = gr.Button("Ask", variant="primary", min_width=100, elem_id="vp-ask")
            self.halt = gr.Button("Stop", min_width=100, elem_id="vp-stop")
        self.asked_wrongly = gr.HTML("", elem_id="vp-asked-wrongly")
        self.method = gr.Dropdown(self.methods, value=self.methods[0], label="Method", filterable=False)
        self.keep = gr.Slider(1, self.visual, value=min(64, self.visual), step=1, label="Visual tokens kept")
        self.layer = gr.Slider(
            0, self.session.chat.layers - 1, value=settings.default_layer(self.methods[0]), step=1,
            label="Pruned before decoder layer",
        )  # fmt: skip

    def _outputs(self) -> None:
        waiting = (Pane(settings.UNPRUNED), Pane(Job("pruned")))
        idle = cards.answers(waiting).replace(cards.STATES["waiting"], "nothing asked yet")
        self.answers = gr.HTML(idle, elem_id="vp-answers")
        self.overlay = gr.HTML(
            cards.message("The kept tokens appear here, in the order in which they were chosen.", "note"),
            elem_id="vp-overlay",
        )

    def _comparison(self) -> None:
        usual = [name for name in ("vlm-pruner", "random", "divprune") if name in self.methods]
        self.chosen = gr.CheckboxGroup(self.methods, value=usual, label="Methods (the dense model is always there)")
        self.compare = gr.Button("Compare", elem_id="vp-compare-button")
        self.compared = gr.HTML("", elem_id="vp-compared")

    # Events

    def _connect(self, upload: gr.State) -> None:
        quick: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        self.file.upload(self.on_upload, [self.file], [self.file, upload, self.preview, self.problem], **quick)
        self.examples.select(self.on_example, None, [upload, self.preview, self.question, self.problem], **quick)
        self.method.change(settings.default_layer, [self.method], [self.layer], **quick)
        settings_ = [upload, self.question, self.short, self.method, self.keep, self.layer]
        asking: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private", **_MODEL}
        told = [self.answers, self.overlay, self.lines, self.asked_wrongly]
        gr.on(
            [self.ask.click, self.question.submit],
            self.on_ask,
            settings_,
            told,
            js=_LOOK,
            trigger_mode="once",
            **asking,
        )
        comparing = [upload, self.question, self.short, self.chosen, self.keep, self.layer]
        self.compare.click(self.on_compare, comparing, [self.compared], trigger_mode="once", **asking)
        self.halt.click(self.on_stop, queue=False, **quick)

    def on_upload(self, path: str) -> tuple[Any, ...]:
        try:
            upload = accept(self.inbox.take(Path(path)), Path(path).name)
        except ValueError as error:
            return None, gr.skip(), gr.skip(), cards.message(str(error))
        return None, upload, cards.preview(upload), ""

    def on_example(self, event: gr.EventData) -> tuple[Any, ...]:
        sample = self.samples[int(event.index) % len(self.samples)]
        return sample.upload, cards.preview(sample.upload), sample.question, ""

    def on_ask(
        self, upload: Upload | None, question: str, short: bool, method: str, keep: int, layer: int, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Dense and pruned, one after the other, shown side by side."""
        keep_shown = (gr.skip(), gr.skip(), gr.skip())
        try:
            asked, picture = self._asked(upload, question, short)
            pruner = settings.make(self.session.chat, method, keep, layer)
            snapshots = self.session.run(
                visitor(request), picture, asked, [settings.UNPRUNED, Job(f"{method}, {keep} tokens", pruner)]
            )
            yield gr.skip(), "", gr.skip(), ""
            panes: tuple[Pane, ...] = ()
            for panes in snapshots:
                yield cards.answers(panes), gr.skip(), gr.skip(), ""
        except ValueError as error:
            yield *keep_shown, cards.message(str(error))
            return
        assert upload is not None
        pruned = panes[-1]
        drawn = cards.overlay(picture, pruned.answer, pruned.job.title) if pruned.answer else ""
        recipe = Recipe(
            typed(self.session.chat.name), upload.path or upload.name, asked, pruner, self.session.max_new_tokens,
            self.loading["device"] or "cpu", self.loading["dtype"],
        )  # fmt: skip
        yield cards.answers(panes), drawn, cards.repeat(recipe, upload.path is None), ""

    def on_compare(
        self, upload: Upload | None, question: str, short: bool, names: list[str], keep: int, layer: int,
        request: gr.Request,
    ) -> Iterator[Any]:  # fmt: skip
        try:
            asked, picture = self._asked(upload, question, short)
            jobs = settings.jobs_to_compare(self.session.chat, names, keep, layer)
            for panes in self.session.run(visitor(request), picture, asked, jobs):
                yield cards.comparison(panes, picture)
        except ValueError as error:
            yield cards.message(str(error))

    def on_stop(self, request: gr.Request) -> None:
        self.session.stop(visitor(request))

    on_leave = on_stop

    def _asked(self, upload: Upload | None, question: str, short: bool) -> tuple[str, Any]:
        if upload is None:
            raise ValueError("there is no picture yet: upload one, or pick an example")
        check_question(question)
        return (f"{question.strip()}\n{SHORT_ANSWER}" if short else question.strip()), upload.picture()


def visitor(request: gr.Request) -> str:
    return str(request.session_hash)


def theme() -> gr.themes.Base:
    """Gradio's own look with the system's fonts: the default ones would be fetched from elsewhere."""
    sans = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
    return gr.themes.Base(primary_hue="indigo", neutral_hue="slate", font=sans, font_mono=mono)
