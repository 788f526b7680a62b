"""The encoder's checkpoint: a folder with config.json, model.safetensors, branches/ and a model card.

Never pickle, and nothing in the files names code to run. The frozen vision tower is kept by name only.
"""

import json
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from escdiff.concept import ATTRIBUTES, Concept
from escdiff.conditioning import ConditioningSpace
from escdiff.encoder.branches import load_branches, save_branches
from escdiff.encoder.vision import load_vision
from escdiff.errors import UserError

CONFIG, WEIGHTS, BRANCHES, CARD = "config.json", "model.safetensors", "branches", "README.md"
FORMAT, VERSION = "escdiff-encoder", 1


def bundled_folder() -> Path:
    return Path(__file__).parents[1] / "assets" / "mini_encoder"


def save(encoder, folder: Path, unet: nn.Module | None = None, card: str = "") -> None:
    """Write what was trained, as float16; with `unet`, its branches too."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().half().contiguous() for k, v in encoder.state_dict().items()}
    about = {
        "format": FORMAT, "version": VERSION, "base_model": encoder.base_model, "text_hash": encoder.text_hash,
        "width": encoder.anchor("shape").shape[-1], **encoder.space.to_metadata(), "encoder": encoder.plain_config(),
    }  # fmt: skip
    safetensors.torch.save_file(state, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(about, indent=1) + "\n")
    if unet is not None and encoder.config.branch_rank:
        save_branches(unet, folder / BRANCHES)
    (folder / CARD).write_text(_card(encoder, card))


def read_config(folder: str | Path | None, backbone=None):
    """(folder, contents of config.json, EncoderConfig, space) of a checkpoint, the bundled one without a folder.

    Args:
        backbone: refuse one that it was not made for; a `Blueprint` will do, which takes no weights.

    Raises:
        UserError: no checkpoint there, a damaged one, or one for another backbone, naming both sides.
    """
    from escdiff.encoder.encoder import EncoderConfig

    folder = Path(folder).expanduser() if folder else bundled_folder()
    try:
        about = json.loads((folder / CONFIG).read_text())
        if about["format"] != FORMAT or about["version"] != VERSION:
            raise KeyError("format")
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in about["encoder"].items()}
        config, space = EncoderConfig(**values), ConditioningSpace.from_metadata(about)
    except (FileNotFoundError, NotADirectoryError):
        how = "train one with `python train.py experiment=mini/encoder` or name another folder"
        raise UserError(f"no encoder in {folder}; {how}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / CONFIG} is no encoder of this version ({error}); export it again") from None
    if backbone is not None:
        _check(about, space, backbone)
    return folder, about, config, space


def load(cls, folder: str | Path | None, backbone=None):
    """Read a checkpoint; with `backbone`, refuse one that it was not made for before any weights are read.

    Raises:
        UserError: see `read_config`; or weights that cannot be read.
    """
    folder, about, config, space = read_config(folder, backbone)
    state = _read_weights(folder)
    anchors = {a: state[f"anchor_{a}"].float() for a in config.tokens}
    encoder = cls(config, load_vision(config.vision), space, anchors, about["base_model"], about["text_hash"])
    try:
        encoder.load_state_dict({k: v.float() for k, v in state.items()})
    except RuntimeError as error:
        raise UserError(f"{folder / WEIGHTS} does not fit its {CONFIG} ({error}); export the encoder again") from None
    if backbone is not None and (folder / BRANCHES).is_dir():
        load_branches(backbone.unet, folder / BRANCHES, routed=config.branches == "routed")
    return encoder.eval()


def read_gates(folder: str | Path | None, concept: Concept) -> dict[str, Tensor]:
    """Attribute -> (L, S) in 0..1: what a checkpoint has learned of the layers, for `escdiff.mixing.mix`.

    Raises:
        UserError: see `load`; or an encoder of another space than the concept's.
    """
    from escdiff.encoder.encoder import open_gates

    folder, about, config, space = read_config(folder)
    if (space.cells, about["width"]) != (concept.space.cells, concept.width):
        what = f"the gates of {folder} are for the {space.num_layers} layer cells of {about['base_model']}"
        raise UserError(f"{what}, the concept has others; name the encoder of its backbone, or say mix=hand")
    state = _read_weights(folder)
    return {a: open_gates(state[f"gate_logits.{a}"].float(), config.gates) for a in ATTRIBUTES}


def _read_weights(folder: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read ({error}); copy or export the encoder again") from None


def _check(about: dict, space: ConditioningSpace, backbone) -> None:
    theirs = backbone.p_plus()
    made = f"this encoder was trained for {about['base_model']}"
    if about["width"] != backbone.width:
        what = f"{made} (text width {about['width']}), {backbone.name} has width {backbone.width}"
    elif set(sum(space.cells, ())) != set(sum(theirs.cells, ())):
        what = f"{made} ({space.num_layers} layer cells), {backbone.name} has {theirs.num_layers} and other layers"
    elif backbone.text_hash not in (None, about["text_hash"]):
        what = f"{made} (text encoder {about['text_hash']}), {backbone.name} has {backbone.text_hash}"
    else:
        return
    raise UserError(f"{what}; use the backbone it was trained for or train an encoder for this one")


def _card(encoder, extra: str) -> str:
    count = sum(p.numel() for p in encoder.parameters()) / 1e6
    return f"""---
license: apache-2.0
tags: [escdiff, text-to-image, one-shot-customization]
---
# ESCDiff encoder

One reference image to shape and appearance tokens for every cross-attention layer, in one forward pass.

| | |
|---|---|
| base model | {encoder.base_model} (text encoder {encoder.text_hash}) |
| vision tower | {encoder.vision.spec}, frozen |
| space | {encoder.space.num_layers} layers x {encoder.space.num_stages} stages |
| tokens per attribute | {", ".join(f"{a} {k}" for a, k in encoder.config.tokens.items())} |
| parameters | {count:.2f} M |
{extra}
"""
