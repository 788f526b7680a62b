"""Arrangements drawn at random: two or three things in a relation, figures in poses, faces with expressions."""

from dataclasses import replace

import numpy as np

from escdiff.mini.world import world
from escdiff.mini.world.arrangement import Arrangement, Thing
from escdiff.mini.world.colors import BACKGROUNDS, readable
from escdiff.mini.world.geometry.extents import extent
from escdiff.mini.world.geometry.faces import EXPRESSIONS, FACE, IDENTITY
from escdiff.mini.world.geometry.figures import BODIES, POSES, pose_angles
from escdiff.mini.world.world import Material, Scene, Shape

RELATIONS = ("on", "under", "left of", "right of", "in front of", "behind", "inside")
UNNAMED_RELATIONS = ("hovering above", "leaning against", "stacked upside down")  # for us; no caption says them
PATTERNS = ("plain", "gradient", "striped")  # what can be told on an object of fifty pixels
SCALES = (0.65, 1.05)  # coarse, in units of the object
SUPPORTS = ("cube", "cylinder", "table")  # flat on top
# Of these one sees that they stand on their heads.
TOPPLED = ("mug", "chair", "rocket", "dog", "mushroom", "snowman", "house", "table", "heart", "cone", "pyramid")
UPRIGHT = ("capsule", "cylinder", "star", "rocket", "cross", "diamond", "heart")  # can be seen to lean
FLOOR = -0.82  # before the whole is moved into the frame
TALL, WIDE, LARGER = 1.7, 2.2, 1.4  # an arrangement is scaled to this height or width, by no more than this
SLOPE = 0.38  # how much lower in the picture a thing appears per unit that it is nearer
PAIR, TRIPLE = 0.56, 0.42  # sizes of things that stand side by side
CLEAR = 0.06  # half the gap between neighbours


def sample_arrangement(
    rng: np.random.Generator, relations: tuple[str, ...] = RELATIONS, families: tuple[str, ...] = world.FAMILIES
) -> Arrangement:
    """Two things in a relation, or (one in four of those side by side) three in a row."""
    relation = str(rng.choice(relations))
    shapes = _shapes(rng, relation, families)
    if relation in ("left of", "right of") and rng.random() < 0.25:
        shapes.append(_other_shape(rng, families, shapes))
    scene, materials = _scene_and_materials(rng, len(shapes))
    yaws = rng.uniform(0.05, 0.85, len(shapes)).round(4).tolist()
    things = [Thing(s, m, yaw) for s, m, yaw in zip(shapes, materials, yaws, strict=True)]
    things, floor = _framed(_place(rng, relation, things))
    return Arrangement(tuple(things), scene, relation, floor)


def sample_figure(
    rng: np.random.Generator, poses: tuple[str, ...] = tuple(POSES), bodies: tuple[str, ...] = BODIES
) -> Arrangement:
    """One figure; its `names` tell the pose. `poses` may hold "unnamed0" to "unnamed3"."""
    pose = str(rng.choice(poses))
    body = Shape(str(rng.choice(bodies)), _numbers(rng, 4))
    material = world.sample_material(rng, PATTERNS)
    scene = world.sample_scene(rng, material)
    yaw = round(rng.uniform(0.2, 0.8), 4)
    return Arrangement((Thing(body, material, yaw, pose=pose_angles(pose)),), scene, names={"pose": pose})


def sample_face(rng: np.random.Generator, expressions: tuple[str, ...] = tuple(EXPRESSIONS)) -> Arrangement:
    """One face; its material's colour is that of the hair, its `names` tell the expression."""
    expression = str(rng.choice(expressions))
    face = Shape(FACE, _numbers(rng, len(IDENTITY)))
    material = world.sample_material(rng, ("plain",))
    scene = world.sample_scene(rng, material)
    thing = Thing(face, material, round(rng.uniform(-0.1, 0.5), 4), face=EXPRESSIONS[expression])
    return Arrangement((thing,), scene, names={"expression": expression})


def _numbers(rng: np.random.Generator, count: int) -> tuple[float, ...]:
    return tuple(rng.random(count).round(5).tolist())


def _shapes(rng: np.random.Generator, relation: str, families: tuple[str, ...]) -> list[Shape]:
    """Two shapes of different families that the relation can hold between."""
    hosts = {"on": SUPPORTS, "stacked upside down": SUPPORTS, "hovering above": SUPPORTS, "under": ("table",)}
    hosts |= {"inside": ("mug",), "leaning against": ("cube", "house", "cylinder")}
    host = world.sample_shape(rng, _allowed(hosts.get(relation, families), families))
    a, b, c, d = host.params
    if relation == "inside":  # wide, low, open
        host = replace(host, params=(0.7 + 0.3 * a, 0.5 * b, c, 0.6 + 0.4 * d))
    elif relation == "under":  # wide, tall, thin legs
        host = replace(host, params=(0.7 + 0.3 * a, b, 0.8 + 0.2 * c, 0.4 * d))
    elif host.family == "cube":  # not tapered
        host = replace(host, params=(a, 0.6 * b, 0.5 * c, 0.4 * d))
    elif host.family == "cylinder" and relation != "leaning against":  # low and without a hole
        host = replace(host, params=(0.4 + 0.6 * a, 0.6 * b, c, 0.19 * d))
    guests = {"leaning against": _allowed(UPRIGHT, families), "stacked upside down": _allowed(TOPPLED, families)}
    return [_other_shape(rng, guests.get(relation, families), [host]), host]


