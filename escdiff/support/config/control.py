"""The blocks `control` and `edit` of `python infer.py`: one dataclass for each way to steer, and to edit a picture."""

from dataclasses import dataclass

from escdiff.support.config.keys import key

LAYERS = "how many times smaller than the latents the maps are; null: what suits the backbone"
ROUNDS = "of the inversion, passes per step; 1 is plain DDIM inversion"
PASTE = "outside of the mask, the picture's own pixels; false: as the VAE renders them"


@dataclass
class NamedConfig:
    """A control or an edit, by its name."""

    name: str = key("", "of the control or edit")


@dataclass
class AttendExciteConfig(NamedConfig):
    """Gives every phrase its place: groups="mug; chair" (Attend-and-Excite, Chefer et al. 2023)."""

    name: str = key("attend_excite", "of the control", choices=("attend_excite",))
    layers: int | None = key(None, LAYERS, low=1)
    size: float = key(20.0, "of an update of the latents; 0 is the stock picture", low=0)
    until: float = key(0.5, "share of the steps with an update each", low=0, high=1)
    refinements: int = key(20, "most updates more at the first step and after 20 % and 40 % of them", low=0)


@dataclass
class ConformConfig(NamedConfig):
    """Binds the words of each group to each other: groups="red mug; blue chair" (CONFORM, Meral et al. 2024)."""

    name: str = key("conform", "of the control", choices=("conform",))
    temperature: float = key(0.5, "of the contrast", low=0)
    softmax: bool = key(False, "sharpen the maps over the words first")
    layers: int | None = key(None, LAYERS, low=1)
    size: float = key(20.0, "of an update of the latents; 0 is the stock picture", low=0)
    until: float = key(0.6, "share of the steps with an update each", low=0, high=1)
    refinements: int = key(20, "more updates at the first step and after 20 % and 40 % of them", low=0)


@dataclass
class BoxesConfig(NamedConfig):
    """Puts each phrase in its box (spatial part of Compositional Inversion, Zhang et al. 2024)."""

    name: str = key("boxes", "of the control", choices=("boxes",))
    weight: float = key(30.0, "of the loss; 0 is the stock picture", low=0)
    until: float = key(0.2, "share of the steps in which latents are moved", low=0, high=1)
    enough: float = key(0.2, "weighted loss that makes more updates of a step needless", low=0)
    tries: int = key(5, "most updates per step", low=0)
    layers: int | None = key(None, LAYERS, low=1)


@dataclass
class EditConfig(NamedConfig):
    """Edits picture=: what every edit has."""

    mask: str | None = key(None, "where the picture may change: a file, white there, or auto; null: everywhere")
    paste: bool = key(True, PASTE)


@dataclass
class InvertedEditConfig(EditConfig):
    """Begins with the picture's inversion."""

    rounds: int = key(4, ROUNDS, low=1)


@dataclass
class Pix2PixZeroConfig(InvertedEditConfig):
    """Moves the picture from the words of source= to those of prompt= (pix2pix-zero, Parmar et al. 2023)."""

    name: str = key("pix2pix_zero", "of the edit", choices=("pix2pix_zero",))
    amount: float = key(0.1, "step towards the picture's attention maps; 0 lets the layout go", low=0)
    update: str = key("both", "of the classifier-free pair; half: as the published code", choices=("both", "half"))


@dataclass
class PlugAndPlayConfig(InvertedEditConfig):
    """Paints the prompt in the picture's layout (Plug-and-Play, Tumanyan et al. 2023)."""

    name: str = key("plug_and_play", "of the edit", choices=("plug_and_play",))
    attention: float = key(0.5, "share of the steps with the picture's self-attention", low=0, high=1)
    features: float = key(0.8, "share of the steps with the picture's features", low=0, high=1)
    factor: int | None = key(None, "how many times smaller than the latents the features are; null: what suits the "
                             "backbone", low=1)  # fmt: skip


@dataclass
class TransferConfig(PlugAndPlayConfig):
    """The picture's object takes the appearance= (in its layout) or the shape= of a reference, without training."""

    name: str = key("transfer", "of the edit", choices=("transfer",))
    mask: str | None = key(
        "auto", "the object: a file, white on it, or auto; a new shape needs a file with room for it"
    )


@dataclass
class InstructPix2PixConfig(EditConfig):
    """Edits the picture by an instruction, prompt= (InstructPix2Pix, Brooks et al. 2023), by a model trained for it."""

    name: str = key("instruct_pix2pix", "of the edit", choices=("instruct_pix2pix",))
    model: str | None = key(None, "folder of `python train.py experiment=mini/instruct_pix2pix`, or a hub id")
    image_guidance: float = key(1.5, "higher keeps more of the picture", low=1)


@dataclass
class AnyDoorConfig(EditConfig):
    """Puts a reference's object into a box of the picture (AnyDoor, Chen et al. 2024), by a model trained for it."""

    name: str = key("anydoor", "of the edit", choices=("anydoor",))
    model: str | None = key(None, "folder of `python train.py experiment=mini/anydoor`")
    reference: str | None = key(None, "picture of the object")
    box: list[float] = key([0.25, 0.25, 0.75, 0.75], "left, top, right, bottom, as shares of the picture's sides")
    mask: str | None = key("auto", "of the reference: a file, white on the object, or auto")
    paste: bool = key(True, "outside of the box, the picture's own pixels; false: as the VAE renders them")
    keep: bool = key(True, "outside of the box, the picture's latents at every step")


KINDS = {
    "control": {kind().name: kind for kind in (AttendExciteConfig, BoxesConfig, ConformConfig)},
    "edit": {
        kind().name: kind
        for kind in (AnyDoorConfig, InstructPix2PixConfig, Pix2PixZeroConfig, PlugAndPlayConfig, TransferConfig)
    },
}  # group -> name of a preset -> its dataclass
