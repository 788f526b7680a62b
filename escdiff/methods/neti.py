"""NeTI (Alaluf et al. 2023, arXiv 2305.15391): a small network from (timestep, layer) to a word vector.

Space: layers x stages; the paper's timesteps are continuous, ours the middles of the stages. Positional encoding by
random Fourier features around 10 x 16 anchors, sigma 0.03 for t and 2 for the layer (section 3.2); two layers of 128
with nested dropout at p 0.5, whose cut-off is the fidelity slider (section 3.4); output at the word's norm. Paper: lr
1e-3, 1,000 steps of 3-6 pictures. Not here: the textual bypass into the values alone.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from escdiff.backbone import Backbone
from escdiff.conditioning import ConditioningSpace
from escdiff.methods.base import CONCEPT, Method, at_norm

FOURIER = 1024
NOTCHES = (0.25, 0.5, 0.75)  # of the fidelity slider, exported beside the whole


class NeTI(Method):
    """The mapper.

    Args:
        stages: S; the concept's file has layers x S vectors.
        hidden: width of the mapper. nested: probability of cutting it off at a random place in a training step.
    """

    few, many = 1, 6
    shared_stage = True

    def __init__(
        self, backbone: Backbone, init: str = "object", templates="auto", stages: int = 10, hidden: int = 128,
        nested: float = 0.5, sigma_t: float = 0.03, sigma_l: float = 2.0,
    ) -> None:  # fmt: skip
        space = ConditioningSpace.build(backbone.unet, "each", stages)
        super().__init__(backbone, space, init, 1, templates)
        self.nested, self.fidelity = nested, 1.0
        frequencies = torch.randn(2, FOURIER // 2, generator=torch.Generator().manual_seed(0))
        self.register_buffer("frequencies", frequencies * torch.tensor([sigma_t, sigma_l])[:, None])
        times, layers = torch.linspace(0, 999, 10), torch.arange(space.num_layers).float()
        anchors = self.fourier(torch.cartesian_prod(layers, times).flip(1))
        self.enter = nn.Linear(FOURIER, len(anchors))
        with torch.no_grad():
            self.enter.weight.copy_(anchors)  # a place's features are its nearness to the anchors
        self.body = nn.Sequential(
            nn.Linear(len(anchors), hidden), nn.LayerNorm(hidden), nn.LeakyReLU(),
            nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.LeakyReLU(),
        )  # fmt: skip
        self.leave = nn.Linear(hidden, backbone.width)
        anchor = self.anchor("concept")
        with torch.no_grad():
            self.leave.weight.mul_(0.1 * anchor.norm())
            self.leave.bias.copy_(anchor[0])  # start near the word
        bounds = torch.tensor(space.stage_bounds).float()
        places = torch.cartesian_prod(layers, (bounds[:-1] + bounds[1:] - 1) / 2).flip(1)
        self.register_buffer("places", places, persistent=False)  # (L * S, 2): timestep, layer

    def fourier(self, places: Tensor) -> Tensor:
        """(N, 2) -> (N, FOURIER), at unit norm."""
        angles = places @ self.frequencies
        return torch.cat([angles.sin(), angles.cos()], 1) / (FOURIER / 2) ** 0.5

    def cut(self) -> int:
        """Hidden features that count: at random in training, by `fidelity` otherwise."""
        size = self.leave.in_features
        if not self.training:
            return max(1, round(self.fidelity * size))
        return size if torch.rand(()) >= self.nested else int(torch.randint(1, size + 1, ()))

    def vectors(self, batch) -> dict[str, Tensor]:
        hidden = self.body(self.enter(self.fourier(self.places)))
        kept = torch.arange(hidden.shape[1], device=hidden.device) < self.cut()
        cells = self.leave(hidden * kept).unflatten(0, (self.space.num_layers, self.space.num_stages))
        return {"concept": at_norm(cells[None, :, :, None], self.anchor("concept"))}

    def export(self, folder: Path, notes=None) -> None:
        """Also `concept-25.safetensors` and so on, the notches of the fidelity slider (25 edits most easily)."""
        super().export(folder, notes)
        for notch in NOTCHES:
            self.fidelity = notch
            name = CONCEPT.replace(".", f"-{round(100 * notch)}.")
            self.concept({"fidelity": str(notch), **(notes or {})}).save(folder / name)
        self.fidelity = 1.0
