"""A stand-in for the public interfaces of ComfyUI that nodes meet, since ComfyUI itself is no package to install.

Each part states the behaviour it stands for, as ComfyUI documents it or its sources show it:

- folder_paths: `models_dir`; `add_model_folder_path(name, path)` registers a folder; `get_filename_list(name)` gives
  the files below it with "/" between; `get_full_path(name, file)` gives a path, or None; `get_folder_paths(name)` the
  folders.
- CLIP: `tokenize(text)` gives text encoder -> sections of 77 pairs (token, weight), of which a token may be replaced by
  a word vector; "(words:1.2)" is emphasis; a longer prompt becomes several sections. `encode_from_tokens(tokens,
  return_pooled=True)` gives the sections' states one behind the other (1, 77 n, D), and pooled states. With two text
  encoders their states stand side by side, "l" first. Emphasis moves states away from those of an empty prompt. Word
  vectors become rows of a longer table, whose last one stays the end mark, since some encoders look for the largest.
- MODEL: `clone()`; `set_model_attn2_patch(patch)` adds to this clone only; before each cross-attention `patch(n,
  context, value, extra_options)` gives the first three, where `extra_options` has "block" such as ("input", 4),
  "block_index", "sigmas" and "cond_or_uncond"; the keys are made of the context, the values of the value.
  `get_model_object("model_sampling")` has `timestep(sigma)`.
- CONDITIONING: a list of pairs [(1, T, D), dictionary]. Conditionings of one length are batched, others run apart.
- IMAGE: (B, H, W, 3) in 0..1. MASK: (B, H, W); LoadImage's is 1 where the picture is transparent, and black without.
- A node: INPUT_TYPES, RETURN_TYPES, FUNCTION; a workflow's widget values stand in the order of INPUT_TYPES without
  the sockets, and a seed has one more behind it, what happens to it after a run.
"""

import copy
import json
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from torch import nn

LENGTH = 77
# The first Stable Diffusion's blocks with attention, in the order in which they run.
BLOCKS = {
    "down_blocks.0.attentions.0": ("input", 1), "down_blocks.0.attentions.1": ("input", 2),
    "down_blocks.1.attentions.0": ("input", 4), "down_blocks.1.attentions.1": ("input", 5),
    "down_blocks.2.attentions.0": ("input", 7), "down_blocks.2.attentions.1": ("input", 8),
    "mid_block.attentions.0": ("middle", 0),
    "up_blocks.1.attentions.0": ("output", 3), "up_blocks.1.attentions.1": ("output", 4),
    "up_blocks.1.attentions.2": ("output", 5), "up_blocks.2.attentions.0": ("output", 6),
    "up_blocks.2.attentions.1": ("output", 7), "up_blocks.2.attentions.2": ("output", 8),
    "up_blocks.3.attentions.0": ("output", 9), "up_blocks.3.attentions.1": ("output", 10),
    "up_blocks.3.attentions.2": ("output", 11),
}  # fmt: skip


def make_folder_paths(root: Path) -> ModuleType:
    module, folders = ModuleType("folder_paths"), {}
    module.models_dir = str(root)
    module.add_model_folder_path = lambda name, path: folders.setdefault(name, []).append(path)
    module.get_folder_paths = lambda name: list(folders[name])
    module.get_filename_list = lambda name: sorted(
        file.relative_to(folder).as_posix() for folder in folders[name] for file in Path(folder).rglob("*.*")
    )
    module.get_full_path = lambda name, file: next(
        (str(Path(folder) / file) for folder in folders[name] if (Path(folder) / file).is_file()), None
    )
    return module


