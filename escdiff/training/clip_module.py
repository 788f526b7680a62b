"""The bundled model's CLIP: two towers trained by contrast on pictures and captions (Radford et al. 2021).

open_clip gives the loss and the vocabulary; the towers are transformers' own classes, so the text tower is the
backbone's text encoder as it stands and the vision tower is the concept encoder's.
"""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from open_clip.loss import ClipLoss
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPModel

from escdiff.data.arrays import LABELS, StillLifeArrays
from escdiff.data.views import reframe
from escdiff.encoder.vision import normalise
from escdiff.errors import UserError
from escdiff.still_life.world import PATTERNS, TWO_ALIKE
from escdiff.training import mini
from escdiff.training.muon import Muon
from escdiff.training.options import export_folder, option
from escdiff.training.sampling import EpochSampler

# How a word of each kind is shown alone, in the captions' manner.
NAMED = {
    "family": "a photo of a {}", "pattern": "a photo of a {} object", "color": "a photo of a {} object",
    "finish": "a photo of a {} object", "background": "a photo of an object on a {} background",
}  # fmt: skip

UNSAID = -100  # label of what a picture does not say; cross-entropy leaves it out
ALIKE = torch.tensor([PATTERNS.index(name) for name in TWO_ALIKE])


class CaptionedPictures(Dataset):
    """Batches of (pixels (B, 3, H, W) in [-1, 1], token ids (B, T), {kind: labels (B,)}).

    Every visit has a caption of its own wording and a framing of its own, lest the towers learn pictures by heart.
    """

    def __init__(self, arrays: StillLifeArrays, seed: int) -> None:
        self.arrays, self.seed, self.tokenizer = arrays, seed, mini.make_tokenizer()

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitems__(self, visits: list[tuple[int, int]]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        rows, rngs = [row for _, row in visits], [np.random.default_rng((self.seed, *visit)) for visit in visits]
        texts = [self.arrays.caption(row, rng) for row, rng in zip(rows, rngs, strict=True)]
        # Causal attention: what stands behind the end of a text changes nothing, so the batch is cut there.
        ids = self.tokenizer(texts, padding="longest", truncation=True, return_tensors="pt").input_ids
        pixels = torch.stack([reframe(p, rng) for p, rng in zip(self.arrays.pixels(rows), rngs, strict=True)])
        labels = {kind: torch.from_numpy(self.arrays.labels[kind][rows]) for kind in NAMED}
        labels["color"][torch.isin(labels["pattern"], ALIKE)] = UNSAID
        return pixels, ids, labels


def top1(logits: Tensor, target: Tensor) -> Tensor:
    """The share of rows of `logits` (B, N) that are largest at `target` (B,), of those whose target is said."""
    return (logits.argmax(-1) == target)[target != UNSAID].float().mean()


class ClipModule(L.LightningModule):
    """Both towers.

    With `naming` each picture must also be told by every kind of word in its caption, one kind at a time among all
    its words (as in SuperCLIP, arXiv 2512.14480): a batch of captions seldom needs the noun.
    """

    progress = ("top1",)

    def __init__(
        self, lr: float, max_steps: int, warmup: int = 100, weight_decay: float = 0.1, naming: float = 0.0
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.clip, self.loss = mini.make_clip(), ClipLoss()
        self.clip.train()
        texts = [template.format(word) for kind, template in NAMED.items() for word in LABELS[kind][2]]
        ids = mini.make_tokenizer()(texts, padding="longest", return_tensors="pt").input_ids
        self.register_buffer("word_ids", ids, persistent=False)

    def training_step(self, batch: tuple[Tensor, Tensor, dict[str, Tensor]], _: int) -> dict[str, Any]:
        pixels, ids, labels = batch
        out = self.clip(input_ids=ids, pixel_values=normalise(pixels))
        loss = self.loss(out.image_embeds, out.text_embeds, self.clip.logit_scale.exp())
        own = torch.arange(len(ids), device=ids.device)
        logs = {"contrast": loss.detach(), "top1": top1(out.logits_per_image, own)}
        if self.hparams.naming:
            logits = self.name(out.image_embeds)
            losses = [nn.functional.cross_entropy(logits[kind], label) for kind, label in labels.items()]
            loss = loss + self.hparams.naming * sum(losses)
            logs |= {f"top1_{kind}": top1(logits[kind], label) for kind, label in labels.items()}
        return {"loss": loss, "logs": logs}

    def name(self, image_embeds: Tensor) -> dict[str, Tensor]:
        """Pictures (B, P) compared with each kind's words: logits (B, words of the kind)."""
        texts = self.clip.get_text_features(input_ids=self.word_ids).pooler_output
        logits = self.clip.logit_scale.exp() * image_embeds @ nn.functional.normalize(texts, dim=-1).T
        return dict(zip(NAMED, logits.split([len(LABELS[kind][2]) for kind in NAMED], 1), strict=True))

    def on_train_batch_end(self, *_) -> None:
        with torch.no_grad():
            self.clip.logit_scale.clamp_(0, float(np.log(100)))

    def configure_optimizers(self):
        learned = {n: p for n, p in self.clip.named_parameters() if p.requires_grad}
        embeddings = [p for n, p in learned.items() if "embedding" in n and "patch" not in n]
        others = [p for n, p in learned.items() if "embedding" not in n or "patch" in n]
        # The vocabulary's unused rows get no gradient; decay would only shrink them.
        apart = {"params": embeddings, "orthogonal": False, "lr": 0.3 * self.hparams.lr}
        optimizer = Muon([{"params": others}, apart], self.hparams.lr, self.hparams.weight_decay)
        return mini.with_schedule(optimizer, self.hparams.warmup, self.hparams.max_steps)


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
    mini.make_tokenizer().save_pretrained(folder / "tokenizer")


def build(config):
    """Module, loader and finish for `escdiff.training.run`."""
    optim, new_text = config.optim, option(config, "export_text", True)
    if not (new_text or config.init):
        raise UserError("export_text=false given without init; name the folder whose clip/ is to be trained further")
    naming = option(config, "naming", 0.0)
    module = ClipModule(optim.lr, config.trainer.max_steps, optim.warmup, optim.weight_decay, naming)
    if config.init:
        module.clip.load_state_dict(mini.load_weights(CLIPModel, config.init, "clip"))
    arrays = StillLifeArrays(config.data.root)
    sampler = EpochSampler(len(arrays), config.data.batch_size, config.seed)
    loader = DataLoader(CaptionedPictures(arrays, config.seed), batch_sampler=sampler, collate_fn=lambda batch: batch)
    return module, loader, lambda trained: export(trained, export_folder(config), new_text)
