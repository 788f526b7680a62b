"""The encoder's training: what is trained and saved, exact resuming, its parts one by one."""

import copy
import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import ranks
import torch
from lightning.pytorch.utilities import rank_zero_only
from transformers import CLIPVisionConfig, CLIPVisionModel

from escdiff.backbone import load_backbone, unet_feed
from escdiff.backbone.branches import branch_parameters, set_branches
from escdiff.conditioning import ConditioningSpace, bind
from escdiff.conditioning.grid import expand, pack
from escdiff.conditioning.layer_feed import LayerFeed
from escdiff.conditioning.tied_layers import ROWS_AGAIN, encode_tied, random_runs, tie
from escdiff.data.index import Index
from escdiff.data.shards import encode_png, write_shard
from escdiff.encoder import ConceptEncoder
from escdiff.mini.data.still_life import StillLifeOptions, make_still_life
from escdiff.pipelines.generate import generate
from escdiff.support.config.backbone import BackboneConfig
from escdiff.support.config.data import DataConfig
from escdiff.support.config.encoder import EncoderConfig
from escdiff.support.config.loss import LossConfig
from escdiff.support.config.train import SpaceConfig, TrainConfig
from escdiff.support.config.trainer import OptimConfig, TrainerConfig
from escdiff.support.errors import UserError
from escdiff.training.encoder import module as encoder_module
from escdiff.training.encoder.setup import build
from escdiff.training.loop import prepare_data as feeding
from escdiff.training.loop import run
from escdiff.training.loop.timesteps import draw_timesteps


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "world"
    make_still_life(folder, 96, StillLifeOptions(seed=1))
    return folder


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision")
    torch.manual_seed(0)
    settings = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
    )
    CLIPVisionModel(settings).save_pretrained(folder)
    return folder


@pytest.fixture
def config(tmp_path, data, vision, tiny_folder):
    encoder = EncoderConfig(vision=str(vision), features=32, branch_rank=2, tokens={"shape": 1, "appearance": 2})
    trainer = TrainerConfig(
        max_steps=6, accelerator="cpu", devices=1, log_steps=2, save_steps=3, sample_steps=6, val_steps=0
    )
    return TrainConfig(
        recipe="encoder", seed=5, run_dir=str(tmp_path / "run"), backbone=BackboneConfig(name=str(tiny_folder)),
        encoder=encoder, data=DataConfig(root=str(data), batch_size=4, val_fraction=0.0, num_workers=0),
        optim=OptimConfig(lr=1e-3, warmup=2, ema=0.9), trainer=trainer,
        loss=LossConfig(draws=2, cells=4, exact_from=0.5),
    )  # fmt: skip


def checkpoint(config) -> dict:
    return torch.load(run.RunFolder(config.run_dir).newest_checkpoint(), weights_only=True)


class StopAt(run.L.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step == self.step


@pytest.mark.slow
def test_train_resume_export(config, tmp_path, tiny_folder):
    config.data.root, config.loss.draws = str(tmp_path / "few"), 1
    make_still_life(tmp_path / "few", 24, StillLifeOptions(seed=1))  # four steps to an epoch
    run.train(config)
    straight = checkpoint(config)
    assert not [name for name in straight["state_dict"] if "unet" in name or "vision" in name]
    assert {name.split(".")[0] for name in straight["state_dict"]} == {"encoder", "branches"}
    assert (tmp_path / "run" / "samples" / "step-000000006.png").stat().st_size > 1000

    config.run_dir = str(tmp_path / "parts")
    run.train(config, [StopAt(3)])  # within the epoch
    run.train(config, [StopAt(4)])  # at its end
    run.train(config)
    parts = checkpoint(config)
    assert parts["global_step"] == 6
    for name, value in straight["state_dict"].items():
        assert torch.equal(value, parts["state_dict"][name]), name
    for a, b in zip(straight["optimizer_states"], parts["optimizer_states"], strict=True):
        for number, state in a["state"].items():
            assert all(torch.equal(v, b["state"][number][k]) for k, v in state.items())
    shadows = [
        next(state for name, state in saved["callbacks"].items() if name.startswith("Average"))["shadow_params"]
        for saved in (straight, parts)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*shadows, strict=True))

    backbone = load_backbone(str(tiny_folder))
    encoder = ConceptEncoder.from_pretrained(tmp_path / "run" / "export", backbone)
    learned = dict(encoder.named_parameters())
    names = [name for name in straight["state_dict"] if name.removeprefix("encoder.") in learned]
    moved = [n for n in names if not torch.allclose(learned[n.removeprefix("encoder.")], straight["state_dict"][n])]
    assert moved  # the export holds the averaged weights, not the last ones
    assert any("lora" in name for name, _ in backbone.unet.named_parameters())


