import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from escdiff.evaluation.__main__ import judge as command
from escdiff.evaluation.bench.identity import OTHERS, VIEWS
from escdiff.evaluation.report.significance import Difference
from escdiff.evaluation.studies import judge
from escdiff.evaluation.studies.judge_page import write_verdict
from escdiff.evaluation.studies.lineup_cases import draw_case, render_cases
from escdiff.mini.data.lineups import KINDS
from escdiff.mini.world.colors import readable
from escdiff.support.errors import UserError


@pytest.mark.parametrize("kind", KINDS)
def test_portraits_differ_in_background_light_and_yaw_alone(kind):
    for number in range(6):
        case = draw_case(kind, 0, number)
        assert case == draw_case(kind, 0, number) and len(case.same) == len(case.independent) == (1 + OTHERS) * VIEWS
        scene = case.query.scene
        for same, apart in zip(case.same, case.independent, strict=True):
            assert (same.shape, same.material) == (apart.shape, apart.material)
            assert (same.scene.background, same.scene.light, same.scene.yaw) == (
                scene.background,
                scene.light,
                scene.yaw,
            )
            rest = [(s.pitch, s.elevation, s.zoom, s.dx, s.dy) for s in (same.scene, apart.scene)]
            assert rest[0] == rest[1] and apart.scene.yaw != scene.yaw and apart.scene.light != scene.light
            for one in (same, apart):
                assert readable(one.material.rgb, one.material.color, one.scene.background)
        instances = {getattr(one, kind) for one in case.same}
        assert len(instances) == 1 + OTHERS and getattr(case.same[0], kind) == getattr(case.query, kind)


class OfScenes:
    """Tells pictures by their backdrop alone: their first pixel."""

    config = SimpleNamespace(embeddings={"shape_id": 3})

    def embed(self, name, pixels):
        return torch.nn.functional.normalize(pixels[:, :, 0, 0] + torch.tensor([0.1, 0.2, 0.4]), dim=-1)


class OfObjects:
    """Knows the object, whose number is written into the picture."""

    config = OfScenes.config

    def embed(self, name, pixels):
        number = pixels[:, 0, 64, 64].mul(127.5).add(127.5).round().long()
        return torch.nn.functional.one_hot(number, 256).float()


def numbered(kind, seed, count, workers=0):
    """Line-ups as the renderer gives them: corners show the backdrop, the middle the object."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        images = np.zeros((1 + 2 * (1 + OTHERS) * VIEWS, 128, 128, 3), np.uint8)
        own = rng.integers(256, size=3)
        portraits = 1 + np.arange((1 + OTHERS) * VIEWS) // VIEWS
        images[:, 64, 64] = np.concatenate([[1], portraits, portraits])[:, None]
        images[:, 0, 0] = own
        images[1 + len(portraits) :, 0, 0] = rng.integers(256, size=(len(portraits), 3))
        yield images


def test_a_judge_of_objects_is_not_fooled_and_one_of_scenes_is_found_out(monkeypatch):
    monkeypatch.setattr(judge, "render_cases", numbered)
    keep = lambda pixels: pixels  # noqa: E731
    right = judge._identities(OfObjects(), "shape", keep, 40, 0, 0)
    assert all(np.mean(values) == 1 for values in right.values())
    fooled = judge._identities(OfScenes(), "shape", keep, 40, 0, 0)
    assert np.mean(fooled["same"]) == 0  # all alike: a tie is no recognition
    assert 0 < np.mean(fooled["independent"]) < 0.4


@pytest.mark.slow
def test_line_ups_come_as_pictures_in_order():
    (images,) = render_cases("material", 0, 1)
    assert images.shape == (1 + 2 * (1 + OTHERS) * VIEWS, 128, 128, 3) and images.dtype == np.uint8


def test_the_page_says_each_figure_and_whether_the_scene_fools(tmp_path):
    found = {"mean": 0.9, "low": 0.88, "high": 0.92, "n": 1000}
    tables = {"renders": {"family": found, "shape_id": found, "params_r2": found}, "vae": {"shape_id": found}}
    verdict = judge.Verdict(tables, {"shape_id": found}, {"shape_id": Difference(-0.04, -0.06, -0.02, 0.01, 1000)})
    write_verdict(verdict, tmp_path / "judge.md", {"command": "the command"})
    page = (tmp_path / "judge.md").read_text(encoding="utf-8")
    assert "| family | 90.0 % (88.0 % – 92.0 %) |  | 1000 |" in page and "| params_r2 | 0.900 (0.880 – 0.920) |" in page
    assert "−4.0 % (−6.0 % – −2.0 %) | no |" in page and "the command" in page
    said = json.loads((tmp_path / "judge.json").read_text(encoding="utf-8"))
    assert said["tables"]["vae"]["shape_id"]["mean"] == 0.9 and said["differences"]["shape_id"]["n"] == 1000


@pytest.mark.slow
def test_an_oracle_without_identities_is_examined_too(tmp_path, oracle):
    verdict = judge.examine(oracle, None, lambda pixels: pixels * 0.9, 12)
    assert not verdict.differences and {"family", "params_r2", "background"} <= set(verdict.tables["renders"])
    assert verdict.tables["renders"].keys() == verdict.tables["vae"].keys()
    write_verdict(verdict, tmp_path / "judge.md", {"command": "c"})
    assert "tells no instances apart" in (tmp_path / "judge.md").read_text(encoding="utf-8")


def test_a_missing_oracle_is_named_before_anything_is_rendered(tmp_path):
    with pytest.raises(UserError, match="no oracle in /nowhere"):
        command(tmp_path / "j.md", 10, Path("/nowhere"), None, None, 0, 0)
    with pytest.raises(UserError, match="no scene_oracle in /nowhere"):
        command(tmp_path / "j.md", 10, None, Path("/nowhere"), None, 0, 0)
    assert not list(tmp_path.iterdir())
