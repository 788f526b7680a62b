"""The factors of a Still Life picture: what can vary, how it is drawn at random, what is held out."""

import hashlib
from dataclasses import asdict, dataclass

import numpy as np

FAMILIES = (
    "ball", "cube", "cylinder", "cone", "torus", "capsule", "pyramid", "star", "heart", "mug",
    "gear", "cross", "chair", "rocket", "dog", "mushroom", "snowman", "diamond", "house", "table",
)  # fmt: skip
PATTERNS = (
    "plain", "striped", "ringed", "checkered", "dotted",
    "zigzag", "speckled", "marbled", "wavy", "gradient",
)  # fmt: skip
# Patterns that treat their two colours alike: nothing in a picture says which of them is the first.
TWO_ALIKE = ("striped", "ringed", "checkered", "zigzag", "wavy")
FINISHES = ("matte", "glossy", "metallic")

# sRGB in 0..1. Far enough apart that an instance's jitter never crosses into a neighbour's name.
COLORS = {
    "red": (0.80, 0.09, 0.09),
    "orange": (0.96, 0.48, 0.06),
    "yellow": (0.96, 0.86, 0.16),
    "green": (0.13, 0.58, 0.18),
    "cyan": (0.10, 0.72, 0.76),
    "blue": (0.10, 0.24, 0.82),
    "purple": (0.47, 0.14, 0.66),
    "pink": (0.96, 0.56, 0.74),
    "brown": (0.42, 0.23, 0.10),
    "white": (0.94, 0.94, 0.93),
    "gray": (0.50, 0.50, 0.52),
    "black": (0.09, 0.09, 0.10),
}

# Wall colour at the top, wall colour at the horizon, floor colour (sRGB in 0..1).
BACKGROUNDS = {
    "white": ((0.97, 0.97, 0.97), (0.90, 0.90, 0.90), (0.93, 0.93, 0.93)),
    "gray": ((0.52, 0.52, 0.53), (0.38, 0.38, 0.39), (0.45, 0.45, 0.46)),
    "black": ((0.04, 0.04, 0.05), (0.07, 0.07, 0.08), (0.12, 0.12, 0.13)),
    "beige": ((0.95, 0.88, 0.72), (0.86, 0.77, 0.58), (0.80, 0.70, 0.52)),
    "navy": ((0.04, 0.05, 0.24), (0.07, 0.09, 0.34), (0.06, 0.08, 0.28)),
    "green": ((0.10, 0.34, 0.18), (0.13, 0.42, 0.22), (0.10, 0.36, 0.19)),
    "lavender": ((0.76, 0.68, 0.92), (0.66, 0.58, 0.84), (0.61, 0.54, 0.78)),
    "sky": ((0.55, 0.78, 0.98), (0.72, 0.87, 0.99), (0.50, 0.68, 0.86)),
}

# An object that its background swallows teaches nothing.
CLASHES = {
    "white": ("white",), "gray": ("gray",), "black": ("black",), "beige": (),
    "navy": ("black", "blue"), "green": ("green",), "lavender": (), "sky": (),
}  # fmt: skip

# Kept from the *encoder's* training only; the backbone has seen them (ESC-Bench task "held_out").
HELD_OUT_FAMILIES = ("heart", "house", "table")
HELD_OUT_PATTERNS = ("wavy", "ringed")


@dataclass(frozen=True)
class Shape:
    """A family and its instance: four continuous parameters in 0..1 that no caption mentions."""

    family: str
    params: tuple[float, float, float, float]


@dataclass(frozen=True)
class Material:
    """Two colours, a pattern and a finish. `jitter` moves the named colours of this instance (sRGB)."""

    color: str
    color2: str
    pattern: str
    scale: float  # pattern period in object units; the object's radius is about 1
    angle: float  # radians, tilt of the pattern
    finish: str
    gloss: float  # 0..1, strength of the highlight within the finish
    jitter: tuple[float, float, float]
    jitter2: tuple[float, float, float]
    seed: int  # of the noise patterns

    @property
    def rgb(self) -> tuple[float, ...]:
        return tuple(float(np.clip(c + j, 0, 1)) for c, j in zip(COLORS[self.color], self.jitter, strict=True))

    @property
    def rgb2(self) -> tuple[float, ...]:
        return tuple(float(np.clip(c + j, 0, 1)) for c, j in zip(COLORS[self.color2], self.jitter2, strict=True))


@dataclass(frozen=True)
class Scene:
    """Background, pose, light and camera. Angles in radians, offsets in object units."""

    background: str
    yaw: float
    pitch: float
    light: float  # azimuth of the light
    elevation: float  # of the camera
    zoom: float
    dx: float
    dy: float


@dataclass(frozen=True)
class Factors:
    """Everything that one picture is made of. Replace a field and render again for a counterfactual."""

    shape: Shape
    material: Material
    scene: Scene

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Factors":
        shape = Shape(values["shape"]["family"], tuple(values["shape"]["params"]))
        material = {k: tuple(v) if isinstance(v, list) else v for k, v in values["material"].items()}
        return cls(shape, Material(**material), Scene(**values["scene"]))


def _round(value: float) -> float:
    return round(float(value), 5)


def sample_shape(rng: np.random.Generator, families: tuple[str, ...] = FAMILIES) -> Shape:
    return Shape(str(rng.choice(families)), tuple(_round(v) for v in rng.random(4)))


def sample_material(rng: np.random.Generator, patterns: tuple[str, ...] = PATTERNS) -> Material:
    color = str(rng.choice(list(COLORS)))
    # The second colour must differ enough in lightness for the pattern to be seen at 128 pixels.
    contrasting = [c for c in COLORS if abs(_luma(c) - _luma(color)) > 0.22]
    return Material(
        color=color,
        color2=str(rng.choice(contrasting)),
        pattern=str(rng.choice(patterns)),
        scale=_round(rng.uniform(0.42, 0.75)),
        angle=_round(rng.uniform(-0.3, 0.3)),
        finish=str(rng.choice(FINISHES)),
        gloss=_round(rng.random()),
        jitter=tuple(_round(v) for v in rng.uniform(-0.04, 0.04, 3)),
        jitter2=tuple(_round(v) for v in rng.uniform(-0.04, 0.04, 3)),
        seed=int(rng.integers(1 << 16)),
    )


def sample_scene(rng: np.random.Generator, material: Material) -> Scene:
    backgrounds = [b for b in BACKGROUNDS if material.color not in CLASHES[b]]
    return Scene(
        background=str(rng.choice(backgrounds)),
        yaw=_round(rng.uniform(-1.0, 1.0)),
        pitch=_round(rng.uniform(-0.12, 0.12)),
        light=_round(rng.uniform(-1.0, 1.0)),
        elevation=_round(rng.uniform(0.22, 0.55)),
        zoom=_round(rng.uniform(0.88, 1.12)),
        dx=_round(rng.uniform(-0.18, 0.18)),
        dy=_round(rng.uniform(-0.12, 0.12)),
    )


def sample_factors(rng: np.random.Generator) -> Factors:
    shape, material = sample_shape(rng), sample_material(rng)
    return Factors(shape, material, sample_scene(rng, material))


def held_out(shape: Shape, material: Material) -> bool:
    """Whether this (family, pattern, colour) is one of the 5 % of combinations that no training set holds."""
    name = f"{shape.family}/{material.pattern}/{material.color}".encode()
    return hashlib.sha256(name).digest()[0] < 13


def _luma(color: str) -> float:
    r, g, b = COLORS[color]
    return 0.299 * r + 0.587 * g + 0.114 * b
