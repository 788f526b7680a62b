"""The comparison on tiny parts: every kind of contender, resuming, the table, its figure and its claim."""

import copy
import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel
from typer.testing import CliRunner

from escdiff.backbone import load_backbone
from escdiff.concept import Concept
from escdiff.conditioning import ConditioningSpace
from escdiff.encoder import ConceptEncoder, EncoderConfig, load_vision
from escdiff.evaluation import __main__ as door
from escdiff.evaluation.bench import scores
from escdiff.evaluation.bench.models import Models
from escdiff.evaluation.comparison import cases as comparison_cases
from escdiff.evaluation.comparison import customize
from escdiff.evaluation.comparison import run as compare
from escdiff.evaluation.comparison.contenders import CONTENDERS, choose
from escdiff.evaluation.comparison.customize import ALIKE
from escdiff.evaluation.comparison.report import GROUPS, claim, draw_figure, report
from escdiff.evaluation.comparison.scenes import contenders as scenes
from escdiff.mini.data.still_life import StillLifeOptions, make_still_life
from escdiff.mini.oracle import Oracle, OracleConfig
from escdiff.training.method import setup as method_setup

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
         "image_size": 32, "patch_size": 16}  # fmt: skip


class Truthful(Models):
    """Paints for real and then reads what was asked for."""

    asked: list = []  # noqa: RUF012

    def read(self, pictures):
        assert len(pictures) == len(self.asked)
        return [scores.truth(case.request.expected) for case in self.asked]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory, tiny_folder, tiny_backbone):
    """One run over five kinds: one pass, words, weights, an encoder of its own, a caption."""
    root = tmp_path_factory.mktemp("compare")
    torch.manual_seed(0)
    CLIPVisionModel(CLIPVisionConfig(**TOWER)).save_pretrained(root / "tower")
    make_still_life(root / "world", 96, StillLifeOptions(seed=1, size=64))
    backbone = load_backbone(str(tiny_folder))
    config = EncoderConfig(vision=str(root / "tower"), shape_depths=(1, 2), appearance_depths=(0, 1), features=16)
    encoder = ConceptEncoder.for_backbone(config, load_vision(config.vision), backbone, backbone.p_plus()).eval()
    oracle = Oracle(OracleConfig((8, 8, 16, 16), (0, 1, 1, 1))).eval()
    models = Truthful(backbone, oracle, encoder, steps=1, guidance=2.0, fingerprints=("x", "y"))
    settings = {
        "escdiff": {}, "xti": {}, "custom_diffusion": {"prior_weight": 0.0},
        "elite": {"vision": str(root / "tower")}, "words_full": {},
    }  # fmt: skip
    chosen = {
        name: replace(CONTENDERS[name], settings=own, steps=(2 * bool(CONTENDERS[name].steps[0]),) * 2,
                      learn=(1,) * 2 if CONTENDERS[name].learn[0] else (0, 0))
        for name, own in settings.items()
    }  # fmt: skip
    made = compare.Comparison(models, root / "out", chosen, 2, 1, quick=True, data=str(root / "world"))
    real = comparison_cases.draw_cases

    def remember(*arguments):
        models.asked = real(*arguments)
        return models.asked

    def fresh(config, whole):
        unet, parts = copy.deepcopy(tiny_backbone.unet), ("vae", "text_encoder", "tokenizer", "scheduler")
        return tiny.make_backbone(unet=unet, name=backbone.name, **{p: getattr(tiny_backbone, p) for p in parts})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method_setup, "make_backbone", fresh)
        patch.setattr(comparison_cases, "draw_cases", remember)
        patch.setitem(ALIKE, "data.batch_size", 2)
        yield made, made.run("the command")


@pytest.mark.slow
def test_every_kind_of_method_gets_its_row(comparison):
    made, table = comparison
    assert set(table) == {"escdiff", "xti", "custom_diffusion", "elite", "words_full"}
    for name, row in table.items():
        found = row["scores"]
        assert found["both/family"] == {"mean": 1, "low": pytest.approx(0.34, abs=0.02), "high": 1, "n": 2}, name
        assert {"swap/shape", "swap/appearance", "edit/background", "leak/shape_to_appearance"} <= set(found)
        assert {"both/shape_id", "swap/material_id", "shape/leak_material_id"} <= set(found), name
        assert (row["seconds"] > 0) == (row["bytes"] > 0) == (name != "words_full") and row["seconds_per_picture"] > 0
    assert table["escdiff"]["parameters"] == table["elite"]["parameters"] == 0
    assert table["xti"]["parameters"] == 16 * 32 and table["custom_diffusion"]["parameters"] > 16 * 32
    assert table["elite"]["shared_bytes"] > 0 == table["custom_diffusion"]["shared_bytes"]
    assert table["custom_diffusion"]["bytes"] > table["xti"]["bytes"]
    assert json.loads((made.out / "comparison.json").read_text(encoding="utf-8"))["methods"] == json.loads(
        json.dumps(table)
    )