class CLIP:
    """Over transformers' text encoders: name -> (tokenizer, encoder); two read the last layer but one, as for SDXL."""

    def __init__(self, towers: dict) -> None:
        self.towers = {name: (tokenizer, copy.deepcopy(encoder)) for name, (tokenizer, encoder) in towers.items()}

    def tokenize(self, text: str) -> dict:
        return {name: self._sections(text, *parts) for name, parts in self.towers.items()}

    def _sections(self, text: str, tokenizer, encoder) -> list:
        pairs = []
        for part in re.split(r"(\([^():]+:[\d.]+\))", text):
            strong = re.fullmatch(r"\((.+):([\d.]+)\)", part)
            words, weight = (strong[1], float(strong[2])) if strong else (part, 1.0)
            pairs += [(token, weight) for token in tokenizer(words).input_ids[1:-1]]
        start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        sections = []
        for first in range(0, max(len(pairs), 1), LENGTH - 2):
            section = [(start, 1.0), *pairs[first : first + LENGTH - 2], (end, 1.0)]
            sections.append(section + [(pad, 1.0)] * (LENGTH - len(section)))
        return sections

    @torch.no_grad()
    def encode_from_tokens(self, tokens: dict, return_pooled: bool = False):
        found = {name: self._encode(sections, *self.towers[name]) for name, sections in tokens.items()}
        states = torch.cat([found[name][0] for name in sorted(found, key="lgh".index)], dim=-1)
        pooled = found["g"][1] if "g" in found else None
        return (states, pooled) if return_pooled else states

    def _encode(self, sections: list, tokenizer, encoder):
        empty = self._sections("", tokenizer, encoder)[0]
        hidden, pooled = self._run([*sections, empty], encoder)
        weights = torch.tensor([[weight for _, weight in section] for section in sections])[..., None]
        states = hidden[-1] + weights * (hidden[:-1] - hidden[-1])
        states = torch.where(weights == 1, hidden[:-1], states)
        return states.flatten(0, 1)[None], None if pooled is None else pooled[:1]

    def _run(self, sections: list, encoder):
        table = encoder.get_input_embeddings()
        end, first = len(table.weight) - 1, len(table.weight) - 1  # CLIP's last word is the end mark
        vectors = [token for section in sections for token, _ in section if isinstance(token, torch.Tensor)]
        assert all(vector.shape == table.weight.shape[1:] for vector in vectors)
        numbers = iter(range(first, first + len(vectors)))
        last = first + len(vectors)
        ids = [[next(numbers) if isinstance(token, torch.Tensor) else last if token == end else token
                for token, _ in section] for section in sections]  # fmt: skip
        rows = torch.stack([*(vector.to(table.weight) for vector in vectors), table.weight[end]])
        encoder.set_input_embeddings(nn.Embedding.from_pretrained(torch.cat([table.weight[:end], rows])))
        try:
            out = encoder(torch.tensor(ids), output_hidden_states=True)
        finally:
            encoder.set_input_embeddings(table)
        two = len(self.towers) > 1
        return out.hidden_states[-2] if two else out.last_hidden_state, getattr(out, "text_embeds", None)


class Sampling:
    """Sigmas of a variance-preserving schedule; the timestep is the nearest one's."""

    def __init__(self, scheduler) -> None:
        self.sigmas = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()

    def timestep(self, sigma):
        return (sigma.log() - self.sigmas.log()[:, None]).abs().argmin(dim=0)


class Model:
    def __init__(self, unet, scheduler, patches=()) -> None:
        self.unet, self.scheduler, self.patches = unet, scheduler, list(patches)
        self.objects = {"model_sampling": Sampling(scheduler)}

    def clone(self) -> "Model":
        return Model(self.unet, self.scheduler, self.patches)

    def set_model_attn2_patch(self, patch) -> None:
        self.patches.append(patch)

    def get_model_object(self, name: str):
        return self.objects[name]

    @torch.no_grad()
    def __call__(self, latents, timestep, context, cond_or_uncond=(0,)):
        handles = []
        for name, layer in self.unet.named_modules():
            if name.endswith(".attn2"):
                block, index = BLOCKS[name.split(".transformer_blocks.")[0]], int(name.split(".")[-2])
                options = {"block": block, "block_index": index, "cond_or_uncond": list(cond_or_uncond),
                           "sigmas": self.objects["model_sampling"].sigmas[timestep].reshape(1)}  # fmt: skip

                def before(module, args, kwargs, options=options):
                    n, context = args[0], kwargs["encoder_hidden_states"]
                    value = context
                    for patch in self.patches:
                        n, context, value = patch(n, context, value, options)
                    assert value is context  # else this stand-in would have to make the values of another one
                    return (n, *args[1:]), kwargs | {"encoder_hidden_states": context}

                handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        try:
            return self.unet(latents, timestep, context).sample
        finally:
            for handle in handles:
                handle.remove()


def sample(model: Model, positive: list, negative: list, latents, steps: int, cfg: float):
    """Classifier-free guidance with the scheduler's own steps."""
    scheduler = copy.deepcopy(model.scheduler)
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        (one, _), (zero, _) = positive[0], negative[0]
        if one.shape == zero.shape:
            found = model(torch.cat([latents, latents]), timestep, torch.cat([one, zero]), (0, 1)).chunk(2)
        else:
            found = model(latents, timestep, one, (0,)), model(latents, timestep, zero, (1,))
        guided = found[1] + cfg * (found[0] - found[1])
        latents = scheduler.step(guided, timestep, latents).prev_sample
    return latents


