"""Layout and event handlers of the demo page, in Gradio."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import PIL.Image
import PIL.ImageOps

from cifar100_tk.data.image_files import open_image
from cifar100_tk.demo.answer import SHOWN, Answer, answer
from cifar100_tk.errors import DataError
from cifar100_tk.models.classifier import Classifier

# Gradio takes seconds to import, so it is imported when the page is built.

TITLE: Final = "What is in the image?"
HINT: Final = "Add an image, use the camera, or choose an example."
KEPT_SECONDS: Final = 600
"""Lifetime of an uploaded image on disk."""
MAX_WAITING: Final = 50
"""Queue length; further visitors are asked to try again."""

CSS: Final = """
.gradio-container { max-width: 1040px !important; margin: 0 auto !important; }
#main { display: grid; gap: var(--layout-gap); grid: "image answer" auto "examples answer" 1fr / 1fr 1fr; }
#main > * { min-width: 0 !important; }
#add { grid-area: image; }
#answer { grid-area: answer; scroll-margin-top: .75rem; }
#offered { grid-area: examples; }
#answer:not(:has(#seen img)) :is(#label, #two) { display: none; }
@media (max-width: 639px) { #main { grid: "image" "answer" "examples" / 1fr; } }
#head, #status, #foot, .title, .html-container { padding: 0 !important; }
#head h1 { font-size: 1.7rem; font-weight: 700; margin: .3rem 0 .2rem; }
#head p, #foot p { opacity: .8; margin: .1rem 0; line-height: 1.45; overflow-wrap: anywhere; }
#foot p { font-size: .85rem; }
#status p { margin: .2rem 0; font-size: 1.1rem; }
#status p.refused { padding: .6rem .8rem; border-radius: 8px; color: #7c2d12; background: #ffedd5; border: 1px solid #fdba74; }
.dark #status p.refused { color: #fed7aa; background: #431407; border-color: #9a3412; }
.title h2 { font-size: .95rem; font-weight: 600; margin: 0; }
#two > .column { gap: .4rem; }
#two { flex-wrap: nowrap; }
#label * { font-family: var(--font); }
#seen img, #looked img { image-rendering: pixelated; width: 100%; }
#examples .gallery { display: grid; grid-template-columns: repeat(5, 1fr); }
#examples .gallery-item :is(span, div, img) { display: block; width: 100%; height: 100%; max-width: none; max-height: none; }
#examples .gallery-item { padding: 0; overflow: hidden; aspect-ratio: 1; }
#examples .gallery { gap: .5rem; }
.icon-button-wrapper:not(:has(button)) { display: none; }
footer { display: none !important; }
"""
SCROLL: Final = """() => {
  if (innerWidth >= 640) return
  const answer = document.querySelector('#answer')
  const behavior = matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth'
  const observer = new ResizeObserver(() => answer.scrollIntoView({behavior}))
  observer.observe(answer)
  setTimeout(() => observer.disconnect(), 2000)
}"""
"""On a phone the answer is below the image, and grows while its images load."""
CAMERA_ONLY: Final = "image => (window.captured = Boolean(image?.is_stream)) ? image : null"
"""Gradio reports an image of the camera only as a change, as it does the images that the server shows, and marks it a stream."""

NAME_EXAMPLES: Final = """
document.querySelectorAll('#examples .gallery-item').forEach((button, k) => {
  button.title = names[k]; button.setAttribute('aria-label', names[k]);
})
"""


@dataclass(frozen=True)
class Words:
    """Description of the model on the page, as plain text."""

    about: str
    measured: str | None


def build(classifier: Classifier, words: Words, examples: list[tuple[PIL.Image.Image, str]]) -> Any:
    """Return the page as gradio.Blocks, not yet served. examples: RGB images with captions."""
    import gradio as gr

    def show(image: PIL.Image.Image) -> list[Any]:
        """Return the values of `outputs` for an image."""
        found = answer(classifier, image)
        likeliest = max(found.probabilities, key=found.probabilities.__getitem__)
        return [
            _thumbnail(image),
            _status(likeliest, found),
            found.probabilities,
            found.seen,
            found.looked,
        ]

    def look(upload: dict[str, Any] | None) -> list[Any]:
        if upload is None:
            return [None, _hint(), None, None, None]
        try:
            return show(open_image(Path(upload["path"]), "This file"))
        except DataError as error:
            return [None, _refused(str(error)), None, None, None]

    def capture(photo: dict[str, Any] | None) -> list[Any]:
        return [gr.skip()] * len(outputs) if photo is None else look(photo)

    def choose(number: int) -> list[Any]:
        return show(examples[number][0])

    # No analytics, flagging or API. Uploads and answers are deleted after ten minutes.
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(60, KEPT_SECONDS)) as page:
        gr.HTML(_head(words), elem_id="head", padding=False)
        with gr.Row(elem_id="main"):
            with gr.Column(elem_id="add"):
                image = gr.Image(
                    show_label=False,
                    type="filepath",
                    image_mode=None,
                    format="png",
                    sources=["upload", "webcam", "clipboard"],
                    # A phone's rear camera.
                    webcam_options=gr.WebcamOptions(mirror=False, constraints={"video": {"facingMode": "environment"}}),
                    height=320,
                    buttons=[],
                    elem_id="image",
                )
            with gr.Column(elem_id="answer"):
                status = gr.HTML(_hint(), elem_id="status", padding=False)
                label = gr.Label(show_label=False, num_top_classes=5, show_heading=False, elem_id="label")
                with gr.Row(elem_id="two"):
                    with gr.Column(min_width=120):
                        seen = _panel(gr, "seen", "What it sees")
                    with gr.Column(min_width=120):
                        looked = _panel(gr, "looked", "Where it looks")
            with gr.Column(elem_id="offered"):
                offered = gr.Dataset(
                    label="Examples",
                    components=[gr.Image(format="png", render=False)],
                    samples=[[_square(sample)] for sample, _ in examples],
                    type="index",
                    visible=bool(examples),
                    elem_id="examples",
                )
        gr.HTML(_foot(classifier.image_size), elem_id="foot", padding=False)
        outputs = [image, status, label, seen, looked]
        # Without preprocessing: Gradio would try every Pillow decoder, `open_image` allows only a few formats.
        answered = [
            image.upload(look, image, outputs, preprocess=False, api_visibility="private", show_progress="minimal"),
            offered.click(choose, offered, outputs, api_visibility="private", show_progress="minimal"),
        ]
        for event in answered:
            event.then(js=SCROLL, api_visibility="private")
        image.change(
            capture,
            image,
            outputs,
            js=CAMERA_ONLY,
            preprocess=False,
            api_visibility="private",
            show_progress="hidden",
        ).then(js=f"() => {{ if (window.captured) ({SCROLL})() }}", api_visibility="private")
        # Without the image: a late answer would remove one that was added in the meantime.
        cleared = look(None)[1:]
        image.clear(lambda: cleared, None, outputs[1:], api_visibility="private", show_progress="hidden")
        # Name each example's button for screen readers and tooltips.
        captions = json.dumps([caption for _, caption in examples])
        page.load(js=f"() => {{ const names = {captions}; {NAME_EXAMPLES} }}", api_visibility="private")
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=1, api_open=False)
    return page


def _panel(gr: Any, name: str, title: str) -> Any:
    """Add an output image below its title."""
    gr.HTML(f"<h2>{title}</h2>", elem_classes="title", padding=False)
    return gr.Image(
        show_label=False, format="png", interactive=False, buttons=[], min_width=120, height="auto", elem_id=name
    )


def _square(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return a square thumbnail of the center of an image; small images are enlarged without smoothing."""
    way = PIL.Image.Resampling.NEAREST if max(image.size) <= 96 else PIL.Image.Resampling.LANCZOS
    return PIL.ImageOps.fit(image, (96, 96), way)


def _thumbnail(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return the image at display size; small images are enlarged without smoothing."""
    if max(image.size) <= SHOWN // 2:
        times = SHOWN // max(image.size)
        return image.resize((image.width * times, image.height * times), PIL.Image.Resampling.NEAREST)
    small = image.copy()
    small.thumbnail((512, 512))
    return small


def _head(words: Words) -> str:
    lines = [words.about, words.measured or ""]
    return f"<h1>{TITLE}</h1>" + "".join(f"<p>{html.escape(line)}</p>" for line in lines if line)


def _hint() -> str:
    return f"<p role='status'>{HINT}</p>"


def _status(likeliest: str, found: Answer) -> str:
    kind = f", of the super-class <b>{html.escape(found.superclass)}</b>" if found.superclass else ""
    blind = "" if found.looked else " This network has no feature map to show where it looks."
    return f"<p role='status'>Most likely <b>{html.escape(likeliest)}</b>{kind}.{blind}</p>"


def _refused(sentence: str) -> str:
    return f"<p role='alert' class='refused'>{html.escape(sentence)}</p>"


def _foot(image_size: int) -> str:
    return (
        f"<p>The network sees the center of the image, scaled to {image_size}x{image_size} pixels. It always answers with one of "
        "its own classes, whatever the image shows. Bright areas contribute most to the most likely class (class activation "
        "map).</p>"
        "<p>Images are processed on the machine that serves this page and deleted after ten minutes.</p>"
    )
