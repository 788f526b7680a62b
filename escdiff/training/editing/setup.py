"""What a training of InstructPix2Pix is made of, from a configuration."""

from torch.utils.data import DataLoader

from escdiff.backbone import pick_dtype
from escdiff.pipelines.instruct import make_instruct
from escdiff.support.config.train import TrainConfig
from escdiff.support.files import keep_umask
from escdiff.training.editing.instruct import InstructModule
from escdiff.training.editing.pairs import make_pairs
from escdiff.training.encoder.datasets import prepare
from escdiff.training.encoder.frozen import cast, make_small_sd, picture_size
from escdiff.training.loop.hardware import own_device
from escdiff.training.loop.initial import start_from
from escdiff.training.loop.recipe import Training
from escdiff.training.loop.sample_order import EpochSampler


def build(config: TrainConfig) -> Training:
    """The training for `escdiff.training.loop.run`; renders and encodes what is not there yet.

    The result is a diffusers folder that `StableDiffusionInstructPix2PixPipeline` loads.

    Raises:
        UserError: an SDXL or a transformer, data without pairs, or an `init` that holds no such U-Net.
    """
    backbone = make_small_sd(config.backbone, "InstructPix2Pix")
    module = InstructModule(
        backbone, config.optim.lr, config.trainer.max_steps, config.optim.warmup, config.optim.weight_decay,
        config.loss.high_noise_bias,
    )  # fmt: skip
    if config.init:
        start_from(module.unet, config.init, "unet")
    prepare(config.data)
    data = make_pairs(config.data, backbone, picture_size(config.data.size, backbone), own_device(config.trainer))
    cast(backbone, pick_dtype(config.backbone.dtype))
    sampler = EpochSampler(len(data), config.data.batch_size, config.seed)
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=lambda batch: batch)

    def finish(trained: InstructModule) -> None:
        folder = config.export_folder
        make_instruct(backbone, trained.unet.eval()).save_pretrained(folder)
        keep_umask(folder)

    return Training(module, loader, finish)
