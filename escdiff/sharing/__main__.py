"""The door of sharing: `python -m escdiff.sharing --help`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from escdiff.support.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
BackboneName = Annotated[str, typer.Option("--backbone", help="mini, sd15, a folder, hub id or .safetensors.")]

TrustPickle = Annotated[bool, typer.Option("--trust-pickle", help="Read a .bin or .pt, which is a pickle.")]


@app.callback()
def _callback() -> None:
    """Concepts for other programs, in a gallery, on the Hugging Face hub."""


@app.command()
def export(
    concept: Annotated[Path, typer.Argument(help="Concept file.")],
    out: Annotated[Path, typer.Option(help="File to write, .safetensors.")],
    attribute: Annotated[str, typer.Option(help="shape, appearance or concept.")] = "concept",
    layout: Annotated[str, typer.Option(help="ti, emb_params, clip (one cell), p+ or xti (a cell per layer).")] = "ti",
    token: Annotated[str | None, typer.Option(help="Pseudo-word there; the placeholder without.")] = None,
) -> None:
    """Write a concept in the layout of other programs."""
    from escdiff.concept import Concept
    from escdiff.sharing.layouts import export_embeddings

    read = Concept.load(concept)
    make_parent(out)
    export_embeddings(read, out, attribute, layout, token)
    typer.echo(out)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="P+ or XTI embeddings, or a textual inversion.")],
    out: Annotated[Path, typer.Option(help="Concept file to write.")],
    backbone: BackboneName = "mini",
    word: Annotated[str, typer.Option(help="The word they were initialised with.")] = "object",
    per_block: Annotated[
        bool, typer.Option("--per-block", help="From the port that gave a token to each block.")
    ] = False,
    trust_pickle: TrustPickle = False,
) -> None:
    """Read the embeddings of other programs; their layout is told from the file."""
    from escdiff.backbone.presets import load_preset
    from escdiff.sharing.layouts import import_embeddings

    make_parent(out)
    model, _ = load_preset(backbone, "cpu")
    import_embeddings(file, model, word=word, per_block=per_block, trust_pickle=trust_pickle).save(out)
    typer.echo(out)


@app.command("inspect")
def inspect_(
    file: Annotated[Path, typer.Argument(help="A file of weights or embeddings, or an encoder's folder.")],
    trust_pickle: TrustPickle = False,
) -> None:
    """Say what a file is: concept, encoder, LoRA, textual inversion, P+, VAE, U-Net, ..."""
    from escdiff.sharing.inspect import inspect

    typer.echo(inspect(file, trust_pickle))


@app.command()
def gallery(
    files: Annotated[list[Path], typer.Argument(help="Concept files.")],
    out: Annotated[Path, typer.Option(help="Folder to fill.")],
    backbone: BackboneName = "mini",
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 25,
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale; else the backbone's own.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16; auto is float32 on a CPU.")] = "auto",
) -> None:
    """A folder with every concept, its preview, one overview and a card."""
    from escdiff.backbone.presets import load_preset
    from escdiff.sharing.gallery import make_gallery

    make_parent(out / "gallery.png")
    model, scale = load_preset(backbone, device, dtype, guidance)
    make_gallery(files, model, out, steps=steps, guidance=scale)
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


def make_parent(out: Path) -> None:
    """Make the folder of a file that is to be written.

    Raises:
        UserError: that cannot be done.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out is {out}, whose folder cannot be made ({error.strerror}); name another") from None


def main() -> None:
    """The door `python -m escdiff.sharing`."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
