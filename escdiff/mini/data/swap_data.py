"""Still Life as data of the encoder's training: rendered, encoded and paired where that has not been done."""

from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from escdiff.backbone import Backbone
from escdiff.data.index import FILE, Index
from escdiff.data.latent_cache import model_key, vae_key
from escdiff.data.pictures import expand
from escdiff.data.resumable import Place, Request
from escdiff.encoder.encoder import ConceptEncoder
from escdiff.encoder.packing import Packing
from escdiff.mini.data.arrays import array_pictures
from escdiff.mini.data.still_life import StillLifeOptions, make_still_life
from escdiff.mini.data.swaps import EncoderDataModule
from escdiff.mini.data.token_cache import encode_tokens, tokens_missing
from escdiff.support.config.data import DataConfig
from escdiff.training.loop.prepare_data import ensure_latents, lent, on_rank_zero

PREVIEWS = 6
OPTIONS = (
    "one_reference", "shape_only", "appearance_only", "reframed", "namesakes", "val_fraction", "batch_size",
    "num_workers",
)  # fmt: skip


def ensure_rendered(data: DataConfig) -> None:
    """Render Still Life into `data.source` where no finished dataset is; one of any kind is taken as it is.

    Raises:
        UserError: the folder holds something else, or the disk is too full.
    """
    root = expand(data.source)
    size = data.size or StillLifeOptions.size
    options = StillLifeOptions(data.seed, size, data.shard_size, data.split, edits=data.edits)
    make = partial(make_still_life, root, data.num_samples, options, data.render_workers)
    on_rank_zero(make, partial(_finished, root))


class SwapData(EncoderDataModule):
    """Swap triples with the target's pixels beside its latents, for the losses on features."""

    prepare = staticmethod(ensure_rendered)

    @classmethod
    def of_config(
        cls, data: DataConfig, seed: int, backbone: Backbone, device: str, tokens: str | None = None,
        reference_size: int | None = None,
    ) -> "SwapData":  # fmt: skip
        """The data module, see `escdiff.training.encoder.datasets.EncoderData`; references keep their rendered size."""
        root = expand(data.source)
        key = None
        if data.latents == "auto":
            key = vae_key(backbone.vae, Index.load(root).options["size"])
            ensure_latents(root, backbone.vae, backbone.moments, key, device, partial(array_pictures, root))
        return cls(root, latents=key, tokens=tokens, seed=seed, **{name: getattr(data, name) for name in OPTIONS})

    @staticmethod
    def store_tokens(data: DataConfig, encoder: ConceptEncoder, device: str) -> str:
        """See `escdiff.training.encoder.datasets.EncoderData`."""
        root, vision, packing = expand(data.source), encoder.vision, Packing.of(encoder)
        key = f"{model_key(vision, Index.load(root).options['size'])}-{vision.fingerprint()}-{packing.name}"

        def make() -> None:
            with lent(vision, device):
                encode_tokens(root, lambda pixels: packing.pack(encoder.tokens(pixels)), key, packing.values, device)

        on_rank_zero(make, lambda: not tokens_missing(root, key))
        return key

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if "target_tokens" not in batch:
            self.add_pixels(batch, self.train_set)
        return super().on_before_batch_transfer(batch, dataloader_idx)

    def val_dataloader(self) -> DataLoader | list:
        """As of `EncoderDataModule`, with the pixels already: whoever validates calls no hook of Lightning's."""
        loader = super().val_dataloader()
        if self.val_set is not None:
            loader.collate_fn = partial(self.add_pixels, dataset=self.val_set)
        return loader

    @staticmethod
    def add_pixels(batch: Any, dataset: Any) -> Any:
        """The batch with "pixels" (B, 3, H, W), its targets."""
        if "pixels" not in batch:
            batch["pixels"] = dataset.arrays.pixels([int(key) for key in batch["key"]])
        return batch

    def preview(self) -> dict[str, Any]:
        """A few held-out triples, or training ones where none are held out, with all their pictures."""
        self.setup()
        dataset = copy(self.val_set or self.train_set)
        dataset.tokens = None
        return self.add_pixels(dataset[Request(0, 0, min(PREVIEWS, len(dataset)), Place(0, 0))], dataset)


def _finished(root: Path) -> bool:
    return (root / FILE).is_file() and Index.load(root, require_complete=False).complete
