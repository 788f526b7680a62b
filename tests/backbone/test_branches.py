"""Concepts of an encoder with branches: served with those very branches, or refused."""

import logging
import warnings
from dataclasses import replace

import artefacts
import diffusers
import pytest
import tiny
import torch
from painting import make_concept
from safetensors.torch import load_file

import escdiff
from escdiff import ConceptEncoder, ESCDiffPipeline
from escdiff.backbone.adapters.attached import Attached, LowRank
from escdiff.backbone.branches import (
    Branches,
    add_branches,
    branch_parameters,
    hash_of,
    remove_branches,
    set_branches,
)
from escdiff.cli import infer
from escdiff.concept import ATTRIBUTES, Concept
from escdiff.pipelines.generate import generate
from escdiff.support.config.compose import compose
from escdiff.support.config.loss import LossConfig
from escdiff.support.config.train import SpaceConfig
from escdiff.support.errors import UserError
from escdiff.training.encoder.module import EncoderModule
from escdiff.training.encoder.setup import make_encoder

PROMPT = "a photo of a <appearance> <shape>"


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny_backbone):
    """Folders of encoders with branches ("one", "two"), routed ones ("routed"), one for the shape alone, or "none"."""
    root = tmp_path_factory.mktemp("branches")
    for seed, (name, options) in enumerate({
        "one": {"branch_rank": 2}, "two": {"branch_rank": 3}, "none": {},
        "routed": {"branch_rank": 2, "branches": "routed"}, "shape": {"branch_rank": 2, "branched": "shape"},
    }.items()):  # fmt: skip
        encoder, unet = artefacts.make_encoder(root, tiny_backbone, **options)
        if options:
            with torch.no_grad():
                for parameter in (p for key, p in unet.named_parameters() if ".lora_" in key):
                    parameter.mul_(1 + seed / 4)
        encoder.save_pretrained(root / name, unet)
    return root


@pytest.fixture
def backbone(tiny_backbone):
    return tiny.make_backbone(**{p: getattr(tiny_backbone, p) for p in ("vae", "tokenizer", "text_encoder")})


def concept_of(folder):
    return ConceptEncoder.from_pretrained(folder).encode(artefacts.PICTURE)


def paint(backbone, concept):
    return artefacts.digest([list(generate(backbone, [PROMPT], concept, steps=1)[0].tobytes())])


def test_the_file_says_which_branches(root, tmp_path):
    concept = concept_of(root / "one")
    states = {name: load_file(root / "one" / "branches" / f"{name}.safetensors") for name in ATTRIBUTES}
    assert concept.branches == {"encoder": "one", "hash": Branches(states).hash}
    assert (
        Branches({name: {k: v.double() for k, v in s.items()} for name, s in states.items()}).hash
        == Branches(states).hash
    )
    assert concept.branches["hash"] != concept_of(root / "two").branches["hash"]
    concept.save(tmp_path / "a.safetensors")
    assert Concept.load(tmp_path / "a.safetensors").branches == concept.branches
    assert concept_of(root / "none").branches == {}


def test_painted_with_them_or_refused(root, backbone, caplog):
    concept = concept_of(root / "one")
    with pytest.raises(UserError, match=r"branches of the encoder 'one' \([0-9a-f]{16}\), the U-Net has none"):
        generate(backbone, [PROMPT], concept, steps=1)
    encoder = ConceptEncoder.from_pretrained(root / "one", backbone)
    assert hash_of(backbone.unet) == encoder.branches.hash
    painted = paint(backbone, concept)
    other = ConceptEncoder.from_pretrained(root / "two", backbone)  # in place of the first one's
    assert hash_of(backbone.unet) == other.branches.hash
    with pytest.raises(UserError, match="the U-Net has others"):
        generate(backbone, [PROMPT], concept, steps=1)
    encoder.branches.put(backbone.unet)
    assert paint(backbone, concept) == painted
    with caplog.at_level(logging.WARNING):
        paint(backbone, make_concept(backbone))
    assert "act on a concept that was made without them" in caplog.text
    caplog.clear()
    set_branches(backbone.unet, {})
    paint(backbone, make_concept(backbone))
    assert not caplog.text  # they are there, and do nothing
    remove_branches(backbone.unet)
    assert hash_of(backbone.unet) is None and not any("lora" in key for key in backbone.unet.state_dict())