def module_of(config):
    module, data, *_ = build(config)
    data.setup()
    batch = data.add_pixels(next(iter(data.train_dataloader())), data.train_set)
    module.trainer = SimpleNamespace(global_step=0, log_every_n_steps=10)
    return module, batch


@pytest.mark.parametrize("words_step", [True, False])
@pytest.mark.parametrize("branches", ["lora", "routed"])
def test_gradients_reach_the_encoder_and_only_it(config, monkeypatch, words_step, branches):
    config.encoder.branches = branches
    monkeypatch.setattr(encoder_module.EncoderModule, "global_step", 0 if words_step else 2)
    module, batch = module_of(config)
    module.on_fit_start()
    out = module.training_step(batch, 0)
    out["loss"].backward()
    module.on_fit_end()
    if not words_step:
        assert out["error"].shape == out["timesteps"].shape == (8,)
    missing = [name for name, p in module.named_parameters() if p.grad is None]
    assert not missing  # DDP wants every parameter in every step
    branches = {id(p) for p in module.branches}
    for part in (
        module.backbone.unet,
        module.backbone.text_encoder,
        module.backbone.vae,
        module.encoder.vision,
    ):
        assert all(p.grad is None for p in part.parameters() if id(p) not in branches)


@pytest.mark.slow
def test_a_run_with_routing_can_be_painted_with(config, tiny_folder):
    config.encoder.branches, config.trainer.max_steps = "routed", 3
    config.space.stages, config.trainer.sample_steps = 2, 3
    run.train(config)
    backbone = load_backbone(str(tiny_folder))
    encoder = ConceptEncoder.from_pretrained(Path(config.run_dir) / "export", backbone)
    assert encoder.config.branches == "routed" and hasattr(backbone.unet, "routing")
    concept = encoder.encode(torch.zeros(3, 64, 64))

    def painted(concept):
        return np.asarray(generate(backbone, ["a <concept>"], concept, steps=2)[0], int)

    with torch.no_grad():  # three steps of training move little: what acts at all acts visibly like this
        for name in ("shape", "appearance"):
            for weights in branch_parameters(backbone.unet, name):
                weights.mul_(100)
    picture = painted(concept.scaled(20))
    assert (picture == painted(concept.scaled(20))).all() and picture.std() > 1
    assert (picture != painted(concept.scaled(0))).any()  # the vectors act
    set_branches(backbone.unet, {})
    assert (picture != painted(concept.scaled(20))).any()  # and so do the branches


def grid_of(module, texts, residuals, stage):
    """The conditioning (B, L, T, D) that the U-Net's layers are given."""
    module.on_fit_start()
    module.condition(texts, residuals, stage)
    grid = torch.stack(module._feed.layers._slices, 1)
    module.on_fit_end()
    return grid


def test_drop_keeps_placeholders(config):
    config.loss = LossConfig(drop_text=1.0, drop_shape=1.0, drop_appearance=0.0)
    module, _ = module_of(config)
    texts, dropped = module.drop(["a photo of a <appearance> <shape> on a navy background", "one red <shape>, big"])
    assert texts == ["<appearance> <shape>", "<shape>,"]
    assert dropped["shape"].all() and not dropped["appearance"].any()


def test_stages_select_each_samples_own(config, monkeypatch):
    monkeypatch.setattr(encoder_module.EncoderModule, "global_step", 5)  # all cells
    config.space = SpaceConfig(stages=2)
    config.encoder.branch_rank = 0
    module, batch = module_of(config)
    features = module.features(batch, module.pairs_due)
    residuals = {a: module.encoder.residuals(a, features[a]) for a in ("shape", "appearance")}
    stage = torch.tensor([0, 1, 1, 0])
    grid = grid_of(module, batch["prompt"], residuals, stage)
    vectors = {f"<{a}>": module.encoder.vectors(a, r) for a, r in residuals.items()}
    whole = expand(module.backbone.prompts.encode(batch["prompt"], vectors), 16, 2)
    for row, s in enumerate(stage):
        assert torch.allclose(grid[row], whole[row, :, s], atol=1e-5)


