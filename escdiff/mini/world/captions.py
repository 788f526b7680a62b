"""Captions of single objects, from one word to all that words can say.

`caption` without a generator names the categories; with one it leaves out some words at random, so that a model sees
brief and full descriptions. `describe` gives the text of a chosen length with the word of each attribute.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from escdiff.data.prompts import TEMPLATES, article
from escdiff.mini.world import words
from escdiff.mini.world.world import Factors, Material, Shape

TRAITS = ("trait0", "trait1", "trait2", "trait3")
SHAPE = ("family", *TRAITS)
MATERIAL = ("color", "color2", "shade", "shade2", "pattern", "scale", "slant", "finish", "gloss")
ATTRIBUTES = (*SHAPE, *MATERIAL, "background")
HIDDEN = {"shape": SHAPE, "appearance": MATERIAL, "background": ("background",)}
NAMES = ("family", "color", "color2", "pattern", "finish", "background")  # what `caption` without a generator says
BRIEF = ("family", "color", "color2", "pattern", "background")  # what a person would type
LENGTHS = ("brief", "medium", "full")
SYNONYM = 0.15  # share of nouns and patterns that are said in another word
# How often a word is kept by the fullest and by the briefest caption; a caption lies anywhere between.
KEPT = dict.fromkeys(NAMES, (1.0, 0.85)) | {"family": (1.0, 1.0), "background": (1.0, 0.8)}
DEGREES_KEPT = (1.0, 0.0)


@dataclass(frozen=True)
class Description:
    """A caption and, per attribute that it says, the words for it: {"trait1": "very tall", "color": "red", ...}."""

    text: str
    words: dict[str, str]


def all_words(factors: Factors) -> dict[str, str]:
    """Attribute -> words, in canonical form, for everything that words can say of a picture."""
    return shape_words(factors.shape) | look_words(factors.material) | {"background": factors.scene.background}


def shape_words(shape: Shape) -> dict[str, str]:
    """The family and the degrees of its parameters."""
    attributes = {"family": shape.family}
    for name, degree in words.shape_degrees(shape).items():
        attributes[name] = words.SHAPE_TRAITS[shape.family][int(name[-1])].phrase(degree)
    return {name: word for name, word in attributes.items() if word}


def look_words(material: Material) -> dict[str, str]:
    """Colours, pattern, finish and their degrees; plain and matte have no word."""
    attributes = {"color": material.color}
    if material.pattern != "plain":
        attributes |= {"color2": material.color2, "pattern": material.pattern}
    if material.finish != "matte":
        attributes["finish"] = material.finish
    tables = {"shade": words.SHADE, "shade2": words.SHADE, "scale": words.SCALE, "slant": words.SLANT}
    for name, degree in words.material_degrees(material).items():
        attributes[name] = (words.GLOSS if name == "gloss" else tables[name])[degree]
    return {name: word for name, word in attributes.items() if word}


def phrase(attributes: Mapping[str, str], noun: str = "object") -> str:
    """A noun phrase without its article and without the background: "very tall dark red mug with a small handle".

    Args:
        attributes: attribute -> words; a degree is left out where its own attribute is.
        noun: stands for an unsaid family.
    """
    traits = [attributes[name] for name in TRAITS if name in attributes and "family" in attributes]
    whole = [trait for trait in traits if not trait.startswith("with ")]
    parts = _joined([trait for trait in traits if trait.startswith("with ")])
    return " ".join([*whole, *look_phrase(attributes), attributes.get("family", noun), *parts])


def look_phrase(attributes: Mapping[str, str]) -> list[str]:
    """The adjectives of a material, in order."""

    def group(degree: str, name: str) -> list[str]:
        return [attributes[part] for part in (degree, name) if part in attributes] if name in attributes else []

    first, second = group("shade", "color"), group("shade2", "color2")
    colors = [*first, *(["and"] if first and second else []), *second]
    names = ("scale", "slant", "pattern") if "pattern" in attributes else ()
    pattern = [attributes[part] for part in names if part in attributes]
    return [*group("gloss", "finish"), *colors, *pattern]


def material_words(material: Material) -> str:
    """E.g. "glossy red and white striped"; matte and plain have no word."""
    attributes = look_words(material)
    return " ".join(look_phrase({name: attributes[name] for name in NAMES if name in attributes}))


def sentence(attributes: Mapping[str, str], rng: np.random.Generator | None = None) -> str:
    """The words in a template, drawn by `rng`."""
    text = phrase(attributes)
    if "background" in attributes:
        text += f" on {article(attributes['background'])} background"
    template = TEMPLATES[0] if rng is None else str(rng.choice(TEMPLATES, p=(0.5, 0.15, 0.15, 0.1, 0.1)))
    return template.format(text if template.startswith("one") else article(text))


def describe(factors: Factors, length: str = "full", hide: Collection[str] = ()) -> Description:
    """A caption of one of `LENGTHS`.

    "brief": what a person would type: family, colours, pattern, background; "medium": with the finish and the two
    most marked proportions; "full": all that words can say. `hide` as in `caption`.
    """
    attributes = _visible(all_words(factors), hide)
    if length == "brief":
        attributes = {name: word for name, word in attributes.items() if name in BRIEF}
    elif length == "medium":
        marked = sorted(TRAITS, key=lambda name: -abs(factors.shape.params[int(name[-1])] - 0.5))[:2]
        attributes = {name: word for name, word in attributes.items() if name in (*NAMES, *marked)}
    elif length != "full":
        raise ValueError(f"length is {length!r}; give one of {', '.join(LENGTHS)}")
    return Description(sentence(attributes), attributes)


def caption(
    factors: Factors, rng: np.random.Generator | None = None, hide: Collection[str] = (), least: float = 0.0
) -> str:
    """Describe `factors` in words.

    Args:
        rng: draws how full the caption is, each word by itself, synonyms and the template; without it the canonical
            caption of category words is given.
        hide: "shape" says "object" for the family and nothing of its proportions, "appearance" drops the material
            words, "background" drops the background.
        least: how full a drawn caption is at least, 0..1.
    """
    attributes = _visible(all_words(factors), hide)
    if rng is None:
        return sentence({name: word for name, word in attributes.items() if name in NAMES})
    return sentence(draw_words(attributes, rng, least=least), rng)


def draw_words(
    attributes: Mapping[str, str], rng: np.random.Generator, most: float = 1.0, least: float = 0.0
) -> dict[str, str]:
    """Some of the words, each kept by chance, some by a synonym; how full the caption is, is drawn in `least..most`."""
    fullness = least + rng.random() * (most - least)
    drawn = {}
    for name, word in attributes.items():
        high, low = KEPT.get(name, DEGREES_KEPT)
        if rng.random() < low + (high - low) * fullness:
            drawn[name] = synonym(name, word, rng)
    return drawn


def synonym(name: str, word: str, rng: np.random.Generator) -> str:
    """Now and then another word for a family or a pattern."""
    synonyms = {"family": words.FAMILY_SYNONYMS, "pattern": words.PATTERN_SYNONYMS}.get(name, {}).get(word, ())
    return str(rng.choice(synonyms)) if synonyms and rng.random() < SYNONYM else word


def _visible(attributes: Mapping[str, str], hide: Collection[str]) -> dict[str, str]:
    hidden = {name for kind in hide for name in HIDDEN[kind]}
    return {name: word for name, word in attributes.items() if name not in hidden}


def _joined(parts: list[str]) -> list[str]:
    """ "with a thin stem", "with a long stem", "with a flat cap" -> "with a thin long stem and a flat cap"."""
    merged: dict[str, list[str]] = {}
    for part in parts:
        *adjectives, name = part.removeprefix("with ").split()
        merged_adjectives = merged.setdefault(name, [])
        merged_adjectives += adjectives[1:] if merged_adjectives and adjectives[0] in ("a", "an") else adjectives
    return ["with " + " and ".join(" ".join([*adjectives, name]) for name, adjectives in merged.items())] * bool(parts)
