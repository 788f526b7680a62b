"""Metrics by configuration: a YAML file with a line per metric, its kind, its model and what else that takes."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from torchmetrics import Metric

from escdiff.encoder.vision import load_vision
from escdiff.errors import UserError
from escdiff.evaluation.metrics.attributes import GramDistance, LabDistance, MaskIoU
from escdiff.evaluation.metrics.features import BUNDLED, ClassToken, load_clip
from escdiff.evaluation.metrics.perceptual import DreamSim, Lpips
from escdiff.evaluation.metrics.similarity import INCEPTION, ImageSimilarity, KernelDistance, TextSimilarity
from escdiff.places import configs_folder

_clip = cache(load_clip)  # CLIP-T and CLIP-I share one


def _kernel(model: str, device: str) -> KernelDistance:
    return KernelDistance(INCEPTION if model == INCEPTION else _clip(model, device))


# kind -> (device, the line's other entries) -> metric
KINDS: dict[str, Callable[..., Metric]] = {
    "text": lambda device, model: TextSimilarity(_clip(model, device)),
    "image": lambda device, model: ImageSimilarity(_clip(model, device)),
    "token": lambda device, model: ImageSimilarity(ClassToken(model, device)),
    "lpips": lambda device, model="alex": Lpips(model),
    "dreamsim": lambda device, model="ensemble": DreamSim(model, device),
    "kid": lambda device, model=INCEPTION: _kernel(model, device),
    "mask_iou": lambda device: MaskIoU(),
    "lab_distance": lambda device: LabDistance(),
    "gram_distance": lambda device, model=BUNDLED, depths=(0, 1): GramDistance(load_vision(model), depths),
}


def read_metrics(name: str) -> dict[str, dict[str, Any]]:
    """Name -> line of `configs/eval/NAME.yaml`, or of a YAML file of your own.

    Raises:
        UserError: no such file, or it is no list of metrics.
    """
    folder = configs_folder() / "eval"
    path = folder / f"{name}.yaml" if not name.endswith((".yaml", ".yml")) else Path(name).expanduser()
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise UserError(f"--metrics is {name!r}; give one of {known}, or a YAML file")
    try:
        lines = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML ({' '.join(str(error).split())}); see configs/eval/standard.yaml") from None
    if not isinstance(lines, dict) or not all(isinstance(v, dict) and v.get("kind") in KINDS for v in lines.values()):
        raise UserError(f"{path} must map names to a kind each, one of {', '.join(KINDS)}; see configs/eval")
    return lines


def make_metrics(lines: Mapping[str, Mapping[str, Any]], device: str = "cpu") -> dict[str, Metric]:
    """The metrics of a configuration; their models are read at the first use where that can wait.

    Raises:
        UserError: an entry that its kind does not take, or a library that is missing.
    """
    made = {}
    for name, line in lines.items():
        options = {key: value for key, value in line.items() if key != "kind"}
        try:
            made[name] = KINDS[line["kind"]](device, **options)
        except TypeError:
            raise UserError(f"the metric {name} of kind {line['kind']} does not take {', '.join(options)}") from None
    return made
