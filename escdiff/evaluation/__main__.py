"""The commands of the evaluation: `python -m escdiff.evaluation esc-bench --out DIR`, `compare --out DIR`."""

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from escdiff.evaluation.choices import choose
from escdiff.evaluation.comparison.scenes import command as scene_comparison
from escdiff.evaluation.editing import command as editing
from escdiff.evaluation.protocols import commands as doors
from escdiff.support.doors import open_door
from escdiff.support.errors import UserError
from escdiff.support.files import make_folder, write_json

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@app.callback()
def _callback() -> None:
    """Measure the model and the concept encoder."""


@app.command("esc-bench")
def esc_bench(
    out: Annotated[Path, typer.Option(help="Folder for figures, report and pictures; made if missing.")],
    quick: Annotated[bool, typer.Option("--quick", help="Fewer pictures: minutes on two cores.")] = False,
    encoder: Annotated[Path | None, typer.Option(help="Folder of the concept encoder; else the bundled one.")] = None,
    backbone: Annotated[str, typer.Option(help="mini, a diffusers folder or a hub id.")] = "mini",
    oracle: Annotated[Path | None, typer.Option(help="Folder of the oracle; else the bundled one.")] = None,
    scene_oracle: Annotated[
        Path | None, typer.Option(help="Folder of the judge of scenes; else the bundled one, if there is one.")
    ] = None,
    tasks: Annotated[str, typer.Option(help="Such as text,both; what they need is run too.")] = "all",
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 20,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance scale; 1 switches it off.")] = 3.0,
    seed: Annotated[int, typer.Option(help="Another seed asks for other pictures.")] = 0,
) -> None:
    """Paint Still Life pictures from words and concepts and let the oracle judge them.

    Writes metrics.json, run.json, report.md and report.html, one page that needs nothing else. Stop it and start it
    again as you like: finished tasks are kept.
    """
    checks = {"--steps": steps >= 1, "--seed": seed >= 0, "--guidance": guidance >= 0}
    for option, fine in checks.items():
        if not fine:
            problem = f"{option} is {locals()[option.removeprefix('--')]}"
            raise UserError(f"{problem}; give at least {1 if option == '--steps' else 0}")
    make_folder(out)
    from escdiff.evaluation.bench.tasks import TASKS, in_order

    names = choose("--tasks", tasks, TASKS)
    from escdiff.evaluation.bench.models import Models
    from escdiff.evaluation.bench.run import Bench
    from escdiff.support.logging import quiet_libraries

    quiet_libraries()
    concepts = any(TASKS[name].needs_encoder for name in in_order(names))
    models = Models.load(backbone, encoder, oracle, concepts, steps, guidance, scene_oracle)
    Bench(models, out, quick, seed).run(names, shlex.join(sys.argv))
    typer.echo(f"{out / 'report.html'}, {out / 'metrics.json'}")