def _allowed(choices: tuple[str, ...], families: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f for f in choices if f in families) or choices


def _other_shape(rng: np.random.Generator, families: tuple[str, ...], shapes: list[Shape]) -> Shape:
    used = {shape.family for shape in shapes}
    return world.sample_shape(rng, tuple(f for f in families if f not in used))


def _scene_and_materials(rng: np.random.Generator, count: int) -> tuple[Scene, list[Material]]:
    """Materials without a colour in common, and a background on which each of them stands out."""
    while True:
        materials = [_coarse(rng, world.sample_material(rng, PATTERNS)) for _ in range(count)]
        names = [{m.color} if m.pattern == "plain" else {m.color, m.color2} for m in materials]
        backgrounds = [b for b in BACKGROUNDS if all(readable(m.rgb, m.color, b) for m in materials)]
        if backgrounds and sum(map(len, names)) == len(set().union(*names)):
            scene = world.sample_scene(rng, materials[0])
            return replace(scene, background=str(rng.choice(backgrounds)), dx=0.0, dy=0.0, zoom=1.0), materials


def _coarse(rng: np.random.Generator, material: Material) -> Material:
    return replace(material, scale=round(rng.uniform(*SCALES), 5))


def _place(rng: np.random.Generator, relation: str, things: list[Thing]) -> list[Thing]:
    """The things at their sizes and places."""
    first, second, *rest = things
    if relation in ("left of", "right of"):
        row = [first, second, *rest] if relation == "left of" else [second, first, *rest]
        row = _side_by_side([replace(t, size=TRIPLE if rest else PAIR) for t in row])
        return row if relation == "left of" else [row[1], row[0], *row[2:]]
    if relation in ("in front of", "behind"):
        shift, near = float(rng.choice([-0.3, 0.3])), replace(first if relation == "in front of" else second, size=0.5)
        far = replace(second if relation == "in front of" else first, size=0.62)
        near, far = _standing(near, -shift, 0.6), _standing(far, shift, -0.6)
        return [near, far] if relation == "in front of" else [far, near]
    if relation == "under":
        table = _standing(replace(second, size=0.95), 0.0, 0.0)
        clear = extent(table)[1, 1] + table.place[1] - FLOOR - 0.22
        return [_standing(_fitted(first, clear, 0.95, 0.5), 0.0, 0.1), table]
    if relation == "inside":
        mug = _standing(replace(second, size=0.85, yaw=0.5 * second.yaw), 0.0, 0.0)
        rim = extent(mug)[1, 1] + mug.place[1]
        room = 1.45 * (0.32 + 0.3 * second.shape.params[0]) * mug.size
        guest = _fitted(replace(first, pitch=0.0), 1.15, room, 0.55)
        deep = float(rim - extent(guest)[0, 1] - 0.42 * np.ptp(extent(guest)[:, 1]))
        return [replace(guest, place=(0.0, round(deep, 4), 0.0)), mug]
    if relation == "leaning against":
        wall = _standing(replace(second, size=0.62), 0.0, 0.0)
        stick = replace(first, size=0.62, roll=-0.42)
        row = _side_by_side([stick, wall], gap=-0.07)
        return row
    if relation in ("on", "hovering above", "stacked upside down"):
        base = _standing(replace(second, size=0.58), 0.0, 0.0)
        guest = _fitted(first, 0.95, 1.1, 0.5)
        guest = replace(guest, roll=np.pi if relation == "stacked upside down" else 0.0)
        top = float(extent(base)[1, 1] + base.place[1]) + (0.32 if relation == "hovering above" else 0.0)
        return [replace(guest, place=(0.0, round(top - float(extent(guest)[0, 1]), 4), 0.0)), base]
    raise ValueError(f"unknown relation {relation!r}")


def _framed(things: list[Thing]) -> tuple[list[Thing], float]:
    """The things, scaled and moved so that together they fill the frame, and the height of their floor."""
    reach = np.stack([extent(t) + t.place - np.array([0, SLOPE * t.place[2], 0]) for t in things])
    low, high = reach[:, 0].min(0), reach[:, 1].max(0)
    k = float(min(TALL / (high[1] - low[1]), WIDE / (high[0] - low[0]), LARGER))
    middle = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, 0])
    moved = [((np.array(t.place) - middle) * k).round(4).tolist() for t in things]
    floor = round((FLOOR - float(middle[1])) * k, 4)
    return [replace(t, size=round(t.size * k, 4), place=tuple(p)) for t, p in zip(things, moved, strict=True)], floor


def _standing(thing: Thing, x: float, z: float) -> Thing:
    """The thing on the floor."""
    return replace(thing, place=(round(x, 4), round(FLOOR - float(extent(thing)[0, 1]), 4), round(z, 4)))


def _fitted(thing: Thing, height: float, width: float, most: float) -> Thing:
    """The thing as large as `height` and `width` allow, and no larger than `most`."""
    wide, tall, deep = np.ptp(extent(replace(thing, size=1.0)), axis=0)
    return replace(thing, size=round(float(min(most, height / tall, width / max(wide, deep))), 4))


def _side_by_side(things: list[Thing], gap: float = CLEAR) -> list[Thing]:
    """Left to right on the floor, the row's middle in the picture's."""
    edge, placed = 0.0, []
    for thing in things:
        low, high = extent(thing)[:, 0]
        placed.append(edge - float(low))
        edge += float(high - low) + 2 * gap
    middle = (edge - 2 * gap) / 2
    return [_standing(thing, x - middle, 0.0) for thing, x in zip(things, placed, strict=True)]
