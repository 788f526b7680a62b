"""AnyDoor: an object of a reference picture is put into a box of a scene, by words of its look and a map of its edges.

Chen, Huang, Liu, Shen, Zhao, Zhao 2024, "AnyDoor: Zero-shot Object-level Image Customization". Identity tokens of the
reference stand in for the prompt, and a ControlNet reads the scene with the reference's fine details laid in the box.
Theirs: DINOv2's tokens, the scene cropped around the box, a branch that never sees the noisy latents.
Ours: the tokens of our vision tower with their mean; the scene as a whole; the branch's layer for the latents is zero
and stays so, hence it is diffusers' own ControlNet and yet sees none of them; outside of the box the scene's latents
are put back at every step if you like.
Not here: the adaptive timesteps for videos.
Legend: B batch, N tokens, D width of the prompt's states, W width of the tower's.
"""

import copy
import json
from pathlib import Path

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from escdiff.encoder.vision import LOCAL, VisionBackbone, load_vision, tower_name
from escdiff.pipelines.collage import CHANNELS
from escdiff.support.errors import UserError, reason_of
from escdiff.support.files import save_tensors, write_json

CONFIG, PROJECTOR = "config.json", "projector.safetensors"
ELSEWHERE = ("controlnet.", "decoder.")  # parts with folders of their own


class Placer(nn.Module):
    """What AnyDoor learns beside the backbone.

    Attributes:
        vision: the frozen tower; it and the U-Net are hidden from `parameters` and `state_dict`.
        nothing: (1, 1, D), the state that stands for no reference.
        unet: the backbone's, or a copy whose upward half is `decoder`, and learns too.
    """

    def __init__(
        self, vision: VisionBackbone, unet: UNet2DConditionModel, controlnet: ControlNetModel, decoder: bool = False
    ) -> None:
        super().__init__()
        width = unet.config.cross_attention_dim
        self.norm, self.project = nn.LayerNorm(vision.width), nn.Linear(vision.width, width)
        self.nothing = nn.Parameter(torch.zeros(1, 1, width))
        self.controlnet, self._hidden = controlnet, (vision, unet)
        self.decoder = unet.up_blocks if decoder else None

    @classmethod
    def fresh(cls, unet: UNet2DConditionModel, vision: VisionBackbone, decoder: bool = False) -> "Placer":
        """Untrained over a backbone's U-Net: with it pictures are the U-Net's own, given the same states.

        Args:
            decoder: learns the U-Net's upward half too, in a copy, as theirs.
        """
        # Each level of the hint halves the sides, down to the latents'.
        controlnet = ControlNetModel.from_unet(
            unet, conditioning_channels=CHANNELS, conditioning_embedding_out_channels=(16, 32, 96, 256)
        ).float()
        for parameter in controlnet.conv_in.parameters():
            nn.init.zeros_(parameter.requires_grad_(False))
        unet = copy.deepcopy(unet).float() if decoder else unet
        placer = cls(vision, unet, controlnet.train(), decoder)
        if decoder:
            placer.decoder.requires_grad_(True)
        return placer

    @property
    def vision(self) -> VisionBackbone:
        return self._hidden[0]

    @property
    def unet(self) -> UNet2DConditionModel:
        return self._hidden[1]

    def identity(self, reference: Tensor, mask: Tensor) -> Tensor:
        """(B, N + 1, D): states of the object in pictures (B, 3, H, W) in [-1, 1], on white; mask (B, 1, H, W)."""
        with torch.no_grad():
            tokens = self.vision(torch.lerp(torch.ones_like(reference), reference, mask))[-1].to(self.nothing.dtype)
        return self.project(self.norm(torch.cat([tokens, tokens.mean(1, keepdim=True)], 1)))

    def empty(self, count: int, tokens: int) -> Tensor:
        """(count, tokens, D) of no reference."""
        return self.nothing.expand(count, tokens, -1)

    def forward(self, noisy: Tensor, timesteps: Tensor, states: Tensor, shown: Tensor) -> Tensor:
        """The U-Net's output (B, C, h, w); shown (B, 4, H, W), see `collage`."""
        down, mid = self.controlnet(noisy, timesteps, states, shown, return_dict=False)
        return self.unet(
            noisy, timesteps, states, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample

    def save_pretrained(self, folder: Path) -> None:
        """Write the branch as a diffusers ControlNet, the projector, and the U-Net where its upward half learned."""
        folder, decoder = Path(folder), self.decoder is not None
        own = {name: value for name, value in self.state_dict().items() if not name.startswith(ELSEWHERE)}
        self.controlnet.save_pretrained(folder / "controlnet")
        if decoder:
            self.unet.save_pretrained(folder / "unet")
        save_tensors(folder / PROJECTOR, own, {"format": "pt"})
        write_json(folder / CONFIG, {"kind": "anydoor", "vision": tower_name(self.vision.spec), "decoder": decoder})

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, unet: UNet2DConditionModel, vision: VisionBackbone | str | None = None
    ) -> "Placer":
        """Load what a training wrote.

        Args:
            unet: of the backbone that it was trained with.
            vision: the tower or where it lies, if it is not to be looked for under its name.

        Raises:
            UserError: nothing of the kind there, a part is missing or damaged, it was trained with another backbone or
                tower, or its tower is a folder of another machine.
        """
        folder = Path(folder).expanduser()
        try:
            about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            kind, tower, decoder = about["kind"], about["vision"], about["decoder"]
        except (OSError, ValueError, KeyError, TypeError):
            kind = None
        if kind != "anydoor":
            raise UserError(
                f"no AnyDoor model in {folder}; train one with `python train.py experiment=mini/anydoor` or give its "
                "folder"
            )
        parts = ["controlnet", PROJECTOR, *["unet"] * decoder]
        if lost := [part for part in parts if not (folder / part).exists()]:
            raise UserError(f"the AnyDoor model in {folder} is not whole (no {lost[0]}); copy it again")
        try:
            controlnet, state = ControlNetModel.from_pretrained(folder / "controlnet"), load_file(folder / PROJECTOR)
            copied = UNet2DConditionModel.from_pretrained(folder / "unet") if decoder else None
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"the AnyDoor model in {folder} is not whole ({reason_of(error)}); copy it again") from None
        its, ours = ((net.config.cross_attention_dim, *net.config.block_out_channels) for net in (controlnet, unet))
        if its != ours:
            raise UserError(f"{folder} was trained with another backbone: its width and channels are {its}, not {ours}")
        if copied is not None:
            unet = copied.to(unet.device, unet.dtype)
        if vision is None and tower.startswith(LOCAL):
            what = f"{folder} reads with the vision tower {tower.removeprefix(LOCAL)!r}"
            raise UserError(f"{what}, a folder; say where it lies: encoder.vision=DIR")
        vision = vision or tower
        placer = cls(load_vision(vision) if isinstance(vision, str) else vision, unet, controlnet, decoder)
        try:
            missing, strange = placer.load_state_dict(state, strict=False)
        except RuntimeError:
            its, ours = len(state["norm.weight"]) if "norm.weight" in state else "none", placer.vision.width
            what = f"{folder} was trained with another vision tower: its width is {its}, not {ours}"
            raise UserError(f"{what}; say where its own lies: encoder.vision=DIR") from None
        if missing := [name for name in missing if not name.startswith(ELSEWHERE)] + strange:
            raise UserError(f"{folder / PROJECTOR} is not whole or another file ({missing[0]}); copy it again")
        return placer.requires_grad_(False).eval()
