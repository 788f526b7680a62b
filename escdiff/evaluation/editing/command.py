"""`python -m escdiff.evaluation edits --out DIR`, `places --out DIR --anydoor DIR` and `steering --out DIR`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from escdiff.support.errors import UserError
from escdiff.support.files import make_folder

Out = Annotated[Path, typer.Option(help="Folder for pictures, table and sheet; made if missing.")]
Quick = Annotated[bool, typer.Option("--quick", help="8 cases in few steps: minutes on two cores.")]
Methods = Annotated[str, typer.Option(help="Some of the table's rows, with commas; or all.")]
Count = Annotated[int, typer.Option(min=0, help="Cases; 0 means 60, or 8 with --quick.")]
Encoder = Annotated[Path | None, typer.Option(help="Folder of the concept encoder; else the bundled one.")]
BackboneName = Annotated[str, typer.Option(help="mini, a diffusers folder or a hub id.")]
Oracle = Annotated[Path | None, typer.Option(help="Folder of the oracle; else the bundled one.")]
Steps = Annotated[int, typer.Option(min=0, help="Sampling steps; 0 means 25, or 8 with --quick.")]
Guidance = Annotated[float, typer.Option(min=0, help="Classifier-free guidance scale.")]
Seed = Annotated[int, typer.Option(min=0, help="Another seed asks for other cases.")]


def edits(
    out: Out, quick: Quick = False, methods: Methods = "all",
    instruct: Annotated[Path | None, typer.Option(help="Folder of an InstructPix2Pix; left out without.")] = None,
    count: Count = 0, encoder: Encoder = None, backbone: BackboneName = "mini", oracle: Oracle = None,
    steps: Steps = 0, guidance: Guidance = 3.0, seed: Seed = 0,
) -> None:  # fmt: skip
    """Edit Still Life pictures with every method and compare with the renderer's own edit.

    Writes edits.md, edits.png and edits.json. Stop it and start it again as you like: finished methods are kept.
    """
    from escdiff.evaluation.editing.edits import EDITS

    _run(EDITS, {"instruct_pix2pix": instruct}, out, quick, methods, count, encoder, backbone, oracle, steps, guidance,
         seed)  # fmt: skip


def places(
    out: Out, anydoor: Annotated[Path, typer.Option(help="Folder of an AnyDoor.")], quick: Quick = False,
    methods: Methods = "all", count: Count = 0, backbone: BackboneName = "mini", oracle: Oracle = None,
    steps: Steps = 0, guidance: Guidance = 3.0, seed: Seed = 0,
) -> None:  # fmt: skip
    """Put Still Life objects into scenes and compare with the renderer's own picture.

    Writes places.md, places.png and places.json; it goes on as `edits` does.
    """
    from escdiff.evaluation.editing.places import PLACES

    _run(PLACES, {"anydoor": anydoor}, out, quick, methods, count, None, backbone, oracle, steps, guidance, seed)


def steering(
    out: Out, quick: Quick = False, methods: Methods = "all", count: Count = 0, backbone: BackboneName = "mini",
    oracle: Oracle = None, steps: Steps = 0, guidance: Guidance = 3.0, seed: Seed = 0,
) -> None:  # fmt: skip
    """Paint two things of different colours under every control, and under a null of random directions.

    Writes steering.md, steering.png and steering.json; it goes on as `edits` does.
    """
    from escdiff.evaluation.editing.steering import STEERING

    _run(STEERING, {}, out, quick, methods, count, None, backbone, oracle, steps, guidance, seed)


COMMANDS = (edits, places, steering)


def _run(
    task, trained: dict[str, Path | None], out: Path, quick: bool, methods: str, count: int, encoder: Path | None,
    backbone: str, oracle: Path | None, steps: int, guidance: float, seed: int,
) -> None:  # fmt: skip
    from escdiff.evaluation.bench.models import Models
    from escdiff.evaluation.editing.run import EditBench
    from escdiff.evaluation.editing.tools import Tools
    from escdiff.support.logging import quiet_libraries

    quiet_libraries()
    names = task.choose(methods, [name for name, folder in trained.items() if folder is None])
    for name, folder in trained.items():
        if folder is not None and not folder.is_dir():
            raise UserError(f"{folder} is no folder; give what the training of {name} wrote")
    make_folder(out)
    reads = "attribute_transfer" in names
    models = Models.load(backbone, encoder, oracle, reads, steps or (8 if quick else 25), guidance)
    tools = Tools(models, {name: folder for name, folder in trained.items() if folder is not None})
    bench = EditBench(task, tools, out, names, count or (8 if quick else 60), seed)
    bench.run(shlex.join(["python", "-m", "escdiff.evaluation", *sys.argv[1:]]))
    typer.echo(f"{out / task.name}.md, {out / task.name}.png")
