"""Training curves."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from escdiff.evaluation.studies.curves import draw_curves, read_curves
from escdiff.support.errors import UserError


def make_run(folder, first: int, values: list[float], batch_size: int):
    folder.mkdir()
    trainer = {"devices": 2, "num_nodes": 1, "accumulate": 1}
    config = {"recipe": "vae", "trainer": trainer, "data": {"batch_size": batch_size}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    lines = [json.dumps({"step": first + i, "train/psnr": value}) for i, value in enumerate(values)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_runs_of_one_recipe_go_on_from_each_other(tmp_path):
    runs = [make_run(tmp_path / "a", 0, [10, 11], 4), make_run(tmp_path / "b", 2, [12, None, 14], 8)]
    samples, values = read_curves(runs)["vae"]["psnr"]
    assert samples.tolist() == [8, 16, 32, 64] and values.tolist() == [10, 11, 12, 14]
    draw_curves(runs, tmp_path / "docs" / "curves.png")
    assert np.asarray(Image.open(tmp_path / "docs" / "curves.png").convert("L")).std() > 0
    table = (tmp_path / "docs" / "curves.csv").read_text(encoding="utf-8").splitlines()
    assert table == [
        "recipe,metric,samples,value",
        *(f"vae,psnr,{s},{v}" for s, v in ((8, 10), (16, 11), (32, 12), (64, 14))),
    ]


def test_a_table_stands_for_runs_that_are_gone(tmp_path):
    runs = [make_run(tmp_path / "a", 0, [10, 11], 4), make_run(tmp_path / "b", 2, [12, None, 14], 8)]
    draw_curves(runs[:1], tmp_path / "earlier.png")
    for found, expected in zip(
        read_curves([tmp_path / "earlier.csv", runs[1]])["vae"]["psnr"], read_curves(runs)["vae"]["psnr"], strict=True
    ):
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("text", [None, "", "recipe,metric\nvae,psnr\n", "recipe,metric,samples,value\nvae,psnr,8,x\n"])
def test_a_file_that_is_no_table(tmp_path, text):
    if text is not None:
        (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="is no table of curves|logged nothing"):
        read_curves([tmp_path / "a.csv"])


def test_runs_that_have_logged_nothing(tmp_path):
    run = make_run(tmp_path / "a", 0, [], 4)
    for lines in ("", '{"step": 0, "val/psnr": 3.0}\n'):
        (run / "metrics.jsonl").write_text(lines, encoding="utf-8")
        with pytest.raises(UserError, match="logged nothing") as caught:
            draw_curves([run], tmp_path / "docs" / "curves.png")
        assert "\n" not in str(caught.value) and not (tmp_path / "docs").exists()


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"config\.yaml"):
        read_curves([tmp_path])
