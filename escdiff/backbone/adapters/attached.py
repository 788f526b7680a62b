"""What a method changes in the U-Net, and the adapter folder that keeps it.

Two kinds, both diffusers' own: low-rank adapters (PEFT; Hu et al. 2021, arXiv 2106.09685) and decoupled
cross-attention with image tokens (IP-Adapter, arXiv 2308.06721). Community tools read either. Two more have files of
their own: gated attention (`escdiff.backbone.adapters.gated`) and fused words (`escdiff.backbone.adapters.fused`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path

from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor2_0
from peft import LoraConfig
from torch import Tensor, nn

from escdiff.backbone import Backbone
from escdiff.backbone.adapters.fused import FUSE, put_fuse, take_fuse
from escdiff.backbone.adapters.gated import GATES, put_gates, take_gates
from escdiff.backbone.branches import delete_adapters, training_kept
from escdiff.backbone.lora import add_lora, lora_layers, lora_state, put_lora, read_lora, save_lora
from escdiff.backbone.weights import Weights
from escdiff.concept import Concept
from escdiff.support.errors import UserError, reason_of
from escdiff.support.files import save_tensors

ADAPTER = "adapter"  # folder beside the concept's file
LORA, IMAGE = "pytorch_lora_weights.safetensors", "ip_adapter.safetensors"
SCALE = "image_scale"  # in a concept's notes
NAME = "method"
CROSS_KV = r".*\.attn2\.to_(k|v)"
ATTENTION = r".*\.attn[12]\.to_(q|k|v|out\.0)"


class LowRank(Weights):
    """A LoRA on the layers whose names match a regular expression. It starts as no change at all."""

    def __init__(self, backbone: Backbone, rank: int, layers: str = CROSS_KV) -> None:
        self.unet = backbone.unet
        delete_adapters(self.unet, [NAME])  # of an earlier method on this backbone
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=layers, init_lora_weights="gaussian")
        add_lora(self.unet, NAME, config)

    def parameters(self) -> list[nn.Parameter]:
        return [p for key, p in self.unet.named_parameters() if ".lora_" in key and f".{NAME}." in key]

    def save(self, folder: Path) -> None:
        save_lora(lora_state(self.unet, NAME), folder / LORA)

    def remove(self) -> None:
        delete_adapters(self.unet, [NAME])


class ImageAttention(Weights):
    """Keys and values for image tokens in every cross-attention, beside the text's (IP-Adapter, eq. 5).

    Put in by diffusers' own loader, so that its pipeline runs what was trained. New keys and values start as the
    text's, as the paper's code does.

    Args:
        projection: the image projection in the layout of IP-Adapter's files: "proj.weight" ... makes 4 tokens of one
            vector, "proj.0.weight" ... one token of each of several.
    """

    def __init__(self, backbone: Backbone, projection: Mapping[str, Tensor], scale: float = 1.0) -> None:
        self.backbone, self.scale, self.processors = backbone, scale, dict(backbone.unet.attn_processors)
        state, unet = {}, backbone.unet
        for number, name in enumerate(image_layers(unet)):
            layer = unet.get_submodule(name)
            for part in ("k", "v"):
                state[f"{2 * number + 1}.to_{part}_ip.weight"] = getattr(layer, f"to_{part}").weight.detach().clone()
        put_image_attention(unet, {"image_proj": dict(projection), "ip_adapter": state}, scale)
        for parameter in self.parameters():
            parameter.requires_grad_(True)

    def parameters(self) -> list[nn.Parameter]:
        unet = self.backbone.unet
        layers = [unet.get_submodule(name).processor for name in image_layers(unet)]
        return [p for part in (unet.encoder_hid_proj, *layers) for p in part.parameters()]

    def save(self, folder: Path) -> None:
        """Write diffusers' layout of an IP-Adapter."""
        unet, state = self.backbone.unet, {}
        names = {"image_embeds": "proj", "ff.net.0.proj": "proj.0", "ff.net.2": "proj.2"}
        image = unet.encoder_hid_proj.image_projection_layers[0].state_dict()
        names["norm"] = "norm" if "image_embeds.weight" in image else "proj.3"
        for key, value in image.items():
            stem, _, end = key.rpartition(".")
            state[f"image_proj.{names[stem]}.{end}"] = value
        for number, name in enumerate(image_layers(unet)):
            for part in ("k", "v"):
                layer = getattr(unet.get_submodule(name).processor, f"to_{part}_ip")[0]
                state[f"ip_adapter.{2 * number + 1}.to_{part}_ip.weight"] = layer.weight
        save_tensors(folder / IMAGE, state, {"format": "pt"})

    def remove(self) -> None:
        take_image_attention(self.backbone.unet, self.processors)


