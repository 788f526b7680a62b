"""Figures: four bodies of capsules and boxes with joints. Eight poses have names, four have none."""

import math

import numpy as np
import torch
from torch import Tensor

from escdiff.mini.world.geometry import primitives as solid

BODIES = ("person", "robot", "bear", "doll")
# Per limb (left arm, right arm, left leg, right leg) in degrees: to the side, to the front, bend of elbow or knee;
# then the trunk's lean to the right and to the front. A hanging arm and a straight leg are 0.
POSES = {
    "standing": (12, 0, 0, 12, 0, 0, 7, 0, 0, 7, 0, 0, 0, 0),
    "waving": (14, 0, 0, 95, 0, 70, 7, 0, 0, 7, 0, 0, 0, 0),
    "cheering": (150, 0, 0, 150, 0, 0, 20, 0, 0, 20, 0, 0, 0, 0),
    "pointing": (12, 0, 0, 90, 0, 0, 7, 0, 0, 7, 0, 0, 0, 0),
    "kicking": (60, 0, 0, 75, 0, 0, 0, 0, 0, 72, 20, 0, -12, 0),
    "sitting": (20, 15, 0, 20, 15, 0, 14, 84, 86, 14, 84, 86, 0, 0),
    "running": (8, 60, 80, 8, -50, 70, 0, -40, 60, 0, 62, 50, 0, 16),
    "bowing": (8, 75, 0, 8, 75, 0, 7, 0, 0, 7, 0, 0, 0, 72),
}
UNNAMED_POSES = (
    (100, 0, 0, 100, 0, 0, 62, 0, 0, 62, 0, 0, 0, 0),  # arms and legs wide apart
    (165, 0, 0, 35, 0, -110, 0, 0, 0, 45, 0, 90, 14, 0),  # one arm up, one hand on the hip, one leg bent
    (75, 0, 80, 75, 0, 80, 28, 50, 95, 28, 50, 95, 0, 10),  # squatting with raised forearms
    (80, 0, 0, 100, 0, 0, 0, 0, 0, 80, 0, 0, -55, 0),  # balancing on one leg like a scale
)
PROPORTIONS = {  # girth of trunk, of limbs; length of legs, of arms; of the trunk
    "person": (0.17, 0.085, 0.66, 0.58, 0.46),
    "robot": (0.2, 0.075, 0.5, 0.52, 0.46),
    "bear": (0.3, 0.125, 0.4, 0.44, 0.4),
    "doll": (0.13, 0.055, 0.6, 0.5, 0.42),
}
REACH = 1.12  # furthest point of a figure from its middle
EYE = (0.05, 0.05, 0.06)  # sRGB


