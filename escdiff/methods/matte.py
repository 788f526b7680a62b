"""MATTE (Agarwal et al. 2023, arXiv 2311.11919): four tokens, each heard by its own layers at its own times.

Space: layer groups x stages. From the abstract: colour and style share layers, colour and layout share timesteps, so
both axes are needed. Recalled, not checked: which layers (object and layout the coarse ones, colour and style the
moderate ones), that object and style are not bound to a stage, and the form of the losses. Ours: the separation terms
are squared cosines of the two tokens, and the object's token is held near its word by a squared distance.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from escdiff.backbone import Backbone
from escdiff.conditioning import ConditioningSpace, layer_groups
from escdiff.conditioning.space import read_stages
from escdiff.methods.base import Method, at_norm, check_layers
from escdiff.support.errors import UserError

# In SD's 16 layers, by resolution at 512 pixels: 16 and 8, 32, 64.
LAYERS = {"coarse": (4, 5, 6, 7, 8, 9), "moderate": (2, 3, 10, 11, 12), "fine": (0, 1, 13, 14, 15)}
EARLY = 1  # the stage with much noise
ATTRIBUTES = {
    "color": {"word": "colored", "layers": "moderate", "stages": (EARLY,)},
    "style": {"word": "style", "layers": "moderate"},
    "object": {"word": "object", "layers": "coarse"},
    "layout": {"word": "layout", "layers": "coarse", "stages": (EARLY,)},
}
APART = (("color", "style"), ("layout", "object"))


class MATTE(Method):
    """Tokens that are heard in some cells; elsewhere their ordinary words stand in their place.

    Any subset of them constrains a picture: write the placeholders that are wanted into the prompt. With one attribute
    over all layers, one stage and `tied=False` it is XTI.

    Args:
        tokens: attribute -> "word", "layers" ("coarse", "moderate", "fine", "all" or numbers) and "stages" (numbers;
            all without).
        stage_bounds: see `ConditioningSpace`.
        tied: one vector per token, as in the paper; otherwise one per layer and stage.
        apart: weight of the squared cosine between colour and style, and between layout and object.
        anchored: weight of the squared distance of the object from its word, in units of the word's norm.
    """

    def __init__(
        self, backbone: Backbone, tokens: Mapping[str, Mapping] | None = None, stage_bounds=(0, 600, 1000),
        tied: bool = True, keep_norm: bool = True, apart: float = 0.01, anchored: float = 0.01, vectors: int = 1,
        templates="auto",
    ) -> None:  # fmt: skip
        tokens = {name: dict(about) for name, about in (tokens or ATTRIBUTES).items()}
        groups = list(layer_groups(backbone.unet).values())
        places = {name: layers_of(name, about.get("layers", "all"), len(groups)) for name, about in tokens.items()}
        cells = _cells(groups, places) if tied else [(i,) for i in range(len(groups))]
        space = ConditioningSpace(
            tuple(sum((groups[i] for i in cell), ()) for cell in cells), read_stages(stage_bounds)
        )
        words = {name: str(about.get("word", name)) for name, about in tokens.items()}
        super().__init__(backbone, space, words, vectors, templates)
        check_layers("method.tokens", [i for layers in places.values() for i in layers], backbone.p_plus())
        self.keep_norm, self.apart, self.anchored = keep_norm, apart, anchored
        size = (1, 1) if tied else (space.num_layers, space.num_stages)
        self.tables = nn.ParameterDict()
        for name, about in tokens.items():
            self.tables[name] = nn.Parameter(self.anchor(name).expand(*size, -1, -1).clone())  # (L|1, S|1, K, D)
            heard = torch.zeros(space.num_layers, space.num_stages, dtype=torch.bool)
            rows = [row for row, cell in enumerate(cells) if cell[0] in places[name]]
            for stage in about.get("stages", range(space.num_stages)):
                if not 0 <= stage < space.num_stages:
                    what = f"method.tokens.{name} names stage {stage}"
                    raise UserError(f"{what}; expected 0 to {space.num_stages - 1}, stage 0 having the least noise")
                heard[rows, stage] = True
            self.register_buffer(f"heard_{name}", heard[..., None, None], persistent=False)

    def token(self, name: str) -> Tensor:
        """What is learned of an attribute: (L|1, S|1, K, D)."""
        return at_norm(self.tables[name], self.anchor(name)) if self.keep_norm else self.tables[name]

    def vectors(self, batch) -> dict[str, Tensor]:
        return {
            name: torch.where(getattr(self, f"heard_{name}"), self.token(name), self.anchor(name))[None]
            for name in self.attributes
        }

    def regularizers(self, vectors) -> dict[str, Tensor]:
        terms = {}
        for one, two in APART:
            if self.apart and {one, two} <= set(self.attributes):
                cosine = torch.cosine_similarity(self.token(one), self.token(two), dim=-1)
                terms[f"{one}_{two}"] = self.apart * cosine.square().mean()
        if self.anchored and "object" in self.attributes:
            away = (self.token("object") - self.anchor("object")).square().sum(-1)
            terms["object"] = self.anchored * (away / self.anchor("object").square().sum(-1)).mean()
        return terms


def layers_of(name: str, given, count: int) -> tuple[int, ...]:
    """Layer numbers for "all", "coarse", "moderate", "fine" (scaled from SD's 16) or numbers.

    Raises:
        UserError: another word.
    """
    if given == "all":
        return tuple(range(count))
    if not isinstance(given, str):
        return tuple(int(i) for i in given)
    if given not in LAYERS:
        raise UserError(f"method.tokens.{name}.layers={given!r} given; expected all, {', '.join(LAYERS)} or numbers")
    return tuple(i for i in range(count) if i * 16 // count in LAYERS[given])


def _cells(groups: list, places: Mapping[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Layers that hear the same tokens make one cell, so that equal prompts are encoded once."""
    found: dict[tuple, list[int]] = {}
    for layer in range(len(groups)):
        found.setdefault(tuple(layer in layers for layers in places.values()), []).append(layer)
    return [tuple(layers) for layers in found.values()]
