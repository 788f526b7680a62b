"""Concepts for the comparison: every contender sees the same pictures; what is there already is kept."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from escdiff.concept import Concept
from escdiff.data.images import open_image
from escdiff.encoder import ConceptEncoder
from escdiff.evaluation.contenders import Contender
from escdiff.evaluation.records import write
from escdiff.methods.base import CONCEPT
from escdiff.methods.weights import ADAPTER
from escdiff.places import configs_folder
from escdiff.training.run import train

EXPORT, MARK = "export", "made.json"


def customize(
    contender: Contender, picture: Path, folder: Path, settings: str, common: Mapping[str, Any], steps: int,
    learned: Path | None, encoder: ConceptEncoder | None,
) -> dict[str, Any]:  # fmt: skip
    """Make the concept of one picture; what it cost comes back, and is kept in the folder.

    Args:
        settings: hash of all that the concept depends on; a folder with the same one is not made again.
        common: "backbone", "seed" and "encoder" of the comparison.
        learned: folder of the encoder that the method learned, if it has one.
        encoder: ESCDiff's, for the contender without a method.

    Returns:
        "seconds", "bytes" stored, "shared" bytes that serve every concept, "parameters" changed, "steps"; where the
        method notes it, "density" (see `losses.density`) of its vectors, and "density_of_word".
    """
    export = folder / EXPORT
    try:
        made = json.loads((folder / MARK).read_text())
        if made["settings"] == settings and (export / CONCEPT).is_file():
            return made
    except (OSError, ValueError, KeyError):
        pass
    if contender.method:
        run(contender, folder, common, steps, {"references": str(picture)}, learned)
        notes = Concept.load(export / CONCEPT).notes
        cost = {
            "seconds": float(notes["seconds"]),
            "parameters": int(notes["parameters"]),
            "steps": int(notes["steps"]),
        }
    else:
        start = time.perf_counter()
        encoder.encode(open_image(picture), note=picture.name).save(export / CONCEPT)
        notes, cost = {}, {"seconds": time.perf_counter() - start, "parameters": 0, "steps": 0}
    weights = sum(file.stat().st_size for file in (export / ADAPTER).glob("*"))
    shared = weights if "shared_weights" in notes else 0
    size = (export / CONCEPT).stat().st_size + weights - shared
    density = {key: float(notes[key]) for key in ("density", "density_of_word") if key in notes}
    made = {"settings": settings, **cost, "bytes": size, "shared": shared, **density}
    write(folder / MARK, json.dumps(made, indent=1) + "\n")
    return made


def learn(contender: Contender, folder: Path, common: Mapping[str, Any], steps: int, root: str, samples: int) -> Path:
    """Learn a method's encoder on the data of ESCDiff's; goes on where it was stopped."""
    if status(folder) == "finished":
        return folder / EXPORT
    data = {"root": root, "one_reference": 0.0, "shape_only": 0.0, "appearance_only": 0.0, "num_samples": samples}
    run(contender, folder, common, steps, data, None)
    return folder / EXPORT


def run(
    contender: Contender, folder: Path, common: Mapping[str, Any], steps: int, data: Mapping[str, Any],
    learned: Path | None,
) -> None:  # fmt: skip
    """One run of the loop, with the method's own settings.

    Raises:
        KeyboardInterrupt: it was asked to stop; what it reached is saved.
    """
    config = yaml.safe_load((configs_folder() / "method" / f"{contender.method}.yaml").read_text())
    method = config["method"] | dict(contender.settings)
    if "encoder" in method:
        method["encoder"] = common.get("encoder")
    if "tuning_steps" in method and learned:
        method["tuning_steps"] = steps
    optim = config["optim"] | ({} if contender.lr is None else {"lr": contender.lr})
    trainer = {"accelerator": "cpu", "devices": 1, "save_minutes": 5.0, "keep": 1, "log_steps": 50}
    values = {
        "recipe": "method", "seed": common["seed"], "run_dir": str(folder), "resume": True, "method": method,
        "init": str(learned) if learned else None, "backbone": SimpleNamespace(name=common["backbone"]),
        "data": SimpleNamespace(**(config["data"] | {"flip": False} | dict(data))),
        "optim": SimpleNamespace(**optim), "loss": SimpleNamespace(**config["loss"]),
        "trainer": SimpleNamespace(**(config["trainer"] | trainer | {"max_steps": steps})),
    }  # fmt: skip
    train(SimpleNamespace(**values))
    if status(folder) != "finished":
        raise KeyboardInterrupt


def status(folder: Path) -> str:
    """What the run of a folder came to; "" where there is none."""
    try:
        return json.loads((folder / "manifest.json").read_text())["status"]
    except (OSError, ValueError, KeyError):
        return ""
