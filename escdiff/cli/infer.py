"""`python infer.py`: one picture in, shape and appearance out."""

import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from escdiff.cli import control
from escdiff.cli.checks import check, check_prompt, sides_of
from escdiff.cli.door import door
from escdiff.support.config.compose import compose
from escdiff.support.config.help import groups_text, keys_text
from escdiff.support.config.infer import InferConfig
from escdiff.support.memory import return_large_blocks

PATHS = ("shape", "appearance", "references", "mask", "out")  # `concept` may name several
HELP = """Customize from one picture, in one forward pass.

  python infer.py                                     an overview of the bundled example pictures
  python infer.py references=DIR                      the same of your own pictures
  python infer.py shape=a.png appearance=b.jpg prompt="a photo of a <shape> made of <appearance> on a blue background"
  python infer.py appearance=b.jpg prompt="a photo of a <appearance> mug" num_images=8 seed=3
  python infer.py concept=outputs/infer/mug.safetensors strength.appearance=0.5
  python infer.py concept=mug=a.png,dog=b.png prompt="a photo of a <mug> and a <dog>"      or files; also <mug-shape>
  python infer.py concept=mug=c.jpg,dog=c.jpg mask=mug=m.png,dog=d.png prompt="a <dog> on a <mug>"    parts of a picture
  python infer.py concept=USER/REPO/mug               a concept file on the Hugging Face hub
  python infer.py shape=mug.safetensors appearance=dog.safetensors mix=hand      concept files of one method; or mix=0.4
  python infer.py shape=cluttered.jpg mask=auto       reads the object only; or mask=FILE, white on the object
  python infer.py backbone=sd15 encoder=DIR shape=a.png      another backbone, with the encoder trained for it
{control}

Writes grid.png, the pictures, the concept files (*.safetensors) and run.json into out=DIR. What an earlier run left
there goes into earlier-001/, earlier-002/, ...; its concept files stay, and are never replaced by others.

Groups:

{groups}

Keys and their defaults:

{keys}"""


def help_text() -> str:
    """The text of `--help`."""
    return HELP.format(
        control=control.HELP,
        groups=groups_text("infer"),
        keys=keys_text(InferConfig),
    )


class Seconds(dict):
    """Seconds per phase of a run, which may come more than once."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self[name] = round(self.get(name, 0.0) + time.perf_counter() - start, 3)


def run(config: InferConfig) -> Path:
    """Encode the references, paint, write; returns the folder.

    Raises:
        UserError: anything that the user can mend.
    """
    from escdiff.backbone.adapters.attached import applied
    from escdiff.cli.files import load_concepts, pictures_of, uses_files
    from escdiff.cli.named import encode_named, join_named, named_prompt
    from escdiff.cli.overview import COLUMNS, requests
    from escdiff.cli.results import file_stem, file_stems, write_results
    from escdiff.concept import plain_prompt
    from escdiff.data.pictures import open_image

    config = expand_paths(config)
    if config.backbone.name != "mini":
        return_large_blocks()
    if control.steers(config):
        check(replace(config, prompt=None))  # which may do without a reference here
        return control.run_control(config, read_references, Seconds())
    check(config)
    named, seconds = pictures_of(config), Seconds()
    files = uses_files(config) and not named
    sources = [] if files else choose_sources(config)
    with seconds.phase("read"):
        pictures = {source: open_image(source) for source in sources}
        concepts, weights = load_concepts(config) if files else ({}, ([], []))  # and those that bring weights along
    with seconds.phase("load"):
        plan, encoder = load_encoder(config, weights[0])
    with seconds.phase("encode"):
        strength = asdict(config.strength)
        if named:
            made = encode_named(config, pictures, encoder)
            joined, weights = join_named(config, {name: strengthen(c, strength) for name, c in made.items()})
            concepts, ready = {file_stem(name): c for name, c in made.items()}, list(joined.values())
        else:
            concepts = concepts or make_concepts(config, pictures, encoder, masks_of(config, pictures, encoder))
            ready = [strengthen(concept, strength) for concept in concepts.values()]
    branches, encoder = encoder and encoder.branches, None  # what it held is free before the U-Net is read
    with seconds.phase("load"):
        backbone = load_painter(config, plan, weights[0], branches)
        sides = sides_of(config, backbone)
    if is_overview(config):
        cells = requests(ready)
        seeds = [config.seed] * len(cells)  # the same noise, so that a difference is the concept's
    else:
        prompt = config.prompt or (named_prompt(config) if named else plain_prompt(ready[0].attributes))
        check_prompt(prompt, ready[0].attributes, [] if files else list(config.given("shape", "appearance")))
        cells = [(prompt, ready[0])] * config.num_images
        seeds = range(config.seed, config.seed + len(cells))
    with seconds.phase("paint"), applied(backbone, *weights):
        painted = paint(backbone, cells, seeds, config, sides)
    if any("adapter" in concept.notes for concept in weights[0]):
        concepts = {}  # a copy without its weights would be of no use
    columns, stems = COLUMNS if is_overview(config) else (), file_stems(sources)
    shown = {stems[source]: picture for source, picture in pictures.items()}
    return write_results(config, shown, concepts, [prompt for prompt, _ in cells], painted, columns, seconds)


def expand_paths(config: InferConfig) -> InferConfig:
    """The configuration with a home folder's name for `~`."""
    from escdiff.data.pictures import expand

    def expanded(part, *names: str) -> dict[str, str]:
        return {name: str(expand(path)) for name in names if (path := getattr(part, name))}

    reader = replace(config.encoder, **expanded(config.encoder, "name", "vision"))
    return replace(config, encoder=reader, **expanded(config, *PATHS))


