"""A repository on the Hugging Face hub for what was made: files as they are, with a filled model card."""

import os
import shutil
import tempfile
from pathlib import Path

from escdiff.backbone.adapters.attached import ADAPTER
from escdiff.concept import Concept
from escdiff.encoder.checkpoint import CARD, HERE, read_config
from escdiff.encoder.hub import REPOSITORY, SUFFIX, model_card
from escdiff.sharing.preview import copy_with_preview
from escdiff.sharing.reading import PICKLES
from escdiff.support.errors import UserError, reason_of
from escdiff.support.files import write_atomic
from escdiff.support.names import portable

# What the hub knows by these names; any other licence is "other" there, with its own name beside.
LICENSES = (
    "apache-2.0", "cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "creativeml-openrail-m", "mit", "openrail", "openrail++", "unlicense",
)  # fmt: skip
USE = """```python
import escdiff
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("{base}"){branches}
escdiff.load_concept(pipe, "{repo}/{name}")
pipe("{prompt}").images[0]
```"""


def concept_card(concepts: dict[str, Concept], repo: str = REPOSITORY, previews: bool = False) -> str:
    """README.md of a repository or folder of concepts, its front matter as the hub reads it."""
    first = next(iter(concepts.values()))
    base, licenses = portable(first.base_model), sorted({c.license for c in concepts.values() if c.license})
    table = ["| concept | placeholders | space | method | licence |" + (" preview |" if previews else "")]
    table.append("|" + "---|" * (6 if previews else 5))
    for name, concept in concepts.items():
        words = ", ".join(f"`{word}`" for word in concept.placeholders())
        space = f"{concept.space.num_layers} layer cells × {concept.space.num_stages} stages"
        method, license = concept.notes.get("method", "escdiff"), concept.license or "?"
        cells = [f"`{stored_as(name, concept)}`", words, space, method, license]
        table.append("| " + " | ".join(cells + [f"![{name}]({name}.png)"] * previews) + " |")
    prompt = "a photo of a " + ("<concept>" if len(first.attributes) > 1 else next(iter(first.placeholders())))
    branches = f'\nescdiff.load_branches(pipe, "{first.branches["encoder"]}")' if first.branches else ""
    path = stored_as(next(iter(concepts)), first).removesuffix(SUFFIX)
    use = USE.format(base=base, repo=repo, name=path, prompt=prompt, branches=branches)
    about = f"Word vectors for the cross-attention layers of {base} (text encoder {first.text_hash}). "
    about += "No code, no weights of the model."
    if own := [name for name, concept in concepts.items() if concept.notes.get("adapter")]:
        about += f" {', '.join(own)}: with weights for the U-Net in the folder `{ADAPTER}` beside the concept's file."
    lines = ["# Concepts", "", about, "", *table, "", use]
    return model_card("\n".join(lines), first.base_model, **_license(licenses))


def push_to_hub(
    source: str | os.PathLike, repo: str, private: bool = False, token: str | None = None, message: str | None = None
) -> str:
    """Upload a concept's file, a gallery, or an encoder's folder; returns the commit's address.

    A concept's file gets a card, its preview (`NAME.png` beside it, if there) and its weights (`adapter/` beside it, if
    it brings any); folders have a card already.

    Raises:
        UserError: no such file or folder, a concept without its weights, pickles in it, an encoder that names a folder
            of this machine, or the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(
            f"there is nothing at '{path}' to push: give a concept's file, a gallery or an encoder's folder"
        )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "repository"
        stage = stage_concept if path.is_file() else stage_folder
        stage(path, folder, repo)
        api = HfApi(token=token)
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            done = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message or f"Upload {path.name}")
        except (HfHubHTTPError, ValueError, OSError) as error:  # a card that the hub does not take is a ValueError
            problem = f"the hub refused {repo!r} ({reason_of(error)})"
            raise UserError(f"{problem}: log in with `hf auth login` and check it") from error
    return str(done.commit_url)


def stage_concept(file: Path, folder: Path, repo: str) -> None:
    """Fill a folder with a concept's file, its weights if it brings any, its preview and its card."""
    concept, preview = Concept.load(file), file.with_suffix(".png")
    folder.mkdir()
    copy_concept(file, concept, folder, preview if preview.is_file() else None)
    if preview.is_file():
        shutil.copyfile(preview, folder / preview.name)
    write_atomic(folder / CARD, concept_card({file.stem: concept}, repo, preview.is_file()))


def stored_as(name: str, concept: Concept) -> str:
    """Path of a concept's file in a gallery or repository: one that brings weights has a folder of its own."""
    return (f"{name}/" if concept.notes.get("adapter") else "") + name + SUFFIX


def copy_concept(file: Path, concept: Concept, folder: Path, preview: Path | None = None) -> None:
    """Copy a concept's file, and the weights beside it that it brings, to where `stored_as` says.

    Raises:
        UserError: the weights are not beside it.
    """
    target = folder / stored_as(file.stem, concept)
    target.parent.mkdir(exist_ok=True)
    if concept.notes.get("adapter"):
        weights = file.parent / ADAPTER
        if not weights.is_dir():
            raise UserError(f"the concept '{file}' needs its weights in {weights}, which is not there; put them there")
        (target.parent / ADAPTER).mkdir(exist_ok=True)
        for own in weights.glob(f"*{SUFFIX}"):
            shutil.copyfile(own, target.parent / ADAPTER / own.name)
    if preview is not None:
        copy_with_preview(file, target, preview)
    else:
        shutil.copyfile(file, target)


def stage_folder(source: Path, folder: Path, repo: str) -> None:
    """Copy a gallery or an encoder without what is for this machine alone, and name the repository in its card."""
    bad = [file.name for file in source.rglob("*") if file.suffix in PICKLES]
    if bad:
        raise UserError(f"'{source}' holds the pickle {bad[0]}; expected safetensors: take it out")
    if (source / "config.json").is_file():
        tower = read_config(source)[2].vision
        if portable(tower) != tower:  # as encoders were written until they named the tower apart from its place
            problem = f"the encoder in '{source}' names its vision tower by the path {tower}"
            raise UserError(f"{problem}; load it and save it again, then push that")
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(HERE, ".*"))
    if (card := folder / CARD).is_file():
        write_atomic(card, card.read_text(encoding="utf-8").replace(REPOSITORY, repo))


def _license(names: list[str]) -> dict[str, str]:
    """For the card; several licences are "other"."""
    if not names:
        return {}
    if len(names) == 1 and names[0].lower() in LICENSES:
        return {"license": names[0].lower()}
    return {"license": "other", "license_name": "; ".join(names)}
