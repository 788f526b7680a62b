"""DreamBench++ (Peng et al. 2024): one picture and nine prompts each of 150 animals, people, things and styles."""

import re
from pathlib import Path

from escdiff.data.pictures import SUFFIXES
from escdiff.evaluation.protocols.subjects import Subject, read_text
from escdiff.support.errors import UserError

LIVE = ("animal", "human")
STYLE = "style"


def read_dreambench_plus(root: Path) -> list[Subject]:
    """Its `data/`: `images/.../KIND/NN.jpg` and as many `captions/.../KIND/NN.txt`.

    Line 1 of a caption file names the subject, every other line is a prompt that has those words. A placeholder takes
    their place: `<concept>`, or `<appearance>` for a style. The prompts themselves are scored. A subject is named as
    the benchmark's own ratings name it, such as `live_subject_animal_00_kitten`.

    Raises:
        UserError: no caption files, one without prompts, or one without its picture.
    """
    root = root / "data" if (root / "data" / "captions").is_dir() else root
    files = sorted((root / "captions").rglob("*.txt"))
    if not files:
        raise UserError(f"{root} has no captions/*/*.txt; give the data/ folder of DreamBench++")
    subjects = [_subject(root, path) for path in files]
    return sorted(subjects, key=lambda subject: subject.name)


def _subject(root: Path, path: Path) -> Subject:
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if len(lines) < 2:
        raise UserError(f"{path} has {len(lines)} lines; expected the subject's name and its prompts: fetch it again")
    words, prompts = lines[0], tuple(lines[1:])
    bare = root / "images" / path.relative_to(root / "captions").with_suffix("")
    picture = next((p for suffix in SUFFIXES if (p := bare.with_name(bare.name + suffix)).is_file()), None)
    if picture is None:
        raise UserError(f"{path} has no picture {bare}.jpg; fetch the data again")
    slot = "<appearance>" if path.parent.name == STYLE else "{}"
    return Subject(subject_id(path, words), (picture,), words, tuple(place(p, words, slot) for p in prompts), prompts)


def subject_id(path: Path, words: str) -> str:
    """The name of a subject, from its caption file and its first line."""
    kind = f"live_subject_{path.parent.name}" if path.parent.name in LIVE else path.parent.name
    return f"{kind}_{path.stem}_{words.lower().replace(' ', '_').replace('/', '_')}"


def place(prompt: str, words: str, slot: str) -> str:
    """A prompt with `slot` in the place of the subject's words, or of the last of them that it has.

    Where it has none of them, the slot is added: "PROMPT, SLOT", or "PROMPT in SLOT style".
    """
    parts = words.split()
    for first in range(len(parts)):
        name = r"\s+".join(map(re.escape, parts[first:]))
        text, count = re.subn(rf"(?<!\w){name}(?!\w)", lambda _: slot, prompt, count=1, flags=re.IGNORECASE)
        if count:
            return text
    return f"{prompt}, {slot}" if slot == "{}" else f"{prompt} in {slot} style"
