import numpy as np
import pytest
import torch

from escdiff.data.latent_cache import encode_dataset
from escdiff.data.photos import PhotoDataModule
from escdiff.data.resumable import Place, PositionSampler
from escdiff.mini.data import pairing
from escdiff.mini.data.arrays import LABELS, StillLifeArrays
from escdiff.mini.data.pairing import SwapPairs
from escdiff.mini.data.swaps import EncoderDataModule
from escdiff.support.errors import UserError


def module(folder, **options) -> EncoderDataModule:
    return EncoderDataModule(folder, **{"batch_size": 8, "val_fraction": 0.2, **options})


def keys(batches) -> list[list[str]]:
    return [list(batch["key"]) for batch in batches]


def test_triples_share_what_they_should(still_life_folder):
    data = module(still_life_folder, one_reference=0, shape_only=0, appearance_only=0)
    data.setup()
    arrays, pairs = data.train_set.arrays, data.train_set.pairs
    rng = np.random.default_rng(0)
    for row in pairs.targets:
        shape_row, look_row = pairs.references(row, rng)
        target, shape, look = (arrays.factors[i] for i in (row, shape_row, look_row))
        assert shape.shape == target.shape and shape.material != target.material
        assert look.material == target.material and look.shape != target.shape
        assert len({target.scene, shape.scene, look.scene}) == 3
        for factors in (target, shape, look):
            assert factors.shape.family not in data.excluded["exclude_families"]
            assert factors.material.pattern not in data.excluded["exclude_patterns"]


def test_batches_hold_what_the_contract_says(still_life_folder):
    data = module(still_life_folder)
    batch = next(iter(data.train_dataloader()))
    for name in ("pixels", "shape_ref", "appearance_ref"):
        assert batch[name].shape == (8, 3, 32, 32) and batch[name].abs().max() <= 1
    for name in ("mask", "shape_mask", "appearance_mask"):
        assert batch[name].shape == (8, 1, 32, 32) and set(batch[name].unique().tolist()) <= {0.0, 1.0}
    arrays = data.train_set.arrays
    rows = [int(key) for key in batch["key"]]
    assert torch.equal(batch["pixels"], arrays.pixels(rows)) and torch.equal(batch["mask"], arrays.masks(rows))
    assert batch["uses_shape"].tolist() == ["<shape>" in prompt for prompt in batch["prompt"]]
    for prompt, row in zip(batch["prompt"], rows, strict=True):
        if "background" in prompt:
            assert f"{arrays.factors[row].scene.background} background" in prompt


def test_one_reference_is_the_target_framed_anew(still_life_folder):
    batch = next(iter(module(still_life_folder, one_reference=1, shape_only=0, appearance_only=0).train_dataloader()))
    assert torch.equal(batch["shape_ref"], batch["appearance_ref"])
    assert not torch.equal(batch["shape_ref"], batch["pixels"])
    assert batch["uses_shape"].all() and batch["uses_appearance"].all()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_references_are_framed_anew_together_with_their_masks(still_life_folder, share):
    data = module(still_life_folder, one_reference=0, reframed=share)
    batch = next(iter(data.train_dataloader()))
    arrays = data.train_set.arrays
    pixels, masks = (part(range(len(arrays))) for part in (arrays.pixels, arrays.masks))
    for attribute in ("shape", "appearance"):
        for picture, mask in zip(batch[f"{attribute}_ref"], batch[f"{attribute}_mask"], strict=True):
            source = (pixels - picture).abs().flatten(1).mean(1).argmin()
            assert torch.equal(pixels[source], picture) == torch.equal(masks[source], mask) == (share == 0)
            inside, outside = (picture * m for m in (mask, 1 - mask))
            assert mask.any() and not torch.equal(inside, outside)
    again = next(iter(module(still_life_folder, one_reference=0, reframed=share).train_dataloader()))
    assert torch.equal(again["shape_ref"], batch["shape_ref"])


def test_latents_take_the_place_of_pixels(still_life_folder):
    encode_dataset(still_life_folder, lambda p: torch.nn.functional.avg_pool2d(p, 8), "mean")
    batch = next(iter(module(still_life_folder, latents="mean").train_dataloader()))
    arrays = StillLifeArrays(still_life_folder)
    wanted = torch.nn.functional.avg_pool2d(arrays.pixels([int(key) for key in batch["key"]]), 8)
    assert "pixels" not in batch and torch.allclose(batch["latent"], wanted, atol=1e-3)


def test_epochs_are_new_orders_of_all_targets(still_life_folder):
    data = module(still_life_folder, batch_size=1)
    first, again = keys(data.train_dataloader()), keys(data.train_dataloader())
    data.set_epoch(1)
    second = keys(data.train_dataloader())
    assert first == again != second
    assert sorted(first) == sorted(second) and len(first) == len(data.train_set) == data.steps_per_epoch()
    other = keys(module(still_life_folder, batch_size=1, seed=1).train_dataloader())
    assert sorted(other) == sorted(first) and other != first


def test_workers_change_nothing(still_life_folder):
    alone = list(module(still_life_folder).train_dataloader())
    shared = list(module(still_life_folder, num_workers=2).train_dataloader())
    assert keys(alone) == keys(shared)
    for a, b in zip(alone, shared, strict=True):
        assert a["prompt"] == b["prompt"] and torch.equal(a["shape_ref"], b["shape_ref"])