@pytest.mark.slow
def test_the_table_and_the_figure(comparison):
    made, table = comparison
    text = (made.out / "comparison.md").read_text(encoding="utf-8")
    assert "`the command`" in text and "| xti: " in text and "100 [34, 100]" in text and "The claim" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 3  # costs, densities, scores: no ragged row
    row = next(line for line in lines if line.startswith("| xti |"))
    assert row.split("|")[2].strip() == f"{table['xti']['density']:.2f}" and "density" not in table["elite"]
    svg = ElementTree.fromstring((made.out / "comparison.svg").read_text(encoding="utf-8"))
    names = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert [name for name in names if name in table] == list(table)


@pytest.mark.slow
def test_the_sheet_has_a_row_per_contender_below_the_references(comparison):
    made, table = comparison
    sheet, cell, left = Image.open(made.out / "comparison.png"), 128 + 6, 120 + 6
    for r, name in enumerate(table):
        top = sheet.height - (len(table) - r) * cell
        for c, task in enumerate(("both", "both", "swap", "swap")):
            painted = Image.open(made.out / "cells" / name / f"pictures/{task}/{c % 2:04d}_result.png")
            shown = sheet.crop((left + c * cell, top, left + c * cell + 128, top + 128))
            assert np.array_equal(np.asarray(shown), np.asarray(painted.resize((128, 128)))), (name, task)
    assert sheet.height > (2 + len(table)) * cell and sheet.width == left + 4 * cell


@pytest.mark.slow
def test_finished_cells_are_not_made_again(comparison, monkeypatch):
    made, table = comparison

    def forbidden(*arguments, **options):
        raise AssertionError("made again")

    monkeypatch.setattr(compare, "generate", forbidden)
    monkeypatch.setattr("escdiff.training.method.module.MethodModule.training_step", forbidden)
    names = ("models", "out", "contenders", "references", "per_reference", "quick", "data")
    options = {name: getattr(made, name) for name in names}
    again = compare.Comparison(**options).run()
    assert again == table
    more = compare.Comparison(**options | {"references": 3, "contenders": {"escdiff": made.contenders["escdiff"]}})
    with pytest.raises(AssertionError, match="made again"):
        more.run()


@pytest.mark.slow
def test_the_same_concepts_split_by_gates(comparison, monkeypatch):
    made, _ = comparison
    monkeypatch.setattr("escdiff.training.method.module.MethodModule.training_step", None)
    options = {name: getattr(made, name) for name in ("models", "out", "references", "per_reference", "quick", "data")}
    chosen = {"xti": made.contenders["xti"]}
    compare.Comparison(**options, contenders=chosen, split="gates").run()
    assert "by the gates" in (made.out / "comparison.md").read_text(encoding="utf-8")
    by_hand, by_gates = (sorted((made.out / cells / "xti").rglob("*.png")) for cells in ("cells", "cells-gates"))
    different = [a.read_bytes() != b.read_bytes() for a, b in zip(by_hand, by_gates, strict=True)]
    assert any(different) and not all(different)  # what is asked for whole is not split


@pytest.mark.slow
def test_another_encoder_concerns_only_who_uses_it(comparison):
    made, _ = comparison
    before = {name: made.settings(name) for name in made.contenders}
    old, made.models.fingerprints = made.models.fingerprints, ("x", "other")
    changed = {name for name in made.contenders if made.settings(name) != before[name]}
    made.models.fingerprints = ("other", "y")
    assert changed == {"escdiff"} and all(made.settings(name) != before[name] for name in made.contenders)
    made.models.fingerprints = old


