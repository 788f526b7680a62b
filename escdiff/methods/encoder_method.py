"""Methods with an encoder of their own: learned once from a data set, then one pass per reference.

`python train.py method=elite` learns it on the data of ESCDiff's encoder, with targets that are their own references
as these papers train; `method=elite init=DIR data.references=FILE` makes a concept with it.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from escdiff.data.prompts import BOTH, PHRASES
from escdiff.encoder.vision import VisionBackbone
from escdiff.methods.base import Method
from escdiff.support.errors import UserError
from escdiff.support.files import save_tensors, write_json
from escdiff.support.names import portable

ABOUT, STATE = "config.json", "encoder.safetensors"


class EncoderMethod(Method):
    """A method that encodes.

    Attributes:
        tuning_steps: optimisation steps from its prediction.
    """

    encodes = True
    tuning_steps = 0

    def texts(self, prompts: Sequence[str]) -> list[str]:
        """ESCDiff's prompts name shape and appearance apart; here one placeholder stands for both."""
        return [_replace(prompt, self.phrase) for prompt in prompts]

    def changed(self) -> int:
        return super().changed() if self.tuning_steps else 0

    def concept(self, notes=None):
        shared = {} if self.tuning_steps else {"shared_weights": "yes"}  # the adapter is the same for every concept
        return super().concept({**shared, **(notes or {})})

    def save_pretrained(self, folder: Path) -> None:
        """Write what was learned, U-Net weights included, as `load_pretrained` reads it."""
        save_tensors(folder / STATE, self.state_dict(), {"format": "pt"})
        base = {"base_model": portable(self.backbone.name), "text_hash": self.backbone.text_hash}
        write_json(folder / ABOUT, {"method": type(self).__name__, **base})

    def load_pretrained(self, folder: Path) -> None:
        """Read what was learned, in place.

        Raises:
            UserError: nothing there, of another method or backbone, or of another size.
        """
        ours = {"method": type(self).__name__, "text_hash": self.backbone.text_hash}
        try:
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            theirs = {key: about[key] for key in ours}
            state = safetensors.torch.load_file(folder / STATE)
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            what = f"init={folder} holds no encoder of {ours['method']} ({error})"
            raise UserError(f"{what}; give the export of a run without data.references") from None
        if theirs != ours:
            raise UserError(f"init={folder} was made for {theirs}, expected {ours}; learn one for this backbone")
        try:
            self.load_state_dict(state)
        except RuntimeError:
            what = f"init={folder} has other sizes"
            raise UserError(f"{what}; give the method the settings it was learned with") from None


def check_depths(key: str, depths: Sequence[int], tower: VisionBackbone) -> tuple[int, ...]:
    """The depths, if the tower has them.

    Raises:
        UserError: naming the key and the first that it lacks.
    """
    wrong = [depth for depth in depths if not 0 <= depth < tower.num_depths]
    if wrong:
        what = f"{key} names depth {wrong[0]} of the vision tower {tower.spec}"
        raise UserError(f"{what}; expected 0 to {tower.num_depths - 1}")
    return tuple(int(depth) for depth in depths)


def pooled(tokens_BNW: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over patches (B, W), of those on the mask where there is one."""
    if mask is None:
        return tokens_BNW.mean(1)
    share = on_object(mask, tokens_BNW.shape[1]).to(tokens_BNW)[..., None].clamp_min(1e-3)
    return (tokens_BNW * share).sum(1) / share.sum(1)


def on_object(mask: Tensor, patches: int) -> Tensor:
    """Share of the mask (B, 1, H, W) in each of N patches: (B, N)."""
    return adaptive_avg_pool2d(mask.float(), round(patches**0.5)).flatten(1)


def foreground(tokens_BNW: Tensor, mask: Tensor | None) -> Tensor:
    """The tokens with those off the object replaced by those on it, over and over: never attended, no gaps to pad."""
    if mask is None:
        return tokens_BNW
    rows = []
    for tokens, share in zip(tokens_BNW, on_object(mask, tokens_BNW.shape[1]), strict=True):
        inside = (share > 0.5).nonzero().flatten()
        if len(inside) == 0:
            inside = share.argmax()[None]
        rows.append(tokens[inside.repeat(-(-len(tokens) // len(inside)))[: len(tokens)]])
    return torch.stack(rows)


def _replace(prompt: str, phrase: str) -> str:
    for known in sorted(PHRASES[BOTH], key=len, reverse=True):
        if known in prompt:
            return prompt.replace(known, phrase)
    for word in ("<shape>", "<concept>", "<appearance>"):
        if word in prompt:
            return prompt.replace(word, phrase)
    return prompt
