"""Training of the concept encoder by swap reconstruction, over a frozen backbone.

The shape vectors come from a picture of the same object in another material, the appearance vectors from a
picture of another object in the same material; the frozen U-Net must denoise the picture that has both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from escdiff import losses
from escdiff.backbone import Backbone
from escdiff.concept import ATTRIBUTES, placeholder
from escdiff.encoder.branches import add_branches, branch_parameters, route, unroute
from escdiff.encoder.encoder import ConceptEncoder
from escdiff.encoder.packing import Packing
from escdiff.training import mini
from escdiff.training.feed import LayerFeed
from escdiff.training.muon import Muon
from escdiff.training.preview import paint, sheet
from escdiff.training.timesteps import draw_timesteps
from escdiff.training.tying import encode_tied
from escdiff.training.words import StateTargets, WordTargets, word_loss

MASKS = ("shape_mask", "appearance_mask", "mask")


@dataclass(frozen=True)
class Objective:
    """Weights and shares of the encoder's training; every weight may be 0."""

    high_noise_bias: float = 0.5  # density of timesteps is proportional to t^bias
    draws: int = 4  # noised copies of each target per step: one encoding serves them all
    cells: int = 2  # different layers per step, see escdiff.training.tying; 0 for all
    exact_from: float = 0.9  # share of the run after which all layers differ, as at inference
    mask: float = 0.5  # of the denoising error within the object
    invariance: float = 0.05  # other picture of the same shape (material) -> same shape (appearance) features
    independence: float = 0.02  # cross-correlation of the two heads' features of one picture
    pairs_every: int = 2  # steps between those two (they cost a third picture); so much stronger then
    words: float = 0.1  # distance of the ungated vectors from the caption's own words
    words_only: float = 0.25  # share of the run that trains on words alone, without the diffusion model
    gates: float = 0.001  # mean gate
    residual: float = 0.001  # mean square of what is added to the anchors, in units of the embedding scale
    drop_shape: float = 0.1
    drop_appearance: float = 0.1
    drop_text: float = 0.05  # every word but the placeholders
    drop_mask: float = 0.7  # a reference shown without its mask, as people give them


