"""`python infer.py`: one picture in, shape and appearance out."""

import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from escdiff.cli.checks import check, check_prompt
from escdiff.cli.compose import compose, door, show
from escdiff.cli.keys import check_keys, options

TEXTS = ("shape", "appearance", "concept", "prompt", "negative_prompt", "references", "encoder", "out", "mask",
         "segmenter", "backbone.name", "backbone.config")  # fmt: skip
HELP = """Customize from one picture, in one forward pass.

  python infer.py                                     an overview of the bundled example pictures
  python infer.py references=DIR                      the same of your own pictures
  python infer.py shape=a.png appearance=b.jpg prompt="a photo of a <shape> made of <appearance> on a blue background"
  python infer.py appearance=b.jpg prompt="a photo of a <appearance> mug" num_images=8 seed=3
  python infer.py concept=outputs/infer/mug.safetensors strength.appearance=0.5
  python infer.py concept=mug=FILE,dog=FILE prompt="a photo of a <mug> and a <dog>"
  python infer.py shape=mug.safetensors appearance=dog.safetensors mix=hand      concept files of one method; or mix=0.4
  python infer.py shape=cluttered.jpg mask=auto       reads the object only; or mask=FILE, white on the object
  python infer.py backbone=sd15 encoder=DIR shape=a.png      another backbone, with the encoder trained for it

Writes grid.png, the pictures, the concept files (*.safetensors) and run.json into out=DIR.

Backbones: {backbones}

Keys and their defaults:

{keys}"""


def help_text() -> str:
    return HELP.format(backbones=options("backbone"), keys=show("infer.yaml", "backbone/mini.yaml", "loading.yaml"))


class Seconds(dict):
    """Seconds per phase of a run."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self[name] = round(time.perf_counter() - start, 3)


def run(config: dict, overrides: Sequence[str] = ()) -> Path:
    """Encode the references, paint, write; returns the folder.

    Args:
        overrides: those that chose the configuration's groups.

    Raises:
        UserError: anything that the user can mend.
    """
    from escdiff.cli.files import load_concepts, uses_files
    from escdiff.cli.overview import COLUMNS, requests
    from escdiff.cli.results import write_results
    from escdiff.concept import plain_prompt
    from escdiff.data.images import open_image
    from escdiff.methods.weights import applied

    check_keys("infer", config, overrides)
    check(config)
    files, seconds = uses_files(config), Seconds()
    sources = [] if files else choose_sources(config)
    with seconds.phase("read"):
        pictures = {source: open_image(source) for source in sources}
        concepts, weights = load_concepts(config) if files else ({}, ([], []))  # and those that bring weights along
    with seconds.phase("load"):
        backbone, encoder = load_models(config, weights[0])
    with seconds.phase("encode"):
        concepts = concepts or make_concepts(config, pictures, encoder, masks_of(config, pictures, encoder))
        ready = [strengthen(concept, config["strength"]) for concept in concepts.values()]
    if is_overview(config):
        cells = requests(ready)
        seeds = [config["seed"]] * len(cells)  # the same noise, so that a difference is the concept's
    else:
        prompt = config["prompt"] or plain_prompt(ready[0].attributes)
        check_prompt(
            prompt, ready[0].attributes, [] if files else [key for key in ("shape", "appearance") if config[key]]
        )
        cells = [(prompt, ready[0])] * config["num_images"]
        seeds = range(config["seed"], config["seed"] + len(cells))
    with seconds.phase("paint"), applied(backbone, *weights):
        painted = paint(backbone, cells, seeds, config)
    if any("adapter" in concept.notes for concept in weights[0]):
        concepts = {}  # a copy without its weights would be of no use
    columns = COLUMNS if is_overview(config) else ()
    return write_results(config, pictures, concepts, [prompt for prompt, _ in cells], painted, columns, seconds)


def is_overview(config: dict) -> bool:
    return not (config["shape"] or config["appearance"] or config["concept"])


def choose_sources(config: dict) -> list[str]:
    """The reference pictures, each once."""
    from escdiff.data.images import list_images

    if is_overview(config):
        folder = config["references"] or Path(__file__).parents[1] / "assets" / "examples"
        return [str(path) for path in list_images(folder)]
    return list(dict.fromkeys(config[key] for key in ("shape", "appearance") if config[key]))


def load_models(config: dict, concepts: Sequence = ()):
    """(backbone, encoder), no encoder when concepts stand for it; what does not fit stops before weights are read."""
    from escdiff.backbone import load_backbone, loading_options, pick_device, pick_dtype, read_blueprint
    from escdiff.encoder import ConceptEncoder
    from escdiff.encoder.checkpoint import read_config
    from escdiff.quiet import quiet_libraries

    quiet_libraries()
    settings, device = config["backbone"], pick_device(str(config["device"]))
    dtype = pick_dtype(settings["dtype"])
    options = loading_options(settings)
    where = ("trust_pickle", "config", "revision", "local_files_only")
    plan = read_blueprint(settings["name"], **{key: options[key] for key in where if key in options})
    for concept in concepts:
        same = set(concept.space.layer_names) == set(plan.p_plus().layer_names)
        concept.check_fits(concept.space if same else plan.p_plus(), plan.width)
    if not concepts:
        read_config(config["encoder"], plan)
    backbone = load_backbone(plan, device=device, dtype=dtype, **options)
    if concepts:
        return backbone, None
    return backbone, ConceptEncoder.from_pretrained(config["encoder"], backbone).to(device)


def masks_of(config: dict, pictures: Mapping, encoder) -> dict:
    from escdiff.cli.masks import read_masks

    return read_masks(pictures, config["mask"], config["segmenter"], encoder.vision.image_size)


def make_concepts(config: dict, pictures: Mapping, encoder, masks: Mapping) -> dict:
    """File stem -> concept: every reference's own for the overview, else the one asked for."""
    from escdiff.concept import Concept

    read = {
        source: encoder.encode(picture, masks.get(source), note=Path(source).name)
        for source, picture in pictures.items()
    }
    if is_overview(config):
        return {Path(source).stem: concept for source, concept in read.items()}
    files = {key: config[key] for key in ("shape", "appearance") if config[key]}
    stem = "-".join(dict.fromkeys(Path(source).stem for source in files.values()))
    return {stem: Concept.combine(**{a: read[source].only(a) for a, source in files.items()})}


def strengthen(concept, strength: Mapping[str, float]):
    return concept.scaled({a: value for a, value in strength.items() if a in concept.attributes})


def paint(backbone, cells: Sequence[tuple], seeds: Sequence[int], config: dict) -> list:
    from escdiff.data.progress import sample_progress
    from escdiff.pipeline import generate

    with sample_progress("painting", len(cells) * config["steps"]) as advance:
        return generate(
            backbone, [prompt for prompt, _ in cells], [concept for _, concept in cells], steps=config["steps"],
            guidance=config["guidance"], seeds=seeds, negative_prompt=config["negative_prompt"] or "",
            batch_size=config["batch_size"], on_step=advance,
        )  # fmt: skip


def _main(argv: list[str]) -> None:
    config = compose("infer", argv, TEXTS)
    out = run(config, argv)
    print(f"{out / 'grid.png'}  (pictures, concept files and run.json beside it)")


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    door(_main, help_text)
