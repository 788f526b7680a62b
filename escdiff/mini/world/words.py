"""Words for what is continuous: five degrees per parameter, the middle one unsaid.

A degree is a fifth of the parameter's range, so two instances with the same words may still differ: within a degree,
and in all that a caption leaves out.
"""

from dataclasses import dataclass

from escdiff.mini.world.world import SCALES, TILT, Material, Shape

DEGREES = 5


@dataclass(frozen=True)
class Trait:
    """A parameter of a shape in words: those of its five degrees, and the part that they speak of."""

    words: tuple[str, ...]
    part: str = ""  # "" for the whole object; else "with a small handle"
    many: bool = False  # parts, without an article

    def phrase(self, degree: int) -> str:
        """E.g. "very tall", "with a small handle"; "" for the middle degree."""
        word = self.words[degree]
        if not word or not self.part:
            return word
        if word == "no" or self.many:
            return f"with {word} {self.part}"
        return f"with {'an' if word[0] in 'aeiou' else 'a'} {word} {self.part}"


def five(low: str, high: str) -> tuple[str, ...]:
    """Words of the five degrees between two adjectives; the middle one has none."""
    return f"very {low}", low, "", high, f"very {high}"


def _whole(low: str, high: str) -> Trait:
    return Trait(five(low, high))


def _part(part: str, low: str, high: str, many: bool = False) -> Trait:
    return Trait(five(low, high), part, many)


HOLE = Trait(("no", "small", "", "large", "very large"), "hole")
SHAPE_TRAITS: dict[str, tuple[Trait, Trait, Trait, Trait]] = {
    "ball": (_whole("flat", "tall"), _whole("narrow", "wide"), _whole("round", "pointed"), _whole("smooth", "ribbed")),
    "cube": (_whole("narrow", "wide"), _whole("flat", "tall"), _whole("sharp", "rounded"),
             _whole("straight", "tapered")),
    "cylinder": (_whole("narrow", "wide"), _whole("short", "tall"), _whole("pinched", "bulging"), HOLE),
    "cone": (_whole("narrow", "wide"), _whole("short", "tall"), _whole("pointed", "blunt"),
             _whole("flared", "bulging")),
    "torus": (_whole("small", "large"), _whole("thin", "thick"), _whole("round", "oval"), _whole("smooth", "bumpy")),
    "capsule": (_whole("thin", "thick"), _whole("short", "long"), _whole("straight", "bent"),
                _whole("even", "tapered")),
    "pyramid": (_whole("narrow", "wide"), _whole("flat", "tall"), _whole("pointed", "blunt"),
                _whole("shallow", "deep")),
    "star": (_whole("slender", "plump"), _whole("thin", "thick"),
             Trait(("four", "five", "six", "seven", "eight"), "points", True), HOLE),
    "heart": (_whole("narrow", "wide"), _whole("thin", "thick"), _whole("short", "tall"), HOLE),
    "mug": (_whole("narrow", "wide"), _whole("short", "tall"), _part("handle", "small", "large"),
            _whole("tapered", "flared")),
    "gear": (_part("hole", "small", "large"), _whole("thin", "thick"), _part("teeth", "few", "many", True),
             _part("teeth", "short", "long", True)),
    "cross": (_whole("thin", "thick"), _whole("narrow", "wide"), _whole("short", "tall"),
              _part("knobs", "small", "large", True)),
    "chair": (_whole("narrow", "wide"), _part("back", "low", "high"), _part("seat", "low", "high"),
              _part("legs", "thin", "thick", True)),
    "rocket": (_whole("thin", "thick"), _whole("short", "long"), _part("fins", "small", "large", True),
               _part("nose", "short", "long")),
    "dog": (_whole("short", "long"), _whole("thin", "fat"), _part("legs", "short", "long", True),
            _part("head", "small", "large")),
    "mushroom": (_part("cap", "narrow", "wide"), _part("stem", "thin", "thick"), _part("stem", "short", "long"),
                 _part("cap", "flat", "tall")),
    "snowman": (_part("base", "small", "large"), _part("belly", "small", "large"), _part("head", "small", "large"),
                _part("hat", "low", "tall")),
    "diamond": (_whole("narrow", "wide"), _whole("short", "tall"), _part("waist", "low", "high"),
                _part("top", "pointed", "flat")),
    "house": (_whole("narrow", "wide"), _part("walls", "low", "high", True), _part("chimney", "small", "large"),
              _part("roof", "flat", "steep")),
    "table": (_whole("narrow", "wide"), _part("top", "square", "round"), _whole("low", "tall"),
              _part("legs", "thin", "thick", True)),
}  # fmt: skip
SHADE = five("dark", "pale")
SCALE = five("fine", "broad")
SLANT = ("strongly right leaning", "right leaning", "", "left leaning", "strongly left leaning")
GLOSS = ("faintly", "slightly", "", "quite", "very")

FAMILY_SYNONYMS = {
    "ball": ("sphere",), "cube": ("block",), "cylinder": ("drum",), "torus": ("donut",), "capsule": ("pill",),
    "mug": ("cup",), "gear": ("cog",), "chair": ("seat",), "rocket": ("spaceship",), "dog": ("puppy",),
    "mushroom": ("toadstool",), "diamond": ("gem",), "house": ("hut",), "table": ("desk",),
}  # fmt: skip
PATTERN_SYNONYMS = {
    "ringed": ("hooped",), "checkered": ("checked",), "dotted": ("spotted",), "zigzag": ("chevron",),
    "speckled": ("flecked",), "marbled": ("veined",), "wavy": ("rippled",), "gradient": ("fading",),
    "striped": ("streaked",),
}  # fmt: skip


def degree(value: float) -> int:
    """0..4 of a parameter in 0..1."""
    return min(max(int(value * DEGREES), 0), DEGREES - 1)


def shape_degrees(shape: Shape) -> dict[str, int]:
    """Degrees of the four parameters, "trait0" to "trait3"; none for what has no name."""
    if shape.family not in SHAPE_TRAITS:
        return {}
    return {f"trait{i}": degree(value) for i, value in enumerate(shape.params)}


def material_values(material: Material) -> dict[str, float]:
    """ "shade", "shade2", "scale", "slant" and "gloss" in 0..1, those that the material shows."""
    values = {"shade": material.shade, "shade2": material.shade2, "gloss": material.gloss}
    values["scale"] = (material.scale - SCALES[0]) / (SCALES[1] - SCALES[0])
    values["slant"] = material.angle / (2 * TILT) + 0.5
    names = {"slant": "angle"}
    return {name: value for name, value in values.items() if material.shows(names.get(name, name))}


def material_degrees(material: Material) -> dict[str, int]:
    """Degrees of what `material_values` gives."""
    return {name: degree(value) for name, value in material_values(material).items()}
