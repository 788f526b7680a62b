"""Each layer reads its own cell and nothing else; with equal cells the bound U-Net is the stock U-Net."""

import copy

import pytest
import tiny
import torch
from diffusers import UNet2DConditionModel

from escdiff.conditioning import ConditioningSpace, bind, cross_attention_layers, grid
from escdiff.support.errors import UserError


def inputs(batch=2, width=32, channels=8, size=16):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, channels, size, size, generator=generator)
    return latents, torch.tensor([7, 801])[:batch], torch.randn(batch, 16, 77, width, generator=generator)


def predict(unet, latents, timesteps, states):
    with torch.no_grad():
        return unet(latents, timesteps, encoder_hidden_states=states).sample


def uniform(states_BLTD):
    """The first cell for all layers: plain, and packed."""
    plain = states_BLTD[:, 0]
    return plain, grid.pack(plain[:, None].expand(states_BLTD.shape))


def projections(unet, latents, timesteps, states):
    """What `to_k` and `to_v` of every cross-attention layer put out."""
    seen, handles = {}, []
    for name in cross_attention_layers(unet):
        for part in ("to_k", "to_v"):
            hook = lambda _, __, out, key=(name, part): seen.__setitem__(key, out)  # noqa: E731
            handles.append(unet.get_submodule(f"{name}.{part}").register_forward_hook(hook))
    predict(unet, latents, timesteps, states)
    for handle in handles:
        handle.remove()
    return seen


def assert_each_layer_reads_its_own_cell(unet, latents, timesteps, states, cells=range(16)):
    names = cross_attention_layers(unet)
    with bind(unet, ConditioningSpace.p_plus(unet)):
        before = projections(unet, latents, timesteps, grid.pack(states))
        for cell in cells:
            changed = states.clone()
            changed[:, cell] += 1
            after = projections(unet, latents, timesteps, grid.pack(changed))
            moved = {name for name, part in before if not torch.equal(before[name, part], after[name, part])}
            assert moved == {names[cell]}
        for cell, name in enumerate(names):
            for part in ("to_k", "to_v"):
                own = unet.get_submodule(f"{name}.{part}")(states[:, cell])
                assert torch.equal(before[name, part], own)


def test_each_of_sixteen_layers_reads_its_own_cell(tiny_unet):
    assert_each_layer_reads_its_own_cell(tiny_unet, *inputs())


def test_uniform_grid_is_the_stock_unet(tiny_unet):
    latents, timesteps, states = inputs()
    plain, packed = uniform(states)
    stock = predict(tiny_unet, latents, timesteps, plain)
    with bind(tiny_unet, ConditioningSpace.p_plus(tiny_unet)):
        assert torch.equal(predict(tiny_unet, latents, timesteps, packed), stock)
        assert torch.equal(predict(tiny_unet, latents, timesteps, plain), stock)
        assert not torch.equal(predict(tiny_unet, latents, timesteps, grid.pack(states)), stock)


@pytest.mark.slow
def test_the_same_holds_in_the_configuration_of_sd_1_5():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=64, in_channels=4, out_channels=4, block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2, cross_attention_dim=768, attention_head_dim=8,
        ).eval()  # fmt: skip
    latents, timesteps, states = inputs(batch=1, width=768, channels=4, size=8)
    plain, packed = uniform(states)
    stock = predict(unet, latents, timesteps, plain)
    with bind(unet, ConditioningSpace.p_plus(unet)):
        assert torch.equal(predict(unet, latents, timesteps, packed), stock)
    assert cross_attention_layers(unet)[6] == "mid_block.attentions.0.transformer_blocks.0.attn2"
    assert_each_layer_reads_its_own_cell(unet, latents, timesteps, states, cells=(0, 6, 15))


def test_uniform_grid_is_the_stock_pipeline_with_guidance(tiny_backbone):
    pipeline = tiny_backbone.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    options = {
        "num_inference_steps": 3, "guidance_scale": 5.0, "num_images_per_prompt": 2, "output_type": "latent",
    }  # fmt: skip
    prompt, negative = ["a red mug", "a blue chair"], ["dark", "blurry"]
    stock = pipeline(
        prompt=prompt, negative_prompt=negative, generator=torch.Generator().manual_seed(3), **options
    ).images
    encode = tiny_backbone.prompts.encode_plain
    positive, negative = (grid.pack(grid.expand(encode(x), 16, 1)[:, :, 0]) for x in (prompt, negative))
    with bind(tiny_backbone.unet, tiny_backbone.p_plus()):
        ours = pipeline(
            prompt_embeds=positive, negative_prompt_embeds=negative,
            generator=torch.Generator().manual_seed(3), **options,
        ).images  # fmt: skip
    assert torch.isfinite(stock).all()
    assert (ours - stock).abs().max() == 0.0