class Figure:
    """The signed distance of a figure in a pose.

    Args:
        body: one of `BODIES`.
        params: length of the limbs, girth, size of the head, breadth of the shoulders, each in 0..1.
        pose: 14 angles in radians, see `POSES`.
    """

    def __init__(self, body: str, params: tuple[float, ...], pose: tuple[float, ...]) -> None:
        self.body = body
        trunk, limb, leg, arm, self.length = PROPORTIONS[body]
        a, b, c, d = params
        leg, arm = leg * (0.75 + 0.4 * a), arm * (0.78 + 0.4 * a)
        self.girth, self.limb = trunk * (0.75 + 0.55 * b), limb * (0.8 + 0.45 * b)
        self.skull = (0.24 if body in ("bear", "doll") else 0.2) * (0.75 + 0.55 * c)
        self.broad = self.girth * (0.8 + 0.6 * d) + 0.04
        side, front = pose[12], pose[13]
        up = np.array([math.sin(side), math.cos(side) * math.cos(front), math.cos(side) * math.sin(front)])
        hips = np.array([0.0, 0.0, 0.0])
        chest = hips + up * self.length
        across = np.array([math.cos(side), -math.sin(side), 0.0])
        self.limbs = []
        for i, sign in enumerate((-1, 1, -1, 1)):
            if i < 2:
                start, long = chest + across * sign * self.broad - up * 0.03, arm
            else:
                start, long = hips + np.array([sign * self.broad * 0.55, 0, 0]), leg
            to_side, to_front, bend = pose[3 * i : 3 * i + 3]
            upper = _way(sign * to_side, to_front)
            # A raised arm bends in the plane in which it was raised, as in waving.
            lower = _way(sign * (to_side + bend), to_front) if i < 2 and not to_front else None
            if lower is None:
                # Elbows bend to the front, knees to the back.
                lower = _way(sign * to_side, to_front + (bend if i < 2 else -bend))
            middle = start + upper * long / 2
            self.limbs.append((start.tolist(), middle.tolist(), (middle + lower * long / 2).tolist()))
        self.hips, self.chest = hips.tolist(), chest.tolist()
        self.head = (chest + up * (self.skull * 0.9 + 0.07)).tolist()
        self.up, self.across = up.tolist(), across.tolist()
        points = np.array([p for limb in self.limbs for p in limb] + [self.hips, self.head])
        reach = np.array([self.limb] * 12 + [self.girth, self.skull * 1.3])[:, None]
        # The pose is moved to the middle and scaled to one reach; a raised arm would leave the picture.
        low, high = (points - reach).min(0), (points + reach).max(0)
        self.shift = ((low + high) / 2).tolist()
        self.scale = REACH / float((np.linalg.norm(points - self.shift, axis=1) + reach[:, 0]).max())

    def __call__(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Points (N,) each -> distances (N,)."""
        k = self.scale
        x, y, z = (v / k + s for v, s in zip((x, y, z), self.shift, strict=True))
        total = self._trunk(x, y, z)
        for start, middle, end in self.limbs:
            radius = self.limb
            upper = solid.capsule(x, y, z, start, middle, radius)
            lower = solid.capsule(x, y, z, middle, end, radius * 0.85)
            hand = solid.length3(x - end[0], y - end[1], z - end[2]) - radius * 1.25
            total = solid.smooth_min(total, torch.minimum(torch.minimum(upper, lower), hand), 0.04)
        return torch.minimum(total, self._head(x, y, z)) * k

    def _frame(self, x: Tensor, y: Tensor, z: Tensor, centre: list[float]) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates along the trunk's own axes about `centre`."""
        p = x - centre[0], y - centre[1], z - centre[2]
        front = np.cross(self.across, self.up).tolist()
        return tuple(sum(v * w for v, w in zip(p, axis, strict=True)) for axis in (self.across, self.up, front))

    def _trunk(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        middle = [(h + c) / 2 for h, c in zip(self.hips, self.chest, strict=True)]
        u, v, w = self._frame(x, y, z, middle)
        if self.body == "robot":
            return solid.box(u, v, w, self.broad * 0.95, self.length * 0.58, self.girth * 0.85, 0.03)
        if self.body == "bear":
            return solid.ellipsoid(u, v, w, self.broad * 0.95, self.length * 0.75, self.girth)
        if self.body == "doll":  # a dress
            skirt = solid.frustum(u, v + self.length * 0.62, w, self.broad * 1.75, self.girth * 0.6, self.length * 0.55)
            return torch.minimum(skirt, solid.capsule(x, y, z, middle, self.chest, self.girth * 0.75))
        chest = solid.ellipsoid(u, v - self.length * 0.25, w, self.broad * 0.95, self.length * 0.4, self.girth)
        return solid.smooth_min(chest, solid.capsule(x, y, z, self.hips, middle, self.girth * 0.9), 0.1)

    def _head(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        u, v, w = self._frame(x, y, z, self.head)
        r = self.skull
        if self.body == "robot":
            stalk = solid.cylinder(u, v - r * 1.15, w, r * 0.14, r * 0.4, 0.01)
            bulb = solid.length3(u, v - r * 1.6, w) - r * 0.25
            return torch.minimum(solid.box(u, v, w, r, r * 0.82, r * 0.85, 0.03), torch.minimum(stalk, bulb))
        if self.body == "bear":
            ears = solid.length3(u.abs() - r * 0.75, v - r * 0.75, w) - r * 0.4
            snout = solid.length3(u, v + r * 0.25, w - r * 0.85) - r * 0.4
            return torch.minimum(solid.length3(u, v, w) - r, torch.minimum(ears, snout))
        if self.body == "doll":
            bunches = solid.length3(u.abs() - r * 1.15, v - r * 0.2, w + r * 0.2) - r * 0.42
            return torch.minimum(solid.length3(u, v, w) - r, bunches)
        return solid.ellipsoid(u, v, w, r * 0.85, r * 1.05, r * 0.9)

    def painted(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Two eyes: colours (N, 3) and cover (N,) at object points (N, 3)."""
        x, y, z = (v / self.scale + s for v, s in zip(p.unbind(-1), self.shift, strict=True))
        u, v, w = self._frame(x, y, z, self.head)
        r = self.skull
        eye = solid.length3(u.abs() - r * 0.36, v - r * 0.15, w - r * 0.8) - r * 0.27
        return torch.tensor(EYE).expand(len(p), 3), torch.sigmoid(-eye / 0.012)


def pose_angles(name: str) -> tuple[float, ...]:
    """The angles in radians of a named pose, or of an unnamed one: "unnamed0" to "unnamed3"."""
    degrees = POSES[name] if name in POSES else UNNAMED_POSES[int(name.removeprefix("unnamed"))]
    return tuple(round(math.radians(v), 5) for v in degrees)


def _way(side: float, front: float) -> np.ndarray:
    """Direction of a limb that hangs down, raised to the side and to the front."""
    return np.array([math.sin(side) * math.cos(front), -math.cos(side) * math.cos(front), math.sin(front)])
