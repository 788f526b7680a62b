"""The folder that `python infer.py` leaves behind."""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from PIL import Image, ImageOps

from escdiff import __version__
from escdiff.concept import Concept
from escdiff.figure import picture_grid

PER_ROW = 4


def write_results(
    config: dict, references: Mapping[str, Image.Image], concepts: Mapping[str, Concept], prompts: Sequence[str],
    painted: Sequence[Image.Image], columns: Sequence[str], seconds,
) -> Path:  # fmt: skip
    """Write grid.png, picture-NNN.png, the concepts and run.json; returns the folder.

    Args:
        painted: row by row; with `columns`, each row is the reference and what was made of it, else the first
            row of the grid holds the references.
        seconds: `escdiff.cli.infer.Seconds`.
    """
    out = Path(config["out"]).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    with seconds.phase("write"):
        for i, picture in enumerate(painted):
            picture.save(out / f"picture-{i:03d}.png")
        for stem, concept in concepts.items():
            concept.save(out / f"{stem}.safetensors")
        grid(references, painted, columns).save(out / "grid.png")
    about = {
        "seconds": dict(seconds), "pictures": len(painted),
        "prompts": list(dict.fromkeys(prompts)), "concepts": [f"{stem}.safetensors" for stem in concepts],
        "config": config,
        "versions": {"escdiff": __version__, "python": platform.python_version(),
                     **{name: version(name) for name in ("torch", "diffusers", "transformers")}},
    }  # fmt: skip
    (out / "run.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    return out


def grid(references: Mapping[str, Image.Image], painted: Sequence[Image.Image], columns: Sequence[str]) -> Image.Image:
    """One picture to look at; references are cut to their centre square, which is what the encoder saw."""
    shown = [ImageOps.fit(picture, painted[0].size) for picture in references.values()]
    names = [Path(source).stem for source in references]
    if columns:
        width = len(columns) - 1
        rows = [[shown[i], *painted[i * width : (i + 1) * width]] for i in range(len(shown))]
        return picture_grid(rows, names, columns)
    rows = [list(painted[i : i + PER_ROW]) for i in range(0, len(painted), PER_ROW)]
    labels = [""] * len(rows)
    if shown:
        rows, labels = [shown, *rows], [" · ".join(dict.fromkeys(names)), *labels]
    return picture_grid(rows, labels)
