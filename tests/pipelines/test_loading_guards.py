"""What people do with a pipeline that has a concept: names, long texts, other tools' embeddings, parts replaced."""

import copy
import logging
import unicodedata

import pytest
import tiny
import torch
from painting import PROMPT, make_concept
from peft import LoraConfig
from test_loading import backbones, make_pipeline, paint  # noqa: F401 - a fixture

import escdiff
from escdiff.methods.dreambooth import DreamBooth
from escdiff.sharing.layouts import export_embeddings
from escdiff.support.errors import UserError

NAMES = ("red mug", "mug.v2", "2mug", "mug (1)", "über", "猫", "mug+dog")


@pytest.mark.parametrize("name", NAMES)
def test_every_name_that_is_taken_works_in_a_prompt(name, backbones):  # noqa: F811
    pipeline, _ = make_pipeline("sd", backbones)
    concept = make_concept(backbones["sd"], spread=20.0)
    escdiff.load_concept(pipeline, concept, "mug")
    expected = pipeline.encode_prompt("a photo of a <mug>", "cpu", 1, False)[0]
    escdiff.unload_concept(pipeline)
    for spelling in ("NFC", "NFD"):  # file names of some systems come decomposed
        escdiff.load_concept(pipeline, concept, unicodedata.normalize(spelling, name))
        for typed in ("NFC", "NFD"):
            text = f"a photo of a <{unicodedata.normalize(typed, name)}>"
            assert torch.equal(pipeline.encode_prompt(text, "cpu", 1, False)[0], expected)
        escdiff.unload_concept(pipeline)


@pytest.mark.parametrize("name", [" mug", "a<b", "a>b", "mug\n", "\t"])
def test_names_that_no_prompt_can_say_are_refused(name, backbones):  # noqa: F811
    pipeline, _ = make_pipeline("sd", backbones)
    with pytest.raises(UserError, match="cannot stand in a prompt"):
        escdiff.load_concept(pipeline, make_concept(backbones["sd"]), name)
    assert "encode_prompt" not in vars(pipeline)


def test_a_textual_inversion_of_the_same_word_is_refused_in_either_order(backbones, tmp_path):  # noqa: F811
    backbone = copy.deepcopy(backbones["sd"])
    pipeline = backbone.pipeline()
    concept = make_concept(backbone, layers="tied")
    export_embeddings(concept, tmp_path / "ti.safetensors", "shape", token="<shape>")
    escdiff.load_concept(pipeline, concept)
    pipeline.load_textual_inversion(tmp_path / "ti.safetensors")
    with pytest.raises(UserError, match="textual inversion.*<shape>"):
        paint(pipeline, "a <shape>")
    escdiff.unload_concept(pipeline)
    with pytest.raises(UserError, match="textual inversion.*<shape>"):
        escdiff.load_concept(pipeline, concept)
    escdiff.load_concept(pipeline, concept, "mug")
    paint(pipeline, "a <shape> like a <mug-shape>")


def test_replaced_parts_are_bound_or_refused(backbones):  # noqa: F811
    backbone = tiny.copied(backbones["sd"])
    pipeline = backbone.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    escdiff.load_concept(pipeline, make_concept(backbone, spread=20.0))
    expected, first = paint(pipeline, PROMPT), pipeline.unet
    pipeline.unet = copy.deepcopy(backbones["sd"].unet)
    assert torch.equal(paint(pipeline, PROMPT), expected)
    assert not any(module._forward_pre_hooks for module in first.modules())  # and let go of
    pipeline.text_encoder = tiny.make_text_encoder(seed=5)
    with pytest.raises(UserError, match="the concept was made for 'tiny' with"):
        paint(pipeline, PROMPT)
    pipeline.text_encoder = copy.deepcopy(backbones["sd"].text_encoder)
    assert torch.equal(paint(pipeline, PROMPT), expected)
    pipeline.unet = backbones["sdxl"].unet
    with pytest.raises(UserError, match="16 layer cells.*11 layer cells"):
        paint(pipeline, PROMPT)
    escdiff.unload_concept(pipeline)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_words_that_are_cut_are_told_as_stock_does(name, backbones, caplog):  # noqa: F811
    pipeline, _ = make_pipeline(name, backbones)
    text = "a photo of a {}, " + "with many leaves, " * 20 + "on a {} background"
    with caplog.at_level(logging.WARNING, "diffusers"):
        logging.getLogger("diffusers").addHandler(caplog.handler)
        pipeline.encode_prompt(text.format("object", "red"), device="cpu", num_images_per_prompt=1,
                               do_classifier_free_guidance=False)  # fmt: skip
        logging.getLogger("diffusers").removeHandler(caplog.handler)
    said = [record.getMessage() for record in caplog.records]
    stock = [line for line in said if line.startswith("The following")]  # transformers says something too
    caplog.clear()
    escdiff.load_concept(pipeline, make_concept(backbones[name]))
    with caplog.at_level(logging.WARNING, "escdiff"):
        pipeline.encode_prompt(text.format("<shape>", "red"), device="cpu", num_images_per_prompt=1,
                               do_classifier_free_guidance=False)  # fmt: skip
    ours = [record.getMessage() for record in caplog.records]
    escdiff.unload_concept(pipeline)
    start = "The following part of your input was truncated because CLIP can only handle sequences up to 77 tokens: ["
    assert len(ours) == len(stock) == (2 if name == "sdxl" else 1)
    assert all(line.startswith(start) and "red" in line for line in (*stock, *ours))


