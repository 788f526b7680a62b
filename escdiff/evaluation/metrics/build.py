"""Metrics from a YAML file with a line per metric: its kind, its model and further options."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from torchmetrics import Metric

from escdiff.encoder.vision import load_vision
from escdiff.evaluation.metrics.attributes import GramDistance, LabDistance, MaskIoU
from escdiff.evaluation.metrics.base import AGAINST
from escdiff.evaluation.metrics.features import BUNDLED, ClassToken, load_clip
from escdiff.evaluation.metrics.perceptual import DreamSim, Lpips
from escdiff.evaluation.metrics.similarity import INCEPTION, ImageSimilarity, KernelDistance, TextSimilarity
from escdiff.evaluation.report.units import UNITS
from escdiff.support import extensions
from escdiff.support.config.folder import read_yaml
from escdiff.support.errors import UserError

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


def kinds() -> tuple[str, ...]:
    """Names of ours, then of those that installed packages give (entry points `escdiff.metrics`)."""
    return tuple(dict.fromkeys([*KINDS, *extensions.names(extensions.METRICS)]))


def read_metrics(name: str) -> dict[str, dict[str, Any]]:
    """Name -> line of `configs/eval/NAME.yaml`, or of a YAML file of your own.

    Raises:
        UserError: no such file, or it is no list of metrics.
    """
    path, lines = read_yaml("--metrics", name, "eval", "configs/eval/standard.yaml")
    if not isinstance(lines, dict) or not all(isinstance(v, dict) and v.get("kind") in kinds() for v in lines.values()):
        raise UserError(f"{path} must map names to a kind each, one of {', '.join(kinds())}; see configs/eval")
    return lines


def make_metrics(lines: Mapping[str, Mapping[str, Any]], device: str = "cpu") -> dict[str, Metric]:
    """The metrics of a configuration; their models are read at the first use where that can wait.

    Raises:
        UserError: an entry that its kind does not take, a library that is missing, or a metric that does not say what
            it is against and in which unit.
    """
    metrics = {}
    for name, line in lines.items():
        options = {key: value for key, value in line.items() if key != "kind"}
        make = KINDS.get(line["kind"]) or extensions.load(extensions.METRICS, line["kind"])
        try:
            metrics[name] = make(device, **options)
        except TypeError:
            raise UserError(f"the metric {name} of kind {line['kind']} does not take {', '.join(options)}") from None
        for key, choices in (("against", AGAINST), ("unit", UNITS)):
            if (value := getattr(metrics[name], key, None)) not in choices:
                problem = f"the metric {name} of kind {line['kind']} declares {key} = {value!r}"
                raise UserError(f"{problem}; expected one of {', '.join(choices)}")
    return metrics