def image_layers(unet: nn.Module) -> list[str]:
    """Cross-attention modules in the order in which IP-Adapter's files number them (the mid block last)."""
    return [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith("attn2.processor")]


def put_image_attention(unet: nn.Module, state: dict[str, dict[str, Tensor]], scale: float) -> None:
    """Load an IP-Adapter into a U-Net through diffusers' own loader, frozen and of the U-Net's type."""
    others, device, dtype = set(unet.parameters()), unet.device, unet.dtype
    loader = _loader(unet)
    loader.load_ip_adapter(state, subfolder="", weight_name="", image_encoder_folder=None, low_cpu_mem_usage=False)
    loader.set_ip_adapter_scale(scale)
    for parameter in set(unet.parameters()) - others:
        parameter.data = parameter.data.to(device, dtype)
        parameter.requires_grad_(False)


def take_image_attention(unet: nn.Module, processors: Mapping[str, object]) -> None:
    """Take an IP-Adapter out and put the attention processors back that were there before."""
    unet.set_attn_processor(AttnProcessor2_0())  # diffusers makes its own anew, whatever arguments they had
    _loader(unet).unload_ip_adapter()
    unet.set_attn_processor(dict(processors))


def _loader(unet: nn.Module) -> StableDiffusionPipeline:
    """A pipeline of nothing but a U-Net; diffusers' loaders stand there."""
    parts = ("vae", "text_encoder", "tokenizer", "scheduler", "safety_checker", "feature_extractor")
    return StableDiffusionPipeline(**dict.fromkeys(parts), unet=unet, requires_safety_checker=False)


class Attached:
    """The weights that a concept brings along, inside a U-Net beside those that others put there, until `remove`.

    Args:
        folder: the adapter's, see `Method.export`.
        scale: of the image attention, or of the gates.
        strength: of the low-rank adapter.

    Raises:
        UserError: an adapter that is missing, damaged or for another U-Net, or a second image adapter.
    """

    def __init__(self, unet: nn.Module, folder: Path, scale: float | None = None, strength: float = 1.0) -> None:
        if not folder.is_dir():
            raise UserError(f"the concept needs its weights in {folder}, which is not there; keep them beside it")
        self.unet, self.name, self.processors = unet, None, None
        self._takes: list[Callable[[nn.Module], None]] = []
        image, scale = (folder / IMAGE).is_file(), 1.0 if scale is None else scale
        if image and getattr(unet, "encoder_hid_proj", None) is not None:
            raise UserError(f"the U-Net has an image adapter already, and {folder} is one more; unload the other one")
        try:
            if (folder / LORA).is_file():
                self._attach_lora(folder / LORA, strength)
            if image:
                self._attach_image(folder / IMAGE, scale)
            if (folder / GATES).is_file():
                put_gates(unet, read_lora(folder / GATES), folder / GATES, scale)
                self._takes.append(take_gates)
            if (folder / FUSE).is_file():
                put_fuse(unet, read_lora(folder / FUSE), folder / FUSE)
                self._takes.append(take_fuse)
        except BaseException:
            self.remove()
            raise

    def _attach_lora(self, path: Path, strength: float) -> None:
        unet, taken = self.unet, getattr(self.unet, "peft_config", {})
        name = next(name for i in range(len(taken) + 1) if (name := f"{NAME}_{i}") not in taken)
        with training_kept(unet):
            with _others_kept(unet):
                put_lora(unet, name, read_lora(path), path)
                self.name = name
            for layer in lora_layers(unet):
                if name in layer.lora_A:
                    layer.set_adapter([*(other for other in layer.active_adapters if other != name), name])
                    layer.set_scale(name, strength)

    def _attach_image(self, path: Path, scale: float) -> None:
        state, self.processors = _read_image(path, self.unet), dict(self.unet.attn_processors)
        try:
            put_image_attention(self.unet, state, scale)
        except (KeyError, RuntimeError, ValueError) as error:  # diffusers' loader raises what it likes
            what = f"the image adapter {path} is for another U-Net ({reason_of(error)})"
            raise UserError(f"{what}; use the backbone it was made with") from None

    def stands(self) -> bool:
        """Whether nobody has taken the weights out or switched them off since."""
        layers = [layer for layer in lora_layers(self.unet) if self.name in layer.lora_A]
        acts = self.name is None or (layers and all(self.name in layer.active_adapters for layer in layers))
        return bool(acts) and (self.processors is None or getattr(self.unet, "encoder_hid_proj", None) is not None)

    def remove(self) -> None:
        """Take the weights out; what others put into the U-Net stays."""
        if self.name is not None:
            delete_adapters(self.unet, [self.name])
        if self.processors is not None:
            take_image_attention(self.unet, self.processors)
        while self._takes:
            self._takes.pop()(self.unet)
        self.name = self.processors = None