@pytest.mark.parametrize("cells", [1, 2, 16])
def test_embeddings_of_other_tools_pass_while_a_concept_is_loaded(cells, backbones):  # noqa: F811
    pipeline, _ = make_pipeline("sd", backbones)
    long = torch.randn(1, cells * 77, backbones["sd"].width)
    given = {"prompt_embeds": long, "negative_prompt_embeds": 0.5 * long}
    stock = paint(pipeline, None, **given, seed=[3])
    escdiff.load_concept(pipeline, make_concept(backbones["sd"]))
    assert torch.equal(paint(pipeline, None, **given, seed=[3]), stock)
    escdiff.unload_concept(pipeline)


def test_embeddings_beside_a_prompt_with_a_placeholder(backbones):  # noqa: F811
    """Plain ones count in every cell; those of other concepts and longer ones are refused."""
    pipeline, _ = make_pipeline("sd", backbones)
    escdiff.load_concept(pipeline, make_concept(backbones["sd"]))
    plain = pipeline.text_encoder(torch.tensor(pipeline.tokenizer(["dark"], padding="max_length").input_ids))[0]
    packed = pipeline.encode_prompt(PROMPT, "cpu", 1, False)[0]
    expected = paint(pipeline, PROMPT, negative_prompt=["dark"])
    torch.testing.assert_close(paint(pipeline, PROMPT, negative_prompt_embeds=plain), expected)
    given = {"prompt_embeds": packed, "negative_prompt": ["dark"]}
    torch.testing.assert_close(paint(pipeline, None, **given, seed=[3]), expected)
    with pytest.raises(UserError, match="154 tokens"):
        paint(pipeline, PROMPT, negative_prompt_embeds=torch.cat([plain, plain], 1))
    escdiff.unload_concept(pipeline)
    escdiff.load_concept(pipeline, make_concept(backbones["sd"], layers="tied", stages=2))
    with pytest.raises(UserError, match="concepts of 16 cells"):
        paint(pipeline, None, prompt_embeds=packed, seed=[3])
    escdiff.unload_concept(pipeline)


def test_weights_of_a_concept_go_with_loras_of_others(backbones, tmp_path):  # noqa: F811
    backbone = tiny.copied(backbones["sd"])
    method = DreamBooth(backbone)
    for parameter in method.kept:
        torch.nn.init.normal_(parameter, std=0.3)
    method.export(tmp_path)
    method.release()
    torch.manual_seed(0)
    backbone.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k"], init_lora_weights=False), "style")
    backbone.unet.set_adapters(["style"], [0.5])
    pipeline = backbone.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    styled = paint(pipeline, "a mug")
    escdiff.load_concept(pipeline, tmp_path / "concept.safetensors")
    both = paint(pipeline, "a <concept>")
    backbone.unet.set_adapters(["style"], [0.5])  # which switches ours off
    assert torch.equal(paint(pipeline, "a <concept>"), both)
    escdiff.unload_concept(pipeline)
    assert torch.equal(paint(pipeline, "a mug"), styled) and backbone.unet.active_adapters() == ["style"]
