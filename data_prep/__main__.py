"""The door of data preparation: `python -m data_prep --help`."""

from pathlib import Path
from typing import Annotated

import typer

from data_prep.commands import register
from escdiff.support.doors import open_door

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@app.callback()
def _callback() -> None:
    """Make training data as webdataset shards with an index of counts, sizes and SHA-256."""


@app.command("still-life")
def still_life(
    out: Annotated[Path, typer.Option(help="Folder for the shards; made if missing.")],
    num: Annotated[int, typer.Option(help="Samples; rounded up to whole groups of 16.")] = 10_000,
    seed: Annotated[int, typer.Option(help="The same seed and options give the same bytes.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes; 0 means one per core.")] = 0,
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = 128,
    shard_size: Annotated[int, typer.Option(help="Samples per shard; a multiple of 16.")] = 512,
    split: Annotated[str, typer.Option(help="train or val (no held-out combinations), or test (any).")] = "train",
    depth: Annotated[bool, typer.Option("--depth", help="Also write 16-bit depth maps.")] = False,
    nameless: Annotated[float, typer.Option(help="Share of shapes and of materials that have no name.")] = 0.1,
    scenes: Annotated[float, typer.Option(help="Share of pictures with two or three things in a relation.")] = 0.0,
    figures: Annotated[float, typer.Option(help="Share of figures in poses.")] = 0.0,
    faces: Annotated[float, typer.Option(help="Share of faces with expressions.")] = 0.0,
    edits: Annotated[float, typer.Option(help="Share of pairs before and after an edit.")] = 0.0,
) -> None:
    """Render Still Life pictures with masks, captions and factors. Stop it and start it again as you like."""
    from escdiff.mini.data.still_life import StillLifeOptions, make_still_life

    shares = {"nameless": nameless, "scenes": scenes, "figures": figures, "faces": faces, "edits": edits}
    options = StillLifeOptions(seed=seed, size=size, shard_size=shard_size, split=split, depth=depth, **shares)
    index = make_still_life(out, num, options, workers)
    typer.echo(f"{index.samples} samples in {len(index.shards)} shards: {out}")


@app.command("sheets")
def sheets(
    out: Annotated[Path, typer.Option(help="Folder for the pictures; made if missing.")] = Path("docs/world"),
    seed: Annotated[int, typer.Option(help="The same seed gives the same sheets.")] = 0,
) -> None:
    """Draw contact sheets of Still Life: instances, materials, captions, scenes, figures, faces, edits."""
    from data_prep.sheets import make_sheets

    for path in make_sheets(out, seed):
        typer.echo(f"{path} ({path.stat().st_size / 1000:.0f} kB)")


@app.command("index")
def index(
    folder: Annotated[Path, typer.Argument(help="Folder with .tar shards of your own.")],
) -> None:
    """Count and hash the shards of a folder so that it can be trained on."""
    from escdiff.data.shards import index_folder

    written = index_folder(folder)
    typer.echo(f"{written.samples} samples in {len(written.shards)} shards: {folder}")


register(app)


def main() -> None:
    """The door `python -m data_prep`."""
    open_door(app)


if __name__ == "__main__":
    main()
