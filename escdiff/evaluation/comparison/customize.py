"""Concepts for the comparison: every contender sees the same pictures; finished concepts are kept."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from escdiff.backbone.adapters.attached import ADAPTER
from escdiff.concept import Concept
from escdiff.data.pictures import open_image
from escdiff.encoder import ConceptEncoder
from escdiff.evaluation.comparison.contenders import Contender
from escdiff.evaluation.report.writing import write
from escdiff.methods.base import CONCEPT
from escdiff.support.config.compose import compose, compose_overrides
from escdiff.training.loop.run import train

EXPORT, MARK = "export", "made.json"
ALIKE = {  # what every method is given
    "data.flip": False, "data.size": None, "trainer.accelerator": "cpu", "trainer.devices": 1, "trainer.keep": 1,
    "trainer.log_steps": 50, "trainer.val_steps": 0,
}  # fmt: skip


def customize(
    contender: Contender, picture: Path, folder: Path, settings: str, common: Mapping[str, Any], steps: int,
    learned: Path | None, encoder: ConceptEncoder | None,
) -> dict[str, Any]:  # fmt: skip
    """Make the concept of one picture; its cost is returned, and kept in the folder.

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
        result = json.loads((folder / MARK).read_text(encoding="utf-8"))
        if result["settings"] == settings and (export / CONCEPT).is_file():
            return result
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
    result = {"settings": settings, **cost, "bytes": size, "shared": shared, **density}
    write(folder / MARK, json.dumps(result, indent=1) + "\n")
    return result


def learn(contender: Contender, folder: Path, common: Mapping[str, Any], steps: int, root: str, samples: int) -> Path:
    """Learn a method's encoder on the data of ESCDiff's; goes on where it was stopped.

    Args:
        samples: to render where they are missing; a method that learns from fewer (scenes cost more) takes its own.
    """
    if status(folder) == "finished":
        return folder / EXPORT
    samples = min(samples, compose("train", [f"method={contender.method}"]).data.num_samples)
    data = {"root": root, "one_reference": 0.0, "shape_only": 0.0, "appearance_only": 0.0, "num_samples": samples}
    run(contender, folder, common, steps, data, None)
    return folder / EXPORT


def learning_data(given: str, out: Path, quick: bool, samples: tuple[int, int]) -> tuple[str, int]:
    """Folder of Still Life that encoders learn from, and how many pictures to render if it is missing.

    Args:
        given: the user's; "" for that of trainings, or, with `quick`, for one below `out`, where no training would take
            the few pictures for the whole. samples: with `quick` and without.
    """
    root = given or f"{os.environ.get('ESCDIFF_HOME', 'outputs')}/still_life"
    if quick and not given and not Path(root).is_dir():
        return str(out / "still_life"), samples[0]
    return root, samples[1]


def run(
    contender: Contender, folder: Path, common: Mapping[str, Any], steps: int, data: Mapping[str, Any],
    learned: Path | None,
) -> None:  # fmt: skip
    """One run of the loop, with the method's own settings.

    Raises:
        KeyboardInterrupt: it was asked to stop; what it reached is saved.
    """
    chosen = [f"method={contender.method}"]
    keys, method_settings = compose("train", chosen).method, dict(contender.settings)
    if "encoder" in keys:
        method_settings["encoder"] = common.get("encoder")
    if "tuning_steps" in keys and learned:
        method_settings["tuning_steps"] = steps
    values = ALIKE | {f"method.{key}": value for key, value in method_settings.items()}
    values |= {f"data.{key}": value for key, value in data.items()}
    values |= {"seed": common["seed"], "backbone.name": common["backbone"], "run_dir": str(folder),
               "init": str(learned) if learned else None, "trainer.max_steps": steps}  # fmt: skip
    if contender.lr is not None:
        values["optim.lr"] = contender.lr
    train(compose_overrides("train", chosen, values))
    if status(folder) != "finished":
        raise KeyboardInterrupt


def status(folder: Path) -> str:
    """The status in a run folder's manifest; "" without one."""
    try:
        return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["status"]
    except (OSError, ValueError, KeyError):
        return ""
