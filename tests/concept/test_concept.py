"""A concept's file gives back what was put in, runs nothing, and refuses what it was not made for."""

import copy
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from escdiff.concept import Concept, placeholder
from escdiff.conditioning import ConditioningSpace
from escdiff.sharing.layouts import export_embeddings
from escdiff.support.errors import UserError

K, D = 2, 32
P_PLUS = ConditioningSpace(tuple((f"mid_block.{i}.attn2",) for i in range(16)))
P = ConditioningSpace((P_PLUS.layer_names,))


def make(space=P_PLUS, attributes=("shape", "appearance"), seed=0, width=D, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    size = (space.num_layers, space.num_stages)
    options = {"base_model": "tiny", "text_hash": "abc"} | kwargs
    return Concept(
        vectors={a: torch.randn(*size, K, width, generator=generator) for a in attributes},
        anchors={a: torch.randn(K, width, generator=generator) for a in attributes},
        gates={a: torch.rand(size, generator=generator) for a in attributes},
        space=space,
        **options,
    )


def assert_same(a, b):
    for part in ("vectors", "anchors", "gates"):
        ours, theirs = getattr(a, part), getattr(b, part)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) and ours[k].dtype == theirs[k].dtype for k in ours)
    for part in ("space", "base_model", "text_hash", "license", "notes"):
        assert getattr(a, part) == getattr(b, part)
    assert a.attributes == b.attributes


def test_extras_are_kept_and_checked(tmp_path):
    concept = make(extras={"image_embeds": torch.randn(4, 6)})
    concept.save(tmp_path / "c.safetensors")
    assert torch.equal(Concept.load(tmp_path / "c.safetensors").extras["image_embeds"], concept.extras["image_embeds"])
    with pytest.raises(UserError, match="extras"):
        make(extras={"image_embeds": torch.full((2,), float("nan"))})


def stored(concept, path, change):
    """A concept's file with other metadata."""
    concept.save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    change(metadata)
    save_file(load_file(path), path, metadata)
    return path


def test_older_files_are_read_and_those_behind_the_text_encoder_refused(tmp_path):
    old = stored(make(), tmp_path / "old", lambda about: [about.pop(key) for key in ("branches", "rounded")])
    assert_same(Concept.load(old), make())
    words = stored(make(), tmp_path / "words", lambda about: about.update(placement="words"))
    assert_same(Concept.load(words), make())
    states = stored(make(), tmp_path / "states", lambda about: about.update(placement="states"))
    with pytest.raises(UserError, match="behind the text encoder, which was given up"):
        Concept.load(states)
    transformers = make(family="flux", words={"shape": "mug", "appearance": "red"})
    transformers.save(tmp_path / "new")
    assert_same(Concept.load(tmp_path / "new"), transformers)
    noted = {"family": "flux", "entry": "layers", "words.shape": "mug", "words.appearance": "red", "method": "xti"}

    def as_before(about):
        for key in ("family", "words", "entry"):
            del about[key]

    file = stored(make(notes=noted), tmp_path / "noted", as_before)
    found = Concept.load(file)
    assert (found.family, found.words, found.notes) == ("flux", transformers.words, {"method": "xti"})


def test_the_file_names_no_place_of_this_machine(tmp_path):
    (tmp_path / "sd15").mkdir()
    for given, expected in ((str(tmp_path / "sd15"), "sd15"), ("/models/dreamy.safetensors", "dreamy"), ("a/b", "a/b")):
        make(base_model=given).save(tmp_path / "c")
        assert Concept.load(tmp_path / "c").base_model == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_save_then_load_is_identical(tmp_path, dtype):
    concept = make(license="CC0-1.0", notes={"method": "xti", "größe": "ß"})
    concept.vectors = {k: v.to(dtype).requires_grad_() for k, v in concept.vectors.items()}
    path = tmp_path / "new" / "mug.safetensors"
    concept.save(path)
    assert_same(Concept.load(path), concept)
    assert [p.name for p in path.parent.iterdir()] == ["mug.safetensors"]
    assert path.stat().st_size < 50_000


def test_order_of_attributes_survives(tmp_path):
    concept = make(attributes=("style", "color", "layout", "appearance", "shape"))
    assert concept.attributes == ("shape", "appearance", "style", "color", "layout")
    concept.save(tmp_path / "c")
    assert Concept.load(tmp_path / "c").attributes == concept.attributes


