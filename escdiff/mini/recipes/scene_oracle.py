"""Training of the scene oracle (`escdiff.mini.scene_oracle`) on sheets, roughened so that it reads paintings too."""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from escdiff.backbone import mini_folder
from escdiff.data.pictures import expand
from escdiff.methods.losses import identity
from escdiff.mini.data.chunks import soften
from escdiff.mini.data.sheets import ABSENT, PICTURES, Sheets, build_sheets
from escdiff.mini.recipes.oracle import judge_training, reconstruction, roughen
from escdiff.mini.scene_oracle import CLASSES, SceneOracle
from escdiff.mini.world.world import VERSION
from escdiff.support.config.train import TrainConfig
from escdiff.support.config.trainer import OptimConfig
from escdiff.training.loop.initial import start_from
from escdiff.training.loop.optim.muon import Muon
from escdiff.training.loop.optim.schedule import with_schedule
from escdiff.training.loop.recipe import Training

ALPHA, BETA = 2, 4  # of the focal loss
SPREAD = 0.12  # of a centre, as a share of its box's geometric mean side
NEAR = 1.5  # cells from a centre, within which box and colour are read
REACH_WEIGHT, FACE_WEIGHT = 20.0, 10.0


def grid_targets(labels: dict[str, Tensor], families: int, side: int) -> dict[str, Tensor]:
    """Targets of each cell of the grid.

    Returns:
        "centre" (B, families, side, side), 1 at a thing's middle and less around it; "owner" (B, side, side), which
        thing's box and colour the cell reads, `ABSENT` away from all; "reach" (B, 3, 4, side, side), from the cell's
        middle to the edges of each thing's box.
    """
    present, box = labels["family"] != ABSENT, labels["box"]
    middles = (torch.arange(side, device=box.device) + 0.5) / side
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    centre = (box[..., :2] + box[..., 2:]) / 2
    cell = ((centre * side).floor().clamp(0, side - 1) + 0.5) / side
    away = (x - cell[..., 0, None, None]).square() + (y - cell[..., 1, None, None]).square()  # (B, 3, side, side)
    spread = (SPREAD * (box[..., 2:] - box[..., :2]).prod(-1).sqrt()).clamp_min(0.3 / side)[..., None, None]
    heat = torch.exp(-away / (2 * spread.square())) * present[..., None, None]
    heatmaps = torch.zeros(len(box), families, side, side, device=box.device)
    rows = torch.arange(len(box), device=box.device)
    for k in range(box.shape[1]):
        number = labels["family"][:, k].clamp_min(0)
        heatmaps[rows, number] = torch.maximum(heatmaps[rows, number], heat[:, k])
    away = away.masked_fill(~present[..., None, None], float("inf"))
    least, owner = away.min(1)
    edges = box[..., None, None]
    reach = torch.stack([x - edges[:, :, 0], y - edges[:, :, 1], edges[:, :, 2] - x, edges[:, :, 3] - y], 2)
    return {"centre": heatmaps, "owner": owner.masked_fill(least > (NEAR / side) ** 2, ABSENT), "reach": reach}


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """The penalty-reduced focal loss of centres (Zhou et al. 2019, eq. 1), per centre.

    Args:
        target: like logits; 1 at centres.
    """
    sure, is_centre = logits.sigmoid().clamp(1e-4, 1 - 1e-4), target == 1
    hit = (1 - sure) ** ALPHA * sure.log()
    miss = (1 - target) ** BETA * sure**ALPHA * (1 - sure).log()
    return -torch.where(is_centre, hit, miss).sum() / is_centre.sum().clamp_min(1)


def losses(out: dict[str, Tensor], labels: dict[str, Tensor]) -> dict[str, Tensor]:
    """The terms of the loss by name; what a picture does not show counts nothing."""
    targets = grid_targets(labels, out["centre"].shape[1], out["centre"].shape[-1])
    owner = targets["owner"]
    image, y, x = (owner != ABSENT).nonzero(as_tuple=True)
    thing = owner[image, y, x]
    reach = F.smooth_l1_loss(out["reach"][image, :, y, x], targets["reach"][image, thing, :, y, x], beta=0.02)
    terms = {
        "centre": focal_loss(out["centre"], targets["centre"]),
        "reach": REACH_WEIGHT * reach,
        "color": F.cross_entropy(out["color"][image, :, y, x], labels["color"][image, thing]),
    }
    for name in CLASSES:
        labelled = labels[name] != ABSENT
        if labelled.any():
            terms[name] = F.cross_entropy(out[name][labelled], labels[name][labelled], label_smoothing=0.05)
    if (labelled := labels["face_id"] != ABSENT).any():
        terms["face"] = FACE_WEIGHT * (out["face"][labelled] - labels["face"][labelled]).square().mean()
        terms["face_id"] = identity(out["face_id"], labels["face_id"])
    return terms


class SceneOracleModule(L.LightningModule):
    """Reads things, relations, poses and faces; see `losses`."""

    progress = ("centre",)

    def __init__(self, lr: float, max_steps: int, warmup: int = OptimConfig.warmup) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.oracle = SceneOracle().to(memory_format=torch.channels_last)

    def training_step(self, batch: tuple[Tensor, dict[str, Tensor]], _: int) -> dict[str, Any]:
        pixels, labels = batch
        out = self.oracle(roughen(pixels).contiguous(memory_format=torch.channels_last))
        out = {name: values.float() for name, values in out.items()}
        terms = losses(out, labels)
        logs = {f"{name}_loss": value.detach() for name, value in terms.items()}
        for name in CLASSES:
            labelled = labels[name] != ABSENT
            logs[name] = (out[name].argmax(-1) == labels[name])[labelled].float().mean()
        return {"loss": sum(terms.values()), "logs": logs | {"centre": terms["centre"].detach()}}

    def configure_optimizers(self):
        return with_schedule(
            Muon(self.oracle.parameters(), self.hparams.lr), self.hparams.warmup, self.hparams.max_steps
        )


def build(config: TrainConfig) -> Training:
    """The training for `escdiff.training.loop.run`; renders the sheets that are not there yet.

    Raises:
        UserError: `init` has no such scene oracle.
    """
    module = SceneOracleModule(config.optim.lr, config.trainer.max_steps, config.optim.warmup)
    if config.init:
        start_from(module.oracle, config.init, "scene_oracle")
    folder = expand(config.data.source) / f"sheets-{VERSION}-{config.data.seed}"
    build_sheets(folder, config.data.num_samples // PICTURES, config.data.seed, workers=config.data.render_workers)
    soften(folder, reconstruction(mini_folder()))
    return judge_training(config, module, Sheets(folder), "scene_oracle")