@app.command("compare")
def compare(
    out: Annotated[Path, typer.Option(help="Folder for concepts, pictures, table and figure; made if missing.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="3 references and few steps: 20 minutes on two cores.")
    ] = False,
    methods: Annotated[str, typer.Option(help="Such as escdiff,xti; or all.")] = "all",
    references: Annotated[int, typer.Option(help="How many; 0 means 20, or 3 with --quick.")] = 0,
    pictures: Annotated[int, typer.Option(help="Per reference and task.")] = 2,
    scale: Annotated[float, typer.Option(help="Of all steps of optimisation and learning.")] = 1.0,
    split: Annotated[str, typer.Option(help="Of methods that only know a whole: hand, or gates (ESCDiff's).")] = "hand",
    data: Annotated[str, typer.Option(help="Still Life folder to learn encoders from; rendered if missing.")] = "",
    encoder: Annotated[Path | None, typer.Option(help="Folder of the concept encoder; else the bundled one.")] = None,
    backbone: Annotated[str, typer.Option(help="mini, a diffusers folder or a hub id.")] = "mini",
    oracle: Annotated[Path | None, typer.Option(help="Folder of the oracle; else the bundled one.")] = None,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 20,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance scale; 1 switches it off.")] = 3.0,
    seed: Annotated[int, typer.Option(help="Another seed asks for other references and pictures.")] = 0,
) -> None:
    """Customize with every method on the same references, paint the same prompts, and write one table.

    Writes comparison.md, comparison.svg, comparison.png and comparison.json. Stop it and start it again as you like:
    finished concepts and pictures are kept.
    """
    least = {"--references": (references, 0), "--pictures": (pictures, 1), "--steps": (steps, 1), "--seed": (seed, 0)}
    for option, (value, low) in least.items():
        if value < low:
            raise UserError(f"{option} is {value}; give at least {low}")
    if not 0 < scale <= 100:
        raise UserError(f"--scale is {scale:g}; give a number above 0, such as 0.5")
    count = references or (3 if quick else 20)
    if count < 2:
        raise UserError(f"--references is {count}; give at least 2, since pairs of them are mixed")
    from escdiff.evaluation.comparison.contenders import choose
    from escdiff.evaluation.comparison.report import SPLITS

    if split not in SPLITS:
        raise UserError(f"--split is {split}; give {' or '.join(SPLITS)}")
    chosen = choose(methods)
    from escdiff.evaluation.bench.models import Models
    from escdiff.evaluation.comparison.customize import learning_data
    from escdiff.evaluation.comparison.run import Comparison
    from escdiff.support.logging import quiet_libraries

    quiet_libraries()
    make_folder(out)
    models = Models.load(backbone, encoder, oracle, True, steps, guidance)
    root, samples = learning_data(data, out, quick, (2_000, 20_000))
    encoder_folder = str(encoder) if encoder else None
    comparison = Comparison(
        models, out, chosen, count, pictures, seed, quick, scale, split, root, samples, encoder_folder
    )
    comparison.run(f"python -m escdiff.evaluation {shlex.join(sys.argv[1:])}")
    typer.echo(f"{out / 'comparison.md'}, {out / 'comparison.svg'}")


@app.command()
def ablations(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of the encoder's training, or a sweep's folder.")],
    out: Annotated[Path, typer.Option(help="Markdown file to write.")] = Path("docs/ablations.md"),
    by: Annotated[
        str, typer.Option(help="What is judged: pictures (of a short ESC-Bench), or reading, which paints nothing.")
    ] = "pictures",
    questions: Annotated[int, typer.Option(min=2, help="With --by reading: references.")] = 200,
    backbone: Annotated[str, typer.Option(help="mini, a diffusers folder or a hub id.")] = "mini",
    oracle: Annotated[Path | None, typer.Option(help="Folder of the oracle; else the bundled one.")] = None,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 20,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance scale; 1 switches it off.")] = 3.0,
) -> None:
    """One table of many trained encoders, each judged by a short ESC-Bench that is kept in its run folder.

    With --by reading nothing is painted: the table says which of 8 namesakes each encoder tells. Its pictures are
    rendered first, in a few minutes; an encoder then takes seconds.
    """
    if by not in ("pictures", "reading"):
        raise UserError(f"--by is {by}; give pictures or reading")
    from escdiff.backbone import load_backbone
    from escdiff.encoder import ConceptEncoder
    from escdiff.evaluation.bench.models import Models
    from escdiff.evaluation.bench.run import Bench, Metrics
    from escdiff.evaluation.studies import reading
    from escdiff.evaluation.studies.ablations import BY_PICTURES, TASKS, Judging, find_runs, tabulate
    from escdiff.support.logging import quiet_libraries

    quiet_libraries()
    found = find_runs(runs)

    def paint(encoder: Path) -> Metrics:
        models = Models.load(backbone, encoder, oracle, True, steps, guidance)
        return Bench(models, encoder.parent / "esc-bench", quick=True).run(TASKS, shlex.join(sys.argv))

    if by == "pictures":
        judging = Judging(*BY_PICTURES, paint)
    else:
        read = reading.Reading(load_backbone(backbone).prompts, questions)
        judging = Judging(*reading.BY_READING, lambda folder: read(ConceptEncoder.from_pretrained(folder)))
    tabulate(found, judging, out, shlex.join(["python", "-m", "escdiff.evaluation", *sys.argv[1:]]))
    typer.echo(out)


@app.command()
def layers(
    out: Annotated[Path, typer.Option(help="Folder for layers.png and layers.json; made if missing.")],
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of descriptions per number of layers.")] = 64,
    encoder: Annotated[Path | None, typer.Option(help="Folder of the concept encoder; else the bundled one.")] = None,
    backbone: Annotated[str, typer.Option(help="mini, a diffusers folder or a hub id.")] = "mini",
    oracle: Annotated[Path | None, typer.Option(help="Folder of the oracle; else the bundled one.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 20,
    guidance: Annotated[float, typer.Option(min=1.01, help="Classifier-free guidance scale.")] = 3.0,
    seed: Annotated[int, typer.Option(min=0, help="Another seed asks for other pictures.")] = 0,
    clip: Annotated[
        str | None,
        typer.Option(help="Judge any backbone, transformers too, by this CLIP alone: mini, a folder or a hub id."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the backbone with --clip: float32, bfloat16, float16.")] = "float32",
    device: Annotated[str, typer.Option(help="Of the backbone with --clip: auto, cpu or cuda.")] = "auto",
) -> None:
    """Measure which layers carry the shape and which the appearance, by descriptions split over the layers (P+)."""
    from escdiff.backbone import load_backbone, pick_device, pick_dtype, read_blueprint
    from escdiff.evaluation.bench.models import Models
    from escdiff.evaluation.metrics.features import load_clip
    from escdiff.evaluation.studies.layers import draw_figure, split_prompts
    from escdiff.evaluation.studies.lent_layers import split_texts
    from escdiff.support.logging import quiet_libraries

    quiet_libraries()
    plan = read_blueprint(backbone)
    if clip is None and plan.family.reading is not None:
        raise UserError(f"the backbone {backbone!r} is a transformer, whose pictures CLIP judges; give --clip, such as "
                        "openai/clip-vit-large-patch14 or a folder")  # fmt: skip
    make_folder(out)
    if clip is None:
        models = Models.load(backbone, encoder, oracle, True, steps, guidance)
        split, model = split_prompts(models, pairs, seed), models.backbone
        gates = {attribute: gate.detach().cpu() for attribute, gate in models.encoder.gates().items()}
    else:
        judge = load_clip(clip)
        model = load_backbone(plan, pick_dtype(dtype, "--dtype"), pick_device(device))
        split, gates = split_texts(model, judge, pairs, seed, steps, guidance), None
    write_json(out / "layers.json", asdict(split))
    draw_figure(split, gates, [names[0] for names in model.p_plus().cells], out / "layers.png")
    typer.echo(f"{out / 'layers.png'}, {out / 'layers.json'}")


@app.command()
def curves(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders of `python train.py`, in the order they were run; a CSV stands for earlier ones."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Picture to write.")] = Path("curves.png"),
) -> None:
    """Training curves, one panel per recipe, and a CSV beside; runs that went on from each other make one curve."""
    from escdiff.evaluation.studies.curves import draw_curves

    draw_curves(runs, out)
    typer.echo(out)


@app.command()
def judge(
    out: Annotated[Path, typer.Option(help="Markdown file to write; a JSON file of its name goes beside.")] = Path(
        "docs/judge.md"
    ),
    pictures: Annotated[int, typer.Option(min=10, help="Per figure.")] = 1000,
    oracle: Annotated[Path | None, typer.Option(help="Folder of the oracle; else the bundled one.")] = None,
    scene_oracle: Annotated[Path | None, typer.Option(help="Folder of the judge of scenes; else the bundled.")] = None,
    vae: Annotated[Path | None, typer.Option(help="Folder with the VAE in vae/; else the bundled model.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed asks for other pictures.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that render line-ups.")] = 0,
) -> None:
    """Examine the judges on fresh renders and through the VAE, and whether background, light and yaw fool them."""
    from escdiff.backbone import mini_folder
    from escdiff.evaluation.studies.judge import examine
    from escdiff.evaluation.studies.judge_page import write_verdict
    from escdiff.mini.oracle import Oracle
    from escdiff.mini.recipes.oracle import reconstruction
    from escdiff.mini.scene_oracle import SceneOracle
    from escdiff.support.logging import quiet_libraries

    quiet_libraries()
    make_folder(out.parent)
    reader, scenes = Oracle.from_pretrained(oracle), SceneOracle.find(scene_oracle)
    if scenes is None:
        typer.echo("scenes, poses and faces are left out: there is no scene oracle", err=True)
    verdict = examine(reader, scenes, reconstruction(vae or mini_folder()), pictures, seed, workers)
    write_verdict(verdict, out, {"command": shlex.join(["python", "-m", "escdiff.evaluation", *sys.argv[1:]])})
    typer.echo(f"{out}, {out.with_suffix('.json')}")


for command in (*doors.COMMANDS, *editing.COMMANDS, *scene_comparison.COMMANDS):
    app.command(command.__name__)(command)


def main() -> None:
    """The command `python -m escdiff.evaluation`."""
    open_door(app)


if __name__ == "__main__":
    main()