@pytest.mark.slow
def test_what_the_gates_mix_depends_on_whose_gates_they_are(comparison, monkeypatch):
    made, _ = comparison
    options = {name: getattr(made, name) for name in ("models", "out", "references", "per_reference", "quick", "data")}
    by_gates, seen = compare.Comparison(**options, contenders=made.contenders, split="gates"), {}

    def note(home, task, digest):
        seen.setdefault(home.name, set()).add(digest)
        return 1.0, []

    monkeypatch.setattr(compare, "load_task", note)
    for fingerprints in (("x", "y"), ("x", "other")):
        monkeypatch.setattr(made.models, "fingerprints", fingerprints)
        for comparing in (by_gates, made):
            comparing.paint("xti", "both", lambda count: None)
    assert {home: len(digests) for home, digests in seen.items()} == {"xti": 3}  # by hand it is the same one


@pytest.mark.slow
def test_learned_encoders_depend_on_what_they_learned_from(comparison, tmp_path):
    made, _ = comparison
    make_still_life(tmp_path / "world", 8, StillLifeOptions(seed=2, size=64))
    make_still_life(tmp_path / "rendered", 8, StillLifeOptions(seed=1, size=64))
    options = {name: getattr(made, name) for name in ("models", "out", "contenders", "quick", "data")}
    digests = lambda **other: {  # noqa: E731
        name: compare.Comparison(**options | other).settings(name, "learn") for name in made.contenders
    }
    before = digests()
    for other in ({"data": str(tmp_path / "world")}, {"samples": 8}):
        after = digests(**other)
        assert {name for name in before if before[name] != after[name]} == {"elite"}
    before = digests(data=str(tmp_path / "rendered"))
    make_still_life(tmp_path / "rendered", 48, StillLifeOptions(seed=1, size=64))
    after = digests(data=str(tmp_path / "rendered"))
    assert {name for name in before if before[name] != after[name]} == {"elite"}


@pytest.mark.slow
def test_data_that_are_rendered_first_have_the_same_name_before_and_after(comparison, tmp_path):
    made, _ = comparison
    options = {name: getattr(made, name) for name in ("models", "out", "contenders", "quick")}
    first, again = (compare.Comparison(**options, data=str(tmp_path / "new"), samples=8) for _ in range(2))
    assert first.settings("elite") == again.settings("elite")


@pytest.mark.slow
def test_the_u_net_is_as_it_was(comparison, tiny_folder):
    made, _ = comparison
    stock = load_backbone(str(tiny_folder)).unet
    with torch.no_grad():
        arguments = torch.ones(1, 8, 16, 16), 500, torch.ones(1, 77, 32)
        assert torch.equal(made.models.backbone.unet(*arguments).sample, stock(*arguments).sample)


def test_all_contenders_see_the_same_requests_and_more_references_begin_with_the_same():
    few, many = comparison_cases.draw_references(0, 3), comparison_cases.draw_references(0, 6)
    assert many[:3] == few and comparison_cases.draw_references(1, 3) != few
    for task in comparison_cases.TASKS[:3]:
        short, long = (comparison_cases.draw_cases(task, factors, 2, 0) for factors in (few, many))
        assert long[:6] == short and [case.references for case in short] == [(0,), (0,), (1,), (1,), (2,), (2,)]
    pairs = [case.references for case in comparison_cases.draw_cases("swap", few, 1, 0)]
    assert pairs == [(0, 1), (1, 2), (2, 0)]
    for case in comparison_cases.draw_cases("swap", few, 1, 0):
        assert case.request.expected.shape == few[case.references[0]].shape
        assert case.request.expected.material == few[case.references[1]].material


def test_requests_in_the_words_of_each_kind(tiny_unet):
    def make(space, *attributes):
        size = space.num_layers, space.num_stages
        vectors = {a: torch.randn(*size, 1, 4) for a in attributes}
        return Concept(vectors, {a: torch.zeros(1, 4) for a in attributes}, space, "tiny", "abc")

    p, p_plus = ConditioningSpace.p(tiny_unet), ConditioningSpace.p_plus(tiny_unet)
    swap = "a photo of a <appearance> <shape> on a navy background"
    kinds = {
        "ours": ([make(p_plus, "shape", "appearance") for _ in range(2)], swap),
        "layers": ([make(p_plus, "concept") for _ in range(2)], "a photo of a <concept> on a navy background"),
        "whole": ([make(p, "concept") for _ in range(2)], swap),
        "matte": ([make(p_plus, "color", "style", "object", "layout") for _ in range(2)], swap),
    }
    for name, (concepts, expected) in kinds.items():
        prompt, concept = comparison_cases.in_their_words("swap", swap, concepts)
        assert prompt == expected, name
        for task, text in (("shape", "a red <shape>"), ("both", "a photo of <concept> on a navy background")):
            prompt, own = comparison_cases.in_their_words(task, text, concepts[:1])
            assert all(word in own.placeholders() for word in prompt.split() if word.startswith("<")), name
        assert all(word in concept.placeholders() for word in expected.split() if word.startswith("<")), name


