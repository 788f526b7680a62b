import pytest

from data_prep.caption import Caption, caption
from escdiff.support.errors import UserError


def test_given_captions_get_a_neutral_one_and_a_noun(photos, tmp_path, here, samples_of):
    caption(photos, tmp_path, Caption(), here)
    found = samples_of(tmp_path)
    told = found[1]["json"]
    assert told["caption"] == "a photo of a shiny red mug" and told["caption_neutral"] == "a photo of a mug"
    assert told["category"] == "mug" and "caption_by" not in told
    assert len(found) == 14 and "category" not in found[0]["json"] and found[0]["json"]["caption_neutral"] == ""


def test_what_names_nothing_is_left_out_if_asked(photos, tmp_path, here, samples_of, rejects_of):
    caption(photos, tmp_path, Caption(require=True), here)
    assert len(samples_of(tmp_path)) == 1 and len(rejects_of(tmp_path)) == 13
    assert rejects_of(tmp_path)[0]["kind"] == "left out"


def test_a_model_speaks_where_nothing_is_given(photos, tmp_path, here, samples_of, contents_of, tiny_captioner):
    stage = Caption(tiny_captioner, max_words=5, batch=3)
    caption(photos, tmp_path / "a", stage, here)
    found = samples_of(tmp_path / "a")
    told = found.pop(1)["json"]
    assert told["caption"] == "a photo of a shiny red mug" and "caption_by" not in told
    assert all(s["json"]["caption"] and s["json"]["caption_by"] == tiny_captioner for s in found)
    caption(photos, tmp_path / "b", stage, here)
    assert contents_of(tmp_path / "a") == contents_of(tmp_path / "b")
    caption(photos, tmp_path / "c", Caption(tiny_captioner, again=True, max_words=5), here)
    assert all("caption_by" in s["json"] for s in samples_of(tmp_path / "c"))


def test_absent_models_are_refused(photos, tmp_path, here):
    with pytest.raises(UserError, match="cannot be loaded"):
        caption(photos, tmp_path / "out", Caption(str(tmp_path / "absent")), here)


def test_samples_without_a_caption_are_said(photos, tmp_path, here, capsys, tiny_captioner):
    caption(photos, tmp_path / "a", Caption(), here)
    assert "caption: 13 of 14 samples have no caption; --model names" in capsys.readouterr().err
    caption(photos, tmp_path / "b", Caption(tiny_captioner, max_words=5), here)
    assert "no caption" not in capsys.readouterr().err


def test_bad_options_are_refused(photos, tmp_path, here):
    for stage, words in ((Caption(dtype="int8"), "--dtype"), (Caption(batch=0), "--batch")):
        with pytest.raises(UserError, match=words):
            caption(photos, tmp_path, stage, here)