class EncoderModule(L.LightningModule):
    """`backbone` is frozen and stays outside the module, so that no checkpoint or average holds it.

    Batches are those of `escdiff.data.datamodule.EncoderDataModule`; invariance and independence also need
    the target's "pixels", or stored tokens in place of all pictures.
    """

    def __init__(
        self, encoder: ConceptEncoder, backbone: Backbone, objective: Objective, lr: float, max_steps: int,
        warmup: int = 200, weight_decay: float = 0.01,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder, self.objective, self.packing = encoder, objective, Packing.of(encoder)
        self.lr, self.max_steps, self.warmup, self.weight_decay = lr, max_steps, warmup, weight_decay
        self._frozen = (backbone,)  # a tuple hides it from nn.Module
        self.branches = nn.ParameterList()
        if encoder.config.branch_rank:
            add_branches(backbone.unet, encoder.config.branch_rank, routed=encoder.config.branches == "routed")
            self.branches.extend(p for name in ATTRIBUTES for p in branch_parameters(backbone.unet, name))
        self._words, self._states = WordTargets(backbone.prompts), StateTargets(backbone.prompts)
        self._feed: LayerFeed | None = None
        self._preview: dict[str, Any] | None = None

    @property
    def backbone(self) -> Backbone:
        return self._frozen[0]

    @property
    def words_due(self) -> bool:
        return self.global_step < self.objective.words_only * self.max_steps

    @property
    def exact_due(self) -> bool:
        return self.global_step >= self.objective.exact_from * self.max_steps

    @property
    def pairs_due(self) -> bool:
        objective = self.objective
        return bool(objective.invariance or objective.independence) and self.global_step % objective.pairs_every == 0

    @property
    def kind_of_step(self) -> str:
        """For `escdiff.training.speed`: steps of one kind cost the same."""
        return f"words {self.words_due}, exact {self.exact_due}, pairs {self.pairs_due}"

    def on_fit_start(self) -> None:
        if self.backbone.device != self.device:
            self.backbone.to(self.device)
        self.encoder.vision.to(self.device)
        self._feed = LayerFeed(self.backbone.unet, self.encoder.space)

    def on_fit_end(self) -> None:
        self._feed.remove()

    def on_after_backward(self) -> None:
        self._feed.clear()
        unroute(self.backbone.unet)

    def training_step(self, batch: dict[str, Any], _: int) -> dict[str, Any]:
        objective, space, backbone = self.objective, self.encoder.space, self.backbone
        texts, dropped = self.drop(batch["prompt"])
        features = self.features(batch)
        if self.words_due and "shape_words" in batch:
            return self.words_step(batch, features)
        residuals = {a: self.encoder.residuals(a, features[a], dropped[a]) for a in ATTRIBUTES}
        timesteps, stage = draw_timesteps(len(texts), objective.draws, objective.high_noise_bias, space, self.device)
        grid = self.grid(texts, residuals, stage)
        repeat = lambda x: x.repeat_interleave(objective.draws, 0)  # noqa: E731
        latents = repeat(self.latents(batch))
        timesteps, noise = timesteps.flatten(), torch.randn_like(latents)
        noisy = backbone.add_noise(latents, noise, timesteps)
        route(backbone.unet, backbone.prompts, texts, {placeholder(a): r.shape[3] for a, r in residuals.items()})
        output = backbone.predict(noisy, timesteps, self._feed.load(grid, objective.draws)).float()
        target = backbone.target(latents, noise, timesteps)
        terms = {
            "denoising": losses.denoising(output, target),
            "mask": objective.mask * losses.denoising(output, target, mask=repeat(batch["mask"])),
            **self.regularizers(features, residuals),
            **self.word_terms(batch, residuals, ~dropped["shape"] & ~dropped["appearance"]),
        }
        error = (output.detach() - target).square().mean((1, 2, 3))
        logs = {name: value.detach() for name, value in terms.items()} | self.gate_logs()
        return {"loss": sum(terms.values()), "error": error, "timesteps": timesteps, "logs": logs}

    def words_step(self, batch: dict[str, Any], features: dict[str, Tensor]) -> dict[str, Any]:
        """A step without the diffusion model; the nulls learn to be the mean word, and gates wait."""
        nobody = torch.zeros(len(batch["prompt"]), dtype=torch.bool, device=self.device)
        residuals = {a: self.encoder.residuals(a, features[a], nobody) for a in ATTRIBUTES}
        terms = {**self.regularizers(features, residuals), **self.word_terms(batch, residuals, ~nobody)}
        terms.pop("gates")  # with nothing to weigh against it, sparsity would close them all
        # DDP wants every parameter in every step.
        unused = 0.0 * sum(p.sum() for p in (*self.branches, *self.encoder.gate_logits.values()))
        logs = {name: value.detach() for name, value in terms.items()}
        return {"loss": sum(terms.values()) + unused, "logs": logs}

    def word_terms(self, batch: dict[str, Any], residuals: dict[str, Tensor], kept: Tensor) -> dict[str, Tensor]:
        """The weighted word loss of samples with words whose attributes were kept (B,)."""
        if "shape_words" not in batch or not self.objective.words:
            return {}
        total, anchors = residuals["shape"].new_zeros(()), {a: self.encoder.anchor(a) for a in residuals}
        phrases = {a: batch[f"{a}_words"] for a in residuals}
        if self.encoder.config.placement == "states":
            found = self._states(batch["prompt"], phrases, anchors)
            given = residuals
        else:
            found = {a: self._words(phrases[a], len(anchor)) for a, anchor in anchors.items()}
            given = {a: anchors[a] + residual for a, residual in residuals.items()}
        for attribute, (targets, counted) in found.items():
            total = total + word_loss(given[attribute], targets, counted & kept, self.encoder.word_scale)
        return {"words": self.objective.words * total}

    def drop(self, prompts: list[str]) -> tuple[list[str], dict[str, Tensor]]:
        """Texts, some without their words, and attribute -> (B,) bool of those given as learned nulls."""
        objective, texts = self.objective, list(prompts)
        for i in torch.nonzero(torch.rand(len(texts)) < objective.drop_text).flatten().tolist():
            texts[i] = " ".join(word for word in texts[i].split() if word.strip(",.").startswith("<"))
        shares = {"shape": objective.drop_shape, "appearance": objective.drop_appearance}
        return texts, {a: torch.rand(len(texts), device=self.device) < share for a, share in shares.items()}

    def features(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Head features (B, F) of the references, and "target_{attribute}" where pairs are due."""
        encoder, count = self.encoder, len(batch["prompt"])
        shown = {name: self.drop_masks(batch[name]) for name in MASKS if name in batch}
        pairs = self.pairs_due and ("pixels" in batch or "target_tokens" in batch)
        # The target in the middle: each filter reads reference and target in one call, without a copy.
        target, of_target = (("target",), ("mask",)) if pairs else ((), ())
        tokens, end = self.tokens(batch, ("shape", *target, "appearance")), count * (1 + len(target))
        shape = encoder.features("shape", [t[:end] for t in tokens], masks(shown, "shape_mask", *of_target))
        appearance = encoder.features(
            "appearance", [t[count:] for t in tokens], masks(shown, *of_target, "appearance_mask")
        )
        found = {"shape": shape[:count], "appearance": appearance[-count:]}
        if pairs:
            found |= {"target_shape": shape[count:], "target_appearance": appearance[:count]}
        return found

    def tokens(self, batch: dict[str, Any], pictures: Sequence[str]) -> list[Tensor]:
        """The tower's tokens by depth of the batch's pictures, those of one kind behind those of another."""
        if "target_tokens" in batch:
            return self.packing.unpack(torch.cat([batch[f"{name}_tokens"] for name in pictures]))
        pixels = {"target": "pixels", **{a: f"{a}_ref" for a in ATTRIBUTES}}
        return self.encoder.tokens(torch.cat([batch[pixels[name]] for name in pictures]))

    def drop_masks(self, mask: Tensor) -> Tensor:
        """Masks (B, 1, H, W), some of them replaced by the whole picture."""
        dropped = torch.rand(len(mask), 1, 1, 1, device=mask.device) < self.objective.drop_mask
        return torch.where(dropped, 1.0, mask)

    def grid(self, texts: list[str], residuals: dict[str, Tensor], stage: Tensor) -> Tensor:
        """The conditioning (B, L, T, D) of each sample's stage."""
        vectors = {
            placeholder(a): self.encoder.place(a, self.encoder.vectors(a, value)) for a, value in residuals.items()
        }
        if self.encoder.space.num_stages > 1:
            rows = torch.arange(len(texts), device=stage.device)
            vectors = {name: value[rows, :, stage].unsqueeze(2) for name, value in vectors.items()}
        if self.encoder.config.placement == "states":  # the text encoder reads one row per prompt in any case
            return self.backbone.prompts.encode(texts, vectors)[:, :, 0]
        cells = 0 if self.exact_due else self.objective.cells
        return encode_tied(self.backbone.prompts, texts, vectors, cells)

    def latents(self, batch: dict[str, Any]) -> Tensor:
        moments = batch["latent"] if "latent" in batch else self.backbone.moments(batch["pixels"])
        return self.backbone.sample_latents(moments.float())

    def regularizers(self, features: dict[str, Tensor], residuals: dict[str, Tensor]) -> dict[str, Tensor]:
        """All weighted; every one is part of the graph at every step, as DDP wants it."""
        objective, encoder = self.objective, self.encoder
        scale = encoder.embedding_scale
        terms = {
            "gates": objective.gates * sum(g.mean() for g in encoder.gates().values()),
            "residual": objective.residual * sum(losses.residual_l2(r / scale) for r in residuals.values()),
        }
        if "target_shape" in features:
            same = sum(losses.invariance(features[a], features[f"target_{a}"]) for a in ATTRIBUTES)
            terms["invariance"] = objective.pairs_every * objective.invariance * same
            related = losses.independence(features["target_shape"], features["target_appearance"])
            terms["independence"] = objective.pairs_every * objective.independence * related
        return terms

    def gate_logs(self) -> dict[str, Tensor]:
        """Every layer's gates, at the steps that are logged."""
        if (self.global_step + 1) % self.trainer.log_every_n_steps:
            return {}
        gates = {attribute: values.detach().mean(1) for attribute, values in self.encoder.gates().items()}
        return {f"gates/{a}/{layer:02d}": value for a, values in gates.items() for layer, value in enumerate(values)}

    def configure_optimizers(self):
        named = {n: p for n, p in self.encoder.named_parameters() if p.requires_grad and "gate_logits" not in n}
        # Muon is for what lies between input and output (Jordan); a head's last matrix is the largest, too.
        apart = ("positions", "base.2.weight")
        matrices = {n: p for n, p in named.items() if p.ndim == 2 and min(p.shape) > 8 and not n.endswith(apart)}
        others = [p for n, p in named.items() if n not in matrices]
        gates = [p for p in self.encoder.gate_logits.values() if p.requires_grad]
        plain = {"weight_decay": 0.0, "orthogonal": False}
        groups = [{"params": list(matrices.values())}, {"params": [*others, *self.branches], **plain}]
        if gates:  # logits move by whole units, weights by hundredths
            groups.append({"params": gates, "lr": 10 * self.lr, **plain})
        optimizer = Muon(groups, self.lr, self.weight_decay)
        return mini.with_schedule(optimizer, self.warmup, self.max_steps)

    def set_preview(self, batch: dict[str, Any]) -> None:
        """Fix the samples that `sample_grid` paints."""
        self._preview = batch

    @torch.no_grad()
    def sample_grid(self):
        """Shape references, appearance references, targets and paintings, row by row."""
        batch = self._preview
        pixels = {f"{a}_pixels": batch[f"{a}_ref"].to(self.device) for a in ATTRIBUTES}
        masks = {f"{a}_mask": batch[f"{a}_mask"].to(self.device) for a in ATTRIBUTES if f"{a}_mask" in batch}
        vectors = {placeholder(a): self.encoder.place(a, v) for a, v in self.encoder(**pixels, **masks).items()}
        painted = paint(self.backbone, self.encoder.space, batch["prompt"], vectors)
        rows = [batch["shape_ref"], batch["appearance_ref"], batch["pixels"], painted]
        size = painted.shape[-2:]
        return sheet([nn.functional.interpolate(row, size, mode="area") for row in rows])

    def export(self, folder: Path) -> None:
        """Write the encoder and its branches, if any, as `ConceptEncoder.from_pretrained` reads them."""
        self.encoder.save_pretrained(folder, self.backbone.unet if len(self.branches) else None)


def masks(batch: dict[str, Any], *names: str) -> Tensor | None:
    """The named masks (B, 1, H, W) one behind the other; where one of them is missing, whole pictures."""
    found = [batch.get(name) for name in names]
    like = next((mask for mask in found if mask is not None), None)
    return None if like is None else torch.cat([torch.ones_like(like) if m is None else m for m in found])


def build(config: Any):
    """Module, data and finish for `escdiff.training.run`; encodes the latents where none are cached."""
    from escdiff.training.encoder_setup import make_backbone, make_data, make_encoder, make_objective, store_tokens
    from escdiff.training.options import export_folder, option

    backbone = make_backbone(config)
    encoder = make_encoder(config, backbone)
    data = make_data(config, backbone, store_tokens(config, encoder))
    module = EncoderModule(
        encoder, backbone, make_objective(config), config.optim.lr, config.trainer.max_steps,
        option(config, "optim.warmup", 200), option(config, "optim.weight_decay", 0.01),
    )  # fmt: skip
    module.set_preview(data.preview())
    return module, data, lambda trained: trained.export(export_folder(config))
