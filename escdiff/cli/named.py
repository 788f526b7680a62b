"""Several references in one prompt of `python infer.py`: `concept=mug=a.png,dog=b.png`, each read in one pass.

Parts of one picture are told apart by masks: `concept=mug=photo.png,dog=photo.png mask=mug=m.png,dog=d.png`.
"""

from collections.abc import Mapping

from escdiff.cli.files import load_concepts, pictures_of
from escdiff.support.config.infer import InferConfig
from escdiff.support.errors import UserError


def encode_named(config: InferConfig, pictures: Mapping, encoder) -> dict:
    """Name -> concept, as its file holds it, of the pictures that `concept=` names.

    Args:
        pictures: by path.

    Raises:
        UserError: a mask that is wrong, see `named_masks`.
    """
    from pathlib import Path

    from escdiff.backbone import pick_dtype

    dtype, given = pick_dtype(config.concept_dtype, "concept_dtype"), pictures_of(config)
    masks = named_masks(given, config.mask, config.segmenter, encoder.vision.image_size)
    return {
        name: encoder.encode(pictures[source], masks.get(name), note=Path(source).name).as_stored(dtype)
        for name, source in given.items()
    }


def named_masks(given: Mapping[str, str], mask: str | None, segmenter: str | None, size: int) -> dict:
    """Name -> (1, size, size), 1 on the object; those without a clear object are left out.

    Args:
        given: name -> picture. mask: auto, NAME=FILE,NAME=FILE, or a file if there is one picture.

    Raises:
        UserError: a name that no picture has, or a file that is no mask of its picture.
    """
    from escdiff.cli.masks import find_mask, to_tensor

    if not mask:
        return {}
    named = dict(part.partition("=")[::2] for part in mask.split(",")) if "=" in mask else dict.fromkeys(given, mask)
    named = {name.strip(): path.strip() for name, path in named.items()}
    if strange := [name for name in named if name not in given]:
        what = f"mask={mask} names {strange[0]!r}, which is no picture of concept="
        raise UserError(f"{what}; expected {', '.join(f'{name}=FILE' for name in given)}, or auto")
    if mask != "auto" and "=" not in mask and len(given) > 1:
        names = ",".join(f"{name}=FILE" for name in given)
        raise UserError(f"mask={mask} was given with {len(given)} pictures; expected mask={names}, or mask=auto")
    found = {name: find_mask(given[name], path, segmenter) for name, path in named.items()}
    return {name: to_tensor(array, size) for name, array in found.items() if array is not None}


def join_named(config: InferConfig, made: Mapping) -> tuple[dict, tuple[list, list]]:
    """As `load_concepts`, with those that were made of pictures.

    Raises:
        UserError: a prompt that leaves a picture out, or concepts that do not go together.
    """
    for name in made:
        if config.prompt and not any(f"<{name}{part}>" in config.prompt for part in ("", "-shape", "-appearance")):
            raise UserError(f"{name}= was given, but the prompt {config.prompt!r} has no <{name}>; write it or drop it")
    return load_concepts(config, made)


def named_prompt(config: InferConfig) -> str:
    """All that `concept=` names, in one phrase."""
    from escdiff.cli.files import given_concepts

    return f"a photo of {' and '.join(f'a <{name}>' for name in given_concepts(config))}"
