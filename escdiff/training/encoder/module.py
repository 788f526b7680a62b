"""Training of the concept encoder by swap reconstruction, over a frozen backbone.

The shape vectors come from a picture of the same object in another material, the appearance vectors from a
picture of another object in the same material; the frozen U-Net must denoise the picture that has both.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from PIL import Image
from torch import Tensor, nn

from escdiff.backbone.branches import add_branches, branch_parameters
from escdiff.backbone.frozen import Feed, Frozen
from escdiff.concept import ATTRIBUTES, TEXT_ENCODER, placeholder
from escdiff.encoder.encoder import ConceptEncoder
from escdiff.encoder.packing import Packing
from escdiff.pipelines.generate import generate
from escdiff.support.config.loss import LossConfig
from escdiff.support.config.trainer import OptimConfig
from escdiff.support.errors import UserError
from escdiff.training.encoder.preview import STEPS, sheet
from escdiff.training.encoder.terms import Step, added_terms, weighted
from escdiff.training.encoder.word_targets import WordTargets
from escdiff.training.loop.optim.choose import make_optimizer
from escdiff.training.loop.optim.schedule import with_schedule
from escdiff.training.loop.timesteps import draw_timesteps

MASKS = ("shape_mask", "appearance_mask", "mask")


class EncoderModule(L.LightningModule):
    """`backbone` is frozen and stays outside the module, so that no checkpoint or average holds it.

    The branches of an encoder that has some are put into its U-Net: those of `encoder.branches`, or new ones.

    Batches are those of `escdiff.mini.data.swaps.EncoderDataModule`; the terms on pairs also need
    the target's "pixels", or stored tokens in place of all pictures.
    """

    def __init__(
        self, encoder: ConceptEncoder, backbone: Frozen, objective: LossConfig, lr: float, max_steps: int,
        warmup: int = OptimConfig.warmup, weight_decay: float = OptimConfig.weight_decay,
        optimizer: str = OptimConfig.name,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder, self.objective, self.packing = encoder, objective, Packing.of(encoder)
        self.lr, self.max_steps, self.warmup, self.weight_decay = lr, max_steps, warmup, weight_decay
        self.optimizer_name = optimizer
        self._frozen = (backbone,)  # a tuple hides it from nn.Module
        self.branches = nn.ParameterList()
        if names := encoder.config.branch_names:
            unet, routed = backbone.unet, encoder.config.branches == "routed"
            if encoder.branches is None:
                add_branches(unet, encoder.config.branch_rank, names, routed)
            else:  # those to start from
                replace(encoder.branches, routed=routed).put(unet)
                encoder.branches, unet.branch_hash = None, ""  # they become others
            self.branches.extend(p for name in names for p in branch_parameters(unet, name))
            for parameter in self.branches:  # PEFT makes them of the U-Net's type, in which small steps round away
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)
        if backbone.family.reading is not None and (objective.words or objective.words_only):
            given = f"loss.words={objective.words}, loss.words_only={objective.words_only} given for {backbone.name!r}"
            raise UserError(f"{given}; the vectors of a transformer are no words: set both to 0")
        if backbone.family.reading is not None and backbone.entry == TEXT_ENCODER:
            raise UserError(
                "backbone.splice_words=true given; an encoder writes to the layers: leave it out, or use xti"
            )
        self._words, self._added = WordTargets(backbone.prompts), added_terms(objective)
        self._feed: Feed | None = None
        self._preview: dict[str, Any] | None = None
        self._guidance = 1.0

    @property
    def backbone(self) -> Frozen:
        return self._frozen[0]

    @property
    def recomputes(self) -> bool:
        """Whether the text is encoded again in the backward pass rather than its activations kept.

        With a large U-Net beside the text encoder (`cells` of 0) that is 3 % of the work (SD 1.5, computed) for 0.4 GB
        at a batch of 2 (measured): worth it on a CPU, elsewhere where memory is asked for.
        """
        whole = not self.objective.cells and self.device.type == "cpu"
        return whole or self.backbone.denoiser.is_gradient_checkpointing

    @property
    def words_due(self) -> bool:
        return self.global_step < self.objective.words_only * self.max_steps

    @property
    def exact_due(self) -> bool:
        return self.global_step >= self.objective.exact_from * self.max_steps

    @property
    def pairs_due(self) -> bool:
        objective = self.objective
        asked = objective.invariance or objective.independence or objective.instances
        return bool(asked) and self.global_step % objective.pairs_every == 0

    @property
    def kind_of_step(self) -> str:
        """For `escdiff.training.loop.monitoring.speed`: steps of one kind cost the same."""
        return f"words {self.words_due}, exact {self.exact_due}, pairs {self.pairs_due}"

    def on_fit_start(self) -> None:
        if self.backbone.device != self.device:
            self.backbone.to(self.device)
        self.encoder.vision.to(self.device)
        encoder = self.encoder
        anchors = {a: encoder.anchor(a) for a in ATTRIBUTES}
        self._feed = self.backbone.feed(encoder.space, encoder.config.anchors, anchors)

    def on_fit_end(self) -> None:
        self._feed.remove()

    def on_after_backward(self) -> None:
        self.forget()

    def forget(self) -> None:
        """The denoiser is the stock one again until the next step."""
        self._feed.clear()

    def training_step(self, batch: dict[str, Any], _: int) -> dict[str, Any]:
        objective = self.objective
        texts, dropped = self.drop(batch["prompt"])
        features = self.features(batch, self.pairs_due)
        if self.words_due and "shape_words" in batch:
            return self.words_step(batch, features)
        residuals = {a: self.encoder.residuals(a, features[a], dropped[a]) for a in ATTRIBUTES}
        cells = 0 if self.exact_due else objective.cells
        output, target, timesteps = self.denoise(batch, texts, residuals, objective.high_noise_bias, cells)
        kept = ~dropped["shape"] & ~dropped["appearance"]
        terms = self.terms(batch, features, residuals, kept, output, target, timesteps)
        error = (output.detach() - target).square().mean((1, 2, 3))
        logs = {name: value.detach() for name, value in terms.items()} | self.gate_logs()
        return {"loss": sum(terms.values()), "error": error, "timesteps": timesteps, "logs": logs}

    def validation_step(self, batch: dict[str, Any], _: int) -> dict[str, Tensor]:
        """Denoising errors (B * draws,) at timesteps spread evenly: nothing dropped, every layer its own vectors."""
        features = self.features(batch, pairs=False)
        residuals = {a: self.encoder.residuals(a, features[a]) for a in ATTRIBUTES}
        output, target, timesteps = self.denoise(batch, batch["prompt"], residuals, bias=0.0, cells=0)
        self.forget()
        return {"error": (output - target).square().mean((1, 2, 3)), "timesteps": timesteps}

    def denoise(
        self, batch: dict[str, Any], texts: list[str], residuals: dict[str, Tensor], bias: float, cells: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The frozen denoiser's output and its target (B * draws, C, h, w), and their timesteps (B * draws,).

        Args:
            bias: see `draw_timesteps`. cells: see `encode_tied`.
        """
        backbone, draws = self.backbone, self.objective.draws
        timesteps, stage = draw_timesteps(len(texts), draws, bias, self.encoder.space, self.device)
        conditioning = self.condition(texts, residuals, stage, cells)
        latents = self.latents(batch).repeat_interleave(draws, 0)
        timesteps, noise = timesteps.flatten(), torch.randn_like(latents)
        noisy = backbone.add_noise(latents, noise, timesteps)
        output = backbone.predict(noisy, timesteps, conditioning).float()
        return output, backbone.target(latents, noise, timesteps), timesteps

    def words_step(self, batch: dict[str, Any], features: dict[str, Tensor]) -> dict[str, Any]:
        """A step without the diffusion model; the nulls learn to be the mean word, and gates wait."""
        nobody = torch.zeros(len(batch["prompt"]), dtype=torch.bool, device=self.device)
        residuals = {a: self.encoder.residuals(a, features[a], nobody) for a in ATTRIBUTES}
        terms = self.terms(batch, features, residuals, ~nobody)
        # DDP wants every parameter in every step.
        unused = 0.0 * sum(p.sum() for p in (*self.branches, *self.encoder.gate_logits.values()))
        logs = {name: value.detach() for name, value in terms.items()}
        return {"loss": sum(terms.values()) + unused, "logs": logs}

    def terms(
        self, batch: dict[str, Any], features: dict[str, Tensor], residuals: dict[str, Tensor], kept: Tensor,
        *denoised: Tensor,
    ) -> dict[str, Tensor]:  # fmt: skip
        """The weighted terms of a step, all of them part of the graph at every step, as DDP wants it.

        Args:
            kept: (B,) bool, samples with both attributes. denoised: output, target and timesteps of the U-Net.
        """
        step = Step(self.encoder, self.objective, batch, features, residuals, kept, self._words, *denoised)
        return weighted(step, self._added)

    def drop(self, prompts: list[str]) -> tuple[list[str], dict[str, Tensor]]:
        """Texts, some without their words, and attribute -> (B,) bool of those given as learned nulls."""
        objective, texts = self.objective, list(prompts)
        for i in torch.nonzero(torch.rand(len(texts)) < objective.drop_text).flatten().tolist():
            texts[i] = " ".join(word for word in texts[i].split() if word.strip(",.").startswith("<"))
        shares = {"shape": objective.drop_shape, "appearance": objective.drop_appearance}
        return texts, {a: torch.rand(len(texts), device=self.device) < share for a, share in shares.items()}

    def features(self, batch: dict[str, Any], pairs: bool) -> dict[str, Tensor]:
        """Head features (B, F) of the references, and "target_{attribute}" where `pairs` are asked for and there."""
        encoder, count = self.encoder, len(batch["prompt"])
        shown = {name: self.drop_masks(batch[name]) for name in MASKS if name in batch}
        pairs = pairs and ("pixels" in batch or "target_tokens" in batch)
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
        size = batch["shape_ref"].shape[-2:]
        return self.encoder.tokens(joined([batch[pixels[name]] for name in pictures], size))

    def drop_masks(self, mask: Tensor) -> Tensor:
        """Masks (B, 1, H, W), some of them replaced by the whole picture."""
        dropped = torch.rand(len(mask), 1, 1, 1, device=mask.device) < self.objective.drop_mask
        return torch.where(dropped, 1.0, mask)

    def condition(self, texts: list[str], residuals: dict[str, Tensor], stage: Tensor, cells: int = 0) -> Any:
        """What the denoiser takes for each sample's stage, with so many different layers; 0 for all."""
        vectors = {placeholder(a): self.encoder.vectors(a, value) for a, value in residuals.items()}
        if self.encoder.space.num_stages > 1:
            rows = torch.arange(len(texts), device=stage.device)
            vectors = {name: value[rows, :, stage].unsqueeze(2) for name, value in vectors.items()}
        return self._feed.load(texts, vectors, stage, self.objective.draws, cells, self.recomputes)

    def latents(self, batch: dict[str, Any]) -> Tensor:
        moments = batch["latent"] if "latent" in batch else self.backbone.moments(batch["pixels"])
        return self.backbone.sample_latents(moments.float())

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
        optimizer = make_optimizer(self.optimizer_name, groups, self.lr, self.weight_decay, self.device)
        return with_schedule(optimizer, self.warmup, self.max_steps)

    def set_preview(self, batch: dict[str, Any], guidance: float) -> None:
        """Fix the samples that `sample_grid` paints, and the classifier-free guidance scale it paints them with."""
        self._preview, self._guidance = batch, guidance

    @property
    def preview(self) -> dict[str, Any] | None:
        """The samples that are painted while training."""
        return self._preview

    @torch.no_grad()
    def paint_preview(self) -> list[Image.Image]:
        """A picture of every sample of `preview`, always from the same noise."""
        batch = self._preview
        pixels = {f"{a}_pixels": batch[f"{a}_ref"].to(self.device) for a in ATTRIBUTES}
        masks = {f"{a}_mask": batch[f"{a}_mask"].to(self.device) for a in ATTRIBUTES if f"{a}_mask" in batch}
        vectors = self.encoder(**pixels, **masks)
        concepts = [
            self.encoder.concept({a: value[row] for a, value in vectors.items()}) for row in range(len(batch["prompt"]))
        ]
        return generate(self.backbone, batch["prompt"], concepts, steps=STEPS, guidance=self._guidance)

    def preview_texts(self) -> list[str]:
        """The prompts of `preview` with the anchor words where its placeholders stand."""
        words, texts = self.encoder.config.anchors, self._preview["prompt"]
        for attribute in ATTRIBUTES:
            texts = [text.replace(placeholder(attribute), words[attribute]) for text in texts]
        return texts

    def sample_grid(self) -> Image.Image:
        """Shape references, appearance references, targets if there are any, and paintings, below their prompts."""
        batch, painted = self._preview, self.paint_preview()
        rows = {"shape of": "shape_ref", "appearance of": "appearance_ref", "target": "pixels"}
        shown = [(label, batch[name]) for label, name in rows.items() if name in batch]
        return sheet([*shown, ("painted", painted)], batch["prompt"])

    def summary(self) -> dict[str, str]:
        """For the lines at the start of a run."""
        vision, backbone = self.encoder.vision, self.backbone
        types = (str(part.dtype).removeprefix("torch.") for part in (backbone, vision))
        return {
            "noised copies": f"{self.objective.draws} of each sample",
            "frozen": f"{backbone.name} in {next(types)}, tower {vision.spec} in {next(types)}",
        }

    def export(self, folder: Path) -> None:
        """Write the encoder and its branches, if any, as `ConceptEncoder.from_pretrained` reads them."""
        self.encoder.save_pretrained(folder, self.backbone.unet if len(self.branches) else None)


def masks(batch: dict[str, Any], *names: str) -> Tensor | None:
    """The named masks (B, 1, H, W) one behind the other; where one of them is missing, whole pictures."""
    found = [batch.get(name) for name in names]
    like = next((mask for mask in found if mask is not None), None)
    if like is None:
        return None
    size = next((batch[name].shape[-2:] for name in names if name != "mask" and name in batch), like.shape[-2:])
    return joined([torch.ones_like(like) if m is None else m for m in found], size)


def joined(pictures: Sequence[Tensor], size: torch.Size) -> Tensor:
    """Pictures (B, C, H, W) one behind the other, all at the references' size.

    Targets have the U-Net's size and shape, references the tower's; of a target that is no square the middle is taken.
    """
    return torch.cat([picture if picture.shape[-2:] == size else _middle(picture, size) for picture in pictures])


def _middle(pictures: Tensor, size: torch.Size) -> Tensor:
    side = min(pictures.shape[-2:])
    top, left = ((length - side) // 2 for length in pictures.shape[-2:])
    middle = pictures[..., top : top + side, left : left + side]
    return nn.functional.interpolate(middle, size, mode="bilinear", antialias=True)