def gradient(unet, latents, timesteps, states):
    states = states.clone().requires_grad_()
    unet(latents, timesteps, encoder_hidden_states=grid.pack(states)).sample.square().sum().backward()
    return states.grad


def test_gradients_reach_every_cell_and_survive_checkpointing():
    unet = tiny.make_unet().requires_grad_(False).train()
    latents, timesteps, states = inputs()
    with bind(unet, ConditioningSpace.p_plus(unet)):
        plain = gradient(unet, latents, timesteps, states)
        unet.enable_gradient_checkpointing()
        checkpointed = gradient(unet, latents, timesteps, states)
    assert (plain.abs().sum(dim=(0, 2, 3)) > 0).all()
    assert torch.equal(plain, checkpointed)


def test_remove_restores_the_stock_unet(tiny_unet):
    latents, timesteps, states = inputs()
    names, stock = set(tiny_unet.state_dict()), predict(tiny_unet, latents, timesteps, states[:, 0])
    binding = bind(tiny_unet, ConditioningSpace.p_plus(tiny_unet))
    assert set(tiny_unet.state_dict()) == names
    binding.remove()
    binding.remove()
    long = torch.randn(2, 100, 32)
    assert torch.equal(predict(tiny_unet, latents, timesteps, states[:, 0]), stock)
    # A length that the binding would refuse passes again: no hook is left.
    assert torch.isfinite(predict(tiny_unet, latents, timesteps, long)).all()
    with pytest.raises(RuntimeError, match="stop"), bind(tiny_unet, ConditioningSpace.p_plus(tiny_unet)):
        raise RuntimeError("stop")
    predict(tiny_unet, latents, timesteps, long)


def test_a_copy_of_a_bound_unet_is_bound(tiny_unet):
    latents, timesteps, states = inputs()
    with bind(tiny_unet, ConditioningSpace.p_plus(tiny_unet)):
        expected = predict(tiny_unet, latents, timesteps, grid.pack(states))
        clone = copy.deepcopy(tiny_unet)
    assert torch.equal(predict(clone, latents, timesteps, grid.pack(states)), expected)


def test_works_with_a_peft_lora():
    from peft import LoraConfig

    unet = tiny.make_unet()
    latents, timesteps, states = inputs()
    with bind(unet, ConditioningSpace.p_plus(unet)):
        unet.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False))
        plain, packed = uniform(states)
        assert torch.equal(predict(unet, latents, timesteps, packed), predict(unet, latents, timesteps, plain))
    assert_each_layer_reads_its_own_cell(unet.eval(), latents, timesteps, states)


@pytest.mark.slow
def test_compiles_into_one_graph(tiny_unet):
    latents, timesteps, states = inputs()
    with bind(tiny_unet, ConditioningSpace.p_plus(tiny_unet)):
        expected = predict(tiny_unet, latents, timesteps, grid.pack(states))
        compiled = torch.compile(tiny_unet, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(predict(compiled, latents, timesteps, grid.pack(states)), expected)
    torch.compiler.reset()


def test_foreign_spaces_are_refused(tiny_unet):
    latents, timesteps, states = inputs()
    space = ConditioningSpace.p_plus(tiny_unet)
    with bind(tiny_unet, space), pytest.raises(UserError, match="10 packed cells.*bound to 16 layer"):
        predict(tiny_unet, latents, timesteps, grid.pack(states[:, :10]))
    with pytest.raises(UserError, match="names 15 cross-attention layers and the U-Net has 16"):
        bind(tiny_unet, ConditioningSpace(space.cells[:15]))


@pytest.mark.parametrize("cells", [2, 16])
def test_long_conditionings_of_other_tools_pass(tiny_unet, cells):
    """Also of 16 x 77 tokens, which are as many as the layers' cells."""
    latents, timesteps, states = inputs()
    long = states[:, :cells].flatten(1, 2)
    stock = predict(tiny_unet, latents, timesteps, long)
    with bind(tiny_unet, ConditioningSpace.p_plus(tiny_unet)):
        assert torch.equal(predict(tiny_unet, latents, timesteps, long), stock)
