"""Concept files in front of `python infer.py`: one, several in one prompt, or the shape of one and another's look."""

from pathlib import Path

from escdiff.errors import UserError

SUFFIX = ".safetensors"


def uses_files(config: dict) -> bool:
    """Whether concepts come from files rather than from pictures."""
    return bool(config["concept"]) or any(str(config[key] or "").endswith(SUFFIX) for key in ("shape", "appearance"))


def load_concepts(config: dict) -> tuple[dict, tuple[list, list[Path]]]:
    """File stem -> concept, and the concepts as read with their folders, for the weights that some bring along.

    Several files of `concept=mug=FILE,dog=FILE` give one concept with the placeholders <mug> and <dog>; without names,
    the files' stems.

    Raises:
        UserError: a picture beside a concept file, a missing or damaged file, or concepts that do not go together.
    """
    from escdiff.concept import Concept
    from escdiff.encoder.checkpoint import read_gates
    from escdiff.mixing import mix, split

    named = config["concept"] or ""
    parts = [named] if Path(named).is_file() else [part.strip() for part in named.split(",") if part.strip()]
    names = {stem or Path(path).stem: Path(path) for stem, _, path in (_named(part) for part in parts)}
    if named and not parts:
        raise UserError(f"concept={named} names no file; expected FILE, or NAME=FILE,NAME=FILE")
    if len(names) < len(parts):
        raise UserError(f"concept={named} gives two concepts one name; expected NAME=FILE,NAME=FILE")
    paths = list(names.values()) or [Path(config[key] or "") for key in ("shape", "appearance")]
    if not parts and not all(path.suffix == SUFFIX for path in paths):
        given = next(key for key, path in zip(("shape", "appearance"), paths, strict=True) if path.suffix == SUFFIX)
        raise UserError(f"{given}= is a concept file; expected one for the other too, or concept=FILE")
    read = [Concept.load(path) for path in paths]
    gates = read_gates(config["encoder"], read[0]) if config["mix"] == "gates" else None
    if not parts:
        found = mix(*read, config["mix"], gates)
    elif len(read) > 1:
        found = Concept.combine(**{name: renamed(c, name) for name, c in zip(names, read, strict=True)})
    else:
        found = read[0]
        wanted = [name for name in ("shape", "appearance") if f"<{name}>" in (config["prompt"] or "")]
        if any(name not in found.attributes for name in wanted):
            found = split(found, config["mix"], gates)
    return {"-".join(path.stem for path in paths): found}, (read, [path.parent for path in paths])


def _named(part: str) -> tuple[str, str, str]:
    """NAME=FILE, or a file alone."""
    name, equals, path = part.partition("=")
    return (name.strip(), equals, path.strip()) if equals and not Path(part).is_file() else ("", "", part)


def renamed(concept, name: str):
    """A concept with all of its vectors under one name."""
    from dataclasses import replace

    import torch

    vectors, anchors = torch.cat(list(concept.vectors.values()), 2), torch.cat(list(concept.anchors.values()))
    return replace(concept, vectors={name: vectors}, anchors={name: anchors}, gates={})
