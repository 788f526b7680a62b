"""ComfyUI nodes around the library `escdiff`: names, sockets and files; the work is in `escdiff.sharing.comfy`."""

from pathlib import Path

import folder_paths

from escdiff.concept import Concept
from escdiff.concept.mixing import mix
from escdiff.encoder import ConceptEncoder
from escdiff.sharing.comfy import BOTH, apply_concept, encode_picture, strengthen
from escdiff.support.errors import UserError

CATEGORY = "ESCDiff"
ENCODERS, CONCEPTS = "escdiff_encoders", "escdiff_concepts"
SUFFIX, WEIGHTS = ".safetensors", "model.safetensors"
for _name in (ENCODERS, CONCEPTS):
    _folder = Path(folder_paths.models_dir) / "escdiff" / _name.removeprefix("escdiff_")
    _folder.mkdir(parents=True, exist_ok=True)
    folder_paths.add_model_folder_path(_name, str(_folder))

ENCODER, CONCEPT = "ESCDIFF_ENCODER", "ESCDIFF_CONCEPT"
STRENGTH = {"default": 1.0, "min": -2.0, "max": 4.0, "step": 0.05}


def list_files(folder: str, ending: str) -> list[str]:
    """What a picker shows."""
    return [name for name in folder_paths.get_filename_list(folder) if name.endswith(ending)]


def find_file(folder: str, name: str) -> Path:
    """The file that was picked; an error names the folder and what is expected there."""
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        places = ", ".join(folder_paths.get_folder_paths(folder))
        raise UserError(f"there is no {name!r} in {places}; put it there, or pick another file")
    return Path(path)


class LoadEncoder:
    """An encoder's folder, picked by its model.safetensors."""

    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES, RETURN_NAMES = (ENCODER,), ("encoder",)

    @classmethod
    def INPUT_TYPES(cls):
        tip = "Folder, hub id or open_clip name of the vision tower, if the encoder does not find it by itself."
        return {
            "required": {"file": (list_files(ENCODERS, WEIGHTS),)},
            "optional": {"vision": ("STRING", {"default": "", "tooltip": tip})},
        }

    def load(self, file, vision=""):
        return (ConceptEncoder.from_pretrained(find_file(ENCODERS, file).parent, vision=vision.strip() or None),)


class EncodePicture:
    """One picture to a concept, in one forward pass."""

    CATEGORY, FUNCTION = CATEGORY, "encode"
    RETURN_TYPES, RETURN_NAMES = (CONCEPT,), ("concept",)

    @classmethod
    def INPUT_TYPES(cls):
        tip = "Factors over the layers in execution order, such as 1, 1, 0.5, 0; straight lines between. Empty: 1."
        return {
            "required": {
                "encoder": (ENCODER,),
                "image": ("IMAGE",),
                "take": ([BOTH, "shape", "appearance"],),
                "shape_strength": ("FLOAT", STRENGTH),
                "appearance_strength": ("FLOAT", STRENGTH),
                "layer_curve": ("STRING", {"default": "", "tooltip": tip}),
            },
            "optional": {"mask": ("MASK", {"tooltip": "White on the object."})},
        }

    def encode(self, encoder, image, take, shape_strength, appearance_strength, layer_curve, mask=None):
        concept = encode_picture(encoder, image, take, mask)
        strengths = {"shape": shape_strength, "appearance": appearance_strength}
        return (strengthen(concept, strengths, layer_curve),)


class MixConcepts:
    """The shape of one concept with the appearance of another."""

    CATEGORY, FUNCTION = CATEGORY, "mix"
    RETURN_TYPES, RETURN_NAMES = (CONCEPT,), ("concept",)

    @classmethod
    def INPUT_TYPES(cls):
        tip = "Of concepts without a shape of their own: the layers by hand, or this share of layers to the shape."
        return {
            "required": {
                "shape": (CONCEPT,),
                "appearance": (CONCEPT,),
                "split": (["hand", "share"], {"tooltip": tip}),
                "share": ("FLOAT", {"default": 0.5, "min": 0.0, "max": 1.0, "step": 0.05}),
            }
        }

    def mix(self, shape, appearance, split, share):
        return (mix(shape, appearance, "hand" if split == "hand" else share),)


class ApplyConcept:
    """A prompt with <shape>, <appearance> or <concept>, and the model whose layers take their own words of it."""

    CATEGORY, FUNCTION = CATEGORY, "apply"
    RETURN_TYPES, RETURN_NAMES = ("MODEL", "CONDITIONING"), ("model", "conditioning")

    @classmethod
    def INPUT_TYPES(cls):
        text = {"default": "a photo of a <appearance> <shape>", "multiline": True}
        return {"required": {"model": ("MODEL",), "clip": ("CLIP",), "concept": (CONCEPT,), "prompt": ("STRING", text)}}

    def apply(self, model, clip, concept, prompt):
        return apply_concept(model, clip, concept, prompt)


class SaveConcept:
    """Write a concept file where Load concept finds it."""

    CATEGORY, FUNCTION, OUTPUT_NODE = CATEGORY, "save", True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "concept": (CONCEPT,),
                "name": ("STRING", {"default": "mug"}),
                "replace": ("BOOLEAN", {"default": False}),
            }
        }

    def save(self, concept, name, replace):
        folder = Path(folder_paths.get_folder_paths(CONCEPTS)[0]).resolve()
        path = (folder / (name.removesuffix(SUFFIX) + SUFFIX)).resolve()
        if not path.is_relative_to(folder) or not path.stem:
            raise UserError(f"the name {name!r} leads out of {folder}; expected one such as mug, or things/mug")
        if path.exists() and not replace:
            raise UserError(f"{path} is there already; choose another name, or switch replace on")
        concept.save(path)
        return {"ui": {"text": [str(path)]}}


class LoadConcept:
    """A concept file."""

    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES, RETURN_NAMES = (CONCEPT,), ("concept",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"file": (list_files(CONCEPTS, SUFFIX),)}}

    @classmethod
    def IS_CHANGED(cls, file):
        return find_file(CONCEPTS, file).stat().st_mtime

    def load(self, file):
        return (Concept.load(find_file(CONCEPTS, file)),)


NODES = {
    "Load ESCDiff encoder": LoadEncoder,
    "Encode picture (ESCDiff)": EncodePicture,
    "Mix concepts (ESCDiff)": MixConcepts,
    "Apply concept to prompt (ESCDiff)": ApplyConcept,
    "Save concept (ESCDiff)": SaveConcept,
    "Load concept (ESCDiff)": LoadConcept,
}
NODE_CLASS_MAPPINGS = {f"ESCDiff{node.__name__}": node for node in NODES.values()}
NODE_DISPLAY_NAME_MAPPINGS = {f"ESCDiff{node.__name__}": title for title, node in NODES.items()}
