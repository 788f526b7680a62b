"""The bundled model's CLIP: two towers trained by contrast on pictures and captions (Radford et al. 2021).

open_clip gives the loss and the vocabulary; the towers are transformers' own classes, so the text tower is the
backbone's text encoder as it stands and the vision tower is the concept encoder's.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from open_clip.loss import ClipLoss
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from escdiff.data.views import reframe
from escdiff.encoder.vision import normalise
from escdiff.methods.losses import identity
from escdiff.mini import parts as mini
from escdiff.mini.data.arrays import LABELS, UNNAMED, StillLifeArrays
from escdiff.mini.data.still_life import GROUP
from escdiff.mini.data.swap_data import ensure_rendered
from escdiff.mini.recipes import degrees
from escdiff.mini.world.scene_captions import any_caption
from escdiff.mini.world.world import PATTERNS, TWO_ALIKE
from escdiff.support.config.train import TrainConfig
from escdiff.support.config.trainer import OptimConfig
from escdiff.support.errors import UserError
from escdiff.training.loop.initial import start_from
from escdiff.training.loop.optim.muon import Muon
from escdiff.training.loop.optim.schedule import with_schedule
from escdiff.training.loop.recipe import Training
from escdiff.training.loop.sample_order import EpochSampler

# How a word of each kind is shown alone, in the captions' manner.
NAMED = {
    "family": "a photo of a {}", "pattern": "a photo of a {} object", "color": "a photo of a {} object",
    "finish": "a photo of a {} object", "background": "a photo of an object on a {} background",
}  # fmt: skip

INSTANCES = ("shape_id", "material_id")
INSTANCE_WIDTH = 128  # of the vectors that are compared; their heads are left behind after training
ALIKE = torch.tensor([PATTERNS.index(name) for name in TWO_ALIKE])


class GroupSampler(EpochSampler):
    """Batches of whole groups, so that every shape and every material comes in several pictures."""

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        if batch_size % GROUP:
            raise UserError(f"data.batch_size={batch_size} given; CLIP's batches hold whole groups of {GROUP}")
        super().__init__(rows // GROUP, batch_size // GROUP, seed)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for groups in super().__iter__():
            yield [(epoch, group * GROUP + place) for epoch, group in groups for place in range(GROUP)]


class CaptionedPictures(Dataset):
    """Batches of (pixels (B, 3, H, W) in [-1, 1], token ids (B, T), labels).

    Labels are, by kind of word, (B,) its number; by kind of degree, (B, 2), see `degrees.labels`; and by
    `INSTANCES`, (B,) the instance's number, -1 where a picture shows no single object. Every visit has a caption of
    its own wording and a framing of its own, lest the towers learn pictures by heart.
    """

    def __init__(self, arrays: StillLifeArrays, seed: int) -> None:
        self.arrays, self.seed, self.tokenizer = arrays, seed, mini.make_tokenizer(mini.LENGTH)

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitems__(self, visits: list[tuple[int, int]]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        rows, rngs = [row for _, row in visits], [np.random.default_rng((self.seed, *visit)) for visit in visits]
        factors = [self.arrays.factors[row] for row in rows]
        texts = [any_caption(picture, rng) for picture, rng in zip(factors, rngs, strict=True)]
        # Causal attention: what stands behind the end of a text changes nothing, so the batch is cut there.
        ids = self.tokenizer(texts, padding="longest", truncation=True, return_tensors="pt").input_ids
        # A mirrored picture would make "left leaning" and "left of" untrue.
        pixels = torch.stack(
            [reframe(p, rng, mirror=False) for p, rng in zip(self.arrays.pixels(rows), rngs, strict=True)]
        )
        labels = {kind: torch.from_numpy(self.arrays.labels[kind][rows]) for kind in NAMED}
        labels["color"][torch.isin(labels["pattern"], ALIKE)] = UNNAMED
        labels |= degrees.labels(factors)
        for name in INSTANCES:
            place, group = getattr(self.arrays, name)[rows], self.arrays.group[rows]
            labels[name] = torch.from_numpy(np.where(place >= 0, group * GROUP + place, -1))
        return pixels, ids, labels


def top1(logits: Tensor, target: Tensor) -> Tensor:
    """The share of rows of `logits` (B, N) that are largest at `target` (B,), of those whose target is said."""
    return (logits.argmax(-1) == target)[target != UNNAMED].float().mean()


class ClipModule(L.LightningModule):
    """Both towers.

    With `naming` each picture must also be told by every kind of word in its caption, one kind at a time among all
    its words (as in SuperCLIP, arXiv 2512.14480), and by every degree among its five: a batch of captions seldom
    needs the noun, and hardly ever the degrees. With `instances` the vision tower also tells apart what no words
    can: pictures of one shape, and of one material, attract (as views do in SLIP, arXiv 2112.12750).
    """

    progress = ("top1",)

    def __init__(
        self, lr: float, max_steps: int, warmup: int = OptimConfig.warmup,
        weight_decay: float = OptimConfig.weight_decay, naming: float = TrainConfig.naming,
        instances: float = TrainConfig.instances,
    ) -> None:  # fmt: skip
        super().__init__()
        self.save_hyperparameters()
        self.clip, self.loss = mini.make_clip(), ClipLoss()
        self.clip.train()
        width = 2 * self.clip.config.vision_config.hidden_size
        self.instances = nn.ModuleDict({name: nn.Linear(width, INSTANCE_WIDTH) for name in INSTANCES})
        captions = {kind: [template.format(word) for word in LABELS[kind][2]] for kind, template in NAMED.items()}
        captions |= {kind: degrees.texts(kind) for kind in degrees.OF}
        self.counts = {kind: len(texts) for kind, texts in captions.items()}
        texts = [text for kind in captions for text in captions[kind]]
        ids = mini.make_tokenizer(mini.LENGTH)(texts, padding="longest", return_tensors="pt").input_ids
        self.register_buffer("word_ids", ids, persistent=False)

    def training_step(self, batch: tuple[Tensor, Tensor, dict[str, Tensor]], _: int) -> dict[str, Any]:
        pixels, ids, labels = batch
        out = self.clip(input_ids=ids, pixel_values=normalise(pixels))
        words = self.words() if self.hparams.naming else None
        with torch.autocast(pixels.device.type, enabled=False):  # bfloat16 is too coarse for scaled likenesses
            return self.losses(out, words, labels)

    def losses(self, out, words: Tensor | None, labels: dict[str, Tensor]) -> dict[str, Any]:
        """The towers' output, the vectors of all words and the labels -> {"loss", "logs"}."""
        images, texts = out.image_embeds.float(), out.text_embeds.float()
        loss = self.loss(images, texts, self.clip.logit_scale.exp())
        logs = {
            "contrast": loss.detach(),
            "top1": top1(images @ texts.T, torch.arange(len(images), device=self.device)),
        }
        if words is not None:
            targets = {k: labels[k] for k in NAMED} | {k: labels[k][:, 1] for k in degrees.OF}
            logits = self.name(images, words, labels)
            shown = {kind: target for kind, target in targets.items() if (target != UNNAMED).any()}
            losses = [nn.functional.cross_entropy(logits[kind], target) for kind, target in shown.items()]
            loss = loss + self.hparams.naming * sum(losses)
            logs |= {f"top1_{kind}": top1(logits[kind], target) for kind, target in shown.items()}
        if self.hparams.instances:
            vectors = self.instance_vectors(out.vision_model_output)
            same = {name: identity(vectors[name], labels[name]) for name in INSTANCES}
            loss = loss + self.hparams.instances * sum(same.values())
            logs |= {f"same_{name}": value.detach() for name, value in same.items()}
        return {"loss": loss, "logs": logs}

    def words(self) -> Tensor:
        """Vectors (N, P) of length 1 of all words, each in a caption of its own, in float32."""
        vectors = self.clip.get_text_features(input_ids=self.word_ids).pooler_output
        return nn.functional.normalize(vectors.float(), dim=-1)

    def name(self, images: Tensor, words: Tensor, labels: dict[str, Tensor]) -> dict[str, Tensor]:
        """Pictures (B, P) compared with each kind's words: logits (B, words of the kind); with degrees (B, 5)."""
        logits = self.clip.logit_scale.exp() * images @ words.T
        kind_logits = dict(zip(self.counts, logits.split(list(self.counts.values()), 1), strict=True))
        return kind_logits | {kind: degrees.logits(kind_logits[kind], labels[kind][:, 0]) for kind in degrees.OF}

    def instance_vectors(self, vision) -> dict[str, Tensor]:
        """The vision tower's output -> per name of `INSTANCES` vectors (B, INSTANCE_WIDTH) of length 1."""
        tokens = vision.last_hidden_state.float()
        features = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], -1)
        return {name: nn.functional.normalize(head(features), dim=-1) for name, head in self.instances.items()}

    def on_train_batch_end(self, *_) -> None:
        with torch.no_grad():
            self.clip.logit_scale.clamp_(0, float(np.log(100)))

    def configure_optimizers(self):
        learned = {n: p for n, p in self.clip.named_parameters() if p.requires_grad}
        embeddings = [p for n, p in learned.items() if "embedding" in n and "patch" not in n]
        matrices = [p for n, p in learned.items() if "embedding" not in n or "patch" in n]
        # The vocabulary's unused rows get no gradient; decay would only shrink them.
        embedding_group = {"params": embeddings, "orthogonal": False, "lr": 0.3 * self.hparams.lr}
        matrices += list(self.instances.parameters())
        optimizer = Muon([{"params": matrices}, embedding_group], self.hparams.lr, self.hparams.weight_decay)
        return with_schedule(optimizer, self.hparams.warmup, self.hparams.max_steps)


