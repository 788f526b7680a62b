"""What a method changes in the U-Net, and the adapter folder that keeps it.

Two kinds, both diffusers' own: low-rank adapters (PEFT; Hu et al. 2021, arXiv 2106.09685) and decoupled
cross-attention with image tokens (IP-Adapter, arXiv 2308.06721). Community tools read either.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
from peft import LoraConfig
from safetensors import SafetensorError
from torch import Tensor, nn

from escdiff.backbone import Backbone
from escdiff.concept import Concept
from escdiff.errors import UserError

ADAPTER = "adapter"  # folder beside the concept's file
LORA, IMAGE = "pytorch_lora_weights.safetensors", "ip_adapter.safetensors"
SCALE = "image_scale"  # in a concept's notes
NAME = "method"
CROSS_KV = r".*\.attn2\.to_(k|v)"
ATTENTION = r".*\.attn[12]\.to_(q|k|v|out\.0)"


class Weights:
    """Trainable weights of a backbone's U-Net."""

    def parameters(self) -> list[nn.Parameter]:
        """What is trained, in float32."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write it as diffusers' own loader reads it."""
        raise NotImplementedError


class LowRank(Weights):
    """A LoRA on the layers whose names match a regular expression. It starts as no change at all."""

    def __init__(self, backbone: Backbone, rank: int, layers: str = CROSS_KV) -> None:
        self.unet = backbone.unet
        if NAME in getattr(self.unet, "peft_config", {}):
            self.unet.delete_adapters(NAME)  # of an earlier method on this backbone
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=layers, init_lora_weights="gaussian")
        self.unet.add_adapter(config, adapter_name=NAME)

    def parameters(self) -> list[nn.Parameter]:
        return [p for key, p in self.unet.named_parameters() if ".lora_" in key and f".{NAME}." in key]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.unet.save_lora_adapter(folder, adapter_name=NAME, weight_name=LORA)


class ImageAttention(Weights):
    """Keys and values for image tokens in every cross-attention, beside the text's (IP-Adapter, eq. 5).

    Put in by diffusers' own loader, so that its pipeline runs what was trained. New keys and values start as the
    text's, as the paper's code does.

    Args:
        projection: the image projection in the layout of IP-Adapter's files: "proj.weight" ... makes 4 tokens of one
            vector, "proj.0.weight" ... one token of each of several.
    """

    def __init__(self, backbone: Backbone, projection: Mapping[str, Tensor], scale: float = 1.0) -> None:
        self.backbone, self.scale = backbone, scale
        state, unet = {}, backbone.unet
        for number, name in enumerate(image_layers(unet)):
            layer = unet.get_submodule(name)
            for part in ("k", "v"):
                state[f"{2 * number + 1}.to_{part}_ip.weight"] = getattr(layer, f"to_{part}").weight.detach().clone()
        put_image_attention(backbone, {"image_proj": dict(projection), "ip_adapter": state}, scale)
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
        folder.mkdir(parents=True, exist_ok=True)
        state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        safetensors.torch.save_file(state, folder / IMAGE, {"format": "pt"})


def image_layers(unet: nn.Module) -> list[str]:
    """Cross-attention modules in the order in which IP-Adapter's files number them (the mid block last)."""
    return [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith("attn2.processor")]


def put_image_attention(backbone: Backbone, state: dict[str, dict[str, Tensor]], scale: float) -> None:
    """Load an IP-Adapter into the U-Net through diffusers' own loader."""
    pipeline = backbone.pipeline()
    pipeline.load_ip_adapter(state, subfolder="", weight_name="", image_encoder_folder=None, low_cpu_mem_usage=False)
    pipeline.set_ip_adapter_scale(scale)
    backbone.unet.to(backbone.device, backbone.dtype).requires_grad_(False)


@contextmanager
def applied(
    backbone: Backbone, concepts: Sequence[Concept], folders: Sequence[Path], strength: float = 1.0
) -> Iterator[None]:
    """Within the block the U-Net has the concepts' weights, as far as they have any.

    Args:
        folders: where each concept's file lies.
        strength: of every low-rank adapter; several of them are added up.

    Raises:
        UserError: an adapter that is missing, damaged or for another U-Net.
    """
    unet, names, image = backbone.unet, [], None
    places = [folder / ADAPTER for c, folder in zip(concepts, folders, strict=True) if c.notes.get("adapter")]
    try:
        for folder in dict.fromkeys(places):
            if not folder.is_dir():
                raise UserError(f"the concept needs its weights in {folder}, which is not there; keep them beside it")
            if (folder / LORA).is_file():
                names.append(f"{NAME}_{len(names)}")
                _load_lora(backbone, folder / LORA, names[-1])
            if (folder / IMAGE).is_file() and image is None:
                image = folder / IMAGE
                scale = next(float(c.notes[SCALE]) for c in concepts if SCALE in c.notes)
                put_image_attention(backbone, _read_image(image), scale)
        if names:
            unet.set_adapters(names, [strength] * len(names))
        unet.requires_grad_(False)
        yield
    finally:
        if names:
            unet.delete_adapters([name for name in names if name in getattr(unet, "peft_config", {})])
        if image is not None:
            backbone.pipeline().unload_ip_adapter()


def _load_lora(backbone: Backbone, path: Path, name: str) -> None:
    theirs = {key.split(".lora_")[0] for key in _read(path)}
    missing = [key for key in theirs if key not in dict(backbone.unet.named_modules())]
    if missing:
        raise UserError(f"the adapter {path} is for another U-Net (this one has no {missing[0]}); use its own backbone")
    try:
        backbone.unet.load_lora_adapter(
            str(path.parent), prefix=None, adapter_name=name, weight_name=path.name, use_safetensors=True,
            local_files_only=True,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the adapter {path} does not fit this U-Net ({reason}); use its own backbone") from error


def _read_image(path: Path) -> dict[str, dict[str, Tensor]]:
    state = {"image_proj": {}, "ip_adapter": {}}
    for key, value in _read(path).items():
        part, _, name = key.partition(".")
        state[part][name] = value
    return state


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return {key: value.to(torch.float32) for key, value in safetensors.torch.load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"the adapter {path} cannot be read ({error}); make the concept again") from error
