"""What the tab *Edit* does, on tiny parts."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from escdiff.demo.editing import CHOICES, Editor, brushed
from escdiff.encoder import ConceptEncoder, EncoderConfig, load_vision
from escdiff.serving.engine import Engine
from escdiff.support.errors import UserError

WORDS, ATTENTION, APPEARANCE, SHAPE = CHOICES


@pytest.fixture(scope="module")
def editor(tiny_backbone, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tower"))
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**tower, image_size=32, patch_size=16)).save_pretrained(folder)
    config = EncoderConfig(vision=folder, shape_depths=(1, 2), appearance_depths=(0, 1), features=16)
    encoder = ConceptEncoder.for_backbone(config, load_vision(folder), tiny_backbone, tiny_backbone.p_plus()).eval()
    engine = Engine(tiny_backbone, encoder, guidance=2.0)
    yield Editor(engine)
    engine.close()


@pytest.fixture
def files(tmp_path):
    """A picture, wider than high, and a stroke of the brush in its middle."""
    pixels = np.full((120, 160, 3), 128, np.uint8)
    pixels[40:80, 60:100] = (200, 20, 20)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    layer = np.zeros((120, 160, 4), np.uint8)
    layer[40:80, 60:100] = 255
    Image.fromarray(layer).save(tmp_path / "layer.png")
    Image.fromarray(layer * 0).save(tmp_path / "empty.png")
    return {name: str(tmp_path / f"{name}.png") for name in ("picture", "layer", "empty")}


def run(editor, files, choice=WORDS, layers=("layer",), prompt="a blue square", **options):
    layers = [files[name] for name in layers]
    given = {"picture": files["picture"], "source": "a red square", "steps": 2, "guidance": 2.0} | options
    return editor.edit(layers=layers, choice=choice, prompt=prompt, **given)


@pytest.mark.parametrize("choice", [WORDS, ATTENTION])
def test_only_what_was_brushed_over_changes(editor, files, choice):
    steps, kind = [], type(editor.engine.backbone.scheduler)
    before, after = (np.asarray(picture) for picture in run(editor, files, choice, on_step=steps.append))
    changed = (before != after).any(-1)
    assert before.shape == after.shape == (128, 128, 3) and steps == [1, 1]
    assert changed[50:78, 50:78].any() and not changed[:36].any() and not changed[:, :36].any()
    free = np.asarray(run(editor, files, choice, layers=("empty",))[1])
    assert (free != before).any(-1)[:36].any()  # nothing brushed: everywhere
    assert type(editor.engine.backbone.scheduler) is kind


def test_a_reference_gives_its_appearance_or_shape(editor, files):
    made = [
        run(editor, files, choice, prompt=prompt, reference=files["picture"])[1]
        for choice, prompt in ((APPEARANCE, "a <appearance> square"), (SHAPE, "a red <shape>"))
    ]
    assert made[0].tobytes() != made[1].tobytes()


def test_a_brush_is_read_off_the_centre_square(files):
    mask = brushed([files["layer"], files["empty"]], 60)
    assert mask.shape == (1, 60, 60) and mask[0, 20:40, 20:40].all() and mask.sum() == 400
    assert brushed([files["empty"]], 60) is None and brushed([], 60) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"picture": None}, "no picture was given"),
        ({"choice": "magic"}, "'magic' was given"),
        ({"source": " "}, "what it shows has 1 letters"),
        ({"prompt": "x" * 500}, "what it should show has 500 letters"),
        ({"steps": 500}, "500 steps"),
        ({"guidance": float("nan")}, "guidance nan"),
        ({"choice": APPEARANCE}, "no reference was given"),
        ({"choice": APPEARANCE, "reference": "x.png"}, "no place for the reference"),
        ({"choice": SHAPE, "reference": "x.png", "prompt": "a <shape>", "layers": ()}, "brush over the place"),
    ],
)
def test_mistakes_are_one_sentence(editor, files, change, words):
    with pytest.raises(UserError, match=words) as caught:
        run(editor, files, **change)
    assert "\n" not in str(caught.value)
