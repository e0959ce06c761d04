"""The page's content as HTML. Text from visitors and models is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from PIL import Image

from vlm_pruner.asking import Answer
from vlm_pruner.asking.answer import in_a_sentence
from vlm_pruner.drawing import Style, overlay_svg
from vlm_pruner.drawing.svg import thumbnail
from vlm_pruner.web.recipe import Recipe
from vlm_pruner.web.samples import Sample
from vlm_pruner.web.session import Pane
from vlm_pruner.web.uploads import Upload

PREVIEW, QUALITY = 480, 85  # longer side in pixels; of WebP
DRAWN, DRAWN_SMALL = 768, 384  # on the small ones numbers would be unreadable, and are left out
STATES = {
    "waiting": "waiting for the model",
    "running": "answering …",
    "done": "done",
    "stopped": "stopped",
    "failed": "failed",
}
# Shows the first n kept patches, in order of selection, of the drawing that a slider belongs to.
_SLIDE = (
    "const w=this.closest('.vp-overlay'),n=+this.value;w.querySelector('output').textContent=n+' of '+this.max;"
    "w.querySelectorAll('[data-order]').forEach(g=>{g.style.display=+g.dataset.order&lt;=n?'':'none'})"
)


def message(text: str, kind: str = "error") -> str:
    """A sentence for the visitor; kind: "error" or "note"."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="vp-message vp-{kind}" role="{role}">{escape(text)}</p>' if text else ""


def preview(upload: Upload) -> str:
    """The picture to be asked about, small, with its name and the upload's notes."""
    picture = upload.picture()
    size = f"{picture.width} × {picture.height}"
    notes = "; ".join([upload.name, size, *upload.notes])
    return (
        f'<figure class="vp-preview"><img src="{thumbnail(picture, PREVIEW, quality=QUALITY)}" '
        f'alt="The picture asked about: {escape(upload.name)}">'
        f"<figcaption>{escape(notes)}</figcaption></figure>"
    )


def examples(samples: Sequence[Sample]) -> str:
    """A button for each picture, named by its question."""
    buttons = "".join(
        f'<button type="button" data-index="{number}" title="{escape(sample.question)}">'
        f'<img src="{thumbnail(sample.upload.picture(), 160, quality=QUALITY)}" '
        f'alt="{escape(sample.question)}"></button>'
        for number, sample in enumerate(samples)
    )
    return f'<div class="vp-examples" role="group" aria-label="Examples: a picture and a question">{buttons}</div>'


def answers(panes: Sequence[Pane]) -> str:
    """The panes side by side (below each other on a narrow screen), and the last against the first in a sentence."""
    first, last = panes[0].answer, panes[-1].answer
    done = all(pane.state == "done" for pane in panes)
    words = in_a_sentence(first, last) if done and first is not None and last is not None else "&nbsp;"
    return f'<div class="vp-panes">{"".join(map(_pane, panes))}</div><p class="vp-sum" role="status">{words}</p>'


def _pane(pane: Pane) -> str:
    words = f'<p class="vp-text">{escape(pane.text) or "&nbsp;"}</p>'
    if pane.state == "failed":
        words = message(pane.error)
    rows = zip(NUMBERS, _numbers(pane.answer), strict=True)
    numbers = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows)
    return (
        f'<section class="vp-pane" data-state="{pane.state}" aria-busy="{str(pane.state == "running").lower()}">'
        f'<header><h3>{escape(pane.job.title)}</h3><span class="vp-state">{STATES[pane.state]}</span></header>'
        f"{words}<dl>{numbers}</dl></section>"
    )


NUMBERS = ("first token", "tokens per second", "visual tokens", "KV cache")


def _numbers(answer: Answer | None) -> list[str]:
    """NUMBERS of an answer, dashes where there are none (yet)."""
    if answer is None:
        return ["–"] * len(NUMBERS)
    return [
        f"{1000 * answer.first_token_seconds:.0f} ms",
        "–" if answer.tokens_per_second is None else f"{answer.tokens_per_second:.1f}",
        f"{answer.kept} of {answer.visual_tokens}{_steps(answer)}",
        f"{answer.kv_bytes / 1e6:.2f} MB",
    ]


def _steps(answer: Answer) -> str:
    """The tokens left after each stage, of a method with several."""
    stages = answer.images[0].steps if answer.images else []
    if len(stages) < 2:
        return ""
    return " (" + ", ".join(f"{tokens} from layer {layer}" for layer, tokens in stages) + ")"


def overlay(picture: Image.Image, answer: Answer, title: str, slider: bool = True) -> str:
    """The kept tokens on the picture, and a slider over the order of selection; a sentence if they cannot be drawn."""
    if not answer.images:
        return ""
    image = answer.images[0]
    try:
        svg = overlay_svg(picture, image.kept(), Style(side=DRAWN if slider else DRAWN_SMALL))
    except ValueError as error:
        return message(f"kept tokens cannot be drawn: {error}", "note")
    count = len(image.order)
    control = _slider(count, title) if slider else ""
    return f'<div class="vp-overlay"><div class="vp-drawing">{svg}</div>{control}</div>'


def _slider(count: int, title: str) -> str:
    return (
        f'<label class="vp-slider"><span>Order of selection: show the first <output>{count} of {count}</output></span>'
        f'<input type="range" min="1" max="{count}" value="{count}" step="1" oninput="{_SLIDE}" '
        f'aria-label="How many of {escape(title)}\'s kept tokens to show, in order of selection"></label>'
    )


def comparison(panes: Sequence[Pane], picture: Image.Image) -> str:
    """A table with a row per method, then their drawings side by side."""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("method", "layer", "answer", *NUMBERS))
    rows = "".join(_comparison_row(pane) for pane in panes)
    drawings = "".join(
        f"<figure><figcaption>{escape(pane.job.title)}</figcaption>"
        f"{overlay(picture, pane.answer, pane.job.title, slider=False)}</figure>"
        for pane in panes
        if pane.answer is not None and pane.answer.images and all(other.finished for other in panes)
    )
    return (
        f'<div class="vp-table" tabindex="0" role="region" aria-label="Methods compared"><table><thead><tr>{head}</tr>'
        f'</thead><tbody>{rows}</tbody></table></div><div class="vp-gallery">{drawings}</div>'
    )


def _comparison_row(pane: Pane) -> str:
    layer = "–" if pane.job.method is None else str(pane.job.method.layer)
    said = escape(pane.error or pane.text) if pane.finished or pane.text else f"<em>{STATES[pane.state]}</em>"
    numbers = "".join(f"<td>{value}</td>" for value in _numbers(pane.answer))
    title = f'<th scope="row">{escape(pane.job.title)}</th>'
    return f'<tr data-state="{pane.state}">{title}<td>{layer}</td><td>{said}</td>{numbers}</tr>'


def repeat(recipe: Recipe, own_file: bool) -> str:
    """The lines that repeat the answers, each with a copy button."""
    note = message("Put your own file's path in place of its name.", "note") if own_file else ""
    return note + _code("Python", recipe.python()) + _code("Shell", recipe.shell())


def _code(title: str, lines: str) -> str:
    copy = (
        "navigator.clipboard.writeText(this.closest('.vp-code').querySelector('code').textContent)"
        ".then(()=>{this.textContent='Copied';setTimeout(()=>{this.textContent='Copy'},1500)})"
    )
    return (
        f'<div class="vp-code"><header><h4>{title}</h4><button type="button" onclick="{copy}" '
        f'aria-label="Copy the {title} lines">Copy</button></header>'
        f'<pre tabindex="0"><code>{escape(lines)}</code></pre></div>'
    )
