"""Faces: twelve parameters of identity that no caption mentions and five named expressions."""

import torch
from torch import Tensor

from escdiff.mini.world.geometry import primitives as solid

FACE = "face"
IDENTITY = (
    "width", "height", "jaw", "eye spacing", "eye size", "brow thickness",
    "nose length", "nose width", "mouth width", "ear size", "hair volume", "skin",
)  # fmt: skip
# Corners of the mouth up (1) or down (-1), mouth open, brows tilted inwards (1), brows raised, lids closed.
EXPRESSIONS = {
    "smiling": (1.0, 0.15, 0.0, 0.15, 0.0),
    "sad": (-1.0, 0.0, -1.0, 0.1, 0.3),
    "angry": (-0.7, 0.1, 1.0, -0.4, 0.15),
    "surprised": (0.0, 1.0, 0.0, 1.0, 0.0),
    "sleepy": (0.1, 0.0, -0.2, 0.0, 0.85),
}
SKINS = ((1.0, 0.88, 0.78), (0.5, 0.32, 0.22))  # sRGB, the palest and the darkest
WHITE, PUPIL, LIPS, DARK = (0.97, 0.97, 0.97), (0.08, 0.07, 0.07), (0.70, 0.20, 0.20), (0.25, 0.05, 0.06)


class Face:
    """The signed distance of a face and the colours of its parts.

    Args:
        params: 12 values in 0..1, see `IDENTITY`.
        expression: 5 values, see `EXPRESSIONS`.
        hair: sRGB of hair and brows.
    """

    def __init__(self, params: tuple[float, ...], expression: tuple[float, ...], hair: tuple[float, ...]) -> None:
        p = dict(zip(IDENTITY, params, strict=True))
        self.curve, self.open, self.tilt, self.lift, self.lid = expression
        self.wide, self.tall = 0.56 + 0.26 * p["width"], 0.74 + 0.2 * p["height"]
        self.jaw = 0.36 * p["jaw"]
        self.apart, self.eye = self.wide * (0.32 + 0.2 * p["eye spacing"]), 0.095 + 0.085 * p["eye size"]
        self.brow = 0.025 + 0.05 * p["brow thickness"]
        self.nose, self.nostril = 0.1 + 0.24 * p["nose length"], 0.06 + 0.1 * p["nose width"]
        self.mouth, self.ear = self.wide * (0.25 + 0.32 * p["mouth width"]), 0.08 + 0.2 * p["ear size"]
        self.volume = 0.02 + 0.26 * p["hair volume"]
        self.hair = hair
        self.skin = tuple(a + (b - a) * p["skin"] ** 1.5 for a, b in zip(*SKINS, strict=True))

    def __call__(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Points (N,) each -> distances (N,)."""
        # The jaw bends space and ellipsoids are no exact distances: shortened steps do not jump through.
        return torch.minimum(self._skin(x, y, z), self._hair(x, y, z)) * 0.8

    def _skin(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        k = 1 + self.jaw * (y / self.tall).clamp(-1, 0)  # narrower below
        head = solid.ellipsoid(x / k, y, z, self.wide, self.tall, 0.68) * (1 - self.jaw * 0.6)
        nose = solid.capsule(x, y, z, (0, 0.12, 0.6), (0, 0.12 - self.nose, 0.74), self.nostril)
        ears = solid.length3((x.abs() - self.wide * 0.98), y - 0.02, z * 1.4 + 0.05) - self.ear
        return solid.smooth_min(torch.minimum(head, ears), nose, 0.06)

    def _hair(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        grown = 1 + self.volume * 0.6
        cap = solid.ellipsoid(x, y - self.volume * 0.35, z + 0.12, self.wide * grown, self.tall * grown, 0.68 * grown)
        hairline = 0.3 - y + 0.45 * z.clamp(-1.2, 0) + 0.3 * z.clamp_min(0)
        return -solid.smooth_min(-cap, -hairline * 0.9, 0.08)

    def painted(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Colours (N, 3) and cover (N,) at object points (N, 3): skin and hair, eyes, brows, mouth."""
        x, y, z = p.unbind(-1)
        color = torch.tensor(self.skin).expand(len(p), 3)
        front = torch.sigmoid((z - 0.1) / 0.02)

        def lay(color: Tensor, inside: Tensor, paint: tuple[float, ...], share: Tensor | float = 1.0) -> Tensor:
            cover = torch.sigmoid(inside / 0.014) * front * share
            return color + (torch.tensor(paint) - color) * cover[:, None]

        u, v = x.abs() - self.apart, y - 0.16
        low = self.eye * 0.85
        white = self.eye - solid.length2(u * 0.85, v)
        open_eye = torch.minimum(white, low * (1 - 2 * self.lid) + self.eye * 0.15 - v)
        color = lay(color, white, tuple(0.8 * s for s in self.skin))
        color = lay(color, open_eye, WHITE)
        color = lay(color, torch.minimum(open_eye, self.eye * 0.52 - solid.length2(u, v + self.eye * 0.1)), PUPIL)
        # Brows tilt about the eye: raised or lowered towards the nose.
        slope = v - self.eye - 0.09 - 0.12 * self.lift - self.tilt * 0.5 * u
        brow = torch.minimum(self.brow - slope.abs(), self.eye * 1.25 - u.abs())
        color = lay(color, brow, tuple(0.75 * h for h in self.hair))
        t = x / self.mouth
        # A parabola: the corners rise or fall, the middle stays.
        line = y + 0.42 + 0.02 * self.open + self.curve * 0.15 * (1 - t * t).clamp_min(-0.5)
        # Half an ellipse: widest in the middle, closed at the corners.
        gap = (0.035 + 0.16 * self.open) * (1 - t * t).clamp_min(0).sqrt()
        inside = torch.minimum(gap - line.abs(), (self.mouth * (1 - 0.35 * self.open) - x.abs()))
        color = lay(color, inside + 0.03, LIPS)
        color = lay(color, inside - 0.012, DARK)
        # What lies further out is seen: hair where the skin's surface is deeper.
        hairy = torch.sigmoid((self._skin(x, y, z) - self._hair(x, y, z)) / 0.01)
        color = color + (torch.tensor(self.hair) - color) * hairy[:, None]
        return color, torch.ones(len(p))
