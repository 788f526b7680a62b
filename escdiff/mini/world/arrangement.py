"""Arrangements: one to three things in a scene. One thing alone is the picture that `Factors` describe."""

from dataclasses import asdict, dataclass, field, replace

from escdiff.mini.world.world import Factors, Material, Scene, Shape, tuples


@dataclass(frozen=True)
class Thing:
    """A shape in a material at a place. Angles in radians, lengths in object units."""

    shape: Shape
    material: Material
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0  # in the picture's plane; half a turn stands it on its head
    size: float = 1.0
    place: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of its centre; x to the right, y up, z to the camera
    pose: tuple[float, ...] = ()  # joint angles of a figure, see escdiff.mini.world.geometry.figures
    face: tuple[float, ...] = ()  # mouth, brow, lid of a face, see escdiff.mini.world.geometry.faces


@dataclass(frozen=True)
class Arrangement:
    """Things, how the first stands to the second, and the scene, whose own yaw and pitch count for nothing."""

    things: tuple[Thing, ...]
    scene: Scene
    relation: str = ""  # of the first thing to the second; "" says nothing
    floor: float | None = None  # its height; None: right under the only thing
    names: dict[str, str] = field(default_factory=dict, hash=False)  # "pose", "expression": words for them

    @classmethod
    def of(cls, factors: Factors) -> "Arrangement":
        """One thing alone."""
        thing = Thing(factors.shape, factors.material, factors.scene.yaw, factors.scene.pitch)
        return cls((thing,), factors.scene)

    def without(self, number: int) -> "Arrangement":
        """A copy without one thing; things on top of it stay in place."""
        return replace(self, things=self.things[:number] + self.things[number + 1 :], relation="")

    def with_thing(self, number: int, **changes) -> "Arrangement":
        """A copy with some fields of one thing replaced."""
        things = list(self.things)
        things[number] = replace(things[number], **changes)
        return replace(self, things=tuple(things))

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Arrangement":
        """The inverse of `to_dict`."""
        things = tuple(_thing(value) for value in values["things"])
        return cls(**{**values, "things": things, "scene": Scene(**values["scene"])})


def as_arrangement(picture: "Factors | Arrangement") -> Arrangement:
    """Any picture as an arrangement; `Factors` are one thing alone."""
    return picture if isinstance(picture, Arrangement) else Arrangement.of(picture)


def picture_of(values: dict) -> Factors | Arrangement:
    """Read an arrangement or factors from the plain values of `to_dict`."""
    return Arrangement.from_dict(values) if "things" in values else Factors.from_dict(values)


def _thing(values: dict) -> Thing:
    parts = {"shape": Shape(**tuples(values["shape"])), "material": Material(**tuples(values["material"]))}
    return Thing(**{**tuples(values), **parts})
