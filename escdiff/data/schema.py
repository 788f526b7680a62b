"""The schema of a sample: names of its entries in a shard, and their contents.

A sample is a set of files in a row of a webdataset tar: `{key}.png`, `{key}.json`, `{key}.mask.png`, ...
Keys hold no dot, since webdataset splits the name at the first one.
"""

from collections.abc import Mapping
from typing import Any

from escdiff.support.errors import UserError

IMAGES = ("png", "jpg", "jpeg")
META, MASK, DEPTH = "json", "mask.png", "depth.png"
THINGS = "things.png"  # 8 bits a pixel: bit k where thing k is, bit 4 + k where it is seen
SHAPE_VIEW, APPEARANCE_VIEW = "shape.jpg", "appearance.jpg"  # references for the two filters
KNOWN = (*IMAGES, META, MASK, DEPTH, THINGS, SHAPE_VIEW, APPEARANCE_VIEW)
GROUP = "group"  # in the json of photographs: key of the first of those that differ in colour only
REQUIRED_META = ("caption", "source", "licence")
GROUP_META = ("factors", "group", "shape_id", "material_id", "split")


def image_key(sample: Mapping[str, Any]) -> str:
    """Name of the entry that holds a sample's picture.

    Raises:
        UserError: none is.
    """
    for name in IMAGES:
        if name in sample:
            return name
    raise UserError(f"sample {_name(sample)} has no image; expected one of {', '.join(IMAGES)}")


def validate(sample: Mapping[str, Any], grouped: bool = False) -> None:
    """Check a decoded sample's entries; `grouped` also asks for the Still Life group keys.

    Raises:
        UserError: an entry is missing or of the wrong kind; names the shard and the sample.
    """
    image_key(sample)
    meta = sample.get(META)
    if not isinstance(meta, dict):
        raise UserError(f"sample {_name(sample)} has no {META} entry; expected a JSON object with its caption")
    required = REQUIRED_META + (GROUP_META if grouped else ())
    missing = [key for key in required if key not in meta]
    if missing:
        raise UserError(f"sample {_name(sample)} lacks {', '.join(missing)} in its json; write the shard again")
    if not isinstance(meta["caption"], str):
        raise UserError(f"sample {_name(sample)} has a caption that is not text; write the shard again")


def _name(sample: Mapping[str, Any]) -> str:
    return f"{sample.get('__key__', '?')} of {sample.get('__url__', '?')}"