def test_branches_of_another_unet_change_nothing(root):
    unet = tiny.make_unet(width=64)
    keys = list(unet.state_dict())
    with pytest.raises(UserError, match="is for another U-Net .*has 64 channels there, the adapter 32"):
        ConceptEncoder.from_pretrained(root / "one").branches.put(unet)
    assert list(unet.state_dict()) == keys and hash_of(unet) is None


def test_nothing_is_said_of_adapters_that_stand_side_by_side(root, backbone, tiny_backbone, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ConceptEncoder.from_pretrained(root / "routed", backbone)
        artefacts.make_encoder(tmp_path, tiny_backbone, branch_rank=2)


def test_stock_pipelines(root, backbone):
    concept, pipeline = concept_of(root / "one"), backbone.pipeline()
    with pytest.raises(UserError, match="load them first: .*escdiff.load_branches"):
        escdiff.load_concept(pipeline, concept)
    escdiff.load_branches(pipeline, root / "one")
    assert escdiff.load_concept(pipeline, concept) == ("<shape>", "<appearance>", "<concept>")
    with pytest.raises(UserError, match="has no branches"):
        escdiff.load_branches(pipeline, root / "none")


def test_diffusers_reads_the_branches_files(root):
    unet, expected = tiny.make_unet(), tiny.make_unet()
    Branches.read(root / "one" / "branches").put(expected)
    for name in ATTRIBUTES:
        unet.load_lora_adapter(
            root / "one" / "branches", prefix=None, adapter_name=name, weight_name=f"{name}.safetensors"
        )
    unet.set_adapters(list(ATTRIBUTES), [1.0, 1.0])
    assert artefacts.of_unet(unet) == artefacts.of_unet(expected) != artefacts.of_unet(tiny.make_unet())


def test_concepts_of_different_branches_do_not_mix(root):
    one, two, none = (concept_of(root / name) for name in ("one", "two", "none"))
    with pytest.raises(UserError, match=r"branches of different encoders \('one' and 'two'\)"):
        Concept.combine(shape=one, appearance=two)
    with pytest.raises(UserError, match=r"branches of different encoders \('one' and none\)"):
        one.blend(none, 0.5)
    assert Concept.combine(shape=one, appearance=one).branches == one.branches == one.scaled(0.5).branches


@pytest.mark.slow
def test_a_second_encoder_takes_the_place_of_the_first(root, tiny_folder):
    def latents(pipeline):
        options = {"shape": artefacts.PICTURE, "appearance": artefacts.PICTURE}
        return artefacts.of_pipeline(pipeline, prompt=PROMPT, **options)

    pipeline = ESCDiffPipeline.from_pretrained(tiny_folder)
    stock = artefacts.of_unet(pipeline.unet)
    pipeline.set_encoder(root / "one")
    first = latents(pipeline)
    pipeline.set_encoder(ConceptEncoder.from_pretrained(root / "two"))  # an encoder brings its branches along
    assert hash_of(pipeline.unet) == pipeline.concept_encoder.branches.hash and latents(pipeline) != first
    pipeline.set_encoder(root / "one")
    assert latents(pipeline) == first
    alone = ESCDiffPipeline.from_pretrained(tiny_folder, encoder=root / "one")
    assert latents(alone) == first
    untold = ConceptEncoder.from_pretrained(root / "two")
    untold.branches = None
    with pytest.raises(UserError, match="in the U-Net that they were trained in"):
        pipeline.set_encoder(untold)
    assert latents(pipeline) == first
    pipeline.set_encoder(root / "none")
    assert artefacts.of_unet(pipeline.unet) == stock
    pipeline.set_encoder(root / "one")
    pipeline.set_encoder(None)
    assert artefacts.of_unet(pipeline.unet) == stock and pipeline.concept_encoder is None


def test_a_half_precision_pipeline_keeps_the_branches_as_they_were(root, tiny_folder, tmp_path):
    pipeline = ESCDiffPipeline.from_pretrained(tiny_folder, encoder=root / "one").to(torch.float16)
    pipeline.save_pretrained(tmp_path)
    again = ESCDiffPipeline.from_pretrained(tmp_path)
    assert again.concept_encoder.branches.hash == pipeline.concept_encoder.branches.hash
    assert not any("lora" in key or "base_layer" in key for key in load_file(
        tmp_path / "unet" / "diffusion_pytorch_model.safetensors"))  # fmt: skip
    assert isinstance(diffusers.DiffusionPipeline.from_pretrained(tmp_path), diffusers.StableDiffusionPipeline)


def run(tiny_folder, tmp_path, *arguments):
    common = [f"backbone.name={tiny_folder}", "steps=1", "num_images=1", f"out={tmp_path}"]
    return infer.run(compose("infer", [*common, *arguments]))


def test_the_door_serves_a_file_with_its_encoders_branches(root, tiny_folder, tmp_path):
    (picture := tmp_path / "mug.png").touch()
    artefacts.PICTURE.save(picture)
    given = [f"shape={picture}", f"appearance={picture}", "concept_dtype=float32", f"encoder={root / 'one'}"]
    made = run(tiny_folder, tmp_path / "a", *given)
    file = made / "mug.safetensors"
    with pytest.raises(UserError, match=r"needs the branches of its encoder, 'one' \(branches .*give encoder=DIR"):
        run(tiny_folder, tmp_path / "b", f"concept={file}")
    with pytest.raises(UserError, match="two has others.*name that one"):
        run(tiny_folder, tmp_path / "b", f"concept={file}", f"encoder={root / 'two'}")
    assert not (tmp_path / "b").exists()
    again = run(tiny_folder, tmp_path / "c", f"concept={file}", f"encoder={root / 'one'}")
    assert (again / "picture-000.png").read_bytes() == (made / "picture-000.png").read_bytes()


def test_the_door_takes_a_tower_and_a_type(root, tiny_folder, tmp_path):
    (picture := tmp_path / "mug.png").touch()
    artefacts.PICTURE.save(picture)
    given = [f"shape={picture}", f"encoder={root / 'none'}", f"encoder.vision={root / 'tower'}"]
    half = run(tiny_folder, tmp_path / "a", *given) / "mug.safetensors"
    whole = run(tiny_folder, tmp_path / "b", *given, "concept_dtype=float32") / "mug.safetensors"
    a, b = Concept.load(half), Concept.load(whole)
    numbers = sum(value.numel() for part in (b.vectors, b.anchors, b.gates) for value in part.values())
    assert abs(whole.stat().st_size - half.stat().st_size - 2 * numbers) < 64
    assert a.vectors["shape"].dtype == torch.float32
    torch.testing.assert_close(a.vectors["shape"], b.vectors["shape"], atol=1e-3, rtol=1e-3)
    with pytest.raises(UserError, match="the model /not/here cannot be loaded"):
        run(tiny_folder, tmp_path / "c", *given[:2], "encoder.vision=/not/here")
    with pytest.raises(UserError, match="concept_dtype=int8 given"):
        run(tiny_folder, tmp_path / "c", *given, "concept_dtype=int8")


def test_numbers_that_half_precision_cannot_hold(backbone, tmp_path):
    concept = make_concept(backbone)
    concept = replace(concept, vectors={a: v * 1e7 for a, v in concept.vectors.items()})
    with pytest.raises(UserError, match="cannot hold"):
        concept.save(tmp_path / "a.safetensors", torch.float16)
    assert not list(tmp_path.iterdir())


def test_another_adapter_acts_where_the_branches_are_off(backbone, tmp_path):
    unet, low = backbone.unet, LowRank(backbone, 2)
    for parameter in low.parameters():
        torch.nn.init.normal_(parameter)
    low.save(tmp_path)
    low.remove()

    def painted():
        attached = Attached(unet, tmp_path)
        sample = generate(backbone, ["a plain mug"], steps=1)[0].tobytes()
        attached.remove()
        return sample

    alone, stock = painted(), generate(backbone, ["a plain mug"], steps=1)[0].tobytes()
    add_branches(unet, 2)
    with torch.no_grad():
        for parameter in (p for key, p in unet.named_parameters() if ".lora_" in key):
            parameter.normal_()
    set_branches(unet, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT's, of an adapter that it makes active instead
        beside = painted()
    assert beside == alone != stock == generate(backbone, ["a plain mug"], steps=1)[0].tobytes()
    set_branches(unet, dict.fromkeys(ATTRIBUTES, 1.0))
    assert generate(backbone, ["a plain mug"], steps=1)[0].tobytes() != stock


def trained(unet):
    return {name for name, parameter in unet.named_parameters() if parameter.requires_grad}


def test_a_training_starts_from_an_encoders_branches(root, backbone):
    stored = ConceptEncoder.from_pretrained(root / "one")
    encoder = make_encoder(stored.config, SpaceConfig(), backbone, str(root / "one"))
    assert hash_of(backbone.unet) is None  # the training puts them in
    module = EncoderModule(encoder, backbone, LossConfig(), 1e-3, 10)
    assert artefacts.digest(Branches.of(backbone.unet).states) == artefacts.digest(stored.branches.states)
    assert len(module.branches) == len(trained(backbone.unet)) == 4 * 16 * 2
    assert hash_of(backbone.unet) == encoder.needed_branches["hash"] == ""  # they become others
    remove_branches(backbone.unet)
    fresh = make_encoder(stored.config, SpaceConfig(), backbone, str(root / "none"))
    EncoderModule(fresh, backbone, LossConfig(), 1e-3, 10)
    assert len(trained(backbone.unet)) == 4 * 16 * 2


def test_a_training_without_branches_has_none_in_the_unet(root, backbone):
    config = ConceptEncoder.from_pretrained(root / "none").config
    encoder = make_encoder(config, SpaceConfig(), backbone, str(root / "none"))
    assert hash_of(backbone.unet) is None and encoder.branches is None
    for rank in (0, 3):
        with pytest.raises(UserError, match=rf"branches of rank 2, encoder.branch_rank={rank} given"):
            make_encoder(replace(config, branch_rank=rank), SpaceConfig(), backbone, str(root / "one"))
    with pytest.raises(UserError, match="has other sizes than the blocks encoder and space say"):
        make_encoder(replace(config, features=8), SpaceConfig(), backbone, str(root / "none"))
    assert hash_of(backbone.unet) is None


def test_one_attribute_alone_has_a_branch(root, backbone):
    ConceptEncoder.from_pretrained(root / "one", backbone)
    encoder = ConceptEncoder.from_pretrained(root / "shape", backbone)
    assert set(backbone.unet.peft_config) == {"shape"}
    assert [file.name for file in (root / "shape" / "branches").iterdir()] == ["shape.safetensors"]
    paint(backbone, concept_of(root / "shape"))
    remove_branches(backbone.unet)
    again = make_encoder(encoder.config, SpaceConfig(), backbone, str(root / "shape"))
    EncoderModule(again, backbone, LossConfig(), 1e-3, 10)
    assert len(trained(backbone.unet)) == 2 * 16 * 2
    with pytest.raises(UserError, match="has branches of shape, encoder.branched=both given"):
        make_encoder(replace(encoder.config, branched="both"), SpaceConfig(), backbone, str(root / "shape"))


def test_branches_are_trained_only_where_a_training_adds_them(root):
    unet = tiny.make_unet().requires_grad_(False)
    Branches.read(root / "one" / "branches").put(unet)
    assert not trained(unet)
    set_branches(unet, {"shape": 0.5})
    set_branches(unet, {"shape": 1.0, "appearance": 1.0})
    assert not trained(unet)
    remove_branches(unet)
    add_branches(unet, 2)
    of_both = {id(p) for name in ATTRIBUTES for p in branch_parameters(unet, name)}
    assert {id(p) for p in unet.parameters() if p.requires_grad} == of_both
