"""A prompt, a random concept and pictures as numbers, for tests that paint."""

import torch
from diffusers import ControlNetModel

from escdiff.concept import Concept
from escdiff.conditioning import ConditioningSpace

PROMPT = "a photo of a <appearance> <shape>"


def make_concept(backbone, seed=0, layers="each", stages=1, spread=1.0) -> Concept:
    generator = torch.Generator().manual_seed(seed)
    space = ConditioningSpace.build(backbone.unet, layers=layers, stages=stages)
    anchors = {a: backbone.prompts.word_embedding("object", 2) for a in ("shape", "appearance")}
    size = (space.num_layers, space.num_stages, 2, backbone.width)
    vectors = {a: anchor + spread * 0.05 * torch.randn(size, generator=generator) for a, anchor in anchors.items()}
    return Concept(vectors, anchors, space, backbone.name, backbone.text_hash)


def make_controlnet(unet):
    """A ControlNet over a U-Net, random to its last layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        # Its last layers start at zero; a trained one's do not.
        net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 8, 8)).eval()
        for block in (*net.controlnet_down_blocks, net.controlnet_mid_block):
            torch.nn.init.normal_(block.weight, std=0.1)
    return net.requires_grad_(False)


def arrays(pictures):
    return torch.stack([torch.tensor(list(p.tobytes())) for p in pictures])
