"""Agreement with the ratings that DreamBench++ released, on a tiny table in its layout, computed by hand."""

import json

import pytest
from judge_server import RuleJudge
from PIL import Image

from escdiff.evaluation.protocols.people import compare, read_ratings
from escdiff.evaluation.vlm.panel import Panel
from escdiff.evaluation.vlm.rubrics import read_rubrics
from escdiff.support.errors import UserError

SHADES = {"object_00_mug-0": 0, "object_00_mug-1": 40, "style_01_ink-0": 140}  # of the paintings; references are black
JUDGED = {"object_00_mug-0": 4, "object_00_mug-1": 3, "style_01_ink-0": 0}  # the stub's rule for concept preservation
PEOPLE = {
    "group1": {"object_00_mug-0": [4, 0], "object_00_mug-1": [2, 1], "style_01_ink-0": [0, 4]},
    "group2": {"object_00_mug-0": [4, 0], "object_00_mug-1": [4, 1], "style_01_ink-0": [1, 4]},
}


@pytest.fixture
def ratings(tmp_path):
    for group, rated in PEOPLE.items():
        folder = tmp_path / "human" / "raw_data" / group
        folder.mkdir(parents=True)
        (folder / "anna-dreambooth_sd.json").write_text(json.dumps(rated), encoding="utf-8")
    return tmp_path / "human"


@pytest.fixture
def samples(tmp_path):
    root = tmp_path / "samples" / "dreambooth_sd_gs7_5_step100_seed42_torch_float16"
    for key, shade in SHADES.items():
        subject, number = key.rsplit("-", 1)
        for kind in ("src_image", "tgt_image", "text"):
            (root / kind / subject).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(root / "src_image" / subject / f"{number}_0.jpg")
        Image.new("RGB", (16, 16), (shade,) * 3).save(root / "tgt_image" / subject / f"{number}_0.jpg")
        (root / "text" / subject / f"{number}_0.txt").write_text(f"a mug {shade}", encoding="utf-8")
    return root.parent


def test_figures_by_hand(ratings, samples, tmp_path):
    panel = Panel(RuleJudge(), read_rubrics("dreambench_plus"), tmp_path)
    cp, pf = compare(ratings, samples, panel, tmp_path, "the command")
    assert (cp["aspect"], cp["method"], cp["judge"]["n"]) == ("cp", "dreambooth_sd", 3)
    # People: (4, 4), (2, 4), (0, 1). Observed (2 x 4 + 2 x 1) / 6. Of 4, 4, 2, 4, 0, 1 the mean is 2.5 and the squares
    # about it add up to 15.5, so all ordered pairs to 12 x 15.5 = 186. Expected 186 / 30.
    assert cp["people"]["alpha"] == pytest.approx(1 - (10 / 6) / (186 / 30))
    # The judge says 4, 3, 0: with group1 (4, 2, 0) observed 2/6; squares of 4, 4, 3, 2, 0, 0 about 13/6 are 45 - 169/6.
    # With group2 (4, 4, 1) observed 4/6; squares of 4, 4, 3, 4, 0, 1 about 16/6 are 58 - 256/6.
    one = 1 - (2 / 6) / (12 * (45 - 169 / 6) / 30)
    two = 1 - (4 / 6) / (12 * (58 - 256 / 6) / 30)
    assert cp["judge"]["alpha"] == pytest.approx((one + two) / 2)
    assert cp["judge"]["spearman"] == pytest.approx((1 + 0.75**0.5) / 2)  # ranks 3, 2, 1 with 2.5, 2.5, 1
    assert cp["judge"]["kendall"] == pytest.approx((1 + 2 / 6**0.5) / 2)  # two of three pairs, one is tied
    assert pf["people"]["alpha"] == 1 and pf["judge"]["spearman"] == pytest.approx(0.75**0.5)  # brightness 0, 0, 2
    asked = panel.model.asked
    assert (
        len(asked) == 6 and any("style of picture 1" in text for text in asked) and any("a mug 40" in t for t in asked)
    )
    page = (tmp_path / "agreement.md").read_text(encoding="utf-8")
    assert "| concept preservation | dreambooth_sd |" in page and "stub that answers by rule" in page


def test_people_alone_and_merged_files(ratings, tmp_path):
    rows = compare(ratings, None, None, tmp_path, "")
    merged = tmp_path / "other" / "merged_data"
    for group, rated in PEOPLE.items():
        (merged / group).mkdir(parents=True)
        for place, aspect in enumerate(("cp", "pf")):
            values = {key: pair[place] for key, pair in rated.items()}
            (merged / group / f"dreambooth_sd-{aspect}.json").write_text(json.dumps(values), encoding="utf-8")
    assert compare(tmp_path / "other", None, None, tmp_path, "") == rows and "judge" not in rows[0]
    assert rows[0]["people"]["spearman"] == pytest.approx(0.75**0.5)


def test_what_is_missing_counts_nowhere(ratings, samples, tmp_path):
    refuses = lambda text, before: "No." if "a mug 40" in text else None  # noqa: E731
    panel = Panel(RuleJudge(refuses), read_rubrics("dreambench_plus"), tmp_path)
    cp, pf = compare(ratings, samples, panel, tmp_path, "")
    assert (cp["judge"]["n"], pf["judge"]["n"]) == (3, 2) and panel.bill.missing == 1


def test_mistakes_are_named(ratings, samples, tmp_path):
    with pytest.raises(UserError, match="both --judge and --samples"):
        compare(ratings, samples, None, tmp_path, "")
    with pytest.raises(UserError, match="data_human_rating"):
        read_ratings(tmp_path)
    panel = Panel(RuleJudge(), read_rubrics("dreambench_plus"), tmp_path)
    with pytest.raises(UserError, match="0 folders dreambooth_sd_"):
        compare(ratings, tmp_path, panel, tmp_path, "")
    with pytest.raises(UserError, match="against whole, style and text"):
        compare(ratings, samples, Panel(RuleJudge(), read_rubrics("omnicontext"), tmp_path), tmp_path, "")
    next((ratings / "raw_data").rglob("*.json")).write_text("[1]", encoding="utf-8")
    with pytest.raises(UserError, match="no table of ratings"):
        read_ratings(ratings)
