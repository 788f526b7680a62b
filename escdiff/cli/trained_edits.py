"""`python infer.py edit=instruct_pix2pix` and `edit=anydoor`: edits by models that were trained for them."""

from pathlib import Path
from typing import Any

from escdiff.support.config.infer import InferConfig

NEEDED = {
    "instruct_pix2pix": ("picture", "prompt", "edit.model"),
    "anydoor": ("picture", "edit.model", "edit.reference"),
}
HELP = """  python infer.py picture=photo.png edit=instruct_pix2pix edit.model=DIR prompt="make the mug blue"
  python infer.py picture=scene.png edit=anydoor edit.model=DIR edit.reference=mug.png edit.box=[.1,.3,.5,.9]"""


def run_trained(config: InferConfig, seconds: Any) -> Path:
    """Edit `picture` and write the results; returns the folder.

    Args:
        seconds: `escdiff.cli.infer.Seconds`.

    Raises:
        UserError: anything that the user can mend.
    """
    from escdiff.cli.results import write_results
    from escdiff.support.logging import quiet_libraries

    quiet_libraries()
    edit = {"instruct_pix2pix": _instruct, "anydoor": _place}[config.edit.name]
    pictures, prompts, painted = edit(config, config.edit, seconds)
    return write_results(config, pictures, {}, prompts, painted, (), seconds)


def _instruct(config: InferConfig, edit: Any, seconds: Any) -> tuple[dict, list[str], list]:
    from escdiff.backbone import pick_device, pick_dtype
    from escdiff.cli.masks import read_picture
    from escdiff.control.keep import paste
    from escdiff.pipelines.instruct import instruct, load_instruct
    from escdiff.support.progress import sample_progress

    count = config.num_images
    with seconds.phase("load"):
        device = pick_device(str(config.device))
        pipeline = load_instruct(edit.model, device, pick_dtype(config.backbone.dtype))
        side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        picture, mask = read_picture(config.picture, edit.mask, config.segmenter, side)
    with seconds.phase("paint"), sample_progress("painting", count * config.steps) as advance:
        painted = instruct(
            pipeline, [picture] * count, [config.prompt] * count, config.steps, config.guidance,
            edit.image_guidance, range(config.seed, config.seed + count), config.batch_size, advance,
        )  # fmt: skip
    if mask is not None and edit.paste:
        painted = [paste(result, picture, mask) for result in painted]
    return {config.picture: picture}, [config.prompt], painted


def _place(config: InferConfig, edit: Any, seconds: Any) -> tuple[dict, list[str], list]:
    from escdiff.backbone import load_backbone, loading_options, pick_device, pick_dtype
    from escdiff.cli.masks import read_picture
    from escdiff.control.boxes import check_box, draw
    from escdiff.control.keep import paste
    from escdiff.pipelines.place import place
    from escdiff.pipelines.placer import Placer
    from escdiff.support.progress import sample_progress

    box = check_box("the object", edit.box)
    settings, count = config.backbone, config.num_images
    with seconds.phase("load"):
        options = {"device": pick_device(str(config.device)), "dtype": pick_dtype(settings.dtype)}
        backbone = load_backbone(settings.name, **options, **loading_options(settings))
        placer = Placer.from_pretrained(edit.model, backbone.unet, config.encoder.vision)
        side = backbone.picture_size
        scene, _ = read_picture(config.picture, None, None, side)
        reference, mask = read_picture(edit.reference, edit.mask or "auto", config.segmenter, side)
    with seconds.phase("paint"), sample_progress("painting", count * config.steps) as advance:
        painted = [
            place(
                backbone, placer, scene, reference, mask, box, config.steps, config.guidance, seed, edit.keep,
                advance,
            )
            for seed in range(config.seed, config.seed + count)
        ]  # fmt: skip
    if edit.paste:
        painted = [paste(result, scene, draw(box, side, side)[None]) for result in painted]
    return {config.picture: scene, edit.reference: reference}, [config.prompt or ""], painted
