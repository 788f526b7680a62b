"""The page: Gradio's widgets over a `Studio`."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr

from escdiff.concept import ATTRIBUTES, Concept
from escdiff.demo.edit_tab import edit_tab
from escdiff.demo.editing import Editor
from escdiff.demo.studio import MAX_MATRIX, Studio
from escdiff.serving.limits import MAX_SEED
from escdiff.support.errors import UserError

HISTORY = 12
SUFFIXES = [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"]
BUTTONS = ["download", "fullscreen"]
PRIVATE = {"api_visibility": "private"}
CSS = """
#picture img, #matrix img { width: min(24rem, 84vw) !important; height: auto !important }
#picture img, #matrix img { object-fit: contain !important }
#history .grid-wrap { min-height: 0 !important; height: auto !important }
#history .grid-container { grid-template-columns: repeat(4, 1fr) !important }
footer { display: none !important }
"""
ABOUT = """# ESCDiff
Drop a picture for the **shape**, one for the **appearance**, and say the rest: `<shape>` and `<appearance>` in the
prompt stand for what was read from them. One forward pass, nothing is trained.
{note}"""
MINI = "The bundled model knows one small world of plain objects; given a photo it paints the nearest thing it knows."
EXAMPLES = [
    ("mug", "dog", "a photo of a <appearance> <shape> on a sky background"),
    ("mug-wide", "dog", "a photo of a <appearance> <shape> on a navy background"),
    ("thing", "mug", "a photo of a <shape> made of <appearance> on a white background"),
]


def theme():
    """Fonts of the visitor's own system: nothing is fetched."""
    return gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def build(studio: Studio, sandbox: Path) -> gr.Blocks:
    """The page. Concept files are written below `sandbox`."""
    assets = Path(__file__).parents[1] / "assets" / "examples"
    backbone, limits = studio.engine.backbone.name, studio.engine.limits
    note = MINI if backbone == "mini" else f"Backbone: {backbone}."
    with gr.Blocks(title="ESCDiff", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        loaded, history = gr.State(None, time_to_live=3600), gr.State([], time_to_live=3600)
        gr.Markdown(ABOUT.format(note=note))
        with gr.Tab("Mix"), gr.Row():
            with gr.Column():
                with gr.Row():
                    shape, appearance = (_picture(f"{a} from", a) for a in ATTRIBUTES)
                prompt = gr.Textbox(
                    label="prompt", max_length=limits.prompt, elem_id="prompt",
                    placeholder="a photo of a <appearance> <shape> on a sky background",
                )  # fmt: skip
                with gr.Row():
                    go = gr.Button("Paint", variant="primary", elem_id="paint")
                    stop = gr.Button("Stop")
                strength = [gr.Slider(0, 2, 1, step=0.05, label=f"strength of {a}") for a in ATTRIBUTES]
                with gr.Accordion("Layers", open=False):
                    gr.Markdown("How much of each attribute every layer takes; the start is what the encoder learned.")
                    layers = _layers(studio)
                with gr.Accordion("Sampling", open=False):
                    seed = gr.Number(0, label="seed", precision=0, minimum=0, maximum=MAX_SEED)
                    steps = gr.Slider(1, min(50, limits.steps), 20, step=1, label="steps")
                    guidance = gr.Slider(1, 15, studio.engine.guidance, step=0.1, label="guidance")
                with gr.Accordion("Concept file", open=False):
                    upload = gr.File(label="load a concept", file_types=[".safetensors"], elem_id="load")
                    save = gr.DownloadButton("save this concept", interactive=False, elem_id="save")
            with gr.Column():
                picture = gr.Image(label="picture", interactive=False, format="png", elem_id="picture", buttons=BUTTONS)
                status = gr.Markdown(elem_id="status")
                gallery = gr.Gallery(
                    label="yours so far", columns=4, height="auto", format="png", elem_id="history", buttons=BUTTONS
                )
                rows = [[str(assets / f"{a}.png"), str(assets / f"{b}.png"), text] for a, b, text in EXAMPLES]
                gr.Examples(rows, [shape, appearance, prompt], cache_examples=False, **PRIVATE)
        with gr.Tab("Swap matrix"):
            gr.Markdown(f"2 to {MAX_MATRIX} pictures: every shape, down, in every appearance, across.")
            files = gr.File(label="pictures", file_count="multiple", file_types=SUFFIXES, elem_id="files")
            every = gr.Button("Paint all", variant="primary", elem_id="matrix-go")
            grid = gr.Image(label="matrix", interactive=False, format="png", elem_id="matrix", buttons=BUTTONS)
        edit_tab(Editor(studio.engine), _picture, _reporting)
        inputs = [shape, appearance, loaded, history, prompt, seed, steps, guidance, *strength, *layers]
        outputs = [picture, status, gallery, history, save]
        painting = go.click(_paint(studio, sandbox), inputs, outputs, **PRIVATE)
        written = prompt.submit(_paint(studio, sandbox), inputs, outputs, **PRIVATE)
        stop.click(None, cancels=[painting, written], **PRIVATE)
        upload.change(_load(studio), [upload], [loaded, status, *layers], **PRIVATE)
        every.click(_matrix(studio), [files, seed], [grid], **PRIVATE)
    return page


def _picture(label: str, name: str) -> gr.Image:
    """A place for a picture that hands over the uploaded file as it is.

    Gradio would open it first, with no limits of ours, and tell the visitor its path when that fails. A subclass is
    no way to say so: Gradio writes a stub beside the file of every subclass.
    """
    place = gr.Image(label=label, type="filepath", sources=["upload", "clipboard"], height=220, elem_id=name)
    place.preprocess = lambda payload: payload.path if payload else None
    return place


def _layers(studio: Studio) -> list[gr.Slider]:
    """A slider per layer, all of the shape's first."""
    sliders, gates = [], studio.gates()
    names = [" + ".join(_short(name) for name in cell) for cell in studio.space.cells]
    with gr.Row():
        for attribute in ATTRIBUTES:
            with gr.Column(min_width=160):
                gr.Markdown(f"**{attribute}**")
                for name, gate in zip(names, gates[attribute], strict=True):
                    sliders.append(gr.Slider(0, 1, gate, step=0.01, label=name, elem_id=f"{attribute}-{name}"))
    return sliders


def _short(name: str) -> str:
    """E.g. "down 1.0" of "down_blocks.1.attentions.0.transformer_blocks.0.attn2"."""
    parts = name.split(".")
    numbers = [part for part in parts[1:4] if part.isdigit()]
    return f"{parts[0].split('_')[0]} {'.'.join(numbers)}"


@contextmanager
def _reporting() -> Iterator[None]:
    """Show a visitor's mistake on the page."""
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error), print_exception=False) from None


