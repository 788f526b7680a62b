"""Subjects of a protocol, with their pictures and prompts. The user points at the data."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from escdiff.data.pictures import distinct_names, list_images
from escdiff.support.errors import UserError

LIVE = ("cat", "dog")  # DreamBench's classes that take its second list of prompts
CLASSES = "classes.txt"
SLOTS = ("{}", "<concept>", "<shape>", "<appearance>")
# Changes of scene, composition and style on which P+ and its successors compare. The paper's own list could not be
# confirmed, so these are ours: figures compare between runs of this program.
P_PLUS_PROMPTS = (
    "a photo of {}", "a photo of {} on the beach", "a photo of {} in the jungle", "a photo of {} in the snow",
    "a photo of {} on a wooden table", "a photo of {} next to a book", "a photo of {} under a tree",
    "{} in the style of a watercolor painting", "{} as a pencil drawing", "an oil painting of {}",
    "a stained glass window of {}", "a photo of {} made of wood", "a photo of {} wearing a red hat",
    "a poster of {}",
)  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """One object and its real pictures, the first of which is the reference unless another number is asked for.

    Attributes:
        category: the word that stands for it in texts that are scored; "" if it is not known.
        templates: its prompts, with `{}` or a placeholder where it belongs.
        texts: what is scored for each of them; without, the template with the category, see `scored`.
        partner: another subject that its prompts show beside it, as `<first>` and `<second>`.
    """

    name: str
    pictures: tuple[Path, ...]
    category: str
    templates: tuple[str, ...]
    texts: tuple[str, ...] = ()
    partner: "Subject | None" = None


def read_dreambench(root: Path) -> list[Subject]:
    """The dataset of DreamBooth (Ruiz et al. 2023): `prompts_and_classes.txt` and a folder per subject.

    Raises:
        UserError: the file or a subject's folder is missing.
    """
    root = root / "dataset" if (root / "dataset").is_dir() else root
    path = root / "prompts_and_classes.txt"
    classes, still, live = _parse(read_text(path))
    if not (classes and still and live):
        raise UserError(f"{path} has {len(classes)} classes, {len(still)} and {len(live)} prompts; fetch it again")
    return [
        Subject(name, _pictures(root / name), category, live if category in LIVE else still)
        for name, category in classes.items()
    ]


def read_p_plus(root: Path) -> list[Subject]:
    """Concepts as textual inversion's and Custom Diffusion's data come: a folder of pictures each.

    Raises:
        UserError: there are none.
    """
    return read_folder(root, P_PLUS_PROMPTS)


def read_folder(root: Path, templates: Sequence[str]) -> list[Subject]:
    """A folder per subject, or pictures that are a subject each; `classes.txt` beside them has lines "name,class".

    Raises:
        UserError: no pictures, or a prompt without a place for the subject.
    """
    if not root.is_dir():
        raise UserError(f"{root} is no folder; give a folder with a folder of pictures per subject")
    if lost := [text for text in templates if not any(slot in text for slot in SLOTS)]:
        raise UserError(f"the prompt {lost[0]!r} has no place for the subject; write one of {', '.join(SLOTS)} there")
    if not templates:
        raise UserError("there are no prompts; give at least one")
    classes = _classes(root / CLASSES)
    groups = {p.name: _pictures(p) for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")}
    if not groups:
        pictures = list_images(root)
        groups = {name: (path,) for path, name in zip(pictures, distinct_names(pictures), strict=True)}
    return [Subject(name, files, classes.get(name, ""), tuple(templates)) for name, files in groups.items()]


def read_prompts(path: Path) -> list[str]:
    """One prompt a line; empty lines and those that begin with # do not count.

    Raises:
        UserError: the file cannot be read.
    """
    lines = [line.strip() for line in read_text(path).splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def painted(template: str) -> str:
    """A template as the model is asked: `{}` is the whole concept."""
    return template.replace("{}", "<concept>")


def scored(template: str, category: str) -> str:
    """A template as CLIP reads it: the category word for the subject, nothing for its appearance or what is unknown."""
    for slot in ("{}", "<concept>", "<shape>"):
        template = template.replace(slot, category)
    return " ".join(template.replace("<appearance>", "").split())


def _parse(text: str) -> tuple[dict[str, str], tuple[str, ...], tuple[str, ...]]:
    """Name -> class, prompts of objects, prompts of live subjects. The file is read, never run."""
    head, _, prompts = text.partition("\nPrompts")
    still, _, live = prompts.partition("Live Subject Prompts")
    lines = [line.strip().split(",") for line in head.splitlines() if line.count(",") == 1]
    classes = {name.strip(): category.strip() for name, category in lines if name.strip() != "subject_name"}

    def templates(part: str) -> tuple[str, ...]:
        quoted = re.findall(r"^\s*(['\"])(.*?\{0\}.*?)\1", part, re.MULTILINE)
        return tuple(prompt.replace("{0} {1}", "{}") for _, prompt in quoted)

    return classes, templates(still), templates(live)


def _classes(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    rows = [row for row in csv.reader(read_text(path).splitlines()) if row]
    if odd := [row for row in rows if len(row) != 2]:
        raise UserError(f"{path} has the line {','.join(odd[0])!r}; give lines such as mug_1,mug")
    return {name.strip(): category.strip() for name, category in rows}


def _pictures(folder: Path) -> tuple[Path, ...]:
    return tuple(list_images(folder))


def read_text(path: Path) -> str:
    """The text of a file of a benchmark.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UserError(f"{path} cannot be read ({reason}); check the path") from None
