import pytest
from PIL import Image

from escdiff.evaluation.protocols.cases import cases
from escdiff.evaluation.protocols.run import parse_shard
from escdiff.evaluation.protocols.subjects import (
    painted,
    read_dreambench,
    read_folder,
    read_p_plus,
    read_prompts,
    scored,
)
from escdiff.support.errors import UserError


def test_dreambench_is_read_and_never_run(dreambench):
    subjects = {subject.name: subject for subject in read_dreambench(dreambench)}
    assert set(subjects) == {"mug_1", "dog_1"} and all(len(s.pictures) == 3 for s in subjects.values())
    assert subjects["mug_1"].templates == ("a {} in the jungle", "a red {}")
    assert subjects["dog_1"].templates == ("a {} wearing a red hat", "a wet {}") and subjects["dog_1"].category == "dog"
    assert read_dreambench(dreambench / "dataset") == list(subjects.values())


def test_pictures_of_one_stem_are_subjects_each_and_masks_are_none(tmp_path):
    for name in ("a.png", "a.jpg", "b.png", "b.mask.png", "c.mask.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    subjects = {subject.name: subject.pictures[0].name for subject in read_folder(tmp_path, ["a {}"])}
    assert subjects == {"a.jpg": "a.jpg", "a.png": "a.png", "b": "b.png", "c.mask": "c.mask.png"}  # of no picture "c"


def test_the_placeholder_is_painted_and_its_class_is_scored():
    assert painted("a {} in the jungle") == "a <concept> in the jungle"
    assert scored("a {} in the jungle", "mug") == "a mug in the jungle"
    assert scored("a photo of a <appearance> <shape>", "mug") == "a photo of a mug"
    assert scored("a photo of a <appearance> cube", "mug") == "a photo of a cube"
    assert scored("a <concept> on a beach", "") == "a on a beach"


def test_prompts_and_seeds_are_the_same_for_all(dreambench):
    subjects = read_dreambench(dreambench)
    own = cases("prompts", subjects, 0, range(3, 5))
    assert [c.seed for c in own] == [3, 4, 3, 4] and all(c.whole and c.subject == "mug_1" for c in own)
    (swap,) = cases("swap", subjects, 1, range(1))
    assert (swap.shape, swap.appearance, swap.text) == ("dog_1", "mug_1", "a photo of a dog") and not swap.whole


def test_a_folder_of_pictures_and_of_folders(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "classes.txt").write_text("a,mug\n", encoding="utf-8")
    found = read_folder(tmp_path, ["<shape> in red"])
    assert [(s.name, s.category, len(s.pictures)) for s in found] == [("a", "mug", 1), ("b", "", 1)]
    (tmp_path / "c").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "c" / "1.png")
    assert [s.name for s in read_p_plus(tmp_path)] == ["c"]
    (tmp_path / "prompts.txt").write_text("# ours\n\na {} on a beach\n", encoding="utf-8")
    assert read_prompts(tmp_path / "prompts.txt") == ["a {} on a beach"]


def test_mistakes_are_named(tmp_path, dreambench):
    with pytest.raises(UserError, match="no place for the subject"):
        read_folder(dreambench, ["a mug"])
    with pytest.raises(UserError, match="no prompts"):
        read_folder(dreambench, [])
    with pytest.raises(UserError, match="cannot be read"):
        read_dreambench(tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        read_folder(tmp_path / "none", ["{}"])
    (tmp_path / "prompts_and_classes.txt").write_text("Classes\nmug,mug\n", encoding="utf-8")
    with pytest.raises(UserError, match="fetch it again"):
        read_dreambench(tmp_path)
    assert parse_shard("2/8") == (1, 8)
    for text in ("0/2", "3/2", "a", "1"):
        with pytest.raises(UserError, match="--shard"):
            parse_shard(text)
