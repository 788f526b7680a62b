"""`python -m escdiff.evaluation scenes --out DIR`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from escdiff.evaluation.choices import choose
from escdiff.support.files import make_folder


def scenes(
    out: Annotated[Path, typer.Option(help="Folder for concepts, pictures and tables; made if missing.")],
    quick: Annotated[bool, typer.Option("--quick", help="2 cases and few steps: minutes on two cores.")] = False,
    tasks: Annotated[
        str, typer.Option(help="Some of several, compose, relation, action, identity, with commas; or all.")
    ] = "all",
    cases: Annotated[int, typer.Option(min=0, help="Per task; 0 means 20, or 2 with --quick.")] = 0,
    pictures: Annotated[int, typer.Option(min=1, help="Per case.")] = 3,
    scale: Annotated[float, typer.Option(min=0.001, max=100, help="Of all steps of optimisation and learning.")] = 1.0,
    data: Annotated[str, typer.Option(help="Still Life folder to learn encoders from; rendered if missing.")] = "",
    encoder: Annotated[Path | None, typer.Option(help="Folder of the concept encoder; else the bundled one.")] = None,
    backbone: Annotated[str, typer.Option(help="mini, a diffusers folder or a hub id.")] = "mini",
    oracle: Annotated[Path | None, typer.Option(help="Folder of the oracle; else the bundled one.")] = None,
    scene_oracle: Annotated[
        Path | None, typer.Option(help="Folder of the judge of scenes; else the bundled one, if there is one.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 20,
    guidance: Annotated[float, typer.Option(min=0, help="Classifier-free guidance scale.")] = 3.0,
    seed: Annotated[int, typer.Option(min=0, help="Another seed asks for other cases.")] = 0,
) -> None:
    """Learn things, relations, actions and faces with every method, and paint with them.

    Writes scenes.md, scenes.json and a sheet of each task. Stop it and start it again as you like: finished concepts
    and pictures are kept. Without a judge of scenes there are pictures and no scores.
    """
    from escdiff.evaluation.comparison.scenes.contenders import CONTENDERS

    names = choose("--tasks", tasks, CONTENDERS)
    from escdiff.evaluation.bench.models import Models
    from escdiff.evaluation.comparison.customize import learning_data
    from escdiff.evaluation.comparison.scenes.run import SceneComparison
    from escdiff.support.logging import quiet_libraries

    quiet_libraries()
    make_folder(out)
    models = Models.load(backbone, encoder, oracle, True, steps, guidance, scene_oracle)
    chosen = {name: CONTENDERS[name] for name in names}
    root, samples = learning_data(data, out, quick, (500, 8_000))
    count = cases or (2 if quick else 20)
    comparison = SceneComparison(models, out, chosen, count, pictures, seed, quick, scale, root, samples)
    comparison.run(f"python -m escdiff.evaluation {shlex.join(sys.argv[1:])}")
    typer.echo(out / "scenes.md")


COMMANDS = (scenes,)