@pytest.mark.slow
def test_captions_say_what_is_expected_and_read_no_reference(comparison, monkeypatch):
    made, _ = comparison
    asked = []
    monkeypatch.setattr(Models, "paint", lambda self, requests, references, *_: asked.append((requests, references)))
    cases = comparison_cases.draw_cases("swap", made.factors, 1, 0)
    made._pictures("words_full", "swap", cases, None)
    ((requests, references),) = asked
    assert references == [{}, {}] and [r.expected for r in requests] == [case.request.expected for case in cases]
    for request in requests:
        shown = request.expected
        assert "<" not in request.prompt and all(
            word in request.prompt for word in (shown.shape.family, shown.material.color, shown.scene.background)
        )


def fake(value, seconds):
    found = {key: {"mean": value, "low": value, "high": value, "n": 3} for keys in GROUPS.values() for key in keys}
    return {"about": "x", "steps": 1, "seconds": seconds, "seconds_per_picture": 1.0, "bytes": 1.0, "shared_bytes": 0,
            "parameters": 1, "scores": found}  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "theirs", "holds"),
    [((0.9, 0.01), (0.8, 100), True), ((0.8, 0.01), (0.9, 100), False), ((0.9, 1), (0.8, 100), False)],
)
def test_the_claim_is_judged_not_assumed(ours, theirs, holds):
    text = "\n".join(claim({"escdiff": fake(*ours), "xti": fake(*theirs)}))
    assert ("does not hold" in text) != holds
    assert claim({"escdiff": fake(*ours)}) == []


def test_figures_of_one_method_and_of_instant_ones(tmp_path):
    numbers = dict.fromkeys(("references", "pictures", "sampling_steps", "guidance", "seed", "scale"), 1)
    about = {"date": "2026-01-01", "backbone": "x", "quick": False, "split": "hand", "command": "c", **numbers}
    table = {"one": fake(0.5, 0.0)}
    draw_figure(table, tmp_path / "figure.svg")
    assert ElementTree.parse(tmp_path / "figure.svg") and "| one: x |" in report(table, about)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "xti,ball"], "--methods names ball"),
        (["--methods", ","], "--methods is empty"),
        (["--references", "1"], "--references is 1"),
        (["--references", "-3"], "--references is -3"),
        (["--pictures", "0"], "--pictures is 0"),
        (["--scale", "0"], "--scale is 0"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, arguments, said):
    result = CliRunner().invoke(door.app, ["compare", "--out", str(tmp_path / "out"), *arguments])
    assert said in str(result.exception) and "\n" not in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_all_methods_have_their_file_and_both_budgets():
    from escdiff.support.config.folder import configs_folder

    assert list(choose("all")) == list(CONTENDERS) and list(choose("xti, ti")) == ["ti", "xti"]
    for contender in CONTENDERS.values():
        assert not contender.method or (configs_folder() / "method" / f"{contender.method}.yaml").is_file()
        assert contender.steps[0] <= contender.steps[1] and contender.learn[0] <= contender.learn[1]
    every = [*CONTENDERS.values(), *(contender for task in scenes.CONTENDERS.values() for contender in task.values())]
    used = {contender.method for contender in every} - {""}
    assert used == {path.stem for path in (configs_folder() / "method").glob("*.yaml")}


@pytest.mark.parametrize(
    ("name", "asked", "rendered"),
    [("elite", 20_000, 20_000), ("fastcomposer", 20_000, 8_000), ("fastcomposer", 500, 500)],
)
def test_who_learns_from_scenes_renders_no_more_than_its_own_recipe(name, asked, rendered, tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr(customize, "run", lambda *arguments: runs.append(arguments))
    customize.learn(CONTENDERS[name], tmp_path, {}, 1, "world", asked)
    assert [data["num_samples"] for *_, data, _ in runs] == [rendered]
