"""All that `python train.py` reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from escdiff.support.config.backbone import BackboneConfig
from escdiff.support.config.data import DataConfig
from escdiff.support.config.encoder import EncoderConfig
from escdiff.support.config.keys import block, key
from escdiff.support.config.loss import LossConfig
from escdiff.support.config.trainer import LoggerConfig, OptimConfig, ScoresConfig, TrainerConfig

PRECISIONS = ("highest", "high", "medium")


@dataclass
class SpaceConfig:
    """The conditioning space: what has token vectors of its own."""

    layers: str = key("each", "each: every cross-attention layer (P+); tied: one for all", choices=("each", "tied"))
    stages: Any = key(1, "equal intervals of the 1000 timesteps, or their bounds as [0,600,1000]")


@dataclass
class TrainConfig:
    """A training."""

    recipe: str = key("encoder", "what is trained: clip, vae, unet, oracle, scene_oracle (parts of the bundled model), "
                      "encoder, method, instruct_pix2pix or anydoor")  # fmt: skip
    seed: int = key(0, "of weights, order and noise", low=0)
    run_id: str = key("${recipe}", "name of the run; with data.references, the method's and theirs", verbatim=True)
    run_dir: str = key("outputs/runs/${run_id}", "folder of config, metrics, samples and checkpoints", verbatim=True)
    sweep_dir: str = key("outputs/sweeps/${recipe}", "folder of the run folders of a sweep")
    matmul_precision: str = key("high", "of float32 products on a GPU; see torch.set_float32_matmul_precision",
                                choices=PRECISIONS)  # fmt: skip
    resume: bool = key(True, "go on from the newest good checkpoint of run_dir, if it is of this training; false "
                       "refuses a folder that has one")  # fmt: skip
    export: str | None = key(None, "folder of the result; null: run_dir/export", verbatim=True)
    naming: float = key(0.0, "weight of naming every word of a caption among all words of its kind (clip)", low=0)
    instances: float = key(0.0, "weight of telling instances apart that share all words (clip)", low=0)
    export_text: bool = key(True, "false: CLIP learns on and the U-Net keeps its text encoder (clip)")
    init: str | None = key(None, "an export to start from; methods that encode make a concept with it", verbatim=True)
    encoder: EncoderConfig = block(EncoderConfig)
    loss: LossConfig = block(LossConfig)
    space: SpaceConfig = block(SpaceConfig)
    data: DataConfig = block(DataConfig)
    trainer: TrainerConfig = block(TrainerConfig)
    optim: OptimConfig = block(OptimConfig)
    logger: LoggerConfig = block(LoggerConfig)
    scores: ScoresConfig = block(ScoresConfig)
    backbone: BackboneConfig = block(BackboneConfig)
    method: dict[str, Any] | None = key(None, "of a customization: its class as _target_, and what that takes; see "
                                        "configs/method")  # fmt: skip

    @property
    def export_folder(self) -> Path:
        """Folder of the training's result."""
        return Path(self.export or Path(self.run_dir) / "export").expanduser()
