"""Encoder training data from Still Life: swap triples out of memory-mapped arrays and cached latents."""

import os
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from escdiff.concept import ATTRIBUTES
from escdiff.data import prompts
from escdiff.data.index import Index
from escdiff.data.latent_cache import load_latents
from escdiff.data.pictures import expand
from escdiff.data.resumable import POSITION, PositionSampler, Request, ResumableDataModule, ResumableLoader
from escdiff.mini.data.arrays import StillLifeArrays
from escdiff.mini.data.framings import LiveReferences, References, Rows, StoredReferences
from escdiff.mini.data.pairing import SwapPairs, validation_rows
from escdiff.mini.data.prompts import still_life_prompt
from escdiff.mini.data.token_cache import StoredTokens
from escdiff.mini.world.mixtures import material_mixture, shape_mixture
from escdiff.mini.world.world import HELD_OUT_FAMILIES, HELD_OUT_PATTERNS
from escdiff.support.config.data import DataConfig
from escdiff.support.errors import UserError


class SwapDataset(Dataset):
    """Batches of swap triples by `Request`; each sample depends on (seed, epoch, place in the epoch) only."""

    def __init__(
        self,
        arrays: StillLifeArrays,
        pairs: SwapPairs,
        latents: Tensor | None,
        seed: int,
        shares: dict[str, float],
        shuffle: bool = True,
        reframed: float = 0.0,
        tokens: StoredTokens | None = None,
        namesakes: bool = False,
    ) -> None:
        """Serve the targets of `pairs`.

        Args:
            latents: moments (N, 2C, h, w) of all rows of `arrays`, or None to give pixels.
            shares: probabilities of "one_reference", "shape_only" and "appearance_only".
            reframed: probability that a reference is framed anew.
            tokens: given instead of the references' pixels, and of the targets too.
            namesakes: whether samples of one family, or of one pattern, come side by side.
        """
        self.arrays, self.pairs, self.latents, self.reframed = arrays, pairs, latents, reframed
        self.tokens, self.namesakes = tokens, namesakes
        self.seed, self.shares, self.shuffle = seed, shares, shuffle
        self._order: tuple[int, np.ndarray] = (-1, pairs.targets)

    def __len__(self) -> int:
        return len(self.pairs.targets)

    def order(self, epoch: int) -> np.ndarray:
        """The rows of `epoch` in training order."""
        if self.shuffle and self._order[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            rows = rng.permutation(self.pairs.targets)
            self._order = (epoch, self.pairs.beside_namesakes(rows) if self.namesakes else rows)
        return self._order[1]

    def __getitem__(self, request: Request) -> dict[str, Any]:
        epoch, first, count, after = request
        places = range(first, first + count)
        rows = self.order(epoch)[first : first + count]
        rngs = [np.random.default_rng([self.seed, epoch, place]) for place in places]
        drawn = [self.pairs.references(row, rng) for row, rng in zip(rows, rngs, strict=True)]
        references = self._references(dict(zip(ATTRIBUTES, map(np.array, zip(*drawn, strict=True)), strict=True)))
        for attribute in ATTRIBUTES:
            for i, rng in enumerate(rngs):
                if rng.random() < self.reframed:
                    references.reframe(attribute, i, rng)
        texts = [self._prompt(references, i, int(row), rngs[i]) for i, row in enumerate(rows)]
        batch = {**references.batch(rows), "prompt": texts, "key": [f"{row:08d}" for row in rows]}
        if self.latents is None:
            batch["pixels"] = self.arrays.pixels(rows)
        else:
            batch["latent"] = self.latents[torch.from_numpy(rows)].float()
        factors = [self.arrays.factors[int(row)] for row in rows]
        for attribute, numbers in zip(ATTRIBUTES, self.pairs.instances(rows), strict=True):
            batch[f"{attribute}_instance"] = torch.from_numpy(numbers)
        batch["shape_words"] = [shape_mixture(f.shape) for f in factors]
        batch["appearance_words"] = [material_mixture(f.material) for f in factors]
        for attribute in ATTRIBUTES:
            used = [prompts.uses(prompt, attribute) for prompt in batch["prompt"]]
            batch[f"uses_{attribute}"] = torch.tensor(used)
        if self.shuffle:
            batch[POSITION] = tuple(after)
        return batch

    def _references(self, rows: Rows) -> References:
        if self.tokens is None:
            return LiveReferences(self.arrays, rows)
        return StoredReferences(self.arrays, rows, self.tokens)

    def _prompt(self, references: References, i: int, row: int, rng: np.random.Generator) -> str:
        """Draw the prompt's kind; for "one reference" put another framing of the target in place of both."""
        factors, draw = self.arrays.factors[row], rng.random()
        if draw < self.shares["one_reference"]:
            references.replace(i, row, rng)
            return still_life_prompt(factors, prompts.BOTH, rng)
        draw -= self.shares["one_reference"]
        if draw < self.shares["shape_only"]:
            return still_life_prompt(factors, prompts.SHAPE_ONLY, rng)
        draw -= self.shares["shape_only"]
        mode = prompts.APPEARANCE_ONLY if draw < self.shares["appearance_only"] else prompts.BOTH
        return still_life_prompt(factors, mode, rng)


class EncoderDataModule(ResumableDataModule):
    """Swap triples of a Still Life folder for training the encoder.

    Batches are dicts (B the batch size, values in [-1, 1]):
        "latent" (B, 2C, h, w) moments when `latents` names a cache, else "pixels" (B, 3, H, W): the target
        "mask" (B, 1, H, W): 1 on the target's object
        "shape_ref", "appearance_ref" (B, 3, H, W) and "shape_mask", "appearance_mask" (B, 1, H, W); for training,
        where `tokens` names a cache, "shape_tokens", "appearance_tokens" and "target_tokens" (B, F) instead
        "prompt": list of str with "<shape>" and/or "<appearance>"; "uses_shape", "uses_appearance": bool (B,)
        "shape_words", "appearance_words": list of phrases, what the placeholders stand for, as far as words can say;
            see `escdiff.training.encoder.word_targets.Phrase`
        "shape_instance", "appearance_instance": int64 (B,), equal where two samples have the same one
        "key": list of str; "position": (epoch, sample) to resume from after this batch (training only)

    Raises:
        UserError: no finished dataset in `folder`, no such latents, or too few samples for a batch.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        batch_size: int = DataConfig.batch_size,  # per rank
        latents: str | None = None,  # key of the cache, see escdiff.data.latent_cache.vae_key
        tokens: str | None = None,  # key of the cache, see escdiff.mini.data.token_cache
        seed: int = 0,
        num_workers: int | str = 0,  # "auto": as many as the cores feed, see escdiff.data.workers
        one_reference: float = DataConfig.one_reference,  # shares of samples; see the configuration
        shape_only: float = DataConfig.shape_only,
        appearance_only: float = DataConfig.appearance_only,
        reframed: float = DataConfig.reframed,  # of training references
        namesakes: bool = DataConfig.namesakes,
        val_fraction: float = DataConfig.val_fraction,  # of the groups
        exclude_families: Collection[str] = HELD_OUT_FAMILIES,
        exclude_patterns: Collection[str] = HELD_OUT_PATTERNS,
    ) -> None:
        super().__init__()
        self.folder, self.batch_size, self.latents = expand(folder), batch_size, latents
        self.seed, self.num_workers, self.val_fraction, self.reframed = seed, num_workers, val_fraction, reframed
        self.shares = {
            "one_reference": one_reference, "shape_only": shape_only, "appearance_only": appearance_only,
        }  # fmt: skip
        if min(self.shares.values()) < 0 or sum(self.shares.values()) > 1:
            raise UserError(f"the shares {self.shares} must be at least 0 and sum to at most 1; change them")
        self.excluded = {
            "exclude_families": tuple(exclude_families),
            "exclude_patterns": tuple(exclude_patterns),
        }
        self.tokens, self.namesakes = tokens, namesakes
        self.train_set: SwapDataset | None = None
        self.val_set: SwapDataset | None = None

    def identity(self) -> dict[str, Any]:
        return {
            "data": Index.load(self.folder).fingerprint(), "seed": self.seed,
            "val_fraction": self.val_fraction, "reframed": self.reframed,
            **{name: list(words) for name, words in self.excluded.items()}, **self.shares,
            **({"tokens": self.tokens} if self.tokens else {}), **({"namesakes": True} if self.namesakes else {}),
        }  # fmt: skip

    def prepare_data(self) -> None:
        StillLifeArrays(self.folder)  # builds the cache once, on one process

    def setup(self, stage: str | None = None) -> None:
        if self.train_set is not None:
            return
        arrays = StillLifeArrays(self.folder)
        latents = None if self.latents is None else load_latents(self.folder, self.latents)
        places = {name: getattr(arrays, name) for name in ("group", "shape_id", "material_id")}
        columns = {**places, "family": arrays.labels["family"], "pattern": arrays.labels["pattern"]}
        held_out = validation_rows(arrays.group, self.val_fraction)
        pairs = SwapPairs(columns, keep=~held_out, **self.excluded)
        tokens = None if self.tokens is None else StoredTokens(self.folder, self.tokens)
        train = {"reframed": self.reframed, "tokens": tokens, "namesakes": self.namesakes}
        self.train_set = SwapDataset(arrays, pairs, latents, self.seed, self.shares, **train)
        if held_out.any():
            pairs = SwapPairs(columns, keep=held_out, **self.excluded)
            self.val_set = SwapDataset(arrays, pairs, latents, self.seed, self.shares, shuffle=False)

    def steps_per_epoch(self) -> int:
        """Batches per epoch and rank; the same on every rank."""
        self.setup()
        return PositionSampler(len(self.train_set), self.batch_size, *self.ranks()).steps

    def train_dataloader(self) -> DataLoader:
        self.setup()
        sampler = PositionSampler(len(self.train_set), self.batch_size, *self.ranks())
        place = {"module": self, "cursor": sampler, "steps": sampler.steps}
        return ResumableLoader(self.train_set, sampler=sampler, **place, **self._loader_options())

    def val_dataloader(self) -> DataLoader | list:
        self.setup()
        if self.val_set is None:
            return []
        rank, world = self.ranks()
        batch_size = min(self.batch_size, len(self.val_set) // world)
        sampler = PositionSampler(len(self.val_set), batch_size, rank, world)
        return DataLoader(self.val_set, sampler=sampler, **self._loader_options())

    def _loader_options(self) -> dict[str, Any]:
        # A dataset item is a whole batch, hence batch_size None.
        return {
            "batch_size": None,
            "num_workers": self.workers,
            "persistent_workers": self.workers > 0,
        }