def test_timesteps_are_stratified_and_biased():
    torch.manual_seed(0)
    timesteps, stage = draw_timesteps(4000, 4, 0.0)
    assert stage.eq(0).all() and timesteps.min() >= 0 and timesteps.max() <= 999
    assert torch.equal(timesteps // 250, torch.arange(4).expand(4000, 4))
    biased, _ = draw_timesteps(4000, 4, 1.0)
    assert biased.float().mean() == pytest.approx(1000 * 2 / 3, rel=0.01)


def test_timesteps_stay_in_their_stage(tiny_unet):
    space = ConditioningSpace.build(tiny_unet, stages=(0, 300, 1000))
    timesteps, stage = draw_timesteps(2000, 3, 0.0, space)
    assert torch.equal(space.stage_of(timesteps), stage[:, None].expand(-1, 3))
    assert stage.float().mean() == pytest.approx(0.7, abs=0.04)


def test_random_runs_cover_all_layers():
    for runs in (1, 2, 5, 16):
        run_L = random_runs(16, runs)
        assert run_L.unique().tolist() == list(range(runs)) and torch.equal(run_L, run_L.sort().values)


def test_tied_grid_is_the_grid_of_the_runs_means(tiny_backbone):
    prompts = tiny_backbone.prompts
    torch.manual_seed(0)
    vectors = {"<shape>": torch.randn(3, 16, 1, 1, 32), "<appearance>": torch.randn(3, 16, 1, 2, 32)}
    texts = ["a <appearance> <shape>", "one <shape>", "a plain thing"]
    exact = encode_tied(prompts, texts, vectors, 0)
    assert exact.shape == (3, 16, 77, 32)
    assert torch.allclose(exact, prompts.encode(texts, vectors)[:, :, 0], atol=1e-5)
    torch.manual_seed(1)
    run_L = random_runs(16, 3)
    torch.manual_seed(1)
    tied = encode_tied(prompts, texts, vectors, 3)
    means = {name: tie(value, run_L)[:, run_L] for name, value in vectors.items()}
    assert torch.allclose(tied, prompts.encode(texts, means)[:, :, 0], atol=1e-5)
    assert torch.allclose(tied[2], prompts.encode_plain(texts[2:])[0, 0], atol=1e-5)


def test_encoding_again_in_the_backward_pass_keeps_less_and_gives_the_same_gradients(tiny_backbone):
    torch.manual_seed(0)
    start, texts = torch.randn(2, 16, 1, 2, 32), ["a photo of one <shape>", "the <shape>"]

    def run(recompute):
        vectors, kept = start.clone().requires_grad_(), {}

        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            grid = encode_tied(tiny_backbone.prompts, texts, {"<shape>": vectors}, 0, recompute)
        grid.square().sum().backward()
        return grid, vectors.grad, sum(kept.values())

    (grid, gradient, kept), (same, again, least) = run(False), run(True)
    assert torch.allclose(grid, same, atol=1e-6) and torch.allclose(gradient, again, rtol=1e-4, atol=1e-5)
    assert least < kept / 20


@pytest.mark.parametrize("texts", [1, 3])
def test_few_rows_are_encoded_again_at_once_on_a_cpu(tiny_backbone, texts):
    rows, prompts = [], tiny_backbone.prompts
    vectors = {"<shape>": torch.randn(texts, 16, 1, 2, 32, requires_grad=True)}
    hook = prompts.towers[0].text_encoder.register_forward_pre_hook(
        lambda module, args: rows.append(len(args[0])) if torch.is_grad_enabled() else None
    )
    encode_tied(prompts, ["a photo of one <shape>"] * texts, vectors, 0, recompute=True).sum().backward()
    hook.remove()
    assert max(rows) == ROWS_AGAIN and sum(rows) >= 2 * 16 * texts


def test_the_text_is_encoded_again_where_memory_counts(config):
    config.loss = LossConfig(draws=1, cells=2)
    module, _ = module_of(config)
    assert not module.recomputes  # a small U-Net, whose step the text is much of
    module.backbone.unet.enable_gradient_checkpointing()
    assert module.recomputes
    config.loss = LossConfig(draws=1, cells=0)
    assert module_of(config)[0].recomputes


@pytest.mark.parametrize("checkpointing", [False, True])
def test_feeding_layers_equals_the_packed_path(tiny_backbone, checkpointing):
    unet, space = copy.deepcopy(tiny_backbone.unet), tiny_backbone.p_plus()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    torch.manual_seed(0)
    grid = torch.randn(2, 16, 77, 32, requires_grad=True)
    noisy, timesteps = torch.randn(4, 8, 16, 16), torch.tensor([5, 500, 700, 990])
    with bind(unet, space):
        packed = pack(grid).repeat_interleave(2, 0)
        expected = unet(noisy, timesteps, encoder_hidden_states=packed).sample
        expected.square().sum().backward()
    gradient, grid.grad = grid.grad.clone(), None
    feed = LayerFeed(unet, space)
    output = unet(noisy, timesteps, encoder_hidden_states=feed.load(grid, 2)).sample
    output.square().sum().backward()
    assert torch.equal(output, expected)
    assert torch.allclose(grid.grad, gradient, rtol=1e-4, atol=1e-6)
    feed.clear()
    plain = torch.randn(4, 77, 32)
    stock = tiny_backbone.unet(noisy, timesteps, encoder_hidden_states=plain).sample
    assert torch.equal(unet(noisy, timesteps, encoder_hidden_states=plain).sample, stock)
    feed.remove()


@pytest.mark.parametrize("words", [True, False])
def test_the_last_part_of_a_training_encodes_every_layer(config, monkeypatch, words):
    config.loss = LossConfig(draws=1, cells=2, words_only=0.5, exact_from=0.0)
    module, batch = module_of(config)
    if not words:  # as photos have none
        batch = {name: value for name, value in batch.items() if not name.endswith("_words")}
    runs = []
    encode = unet_feed.encode_tied
    monkeypatch.setattr(unet_feed, "encode_tied", lambda *given: runs.append(given[3]) or encode(*given))
    monkeypatch.setattr(encoder_module.EncoderModule, "global_step", 0)
    module.on_fit_start()
    module.training_step(batch, 0)
    assert runs == ([] if words else [0])


def test_tokens_are_of_one_tower_only(config, vision, tmp_path):
    """A tower with the same weights and another activation gives other tokens."""
    other = shutil.copytree(vision, tmp_path / "other")
    settings = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps({**settings, "hidden_act": "relu"}), encoding="utf-8")
    config.data.tokens = "auto"
    keys = []
    for folder in (vision, other):
        config.encoder.vision = str(folder)
        keys.append(build(config)[1].tokens)
    assert keys[0] != keys[1] and keys[0].split("-")[0] == keys[1].split("-")[0]


