import pytest
import torch

from escdiff.evaluation.bench.pictures import draw
from escdiff.evaluation.metrics.features import load_clip
from escdiff.evaluation.studies import layers
from escdiff.evaluation.studies.layers import (
    AttentionShare,
    Split,
    draw_figure,
    layer_order,
    prefers_second,
    split_prompts,
)


@pytest.fixture
def painter(bench):
    """Real pictures by the tiny model, as the attention of its own layers is looked at."""
    models = bench.models
    models.steps, models.guidance = 1, 2.0
    return models


def test_the_middle_comes_first_and_every_layer_once(tiny_backbone):
    space = tiny_backbone.p_plus()
    order = layer_order(space)
    assert space.cells[order[0]][0].startswith("mid_block")
    assert sorted(order) == list(range(space.num_layers))


def test_second_words_reach_the_innermost_layers_only(painter, monkeypatch):
    given = []

    def note(backbone, prompts, vectors, *rest, **options):
        given.append(vectors["<family>"][0, :, 0, 0])
        return [None] * len(prompts)

    monkeypatch.setattr(layers, "generate", note)
    monkeypatch.setattr(layers.AttentionShare, "result", lambda self: [])
    painter.shown = []
    painter.read = lambda pictures: [{"family": "mug", "color": "red"}] * len(pictures)
    split = split_prompts(painter, 3, seed=0)
    order = layer_order(painter.backbone.p_plus())
    for number, vectors in zip(split.inner, given, strict=True):
        changed = [i for i in range(len(vectors)) if not torch.equal(vectors[i], given[0][i])]
        assert changed == sorted(order[:number])
    assert [len(found) for found in split.shown.values()] == [len(split.inner)] * 2


@pytest.mark.slow
def test_clip_prefers_the_word_that_is_shown(mug):
    clip, (picture,) = load_clip("mini"), draw([mug])
    assert prefers_second(clip, [picture] * 2, "family", [("dog", "mug"), ("mug", "dog")]) == [1, 0]
    assert prefers_second(clip, [picture] * 2, "color", [("green", "red"), ("red", "green")]) == [1, 0]


def test_attention_share_is_of_the_two_positions(painter):
    backbone = painter.backbone
    space, unet = backbone.p_plus(), backbone.unet
    share = AttentionShare(unet, space, 1, 2)
    states = torch.randn(2, 77, backbone.width)
    states[:, 2] = states[:, 1]  # equal keys get equal attention
    latents = torch.randn(2, unet.config.in_channels, 8, 8)
    with share.watching():
        unet(latents, 5, states)
    assert share.result() == pytest.approx([0.5] * space.num_layers)
    unet(latents, 5, states)
    assert [len(found) for found in share.seen] == [1] * space.num_layers  # nothing is left behind


def test_the_figure_is_drawn(tmp_path):
    found = [{"mean": 0.5, "low": 0.4, "high": 0.6, "n": 4}] * 2
    split = Split([1, 0], [0, 2], {"family": found, "color": found}, {"family": found}, [0.5, 0.25])
    gates = {"shape": torch.ones(2, 1), "appearance": torch.zeros(2, 1)}
    names = ["down_blocks.0.attentions.1.transformer_blocks.0.attn2", "mid_block.attentions.0.attn2"]
    draw_figure(split, gates, names, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
