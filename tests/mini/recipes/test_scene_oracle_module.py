import pytest
import torch

from escdiff.mini.data.sheets import ABSENT, labels_of, sheet
from escdiff.mini.recipes.scene_oracle import SceneOracleModule, focal_loss, grid_targets, losses
from escdiff.mini.scene_oracle import SceneOracle, SceneOracleConfig, find_things, overlap
from escdiff.support.errors import UserError

SMALL = SceneOracleConfig(channels=(4, 4, 8, 8), blocks=(0, 0, 0, 0), width=8)
FAMILIES = len(SMALL.families)


@pytest.fixture
def labels():
    pictures = sheet(0, 0)
    spread = [(0.05, 0.2, 0.35, 0.7), (0.55, 0.3, 0.95, 0.8), (0.3, 0.7, 0.6, 0.98)]
    return labels_of(pictures, [spread[: len(picture.things)] for picture in pictures])


def test_what_the_grid_should_say_is_found_again(labels):
    targets = grid_targets(labels, FAMILIES, 16)
    owner = targets["owner"].clamp_min(0)
    own = lambda values: values.gather(1, owner[:, None, None].expand(-1, 1, values.shape[2], 16, 16))[:, 0]  # noqa: E731
    color = labels["color"][..., None, None].expand(-1, -1, -1, 16, 16)
    out = {"centre": 50 * (targets["centre"] - 0.9), "reach": own(targets["reach"]), "color": own(color)}
    for i, seen in enumerate(find_things(out, SMALL)):
        there = [k for k in range(3) if labels["family"][i, k] != ABSENT]
        assert {thing.family for thing in seen} == {SMALL.families[labels["family"][i, k]] for k in there}
        for k in there:
            (thing,) = [thing for thing in seen if SMALL.families.index(thing.family) == labels["family"][i, k]]
            assert thing.box == pytest.approx(labels["box"][i, k].tolist(), abs=1e-5)
            assert labels["color"][i, k, SMALL.colors.index(thing.color)] > 0
    assert (targets["owner"] == ABSENT).float().mean() > 0.8


def test_the_focal_loss_by_hand():
    logits, target = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 0.5]]]])
    half = torch.tensor(0.5)
    expected = -(0.5**2 * half.log() + 0.5**4 * 0.5**2 * half.log())
    assert focal_loss(logits, target).item() == pytest.approx(expected.item())


def test_overlap_by_hand():
    assert overlap((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert overlap((0, 0, 1, 1), (2, 2, 3, 3)) == 0 == overlap((0, 0, 0, 0), (0, 0, 0, 0))


def test_two_peaks_of_one_thing_count_once_and_doubt_counts_nothing():
    out = {"centre": torch.full((1, FAMILIES, 16, 16), -9.0), "reach": torch.full((1, 4, 16, 16), 0.2)}
    out["color"] = torch.zeros(1, len(SMALL.colors), 16, 16)
    out["centre"][0, 0, 8, 8], out["centre"][0, 1, 8, 8], out["centre"][0, 2, 2, 2] = 3.0, 2.0, -2.0
    assert [thing.family for thing in find_things(out, SMALL)[0]] == [SMALL.families[0]]


def test_a_few_steps_learn_a_sheet_and_what_is_not_shown_costs_nothing(labels):
    torch.manual_seed(0)
    oracle, pixels = SceneOracle(SMALL), torch.randn(16, 3, 128, 128)
    optimizer = torch.optim.AdamW(oracle.parameters(), 1e-2)
    first = None
    for _ in range(8):
        loss = sum(losses(oracle(pixels), labels).values())
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.7 * first
    out = oracle(pixels)
    out["pose"][labels["pose"] == ABSENT] += 100.0
    out["face"][labels["face_id"] == ABSENT] += 100.0
    assert sum(losses(out, labels).values()).isfinite()
    before, after = losses(oracle(pixels), labels), losses(out, labels)
    assert after["pose"].item() == pytest.approx(before["pose"].item(), rel=1e-4)


def test_the_whole_network_is_small_and_comes_back_from_its_files(tmp_path):
    module = SceneOracleModule(1e-3, 2)
    assert sum(p.numel() for p in module.oracle.parameters()) < 1e6
    oracle = SceneOracle(SMALL).eval()
    oracle.save_pretrained(tmp_path)
    again, pixels = SceneOracle.from_pretrained(tmp_path), torch.randn(2, 3, 128, 128)
    assert again.config == SMALL
    torch.testing.assert_close(again.read(pixels), oracle.read(pixels), atol=2e-2, rtol=2e-2)
    with pytest.raises(UserError, match="no scene_oracle in"):
        SceneOracle.from_pretrained(tmp_path / "none")
