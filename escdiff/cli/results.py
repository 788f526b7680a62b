"""The folder that `python infer.py` leaves behind: what it made now, and beside it, untouched, what it made before."""

import hashlib
import json
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import count
from pathlib import Path

import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open

from escdiff import __version__
from escdiff.backbone import pick_dtype
from escdiff.concept import Concept
from escdiff.data.pictures import distinct_names
from escdiff.support.config.infer import InferConfig
from escdiff.support.errors import UserError
from escdiff.support.picture_grid import picture_grid

PER_ROW = 4
LONGEST = 100  # bytes of a file's stem: file systems take 143 to 255 of a whole name
FORBIDDEN = '/\\:*?"<>|'  # somewhere, in a file's name
RUN, EARLIER = ("run.json", "grid.png", "picture-*.png"), "earlier-{:03d}"


def write_results(
    config: InferConfig, references: Mapping[str, Image.Image], concepts: Mapping[str, Concept], prompts: Sequence[str],
    painted: Sequence[Image.Image], columns: Sequence[str], seconds,
) -> Path:  # fmt: skip
    """Write grid.png, picture-NNN.png, the concepts and run.json; returns the folder.

    An earlier run's pictures, grid and run.json go into `earlier-NNN/`. Concept files stay where they are, since people
    name them; a concept with other contents under the same name is `NAME-2.safetensors`.

    Args:
        references: name -> picture. concepts: name -> concept, names as of `file_stem`.
        painted: row by row; with `columns`, each row is the reference and what was made of it, else the first
            row of the grid holds the references.
        seconds: `escdiff.cli.infer.Seconds`.

    Raises:
        UserError: the folder cannot be written any more.
    """
    out = Path(config.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=out) as place:
            new = Path(place)
            with seconds.phase("write"):
                for i, picture in enumerate(painted):
                    picture.save(new / f"picture-{i:03d}.png")
                grid(references, painted, columns).save(new / "grid.png")
                dtype = pick_dtype(config.concept_dtype, "concept_dtype")
                names = [_keep_concept(concept, out, stem, new, dtype) for stem, concept in concepts.items()]
            about = {
                "seconds": dict(seconds), "pictures": len(painted), "prompts": list(dict.fromkeys(prompts)),
                "concepts": names, "config": asdict(config),
                "versions": {"escdiff": __version__, "python": platform.python_version(),
                             **{name: version(name) for name in ("torch", "diffusers", "transformers")}},
            }  # fmt: skip
            # What no encoding can say, such as the bytes of a file's name in another one, becomes JSON's own escapes.
            text = json.dumps(about, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace")
            (new / "run.json").write_bytes(text + b"\n")
            _put_aside(out)
            for path in sorted(new.iterdir()):
                path.replace(out / path.name)
    except OSError as error:
        raise UserError(
            f"the results could not be written to out={out} ({error.strerror or error}); what it held is still there: "
            "mend that and run again, or name another folder"
        ) from error
    return out


def _keep_concept(concept: Concept, out: Path, stem: str, new: Path, dtype: torch.dtype) -> str:
    """Write a concept below `new` unless its file is in `out` already; returns its file's name."""
    concept.save(written := new / "concept.partial", dtype)
    for name in (f"{stem}{'' if i == 1 else f'-{i}'}.safetensors" for i in count(1)):
        if not (out / name).exists() and not (new / name).exists():
            written.rename(new / name)
            return name
        if _same(written, out / name):
            written.unlink()
            return name


def _same(first: Path, second: Path) -> bool:
    """Whether two files hold the same concept; equal ones may differ in their bytes, whose order is not fixed."""
    try:
        with safe_open(first, "pt") as a, safe_open(second, "pt") as b:
            alike = a.metadata() == b.metadata() and set(a.keys()) == set(b.keys())
            return alike and all(torch.equal(a.get_tensor(key), b.get_tensor(key)) for key in set(a.keys()))
    except (SafetensorError, OSError):
        return False


def _put_aside(out: Path) -> None:
    """Move an earlier run's pictures, grid and run.json into a folder of the next number."""
    if files := [path for pattern in RUN for path in sorted(out.glob(pattern))]:
        folder = next(path for i in count(1) if not (path := out / EARLIER.format(i)).exists())
        folder.mkdir()
        for path in files:
            path.rename(folder / path.name)


def file_stems(sources: Sequence[str]) -> dict[str, str]:
    """Source -> stem of the files made from it: its own, and with its suffix where another source shares it."""
    names = distinct_names([Path(source) for source in sources])
    return {source: file_stem(name) for source, name in zip(sources, names, strict=True)}


def file_stem(name: str) -> str:
    """A name as every file system takes it: what cannot be shown becomes "_", and what is too long a hash."""
    plain = "".join(c if c.isprintable() and c not in FORBIDDEN else "_" for c in name)
    if len(data := plain.encode()) > LONGEST or plain != name:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:6]
        plain = f"{data[: LONGEST - 7].decode(errors='ignore')}-{digest}"
    return plain


def grid(references: Mapping[str, Image.Image], painted: Sequence[Image.Image], columns: Sequence[str]) -> Image.Image:
    """One picture to look at; references are cut to their centre square, which is what the encoder saw."""
    shown = [ImageOps.fit(picture, painted[0].size) for picture in references.values()]
    names = list(references)
    if columns:
        width = len(columns) - 1
        rows = [[shown[i], *painted[i * width : (i + 1) * width]] for i in range(len(shown))]
        return picture_grid(rows, names, columns)
    rows = [list(painted[i : i + PER_ROW]) for i in range(0, len(painted), PER_ROW)]
    labels = [""] * len(rows)
    if shown:
        rows, labels = [shown, *rows], [" · ".join(names), *labels]
    return picture_grid(rows, labels)
