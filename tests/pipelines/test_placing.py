"""AnyDoor: what it reads of a reference, and what it leaves alone."""

import copy

import numpy as np
import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from escdiff.backbone import load_backbone
from escdiff.control import controlled
from escdiff.control.boxes import draw
from escdiff.control.inversion import decode, encode, psnr
from escdiff.control.keep import Keep, renoised
from escdiff.data.pictures import to_pixels
from escdiff.encoder import load_vision
from escdiff.evaluation.bench.pictures import draw as draw_pictures
from escdiff.mini.world import world
from escdiff.pipelines.collage import collage, corners, high_frequency
from escdiff.pipelines.place import make_pipeline, place
from escdiff.pipelines.placer import Placer
from escdiff.support.errors import UserError

BOX = (0.25, 0.25, 0.75, 0.75)


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tower"))
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**tower, image_size=32, patch_size=16)).save_pretrained(folder)
    return load_vision(folder)


@pytest.fixture(scope="module")
def backbone(tiny_backbone):
    return tiny.copied(tiny_backbone)


@pytest.fixture
def placer(backbone, vision):
    torch.manual_seed(2)
    return Placer.fresh(backbone.unet, vision).eval()


@pytest.fixture(scope="module")
def pictures():
    """A scene, a reference with a square, and the square's mask."""
    rng = np.random.default_rng(0)
    scene, reference = (rng.integers(0, 256, (128, 128, 3)).astype(np.uint8) for _ in range(2))
    mask = torch.zeros(1, 128, 128)
    mask[:, 40:90, 30:100] = 1
    return Image.fromarray(scene), Image.fromarray(reference), mask


def trained(placer):
    """As after a training: its last layers are not zero any more."""
    for block in (*placer.controlnet.controlnet_down_blocks, placer.controlnet.controlnet_mid_block):
        torch.nn.init.normal_(block.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    return placer


@pytest.mark.parametrize("decoder", [False, True])
@torch.no_grad()
def test_untrained_it_is_the_stock_pipeline_bit_for_bit(backbone, vision, pictures, decoder):
    placer = Placer.fresh(backbone.unet, vision, decoder).eval()
    states = placer.identity(*(x[None] for x in (to_pixels(pictures[1]), pictures[2])))
    shown = collage(to_pixels(pictures[0])[None], to_pixels(pictures[1])[None], pictures[2][None], [BOX])
    options = {"prompt_embeds": states, "negative_prompt_embeds": placer.empty(*states.shape[:2]), "height": 128,
               "width": 128, "num_inference_steps": 2, "output_type": "latent"}  # fmt: skip
    stock = StableDiffusionPipeline(
        **backbone.pipeline().components | {"safety_checker": None}, requires_safety_checker=False
    )
    painted = [
        pipeline(**options, **more, generator=torch.Generator().manual_seed(0)).images
        for pipeline, more in ((stock, {}), (make_pipeline(backbone, placer), {"image": shown}))
    ]
    assert torch.equal(*painted)


@torch.no_grad()
def test_the_branch_never_sees_the_noisy_latents(placer):
    states, shown = torch.randn(1, 5, placer.unet.config.cross_attention_dim), torch.rand(1, 4, 128, 128)
    branch = trained(placer).controlnet
    maps = [branch(torch.randn(1, 8, 16, 16), 500, states, shown, return_dict=False)[1] for _ in range(2)]
    assert torch.equal(*maps) and maps[0].abs().max() > 0


def test_outside_of_the_box_the_latents_stay_the_scenes(backbone, placer, pictures):
    pipeline = make_pipeline(backbone, trained(placer))
    source = renoised(pipeline, pictures[0], 3)
    states, shown = torch.randn(1, 5, backbone.width), torch.rand(1, 4, 128, 128)
    latents = controlled(pipeline, Keep(source, draw(BOX, 128, 128)[None]))(
        prompt_embeds=states, negative_prompt_embeds=0 * states, image=shown, height=128, width=128,
        num_inference_steps=3, output_type="latent",
    ).images  # fmt: skip
    changed = (latents != encode(pipeline, pictures[0])).any(1)[0]
    assert changed[4:12, 4:12].all() and changed.sum() == 64


@pytest.mark.slow
def test_outside_of_the_box_is_what_the_vae_makes_of_the_scene():
    """On the bundled model, whose VAE sees 40 pixels around each."""
    backbone, scene = load_backbone(), draw_pictures([world.sample_factors(np.random.default_rng(0))])[0]
    placer = trained(Placer.fresh(backbone.unet, load_vision()))
    box, mask, outside = (0.4, 0.4, 0.6, 0.6), torch.ones(1, 128, 128), torch.ones(1, 1, 128, 128)
    outside[..., 24:104, 24:104] = 0
    pipeline = make_pipeline(backbone, placer)
    with torch.no_grad():
        own = decode(pipeline, encode(pipeline, scene))
    for keep, low, high in ((True, 45, 99), (False, 0, 30)):
        painted = place(backbone, placer, scene, scene, mask, box, steps=4, keep=keep)
        assert low < psnr(to_pixels(painted)[None] / 2 + 0.5, own, outside) < high


@pytest.mark.parametrize("decoder", [False, True])
@torch.no_grad()
def test_a_stored_one_comes_back(backbone, vision, pictures, tmp_path, decoder):
    placer = trained(Placer.fresh(backbone.unet, vision, decoder).eval())
    placer.save_pretrained(tmp_path)
    again = Placer.from_pretrained(tmp_path, backbone.unet, vision)
    painted = [place(backbone, each, *pictures, BOX, steps=2, guidance=2.0) for each in (placer, again)]
    assert painted[0].tobytes() == painted[1].tobytes()
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "unet").is_dir() == (tmp_path / "unet").is_dir()
    other = copy.deepcopy(backbone.unet)
    other.register_to_config(cross_attention_dim=99)
    with pytest.raises(UserError, match="another backbone"):
        Placer.from_pretrained(tmp_path, other, vision)
    with pytest.raises(UserError, match="no AnyDoor model"):
        Placer.from_pretrained(tmp_path / "controlnet", backbone.unet, vision)