def _paint(studio: Studio, sandbox: Path):
    count = studio.space.num_layers

    def paint(shape, appearance, loaded, history, prompt, seed, steps, guidance, *sliders):
        strength = dict(zip(ATTRIBUTES, sliders[:2], strict=True))
        layers = {a: sliders[2 + i * count : 2 + (i + 1) * count] for i, a in enumerate(ATTRIBUTES)}
        with _reporting():
            concept = studio.compose(shape, appearance, loaded, strength, layers)
            for step, total, image in studio.paint(concept, prompt, seed, steps, guidance):
                if step < total:
                    yield image, f"step {step} of {total}", gr.skip(), gr.skip(), gr.skip()
        history = [image, *history][:HISTORY]
        # A folder of a random name: nobody else can ask for it.
        path = Path(tempfile.mkdtemp(dir=sandbox)) / "concept.safetensors"
        concept.save(path)
        yield image, "done", history, history, gr.DownloadButton(value=str(path), interactive=True)

    return paint


def _load(studio: Studio):
    count = 2 * studio.space.num_layers

    def load(path):
        if not path:
            return None, "", *[gr.skip()] * count
        with _reporting():
            concept: Concept = studio.load(path)
        gates = [concept.gates[a].mean(1).tolist() if a in concept.gates else [] for a in ATTRIBUTES]
        sliders = [gr.skip()] * count
        if all(len(gate) == studio.space.num_layers for gate in gates):
            sliders = [round(value, 2) for gate in gates for value in gate]
        return concept, f"loaded: {', '.join(concept.attributes)}", *sliders

    return load


def _matrix(studio: Studio):
    def matrix(paths, seed):
        with _reporting():
            yield from studio.matrix(paths or [], seed=seed)

    return matrix
