"""The encoder's checkpoint: a folder with config.json, model.safetensors, branches/ and a model card.

Never pickle, and nothing in the files names code to run. The frozen vision tower is kept by name only; where it lies on
this machine stands in a file of its own, which is not for sharing.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from escdiff.backbone.branches import Branches
from escdiff.concept import ATTRIBUTES, Concept
from escdiff.conditioning import ConditioningSpace
from escdiff.encoder.gates import open_gates
from escdiff.encoder.hub import LICENSE, encoder_card, fetch
from escdiff.encoder.vision import LOCAL, VisionBackbone, load_vision, tower_name
from escdiff.support.config.encoder import EncoderConfig
from escdiff.support.errors import UserError
from escdiff.support.files import save_tensors, write_atomic, write_json
from escdiff.support.modelspec import modelspec
from escdiff.support.names import hub_id, portable

CONFIG, WEIGHTS, BRANCHES, CARD = "config.json", "model.safetensors", "branches", "README.md"
HERE = "local.json"  # where the vision tower lies on this machine
FORMAT, VERSION = "escdiff-encoder", 1


def bundled_folder() -> Path:
    """Where the encoder of the bundled model lies."""
    return Path(__file__).parents[1] / "assets" / "mini_encoder"


def save(encoder, folder: Path, unet: nn.Module | None = None, card: str = "") -> None:
    """Write what was trained, as float16, and its branches: those of `unet`, or those it was read with.

    Raises:
        UserError: the encoder has branches, but neither it nor `unet` has their weights.
    """
    names = encoder.config.branch_names
    branches = Branches.of(unet, names) if names and unet is not None else encoder.branches
    if names and branches is None:
        raise UserError("the encoder has branches, but their weights are in the U-Net: give it as unet=")
    tower = encoder.vision
    about = {
        "format": FORMAT, "version": VERSION, "base_model": portable(encoder.base_model),
        "text_hash": encoder.text_hash, "family": encoder.family, "width": encoder.anchor("shape").shape[-1],
        **encoder.space.to_metadata(),
        "encoder": asdict(encoder.config) | {"vision": tower_name(tower.spec)}, "vision_scale": tower.scale(),
    }  # fmt: skip
    title = f"ESCDiff encoder for {about['base_model']}"
    spec = modelspec("escdiff-encoder", about["width"], title, about["base_model"], LICENSE)
    save_tensors(folder / WEIGHTS, {k: v.half() for k, v in encoder.state_dict().items()}, {"format": "pt"} | spec)
    write_json(folder / CONFIG, about)
    (folder / HERE).unlink(missing_ok=True)
    if tower_name(tower.spec) != tower.spec:
        write_json(folder / HERE, {"vision": str(Path(tower.spec).expanduser().absolute())})
    if names:
        branches.save(folder / BRANCHES)
    write_atomic(folder / CARD, encoder_card(encoder, card))


def read_config(folder: str | Path | None, backbone=None, **hub: Any):
    """(folder, contents of config.json, EncoderConfig, space) of a checkpoint, the bundled one without a folder.

    Args:
        folder: or "USER/NAME" on the Hugging Face hub.
        backbone: refuse one that it was not made for; a `Blueprint` will do, which takes no weights.
        hub: see `escdiff.encoder.hub.fetch`.

    Raises:
        UserError: no checkpoint there, a damaged one, or one for another backbone, naming both sides.
    """
    if folder and hub_id(str(folder)):
        folder = fetch(str(folder), **hub)
    folder = Path(folder).expanduser() if folder else bundled_folder()
    try:
        about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if about["format"] != FORMAT or about["version"] != VERSION:
            raise KeyError("format")
        if (placement := about["encoder"].pop("placement", "words")) != "words":  # of older checkpoints
            raise ValueError(f"encoder.placement={placement}, which was given up")
        config, space = EncoderConfig(**about["encoder"]), ConditioningSpace.from_metadata(about)
    except (FileNotFoundError, NotADirectoryError):
        how = "train one with `python train.py experiment=mini/encoder` or name another folder"
        raise UserError(f"no encoder in {folder}; {how}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / CONFIG} is no encoder of this version ({error}); export it again") from None
    if backbone is not None:
        _check(about, space, backbone)
    return folder, about, config, space


def load(cls, name: str | Path | None, backbone=None, vision: str | None = None, **hub: Any):
    """Read a checkpoint; with `backbone`, refuse one that it was not made for before any weights are read.

    Args:
        vision: where its vision tower lies.

    Raises:
        UserError: see `read_config`; weights that cannot be read; a vision tower that is not there, or another one.
    """
    folder, about, config, space = read_config(name, backbone, **hub)
    state = _read_weights(folder)
    branches = read_branches(folder, config)
    tower = _load_tower(folder, about, vision)
    anchors = {a: state[f"anchor_{a}"].float() for a in config.tokens}
    config = replace(config, vision=tower.spec)
    made = {"base_model": about["base_model"], "text_hash": about["text_hash"], "family": about.get("family", "sd")}
    encoder = cls(config, tower, space, anchors, **made)
    try:
        encoder.load_state_dict({k: v.float() for k, v in state.items()})
    except RuntimeError as error:
        raise UserError(f"{folder / WEIGHTS} does not fit its {CONFIG} ({error}); export the encoder again") from None
    encoder.name, encoder.branches = portable(str(name or folder)), branches
    if backbone is not None and branches is not None:
        branches.put(backbone.unet)
    return encoder.eval()


def read_branches(folder: Path, config) -> Branches | None:
    """The branches of a checkpoint, None for one without.

    Raises:
        UserError: they are missing or damaged.
    """
    if not config.branch_names:
        return None
    if not (folder / BRANCHES).is_dir():
        what = f"the encoder in {folder} has branches, but no folder {BRANCHES} with their weights"
        raise UserError(f"{what}; copy or export it again")
    return Branches.read(folder / BRANCHES, config.branches == "routed", config.branch_names)


def branches_for(concepts: list[Concept], folder: str | Path | None, backbone=None) -> Branches | None:
    """The branches that concepts need, from the checkpoint of their encoder; None where they need none.

    Args:
        backbone: see `read_config`.

    Raises:
        UserError: another encoder's, or those of several encoders.
    """
    needed = {concept.branches.get("hash"): concept.branches for concept in concepts if concept.branches}
    if not needed:
        return None
    names = ", ".join(f"{about['encoder']!r} (branches {digest or 'unnamed'})" for digest, about in needed.items())
    if len(needed) > 1 or not folder:
        raise UserError(f"the concept needs the branches of its encoder, {names}; give encoder=DIR, one for all")
    folder, _, config, _ = read_config(folder, backbone)
    found = read_branches(folder, config)
    if found is None or next(iter(needed)) not in ("", found.hash):
        has = "none" if found is None else f"others ({found.hash})"
        raise UserError(f"the concept needs the branches of its encoder, {names}; {folder} has {has}: name that one")
    return found


def read_gates(folder: str | Path | None, concept: Concept) -> dict[str, Tensor]:
    """Attribute -> (L, S) in 0..1: what a checkpoint has learned of the layers, for `escdiff.concept.mixing.mix`.

    Raises:
        UserError: see `load`; or an encoder of another space than the concept's.
    """
    folder, about, config, space = read_config(folder)
    if (space.cells, about["width"]) != (concept.space.cells, concept.width):
        what = f"the gates of {folder} are for the {space.num_layers} layer cells of {about['base_model']}"
        raise UserError(f"{what}, the concept has others; name the encoder of its backbone, or say mix=hand")
    state = _read_weights(folder)
    return {a: open_gates(state[f"gate_logits.{a}"].float(), config.gates) for a in ATTRIBUTES}


def _read_weights(folder: Path) -> dict[str, Tensor]:
    try:
        state = safetensors.torch.load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read ({error}); copy or export the encoder again") from None
    missing = [key for a in ATTRIBUTES for key in (f"anchor_{a}", f"gate_logits.{a}") if key not in state]
    if missing:
        raise UserError(f"{folder / WEIGHTS} is no encoder (no {missing[0]} in it); copy or export the encoder again")
    return state


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


def _load_tower(folder: Path, about: dict, vision: str | None) -> VisionBackbone:
    """The vision tower: where the caller says, where this machine had it, or what its name stands for."""
    name, spec = about["encoder"]["vision"], vision
    if spec is None:
        spec = json.loads((folder / HERE).read_text(encoding="utf-8"))["vision"] if (folder / HERE).is_file() else name
        if spec.startswith(LOCAL) or (Path(spec).is_absolute() and not Path(spec).exists()):
            what = f"the encoder in {folder} reads with the vision tower {portable(name.removeprefix(LOCAL))!r}"
            raise UserError(f"{what}, which is not where it was; say where it lies: vision=DIR (encoder.vision=DIR)")
    tower, scale = load_vision(spec), about.get("vision_scale")  # older checkpoints have none
    if vision is not None and scale is not None and abs(tower.scale() / scale - 1) > 1e-3:
        what = f"the vision tower {vision!r} has other weights than the one the encoder in {folder} was trained with"
        raise UserError(f"{what}, {name.removeprefix(LOCAL)!r}; name that one")
    return tower
