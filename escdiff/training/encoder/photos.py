"""Photographs as data of the encoder's training."""

import logging
from pathlib import Path
from typing import Any

from escdiff.backbone import Backbone
from escdiff.data.index import Index
from escdiff.data.latent_cache import FOLDER, missing, shard_file, vae_key, without_latents
from escdiff.data.photos import PhotoDataModule
from escdiff.data.pictures import expand
from escdiff.data.shard_store import ShardStore, is_address
from escdiff.encoder.encoder import ConceptEncoder
from escdiff.support.config.data import DataConfig
from escdiff.support.errors import UserError
from escdiff.training.encoder.frozen import picture_size

PREVIEWS = 6
OPTIONS = (
    "one_reference", "shape_only", "appearance_only", "drop_caption", "val_fraction", "buckets", "buffer",
    "check_hashes", "cache", "cache_gb", "batch_size", "num_workers",
)  # fmt: skip

log = logging.getLogger(__name__)


class PhotoData(PhotoDataModule):
    """Photographs; targets come with their pixels already."""

    @classmethod
    def of_config(
        cls, data: DataConfig, seed: int, backbone: Backbone, device: str, tokens: str | None = None,
        reference_size: int | None = None,
    ) -> "PhotoData":  # fmt: skip
        """See `escdiff.training.encoder.datasets.EncoderData`."""
        root, size = data.source, picture_size(data.size, backbone)
        wanted = data.latents == "auto" and not data.buckets  # latents are of squares
        key = _cached(root, ShardStore(root).index(), backbone, size) if wanted else None
        return cls(
            root, size=size, latents=key, reference_size=reference_size, seed=seed,
            **{name: getattr(data, name) for name in OPTIONS},
        )  # fmt: skip

    @staticmethod
    def store_tokens(data: DataConfig, encoder: ConceptEncoder, device: str) -> str:
        """Refuse, since references are not known beforehand.

        Raises:
            UserError: always.
        """
        what = f"data.tokens=auto given with photos ({data.source}), whose references are drawn anew at every visit"
        raise UserError(f"{what}; set data.tokens=null")

    def preview(self) -> dict[str, Any]:
        """A few swaps of held-out photographs, or training samples where fewer than two are held out."""
        return self.swaps(PREVIEWS) or _first(next(iter(self.stream())), PREVIEWS)


def _cached(root: Any, index: Index, backbone: Backbone, size: int) -> str | None:
    """The key of the photos' latents if `python -m data_prep latents` made all of them."""
    key = vae_key(backbone.vae, size)
    if is_address(root):  # the stream looks into each file when it fetches it
        there = ShardStore(root).names(f"{FOLDER}/{key}")
        complete = there.issuperset(Path(shard_file(key, shard)).name for shard in index.filled)
    else:
        complete = not missing(expand(root), index, key)
    if not complete:
        log.warning("%s", without_latents(root, key, ShardStore(root).names(FOLDER)))
    return key if complete else None


def _first(batch: dict[str, Any], count: int) -> dict[str, Any]:
    return {name: value if name == "position" else value[:count] for name, value in batch.items()}
