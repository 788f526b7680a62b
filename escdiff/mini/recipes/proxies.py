"""Whether a U-Net hears words: fresh renders, denoised under the right word and under its rivals.

No sampling, so it takes seconds, and it tells recipes apart long before pictures do. Per kind of word the share of
renders whose error on the object is least under the right one (chance 1 / (1 + RIVALS)), and by how much the rivals'
error exceeds it, in per cent; per timestep.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from escdiff.mini.world import captions, words, world
from escdiff.mini.world.colors import COLORS
from escdiff.mini.world.rendering.render import render

KINDS = ("family", "pattern", "color", "degree")
RIVALS = 3
TIMESTEPS = (350, 600, 850)
PICTURES = 12
STREAM = 790_000  # of renders that no training set draws
SEED = 0


@dataclass(frozen=True)
class Question:
    """A render's captions under the right word, which comes first, and under its rivals."""

    picture: int
    kind: str
    texts: list[str]


def questions(count: int = PICTURES, seed: int = SEED) -> tuple[list[world.Factors], list[Question]]:
    """Fresh factors (none of them plain) and, for each, a question of every kind."""
    rng = np.random.default_rng((seed, STREAM))
    drawn, collected = [], []
    while len(drawn) < count:
        shape = world.sample_shape(rng)
        material = world.sample_material(rng, tuple(p for p in world.PATTERNS if p != "plain"))
        factors = world.Factors(shape, material, world.sample_scene(rng, material))
        trait = max(range(4), key=lambda i: abs(shape.params[i] - 0.5))  # the most marked one; it has a word
        attributes = {**captions.describe(factors, "brief").words, f"trait{trait}": _trait(shape, trait)}
        if not attributes[f"trait{trait}"]:
            continue
        for kind in KINDS:
            name, rivals = _rivals(kind, factors, trait, rng)
            plain = {n: w for n, w in attributes.items() if not n.startswith("trait") or kind == "degree"}
            texts = [captions.sentence(plain | {name: word}) for word in (plain[name], *rivals)]
            collected.append(Question(len(drawn), kind, texts))
        drawn.append(factors)
    return drawn, collected


def _trait(shape: world.Shape, trait: int) -> str:
    return words.SHAPE_TRAITS[shape.family][trait].phrase(words.degree(shape.params[trait]))


def _rivals(kind: str, factors: world.Factors, trait: int, rng: np.random.Generator) -> tuple[str, list[str]]:
    """The attribute that is asked for and `RIVALS` other words for it."""
    material = factors.material
    if kind == "family":
        name, choices = "family", [f for f in world.FAMILIES if f != factors.shape.family]
    elif kind == "pattern":
        name, choices = "pattern", [p for p in world.PATTERNS if p not in ("plain", material.pattern)]
    elif kind == "color":
        name, choices = "color", [c for c in COLORS if c not in (material.color, material.color2)]
    else:
        right = words.degree(factors.shape.params[trait])
        phrases = [
            words.SHAPE_TRAITS[factors.shape.family][trait].phrase(d) for d in range(words.DEGREES) if d != right
        ]
        name, choices = f"trait{trait}", [phrase for phrase in phrases if phrase]
    return name, [str(word) for word in rng.choice(choices, RIVALS, replace=False)]


class WordProxy:
    """A fixed set of questions with their latents, token states and noise; `measure` asks a U-Net."""

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        states: Callable[[list[str]], Tensor],
        scheduler,
        count: int = PICTURES,
    ) -> None:
        """Render and encode.

        Args:
            encode: pixels (B, 3, H, W) in [-1, 1] -> latents (B, C, h, w) as the U-Net is trained on.
            states: texts -> (B, T, D) of the text encoder.
            scheduler: with `add_noise` and `get_velocity`, of v-prediction.
        """
        factors, self.questions = questions(count)
        rendered = render(factors, 128)
        pixels = torch.from_numpy(rendered.image).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            self.latents = encode(pixels)
            self.states = [states(question.texts) for question in self.questions]
        mask = torch.from_numpy(rendered.mask)[:, None].float()
        self.mask = F.interpolate(mask, self.latents.shape[-2:], mode="area")
        self.noise = torch.randn(self.latents.shape, generator=torch.Generator().manual_seed(SEED))
        self.scheduler = scheduler

    @torch.no_grad()
    def measure(self, unet) -> dict[str, float]:
        """`{kind}_t{timestep}` (share, 0..1) and `{kind}_margin_t{timestep}` (per cent)."""
        training, device = unet.training, next(unet.parameters()).device
        unet.eval()
        results: dict[str, list[float]] = {}
        for timestep in TIMESTEPS:
            t = torch.tensor([timestep])
            noisy = self.scheduler.add_noise(self.latents, self.noise, t.expand(len(self.latents)))
            target = self.scheduler.get_velocity(self.latents, self.noise, t.expand(len(self.latents)))
            for picture in range(len(self.latents)):
                row = slice(picture, picture + 1)
                numbers = [i for i, question in enumerate(self.questions) if question.picture == picture]
                states = torch.cat([self.states[i] for i in numbers])  # all of a picture's questions at once
                inputs, times = noisy[row].expand(len(states), -1, -1, -1), t.expand(len(states))
                guess = unet(inputs.to(device), times.to(device), states.to(device)).sample.float().cpu()
                errors = ((guess - target[row]).square() * self.mask[row]).mean((1, 2, 3))
                for i, error in zip(numbers, errors.split([len(self.states[i]) for i in numbers]), strict=True):
                    kind, wrong = self.questions[i].kind, float(error[1:].mean() / error[0])
                    results.setdefault(f"{kind}_t{timestep}", []).append(float(error.argmin() == 0))
                    results.setdefault(f"{kind}_margin_t{timestep}", []).append(100 * (wrong - 1))
        unet.train(training)
        return {name: float(np.mean(values)) for name, values in results.items()}
