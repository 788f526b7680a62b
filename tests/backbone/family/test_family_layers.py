"""What must hold for every family: layers get their own residual, and nothing else changes."""

import threading

import pytest
import torch
from families import CASES, make_residuals, texts_read
from peft import LoraConfig, inject_adapter_in_model

from escdiff.backbone.family import Residuals
from escdiff.backbone.family.blocks import TEXT
from escdiff.backbone.family.joint_attention import Joint
from escdiff.conditioning import ConditioningSpace
from escdiff.support.errors import UserError


def one_layer(residuals: Residuals, layer: int) -> Residuals:
    """Zero but for one layer."""
    values = torch.zeros_like(residuals.values)
    values[:, layer] = residuals.values[:, layer]
    return Residuals(values, residuals.positions)


def take(residuals: Residuals, row: int) -> Residuals:
    return Residuals(residuals.values[row : row + 1], residuals.positions[row : row + 1])


def at_positions(text: torch.Tensor, residuals: Residuals) -> torch.Tensor:
    """(B, K, W) of (B, T, W)."""
    where = residuals.positions[..., None].expand(-1, -1, text.shape[2])
    return text.gather(1, where)


def what_hangs_on(module: torch.nn.Module) -> dict:
    """The names of all of a module's attributes, and how many hooks, parts and weights it has."""
    return {name: len(value) if isinstance(value, dict) else None for name, value in vars(module).items()}


def test_zero_is_stock_and_removal_leaves_no_trace(setup):
    stock, before = setup.run(setup.text), list(map(what_hangs_on, setup.model.modules()))
    none = Residuals.none(1, setup.space, setup.family.layer_width(setup.model))
    zero = Residuals(torch.zeros_like(setup.residuals.values), setup.residuals.positions)
    nowhere = Residuals(setup.residuals.values, torch.full_like(setup.residuals.positions, -1))
    with setup.attach():
        assert torch.equal(setup.run(setup.text), stock)  # a stock prompt passes unchanged
        for residuals in (none, zero, nowhere):
            assert torch.equal(setup.run(setup.pack(residuals)), stock)
        assert not torch.equal(setup.run(setup.pack(setup.residuals)), stock)
        assert torch.equal(setup.run(setup.text), stock)  # nothing of the call before is left
    assert torch.equal(setup.run(setup.text), stock)
    assert list(map(what_hangs_on, setup.model.modules())) == before


def test_each_layer_reads_its_own(setup):
    with setup.attach():
        stock = texts_read(setup, setup.pack(Residuals(0 * setup.residuals.values, setup.residuals.positions)))
        for layer in range(len(stock)):
            read = texts_read(setup, setup.pack(one_layer(setup.residuals, layer)))
            for other in range(layer):
                assert torch.equal(read[other], stock[other])
            change = read[layer] - stock[layer]
            assert at_positions(change, setup.residuals) == pytest.approx(
                setup.residuals.values[:, layer, 0].numpy(), abs=1e-5
            )
            rest = change.scatter(1, setup.residuals.positions[..., None].expand(-1, -1, change.shape[2]), 0.0)
            assert not rest.any()
            if not isinstance(setup.family, Joint):  # where later texts follow from it: the next two tests
                assert all(torch.equal(read[other], stock[other]) for other in range(layer + 1, len(stock)))


def test_a_stream_leaves_its_block_without_the_residual(joint):
    """The text behind a block is exactly what the stock block makes of text and residual, less the residual."""
    name = joint.space.cells[1][0]
    block, seen = joint.model.get_submodule(name), {}
    with joint.attach():
        handle = block.register_forward_hook(
            lambda module, args, kwargs, output: seen.update(kwargs=kwargs, output=output), with_kwargs=True
        )
        joint.run(joint.pack(one_layer(joint.residuals, 1)))
        handle.remove()
        text, picture = type(block).forward(block, **seen["kwargs"])
    where = joint.residuals.positions[..., None].expand_as(joint.residuals.values[:, 1, 0])
    expected = text.scatter_add(1, where, -joint.residuals.values[:, 1, 0])
    assert torch.equal(seen["output"][0], expected) and not torch.equal(text, expected)
    assert torch.equal(seen["output"][1], picture)


def test_how_much_of_a_residual_persists_in_a_stream(joint):
    """Of weights as small as a fresh model's, a few hundredths; of a residual that is left in, all of it."""
    for weight in joint.model.parameters():
        weight.mul_(0.02 / CASES[joint.name].noise)
    left = {}
    for taken_out in (True, False):
        with joint.attach():
            for cell in joint.space.cells:
                if not taken_out:
                    joint.model.get_submodule(cell[0])._forward_hooks.clear()
            zero = Residuals(0 * joint.residuals.values, joint.residuals.positions)
            stock = texts_read(joint, joint.pack(zero))
            read = texts_read(joint, joint.pack(one_layer(joint.residuals, 0)))
        change = at_positions(read[1] - stock[1], joint.residuals).norm()
        left[taken_out] = float(change / joint.residuals.values[:, 0].norm())
    assert left[True] < 0.05 and left[False] == pytest.approx(1, abs=0.05)


def test_the_gradient_reaches_every_layer(setup):
    values = setup.residuals.values.clone().requires_grad_()
    with setup.attach():
        setup.run(setup.pack(Residuals(values, setup.residuals.positions))).square().sum().backward()
    assert (values.grad.flatten(2).norm(dim=2) > 0).all()