def test_tokens_are_for_the_encoder_on_still_life(config, tmp_path):
    config.data.tokens, config.recipe = "auto", "method"
    with pytest.raises(UserError, match=r"data.tokens=auto given with recipe=method"):
        run.train(config)
    config.recipe, root = "encoder", tmp_path / "photos"
    root.mkdir()
    picture = encode_png(np.zeros((64, 64, 3), np.uint8))
    made = write_shard(root / "p-0.tar", [{"__key__": f"{i}", "png": picture} for i in range(8)])
    Index("photos", shards=[made], planned=1).save(root)
    config.data.root = str(root)
    with pytest.raises(UserError, match=r"data.tokens=auto given with photos .*set data.tokens=null"):
        run.train(config)


def test_pairs_come_every_other_step(config, monkeypatch):
    module, batch = module_of(config)
    for step, expected in ((0, True), (1, False), (2, True)):
        monkeypatch.setattr(encoder_module.EncoderModule, "global_step", step)
        features = module.features(batch, module.pairs_due)
        assert ("target_shape" in features) == expected
        if expected:
            with_pairs = features
    assert torch.allclose(with_pairs["shape"], features["shape"], atol=1e-5)


class Keep(L.Callback):
    def __init__(self, path):
        self.path = path

    def on_train_end(self, trainer, module):
        torch.save({name: p.detach() for name, p in module.named_parameters() if p.requires_grad}, self.path)


