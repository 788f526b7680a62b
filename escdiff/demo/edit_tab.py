"""The tab *Edit*: a picture to upload and brush over, words or a reference, and before and after under a slider."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import gradio as gr

from escdiff.demo.editing import CHOICES, MOST_STEPS, Editor

ABOUT = """Upload a picture, say **what it shows** and **what it should show**. Brush over the part that may change; all
else then stays as it is. For a reference write `<appearance>` or `<shape>` where it belongs."""
BRUSH = "#ff00ff"


def edit_tab(
    editor: Editor, picture_place: Callable[[str, str], gr.Image], reporting: Callable[[], AbstractContextManager]
) -> None:
    """Widgets and what they do, inside of an open `gr.Blocks`.

    Args:
        picture_place: makes a place for an upload from a label and a name.
        reporting: a context that tells a visitor's mistakes on the page.
    """
    most = editor.engine.limits.prompt
    with gr.Tab("Edit"), gr.Row():
        with gr.Column():
            gr.Markdown(ABOUT)
            canvas = gr.ImageEditor(
                label="picture", type="filepath", sources=["upload", "clipboard"], transforms=(), layers=False,
                brush=gr.Brush(default_size=24, colors=[BRUSH], color_mode="fixed"), elem_id="edit-picture",
            )  # fmt: skip
            canvas.preprocess = _files
            source = gr.Textbox(
                label="what it shows", max_length=most, placeholder="a photo of a red mug on a gray background",
                elem_id="edit-source",
            )  # fmt: skip
            prompt = gr.Textbox(
                label="what it should show", max_length=most, elem_id="edit-prompt",
                placeholder="a photo of a blue mug on a gray background",
            )  # fmt: skip
            choice = gr.Radio(list(CHOICES), value=next(iter(CHOICES)), label="change it by", elem_id="edit-choice")
            reference = picture_place("reference", "edit-reference")
            with gr.Accordion("Sampling", open=False):
                steps = gr.Slider(1, MOST_STEPS, 25, step=1, label="steps")
                guidance = gr.Slider(1, 15, editor.engine.guidance, step=0.1, label="guidance")
            go = gr.Button("Edit", variant="primary", elem_id="edit-go")
        with gr.Column():
            result = gr.ImageSlider(label="before and after", interactive=False, format="png", elem_id="edit-result")

    def work(drawn, choice, source, prompt, reference, steps, guidance, progress=gr.Progress()):  # noqa: B008
        done = [0]

        def on_step(count: int) -> None:
            done[0] += count
            progress((done[0], int(steps)), desc="painting", unit="steps")

        progress(0.0, desc="looking for the picture's noise")
        picture, layers = drawn or (None, [])
        with reporting():
            return editor.edit(picture, layers, choice, source, prompt, reference, int(steps), guidance, on_step)

    inputs = [canvas, choice, source, prompt, reference, steps, guidance]
    go.click(work, inputs, [result], api_visibility="private")


def _files(payload) -> tuple[str | None, list[str]] | None:
    """Paths of the editor's files as uploaded: Gradio would open them first, without our limits."""
    if payload is None or payload.background is None:
        return None
    return payload.background.path, [layer.path for layer in payload.layers if layer]
