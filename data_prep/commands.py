"""The commands that turn pictures into training data; each opens its stage's file only when it is called."""

from pathlib import Path
from typing import Annotated

import typer

from escdiff.support.errors import UserError

Folder = Annotated[Path, typer.Argument(help="Folder with shards and their index.")]
Out = Annotated[Path, typer.Option(help="Folder for the new dataset; made if missing.")]
EngineKind = Annotated[str, typer.Option("--engine", help="local: processes; ray: a Ray cluster (extra `prep`).")]
Workers = Annotated[int, typer.Option(help="Processes; 0: one per GPU for a model, else one per core; 1: this one.")]
MaxBad = Annotated[float, typer.Option(help="Share of bad samples above which the run stops.")]
Seconds = Annotated[float, typer.Option(help="Limit of time per picture; 0: none.")]
Gpus = Annotated[float, typer.Option(help="GPUs per worker, for Ray to place (with --engine ray).")]
Device = Annotated[str, typer.Option(help="auto: a GPU of its own for each worker if there are some; cpu, cuda:1, ...")]
Dtype = Annotated[str, typer.Option(help="Of the model: float32, bfloat16 or float16.")]
Batch = Annotated[int, typer.Option(help="Pictures that the model sees at once.")]
Dry = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and write nothing.")]


def make_run(
    engine: str, workers: int, seconds: float, dry: bool, max_bad: float = 0.1, gpus: float = 0.0,
    device: str | None = None,
):  # fmt: skip
    """`device` is that of the stage's model, if it has one."""
    from data_prep.dataset import Run
    from escdiff.support.jobs.engine import Engine

    if device is not None and not workers and engine == "local":
        from data_prep.models import workers_for

        workers = workers_for(device)
    run = Run(Engine(engine, workers, gpus), max_bad, seconds, dry)
    run.validate()
    return run


def needs(context: typer.Context, met: bool, other: str, *options: str) -> None:
    """
    Raises:
        UserError: one of `options` was given, which do nothing without `other`.
    """
    for option in () if met else options:
        source = context.get_parameter_source(option.replace("-", "_"))
        if source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP"):
            raise UserError(f"--{option} was given, which does nothing without {other}")


def ingest(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of pictures, of webdataset shards or of a saved Hugging Face dataset; a list (.csv, .tsv, "
            ".jsonl, .parquet) with a column `path`; one .tar; with --urls a list of addresses."
        ),
    ],
    out: Out,
    shard_size: Annotated[int, typer.Option(help="Samples per shard.")] = 1000,
    max_side: Annotated[int, typer.Option(help="Larger pictures are scaled down to this; 0: never.")] = 1024,
    min_side: Annotated[int, typer.Option(help="Smaller pictures are left out.")] = 32,
    max_pixels: Annotated[int, typer.Option(help="Larger pictures are bad.")] = 64_000_000,
    max_bytes: Annotated[int, typer.Option(help="Larger files are bad.")] = 200_000_000,
    licence: Annotated[str, typer.Option(help="Of pictures that come without one.")] = "unknown",
    folder_is: Annotated[str, typer.Option(help="What a picture's folder names: none, category or object.")] = "none",
    split: Annotated[str | None, typer.Option(help="Split of a saved dataset that has several.")] = None,
    urls: Annotated[bool, typer.Option("--urls", help="The list holds addresses; img2dataset fetches them.")] = False,
    fetcher: Annotated[str, typer.Option(help="The img2dataset program, for --urls.")] = "img2dataset",
    max_bad: MaxBad = 0.1,
    seconds: Seconds = 5.0,
    engine: EngineKind = "local",
    workers: Workers = 0,
    dry_run: Dry = False,
) -> None:
    """Pictures of any origin to shards; bad ones to quarantine/ with their reasons."""
    from data_prep.ingest import Ingest
    from data_prep.ingest import ingest as make
    from data_prep.plans import kind_of, make_plan
    from escdiff.data.limits import Limits

    run = make_run(engine, workers, seconds, dry_run, max_bad)
    stage = Ingest(Limits(max_pixels, max_bytes, seconds), max_side, min_side, licence)
    kind = "urls" if urls else kind_of(source)
    needs(context, urls, "--urls", "fetcher")
    needs(context, kind == "saved", "a saved dataset", "split")
    needs(context, kind == "folder", "a folder of pictures", "folder-is")
    needs(context, kind != "shard", "pictures, as shards keep their sizes", "shard-size")
    if urls:
        from data_prep.urls import fetched_plan

        plan = fetched_plan(source, out, shard_size, fetcher, run)
        if plan is None:
            return
    else:
        plan = make_plan(source, shard_size, folder_is, split)
    make(plan, out, stage, run)