def read_references(config: InferConfig) -> tuple:
    """(backbone, pictures by path, concepts by file stem); without a reference, the backbone alone."""
    from escdiff.cli.files import load_concepts, pictures_of, uses_files
    from escdiff.cli.named import encode_named, join_named
    from escdiff.data.pictures import open_image

    named = pictures_of(config)
    concepts, (read, _) = load_concepts(config) if uses_files(config) and not named else ({}, ([], []))
    pictures = {} if concepts or is_overview(config) else {s: open_image(s) for s in choose_sources(config)}
    plan, encoder = load_encoder(config, read, reads=bool(pictures))
    if named:
        made = encode_named(config, pictures, encoder)
        concepts, (read, _) = join_named(config, {n: strengthen(c, asdict(config.strength)) for n, c in made.items()})
    elif pictures:
        concepts = make_concepts(config, pictures, encoder, masks_of(config, pictures, encoder))
    branches, encoder = encoder and encoder.branches, None
    backbone = load_painter(config, plan, read, branches)
    return backbone, pictures, {stem: strengthen(c, asdict(config.strength)) for stem, c in concepts.items()}


def is_overview(config: InferConfig) -> bool:
    """Whether the grid of the bundled examples is painted, for want of a picture or a concept."""
    return not (config.shape or config.appearance or config.concept)


def choose_sources(config: InferConfig) -> list[str]:
    """The reference pictures, each once."""
    from escdiff.cli.files import pictures_of
    from escdiff.data.pictures import list_images

    if is_overview(config):
        folder = config.references or Path(__file__).parents[1] / "assets" / "examples"
        return [str(path) for path in list_images(folder)]
    return list(dict.fromkeys([*config.given("shape", "appearance").values(), *pictures_of(config).values()]))


