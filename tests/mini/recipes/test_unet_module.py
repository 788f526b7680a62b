"""Training of the bundled model's U-Net: the step's loss against plain lines."""

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from escdiff.mini import parts
from escdiff.mini.recipes.unet import UnetModule, sample_timesteps, weighted_error


@pytest.fixture(scope="module")
def module() -> UnetModule:
    torch.manual_seed(0)
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=parts.WIDTH,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=50,
            max_position_embeddings=parts.LENGTH,
        )
    )
    return UnetModule(text, lr=1e-3, max_steps=4, high_noise_bias=1.0, object_weight=3.0)


def test_the_object_counts_three_times_and_the_sum_of_weights_stays():
    guess, target = torch.zeros(1, 1, 1, 4), torch.tensor([[[[2.0, 1.0, 1.0, 1.0]]]])
    objects = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]]]])
    expected = (3 * 4 + 1 + 1 + 1) / (3 + 1 + 1 + 1)
    assert weighted_error(guess, target, objects, 3.0).item() == pytest.approx(expected)
    assert weighted_error(guess, target, objects, 1.0).item() == pytest.approx((4 + 1 + 1 + 1) / 4)
    assert weighted_error(guess, target, torch.zeros_like(objects), 3.0).item() == pytest.approx((4 + 1 + 1 + 1) / 4)


def test_a_steps_loss_is_that_of_plain_lines(module):
    mean, ids = torch.randn(2, 8, 16, 16), torch.randint(0, 50, (2, parts.LENGTH))
    moments = torch.cat([mean, torch.full_like(mean, -30.0)], 1)  # no spread: the latents are the means
    objects = torch.rand(2, 1, 16, 16)
    torch.manual_seed(5)
    found = module.training_step((moments, ids, objects), 0)["loss"]

    torch.manual_seed(5)
    torch.randn_like(mean)  # the latents' own draw
    t = sample_timesteps(2, 1.0)
    noise = torch.randn_like(mean)
    kept = module.scheduler.alphas_cumprod[t].view(2, 1, 1, 1)
    noisy = kept.sqrt() * mean + (1 - kept).sqrt() * noise
    velocity = kept.sqrt() * noise - (1 - kept).sqrt() * mean
    with torch.no_grad():
        guess = module.unet(noisy, t, module._frozen[0](ids).last_hidden_state).sample
    weights = 1 + 2 * objects
    error = (weights * (guess - velocity).square()).sum((1, 2, 3)) / (8 * weights.sum((1, 2, 3)))
    assert found.item() == pytest.approx(error.mean().item(), rel=1e-4)