def test_ranks_share_the_same_global_batches():
    def order(world, batch):
        ranks = [list(PositionSampler(50, batch, rank, world)) for rank in range(world)]
        return [sorted(r.first + i for r in step for i in range(r.count)) for step in zip(*ranks, strict=True)]

    assert order(1, 8) == order(2, 4) == order(4, 2)


def test_a_place_is_found_again_under_another_split_of_the_batch():
    sampler = PositionSampler(50, 4, rank=1, world=2)
    sampler.start = Place(3, 24)
    requests = list(sampler)
    assert [(r.epoch, r.first) for r in requests] == [(3, 28), (3, 36), (3, 44)]
    assert requests[-1].after == Place(3, 48) and len(sampler) == 6
    sampler.start = requests[-1].after
    assert next(iter(sampler))[:2] == (4, 4)


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_training_sees_exactly_the_samples_it_would_have(still_life_folder, tmp_path, fit, workers):
    def data():
        return module(still_life_folder, num_workers=workers)

    per_epoch = data().steps_per_epoch()
    steps = 2 * per_epoch + 3
    whole = fit(data(), tmp_path, steps, every=1)
    assert len(whole.seen) == steps
    for at in {1, per_epoch - 1, per_epoch, per_epoch + 2, 2 * per_epoch}:
        checkpoint = next(tmp_path.glob(f"*step={at}.ckpt"))
        rest = fit(data(), tmp_path / str(at), steps, resume=checkpoint)
        assert rest.seen == whole.seen[at:], at
        assert torch.equal(rest.weight, whole.weight)


def test_other_data_start_the_next_epoch_with_a_warning(still_life_folder, caplog):
    data = module(still_life_folder)
    data.note({"position": [2, 16]})
    state = data.state_dict()
    same, other = module(still_life_folder), module(still_life_folder, seed=1)
    same.load_state_dict(state)
    other.load_state_dict(state)
    assert same.place == Place(2, 16) and other.place == Place(3, 0)
    assert "seed was 0, is 1" in caplog.text


def test_validation_groups_are_never_trained_on(still_life_folder):
    data = module(still_life_folder, batch_size=4)
    held = {key for batch in keys(data.val_dataloader()) for key in batch}
    trained = {key for batch in keys(data.train_dataloader()) for key in batch}
    groups = {int(key) // 16 for key in held}
    assert held and groups.isdisjoint(int(key) // 16 for key in trained)
    assert "position" not in next(iter(data.val_dataloader()))
    assert keys(data.val_dataloader()) == keys(data.val_dataloader())
    assert module(still_life_folder, val_fraction=0).val_dataloader() == []


def test_mistakes_are_refused(still_life_folder):
    with pytest.raises(UserError, match="fewer than one global batch"):
        module(still_life_folder, batch_size=1000).train_dataloader()
    with pytest.raises(UserError, match="no family 'unicorn'"):
        module(still_life_folder, exclude_families=["unicorn"]).setup()
    with pytest.raises(UserError, match="no swap triples"):
        module(still_life_folder, exclude_patterns=LABELS["pattern"][2]).setup()
    with pytest.raises(UserError, match="at most 1"):
        module(still_life_folder, one_reference=0.9, shape_only=0.2)
    with pytest.raises(UserError, match="no latents"):
        module(still_life_folder, latents="absent").setup()


def test_rows_and_columns_without_a_partner_are_no_targets():
    grid = {
        "group": [0] * 3,
        "shape_id": [0, 0, 1],
        "material_id": [0, 1, 0],
        "family": [0] * 3,
        "pattern": [0] * 3,
    }
    pairs = SwapPairs({name: np.array(values) for name, values in grid.items()})
    assert pairs.targets.tolist() == [0]
    assert pairs.references(0, np.random.default_rng(0)) == (1, 2)


def test_namesakes_stand_in_pairs_and_instances_have_numbers(still_life_folder):
    data = module(still_life_folder, namesakes=True, batch_size=8)
    data.setup()
    pairs, order = data.train_set.pairs, data.train_set.order(3)
    assert sorted(order) == pairs.targets.tolist() and (order == data.train_set.order(3)).all()
    assert (order != data.train_set.order(4)).any()
    families = data.train_set.arrays.labels["family"][order[: pairing.WINDOW]]
    names = [np.count_nonzero(families == name) for name in set(families.tolist())]
    paired = [a == b for a, b in zip(families[::2], families[1::2], strict=False)]
    assert sum(paired) == sum(number // 2 for number in names) and all(paired[: sum(paired)])
    batch = next(iter(data.train_dataloader()))
    factors = [data.train_set.arrays.factors[int(key)] for key in batch["key"]]
    for attribute, instances in (("shape", [f.shape for f in factors]), ("appearance", [f.material for f in factors])):
        numbers = batch[f"{attribute}_instance"].tolist()
        same = {(i, j) for i in range(8) for j in range(8) if instances[i] == instances[j]}
        assert same == {(i, j) for i in range(8) for j in range(8) if numbers[i] == numbers[j]}


def test_photo_module_gives_the_same_kind_of_batch(still_life_folder):
    photo = PhotoDataModule(still_life_folder, batch_size=8, size=32)
    photo.setup()
    batch = next(iter(photo.train_dataloader()))
    assert {"pixels", "shape_ref", "appearance_ref", "mask", "prompt", "key"} <= set(batch)
    assert batch["appearance_ref"].shape == (8, 3, 32, 32) and batch["mask"].shape == (8, 1, 32, 32)