def test_details_are_edges_inside_of_the_object_laid_into_the_box():
    picture = torch.full((1, 3, 64, 64), -1.0)
    picture[..., 32:] = 1.0  # one edge down the middle
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 16:48, 16:48] = 1
    details = high_frequency(picture, mask)
    rows, columns = details[0, 0].nonzero(as_tuple=True)
    assert set(columns.tolist()) == {32}  # white, and beside the edge
    assert (rows.min(), rows.max()) == (19, 44)  # three pixels off the mask's rim
    shown = collage(torch.zeros(1, 3, 64, 64), picture, mask, [(0.5, 0.0, 1.0, 0.5)])
    assert shown[0, 3].sum() == 32 * 32 and corners(shown[0, 3]) == ((0, 32), (32, 64))
    assert shown[0, :3][:, shown[0, 3] == 0].abs().max() == 0  # the scene is as it was
    lit = (shown[0, 0, :32, 32:] > -0.5).nonzero() + 32
    assert lit[:, 1].min() == lit[:, 1].max() == 48 and (shown[0, 0, :32, 32:] == -1).float().mean() > 0.9


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"box": (0.5, 0.0, 0.2, 1.0)}, "inside of the picture"),
        ({"box": (0.0, 0.0, 1.5, 1.0)}, "inside of the picture"),
        ({"scene": Image.new("RGB", (100, 128))}, "multiples of 8"),
        ({"mask": torch.zeros(1, 128, 128)}, "an empty mask"),
        ({"mask": torch.ones(1, 64, 64)}, r"expected the reference's, \(1, 128, 128\)"),
    ],
)
def test_mistakes_are_one_sentence(backbone, placer, pictures, change, words):
    given = dict(zip(("scene", "reference", "mask"), pictures, strict=True)) | {"box": BOX} | change
    with pytest.raises(UserError, match=words) as caught:
        place(backbone, placer, **given, steps=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", ["controlnet", "projector.safetensors", "unet", "damaged", "a key", "another tower"])
def test_a_stored_one_that_is_not_whole_or_has_another_tower_is_refused(backbone, vision, tmp_path, fault):
    Placer.fresh(backbone.unet, vision, decoder=True).save_pretrained(tmp_path)
    file = tmp_path / "projector.safetensors"
    if fault == "a key":
        save_file({key: value for key, value in load_file(file).items() if key != "nothing"}, file)
        words = r"projector.safetensors is not whole or another file \(nothing\)"
    elif fault == "another tower":
        save_file({key: value.repeat_interleave(2, -1) for key, value in load_file(file).items()}, file)
        words = "another vision tower: its width is 32, not 16"
    elif fault == "damaged":
        file.write_bytes(b"no tensors at all")
        words = "is not whole"
    else:
        words = rf"is not whole \(no {fault}\)"
        (tmp_path / fault).rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=words):
        Placer.from_pretrained(tmp_path, backbone.unet, vision)
