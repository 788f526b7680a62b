"""Concept files in front of `python infer.py`: one, several in one prompt, or the shape of one and another's look."""

from collections.abc import Mapping
from pathlib import Path

from escdiff.support.config.infer import InferConfig
from escdiff.support.errors import UserError

SUFFIX = ".safetensors"


def uses_files(config: InferConfig) -> bool:
    """Whether concepts come from files rather than from pictures alone."""
    given = [*given_concepts(config).values(), *map(Path, config.given("shape", "appearance").values())]
    return any(path.suffix == SUFFIX for path in given) or len(pictures_of(config)) < len(given_concepts(config))


def given_concepts(config: InferConfig) -> dict[str, Path]:
    """Name -> what `concept=` names: FILE, or NAME=FILE,NAME=FILE; without a name, the file's stem.

    Raises:
        UserError: no file, or one name twice.
    """
    parts = _parts(config)
    names = {name or path.stem: path for name, path in parts}
    if config.concept and not parts:
        raise UserError(f"concept={config.concept} names no file; expected FILE, or NAME=FILE,NAME=FILE")
    if len(names) < len(parts):
        raise UserError(f"concept={config.concept} gives two concepts one name; expected NAME=FILE,NAME=FILE")
    return names


def pictures_of(config: InferConfig) -> dict[str, str]:
    """Name -> picture, of those parts of `concept=NAME=FILE,NAME=FILE` whose file is a picture.

    A file alone, without a name, is a concept's.
    """
    from escdiff.data.pictures import SUFFIXES

    given = given_concepts(config)
    if len(given) == 1 and not _parts(config)[0][0]:
        return {}
    return {name: str(path) for name, path in given.items() if path.suffix.lower() in SUFFIXES}


def _parts(config: InferConfig) -> list[tuple[str, Path]]:
    from escdiff.data.pictures import expand

    named = config.concept or ""
    parts = [named] if expand(named).is_file() else [part.strip() for part in named.split(",") if part.strip()]
    return [_parse_named(part) for part in parts]


def load_concepts(
    config: InferConfig, made: Mapping[str, object] | None = None
) -> tuple[dict, tuple[list, list[Path]]]:
    """File stem -> concept, and the concepts as read with their folders, for the weights that some bring along.

    Several files of `concept=mug=FILE,dog=FILE` give one concept with the placeholders <mug> and <dog>; without names,
    the files' stems. One with a name, `concept=mug=FILE`, has the placeholder <mug>. One with a shape and an appearance
    has <mug-shape> and <mug-appearance> too. USER/REPO/NAME is one on the hub.

    Args:
        made: name -> concept of those that are pictures, see `pictures_of`.

    Raises:
        UserError: a picture beside a concept file, a missing or damaged file, or concepts that do not go together.
    """
    from escdiff.cli.results import file_stem
    from escdiff.concept import IMAGE_TOKENS, Concept
    from escdiff.concept.mixing import mix, split
    from escdiff.concept.naming import under
    from escdiff.encoder.checkpoint import read_gates
    from escdiff.encoder.hub import concept_file

    parts, names, made = _parts(config), given_concepts(config), made or {}
    given = names or {key: Path(getattr(config, key) or "") for key in ("shape", "appearance")}
    paths = list(given.values())
    if not parts and not all(path.suffix == SUFFIX for path in paths):
        which = next(key for key, path in given.items() if path.suffix == SUFFIX)
        raise UserError(f"{which}= is a concept file; expected one for the other too, or concept=FILE")
    files = {name: path if name in made else concept_file(path.as_posix()) for name, path in given.items()}
    read = [made.get(name) or Concept.load(file) for name, file in files.items()]
    if len(names) > 1 < sum(IMAGE_TOKENS in concept.extras for concept in read):
        raise UserError("two concepts with pictures of their own were given, and a U-Net takes one; give one at a time")
    gates = read_gates(config.encoder.name, read[0]) if config.mix == "gates" else None
    if not parts:
        found = mix(*read, config.mix, gates)
    elif len(read) > 1 or parts[0][0]:
        found = Concept.combine(**{n: c for own in map(under, names, read) for n, c in own.items()})
    else:
        found = read[0]
        wanted = [name for name in ("shape", "appearance") if f"<{name}>" in (config.prompt or "")]
        if any(name not in found.attributes for name in wanted):
            found = split(found, config.mix, gates)
    return {file_stem("-".join(path.stem for path in paths)): found}, (read, [file.parent for file in files.values()])


def _parse_named(part: str) -> tuple[str, Path]:
    """NAME=FILE, or a file alone."""
    from escdiff.data.pictures import expand

    name, equals, path = part.partition("=")
    return (name.strip(), expand(path)) if equals and not expand(part).is_file() else ("", expand(part))
