"""Layers are found in the order in which they run, and partitioned without gaps."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from escdiff.conditioning import ConditioningSpace, cross_attention_layers, layer_groups
from escdiff.support.errors import UserError


def run_order(unet, *args, **kwargs):
    """Cross-attention layers in the order in which a forward pass really calls them."""
    called, names = [], set(cross_attention_layers(unet))
    handles = [
        module.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, module in unet.named_modules()
        if name in names
    ]
    unet(*args, **kwargs)
    for handle in handles:
        handle.remove()
    return tuple(called)


@pytest.fixture(scope="module")
def sdxl():
    """SDXL's real configuration, without its weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=128, in_channels=4, out_channels=4, block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), layers_per_block=2,
            attention_head_dim=(5, 10, 20), transformer_layers_per_block=(1, 2, 10), cross_attention_dim=2048,
            use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )  # fmt: skip


def test_sd_has_sixteen_layers_in_execution_order(tiny_unet):
    names = cross_attention_layers(tiny_unet)
    assert len(names) == 16
    assert names == run_order(tiny_unet, torch.randn(1, 8, 16, 16), 10, torch.randn(1, 77, 32))
    assert names.index("mid_block.attentions.0.transformer_blocks.0.attn2") == 6
    assert names[0].startswith("down_blocks.0.") and names[15].startswith("up_blocks.3.attentions.2")
    # The trap this guards against: the library's own listing puts the mid block last.
    assert [n for n in tiny_unet.attn_processors if "attn2" in n][-1].startswith("mid_block")


def test_sdxl_has_seventy_layers_in_eleven_groups(sdxl):
    extra = {"text_embeds": torch.empty(1, 1280, device="meta"), "time_ids": torch.empty(1, 6, device="meta")}
    latents, states = torch.empty(1, 4, 32, 32, device="meta"), torch.empty(1, 77, 2048, device="meta")
    time = torch.empty(1, device="meta")
    names = cross_attention_layers(sdxl)
    assert len(names) == 70
    assert names == run_order(sdxl, latents, time, states, added_cond_kwargs=extra)
    groups = layer_groups(sdxl)
    assert len(groups) == 11 and list(groups)[4] == "mid_block.attentions.0"
    assert [len(members) for members in groups.values()] == [2, 2, 10, 10, 10, 10, 10, 10, 2, 2, 2]
    assert ConditioningSpace.p_plus(sdxl).num_layers == 11
    assert ConditioningSpace.p_plus(sdxl).layer_names == names


def test_presets(tiny_unet):
    p, p_plus = ConditioningSpace.p(tiny_unet), ConditioningSpace.p_plus(tiny_unet)
    assert (p.num_layers, p.num_stages, p_plus.num_layers, p_plus.num_stages) == (1, 1, 16, 1)
    assert p.layer_names == p_plus.layer_names == cross_attention_layers(tiny_unet)
    prospect = ConditioningSpace.build(tiny_unet, "tied", 10)
    assert prospect.stage_bounds == tuple(range(0, 1001, 100))
    assert ConditioningSpace.build(tiny_unet, "each", (0, 300, 1000)).num_stages == 2


def test_stages_start_at_the_least_noise():
    space = ConditioningSpace((("a",),), (0, 300, 1000))
    timesteps = torch.tensor([0, 299, 300, 999])
    assert space.stage_of(timesteps).tolist() == [0, 0, 1, 1]
    assert space.stage_of(timesteps.float()).dtype == torch.int64
    assert ConditioningSpace((("a",),)).stage_of(timesteps).tolist() == [0, 0, 0, 0]


def test_metadata_round_trip_and_fingerprint(tiny_unet):
    space = ConditioningSpace.build(tiny_unet, "each", 3)
    metadata = space.to_metadata()
    assert all(isinstance(value, str) for value in metadata.values())
    again = ConditioningSpace.from_metadata(metadata | {"other": "key"})
    assert again == space and again.fingerprint() == space.fingerprint()
    assert space.fingerprint() != ConditioningSpace.p_plus(tiny_unet).fingerprint()


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"space.cells": "[", "space.stage_bounds": "[0, 1]"},
        {"space.cells": "3", "space.stage_bounds": "1"},
    ],
)
def test_unreadable_metadata_are_refused(metadata):
    with pytest.raises(UserError, match="no readable conditioning space"):
        ConditioningSpace.from_metadata(metadata)


@pytest.mark.parametrize("cells", [(), ((),), (("a",), ("a",))])
def test_cells_must_partition(cells):
    with pytest.raises(UserError, match="share no layer"):
        ConditioningSpace(cells)


@pytest.mark.parametrize("bounds", [(0,), (1, 1000), (0, 500, 400), (0, 0, 1000)])
def test_stage_bounds_must_ascend_from_zero(bounds):
    with pytest.raises(UserError, match="ascend from 0"):
        ConditioningSpace((("a",),), bounds)


def test_wrong_words_are_refused(tiny_unet):
    with pytest.raises(UserError, match="'tied' or 'each'"):
        ConditioningSpace.build(tiny_unet, "all")
    with pytest.raises(UserError, match="stages=0"):
        ConditioningSpace.build(tiny_unet, stages=0)
    with pytest.raises(UserError, match="no cross-attention layer"):
        cross_attention_layers(torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match="expected them inside down_blocks"):
        cross_attention_layers(torch.nn.ModuleDict({"wrapped": tiny_unet}))


@pytest.mark.parametrize("stages", ["abc", 2.5, [0, 0.5, 1000], [0, "500", 1000], [0, 500], [], [0, 500, 1001]])
def test_stages_that_are_none_are_refused(tiny_unet, stages):
    with pytest.raises(
        UserError, match=r"was given; expected 1 to 1000, or bounds from 0 to 1000 such as \[0,600,1000\]"
    ):
        ConditioningSpace.build(tiny_unet, stages=stages)