def test_placeholders():
    concept = make()
    vectors = concept.placeholders()
    assert list(vectors) == ["<shape>", "<appearance>", "<concept>"] and placeholder("shape") == "<shape>"
    assert vectors["<shape>"].shape == (1, 16, 1, K, D)
    whole = torch.cat([vectors["<shape>"], vectors["<appearance>"]], dim=3)
    assert torch.equal(vectors["<concept>"], whole)
    assert list(concept.only("shape").placeholders()) == ["<shape>"]


def test_placeholders_fit_the_prompt_encoder(tiny_backbone):
    concept = make(space=tiny_backbone.p_plus(), text_hash=tiny_backbone.text_hash)
    concept.check_fits(tiny_backbone.p_plus(), tiny_backbone.width, tiny_backbone.text_hash)
    grid = tiny_backbone.prompts.encode(["a photo of <concept>"], concept.placeholders())
    assert grid.shape == (1, 16, 1, 77, D)


def test_scaled_moves_between_anchor_and_concept():
    concept = make()
    assert torch.equal(concept.scaled(1.0).vectors["shape"], concept.vectors["shape"])
    anchor = concept.anchors["appearance"].expand(16, 1, K, D)
    some = concept.scaled({"appearance": 0.0})
    assert torch.equal(some.vectors["appearance"], anchor)
    assert torch.equal(some.vectors["shape"], concept.vectors["shape"])
    double = concept.scaled(2.0).vectors["appearance"] - anchor
    torch.testing.assert_close(double, 2 * (concept.vectors["appearance"] - anchor))
    with pytest.raises(UserError, match="no 'color'; it has shape, appearance"):
        concept.scaled({"color": 1.0})


def test_combine_takes_each_attribute_from_its_source():
    a = make(seed=1, license="CC0", notes={"from": "mug"})
    b = make(seed=2, license="MIT", notes={"from": "dog"})
    both = Concept.combine(appearance=b, shape=a)
    assert both.attributes == ("shape", "appearance")
    for part in ("vectors", "anchors", "gates"):
        assert getattr(both, part)["shape"] is getattr(a, part)["shape"]
        assert getattr(both, part)["appearance"] is getattr(b, part)["appearance"]
    assert both.notes == {"shape.from": "mug", "appearance.from": "dog"} and both.license == "MIT; CC0"
    with pytest.raises(UserError, match="text encoder abc.*text encoder other"):
        Concept.combine(shape=a, appearance=make(text_hash="other"))
    with pytest.raises(UserError, match="no 'appearance'"):
        Concept.combine(shape=a, appearance=a.only("shape"))
    with pytest.raises(UserError, match="nothing was given"):
        Concept.combine()


def test_blend():
    a, b = make(seed=1), make(seed=2)
    assert_same(a.blend(b, 0.0), a)
    assert_same(a.blend(b, 1.0), b)
    layers = a.blend(b, (torch.arange(16) > 7).float()).vectors["shape"]
    assert torch.equal(layers[:8], a.vectors["shape"][:8]) and torch.equal(layers[8:], b.vectors["shape"][8:])
    with pytest.raises(UserError, match="cannot be blended"):
        a.blend(b.only("shape"), 0.5)


def test_compare():
    a, b = make(seed=1), make(seed=2)
    assert a.compare(a) == pytest.approx({"shape": 1.0, "appearance": 1.0})
    assert abs(a.compare(b)["shape"]) < 0.2
    assert list(a.compare(b.only("shape"))) == ["shape"]


def test_wrong_backbone_is_refused_naming_both_sides():
    concept = make()
    concept.check_fits(P_PLUS, D, "abc")
    concept.check_fits(P_PLUS, D)
    make(space=P).check_fits(P_PLUS, D)  # one cell is shared by all
    sdxl = ConditioningSpace(tuple((f"down_blocks.{i}.attn2",) for i in range(11)))
    for space, width, text_hash, both in [
        (sdxl, D, "abc", "'tiny' with 16 layer cells.*the backbone has 11 layer cells"),
        (P_PLUS, 1024, "abc", "width 32.*width 1024"),
        (P_PLUS, D, "other", "encoder abc.*encoder other"),
        (P, D, "abc", "16 layer cells.*1 layer cells"),
    ]:
        with pytest.raises(UserError, match=both):
            concept.check_fits(space, width, text_hash)
    staged = make(space=ConditioningSpace(P_PLUS.cells, (0, 500, 1000)))
    with pytest.raises(UserError, match=r"\(0, 500, 1000\).*\(0, 1000\)"):
        staged.check_fits(P_PLUS, D)


