"""The door of sharing: `python -m escdiff.sharing --help`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from escdiff.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
BackboneName = Annotated[str, typer.Option("--backbone", help="Folder, hub id, .safetensors, or mini.")]


@app.callback()
def _callback() -> None:
    """Concepts for other programs, in a gallery, on the Hugging Face hub."""


@app.command()
def export(
    concept: Annotated[Path, typer.Argument(help="Concept file.")],
    out: Annotated[Path, typer.Option(help="File to write, .safetensors.")],
    attribute: Annotated[str, typer.Option(help="shape, appearance or concept.")] = "concept",
    layout: Annotated[str, typer.Option(help="ti (one cell, for load_textual_inversion) or p+.")] = "ti",
    token: Annotated[str | None, typer.Option(help="Pseudo-word there; the placeholder without.")] = None,
    sdxl: Annotated[bool, typer.Option("--sdxl", help="Split for SDXL's two text encoders.")] = False,
) -> None:
    """Write a concept in the layout of other programs."""
    from escdiff.concept import Concept
    from escdiff.sharing.layouts import export_p_plus, export_textual_inversion

    if layout not in ("ti", "p+"):
        raise UserError(f"--layout {layout} given; expected ti or p+")
    found = Concept.load(concept)
    if layout == "p+":
        export_p_plus(found, out, attribute, token)
    else:
        export_textual_inversion(found, out, attribute, token, (768, 1280) if sdxl else ())
    typer.echo(out)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="P+ embeddings: TOKEN-0 ... TOKEN-15.")],
    out: Annotated[Path, typer.Option(help="Concept file to write.")],
    backbone: BackboneName = "mini",
    word: Annotated[str, typer.Option(help="The word they were initialised with.")] = "object",
    per_block: Annotated[
        bool, typer.Option("--per-block", help="From the port that gave a token to each block.")
    ] = False,
    trust_pickle: Annotated[bool, typer.Option("--trust-pickle", help="Read a .bin, which is a pickle.")] = False,
) -> None:
    """Read P+ embeddings of the public ports."""
    from escdiff.backbone import load_backbone
    from escdiff.sharing.layouts import import_p_plus

    import_p_plus(file, load_backbone(backbone), word=word, per_block=per_block, trust_pickle=trust_pickle).save(out)
    typer.echo(out)


@app.command()
def gallery(
    files: Annotated[list[Path], typer.Argument(help="Concept files.")],
    out: Annotated[Path, typer.Option(help="Folder to fill.")],
    backbone: BackboneName = "mini",
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 25,
    guidance: Annotated[float, typer.Option(help="Guidance scale.")] = 5.0,
) -> None:
    """A folder with every concept, its preview, one overview and a card."""
    from escdiff.backbone import load_backbone
    from escdiff.sharing.gallery import make_gallery

    make_gallery(files, load_backbone(backbone), out, steps=steps, guidance=guidance)
    typer.echo(out / "gallery.png")


@app.command()
def push(
    source: Annotated[Path, typer.Argument(help="Concept file, gallery, or encoder's folder.")],
    repo: Annotated[str, typer.Argument(help="USER/NAME on the Hugging Face hub.")],
    private: Annotated[bool, typer.Option("--private")] = False,
) -> None:
    """Upload to the Hugging Face hub, with a filled model card."""
    from escdiff.sharing.hub import push_to_hub

    typer.echo(push_to_hub(source, repo, private))


def main() -> None:
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