def stock_nodes(backbone, pictures: dict) -> tuple[dict, SimpleNamespace]:
    """Stock nodes over a backbone, and what they left behind: the latents that were painted."""
    results = SimpleNamespace()
    loaded = Model(backbone.unet, backbone.scheduler), CLIP({"l": (backbone.tokenizer, backbone.text_encoder)}), None

    def node(function, outputs, **inputs):
        types = {name: (kind if isinstance(kind, tuple) else (kind,)) for name, kind in inputs.items()}
        body = {"INPUT_TYPES": classmethod(lambda cls: {"required": types}), "RETURN_TYPES": outputs,
                "FUNCTION": "run", "run": lambda self, **given: function(**given)}  # fmt: skip
        return type("Node", (), body)

    def paint(model, positive, negative, latent_image, seed, steps, cfg, **_):
        noise = torch.randn(latent_image.shape, generator=torch.Generator().manual_seed(seed))
        results.latents = sample(model, positive, negative, noise, steps, cfg)
        return (results.latents,)

    size, channels = backbone.unet.config.sample_size, backbone.unet.config.in_channels
    seed = ("INT", {"control_after_generate": True})
    return {
        "CheckpointLoaderSimple": node(lambda ckpt_name: loaded, ("MODEL", "CLIP", "VAE"), ckpt_name=(["a"],)),
        "LoadImage": node(
            lambda image, upload: pictures[image], ("IMAGE", "MASK"), image=(["a"],), upload=(["image"],),
        ),
        "CLIPTextEncode": node(
            lambda clip, text: ([[clip.encode_from_tokens(clip.tokenize(text)), {}]],), ("CONDITIONING",),
            clip="CLIP", text=("STRING", {"multiline": True}),
        ),
        "EmptyLatentImage": node(
            lambda width, height, batch_size: (torch.zeros(batch_size, channels, size, size),), ("LATENT",),
            width="INT", height="INT", batch_size="INT",
        ),
        "KSampler": node(
            paint, ("LATENT",), model="MODEL", seed=seed, steps="INT", cfg="FLOAT", sampler_name=(["ddim"],),
            scheduler=(["normal"],), positive="CONDITIONING", negative="CONDITIONING", latent_image="LATENT",
            denoise="FLOAT",
        ),
        "VAEDecode": node(lambda samples, vae: (samples,), ("IMAGE",), samples="LATENT", vae="VAE"),
        "SaveImage": node(lambda images, filename_prefix: (), (), images="IMAGE", filename_prefix="STRING"),
    }, results  # fmt: skip


WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN")


def run_workflow(path: Path, nodes: dict, changes: dict | None = None) -> dict[int, tuple]:
    """Run every node of a workflow once, as the page queues it; gives node -> outputs.

    Args:
        changes: (node's type, widget) -> other value.
    """
    workflow = json.loads(path.read_text(encoding="utf-8"))
    links = {link[0]: link for link in workflow["links"]}
    by_id, outputs = {node["id"]: node for node in workflow["nodes"]}, {}

    def outputs_of(number: int) -> tuple:
        if number not in outputs:
            outputs[number] = run(by_id[number])
        return outputs[number]

    def run(about: dict) -> tuple:
        cls = nodes[about["type"]]
        types = cls.INPUT_TYPES()
        declared = types["required"] | types.get("optional", {})
        sockets = {entry["name"]: entry["link"] for entry in about.get("inputs", [])}
        values, given = list(about.get("widgets_values", [])), {}
        for name, (kind, *options) in declared.items():
            if isinstance(kind, list) or kind in WIDGETS:
                given[name] = values.pop(0)
                if options and options[0].get("control_after_generate"):
                    values.pop(0)
                given[name] = (changes or {}).get((about["type"], name), given[name])
            elif sockets.get(name) is not None:
                _, source, slot, target, _, sort = links[sockets[name]]
                assert target == about["id"] and sort == kind == nodes[by_id[source]["type"]].RETURN_TYPES[slot]
                given[name] = outputs_of(source)[slot]
            else:
                assert name in types.get("optional", {}), f"{about['type']} lacks {name}"
        assert not values, f"{about['type']} has widget values too many: {values}"
        found = getattr(cls(), cls.FUNCTION)(**given)
        return found if isinstance(found, tuple) else ()

    for number in by_id:
        outputs_of(number)
    return outputs