def test_checkpointing_changes_nothing_with_two_calls_pending(setup):
    """Backward runs blocks of the first call again after the second: each must get its own residual."""
    other = make_residuals(*setup.residuals.values.shape[1::3], seed=7)
    results = {}
    for checkpointing in (False, True):
        (setup.model.enable_gradient_checkpointing if checkpointing else setup.model.disable_gradient_checkpointing)()
        setup.model.train(checkpointing)
        leaves = [residuals.values.clone().requires_grad_() for residuals in (setup.residuals, other)]
        with setup.attach():
            outputs = [setup.run(setup.pack(Residuals(leaf, setup.residuals.positions))) for leaf in leaves]
            sum(output.square().sum() for output in outputs).backward()
        results[checkpointing] = [*outputs, *(leaf.grad for leaf in leaves)]
    for plain, checkpointed in zip(results[False], results[True], strict=True):
        assert torch.equal(plain, checkpointed)


def test_a_batch_is_its_rows_one_by_one(setup):
    with setup.attach():
        batch = setup.run(setup.pack(setup.residuals))
        for row in range(2):
            own = {}
            for name, value in setup.inputs.items():
                if isinstance(value, dict):
                    own[name] = {key: part[row : row + 1] for key, part in value.items()}
                elif name in ("txt_ids", "img_ids"):
                    own[name] = value
                else:
                    own[name] = value[row : row + 1]
            packed = setup.pack(take(setup.residuals, row), setup.text[row : row + 1])
            torch.testing.assert_close(setup.run(packed, **own), batch[row : row + 1], atol=2e-5, rtol=1e-4)


def test_guided_halves_and_prompts_without_a_placeholder_share_a_batch(setup):
    nothing = Residuals(0 * setup.residuals.values, torch.full_like(setup.residuals.positions, -1))
    with setup.attach():
        negative, positive = setup.pack(nothing), setup.pack(setup.residuals)
        both = setup.run(torch.cat([negative[:1], positive[1:]]))
        torch.testing.assert_close(both[:1], setup.run(setup.text)[:1], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(both[1:], setup.run(positive)[1:], atol=2e-5, rtol=1e-4)


def test_threads_may_share_the_model(setup):
    others = [make_residuals(*setup.residuals.values.shape[1::3], seed=seed) for seed in range(4)]
    with setup.attach(), torch.no_grad():
        packed = [setup.pack(residuals) for residuals in others] + [setup.text]
        expected = [setup.run(text) for text in packed]
        got, barrier = {}, threading.Barrier(len(packed))

        def call(index: int) -> None:
            barrier.wait()
            with torch.no_grad():
                got[index] = [setup.run(packed[index]) for _ in range(5)]

        threads = [threading.Thread(target=call, args=(index,)) for index in range(len(packed))]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    for index, outputs in got.items():
        assert all(torch.equal(output, expected[index]) for output in outputs)
    assert len(got) == len(packed)


def test_attached_twice_acts_once(setup):
    """Pipelines that share a model attach it each for itself."""
    with setup.attach():
        expected = setup.run(setup.pack(setup.residuals))
        second = setup.attach()
        assert torch.equal(setup.run(setup.pack(setup.residuals)), expected)
    assert torch.equal(setup.run(setup.pack(setup.residuals)), expected)  # the other's hooks
    second.remove()


def test_every_sample_takes_the_stage_of_its_time(setup):
    bounds = (0, 300, 700, 1000)
    space = setup.family.space(setup.model, bounds)
    staged = make_residuals(*setup.residuals.values.shape[1::3], stages=3)
    times = torch.tensor([100.0, 800.0]) / setup.family.time_factor(setup.model)
    picked = torch.stack([staged.values[0, :, :1], staged.values[1, :, 2:]])
    with setup.attach():
        expected = setup.run(setup.pack(Residuals(picked, staged.positions)), timestep=times)
    with setup.family.attach(setup.model, space):
        packed = setup.family.pack(setup.model, space, setup.text, staged)
        torch.testing.assert_close(setup.run(packed, timestep=times), expected, atol=1e-6, rtol=1e-5)


def test_a_lora_on_top(setup):
    with setup.attach():
        plain = setup.run(setup.pack(setup.residuals))
        config = LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
        inject_adapter_in_model(config, setup.model)
        stock, adapted = setup.run(setup.text), setup.run(setup.pack(setup.residuals))
        assert not torch.equal(adapted, plain) and not torch.equal(adapted, stock)
        zero = Residuals(0 * setup.residuals.values, setup.residuals.positions)
        assert torch.equal(setup.run(setup.pack(zero)), stock)
    assert torch.equal(setup.run(setup.text), stock)


def test_a_space_of_another_model_is_refused(setup):
    other = ConditioningSpace((("transformer_blocks.0",), ("elsewhere.1",)))
    with pytest.raises(UserError, match=rf"space of 2 layers .* {setup.family.name} .* has {setup.space.num_layers};"):
        setup.family.attach(setup.model, other)
    assert not any(module._forward_pre_hooks for module in setup.model.modules())


def test_a_bfloat16_model_is_told_the_exact_timestep(transformer):
    family, model = transformer.family, transformer.model.bfloat16()
    seen = []

    def look(module, args, kwargs):
        seen.append(kwargs["timestep"].double() * family.time_factor(model))

    noisy = torch.randn(2, {"flux": 1, "qwen": 4}.get(transformer.name, 4), 8, 8).bfloat16()
    own = {"hidden_states", "timestep", *family.inputs(model, noisy, transformer.text.shape[1])}
    text = {name: value for name, value in transformer.inputs.items() if name not in own} | {TEXT: transformer.text}
    text = {n: v.bfloat16() if torch.is_tensor(v) and v.is_floating_point() else v for n, v in text.items()}
    handle = model.register_forward_pre_hook(look, with_kwargs=True)
    family.predict(model, noisy, torch.tensor([701, 999]), text)
    handle.remove()
    torch.testing.assert_close(seen[0], torch.tensor([701.0, 999.0]).double(), atol=1e-3, rtol=0)