def verify(
    folder: Folder,
    quick: Annotated[bool, typer.Option("--quick", help="Compare hashes and counts, decode nothing.")] = False,
    seconds: Seconds = 5.0,
    engine: EngineKind = "local",
    workers: Workers = 0,
    dry_run: Dry = False,
) -> None:
    """Read all shards again: counts, hashes, decodability. Fails when one is not as the index says."""
    from data_prep.verify import verify as run_verify

    report = run_verify(folder, make_run(engine, workers, seconds, dry_run), decoded=not quick)
    if report is None:
        return
    if report.problems:
        typer.echo(str(report), err=True)
        raise UserError(f"{folder} is damaged; delete the shards named above and run the command that made them again")
    typer.echo(f"{report}: {folder}")


def inspect(
    folder: Folder, seconds: Seconds = 5.0, engine: EngineKind = "local", workers: Workers = 0, dry_run: Dry = False
) -> None:
    """Counts, sizes, broken files, captions, licences, colours: inspect.html with a contact sheet."""
    from data_prep.inspect import inspect as look

    look(folder, make_run(engine, workers, seconds, dry_run))


def dedup(
    context: typer.Context,
    folder: Folder,
    out: Out,
    against: Annotated[Path | None, typer.Option(help="Test set: what is in it is left out here.")] = None,
    distance: Annotated[int, typer.Option(help="Near duplicates differ in at most so many of 64 bits.")] = 6,
    colour: Annotated[
        float,
        typer.Option(help="Mean CIELAB distance from which they differ in colour, and both stay; 0: of no account."),
    ] = 10.0,
    clip: Annotated[str | None, typer.Option(help="CLIP to compare with too: mini, a folder or a hub id.")] = None,
    similarity: Annotated[float, typer.Option(help="Cosine from which CLIP takes two for one.")] = 0.96,
    device: Device = "auto",
    dtype: Dtype = "float32",
    max_bad: MaxBad = 0.1,
    seconds: Seconds = 5.0,
    engine: EngineKind = "local",
    workers: Workers = 0,
    gpus: Gpus = 0.0,
    dry_run: Dry = False,
) -> None:
    """Leave out near duplicates and what is also in a test set (extra `prep`); same shapes in other colours stay."""
    from data_prep.dedup import Dedup
    from data_prep.dedup import dedup as make

    needs(context, clip is not None, "--clip", "similarity", "device", "dtype", "gpus")
    needs(context, engine == "ray", "--engine ray", "gpus")
    run = make_run(engine, workers, seconds, dry_run, max_bad, gpus, device if clip else None)
    make(folder, out, Dedup(distance, clip, similarity, colour=colour, device=device, dtype=dtype), run, against)


def segment(
    context: typer.Context,
    folder: Folder,
    out: Out,
    source: Annotated[
        str, typer.Option(help="auto (what the data have, else the model), alpha, given, model.")
    ] = "auto",
    model: Annotated[str | None, typer.Option(help="Segmentation model of transformers: folder or hub id.")] = None,
    min_area: Annotated[float, typer.Option(help="Share of the picture that a mask covers at least.")] = 0.02,
    max_area: Annotated[float, typer.Option(help="And at most.")] = 0.9,
    min_piece: Annotated[float, typer.Option(help="Share of the mask in its largest piece.")] = 0.7,
    max_rim: Annotated[float, typer.Option(help="Share of the picture's rim under the mask.")] = 0.5,
    min_score: Annotated[float, typer.Option(help="Score of the model.")] = 0.0,
    batch: Batch = 8,
    device: Device = "auto",
    dtype: Dtype = "float32",
    max_bad: MaxBad = 0.1,
    seconds: Seconds = 60.0,
    engine: EngineKind = "local",
    workers: Workers = 0,
    gpus: Gpus = 0.0,
    dry_run: Dry = False,
) -> None:
    """A mask of the subject for every sample; bad masks are left out."""
    from data_prep.segment import Segment
    from data_prep.segment import segment as make

    uses_model = model is not None and source in ("auto", "model")
    options = ("model", "min-score", "batch", "device", "dtype", "gpus")
    needs(context, uses_model, "--model and a --source of auto or model", *options)
    needs(context, engine == "ray", "--engine ray", "gpus")
    stage = Segment(source, model, min_area, max_area, min_piece, max_rim, min_score, batch, device, dtype)
    run = make_run(engine, workers, seconds, dry_run, max_bad, gpus, device if uses_model else None)
    make(folder, out, stage, run)


