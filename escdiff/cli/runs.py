"""`python -m escdiff.cli.runs FOLDER`: the runs of a sweep as one table, the best first."""

import sys
from collections.abc import Sequence
from pathlib import Path

from escdiff.cli.door import door
from escdiff.support.config.keys import leaves
from escdiff.support.errors import UserError
from escdiff.support.files import write_atomic

HELP = """The runs in a folder, as a Markdown table: what differs between them, how far they are, and their metrics.

  python -m escdiff.cli.runs outputs/sweeps/encoder [metric=val/loss] [highest=true] [out=FILE.md]
"""
OWN = ("run_id", "run_dir", "sweep_dir", "export")  # differ in every run
THROUGHPUT = "throughput/samples_per_s"


def tabulate(folder: Path, metric: str, highest: bool) -> str:
    """The table.

    Raises:
        UserError: no run in the folder.
    """
    import yaml

    from escdiff.training.loop.run_folder import RunFolder

    runs = []
    for path in sorted(folder.glob("[!.]*/manifest.json")):
        run = RunFolder(path.parent)
        try:
            config = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"{run.path} is no whole run folder ({error}); delete it or run its command") from None
        about, lines = run.manifest(), run.lines()
        step = about.get("step", lines[-1]["step"] + 1 if lines else 0)
        runs.append((leaves(config), about.get("status", ""), step, run.metric(metric), run.metric(THROUGHPUT)))
    if not runs:
        raise UserError(f"no run in {folder}; give the folder of a sweep, such as outputs/sweeps/encoder")
    keys = sorted({key for config, *_ in runs for key in config if not key.startswith(OWN)})
    varied = [key for key in keys if len({repr(config.get(key)) for config, *_ in runs}) > 1]
    runs.sort(key=lambda run: (run[3] is None, (run[3] or 0.0) * (-1 if highest else 1)))
    head = [*(varied or ["run"]), "status", "step", metric, "samples/s"]
    rows = [
        [*(str(config.get(key)) for key in varied or ["run_id"]), status, str(step), number(value), number(rate)]
        for config, status, step, value, rate in runs
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]) + "\n"


def number(value: float | None) -> str:
    """A figure in four digits; empty for none."""
    return "" if value is None else f"{value:.4g}"


def _main(argv: Sequence[str]) -> None:
    options = dict(argument.split("=", 1) for argument in argv if "=" in argument)
    folders = [argument for argument in argv if "=" not in argument]
    if len(folders) != 1 or set(options) - {"metric", "highest", "out"}:
        raise UserError(f"arguments {' '.join(argv)!r} given; expected one folder, see --help")
    metric, highest = options.get("metric", "val/loss"), options.get("highest", "") == "true"
    table = tabulate(Path(folders[0]).expanduser(), metric, highest)
    if out := options.get("out"):
        write_atomic(Path(out).expanduser(), table)
    sys.stdout.write(table)


if __name__ == "__main__":
    door(_main, lambda: HELP)