def export(module: ClipModule, folder: Path, text: bool = True) -> None:
    """Write `clip/` (both towers, for the concept encoder) and with `text` the backbone's text encoder and tokenizer.

    A U-Net that has been trained already keeps its text encoder, bit for bit, while CLIP learns on.
    """
    from transformers import CLIPImageProcessor, CLIPTextModel

    mini.save_half(module.clip.eval(), folder / "clip")
    image = CLIPImageProcessor(size={"shortest_edge": mini.SIZE}, crop_size={"height": mini.SIZE, "width": mini.SIZE})
    image.save_pretrained(folder / "clip")
    if not text:
        return
    text_encoder = CLIPTextModel.from_pretrained(folder / "clip", dtype=torch.float32)
    mini.save_half(text_encoder, folder / "text_encoder")
    mini.make_tokenizer(mini.LENGTH).save_pretrained(folder / "tokenizer")


def build(config: TrainConfig) -> Training:
    """The training for `escdiff.training.loop.run`."""
    optim = config.optim
    if not (config.export_text or config.init):
        raise UserError("export_text=false given without init; name the folder whose clip/ is to be trained further")
    module = ClipModule(
        optim.lr, config.trainer.max_steps, optim.warmup, optim.weight_decay, config.naming, config.instances
    )
    if config.init:
        start_from(module.clip, config.init, "clip")
    ensure_rendered(config.data)
    arrays = StillLifeArrays(config.data.source)
    sampler = GroupSampler(len(arrays), config.data.batch_size, config.seed)
    loader = DataLoader(CaptionedPictures(arrays, config.seed), batch_sampler=sampler, collate_fn=lambda batch: batch)
    return Training(module, loader, lambda trained: export(trained, config.export_folder, config.export_text))