def caption(
    context: typer.Context,
    folder: Folder,
    out: Out,
    model: Annotated[str | None, typer.Option(help="Captioning model of transformers: folder or hub id.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What the model is asked, if it wants to be.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Let the model also replace given captions.")] = False,
    require: Annotated[bool, typer.Option("--require", help="Leave out what has no category in the end.")] = False,
    max_words: Annotated[int, typer.Option(help="Tokens that the model says at most.")] = 40,
    batch: Batch = 8,
    device: Device = "auto",
    dtype: Dtype = "float32",
    max_bad: MaxBad = 0.1,
    seconds: Seconds = 60.0,
    engine: EngineKind = "local",
    workers: Workers = 0,
    gpus: Gpus = 0.0,
    dry_run: Dry = False,
) -> None:
    """Captions, category nouns, and captions without colour and material words."""
    from data_prep.caption import Caption
    from data_prep.caption import caption as make

    options = ("prompt", "again", "max-words", "batch", "device", "dtype", "gpus")
    needs(context, model is not None, "--model", *options)
    needs(context, engine == "ray", "--engine ray", "gpus")
    stage = Caption(model, prompt, again, max_words, batch, require, device, dtype)
    make(folder, out, stage, make_run(engine, workers, seconds, dry_run, max_bad, gpus, device if model else None))


def pairs(
    folder: Folder,
    out: Out,
    size: Annotated[int, typer.Option(help="Side in pixels at which pictures are compared.")] = 224,
    seed: Annotated[int, typer.Option(help="The same seed and options give the same bytes.")] = 0,
    tries: Annotated[int, typer.Option(help="Views drawn before a picture is left out.")] = 8,
    min_overlap: Annotated[float, typer.Option(help="IoU of outlines, target and shape reference.")] = 0.6,
    min_change: Annotated[float, typer.Option(help="Lab distance of a recoloured object from itself.")] = 12.0,
    max_distance: Annotated[float, typer.Option(help="Lab distance of colours, target and appearance view.")] = 15.0,
    max_bad: MaxBad = 0.1,
    seconds: Seconds = 30.0,
    engine: EngineKind = "local",
    workers: Workers = 0,
    dry_run: Dry = False,
) -> None:
    """Measure for every sample which references training may draw."""
    from data_prep.pairs import Pairs
    from data_prep.pairs import pairs as make

    stage = Pairs(size, seed, tries, min_overlap, min_change, max_distance)
    make(folder, out, stage, make_run(engine, workers, seconds, dry_run, max_bad))


def latents(
    context: typer.Context,
    folder: Folder,
    backbone: Annotated[str, typer.Option(help="Whose VAE: mini, a folder, a file or a hub id.")] = "mini",
    size: Annotated[int, typer.Option(help="Centre square in pixels, as training will cut it.")] = 512,
    dtype: Annotated[str, typer.Option(help="float32, which trainings look for, bfloat16 or float16.")] = "float32",
    batch: Annotated[int, typer.Option(help="Pictures encoded at once; 0: 16 on a GPU, 1 on the CPU.")] = 0,
    device: Device = "auto",
    engine: EngineKind = "local",
    workers: Workers = 0,
    gpus: Gpus = 0.0,
    dry_run: Dry = False,
) -> None:
    """VAE moments beside the shards, so that training encodes nothing."""
    from data_prep.latents import Latents
    from data_prep.latents import latents as make

    needs(context, engine == "ray", "--engine ray", "gpus")
    run = make_run(engine, workers, 0.0, dry_run, gpus=gpus, device=device)
    make(folder, Latents(backbone, size, dtype, batch, device), run)


def merge(
    folders: Annotated[list[Path], typer.Argument(help="Folders with shards and their index, two or more.")],
    out: Out,
    max_bad: MaxBad = 0.1,
    seconds: Seconds = 5.0,
    engine: EngineKind = "local",
    workers: Workers = 0,
    dry_run: Dry = False,
) -> None:
    """Several datasets as one; the keys of each get its number in front."""
    from data_prep.merge import merge as make

    make(folders, out, make_run(engine, workers, seconds, dry_run, max_bad))


ALL = (ingest, inspect, merge, dedup, caption, segment, pairs, latents, verify)


def register(app: typer.Typer) -> None:
    """Add the commands to the door."""
    for command in ALL:
        app.command(command.__name__)(command)
