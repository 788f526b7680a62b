"""The training of AnyDoor on Still Life, built from a configuration."""

from torch.utils.data import DataLoader

from escdiff.backbone import pick_dtype
from escdiff.data.pictures import expand
from escdiff.encoder.vision import load_vision
from escdiff.mini.data.placings import Placings, build_placings
from escdiff.mini.world.world import VERSION
from escdiff.pipelines.placer import Placer
from escdiff.support.config.train import TrainConfig
from escdiff.support.files import keep_umask
from escdiff.training.editing.placing import PlacingModule
from escdiff.training.encoder.frozen import cast, make_small_sd, picture_size
from escdiff.training.loop.initial import take
from escdiff.training.loop.recipe import Training
from escdiff.training.loop.sample_order import EpochSampler


def build(config: TrainConfig) -> Training:
    """The training for `escdiff.training.loop.run`; renders the scenes that are not there yet.

    Raises:
        UserError: an SDXL or a transformer, or an `init` that is no AnyDoor of this backbone and tower.
    """
    backbone = make_small_sd(config.backbone, "AnyDoor")
    size, seed = picture_size(config.data.size, backbone), config.data.seed
    folder = expand(config.data.root) / f"placings-{VERSION}-{seed}-{size}"
    placer = Placer.fresh(backbone.unet, load_vision(config.encoder.vision), decoder=True)
    if config.init:
        take(placer, Placer.from_pretrained(config.init, backbone.unet, placer.vision), config.init)
    build_placings(folder, config.data.num_samples, seed, size, config.data.render_workers)
    cast(backbone, pick_dtype(config.backbone.dtype))
    module = PlacingModule(
        backbone, placer, config.optim.lr, config.trainer.max_steps, config.optim.warmup, config.optim.weight_decay,
        config.loss.high_noise_bias,
    )  # fmt: skip
    data = Placings(folder, config.seed)
    sampler = EpochSampler(len(data), config.data.batch_size, config.seed)
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=lambda batch: batch)

    def finish(trained: PlacingModule) -> None:
        trained.placer.eval().save_pretrained(config.export_folder)
        keep_umask(config.export_folder)

    return Training(module, loader, finish)
