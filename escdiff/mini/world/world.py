"""The factors of a Still Life picture: what can vary, how it is drawn at random, what is held out."""

import hashlib
from dataclasses import asdict, dataclass, replace

import numpy as np

from escdiff.mini.world.colors import BACKGROUNDS as BACKGROUNDS
from escdiff.mini.world.colors import CLASHES as CLASHES
from escdiff.mini.world.colors import COLORS as COLORS
from escdiff.mini.world.colors import SHADELESS, luma, readable, shaded

VERSION = 3  # of all that is rendered; raise when a seed gives other pictures or words, and old data are not read

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
SCALED = ("striped", "ringed", "checkered", "dotted", "zigzag", "speckled", "marbled", "wavy")  # finer or broader
SLANTED = ("striped", "ringed", "checkered", "zigzag", "wavy", "gradient")  # patterns whose tilt is seen
FINISHES = ("matte", "glossy", "metallic")

# What no word can tell apart: a family and a pattern whose instances come from a seed.
THING, TEXTURED = "thing", "textured"

# Kept from the *encoder's* training only; the backbone has seen them (ESC-Bench task "held_out").
HELD_OUT_FAMILIES = ("heart", "house", "table")
HELD_OUT_PATTERNS = ("wavy", "ringed")

SCALES = (0.36, 0.82)  # object units; a finer pattern does not survive eight-fold compression at 128 pixels
CONTRAST = 0.22  # least difference of luma
TILT = 0.5  # radians; more, and upright bands could be taken for level ones


@dataclass(frozen=True)
class Shape:
    """A family and its instance: four continuous parameters in 0..1, of which words give five degrees."""

    family: str
    params: tuple[float, ...]  # four; of a face twelve
    seed: int = 0  # of a nameless thing


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
    seed: int  # of the noise patterns and of nameless textures
    shade: float = 0.5  # of the first colour, from its darkest (0) to its palest (1)
    shade2: float = 0.5

    @property
    def rgb(self) -> tuple[float, ...]:
        """The first colour, sRGB in 0..1."""
        return _jittered(shaded(self.color, self.shade), self.jitter)

    @property
    def rgb2(self) -> tuple[float, ...]:
        """The second colour, sRGB in 0..1."""
        return _jittered(shaded(self.color2, self.shade2), self.jitter2)

    def shows(self, name: str) -> bool:
        """Whether a picture can tell this factor: no pattern, no second colour; no highlight, no gloss."""
        if name in ("color2", "rgb2"):
            return self.pattern != "plain"
        if name == "shade":
            return self.color not in SHADELESS
        if name == "shade2":
            return self.shows("rgb2") and self.color2 not in SHADELESS
        if name == "gloss":
            return self.finish != "matte"
        patterns = {"scale": SCALED, "angle": SLANTED}
        return name not in patterns or self.pattern in patterns[name]


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
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Factors":
        """The inverse of `to_dict`."""
        return cls(Shape(**tuples(values["shape"])), Material(**tuples(values["material"])), Scene(**values["scene"]))


def tuples(values: dict) -> dict:
    """Lists as tuples: json knows no tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def _jittered(rgb: tuple[float, ...], jitter: tuple[float, float, float]) -> tuple[float, ...]:
    return tuple(float(np.clip(c + j, 0, 1)) for c, j in zip(rgb, jitter, strict=True))


def _round(value: float) -> float:
    return round(float(value), 5)


def sample_shape(rng: np.random.Generator, families: tuple[str, ...] = FAMILIES) -> Shape:
    """A family and four parameters, uniform."""
    return Shape(str(rng.choice(families)), tuple(_round(v) for v in rng.random(4)))


def sample_thing(rng: np.random.Generator, purpose: str = "train") -> Shape:
    """A nameless thing from the seeds of `purpose`, see `nameless_seed`."""
    return Shape(THING, (0.5,) * 4, nameless_seed(rng, purpose))


def sample_material(rng: np.random.Generator, patterns: tuple[str, ...] = PATTERNS) -> Material:
    """A material whose pattern can be seen, see `contrasting`."""
    pattern = str(rng.choice(patterns))
    while True:
        color, color2 = (str(c) for c in rng.choice(list(COLORS), 2, replace=False))
        shade, shade2 = (_round(v) for v in rng.random(2))
        if contrasting(shaded(color, shade), shaded(color2, shade2)):
            break
    return Material(
        color=color,
        color2=color2,
        pattern=pattern,
        scale=_round(rng.uniform(*SCALES)),
        angle=_round(rng.uniform(-TILT, TILT)),
        finish=str(rng.choice(FINISHES)),
        gloss=_round(rng.random()),
        jitter=tuple(_round(v) for v in rng.uniform(-0.03, 0.03, 3)),
        jitter2=tuple(_round(v) for v in rng.uniform(-0.03, 0.03, 3)),
        seed=int(rng.integers(1 << 16)),
        shade=shade,
        shade2=shade2,
    )


def contrasting(rgb: tuple[float, ...], rgb2: tuple[float, ...]) -> bool:
    """Whether two colours differ enough in lightness for a pattern of them to be seen at 128 pixels."""
    return abs(luma(rgb) - luma(rgb2)) > CONTRAST


def sample_texture(rng: np.random.Generator, purpose: str = "train") -> Material:
    """A nameless texture from the seeds of `purpose`, see `nameless_seed`."""
    return replace(sample_material(rng, (TEXTURED,)), seed=nameless_seed(rng, purpose))


def sample_scene(rng: np.random.Generator, material: Material) -> Scene:
    """A scene on which the material can be seen. What is no factor of interest varies little."""
    backgrounds = [b for b in BACKGROUNDS if readable(material.rgb, material.color, b)]
    return Scene(
        background=str(rng.choice(backgrounds)),
        yaw=_round(rng.uniform(0.05, 0.85)),
        pitch=_round(rng.uniform(-0.05, 0.05)),
        light=_round(rng.uniform(-0.4, 0.4)),
        elevation=_round(rng.uniform(0.32, 0.45)),
        zoom=_round(rng.uniform(0.95, 1.05)),
        dx=_round(rng.uniform(-0.07, 0.07)),
        dy=_round(rng.uniform(-0.05, 0.05)),
    )


def sample_factors(rng: np.random.Generator) -> Factors:
    """Shape, material and scene of one picture."""
    shape, material = sample_shape(rng), sample_material(rng)
    return Factors(shape, material, sample_scene(rng, material))


def held_out(shape: Shape, material: Material) -> bool:
    """Whether this (family, pattern, colour) is one of the 5 % of combinations that no training set holds."""
    name = f"{shape.family}/{material.pattern}/{material.color}".encode()
    return hashlib.sha256(name).digest()[0] < 13


def purpose_of(seed: int) -> str:
    """Purpose of a nameless seed: "train" (seven tenths), "judge" (a tenth and a half) or "bench"."""
    share = hashlib.sha256(f"nameless/{seed}".encode()).digest()[0] / 256
    return "train" if share < 0.7 else "judge" if share < 0.85 else "bench"


def nameless_seed(rng: np.random.Generator, purpose: str) -> int:
    """Draw a seed of `purpose`: "train" for the models, "judge" for what judges them, "bench" for what is asked."""
    while purpose_of(seed := int(rng.integers(1 << 31))) != purpose:
        pass
    return seed
