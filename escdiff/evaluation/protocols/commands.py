"""`python -m escdiff.evaluation dreambench | dreambench_plus | omnicontext | ...`: the field's protocols, and runs."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from escdiff.support.files import make_folder

Out = Annotated[Path, typer.Option(help="Folder for pictures, figures and report; made if missing.")]
BackboneName = Annotated[str, typer.Option(help="mini, sd15, another of configs/backbone, a folder or a hub id.")]
Encoder = Annotated[Path | None, typer.Option(help="Folder of the concept encoder; else the bundled one.")]
Concepts = Annotated[Path | None, typer.Option(help="Folder of concept files by subject, in the encoder's place.")]
Metrics = Annotated[str, typer.Option(help="standard, full, mini, or a YAML file; see configs/eval.")]
Masks = Annotated[str, typer.Option(help="none, plain (plain backgrounds), or a segmentation model.")]
Images = Annotated[int, typer.Option(min=1, help="Pictures per subject and prompt.")]
Steps = Annotated[int, typer.Option(min=1, help="DDIM steps.")]
Guidance = Annotated[float | None, typer.Option(min=0, help="Guidance scale; else the backbone's own.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the first picture of each prompt; the next ones count on.")]
Reference = Annotated[int, typer.Option(min=0, help="Number of the picture that concepts are read from.")]
Swap = Annotated[bool, typer.Option("--swap", help="Also the shape of each subject in the next one's appearance.")]
Shard = Annotated[str, typer.Option(help="Such as 2/8: the second of eight processes over one --out.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures painted at once.")]
Judge = Annotated[str, typer.Option(help="none, openai:MODEL (see docs/evaluation.md) or transformers:FOLDER.")]
Questions = Annotated[
    str, typer.Option("--rubrics", help="What the judge is asked: see configs/judge, or a YAML file.")
]
Answers = Annotated[int | None, typer.Option(min=1, help="Stop after so many new answers of the judge.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]


def dreambench(
    data: Annotated[Path, typer.Argument(help="The repository of DreamBooth's data, or its dataset/ folder.")],
    out: Out, backbone: BackboneName = "sd15", encoder: Encoder = None, concepts: Concepts = None,
    metrics: Metrics = "standard", masks: Masks = "none", images: Images = 4, steps: Steps = 50,
    guidance: Guidance = None, seed: Seed = 0, reference: Reference = 0, swap: Swap = False, shard: Shard = "1/1",
    batch_size: BatchSize = 4, device: Device = "auto", judge: Judge = "none", rubrics: Questions = "dreambench_plus",
    max_answers: Answers = None,
) -> None:  # fmt: skip
    """DreamBench: 30 subjects, 25 prompts, 4 pictures each, one reference.

    Stop it and start it again as you like: painted pictures are kept.
    """
    _run("dreambench", **locals())


def dreambench_plus(
    data: Annotated[Path, typer.Argument(help="The data/ folder of DreamBench++.")],
    out: Out, backbone: BackboneName = "sd15", encoder: Encoder = None, concepts: Concepts = None,
    metrics: Metrics = "standard", masks: Masks = "none", images: Images = 1, steps: Steps = 100,
    guidance: Guidance = None, seed: Seed = 42, reference: Reference = 0, swap: Swap = False, shard: Shard = "1/1",
    batch_size: BatchSize = 4, device: Device = "auto", judge: Judge = "none", rubrics: Questions = "dreambench_plus",
    max_answers: Answers = None,
) -> None:  # fmt: skip
    """DreamBench++: 150 pictures, 9 prompts, 1 painting each, for a vision-language model to judge (--judge)."""
    _run("dreambench_plus", **locals())


def omnicontext(
    data: Annotated[Path, typer.Argument(help="OmniContext: its parquet files, or metadata.jsonl and pictures.")],
    out: Out, backbone: BackboneName = "sd15", encoder: Encoder = None, concepts: Concepts = None,
    metrics: Metrics = "standard", images: Images = 1, steps: Steps = 50, guidance: Guidance = None, seed: Seed = 0,
    shard: Shard = "1/1", batch_size: BatchSize = 4, device: Device = "auto", judge: Judge = "none",
    rubrics: Questions = "omnicontext", max_answers: Answers = None,
) -> None:  # fmt: skip
    """The pairs of OmniContext: two references in one picture, for a vision-language model to judge (--judge)."""
    _run("omnicontext", masks="none", reference=0, swap=False, **locals())


def agreement(
    ratings: Annotated[Path, typer.Argument(help="DreamBench++'s data_human_rating/ folder.")],
    out: Out,
    samples: Annotated[Path | None, typer.Option(help="Its samples/, for the judge to rate what people rated.")] = None,
    judge: Judge = "none", rubrics: Questions = "dreambench_plus", max_answers: Answers = None, device: Device = "auto",
) -> None:  # fmt: skip
    """How far people agree with each other, and a judge with them, on the pictures that DreamBench++ had rated."""
    from escdiff.backbone import pick_device
    from escdiff.evaluation.protocols.people import compare
    from escdiff.evaluation.vlm.build import make_panel

    make_folder(out)
    compare(ratings, samples, make_panel(judge, rubrics, out, max_answers, pick_device(device)), out, _command())
    typer.echo(f"{out / 'agreement.md'}, {out / 'agreement.json'}")


def p_plus(
    data: Annotated[Path, typer.Argument(help="A folder of pictures per concept; classes.txt: lines name,class.")],
    out: Out, backbone: BackboneName = "sd15", encoder: Encoder = None, concepts: Concepts = None,
    metrics: Metrics = "standard", masks: Masks = "none", images: Images = 4, steps: Steps = 50,
    guidance: Guidance = None, seed: Seed = 0, reference: Reference = 0, swap: Swap = False, shard: Shard = "1/1",
    batch_size: BatchSize = 4, device: Device = "auto", judge: Judge = "none", rubrics: Questions = "dreambench_plus",
    max_answers: Answers = None,
) -> None:  # fmt: skip
    """The set-up of P+ (arXiv 2303.09522): concepts in changed scenes and styles, CLIP-T against DINO."""
    _run("p_plus", **locals())


def folder(
    data: Annotated[Path, typer.Argument(help="Pictures, or a folder of them per subject.")],
    prompts: Annotated[Path, typer.Option(help="One a line, with {}, <concept>, <shape> or <appearance>.")],
    out: Out, backbone: BackboneName = "mini", encoder: Encoder = None, concepts: Concepts = None,
    metrics: Metrics = "mini", masks: Masks = "plain", images: Images = 4, steps: Steps = 50,
    guidance: Guidance = None, seed: Seed = 0, reference: Reference = 0, swap: Swap = False, shard: Shard = "1/1",
    batch_size: BatchSize = 4, device: Device = "auto", judge: Judge = "none", rubrics: Questions = "dreambench_plus",
    max_answers: Answers = None,
) -> None:  # fmt: skip
    """Any references with any prompts."""
    _run("folder", **locals())


def runs(
    folders: Annotated[list[Path], typer.Argument(help="Folders of the same protocol or ESC-Bench, the first ours.")],
    out: Out,
) -> None:
    """Several runs side by side, with paired differences from the first and their significance."""
    from escdiff.evaluation.report.runs import compare_runs

    make_folder(out)
    compare_runs(folders, out, shlex.join(sys.argv))
    typer.echo(f"{out / 'runs.html'}, {out / 'runs.md'}")


COMMANDS: Sequence = (dreambench, dreambench_plus, omnicontext, p_plus, folder, agreement, runs)


def _command() -> str:
    return shlex.join(["python", "-m", "escdiff.evaluation", *sys.argv[1:]])


def _run(
    name: str, data: Path, out: Path, backbone: str, encoder: Path | None, concepts: Path | None, metrics: str,
    masks: str, images: int, steps: int, guidance: float | None, seed: int, reference: int, swap: bool, shard: str,
    batch_size: int, device: str, judge: str, rubrics: str, max_answers: int | None, prompts: Path | None = None,
) -> None:  # fmt: skip
    from escdiff.backbone import pick_device
    from escdiff.evaluation.metrics.build import read_metrics
    from escdiff.evaluation.protocols.cases import PAIR, PROMPTS, REAL, SWAP, check_swap
    from escdiff.evaluation.protocols.dreambench_plus import read_dreambench_plus
    from escdiff.evaluation.protocols.omnicontext import read_omnicontext
    from escdiff.evaluation.protocols.painter import Painter
    from escdiff.evaluation.protocols.run import Run, parse_shard
    from escdiff.evaluation.protocols.subjects import read_dreambench, read_folder, read_p_plus, read_prompts
    from escdiff.evaluation.vlm.build import make_panel
    from escdiff.support.logging import quiet_libraries

    quiet_libraries()
    device, part, lines = pick_device(device), parse_shard(shard), read_metrics(metrics)
    read = {"dreambench": read_dreambench, "dreambench_plus": read_dreambench_plus, "p_plus": read_p_plus}
    read["omnicontext"] = lambda data: read_omnicontext(data, out / "pictures" / "references")
    read["folder"] = lambda data: read_folder(data, read_prompts(prompts))
    subjects = read[name](data)
    if swap:
        check_swap(subjects)  # before models are read
    make_folder(out)
    panel = make_panel(judge, rubrics, out, max_answers, device)
    tasks = (PAIR,) if name == "omnicontext" else (REAL, PROMPTS, SWAP) if swap else (REAL, PROMPTS)
    painter = Painter.load(backbone, encoder, concepts, steps, guidance, batch_size, device)
    run = Run(name, subjects, painter, out, lines, masks, images, seed, reference, tasks, part, device, panel)
    if run.run(_command()) is None:
        typer.echo(f"{shard} is done; whichever process ends last writes {out / 'report.html'}")
    else:
        typer.echo(f"{out / 'report.html'}, {out / 'metrics.json'}")
