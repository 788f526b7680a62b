"""Tasks that look again at the pictures of other tasks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from escdiff.evaluation.bench import scores
from escdiff.evaluation.bench.copies import copy
from escdiff.evaluation.bench.records import Record

Records = Mapping[str, Sequence[Record]]


def leak(done: Records, *_) -> list[Record]:
    """Leaks: attributes that were not asked for and show all the same.

    In `shape` a colour is said in words that is none of the reference's; in `appearance` another family is. The other
    instance, for chance, shares neither with the words nor with the reference.
    """
    records = []
    for record in done["shape"]:
        request, seen = record.request, {record.reading["color"]}
        if record.reading["pattern"] != "plain":
            seen.add(record.reading["color2"])
        values = {
            "shape_to_appearance": float(request.shape.material.color in seen),
            "chance_shape_to_appearance": float(request.other.material.color in seen),
        }
        records.append(replace(record, values=values))
    for record in done["appearance"]:
        read, request = record.reading["family"], record.request
        values = {
            "appearance_to_shape": float(read == request.appearance.shape.family),
            "chance_appearance_to_shape": float(read == request.other.shape.family),
        }
        records.append(replace(record, values=values))
    return records


def edit(done: Records, *_) -> list[Record]:
    """Scores of the words beside a concept: background in `both`, colour in `shape`, family in `appearance`."""
    worded = {"both": "background", "shape": "color", "appearance": "family"}
    return [replace(r, values={name: r.values[name]}) for task, name in worded.items() for r in done[task]]


def floor(done: Records, *_) -> list[Record]:
    """The pictures of `both` judged against the next request's instance: another instance's reference was given."""
    names, records = ("family", "pattern", "color", "params", "delta_e"), []
    for record, other in zip(done["both"], [*done["both"][1:], done["both"][0]], strict=True):
        values = scores.judge(names, record.reading, other.request.expected)
        request = replace(record.request, expected=other.request.expected)
        records.append(replace(record, request=request, values={f"other_{k}": v for k, v in values.items()}))
    return records


DERIVED: dict[str, Callable[[Records, Path, int], list[Record]]] = {
    "leak": leak, "edit": edit, "floor": floor, "copy": copy,
}  # fmt: skip