def keep(folder, rank):
    return [Keep(folder / f"{rank}.pt")]


@pytest.mark.slow
def test_two_processes_learn_the_same_and_something(config, tmp_path):
    """Through words alone, all losses, adapters, tied and untied layers."""
    config.loss.words_only, config.trainer.sample_steps = 0.3, 0
    codes = ranks.wait(ranks.start(config, 2, tmp_path, partial(keep, tmp_path)), 300)
    assert codes == [0, 0], (tmp_path / "rank0.txt").read_text(encoding="utf-8")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    config.trainer.max_steps, config.run_dir = 1, str(tmp_path / "alone")
    run.train(config, keep(tmp_path, "alone"))
    other = torch.load(tmp_path / "alone.pt")
    assert sum(not torch.equal(first[name], other[name]) for name in first) > len(first) / 2


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["latents", "clip"])
def test_other_ranks_wait_for_what_rank_zero_encodes(config, data, tmp_path, monkeypatch, cache):
    root = shutil.copytree(data, tmp_path / "world", ignore=lambda *_: ["latents", "clip"])
    config.data.root, config.data.tokens, waited = str(root), "auto" if cache == "clip" else None, []

    def encode(seconds):
        waited.append(seconds)
        with monkeypatch.context() as alone:
            alone.setattr(rank_zero_only, "rank", 0)
            build(config)

    monkeypatch.setattr(feeding, "time", SimpleNamespace(sleep=encode))
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    _, made, *_ = build(config)
    assert waited == [2] and (root / cache).is_dir()
    batch = next(iter(made.train_dataloader()))
    assert "latent" in batch and ("shape_tokens" in batch) == (cache == "clip")


def test_stored_tokens_give_the_features_of_the_pictures(config, data):
    config.data.reframed = config.data.one_reference = 0.0
    config.encoder.shape_depths, config.encoder.appearance_depths = [1, 3], [0]  # and nobody reads depth 2
    module, batch = module_of(config)
    config.data.tokens = "auto"
    stored, made, *_ = build(config)
    stored.trainer = module.trainer
    stored.load_state_dict(module.state_dict())
    tokens = next(iter(made.train_dataloader()))
    assert tokens["key"] == batch["key"] and "shape_ref" not in tokens
    tokens |= {name: torch.ones_like(tokens[name]) for name in encoder_module.MASKS}
    batch |= {name: torch.ones_like(batch[name]) for name in encoder_module.MASKS}
    stored.encoder.vision.forward = None  # nobody may call it
    live, read = module.features(batch, module.pairs_due), stored.features(tokens, module.pairs_due)
    assert live.keys() == read.keys() and "target_shape" in read
    for name in live:
        assert torch.allclose(live[name], read[name], atol=0.02), name
    assert module.features(batch, False).keys() == stored.features(tokens, False).keys() == {"shape", "appearance"}


@pytest.mark.slow
def test_operations_are_counted_anew_when_the_kind_of_step_changes(config, tmp_path):
    config.loss = LossConfig(draws=8, cells=1, words_only=0.3, exact_from=0.6)  # two steps of each
    run.train(config, [StopAt(3)])
    run.train(config)
    lines = [
        json.loads(line) for line in run.RunFolder(config.run_dir).metrics.read_text(encoding="utf-8").splitlines()
    ]
    words, tied, exact = (line["throughput/tflops"] / line["throughput/samples_per_s"] for line in lines)
    assert words < 0.8 * tied and tied < 0.95 * exact


@pytest.mark.slow
def test_trainings_on_stored_tokens_resume_exactly(config, tmp_path):
    config.data.tokens, config.data.batch_size = "auto", 16
    run.train(config)
    straight = checkpoint(config)
    config.run_dir = str(tmp_path / "parts")
    run.train(config, [StopAt(3)])
    run.train(config)
    parts = checkpoint(config)
    assert all(torch.equal(value, parts["state_dict"][name]) for name, value in straight["state_dict"].items())
    assert (tmp_path / "parts" / "samples" / "step-000000006.png").is_file()  # painted from pictures all the same
