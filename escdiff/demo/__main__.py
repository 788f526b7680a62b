"""`escdiff-demo`: the page on this machine, for this machine, unless told otherwise."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from escdiff.support.errors import UserError

LOOPBACK = "127.0.0.1"


def demo(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = LOOPBACK,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    backbone: Annotated[str, typer.Option(help="mini, sd15, a diffusers folder or a hub id.")] = "mini",
    encoder: Annotated[Path | None, typer.Option(help="Folder of the concept encoder; else the bundled one.")] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="Guidance scale to start from; else the backbone's own.")
    ] = None,
    queue: Annotated[int, typer.Option(min=1, help="Pictures that may wait; more are told to come back.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16; auto is float32 on a CPU.")] = "auto",
) -> None:
    """A web page: shape from one picture, appearance from another, the rest in words."""
    serve(launch_options(host, port), load(backbone, encoder, guidance, device, dtype), queue)


def load(backbone: str, encoder: Path | None, guidance: float | None, device: str, dtype: str):
    """The studio.

    Raises:
        UserError: a model that is missing, or Gradio.
    """
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise UserError("the demo needs Gradio; pip install 'escdiff[demo]'") from None
    from escdiff.demo.studio import Studio
    from escdiff.serving.engine import Engine

    return Studio(Engine.load(backbone, encoder, guidance, device, dtype))


def launch_options(host: str, port: int) -> dict:
    """Of `Blocks.launch`: nothing shared, nothing served but what this page made, nothing told to anybody."""
    return {
        "server_name": host, "server_port": port, "share": False, "allowed_paths": [], "quiet": True,
        "footer_links": [], "enable_monitoring": False, "ssr_mode": False, "mcp_server": False, "show_error": False,
    }  # fmt: skip


def serve(options: dict, studio, queue: int, block: bool = True):
    """Start the page's server; gives Gradio's page."""
    from starlette.middleware import Middleware

    from escdiff.demo.guard import Guard
    from escdiff.demo.page import CSS, build, theme

    sandbox = Path(os.environ["GRADIO_TEMP_DIR"])
    page = build(studio, sandbox)
    limits = studio.engine.limits
    page.queue(max_size=queue, default_concurrency_limit=limits.batch, api_open=False)
    page.launch(
        **options, theme=theme(), css=CSS, max_file_size=limits.picture_bytes, prevent_thread_lock=True,
        app_kwargs={"middleware": [Middleware(Guard, sandbox=sandbox)]},
    )  # fmt: skip
    print(f"open http://{options['server_name']}:{options['server_port']} (Ctrl-C stops it)", flush=True)
    if block:
        page.block_thread()
    return page


def main() -> None:
    """The door `python -m escdiff.demo`."""
    # Before Gradio is imported: its uploads stay in a folder of this process, and it calls nobody.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with tempfile.TemporaryDirectory(prefix="escdiff-demo-") as sandbox:
        os.environ["GRADIO_TEMP_DIR"] = sandbox
        try:
            typer.run(demo)
        except UserError as error:
            print(error, file=sys.stderr)
            raise SystemExit(2) from None
        except OSError as error:  # such as a port that is taken
            print(f"the page cannot be served ({error}); choose another --port or --host", file=sys.stderr)
            raise SystemExit(2) from None


if __name__ == "__main__":
    main()