def load_encoder(config: InferConfig, concepts: Sequence = (), reads: bool = True):
    """(blueprint of the backbone, encoder), no encoder when concepts stand for it.

    What does not fit stops before weights are read. References are read without the backbone.

    Args:
        reads: whether pictures are to be encoded.
    """
    import torch

    from escdiff.backbone import blueprint_of, pick_device
    from escdiff.backbone.family.stored import check_family
    from escdiff.concept import TEXT_ENCODER
    from escdiff.encoder import ConceptEncoder
    from escdiff.encoder.checkpoint import read_config
    from escdiff.support.logging import quiet_libraries

    quiet_libraries()
    torch.set_float32_matmul_precision(config.matmul_precision)
    plan, reader, device = blueprint_of(config.backbone), config.encoder, pick_device(str(config.device))
    for concept in concepts:
        check_family(concept, plan.family, f"the backbone {plan.name!r}")
        same = set(concept.space.layer_names) == set(plan.p_plus().layer_names)
        spliced = concept.words and concept.entry == TEXT_ENCODER  # as wide as a text encoder that is not read yet
        concept.check_fits(concept.space if same else plan.p_plus(), concept.width if spliced else plan.width)
    if concepts or not reads:
        return plan, None
    read_config(reader.name, plan)
    return plan, ConceptEncoder.from_pretrained(reader.name, vision=reader.vision).to(device)


def load_painter(config: InferConfig, plan, concepts: Sequence = (), branches=None):
    """The backbone of a blueprint, with an encoder's branches, or those that concepts need."""
    from escdiff.backbone import load_backbone, loading_options, pick_device, pick_dtype
    from escdiff.encoder.checkpoint import branches_for

    settings, device = config.backbone, pick_device(str(config.device))
    branches = branches or branches_for(concepts, config.encoder.name, plan)
    backbone = load_backbone(plan, device=device, dtype=pick_dtype(settings.dtype), **loading_options(settings))
    if branches is not None:
        branches.put(backbone.unet)
    return backbone


def masks_of(config: InferConfig, pictures: Mapping, encoder) -> dict:
    """Masks of the pictures' subjects, from `mask` and `segmenter`."""
    from escdiff.cli.masks import read_masks

    return read_masks(pictures, config.mask, config.segmenter, encoder.vision.image_size)


def make_concepts(config: InferConfig, pictures: Mapping, encoder, masks: Mapping) -> dict:
    """File stem -> concept, as its file holds it: every reference's own for the overview, else the one asked for."""
    from escdiff.backbone import pick_dtype
    from escdiff.cli.results import file_stem, file_stems
    from escdiff.concept import Concept

    dtype = pick_dtype(config.concept_dtype, "concept_dtype")
    read = {
        source: encoder.encode(picture, masks.get(source), note=Path(source).name).as_stored(dtype)
        for source, picture in pictures.items()
    }
    if is_overview(config):
        stems = file_stems(list(read))
        return {stems[source]: concept for source, concept in read.items()}
    files = config.given("shape", "appearance")
    stem = "-".join(dict.fromkeys(Path(source).stem for source in files.values()))
    return {file_stem(stem): Concept.combine(**{a: read[source].only(a) for a, source in files.items()})}


def strengthen(concept, strength: Mapping[str, float]):
    """The concept with some attributes weighted."""
    return concept.scaled({a: value for a, value in strength.items() if a in concept.attributes})


def paint(backbone, cells: Sequence[tuple], seeds: Sequence[int], config: InferConfig, sides: Mapping) -> list:
    """Paint every cell with every seed, below one progress bar."""
    from escdiff.backbone.vae import sliced
    from escdiff.pipelines.generate import count_calls, generate
    from escdiff.support.progress import sample_progress

    calls = len(cells) * count_calls(backbone, config.steps)
    with sample_progress("painting", calls) as advance, sliced(backbone.vae):
        return generate(
            backbone, [prompt for prompt, _ in cells], [concept for _, concept in cells], steps=config.steps,
            guidance=config.guidance, seeds=seeds, negative_prompt=config.negative_prompt or "",
            batch_size=config.batch_size, on_step=advance, free_text=True, **sides,
        )  # fmt: skip


def _main(argv: list[str]) -> None:
    out = run(compose("infer", argv))
    print(f"{out / 'grid.png'}  (pictures, concept files and run.json beside it)")


def main() -> None:
    """The door `python infer.py`."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    door(_main, help_text)