def test_shapes_are_checked_when_made():
    good = make()
    parts = {"space": P_PLUS, "base_model": "", "text_hash": ""}
    for vectors, anchors, gates in [
        ({"shape": torch.zeros(7, 1, K, D)}, good.anchors, {}),
        ({"shape": torch.zeros(16, K, D)}, good.anchors, {}),
        (good.vectors, {}, {}),
        (good.vectors, good.anchors, {"shape": torch.zeros(16)}),
        (good.vectors | {"appearance": torch.zeros(16, 1, K, 8)}, good.anchors, {}),
    ]:
        with pytest.raises(UserError, match="of shapes"):
            Concept(vectors=vectors, anchors=anchors, gates=gates, **parts)
    with pytest.raises(UserError, match="at least one attribute"):
        Concept(vectors={}, anchors={}, **parts)
    with pytest.raises(UserError, match="not finite"):
        Concept(vectors={"shape": good.vectors["shape"] / 0}, anchors=good.anchors, **parts)


class Bomb:
    """Pickles into a call that would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_is_refused_unread(tmp_path):
    bomb = tmp_path / "concept.safetensors"
    bomb.write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(UserError, match="no safetensors file"):
        Concept.load(bomb)
    assert not (tmp_path / "exploded").exists()


def test_foreign_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no concept file"):
        Concept.load(tmp_path / "missing")
    path = tmp_path / "c.safetensors"
    save_file({"<mug>": torch.zeros(1, D)}, path)
    with pytest.raises(UserError, match="expected 'escdiff-concept' version '1'"):
        Concept.load(path)
    make().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(UserError, match="no safetensors file"):
        Concept.load(path)
    for old, new in [(b'"escdiff-concept"', b'"escdiff-encoder"'), (b"space.cells", b"space.sells")]:
        assert whole.count(old) == 1
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(UserError, match="expected|damaged"):
            Concept.load(path)
    path.write_bytes(whole.replace(b"vectors.shape", b"vectors.shame"))
    with pytest.raises(UserError, match="damaged"):
        Concept.load(path)


def test_a_failed_save_keeps_the_old_file(tmp_path):
    path = tmp_path / "c.safetensors"
    concept = make()
    concept.save(path)
    concept.notes = {"bad": {1, 2}}
    with pytest.raises(TypeError):
        concept.save(path)
    assert_same(Concept.load(path), make())
    assert len(list(tmp_path.iterdir())) == 1


def test_a_strength_of_each_layer():
    concept, weights = make(), torch.linspace(0, 1.5, 16)
    found = concept.scaled({"shape": weights})
    for layer, weight in enumerate(weights):
        expected = concept.scaled(weight.item()).vectors["shape"][layer]
        torch.testing.assert_close(found.vectors["shape"][layer], expected)
    assert torch.equal(found.vectors["appearance"], concept.vectors["appearance"])
    assert torch.equal(concept.scaled(weights[:, None]).vectors["shape"], found.vectors["shape"])


def test_textual_inversion_export(tmp_path, tiny_backbone):

    concept = make(space=P)
    path = tmp_path / "learned_embeds.safetensors"
    export_embeddings(concept, path, "shape")
    assert torch.equal(load_file(path)["<shape>"], concept.vectors["shape"][0, 0])
    pipeline = copy.deepcopy(tiny_backbone).pipeline()
    pipeline.load_textual_inversion(path)
    ids = pipeline.tokenizer(pipeline.maybe_convert_prompt("<shape>", pipeline.tokenizer)).input_ids
    rows = pipeline.text_encoder.get_input_embeddings().weight[ids[1:-1]]
    assert torch.equal(rows, concept.vectors["shape"][0, 0])
    with pytest.raises(UserError, match="fills 16 layer cells"):
        export_embeddings(make(), path, "shape")
