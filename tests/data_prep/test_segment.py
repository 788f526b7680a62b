import numpy as np
import pytest
from PIL import Image

from data_prep.segment import Segment, segment
from escdiff.data import schema
from escdiff.data.masks import clean, subject_mask, subject_masks
from escdiff.support.errors import UserError


@pytest.fixture(scope="module")
def tiny_clipseg(tmp_path_factory) -> str:
    import torch
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegProcessor, ViTImageProcessor

    from escdiff.mini.parts import make_tokenizer

    torch.manual_seed(0)
    part = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPSegConfig(
        text_config={**part, "eos_token_id": 49407}, vision_config={**part, "image_size": 32, "patch_size": 8},
        projection_dim=16, extract_layers=[0, 1], reduce_dim=8, decoder_num_attention_heads=2,
        decoder_intermediate_size=16, conditional_layer=0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("clipseg")
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    images = ViTImageProcessor(size={"height": 32, "width": 32})
    CLIPSegProcessor(images, make_tokenizer()).save_pretrained(folder)
    return str(folder)


def test_given_masks_are_measured_and_the_rest_is_left_out(photos, tmp_path, here, samples_of, rejects_of):
    segment(photos, tmp_path, Segment(), here)
    found = samples_of(tmp_path)
    assert len(found) == 5 and {s["json"]["mask"] for s in found} == {"given"}
    assert found[0]["json"]["mask_quality"] == {"area": 0.273, "piece": 1.0, "rim": 0.0}
    assert len(rejects_of(tmp_path)) == 9 and "no --model" in rejects_of(tmp_path)[0]["reason"]


def test_only_the_asked_source_counts(photos, tmp_path, here):
    with pytest.raises(UserError, match="no sample is left"):
        segment(photos, tmp_path, Segment("alpha"), here)


def test_a_model_makes_masks_where_there_are_none(photos, tmp_path, here, samples_of, contents_of, tiny_segmenter):
    lax = Segment(model=tiny_segmenter, min_area=0, max_area=1, min_piece=0, max_rim=1)
    segment(photos, tmp_path / "a", lax, here)
    found = samples_of(tmp_path / "a")
    assert len(found) == 14 and sum(s["json"]["mask"] == tiny_segmenter for s in found) == 9
    for sample in found:
        assert sample[schema.MASK].size == sample[schema.image_key(sample)].size
        assert set(np.unique(sample[schema.MASK])) <= {0, 255}
    segment(photos, tmp_path / "b", lax, here)
    assert contents_of(tmp_path / "a") == contents_of(tmp_path / "b")


def test_the_named_segment_is_taken(tiny_segmenter):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8))
    masks = {name: subject_mask(tiny_segmenter, picture, name)[0] for name in ("w0", "w1", "w2")}
    assert any((masks["w0"] != masks[other]).any() for other in ("w1", "w2"))
    assert all(mask.shape == (40, 56) for mask in masks.values())


def test_clipseg_is_asked_for_the_category(photos, tiny_clipseg):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8))
    mask, score = subject_mask(tiny_clipseg, picture, "mug")
    assert mask.shape == (40, 56) and mask.dtype == bool and 0 <= score <= 1


def test_a_batch_gives_what_one_by_one_gives(tiny_clipseg, tiny_segmenter):
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (40, width, 3), np.uint8)) for width in (56, 40, 30)]
    words = ["mug", "a small dog", ""]
    for model in (tiny_clipseg, tiny_segmenter):
        found = subject_masks(model, pictures, words)
        for (mask, score), picture, word in zip(found, pictures, words, strict=True):
            alone, its_score = subject_mask(model, picture, word)
            assert mask.shape == (40, picture.width) and (mask == alone).mean() > 0.99
            assert score == pytest.approx(its_score, abs=1e-3)


def test_the_threads_of_the_process_stay_as_they_were(photos, tmp_path, here, tiny_clipseg, tiny_clip, tiny_captioner):
    import torch

    from data_prep.caption import Caption, caption
    from data_prep.models import clip_features

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        subject_mask(tiny_clipseg, Image.new("RGB", (40, 40)), "mug")
        clip_features(tiny_clip, [Image.new("RGB", (40, 40))])
        caption(photos, tmp_path, Caption(tiny_captioner, max_words=2), here)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_quality_is_judged():
    mask = np.zeros((40, 40), bool)
    mask[5:25, 5:25] = mask[35:37, 35:37] = True
    cleaned, measures = clean(mask)
    assert cleaned[5:25, 5:25].all() and not cleaned[35:, 35:].any()
    assert measures["piece"] == pytest.approx(400 / 404) and measures["rim"] == 0
    judge = Segment().judge
    judge(measures)
    for change, words in (({"area": 0.95}, "covers 0.950"), ({"piece": 0.5}, "largest piece"), ({"rim": 0.8}, "rim")):
        with pytest.raises(UserError, match=words):
            judge({**measures, **change})
    assert clean(np.zeros((4, 4), bool))[1]["area"] == 0


def test_bad_options_are_refused(photos, tmp_path, here):
    bad = Segment("sam"), Segment("model"), Segment(min_area=0.5, max_area=0.4), Segment(batch=0), Segment(batch=-1)
    for stage in bad:
        with pytest.raises(UserError, match="--"):
            segment(photos, tmp_path, stage, here)
    with pytest.raises(UserError, match="cannot be loaded"):
        segment(photos, tmp_path / "out", Segment("model", str(tmp_path / "absent")), here)
