"""What the page does, on tiny parts; the page itself is driven by `benchmarks/demo_load.py`."""

import pytest
import torch
from artefacts import make_encoder
from PIL import Image
from trouble import bomb

from escdiff.concept.mixing import regate
from escdiff.demo.guard import foreign_files
from escdiff.demo.studio import Studio
from escdiff.pipelines.generate import generate
from escdiff.serving.engine import Engine
from escdiff.serving.limits import Limits
from escdiff.support.errors import UserError


@pytest.fixture(scope="module")
def studio(tiny_backbone, tmp_path_factory):
    encoder, _ = make_encoder(tmp_path_factory.mktemp("studio"), tiny_backbone)
    engine = Engine(tiny_backbone, encoder, guidance=1.0)
    yield Studio(engine)
    engine.close()


@pytest.fixture
def files(tmp_path):
    for name, color in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (40, 40), color).save(tmp_path / f"{name}.png")
    return [str(tmp_path / "a.png"), str(tmp_path / "b.png")]


ONE = {"shape": 1.0, "appearance": 1.0}


def read(studio, path):
    return studio.engine.encoder.encode(Image.open(path))


def test_sliders_at_their_start_change_nothing(studio, files):
    got = studio.compose(files[0], files[1], None, ONE, studio.gates())
    one, two = read(studio, files[0]), read(studio, files[1])
    assert torch.equal(got.vectors["shape"], one.vectors["shape"])
    assert torch.equal(got.vectors["appearance"], two.vectors["appearance"])


def test_a_layers_slider_moves_its_own_layer_only(studio, files):
    gates = studio.gates()
    gates["shape"][5] = 0.0
    got, own = studio.compose(files[0], None, None, ONE, gates), read(studio, files[0])
    assert got.attributes == ("shape",)
    moved = [i for i in range(16) if not torch.equal(got.vectors["shape"][i], own.vectors["shape"][i])]
    assert moved == [5]
    torch.testing.assert_close(got.vectors["shape"][5, 0], own.anchors["shape"])


def test_other_gates_are_what_the_encoder_would_have_made(studio, files):
    concept, half = read(studio, files[0]), torch.full((16, 1), 0.5)
    residual = (concept.vectors["shape"] - concept.anchors["shape"]) / concept.gates["shape"][..., None, None]
    expected = concept.anchors["shape"] + 0.5 * residual
    torch.testing.assert_close(regate(concept, {"shape": half}).vectors["shape"], expected)
    with pytest.raises(UserError, match="gates"):
        regate(concept, {"shape": half[:3]})


def test_the_picture_appears_step_by_step_and_is_the_pipelines(studio, files):
    concept = studio.compose(files[0], files[1], None, ONE, studio.gates())
    seen = list(studio.paint(concept, "", seed=3, steps=4))
    assert [(step, total) for step, total, _ in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    (expected,) = generate(
        studio.engine.backbone, ["a photo of a <appearance> <shape>"], concept, steps=4, guidance=1.0, seeds=[3]
    )
    assert seen[-1][2].tobytes() == expected.tobytes() != seen[0][2].tobytes()


def test_a_picture_that_nobody_waits_for_frees_the_painter(studio, files):
    concept = studio.compose(files[0], None, None, ONE, studio.gates())
    painting = studio.paint(concept, "", steps=40)
    next(painting)
    painting.close()
    assert len(list(studio.paint(concept, "", steps=2))) == 2


def test_a_concept_file_comes_back(studio, files, tmp_path):
    concept = studio.compose(files[0], files[1], None, {"shape": 0.5, "appearance": 1.5}, studio.gates())
    concept.save(tmp_path / "c.safetensors")
    kept = studio.load(str(tmp_path / "c.safetensors"))
    again = studio.compose(None, None, kept, ONE, studio.gates())
    torch.testing.assert_close(again.vectors["shape"], concept.vectors["shape"])


def test_the_matrix_grows_row_by_row(studio, files):
    grids = list(studio.matrix(files, steps=1))
    assert len(grids) == 2 and grids[0].size == grids[1].size


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": "a photo of a mug"}, "no place for the concept"),
        ({"prompt": "<shape> " * Limits.prompt}, "letters"),
        ({"steps": 10_000}, "steps 10000"),
        ({"seed": -1}, "seed -1"),
        ({"seed": "x"}, "seed x"),
        ({"guidance": float("nan")}, "guidance nan"),
    ],
)
def test_mistakes_are_told(studio, files, change, said):
    concept = studio.compose(files[0], None, None, ONE, studio.gates())
    with pytest.raises(UserError, match=said):
        list(studio.paint(concept, **({"prompt": "", "steps": 2} | change)))


def test_hostile_files_are_refused(studio, tmp_path):
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    (tmp_path / "bomb.png").write_bytes(bomb())
    with pytest.raises(UserError, match="not an image"):
        studio.read_picture(str(tmp_path / "text.png"))
    with pytest.raises(UserError, match="megapixels"):
        studio.read_picture(str(tmp_path / "bomb.png"))
    with pytest.raises(UserError, match="no safetensors file") as error:
        studio.load(str(tmp_path / "text.png"))
    with open(tmp_path / "big.safetensors", "wb") as file:
        file.truncate(5_000_000)
    with pytest.raises(UserError, match="more than 4 MB"):
        studio.load(str(tmp_path / "big.safetensors"))
    assert "text.png" not in str(error.value)
    with pytest.raises(UserError, match="nothing was given"):
        studio.compose(None, None, None, ONE, studio.gates())


def test_files_are_those_of_the_sandbox(tmp_path):
    own = {"path": str(tmp_path / "up" / "a.png"), "url": "http://own/file=a"}
    assert not list(foreign_files({"data": [own, "see http://x", None, {"path": None}]}, tmp_path))
    others = ["http://x/a.png", "/etc/passwd", f"{tmp_path}/../b.png", "", "a\0b"]
    assert list(foreign_files([own, {"data": [{"path": path, "meta": {}} for path in others]}], tmp_path)) == others
    assert list(foreign_files({**own, "url": " DATA:image/png;base64,"}, tmp_path))