@contextmanager
def _others_kept(unet: nn.Module) -> Iterator[None]:
    """What is active and what is trained, of adapters that were there before, is so again afterwards."""
    active = {layer: list(layer.active_adapters) for layer in lora_layers(unet)}
    usual = next(iter(active.values()), [])  # for layers that had no adapter; all have the same active ones
    with training_kept(unet):
        yield
        for layer in lora_layers(unet):
            layer.set_adapter([name for name in active.get(layer, usual) if name in unet.peft_config])


@contextmanager
def applied(
    backbone: Backbone, concepts: Sequence[Concept], folders: Sequence[Path], strength: float = 1.0
) -> Iterator[None]:
    """Put the weights that concepts bring into the U-Net for the length of the block.

    Concepts without weights change nothing.

    Args:
        folders: where each concept's file lies.
        strength: of every low-rank adapter; several of them are added up.

    Raises:
        UserError: an adapter that is missing, damaged or for another U-Net.
    """
    needed = {f / ADAPTER: c for c, f in zip(concepts, folders, strict=True) if c.notes.get("adapter")}
    with ExitStack() as stack:
        for folder in distinct(list(needed)):
            stack.callback(Attached(backbone.unet, folder, image_scale(needed[folder]), strength).remove)
        yield


def distinct(folders: Sequence[Path]) -> list[Path]:
    """Those of the adapters' folders that hold other files than the ones before them.

    The concepts of a method that encodes bring the same weights, each in its own folder.
    """
    found: dict[tuple, Path] = {}
    for folder in folders:
        files = sorted(folder.glob("*.safetensors"))
        key = tuple((file.name, sha256(file.read_bytes()).digest()) for file in files)
        found.setdefault(key or (folder,), folder)
    return list(found.values())


def image_scale(concept: Concept) -> float | None:
    """Of the concept's image attention or gates; None if it has none."""
    return float(concept.notes[SCALE]) if SCALE in concept.notes else None


def _read_image(path: Path, unet: nn.Module) -> dict[str, dict[str, Tensor]]:
    """An image adapter as diffusers' loader takes it.

    Raises:
        UserError: a damaged file, or another one than an image adapter of so many layers.
    """
    state = {"image_proj": {}, "ip_adapter": {}}
    for key, value in read_lora(path).items():
        part, _, name = key.partition(".")
        state.setdefault(part, {})[name] = value
    numbers = range(1, 2 * len(image_layers(unet)), 2)
    layers = {f"{number}.to_{part}_ip.weight" for number in numbers for part in ("k", "v")}
    if len(state) > 2 or not state["image_proj"] or state["ip_adapter"].keys() != layers:
        what = f"{path} is no image adapter of a U-Net with {len(numbers)} cross-attention layers"
        raise UserError(f"{what}; copy it again, or use the backbone it was made with")
    return state
