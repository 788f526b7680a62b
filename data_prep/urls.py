"""Lists of addresses: img2dataset fetches them into webdataset shards, which are then ingested like any others.

img2dataset is a program of its own here, since it needs an older webdataset than this project.
"""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from data_prep.dataset import LEFT_OUT, Reject, Run
from data_prep.sources import Plan, Tar, shards_plan
from escdiff.data.pictures import expand
from escdiff.support.errors import UserError
from escdiff.support.files import make_folder
from escdiff.support.optional import need

FOLDER = ".fetched"  # in the new dataset's folder
KINDS = {".txt": "txt", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet"}
THREADS = 32  # per process; fetching waits for the network


def fetched_plan(source: Path, out: Path, shard_size: int, program: str, run: Run) -> Plan | None:
    """Fetch the pictures of a list and return the jobs for what came; None after a dry run.

    Whole shards that an earlier run fetched are kept. What did not come goes to quarantine as left out.

    Raises:
        UserError: no such list or program, or it failed.
    """
    source, out = expand(source), expand(out)
    command = fetch_command(source, out / FOLDER, shard_size, program, run)
    if run.dry:
        typer.echo(f"ingest: fetch with {shlex.join(command)}")
        return None
    make_folder(out)
    (out / FOLDER).mkdir(exist_ok=True)
    done = out / FOLDER / "done.json"
    if _stamp(done) != [str(source), source.stat().st_size, shard_size]:
        quiet = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}  # else it asks the network for news of itself
        if subprocess.run(command, env=quiet).returncode:
            raise UserError(f"img2dataset failed on {source}; see its messages above, then give the same command again")
        done.write_text(json.dumps([str(source), source.stat().st_size, shard_size]), encoding="utf-8")
    tars = sorted((out / FOLDER).glob("*.tar"))
    if not tars:
        raise UserError(f"none of the addresses in {source} could be fetched; see the reports in {out / FOLDER}")
    need("pyarrow.parquet", "reading img2dataset's reports")
    plan = shards_plan(tars)
    return replace(plan, jobs=[replace(job, source=Fetched(job.source.first, job.source.path)) for job in plan.jobs])


@dataclass(frozen=True)
class Fetched(Tar):
    """A shard that img2dataset wrote, with its report of what did not come."""

    def candidates(self) -> Iterator[dict[str, Any] | Reject]:
        parquet = need("pyarrow.parquet", "reading img2dataset's reports")
        for row in parquet.read_table(Path(self.path).with_suffix(".parquet")).to_pylist():
            if row.get("status") != "success":
                yield Reject(str(row.get("key", "?")), f"not fetched: {row.get('error_message')}", LEFT_OUT, row["url"])
        for candidate in super().candidates():
            if isinstance(candidate, dict):
                candidate["meta"]["source"] = candidate["meta"].get("url") or candidate["meta"]["source"]
            yield candidate


def fetch_command(source: Path, out: Path, shard_size: int, program: str, run: Run) -> list[str]:
    """The call of img2dataset: originals as they are, no resizing, unfinished shards again.

    Raises:
        UserError: the list's kind is unknown, or the program is not there.
    """
    if not source.is_file() or source.suffix.lower() not in KINDS:
        raise UserError(f"{source} is no list of addresses; give a {', '.join(KINDS)} file with a column `url`")
    if shutil.which(program) is None:
        hint = "install it apart, e.g. `pipx install img2dataset`, or name it with --fetcher"
        raise UserError(f"--urls needs the program img2dataset, and {program} is not one; {hint}")
    kind = KINDS[source.suffix.lower()]
    workers = max(run.engine.workers, 1)
    options = {
        "url_list": source, "output_folder": out, "input_format": kind, "output_format": "webdataset",
        "resize_mode": "no", "skip_reencode": True, "processes_count": workers, "thread_count": THREADS,
        "number_sample_per_shard": shard_size, "incremental_mode": "incremental", "retries": 2,
        "enable_wandb": False, "max_image_area": 64_000_000,
    }  # fmt: skip
    if kind != "txt":
        options |= {"url_col": "url", **_columns(source)}
    return [program, *(f"--{name}={value}" for name, value in options.items())]


def _columns(source: Path) -> dict[str, str]:
    """Options of img2dataset for the list's columns: the caption's, and those kept besides."""
    from data_prep.lists import NAMES, read_rows

    first = next(iter(read_rows(source)), {})
    if "url" not in first:
        raise UserError(f"{source} has the columns {', '.join(first)}; expected one named url")
    captions = [name for name in first if NAMES.get(name, name) == "caption"][:1]
    columns = [name for name in first if name not in ("url", *captions)]
    options = {"save_additional_columns": json.dumps(columns)} if columns else {}
    return {**({"caption_col": captions[0]} if captions else {}), **options}


def _stamp(path: Path) -> list | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
